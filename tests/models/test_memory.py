"""The predicted memory of a run: by hand, against the bytes of real tensors, and by general properties."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hf_models import qwen3_config
from live_tensors import LiveTensors
from peft import LoraConfig, get_peft_model
from transformers import Qwen3ForCausalLM

from echo_cli.config.model import LoraConfig as LoraSettings
from echo_cli.config.schema import Config
from echo_cli.models import memory
from echo_cli.models.architecture import NAMED, Architecture
from echo_cli.models.memory import Dtype, chunk_rows, predict_memory, saved_by_layer, trained_parameters
from echo_cli.objective.logprobs import selected_logprobs

SMALL = Architecture(64, 3, 4, 2, 24, 160, 1024, True, 4096, "qwen3")


def _config(model: dict[str, Any] | None = None, **keys: Any) -> Config:
    model = {"kind": "hf", "path": "Qwen/Qwen3-0.6B", **(model or {})}
    return Config.model_validate_json(json.dumps({"model": model, **keys}))


def _model(shape: Architecture, lora: int | None, dtype: Dtype, checkpointing: bool) -> tuple[Any, Any, Any]:
    """Return a model in train mode, its decoder, and its head."""
    base = model = Qwen3ForCausalLM(qwen3_config(shape))
    if lora is not None:
        frozen = base.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        model = get_peft_model(frozen, LoraConfig(r=lora, target_modules="all-linear"))
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is not None:
            base.enable_input_require_grads()
    model.train()
    return model, base.model, base.lm_head


def _autocast(dtype: Dtype) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def _saved(shape: Architecture, lora: int | None, dtype: Dtype, tokens: int) -> int:
    """Return the bytes that a forward pass of `tokens` tokens saves for the backward pass, weights excluded."""
    model, decoder, _ = _model(shape, lora, dtype, checkpointing=False)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, _autocast(dtype):
        states = decoder(input_ids=torch.arange(tokens)[None], use_cache=False).last_hidden_state
    assert states.requires_grad
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("lora", [None, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_saves_exactly_what_is_counted(dtype: Dtype, lora: int | None) -> None:
    shape = Architecture(64, 1, 4, 2, 24, 160, 256, True, 4096, "qwen3")
    config = _config(model={"lora": None if lora is None else {"rank": lora}})
    deeper = Architecture(64, 2, 4, 2, 24, 160, 256, True, 4096, "qwen3")
    # The difference between depths is one layer; the difference between lengths removes constants.
    layer = [_saved(deeper, lora, dtype, tokens) - _saved(shape, lora, dtype, tokens) for tokens in (32, 64)]
    assert (layer[1] - layer[0]) / 32 == saved_by_layer(shape, config, dtype)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_predicted_update_is_near_the_tensors_that_live(
    dtype: Dtype, lora: int | None, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CHUNK_LOGITS", {"cpu": 2**17})  # four chunks of 128 rows
    tokens, rows = 512, chunk_rows(SMALL.vocab, "cpu")
    model, decoder, head = _model(SMALL, lora, dtype, checkpointing)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    with LiveTensors() as counted:
        counted.count(*model.parameters(), *model.buffers())
        for micro_batch in range(3):  # in the third, the gradient of the second is live
            ids = torch.arange(tokens)
            with _autocast(dtype):
                hidden = decoder(input_ids=ids[None], use_cache=False).last_hidden_state[0]
                scores = selected_logprobs(hidden, head, ids, chunk_rows=rows, correct=False)
            del hidden
            scores.logprobs_N.sum().backward()
            del scores
            if micro_batch == 0:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                counted.reset_peak()
    config = _config(
        model={"lora": None if lora is None else {"rank": lora}, "gradient_checkpointing": checkpointing},
        optim={"token_budget": tokens},
        rollout={"max_episode_tokens": 256, "max_output_tokens": 64},
    )
    parts = predict_memory(SMALL, config, dtype, "cpu").update
    predicted = sum(parts.values()) - parts["libraries"] - parts["freed blocks"]
    assert 1 < predicted / counted.peak < 1.25


def test_a_config_by_hand() -> None:
    shape = Architecture(4, 2, 2, 1, 3, 5, 7, True, 16, "qwen3")
    P, linear = 324, 2 * (24 + 12 + 12 + 24 + 60)
    assert (shape.parameters, shape.linear_parameters) == (P, linear)
    config = _config(
        rollout={"tasks_per_step": 2, "group_size": 3, "max_episode_tokens": 10, "max_output_tokens": 5},
        optim={"token_budget": 30},
        objective={"kl_coeff": 0.1},
        sampler={"prefill_tokens": 40},
    )
    found = predict_memory(shape, config, "bfloat16", "cpu")
    standing = {
        "libraries": 500_000_000,
        "weights": 4 * P,
        "compute copies": 2 * (linear + 28),
        "optimizer": 8 * P,
        "KL reference": 2 * linear + 4 * (P - linear),
    }
    layer = 26 * 4 + 10 * 6 + 10 * 3 + 8 * 5 + 8 + 8 * 2 + 4 * 1
    allocated = {
        "gradients": 4 * P + 2 * 28,
        "activations": 30 * (2 * layer + 16 * 4),
        "logits": 20 * 7 * 30 + 2 * 28,
    }
    assert found.update == {**standing, **allocated, "freed blocks": sum(allocated.values()) // 4}
    # 6 rollouts of 20 tokens; keys and values of 3 features each, repeated for twice as many heads.
    assert found.rollout == {
        **standing,
        "KV cache": 2 * 2 * 3 * 120 * (2 + 1) + 2 * 2 * 6 * 120,
        "prefill": 40 * (3 * 20 + 8 * (5 + 8) + 4 * (6 + 6)),
        "sampling": 28 * 7 * 6,
        "merged adapter": 0,
    }
    adapted = config.model_copy(update={"model": config.model.model_copy(update={"lora": LoraSettings(rank=1)})})
    assert predict_memory(shape, adapted, "float32", "cuda").rollout["merged adapter"] == 4 * linear
    on_cuda = predict_memory(shape, adapted, "float32", "cuda").update
    assert "libraries" not in on_cuda and "freed blocks" not in on_cuda
    assert found.loading == {"libraries": 500_000_000, "weights": 4 * P, "files": 4 * P}
    phases = (found.loading, found.rollout, found.update)
    assert found.peak == sum(found.parts.values()) == max(sum(parts.values()) for parts in phases)


def test_more_work_never_needs_less() -> None:
    shape = NAMED["Qwen/Qwen3-0.6B"]
    for section, key, values in (
        ("optim", "token_budget", (8192, 16_384, 32_768)),
        ("rollout", "group_size", (1, 8, 64)),
        ("rollout", "max_episode_tokens", (512, 2048, 8192)),
        ("sampler", "prefill_tokens", (1024, 65_536)),
        ("objective", "kl_coeff", (0.0, 0.1)),
        ("environment", "sessions", (1, 4)),
    ):
        source = {"toy_terminal": {}} if section == "environment" else {}
        configs = [_config(**{section: {**source, key: value}}) for value in values]
        found = [predict_memory(shape, config, "bfloat16", "cpu") for config in configs]
        sizes = [sum(of.rollout.values()) + sum(of.update.values()) for of in found]
        assert sizes == sorted(sizes) and sizes[0] < sizes[-1], key


def test_what_takes_less_memory_does() -> None:
    shape = NAMED["Qwen/Qwen3-8B"]
    whole = predict_memory(shape, _config(), "bfloat16", "cpu")
    lora = _config(model={"lora": {"rank": 16}})
    assert trained_parameters(shape, lora) < shape.parameters / 100
    assert predict_memory(shape, lora, "bfloat16", "cpu").peak < whole.peak / 2
    assert whole.peak < predict_memory(shape, _config(), "float32", "cpu").peak
    short = {"optim": {"token_budget": 64}, "rollout": {"max_episode_tokens": 32, "max_output_tokens": 16}}
    light = _config(
        model={"lora": {"rank": 16}, "gradient_checkpointing": True},
        environment={"sessions": 1, "toy_terminal": {}},
        **short,
    )
    assert predict_memory(shape, light, "bfloat16", "cpu").phase == "loading"
    assert predict_memory(shape, light, "bfloat16", "cuda").loading == {}
    checkpointed = predict_memory(shape, _config(model={"gradient_checkpointing": True}), "bfloat16", "cpu")
    assert checkpointed.update["activations"] < whole.update["activations"] / 5
    probing = predict_memory(shape, _config(probe_every=1), "bfloat16", "cpu")
    assert probing.update["gradients"] - whole.update["gradients"] == 12 * shape.parameters


def test_an_endpoint_has_the_cache_of_the_rollouts() -> None:
    endpoint = {"kind": "openai", "url": "http://127.0.0.1:1", "model": "m", "sync": "sglang", "weights": "w"}
    found = predict_memory(NAMED["Qwen/Qwen3-0.6B"], _config(sampler=endpoint), "bfloat16", "cpu")
    assert found.rollout["KV cache"] == found.rollout["sampling"] == 0
    assert found.phase == "update"
