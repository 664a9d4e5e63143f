"""Hugging Face tokenizers: text never becomes a special token, decoding restores it, files are kept whole."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_models import CHATML_TEMPLATE, LLAMA3_SPECIAL, make_llama3, make_sentencepiece, write_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from echo_cli.config.model import ConversationConfig, ModelConfig
from echo_cli.errors import EchoError
from echo_cli.models.hf.random_qwen3 import ADDED_TOKENS, SPECIAL_TOKENS, make_random_qwen3
from echo_cli.models.hf.renderer import load_hf_renderer
from echo_cli.models.hf.tokenizer import load_hf_tokenizer
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tokenizer import Tokenizer

HF = ModelConfig(kind="hf", path="here")
PLAIN = ConversationConfig(renderer="plain")
FORMS = ("qwen3", "llama3", "sentencepiece")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in FORMS}
    make_random_qwen3(made["qwen3"], 0)
    make_llama3(made["llama3"])
    make_sentencepiece(made["sentencepiece"])
    return made


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: load_hf_tokenizer(folder, HF)[1] for name, folder in folders.items()}


TEXT = st.one_of(
    st.text(max_size=30),
    st.text("\r\n\t 0aé日🚀\u200d\u0301\x00\x85\u2028<>|\u2581", max_size=20).map(lambda t: t.replace("\u2581", "")),
    st.lists(st.sampled_from([*SPECIAL_TOKENS, *ADDED_TOKENS, *LLAMA3_SPECIAL, "<s>", " ", "\n"])).map("".join),
)


@pytest.mark.parametrize("form", FORMS)
@given(before=TEXT, text=TEXT)
@settings(max_examples=80, deadline=None)
def test_text_stays_text_and_comes_back(tokenizers: dict[str, Tokenizer], form: str, before: str, text: str) -> None:
    tokenizer = tokenizers[form]
    before, text = before.replace("\u2581", ""), text.replace("\u2581", "")  # sentencepiece's own space
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.byte_counts(ids)) == len(text.encode())
    assert not {tokenizer.token_id(name) for name in tokenizer.added_tokens} & set(ids)
    assert tokenizer.decode(tokenizer.encode(before) + ids) == before + text


@pytest.mark.parametrize("name", [*SPECIAL_TOKENS, *ADDED_TOKENS])
def test_only_scaffold_has_special_and_added_tokens(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers["qwen3"]
    token_id = tokenizer.token_id(name)
    assert token_id is not None and tokenizer.decode([token_id]) == name
    assert tokenizer.encode_scaffold(f"ls{name}\n") == [*tokenizer.encode("ls"), token_id, *tokenizer.encode("\n")]
    assert token_id not in tokenizer.encode(f"ls{name}\n")
    assert tokenizer.byte_counts([token_id]) == [len(name)]


def test_scaffold_gets_no_bos_of_its_own(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["llama3"]
    bos_id, eot_id = tokenizer.token_id("<|begin_of_text|>"), tokenizer.token_id("<|eot_id|>")
    assert tokenizer.encode_scaffold("<|begin_of_text|>a<|eot_id|>") == [bos_id, *tokenizer.encode("a"), eot_id]
    assert tokenizer.start_id == tokenizer.bos_id == bos_id
    assert tokenizer.eos_ids == tuple(tokenizer.token_id(t) for t in ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"))


def test_a_model_without_bos_starts_with_its_end_of_text(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["qwen3"]
    end_of_text, end_of_turn = tokenizer.token_id("<|endoftext|>"), tokenizer.token_id("<|im_end|>")
    assert tokenizer.bos_id is None
    assert tokenizer.start_id == tokenizer.pad_id == end_of_text
    assert tokenizer.eos_ids == (end_of_turn, end_of_text)


def test_bytes_of_sentencepiece_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["sentencepiece"]
    ids = tokenizer.encode("cat cat\né日")
    # c at | ▁cat | <0x0A> | é | three bytes of 日
    assert tokenizer.byte_counts(ids) == [1, 2, 4, 1, 2, 1, 1, 1]
    assert tokenizer.byte_counts([tokenizer.token_id("</s>") or 0]) == [4]
    assert tokenizer.newline_ids == (3 + 10,)


def test_every_token_with_a_newline_ends_a_line(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["qwen3"]
    expected = tuple(i for i in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([i]))
    assert tokenizer.newline_ids == expected and len(expected) > 1
    assert not set(tokenizer.eos_ids) & set(expected)


def test_added_runs_of_spaces_are_text(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["llama3"], tmp_path, dirs_exist_ok=True)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_tokens([AddedToken("    ", normalized=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_hf_tokenizer(tmp_path, HF)[1]
    ids = tokenizer.encode("a    b")
    assert tokenizer.token_id("    ") in ids and tokenizer.decode(ids) == "a    b"
    assert sum(tokenizer.byte_counts(ids)) == 6 and "    " not in tokenizer.added_tokens


@pytest.mark.parametrize("form", FORMS)
def test_every_file_of_the_tokenizer_is_saved_again(folders: dict[str, Path], form: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs, tokenizer = load_hf_tokenizer(folders[form], HF)
    tokenizer.save(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= written <= {path.name for path in folders[form].iterdir()}
    assert "generation_config.json" not in written and "config.json" not in written
    assert all((tmp_path / name).read_bytes() == (folders[form] / name).read_bytes() for name in written)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == theirs.chat_template and again.eos_token_id == theirs.eos_token_id
    assert again("ls -la\n")["input_ids"] == theirs("ls -la\n")["input_ids"]


def test_a_tokenizer_without_tokenizer_json_gets_one(folders: dict[str, Path], tmp_path: Path) -> None:
    slow, saved = tmp_path / "slow", tmp_path / "saved"
    slow.mkdir(), saved.mkdir()
    model = json.loads((folders["qwen3"] / "tokenizer.json").read_text())["model"]
    (slow / "vocab.json").write_text(json.dumps(model["vocab"]))
    (slow / "merges.txt").write_text("\n".join(" ".join(merge) for merge in model["merges"]) + "\n")
    shutil.copy(folders["qwen3"] / "tokenizer_config.json", slow)
    tokenizer = load_hf_tokenizer(slow, HF)[1]
    tokenizer.save(saved)
    assert load_hf_tokenizer(saved, HF)[1].encode("ls -la /srv") == tokenizer.encode("ls -la /srv")
    assert {path.name for path in saved.iterdir()} == {
        *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    }


def test_a_chat_template_of_the_config_is_saved_with_the_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    mine, saved = tmp_path / "mine.jinja", tmp_path / "saved"
    mine.write_text(CHATML_TEMPLATE)
    saved.mkdir()
    for form in ("qwen3", "llama3"):  # in its own file, and within tokenizer_config.json
        model = ModelConfig(kind="hf", path="here", chat_template=str(mine))
        load_hf_tokenizer(folders[form], model)[1].save(saved)
        assert (saved / "chat_template.jinja").read_text() == CHATML_TEMPLATE
        assert "chat_template" not in json.loads((saved / "tokenizer_config.json").read_text())
        assert load_hf_tokenizer(saved, HF)[0].chat_template == CHATML_TEMPLATE


def test_a_base_model_is_written_plain(folders: dict[str, Path]) -> None:
    renderer = load_hf_renderer(folders["qwen3"], HF, PLAIN)
    assert isinstance(renderer, PlainRenderer)
    tokenizer = renderer.tokenizer
    assert renderer.start_ids == (tokenizer.token_id("<|endoftext|>"),)
    newlines = tokenizer.encode("ls\n\n")
    assert newlines[-1] in renderer.stop_ids
    assert renderer.message(newlines).text == "ls" and renderer.message(newlines).complete
    ended = renderer.message([*tokenizer.encode("ls"), tokenizer.eos_ids[1]])
    assert (ended.text, ended.complete) == ("ls", True)


# --- Refusals --------------------------------------------------------------------------------------------------------


def _edit(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def _no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _no_settings(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def _no_eos(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    write_settings(folder, bos_token="<|begin_of_text|>")


def _foreign_eos(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [128001]}')


def _lower_case(folder: Path) -> None:
    _edit(folder / "tokenizer.json", normalizer={"type": "Lowercase"})


def _damaged(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


REFUSALS: list[tuple[Callable[[Path], None], str]] = [
    (_no_vocabulary, "cannot load the tokenizer of"),
    (_no_settings, r"has no tokenizer_config\.json"),
    (_no_eos, "has no eos token"),
    (_foreign_eos, r"has eos_token_id \[128001\]"),
    (_lower_case, r"does not preserve text: .12:40 WARN"),
    (_damaged, "cannot load the tokenizer of"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSALS, ids=[spoil.__name__[1:] for spoil, _ in REFUSALS])
def test_a_tokenizer_that_would_quietly_be_another_is_refused(
    folders: dict[str, Path], tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(folders["llama3"], tmp_path, dirs_exist_ok=True)
    spoil(tmp_path)
    with pytest.raises(EchoError, match=message) as refused:
        load_hf_renderer(tmp_path, HF, PLAIN)
    assert refused.value.exit_code == 2 and refused.value.tip and "\n" not in refused.value.message


@pytest.mark.parametrize("text", ["{", "[1]", '{"model_type": "qwen3", "hidden_size": "large"}'])
def test_a_damaged_config_is_not_the_tokenizers_fault(folders: dict[str, Path], tmp_path: Path, text: str) -> None:
    shutil.copytree(folders["qwen3"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(EchoError, match=re.escape(str(tmp_path / "config.json"))) as refused:
        load_hf_tokenizer(tmp_path, HF)
    assert refused.value.exit_code == 2 and "tokenizer" not in f"{refused.value.message}{refused.value.tip}"


def test_a_folder_by_a_files_name_is_no_file(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["qwen3"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "original.model").mkdir()
    assert load_hf_tokenizer(tmp_path, HF)[1].vocab_size == load_hf_tokenizer(folders["qwen3"], HF)[1].vocab_size


def test_qwen_without_its_vocabulary_is_not_an_empty_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folders["qwen3"] / name, tmp_path)
    with pytest.raises(EchoError, match="is empty: its vocabulary is missing"):
        load_hf_tokenizer(tmp_path, HF)


@pytest.mark.parametrize("data", [None, b"\xff\xfe"], ids=["missing", "not UTF-8"])
def test_a_chat_template_that_cannot_be_read(folders: dict[str, Path], tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "mine.jinja"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(EchoError, match=re.escape(f"cannot read model.chat_template {path}")):
        load_hf_tokenizer(folders["qwen3"], ModelConfig(kind="hf", path="here", chat_template=str(path)))
