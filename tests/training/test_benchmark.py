"""`echo-cli bench`: variants compute the stated objectives, and measuring changes no result. No figure is asserted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import TINY, error_of
from torch import Tensor
from torch.nn.functional import linear
from trace_files import ALONE

from echo_cli.cli.main import main
from echo_cli.config.loader import find_config, load_config
from echo_cli.config.schema import Config
from echo_cli.config.section import Grants
from echo_cli.environments.toy import ToyWorlds
from echo_cli.errors import EchoError
from echo_cli.evaluation.loaded_run import build_policy
from echo_cli.models.device import DeviceChoice
from echo_cli.models.policy import TorchPolicy
from echo_cli.objective.advantages import step_advantages
from echo_cli.objective.batch import bucket, collate, targets
from echo_cli.training import benchmark as bench
from echo_cli.training.benchmark import Timing, Variant
from echo_cli.training.step_data import play_explorers, play_tasks
from echo_cli.trajectory import Role, Trajectory


def _config(*words: str) -> Config:
    return load_config(find_config("toy"), [*TINY, *words])


def _start(config: Config, explorers: int = 0) -> tuple[TorchPolicy, list[Trajectory]]:
    """A policy and the rollouts of one step, with rewards 0, 1, 0, 1, ... for a non-zero RL gradient."""
    policy, _ = build_policy(config)
    worlds = ToyWorlds((0,), (), 5)
    on_policy = play_tasks(config, policy, worlds, 0)
    rewarded = [replace(trajectory, reward=float(index % 2)) for index, trajectory in enumerate(on_policy)]
    return policy, rewarded + play_explorers(config, policy, worlds, 0, explorers)


def _gradient(policy: TorchPolicy) -> Tensor:
    """Return the accumulated gradient as one vector, and clear it."""
    gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
    policy.model.zero_grad(set_to_none=True)
    return gradient


def _gradients(config: Config, policy: TorchPolicy, trajectories: Sequence[Trajectory]) -> dict[str, Tensor]:
    found = {}
    for variant in bench.variants(config):
        bench.accumulate(policy, trajectories, config.objective, variant, config.rollout.temperature)
        found[variant.name] = _gradient(policy)
    return found


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("objective.env_normalization=observation_tokens", "objective.world_loss_target=all"),
        ("objective.min_valid_action_fraction=0.9", "objective.rl_normalization=sequence_mean"),
        ("objective.schedule=gradient_ratio", "objective.gradient_ratio_target=0.3"),
    ],
    ids=["toy", "paper", "filtered", "gradient_ratio"],
)
def test_the_second_pass_adds_up_to_the_gradient_of_the_one_pass(words: tuple[str, ...]) -> None:
    config = _config("rollout.group_size=4", "optim.token_budget=256", *words)
    gradients = _gradients(config, *_start(config, explorers=2))
    torch.testing.assert_close(gradients["second_pass"], gradients["one_pass"], rtol=0, atol=1e-6)
    assert not torch.allclose(gradients["one_pass"], gradients["lambda_zero"], rtol=0, atol=1e-4)


def test_lambda_zero_is_bitwise_plain_grpo_whether_observations_are_scored_or_not() -> None:
    config = _config("rollout.group_size=4", "objective.kl_coeff=0.0")
    policy, trajectories = _start(config)
    gradients = _gradients(config, policy, trajectories)

    # Plain GRPO, written out, on batches with action targets only.
    advantages_B = step_advantages(trajectories, config.objective.advantage)
    weight = 1 / sum(trajectory.count(Role.ACTION) for trajectory in trajectories)
    for indices in bucket(trajectories, config.optim.token_budget):
        micro = collate(trajectories, indices, policy.tokenizer.pad_id)
        wanted = targets(micro, {Role.ACTION})
        hidden_NH = wanted.gather(policy.model(micro.token_ids_RT))
        logits_NV = linear(hidden_NH, policy.model.lm_head_VH) / config.rollout.temperature
        logprobs_N = logits_NV.log_softmax(-1).gather(-1, wanted.token_ids_N[:, None]).squeeze(-1)
        ratio_N = (logprobs_N - wanted.behaviour_logprobs_N).exp()
        advantages_N = advantages_B.float()[wanted.rollout_N]
        clipped_N = ratio_N.clamp(1 - config.objective.clip_low, 1 + config.objective.clip_high)
        (weight * -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)).sum().backward()  # type: ignore[no-untyped-call]
    expected = _gradient(policy)

    assert expected.any()
    assert torch.equal(gradients["lambda_zero"], expected)
    assert torch.equal(gradients["actions_only"], expected)


def test_figures_are_medians_and_ratios_are_paired_within_a_repeat() -> None:
    compared = [Variant("lambda_zero", "zero", 0.0), Variant("one_pass", "one", 0.5)]
    repeats = [
        {"lambda_zero": Timing(1.0, zero, 4, 100), "one_pass": Timing(1.0, one, 4, 100)}
        for zero, one in ((1.0, 1.5), (2.0, 2.0), (4.0, 8.0))
    ]
    zero, one = bench.summarize(compared, repeats)
    assert one["update_seconds"] == {"median": 2.0, "min": 1.5, "max": 8.0}
    assert one["step_seconds"] == {"median": 3.0, "min": 2.5, "max": 9.0}
    assert (one["update_tokens_per_second"], one["step_tokens_per_second"]) == (50.0, 100 / 3)
    assert [one["update_ratio"][name] for name in ("median", "min", "max")] == [1.5, 1.0, 2.0]
    assert 1.0 <= one["update_ratio"]["low"] <= 1.5 <= one["update_ratio"]["high"] <= 2.0
    assert one["step_ratio"]["median"] == 2.5 / 2
    assert {*zero["update_ratio"].values()} == {1.0}
    assert (one["rollouts"], one["tokens"], one["lambda"], one["peak_memory_bytes"]) == (4, 100, 0.5, None)


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure variants without a process each, which would take seconds; a separate test starts one."""
    monkeypatch.setattr(bench, "_peak_of_own_process", lambda config, variant: 123_000_000)


