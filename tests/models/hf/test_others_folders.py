"""Model folders of a stranger run no code, and reach no hub, whatever their files name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import CPU, VOCABULARY, make_qwen3
from others_models import HUB_NAME, change_json, stand_in_hub, write_model_with_code

from echo_cli.config.model import Fetch, ModelConfig
from echo_cli.errors import EchoError
from echo_cli.models.hf.loading import check_hf_model, hf_folder, load_hf_model
from echo_cli.models.hf.tokenizer import load_hf_tokenizer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    with stand_in_hub(monkeypatch, tmp_path / "hub") as asked:
        yield asked


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "folder")


def said_about(folder: Path, **settings: Any) -> tuple[str, str]:
    """Load a folder, which must be refused, and return message and tip."""
    model = ModelConfig(kind="hf", path=str(folder), **settings)
    with pytest.raises(EchoError) as caught, hf_folder(model, 0) as found:
        load_hf_model(found, model, CPU, torch.float32, 0, VOCABULARY)
    assert "\n" not in caught.value.message
    return caught.value.message, str(caught.value.tip)


class _Touch:
    """An object whose pickle writes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(_Touch(tmp_path / "marker")))
    assert "cannot load weights" in said_about(folder)[0]
    assert not (tmp_path / "marker").exists()


def test_an_adapter_asks_for_its_base_only_on_request(tmp_path: Path, hub: list[str]) -> None:
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": HUB_NAME}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    fetching: list[Fetch] = ["never", "named"]
    for fetch in fetching:
        message, tip = said_about(tmp_path, fetch=fetch)
        assert f"{HUB_NAME} is not on this machine" in message and "--fetch-model" in tip and hub == []
    assert f"{HUB_NAME} is neither a model folder nor a model on the hub" in said_about(tmp_path, fetch="all")[0]
    assert any(HUB_NAME in path for path in hub)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("megatron_config", {"tensor_model_parallel_size": 1}),
        ("layer_replication", [[0, 2], [0, 2]]),
        ("loftq_config", {"loftq_bits": 4}),
        ("use_qalora", True),
    ],
)
def test_settings_of_an_adapter_that_import_or_change_the_base_are_refused(
    key: str, value: Any, whole: Path, tmp_path: Path
) -> None:
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": str(whole)}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**adapter, "megatron_core": "antigravity", key: value}))
    assert f"sets {key}, which is not read here" in said_about(tmp_path)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": f"{HUB_NAME}:kernel", "_attn_implementation": HUB_NAME},
        {"auto_map": {"AutoConfig": f"{HUB_NAME}--c.C", "AutoModelForCausalLM": f"{HUB_NAME}--m.M"}},
        {"model_type": "theirs", "auto_map": {"AutoConfig": f"{HUB_NAME}--c.C"}},
        {"_name_or_path": HUB_NAME, "base_model_name_or_path": HUB_NAME, "tokenizer_class": "LlamaTokenizer"},
        {"quantization_config": {"quant_method": "mxfp4"}},
    ],
)
def test_whatever_a_config_names_the_hub_is_not_asked(changes: dict[str, Any], folder: Path, hub: list[str]) -> None:
    change_json(folder / "config.json", **changes)
    for settings in ({}, {"trust_remote_code": True}):
        model = ModelConfig(kind="hf", path=str(folder), **settings)
        for work in (load_hf_model, check_hf_model):
            where = (CPU,) if work is load_hf_model else ()
            try:
                work(folder, model, *where, torch.float32, 0, VOCABULARY)
            except EchoError as error:
                assert "\n" not in error.message and error.tip
    assert hub == []


def test_a_tokenizer_runs_no_code(tmp_path: Path) -> None:
    folder = write_model_with_code(tmp_path / "model", tmp_path / "marker")
    change_json(folder / "config.json", model_type="qwen3", auto_map={})
    own = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}
    change_json(folder / "tokenizer_config.json", **own)
    with suppress(EchoError):  # transformers may have a class of its own for the type
        load_hf_tokenizer(folder, ModelConfig(kind="hf", path=str(folder)))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_runs_in_a_sandbox(template: str, tmp_path: Path) -> None:
    from echo_cli.models.hf.chat_template import ChatTemplate

    folder = write_model_with_code(tmp_path / "model", tmp_path / "marker")
    change_json(folder / "config.json", model_type="qwen3", auto_map={})
    theirs, _ = load_hf_tokenizer(folder, ModelConfig(kind="hf", path=str(folder)))
    theirs.chat_template = template
    with pytest.raises(EchoError, match="the chat template fails"):
        ChatTemplate(theirs, template, None, "keep").text([("user", "hello")])
