"""Estimated cost of a run: the plan of --dry-run, and the lines at the start of a run."""

from __future__ import annotations

import json
import math
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from echo_cli.cli.main import main
from echo_cli.config.loader import configs_folder, find_config, load_config
from echo_cli.config.schema import Config
from echo_cli.models.architecture import NAMED
from echo_cli.models.device import DeviceChoice, device_memory
from echo_cli.models.memory import predict_memory
from echo_cli.objective.advantages import step_advantages
from echo_cli.objective.batch import count_rollouts
from echo_cli.objective.diagnostics import portable_lambda
from echo_cli.objective.loss import step_totals, step_weights
from echo_cli.training.plan import expected_advantage, memory_notice, plan, portable_estimate, rollouts_of_step
from echo_cli.trajectory import Role, Segment, Trajectory

_NORM = "model.norm.weight"
CPU = DeviceChoice(torch.device("cpu"), "cpu float32: as requested")


def _config(**keys: Any) -> Config:
    return Config.model_validate_json(json.dumps(keys))


def _hf(path: str = "Qwen/Qwen3-0.6B", **keys: Any) -> Config:
    return _config(model={"kind": "hf", "path": path}, **keys)


def _plan(config: Config) -> dict[str, Any]:
    return plan(config, Path("outputs/run"))


@pytest.mark.parametrize("name", [path.stem for path in sorted(configs_folder().glob("*.yaml"))])
def test_every_shipped_config_is_planned_with_its_size_and_memory(name: str, tmp_path: Path) -> None:
    config = load_config(find_config(name))
    planned = _plan(config)
    assert planned["parameters"] > 0 and planned["tokens per step, at most"] > 0
    assert "portable λ, estimated" in planned
    assert (config.model.kind == "hf") == ("peak memory, GB, predicted" in planned)