@pytest.mark.usefixtures("no_processes")
def test_measuring_leaves_the_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[TorchPolicy] = []

    def build(config: Config) -> tuple[TorchPolicy, DeviceChoice]:
        policy, choice = build_policy(config)
        built.append(policy)
        return policy, choice

    monkeypatch.setattr(bench, "build_policy", build)
    config = _config("optim.weight_decay=0.1")
    bench.bench(config, repeats=1)
    before = build_policy(config)[0].model.state_dict()
    after = built[0].model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in built[0].model.parameters())


@pytest.mark.usefixtures("no_processes")
def test_json_holds_every_variant_and_how_it_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY, "--repeats", "2", "--device", "cpu", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert set(result) == {
        *("device", "threads", "repeats", "lambda", "lambda_from_config", "traces_left_out", "variants", "memory"),
        "sentence",
    }
    assert result["traces_left_out"] is False
    assert (result["threads"], result["repeats"], result["lambda"], result["lambda_from_config"]) == (1, 2, 3.0, True)
    rows = {row["name"]: row for row in result["variants"]}
    assert list(rows) == ["actions_only", "lambda_zero", "one_pass", "second_pass", "explorers"]
    assert [row["lambda"] for row in rows.values()] == [0.0, 0.0, 3.0, 3.0, 3.0]
    assert [row["rollouts"] for row in rows.values()] == [2, 2, 2, 2, 4]
    assert rows["explorers"]["tokens"] > rows["one_pass"]["tokens"] == rows["lambda_zero"]["tokens"] > 0
    for row in rows.values():
        assert set(row["update_seconds"]) == {"median", "min", "max"}
        assert set(row["update_ratio"]) == {"median", "low", "high", "min", "max"}
        assert row["step_seconds"]["median"] > row["update_seconds"]["min"] > 0
        assert row["peak_memory_bytes"] == 123_000_000
    assert result["sentence"].startswith("λ = 3 costs ")
    assert "bench: repeat 2/2" in captured.err


@pytest.mark.usefixtures("no_processes")
def test_a_config_without_explorers_or_lambda_is_compared_at_some_lambda_and_told_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["rollout.explorers=0", "objective.world_model_coeff=0"]
    assert main(["bench", *TINY, *words, "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert "λ is 0 at the first step of this config; 0.05 is used for λ > 0" in printed
    assert "explorers" not in printed
    table = [line for line in printed.splitlines() if line.startswith(" λ = ")]
    labels = [v.label for v in bench.variants(_config(*words))]
    assert [line.split("  ")[0].strip() for line in table] == [*labels, *labels]
    assert not any("[" in line for line in table), "one repeat has no interval"
    assert all(len(line) <= 80 for line in printed.split("cpu float32")[0].splitlines())
    assert printed.splitlines()[-1].startswith("λ = 0.05 costs ")


def test_without_an_rl_term_there_is_nothing_to_compare_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--config", "toy-world-model"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    message, tip = error_of(captured.err)
    assert "objective.use_rl is false" in message and "plain GRPO" in message
    assert "objective.use_rl=true" in tip


@pytest.mark.usefixtures("no_processes")
def test_traces_are_not_timed_and_said_to_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY, "traces.path=none.jsonl", "--repeats", "1"]) == 0
    assert "the config's traces are omitted" in capsys.readouterr().out
    assert main(["bench", *ALONE, "traces.path=none.jsonl"]) == 2
    assert error_of(capsys.readouterr().err)[1] == "choose a --config with an environment"


@pytest.mark.slow
def test_the_peak_memory_is_that_of_a_process_of_its_own_not_of_this_one() -> None:
    config = _config()
    ballast = b"1" * 700_000_000
    peak = bench._peak_of_own_process(config, bench.variants(config)[0])
    assert 50_000_000 < peak < len(ballast)


@pytest.mark.slow
def test_a_process_that_fails_is_an_error_with_its_reason(tmp_path: Path) -> None:
    config = _config()
    broken = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path / "none")})})
    with pytest.raises(EchoError, match=r"memory of 'λ = 0.*no model folder"):
        bench._peak_of_own_process(broken, bench.variants(broken)[0])


@pytest.mark.slow
def test_that_process_has_the_permissions_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    def start(self, **_):\n        raise OSError('mine')\n")
    config = load_config("toy", ["threads=1", "environment.provider.kind=mine:Mine"])
    granted = config.granted(Grants(import_from=str(tmp_path)))
    with pytest.raises(EchoError, match="the provider failed: OSError: mine"):
        bench._peak_of_own_process(granted, bench.variants(granted)[0])
