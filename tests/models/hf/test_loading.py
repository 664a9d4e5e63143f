"""Loading of Hugging Face models: sources, and one-line errors for unusable models, folders, hubs and devices."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hf_models import CPU, LORA, SIZES, VOCABULARY, load, make_qwen3
from loopback import free_port
from safetensors.torch import load_file, save_file

from echo_cli.config.model import LoraConfig, ModelConfig
from echo_cli.errors import EchoError, install_command
from echo_cli.models import device as device_module
from echo_cli.models.device import choose_device
from echo_cli.models.hf.loading import hf_folder, load_hf_model, require_hf

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3(tmp_path_factory.mktemp("qwen3"))


def refused(folder: Path, *, tokenizer_size: int = VOCABULARY, **settings: Any) -> EchoError:
    config = ModelConfig(kind="hf", path=str(folder), **settings)
    with pytest.raises(EchoError) as caught:
        load_hf_model(folder, config, CPU, torch.float32, 0, tokenizer_size)
    assert caught.value.exit_code == 2 and caught.value.tip and "\n" not in caught.value.message
    return caught.value


# --- Load checks -----------------------------------------------------------------------------------------------------


def _config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        change(values)
        (folder / "config.json").write_text(json.dumps(values))

    return spoil


_FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}  # needs another package


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _incomplete(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _damaged(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("config.json"), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (_config(lambda values: values.update(model_type="qwen99")), "qwen99"),
        (
            _config(lambda values: values.update(auto_map={"AutoConfig": "c.C"}, model_type="own")),
            "contains Python code",
        ),
        (_without("model.safetensors"), "cannot load weights from"),
        (_damaged, "cannot load weights from"),
        (_incomplete, "lack 1 of the model's tensors, such as model.layers.1.self_attn.q_proj.weight"),
        (_config(lambda v: v.update(hidden_size=48)), f"has the shape [{VOCABULARY}, 32], not [{VOCABULARY}, 48]"),
        (_config(lambda values: values.update(vocab_size=VOCABULARY + 8)), f"not [{VOCABULARY + 8}, 32]"),
        (_config(lambda values: values.update(quantization_config=_FOUR_BITS)), "cannot load weights from"),
        (_config(lambda values: values.update(num_hidden_layers=3)), "layer_types"),
        (
            _config(lambda v: v.update(num_hidden_layers=3, layer_types=["full_attention"] * 3)),
            "lack 11 of",
        ),
        (_config(lambda values: values.update(max_position_embeddings=None)), "max_position_embeddings"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    spoil: Callable[[Path], None], message: str, folder: Path, tmp_path: Path
) -> None:
    spoilt = shutil.copytree(folder, tmp_path / "spoilt")
    spoil(spoilt)
    assert message in refused(spoilt).message


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_and_one_with_fewer_is_not(folder: Path) -> None:
    error = refused(folder, tokenizer_size=VOCABULARY + 1)
    assert f"the tokenizer has {VOCABULARY + 1} tokens and the model {VOCABULARY}" in error.message
    config = ModelConfig(kind="hf", path=str(folder))
    assert load_hf_model(folder, config, CPU, torch.float32, 0, VOCABULARY - 5).vocab_size == VOCABULARY


def test_targets_that_match_nothing_name_the_layers_there_are(folder: Path) -> None:
    for targets in (("query",), ("q_proj", "qproj"), ("lm_head",)):
        error = refused(folder, lora=LoraConfig(targets=targets))
        assert f"no linear layer {targets[-1]}" in error.message
        assert error.tip == "choose from down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


def test_architectures_that_the_seam_does_not_hold_for_are_refused(tmp_path: Path) -> None:
    from transformers import (
        BertConfig,
        BertLMHeadModel,
        CohereConfig,
        CohereForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        MambaConfig,
        MambaForCausalLM,
        T5Config,
    )

    shape = {**SIZES, "head_dim": 8}
    torch.manual_seed(0)
    Gemma2ForCausalLM(Gemma2Config(**shape)).save_pretrained(tmp_path / "softcap")
    assert "by a cap or a scale" in refused(tmp_path / "softcap", attention="eager").message
    CohereForCausalLM(CohereConfig(**shape)).save_pretrained(tmp_path / "scale")
    assert "by a cap or a scale" in refused(tmp_path / "scale").message
    bert = {name: value for name, value in shape.items() if name not in ("head_dim", "num_key_value_heads")}
    BertLMHeadModel(BertConfig(**bert, is_decoder=False, initializer_range=0.5)).save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert")
    mamba = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    MambaForCausalLM(mamba).save_pretrained(tmp_path / "mamba")
    refused(tmp_path / "mamba")
    T5Config().save_pretrained(tmp_path / "t5")
    assert "is not a causal LM" in refused(tmp_path / "t5").message


def test_a_window_is_the_most_tokens_that_a_sequence_may_have(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    shape = {**SIZES, "max_position_embeddings": 256}
    MistralForCausalLM(MistralConfig(**shape, sliding_window=64)).save_pretrained(tmp_path / "mistral")
    assert load(tmp_path / "mistral").max_length == 64
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(tmp_path / "llama")
    assert load(tmp_path / "llama", lora=LORA).max_length == 256


def test_scratch_weights_are_those_of_the_seed(folder: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed * 17 + 1)  # the global generator must not matter
        config = ModelConfig(kind="hf", path=str(folder), init="scratch", lora=LORA)
        model = load_hf_model(folder, config, CPU, torch.float32, seed, VOCABULARY)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


# --- The folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "../model", "~/nowhere", "tests/model", "a/b/c"])
def test_a_path_that_looks_local_and_is_missing_is_no_model_folder(path: str) -> None:
    with pytest.raises(EchoError, match="no model folder"), hf_folder(ModelConfig(kind="hf", path=path), 0):
        pass


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with (
        pytest.raises(EchoError, match="cannot fetch nobody/nothing") as caught,
        hf_folder(ModelConfig(kind="hf", path="nobody/nothing", fetch="named"), 0),
    ):
        pass
    assert caught.value.exit_code == 2 and "HF_ENDPOINT" in str(caught.value.tip)


class _NoHub(BaseHTTPRequestHandler):
    """A handler that sends its server's bytes, or none."""

    def do_GET(self) -> None:
        if self.server.page:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.page)))
            self.end_headers()
            self.wfile.write(self.server.page)

    def log_message(self, format: str, *_: Any) -> None:
        pass