def test_a_dry_run_needs_no_network(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for file in configs_folder().glob("*.yaml"):
        assert main(["train", "--config", file.stem, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.count("# peak memory, GB, predicted: ") == 4


def test_a_plan_has_the_sizes_of_the_model_and_of_what_is_trained() -> None:
    planned = _plan(_hf(device="cpu"))
    assert planned["parameters"] == 596_049_920 and planned["parameters trained"].startswith("596049920 (all)")
    assert planned["dtype"] == "float32"
    predicted = predict_memory(NAMED["Qwen/Qwen3-0.6B"], _hf(), "float32", "cpu")
    assert planned["peak memory, GB, predicted"] == round(predicted.peak / 1e9, 2)
    assert planned["memory of an update, GB"].keys() == predicted.update.keys()
    lora = _config(model={"kind": "hf", "path": "Qwen/Qwen3-8B", "lora": {"rank": 16}}, device="cpu")
    assert _plan(lora)["parameters trained"] == "43646976 (0.53%, a LoRA of rank 16)"


def test_a_model_that_is_not_here_is_of_unknown_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    planned = _plan(_hf("someone/model", device="cpu"))
    assert "unknown size" in planned["model"] and planned["peak memory, GB, predicted"].startswith("unknown")
    assert memory_notice(_hf("someone/model"), CPU)[0].startswith("memory: unknown")


def test_a_plan_for_a_device_that_is_not_here_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    planned = _plan(_hf(device="cuda"))
    assert "not available" in planned["device"] and planned["dtype"] == "bfloat16"
    assert "memory of the device, GB" not in planned
    assert _plan(_config(model={"kind": "hf", "path": "x/y", "dtype": "float32"}, device="cuda"))["dtype"] == "float32"


def test_a_start_says_what_it_will_need_and_warns_where_that_is_too_much() -> None:
    usable = device_memory(torch.device("cpu")).usable
    assert usable is None or 0 < usable < 1e14
    small = _hf("random-qwen3", optim={"token_budget": 512})
    (line,) = memory_notice(small, CPU)
    assert line.startswith("memory: predicted peak ") and "optimizer 0.01" in line
    line, warning = memory_notice(_hf("Qwen/Qwen3-14B", optim={"token_budget": 10**9}), CPU)
    assert "optim.token_budget" in warning
    assert memory_notice(_config(), CPU) == []


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    from echo_cli.models.hf.random_qwen3 import make_random_qwen3

    folder = tmp_path_factory.mktemp("models") / "whole"
    folder.mkdir()
    make_random_qwen3(folder, 0)
    return folder


def _remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _only_gguf(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "model.gguf").write_bytes(b"GGUF")


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _no_decoder(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "t5"}', encoding="utf-8")


def _own_form(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}|{% endfor %}", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "words", "said"),
    [
        (lambda folder: shutil.rmtree(folder), [], "no model folder at"),
        (_only_gguf, [], "is in the GGUF format"),
        (_only_gguf, ["model.path={folder}/model.gguf"], "is in the GGUF format"),
        (lambda folder: _remove(folder, "config.json"), [], "has no config.json"),
        (lambda folder: _remove(folder, "tokenizer_config.json"), [], "has no tokenizer_config.json"),
        (lambda folder: _remove(folder, "model.safetensors"), [], "cannot load weights"),
        (_truncate, [], "cannot load weights"),
        (
            lambda folder: _change_weights(folder, lambda of: of.pop(_NORM)),
            [],
            f"lack 1 of the model's tensors, such as {_NORM}",
        ),
        (
            lambda folder: _change_weights(folder, lambda of: of.update({_NORM: torch.ones(3)})),
            [],
            f"{_NORM} has the shape [3]",
        ),
        (_no_decoder, [], "is not a causal LM"),
        (_own_form, [], "chat template"),
        (lambda folder: None, ["model.chat_template={folder}/none.jinja"], "none.jinja"),
        (lambda folder: None, ["model.lora={rank: 2, targets: [nose]}"], "no linear layer nose"),
        (lambda folder: None, ["--config", "toy"], "tokenizer.json"),
    ],
)
def test_a_dry_run_refuses_every_model_that_train_refuses_before_its_weights_are_read(
    spoil: Callable[[Path], None],
    words: list[str],
    said: str,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    spoil(folder)
    given = [f"model.path={folder}", *(word.replace("{folder}", str(folder)) for word in words)]
    command = ["train", "--config", "hf-smoke", "--output-dir", str(tmp_path), "device=cpu", *given]
    refused = main([*command, "--dry-run"]), capsys.readouterr().err
    assert refused[0] == 2 and said in refused[1] and "\n  tip: " in refused[1]
    # Of missing weights, the libraries give the reason in their own words.
    trained = main(command), capsys.readouterr().err
    assert refused[0] == trained[0] and said in trained[1]
    assert refused[1].splitlines()[1:] == trained[1].splitlines()[1:]


@pytest.mark.parametrize("words", [[], ["model.lora={rank: 2}"], ["model.init=scratch", "model.dtype=float32"]])
def test_a_dry_run_accepts_a_model_folder_without_reading_its_weights(
    words: list[str], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from echo_cli.models.hf import weights

    read = weights.read_causal_lm

    def read_empty(*arguments: Any, empty: bool = False) -> Any:
        assert empty
        model = read(*arguments, empty=empty)
        assert all(tensor.is_meta for tensor in model.parameters())
        return model

    monkeypatch.setattr(weights, "read_causal_lm", read_empty)
    assert main(["train", "--config", "hf-smoke", "--dry-run", f"model.path={model_folder}", *words]) == 0


def _rollouts(config: Config, actions: int, observations: int, rewards: list[float]) -> list[Trajectory]:
    def rollout(reward: float | None) -> Trajectory:
        segments = (
            Segment(Role.CONTEXT, "", (1,)),
            Segment(Role.ACTION, "", (1,) * actions, (-1.0,) * actions),
            Segment(Role.ENV_OUTPUT, "", (1,) * observations),
        )
        return Trajectory("t", "g", segments, (), reward, "answered", "policy", world_model_only=reward is None)

    return [*map(rollout, rewards), *[rollout(None)] * config.rollout.explorers]


@pytest.mark.parametrize("rl", ["token_mean", "sequence_mean", "fixed_length"])
@pytest.mark.parametrize("env", ["token_mean", "observation_tokens", "selected_tokens", "fixed_length"])
def test_the_estimate_is_the_measured_unit_where_its_assumptions_hold(rl: str, env: str) -> None:
    rewards = [0.0, 0.0, 1.0, 1.0]
    config = _config(
        rollout={"tasks_per_step": 1, "group_size": 4, "explorers": 2, "max_action_tokens": 6, "max_output_tokens": 9},
        objective={
            **{"rl_normalization": rl, "env_normalization": env, "max_length": 50, "world_model_coeff": 0.3},
            "advantage": "group_mean",
        },
    )
    played = _rollouts(config, 6, 9, rewards)
    counts = count_rollouts(played, config.objective.selected_roles)
    weights = step_weights(counts, step_totals(counts), config.objective)
    measured = portable_lambda(0.3, counts, weights, step_advantages(played, "group_mean"))
    assert measured is not None
    text = portable_estimate(config)
    if rl == env == "fixed_length":
        assert text.startswith(f"{measured:.3g}, ")
    else:
        assert f"which is {measured:.2g} at their caps" in text


def test_the_expected_advantage_is_that_of_many_groups() -> None:
    torch.manual_seed(0)
    rewards = torch.randn(20_000, 16)
    normed = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)
    settings = _config().objective
    assert settings.advantage == "group_norm"
    assert math.isclose(expected_advantage(settings, 16), float(normed.abs().mean()), rel_tol=0.03)
    assert expected_advantage(settings, 1) == 0
    assert "no advantage" in portable_estimate(_config(rollout={"group_size": 1}))
    assert "no RL term" in portable_estimate(_config(objective={"use_rl": False}))


def test_the_first_lambda_of_a_schedule_is_planned() -> None:
    stepped = {"schedule": "step", "schedule_steps": [3], "schedule_values": [0.0, 0.2]}
    planned = _plan(_config(objective=stepped))
    assert (planned["λ"], planned["explorer rollouts per step"]) == (0.0, 0)


def test_explorers_are_planned_where_they_are_played() -> None:
    alone = {"rollout": {"tasks_per_step": 0, "explorers": 3}}
    later = {"use_rl": False, "schedule": "step", "schedule_steps": [5], "schedule_values": [0.0, 1.0]}
    at_zero = _config(**alone, objective=later)
    assert rollouts_of_step(at_zero) == (0, 3) and at_zero.explorers_at(0.0) == 3
    beside = _config(rollout={"explorers": 3}, objective={**later, "use_rl": True})
    assert rollouts_of_step(beside) == (64, 0) and beside.explorers_at(0.5) == 3
    constant = _config(rollout={"explorers": 3}, objective={"world_model_coeff": 1.0})
    assert _plan(beside)["tokens per step, at most"] == _plan(constant)["tokens per step, at most"]


def test_the_disk_for_kept_rollouts_is_planned_and_bounds_a_run(finished: Path) -> None:
    config = load_config(finished / "config.yaml")
    planned = _plan(config)
    assert planned["rollouts kept per step"] == config.rollout.keep == 3
    assert (finished / "rollouts.jsonl").stat().st_size < planned["disk for kept rollouts, MB, at most"] * 1e6
    everything = load_config(finished / "config.yaml", ["rollout.keep=1000"])
    assert _plan(everything)["rollouts kept per step"] == sum(rollouts_of_step(everything))
    assert "rollouts kept per step" not in _plan(load_config(finished / "config.yaml", ["rollout.keep=0"]))
