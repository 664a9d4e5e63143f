"""`scripts/benchmark-hf` and `scripts/benchmark_gpu`: what they compare is the same work, and they run. No figure is
asserted but those that are counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from echo_cli.models.sampler import Sample
from echo_cli.trajectory import Role, Trajectory
from lm_benchmark import ours, reference, resident, workload
from lm_benchmark.architecture import QWEN3_4B, QWEN3_600M, TINY, Architecture, random_model
from lm_benchmark.contender import trl_tensors
from lm_benchmark.flops import peak_tflops, update_flops
from lm_benchmark.workload import SMOKE, Script, Workload

torch.set_num_threads(1)

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(name.replace("-", "_"), str(SCRIPTS / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = sys.modules[loader.name] = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def causal_lm() -> Any:
    return random_model(TINY, seed=0)


PLAYED = workload.scripts(SMOKE, TINY.vocab, seed=0)


def rollouts(causal_lm: Any) -> list[Trajectory]:
    samples = ours.play(ours.language_model(causal_lm), PLAYED, SMOKE, seed=0)
    return workload.trajectories(PLAYED, samples, seed=0)


# --- The work --------------------------------------------------------------------------------------------------------


def test_the_reference_step_has_our_loss_and_our_gradient(causal_lm: Any) -> None:
    played = rollouts(causal_lm)
    device = torch.device("cpu")
    mine = ours.Ours(ours.language_model(causal_lm), PLAYED, played, SMOKE, 40, device)
    own_loss = mine.forward_backward()
    own = {name: part.grad.clone() for name, part in causal_lm.named_parameters()}
    causal_lm.zero_grad(set_to_none=True)
    theirs = reference.Reference(causal_lm, PLAYED, played, SMOKE, 2, device)
    assert theirs.forward_backward() == pytest.approx(own_loss, rel=1e-6)
    for name, part in causal_lm.named_parameters():
        torch.testing.assert_close(part.grad, own[name], rtol=1e-4, atol=1e-7)
    assert mine.optim_step() > 0
    causal_lm.zero_grad(set_to_none=True)


def replay(causal_lm: Any, one: Script, actions: Sequence[Sample]) -> list[list[float]]:
    """Teacher-forced logprobs of an episode's actions, from one forward pass."""
    ids, spans = [*one.opening], []
    for (token_ids, _), reply in zip(actions, one.replies, strict=True):
        spans.append(range(len(ids), len(ids) + len(token_ids)))
        ids += [*token_ids, *reply.token_ids]
    with torch.no_grad():
        logprobs_TV = causal_lm(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    return [[float(logprobs_TV[place - 1, ids[place]]) for place in span] for span in spans]


def own_play(causal_lm: Any, work: Workload, seed: int) -> list[list[Sample]]:
    return ours.play(ours.language_model(causal_lm), PLAYED, work, seed)


def reference_play(causal_lm: Any, work: Workload, seed: int) -> list[list[Sample]]:
    return reference.play(causal_lm, PLAYED, work, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("play", [own_play, reference_play])
def test_who_plays_reads_every_observation_and_writes_the_same_number_of_tokens(
    play: Callable[[Any, Workload, int], list[list[Sample]]], causal_lm: Any
) -> None:
    samples = play(causal_lm, SMOKE, 1)
    assert sum(len(ids) for actions in samples for ids, _ in actions) == workload.sampled_tokens(PLAYED, SMOKE)
    for one, actions in zip(PLAYED, samples, strict=True):
        assert [len(ids) for ids, _ in actions] == [SMOKE.action] * len(one.replies)
        for (_, logprobs), expected in zip(actions, replay(causal_lm, one, actions), strict=True):
            assert logprobs == pytest.approx(expected, abs=1e-5)


def test_trls_tensors_hold_the_rollouts_and_the_weights_of_the_env_term(causal_lm: Any) -> None:
    played = rollouts(causal_lm)
    tensors = trl_tensors(played)
    for row, rollout in enumerate(played):
        ids = [
            token
            for name in ("prompt", "completion")
            for token in tensors[f"{name}_ids"][row][tensors[f"{name}_mask"][row] > 0].tolist()
        ]
        assert ids == rollout.token_ids
        assert int(tensors["tool_mask"][row].sum()) == rollout.count(Role.ACTION)
        assert float(tensors["env_weight_BT"][row].sum()) == pytest.approx(1 / len(played))
    assert set(tensors["advantages"].sign().tolist()) == {-1.0, 1.0}  # no group is without variance


# --- The figures -----------------------------------------------------------------------------------------------------


def test_flops_of_an_update_by_hand() -> None:
    # Layers: 2 · (hidden 3 · (2 · 2 heads + 2 · 1 kv heads) · width 4 + 3 · 3 · 5) = 2 · (72 + 45) = 234; head: 3 · 7.
    small = Architecture("hand", hidden=3, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate=5, vocab=7)
    assert (small.layer_parameters, small.head_parameters) == (234, 21)
    attention = 6 * (2 * 2 * 4) * (10**2 + 4**2)
    assert update_flops(small, [10, 4], targets=9) == 6 * (234 * 14 + 21 * 9) + attention
    assert update_flops(small, [10, 4], targets=9, trains_all=False) == 4 * (234 * 14 + 21 * 9) + attention


def test_parameters_are_those_of_the_models_that_they_are_named_after() -> None:
    # The model cards' non-embedding and total parameters: 0.44 B and 0.6 B, 3.6 B and 4.0 B.
    for one, layers, total in ((QWEN3_600M, 0.44e9, 0.6e9), (QWEN3_4B, 3.6e9, 4.0e9)):
        assert one.layer_parameters == pytest.approx(layers, rel=0.02)
        assert one.layer_parameters + one.head_parameters == pytest.approx(total, rel=0.02)


def test_the_peak_of_a_device_is_looked_up_by_name() -> None:
    assert peak_tflops("NVIDIA H200") == 989
    assert peak_tflops("NVIDIA H100 PCIe") == 756
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    assert peak_tflops("NVIDIA A10G") == 70
    assert peak_tflops("Quadro") is None


@pytest.mark.skipif(not resident.can_measure(), reason="takes Linux's /proc")
def test_the_peak_of_memory_is_what_work_takes_at_most_and_not_what_it_leaves() -> None:
    # In a process of its own: what other threads of this one free would count against the peak.
    code = "from lm_benchmark import resident; print(resident.peak_over_now(lambda: len(b'x' * 2**26)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(resident.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert 60 < int(found.stdout) / 2**20 < 80


# --- The scripts -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_benchmark_hf_runs_end_to_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark-hf", "--smoke", "--repeats", "1", "--json"])
    script("benchmark-hf").main()
    result = json.loads(capsys.readouterr().out)
    assert result["differences"]["loss"] < 1e-5 and result["differences"]["gradient_norm"] < 1e-5
    assert set(result["contenders"]) == {"ours", "reference"}
    for row in result["contenders"].values():
        assert row["step"]["seconds"] == pytest.approx(row["rollout"]["seconds"] + row["update"]["seconds"])
    assert result["contenders"]["ours"]["step"]["over_ours"] == 1


@pytest.mark.slow
def test_benchmark_gpu_runs_end_to_end_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "cpu", "--shape", "tiny", "--repeats", "1", "--peak-tflops", "0.1", "--json"]
    monkeypatch.setattr("sys.argv", ["benchmark_gpu", *words])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    script("benchmark_gpu").main()
    result = json.loads(capsys.readouterr().out)
    assert [row["work"] for row in result["rows"]] == ["rollout", "update, λ = 0.05", "update, λ = 0"]
    assert result["rows"][1]["mfu"] > 0
    assert len(result["left_out"]) == 1 and "TRL" in result["left_out"][0]


def test_benchmark_gpu_without_time_says_what_it_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "cpu", "--shape", "tiny", "--minutes", "0"]
    monkeypatch.setattr("sys.argv", ["benchmark_gpu", *words])
    script("benchmark_gpu").main()
    assert "skipped: tiny: no time left" in capsys.readouterr().out


def test_benchmark_gpu_without_a_gpu_is_one_line_with_a_tip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark_gpu"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        script("benchmark_gpu").main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: device 'cuda' is not available") and "--device cpu" in line
