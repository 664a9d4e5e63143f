"""The tokenizer: decoding restores the text, and text never becomes a special token."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Bpe
from tokenizers import models

import echo_cli
from echo_cli.errors import EchoError
from echo_cli.models.tokenizer import BOS, PAD, Tokenizer

SHIPPED = Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json"
TOKENIZER = Tokenizer.load(SHIPPED)
BYTES_ONLY = Tokenizer.train([], 258)
TOKENIZERS = pytest.mark.parametrize("tokenizer", [TOKENIZER, BYTES_ONLY], ids=["tiny-base", "bytes"])

TEXT = st.one_of(
    st.text(max_size=40),
    st.text("\r\n\t 0aé日🚀\u200d\u0301\x00\x85\u2028<>", max_size=30),
    st.lists(st.sampled_from([BOS, PAD, "<", "bos>", "$ ", "\n", " 10"]), max_size=8).map("".join),
)


@TOKENIZERS
@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_text_comes_back_as_it_went_in(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert tokenizer.bos_id not in ids and tokenizer.pad_id not in ids
    assert sum(tokenizer.byte_counts(ids)) == len(text.encode())


@TOKENIZERS
def test_text_that_spells_a_special_token_stays_text(tokenizer: Tokenizer) -> None:
    for text in (BOS, PAD, f"{BOS}{PAD}", f"cat {BOS}", f"{BOS}\n"):
        ids = tokenizer.encode(text)
        assert not {tokenizer.bos_id, tokenizer.pad_id} & set(ids)
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.bos_id, tokenizer.pad_id]) == BOS + PAD
    assert tokenizer.bos_id != tokenizer.pad_id


@TOKENIZERS
def test_a_newline_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    (newline,) = tokenizer.newline_ids
    assert tokenizer.decode([newline]) == "\n"
    assert tokenizer.encode("a\n\nb \n").count(newline) == 3


@given(st.lists(st.text(max_size=8).map(lambda line: line.replace("\n", "")), min_size=1, max_size=5))
@settings(deadline=None)
def test_lines_are_encoded_alone(lines: list[str]) -> None:
    whole = TOKENIZER.encode("\n".join(lines))
    (newline,) = TOKENIZER.newline_ids
    separate = TOKENIZER.encode(lines[0])
    for line in lines[1:]:
        separate += [newline, *TOKENIZER.encode(line)]
    assert whole == separate


def test_no_token_holds_two_digits_or_a_digit_and_a_letter() -> None:
    for token in range(TOKENIZER.vocab_size):
        text = TOKENIZER.decode([token])
        if any(character.isascii() and character.isdigit() for character in text):
            assert len(text.strip(" ")) == 1, text


@given(st.text("0123456789", min_size=1, max_size=12), st.sampled_from(["", " ", "a", "-", "\n", ":"]))
@settings(deadline=None)
def test_a_number_has_one_token_a_digit(number: str, before: str) -> None:
    with_number, without = TOKENIZER.encode(before + number), TOKENIZER.encode(before)
    # A space joins the first digit; nothing else does.
    assert len(with_number) == len(number) + (0 if before == " " else len(without))


def test_half_a_character_decodes_to_the_replacement_character() -> None:
    ids = BYTES_ONLY.encode("🚀")
    assert len(ids) == 4
    assert "\ufffd" in BYTES_ONLY.decode(ids[:2])
    assert BYTES_ONLY.decode(ids) == "🚀"


@TOKENIZERS
def test_saving_and_loading_changes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    loaded = Tokenizer.load(path)
    assert loaded.vocab_size == tokenizer.vocab_size
    text = "12:40 WARN pine <bos> disk full on cedar-12\r\nport: 8080\n"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.bos_id == tokenizer.bos_id and loaded.pad_id == tokenizer.pad_id


def test_training_is_deterministic_and_merges() -> None:
    texts = ["port: 8080\nowner: cedar\n" * 20, "12:40 WARN cedar disk full\n" * 20]
    one, two = Tokenizer.train(texts, 300), Tokenizer.train(texts, 300)
    assert one.to_json() == two.to_json()
    assert 258 < one.vocab_size <= 300
    assert len(one.encode("cedar")) < len("cedar")


def test_a_broken_or_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(EchoError, match="no tokenizer"):
        Tokenizer.load(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{}", encoding="utf-8")
    with pytest.raises(EchoError, match=r"broken\.json"):
        Tokenizer.load(broken)
    plain = tmp_path / "plain.json"
    plain.write_text(Bpe(models.BPE()).to_str(), encoding="utf-8")
    with pytest.raises(EchoError, match="has no"):
        Tokenizer.load(plain)


@TOKENIZERS
@given(text=TEXT)
@settings(max_examples=100, deadline=None)
def test_pieces_are_the_text_one_a_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = tokenizer.pieces(text, ids)
    assert "".join(pieces) == text and len(pieces) == len(ids)


def test_a_character_is_the_piece_of_its_last_token() -> None:
    assert BYTES_ONLY.pieces("aé", BYTES_ONLY.encode("aé")) == ["a", "", "é"]


def test_a_special_token_that_is_not_spelled_out_has_an_empty_piece() -> None:
    assert TOKENIZER.pieces("a", [TOKENIZER.start_id, *TOKENIZER.encode("a")]) == ["", "a"]