@pytest.mark.parametrize("page", [b"<html>\x1b[2Jplease log in</html>", b'{"a": 1}', b"[]", b""])
def test_what_is_no_hub_is_one_line(page: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _NoHub) as server:
        server.page = page
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        _refused_by_the_hub(f"http://127.0.0.1:{server.server_port}", monkeypatch, tmp_path)
        server.shutdown()


def test_an_endpoint_that_is_no_url_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _refused_by_the_hub("hub.example", monkeypatch, tmp_path)


def _refused_by_the_hub(endpoint: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    with (
        pytest.raises(EchoError, match="cannot fetch nobody/nothing: the hub is unreachable") as caught,
        hf_folder(ModelConfig(kind="hf", path="nobody/nothing", fetch="named"), 0),
    ):
        pass
    assert caught.value.exit_code == 2 and "HF_ENDPOINT" in str(caught.value.tip)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(("number", "exit_code"), [(errno.ENOSPC, 1), (errno.EACCES, 2)])
def test_a_cache_that_cannot_be_written_is_not_the_network(
    number: int, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), None if number == errno.ENOSPC else "blobs")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with (
        pytest.raises(EchoError, match=f"cannot write .*: {os.strerror(number)}") as caught,
        hf_folder(ModelConfig(kind="hf", path="nobody/nothing", fetch="named"), 0),
    ):
        pass
    assert caught.value.exit_code == exit_code and "HF_HOME" in str(caught.value.tip)


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(EchoError, match="peft, which is not installed") as caught:
        require_hf()
    assert caught.value.tip == install_command("hf")


def test_loading_says_nothing_on_stderr(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(folder, lora=LORA, gradient_checkpointing=True)
    load(folder).load(folder)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


# --- The dtype -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "dtype", "native", "chosen"),
    [
        ("cpu", "auto", True, torch.float32),
        ("cpu", "bfloat16", True, torch.bfloat16),
        ("cpu", "float32", False, torch.float32),
        ("cuda", "auto", True, torch.bfloat16),
        ("cuda", "auto", False, torch.float32),
        ("cuda", "bfloat16", True, torch.bfloat16),
        ("cuda", "float32", True, torch.float32),
    ],
)
def test_the_dtype_is_chosen_with_the_device(
    device: str, dtype: Any, native: bool, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(device_module, "_computes_bfloat16", lambda device: native)
    choice = choose_device("auto", dtype)
    assert (choice.device.type, choice.dtype) == (device, chosen)
    assert choice.reason.startswith(f"{device} {str(chosen).removeprefix('torch.')}: ")


@pytest.mark.parametrize("cuda", [False, True])
def test_bfloat16_where_the_device_lacks_it_is_refused(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(EchoError, match="bfloat16") as caught:
        choose_device("auto", "bfloat16")
    assert (caught.value.exit_code, caught.value.tip) == (2, "set model.dtype=float32")
    assert choose_device("auto").dtype == torch.float32


@pytest.mark.parametrize(
    ("instructions", "said"),
    [
        ({"avx512_bf16": True, "amx_bf16": True, "avx2": True}, "this one also has amx_bf16 and avx512_bf16"),
        ({"avx512_bf16": True, "amx_bf16": False}, "this one also has avx512_bf16: model.dtype=bfloat16 is faster"),
        ({"avx512_bf16": False, "avx2": True}, "this CPU has no bfloat16 instructions"),
    ],
)
def test_a_cpu_stays_exact_and_the_line_at_the_start_says_what_it_could_do(
    instructions: dict[str, bool], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    choice = choose_device("cpu", "auto")
    assert choice.dtype == torch.float32 and choice.reason.startswith("cpu float32: as requested; ")
    assert said in choice.reason
    assert choose_device("cpu", "float32").reason == "cpu float32: as requested"


def test_the_built_in_model_needs_none_of_it() -> None:
    modules = "echo_cli.training.session, echo_cli.cli.main, echo_cli.training.loop"
    code = f"import sys, {modules}; print({{'transformers', 'peft'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_attention_that_has_no_float32_is_refused(folder: Path) -> None:
    assert "does not support float32" in refused(folder, attention="flash_attention_2").message
