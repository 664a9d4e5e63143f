"""Collapse alarms: each kind of collapse raises its own alarm with figures; noise and healthy runs raise none."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from healthy_runs import FILE, healthy_runs
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from played_policy import GROUP, LIMITS, play
from tiny_run import error_of, rows, train, weights

from echo_cli.config.episodes.rollout import RolloutConfig
from echo_cli.config.loader import find_config, load_config
from echo_cli.config.schema import CollapseConfig
from echo_cli.rollouts.behaviour import behaviour_metrics
from echo_cli.runs.directory import open_run
from echo_cli.runs.summary import warnings_of
from echo_cli.training.collapse import (
    CollapseError,
    NoGradientError,
    alarms,
    lambda_factor,
    new_alarms,
    no_gradient_line,
    stop_if_collapsed,
)

SETTINGS = CollapseConfig()
ROLLOUT = RolloutConfig(group_size=GROUP, max_action_tokens=LIMITS.action_tokens)

HEALTHY: dict[str, float] = {
    "train/entropy": 0.4,
    "train/action_length": 9.0,
    "train/valid_action_fraction": 0.95,
    "train/capped_fraction": 0.3,
    "train/commands_per_task": 7.0,
    "train/command_compression": 5.0,
    "train/observations_per_task": 4.0,
    "train/observation_compression": 6.0,
    "train/role_confusion": 0.01,
    "train/reward": 0.4,
    "train/policy_env_ce": 1.2,
    "heldout/env_ce": 1.5,
    "heldout/env_ce_start": 1.5,
    "ood/env_ce": 1.5,
    "ood/env_ce_start": 1.5,
}


def _rows(*stretches: tuple[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the row before training and stretches of equal steps, each with its deviations from `HEALTHY`."""
    values = [HEALTHY | changed for count, changed in stretches for _ in range(count)]
    before = {key: value if key.startswith(("heldout", "ood")) else None for key, value in HEALTHY.items()}
    return [{"step": step, **row} for step, row in enumerate([before, *values])]


def _found(metrics: list[dict[str, Any]], settings: CollapseConfig = SETTINGS) -> list[tuple[str, int, str]]:
    return [(alarm.signal, alarm.step, alarm.reason) for alarm in alarms(metrics, settings, ROLLOUT)]


@pytest.mark.parametrize(
    ("changed", "signal", "step", "reason"),
    [
        # The mean of five steps falls below 0.02 only when all five are collapsed: (0.4 + 4 · 0.01) / 5 = 0.088.
        ({"train/entropy": 0.01}, "entropy", 15, "action entropy 0.01 nats over steps 11-15, 0.4 nats over steps 1-5"),
        ({"train/action_length": 1}, "short_actions", 14, "mean action 2.6 tokens over steps 10-14, 9 tokens over"),
        ({"train/action_length": 16}, "long_actions", 15, "mean action 16 tokens over steps 11-15, 9 tokens over"),
        ({"train/valid_action_fraction": 0.1}, "valid_actions", 13, "valid actions 44% over steps 9-13, 95% over"),
        ({"train/capped_fraction": 1.0}, "capped", 15, "rollouts that end at a cap 100% over steps 11-15, 30% over"),
        (
            {"train/commands_per_task": 0.125},
            "commands",
            15,
            "distinct commands 0.125 per task over steps 11-15, 7 per",
        ),
        (
            {"train/observations_per_task": 0},
            "observations",
            15,
            "distinct observations 0 per task over steps 11-15, 4",
        ),
        ({"train/command_compression": 40}, "command_compression", 13, "compression ratio of commands 26 over steps"),
        (
            {"train/observation_compression": 60},
            "observation_compression",
            12,
            "compression ratio of observations 27.6",
        ),
        ({"train/role_confusion": 0.8}, "role_confusion", 11, "turns that imitate the environment 17% over steps 7-11"),
        (
            {"train/reward": 0.02, "train/policy_env_ce": 0.3},
            "easy_rollouts",
            14,
            "reward 0.096 and on-policy env-CE 0.48 over steps 10-14, 0.4 and 1.2 over steps 1-5",
        ),
        (
            {"ood/env_ce": 2.5, "heldout/env_ce": 1.51},
            "ood",
            11,
            "out-of-distribution env-CE 2.5 nats, 1.5 at the start, and held-out 1.51, 1.5 at the start",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_each_signal_fires_alone_once_and_says_why(
    changed: dict[str, float], signal: str, step: int, reason: str
) -> None:
    found = _found(_rows((10, {}), (20, changed), (10, {}), (20, changed)))
    assert [alarm[:2] for alarm in found] == [(signal, step)]
    assert found[0][2].startswith(reason)


def test_a_reward_or_an_env_ce_that_falls_alone_is_silent() -> None:
    assert _found(_rows((10, {}), (20, {"train/reward": 0.0}))) == []
    assert _found(_rows((10, {}), (20, {"train/policy_env_ce": 0.1}))) == []
    # A policy that has solved almost no task cannot lose that ability.
    assert _found(_rows((10, {"train/reward": 0.05}), (20, {"train/reward": 0.0, "train/policy_env_ce": 0.1}))) == []


def test_ood_may_rise_while_heldout_improves_and_heldout_while_ood_does_not() -> None:
    assert _found(_rows((20, {"ood/env_ce": 3.4, "heldout/env_ce": 0.15}))) == []
    assert _found(_rows((20, {"ood/env_ce": 1.62, "heldout/env_ce": 1.74}))) == []


def test_what_starts_collapsed_is_not_collapsing() -> None:
    assert _found(_rows((30, {"train/entropy": 0.001, "train/valid_action_fraction": 0.05}))) == []


def test_what_was_learned_first_is_missed_when_it_goes() -> None:
    metrics = _rows(
        (6, {"train/valid_action_fraction": 0.2}),
        (10, {"train/valid_action_fraction": 0.9}),
        (9, {"train/valid_action_fraction": 0.1}),
    )
    assert [alarm[0] for alarm in _found(metrics)] == ["valid_actions"]


def test_what_starts_near_its_ceiling_is_not_collapsing() -> None:
    assert _found(_rows((10, {"train/capped_fraction": 0.91}), (20, {"train/capped_fraction": 0.98}))) == []


@pytest.mark.parametrize("window", [1, 5])
def test_a_window_holds_so_many_tasks_whatever_its_steps(window: int) -> None:
    metrics = _rows((10, {}), (30, {"train/entropy": 0.001}))
    settings = SETTINGS.model_copy(update={"window": window, "min_tasks": 40})
    for tasks, step in ((2, 30), (4, 20), (40, 10 + window)):
        rollout = ROLLOUT.model_copy(update={"tasks_per_step": tasks})
        assert [alarm.step for alarm in alarms(metrics, settings, rollout)] == [step]


def test_the_luck_of_a_few_tasks_is_silent() -> None:
    # A policy that learns, one task and two rollouts per step: the task determines the outcomes and length caps.
    rollout = RolloutConfig(tasks_per_step=1, group_size=2)
    for seed in range(5):
        draw, metrics = random.Random(seed), []
        for step in range(1, 201):
            solves, capped = (draw.gauss(mean, 0.35) for mean in (0.15 + 0.0025 * step, 0.85 - 0.0025 * step))
            row = {
                "train/reward": sum(draw.random() < solves for _ in range(2)) / 2,
                "train/capped_fraction": sum(draw.random() < capped for _ in range(2)) / 2,
                "train/policy_env_ce": max(0.05, draw.gauss(1.5 - 0.006 * step, 0.5)),
            }
            metrics.append({"step": step, **row})
        assert alarms(metrics, SETTINGS, rollout) == []


def test_missing_values_and_rows_of_earlier_versions_are_silent() -> None:
    nothing = dict.fromkeys(HEALTHY)
    assert _found(_rows((30, nothing))) == []
    assert _found([{"step": step} for step in range(30)]) == []
    assert _found(_rows((10, {}), (10, {"train/entropy": math.nan}))) == []
    assert _found([]) == []


def test_off_is_silent_and_without_change_the_bound_alone_decides() -> None:
    metrics = _rows((20, {"train/entropy": 0.001}))
    assert _found(metrics, SETTINGS.model_copy(update={"change": 0.0}))[0][:2] == ("entropy", 6)
    assert _found(metrics, SETTINGS.model_copy(update={"change": 0.0, "action": "off"})) == []


def test_a_signal_that_was_raised_stays_silent() -> None:
    metrics = _rows((10, {}), (5, {"train/entropy": 0.001}))
    assert [alarm.signal for alarm in new_alarms(metrics, SETTINGS, ROLLOUT, ())] == ["entropy"]
    assert new_alarms(metrics, SETTINGS, ROLLOUT, {"entropy"}) == []


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["noise", "low then high", "high then low"]),
    st.integers(1, 29),
    st.sampled_from([1, 3, 5]),
)
def test_fluctuation_of_a_fifth_around_any_level_is_silent(seed: int, shape: str, turn: int, window: int) -> None:
    draw = random.Random(seed)
    ceilings = {"train/action_length": 16.0, "train/valid_action_fraction": 1.2, "train/capped_fraction": 1.0}
    levels = {key: draw.uniform(0, 0.79 * ceilings.get(key, 2 * value)) for key, value in HEALTHY.items()}
    levels |= {"heldout/env_ce": levels["heldout/env_ce_start"], "ood/env_ce": levels["ood/env_ce_start"]}

    def value(key: str, step: int) -> float:
        if key.endswith("_start"):  # frozen pool and frozen weights
            return levels[key]
        if shape == "noise":
            return levels[key] * draw.uniform(0.8, 1.2)
        return levels[key] * (1.2 if (step > turn) == (shape == "low then high") else 0.8)

    metrics = [{"step": step, **{key: value(key, step) for key in HEALTHY}} for step in range(1, 31)]
    assert _found(metrics, SETTINGS.model_copy(update={"window": window})) == []


CUT = {"action_length": 16.0, "malformed_fraction": 1.0, "valid_action_fraction": 0.0, "capped_fraction": 1.0}
NOTHING = {"grad_norm": 0.0, "env_tokens": 0.0, "reward": 0.0, "zero_advantage_fraction": 1.0}


def _idle(**changed: float) -> dict[str, Any]:
    return {f"train/{name}": value for name, value in {**NOTHING, **CUT, **changed}.items()}


def test_a_first_step_in_which_all_is_zero_is_an_alarm_with_its_cause_and_remedy() -> None:
    one_task = ROLLOUT.model_copy(update={"tasks_per_step": 1, "max_action_tokens": 16})
    ((signal, step, reason),) = [
        (found.signal, found.step, found.reason)
        for found in alarms(_rows((9, _idle())), SETTINGS.model_copy(update={"min_entropy": 0.0}), one_task)
    ]
    assert (signal, step) == ("no_gradient", 1)
    assert "100% of actions are malformed" in reason and "rollout.max_action_tokens (16)" in reason
    lowering = SETTINGS.model_copy(update={"action": "lower_lambda"})
    assert lambda_factor([{"step": 1, "warnings": [{"signal": signal, "reason": reason}]}], lowering) == 1


def test_steps_without_a_gradient_are_an_alarm_once_they_fill_a_window() -> None:
    learning = {"train/grad_norm": 1.0}
    for count, expected in ((SETTINGS.window - 1, []), (SETTINGS.window, [("no_gradient", 2 + SETTINGS.window)])):
        metrics = _rows((2, learning), (count, {"train/grad_norm": 0.0, "train/zero_advantage_fraction": 1.0}))
        assert [found[:2] for found in _found(metrics)] == expected
    # Rewards without contrast, or observations at λ = 0: an unlucky step, for which the line at the first one suffices.
    for seen in ({"train/reward": 0.5}, {"train/env_tokens": 9.0}):
        assert _found(_rows((1, _idle() | seen))) == []


def test_the_first_step_without_a_gradient_is_a_line_with_the_key_to_change() -> None:
    assert no_gradient_line(_rows((1, {"train/grad_norm": 0.1})), ROLLOUT) is None
    for changed, cause, key in (
        ({}, "cut at their cap", "rollout.max_action_tokens"),
        ({"action_length": 3.0}, "malformed", "environment.action.extract"),
        ({"malformed_fraction": 0.0, "no_action_fraction": 0.9}, "no action", "conversation.system"),
        ({"malformed_fraction": 0.1}, "cannot run 100%", "conversation.system"),
        ({"malformed_fraction": 0.1, "valid_action_fraction": 0.9}, "a cap of action, turns or length", "max_turns"),
        (
            {"malformed_fraction": 0.1, "valid_action_fraction": 0.9, "capped_fraction": 0.0},
            "rewards of a group are equal",
            "rollout.group_size",
        ),
        (
            {"lambda": 0.3, "env_unselected_fraction": 1.0},
            "no observation is selected",
            "objective.env_min_action_entropy",
        ),
        ({"traces_cut": 2}, "2 traces cut before the first observation", "traces.max_tokens"),
    ):
        metrics = _rows((2, {"train/grad_norm": 0.1}), (1, _idle(**changed)))
        line = no_gradient_line(metrics, ROLLOUT)
        assert line is not None and "step 3 has no gradient" in line
        assert cause in line and key in line.partition(cause)[2].partition(";")[2], line
    assert no_gradient_line([*metrics, metrics[-1]], ROLLOUT) is None


def test_a_run_that_learns_nothing_says_so_at_its_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--steps", "2", "--lambda", "0", "rollout.explorers=0", "rollout.max_action_tokens=1")
    assert train(tmp_path / "run", *words, "collapse.action=stop") == 3
    said = capsys.readouterr().err
    alarm = "no_gradient: no gradient: 100% of actions are malformed"
    assert said.count(f"train: warning at step 1: {alarm}") == 1 and "has no gradient" not in said
    assert error_of(said)[0].startswith(f"stopped at step 1: {alarm}")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "no_gradient"
    assert train(tmp_path / "run", *words, "collapse.action=warn", "--resume") == 0
    assert alarm not in capsys.readouterr().err  # it was raised at step 1
    assert [warning["step"] for warning in warnings_of(rows(tmp_path / "run"))] == [1]
    # With observations it is no alarm, but still one line.
    assert train(tmp_path / "flat", "--steps", "2", "--lambda", "0", "environment.toy_terminal.max_turns=1") == 0
    metrics = rows(tmp_path / "flat")
    assert [row["train/grad_norm"] for row in metrics[1:]] == [0, 0] and list(warnings_of(metrics)) == []
    assert capsys.readouterr().err.count("has no gradient") == 1


COLLAPSED = {
    "constant": {"capped", "commands", "observations", "command_compression", "observation_compression"},
    "empty": {"short_actions", "valid_actions", "capped", "commands", "observations"},
    "endless": {"long_actions", "valid_actions", "capped", "commands", "observations", "command_compression"},
    "parrot": {"valid_actions", "capped", "command_compression", "observation_compression", "role_confusion"},
}


@pytest.mark.parametrize("habit", COLLAPSED)
def test_a_policy_that_collapses_after_a_healthy_run(habit: str) -> None:
    run = healthy_runs()["toy-files-seed0"]
    played = {f"train/{name}": value for name, value in behaviour_metrics(play(habit)).items()}
    after = [{**run[-1], **played, "step": len(run) + number} for number in range(10)]
    found = alarms([*run, *after], SETTINGS, ROLLOUT)
    assert {alarm.signal for alarm in found} == COLLAPSED[habit]
    assert all(len(run) <= alarm.step < len(run) + 5 for alarm in found)


RUNS = healthy_runs()


def test_the_recorded_runs_are_combined_and_grpo_in_both_kinds_of_world() -> None:
    files = {f"{config}-seed{seed}" for config in ("toy-files", "toy-files-grpo") for seed in range(5)}
    machines = {f"toy{arm}-m{machine}" for arm, machines in MACHINES.items() for machine in machines}
    assert set(RUNS) == files | machines
    assert all([row["step"] for row in run] == list(range(61)) for run in RUNS.values())
    assert FILE.stat().st_size < 70_000


MACHINES = {"": (120, 121), "-own": (120, 121), "-grpo": (121, 122)}


@pytest.mark.parametrize("name", RUNS)
def test_a_healthy_run_is_silent_by_a_clear_margin(name: str) -> None:
    rollout, settings = RolloutConfig(group_size=8 if "grpo" in name else 4, max_action_tokens=16), SETTINGS
    if "-m" in name:
        config = load_config(find_config(name.rpartition("-")[0]))
        rollout, settings = config.rollout, config.collapse
    assert alarms(RUNS[name], settings, rollout) == []
    # Every bound is tightened by half, and so is the factor of change.
    tight = {
        key: value / 1.5 if key.startswith("max_") and key != "max_ood_rise" else value * 1.5
        for key, value in settings.model_dump().items()
        if key.startswith(("min_", "max_"))
    }
    tight |= {"min_peak_reward": 0.0, "max_ood_rise": 1 + (settings.max_ood_rise - 1) / 1.5, "change": 2 / 1.5}
    assert alarms(RUNS[name], settings.model_copy(update=tight), rollout) == []


def test_lambda_is_lowered_once_for_each_step_with_an_alarm() -> None:
    alarm = {"signal": "entropy", "reason": "low"}
    metrics = [{"step": 0}, {"step": 1, "warnings": []}, {"step": 2, "warnings": [alarm, alarm]}]
    lowering = SETTINGS.model_copy(update={"action": "lower_lambda"})
    assert [lambda_factor(metrics[:count], lowering) for count in range(4)] == [1, 1, 1, 0.5]
    assert lambda_factor([*metrics, *metrics], lowering) == 0.25
    assert lambda_factor(metrics, SETTINGS) == 1
    assert list(warnings_of(metrics)) == [{"step": 2, **alarm}] * 2


def test_only_stop_stops() -> None:
    metrics = [{"step": 3, "warnings": [{"signal": "entropy", "reason": "low"}]}]
    stop_if_collapsed(metrics, SETTINGS)
    with pytest.raises(CollapseError, match="collapsed at step 3: entropy: low") as caught:
        stop_if_collapsed(metrics, SETTINGS.model_copy(update={"action": "stop"}))
    assert caught.value.exit_code == 3
    assert "--resume and collapse.action=warn" in str(caught.value.tip)
    idle = [{"step": 1, "warnings": [{"signal": "no_gradient", "reason": "all is malformed; raise a cap"}]}]
    with pytest.raises(NoGradientError, match=r"^stopped at step 1: no_gradient: .*raise a cap") as caught:
        stop_if_collapsed(idle, SETTINGS.model_copy(update={"action": "stop"}))
    # Less learning does not help a policy that learns nothing.
    assert "--resume and collapse.action=warn" in str(caught.value.tip) and "lower" not in str(caught.value.tip)


# A bound that no entropy reaches, with a window of one step: the second step raises this alarm and no other.
CERTAIN = [
    f"collapse.{word}"
    for word in (
        "window=1 min_tasks=0 change=0 min_entropy=99 min_action_length=0 max_action_fill=1 "
        "min_valid_action_fraction=0 max_capped_fraction=1 min_commands_per_task=0 min_observations_per_task=0 "
        "max_compression=99 max_role_confusion=1 min_reward_kept=0"
    ).split()
]


@pytest.fixture(scope="module")
def warned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("outputs") / "run"
    assert train(run, "--steps", "4", *CERTAIN) == 0
    return run


def _signals(metrics: list[dict[str, Any]]) -> list[list[str]]:
    return [[warning["signal"] for warning in row["warnings"]] for row in metrics]


def test_warn_says_so_and_changes_nothing_else(
    warned: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _signals(rows(warned)) == [[], [], ["entropy"], [], []]
    assert weights(warned, 4) == weights(finished, 4)
    summary = json.loads((warned / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 4)
    assert [(warning["step"], warning["signal"]) for warning in summary["warnings"]] == [(2, "entropy")]
    assert train(tmp_path / "again", *CERTAIN, "evaluation.every=9") == 0
    captured = capsys.readouterr()
    shown = [line for line in captured.err.splitlines() if "warning" in line]
    assert len(shown) == 1
    assert shown[0].startswith("train: warning at step 2: entropy: action entropy ")
    assert "warning at step 2: entropy: action entropy" in captured.out


def test_stop_keeps_the_checkpoint_and_a_resume_goes_on_only_when_told(
    warned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, "--steps", "4", *CERTAIN, "collapse.action=stop", "checkpoint.every=9") == 3
    captured = capsys.readouterr()
    message, tip = error_of(captured.err)
    assert captured.out == ""
    assert message.startswith("collapsed at step 2: entropy: action entropy ")
    assert "collapse.action=warn" in tip
    assert open_run(run).checkpoints.steps()[-1] == 2
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("collapsed", 2)
    assert [warning["signal"] for warning in summary["warnings"]] == ["entropy"]

    before = rows(run)
    assert train(run, "--steps", "4", "--resume", *CERTAIN, "collapse.action=stop") == 3
    assert error_of(capsys.readouterr().err)[0] == message
    assert rows(run) == before
    assert json.loads((run / "summary.json").read_text())["status"] == "collapsed"

    assert train(run, "--steps", "4", "--resume", *CERTAIN, "collapse.action=warn") == 0
    assert rows(run) == rows(warned)
    assert weights(run, 4) == weights(warned, 4)


def test_lower_lambda_halves_it_from_the_next_step_and_resumes_bitwise(tmp_path: Path) -> None:
    words = ["--steps", "4", *CERTAIN, "collapse.action=lower_lambda"]
    run, cut = tmp_path / "run", tmp_path / "cut"
    assert train(run, *words) == 0
    metrics = rows(run)
    assert _signals(metrics) == [[], [], ["entropy"], [], []]
    assert [row["train/lambda"] for row in metrics] == [None, 1.0, 1.0, 0.5, 0.5]

    shutil.copytree(run, cut)
    (cut / "summary.json").unlink()
    for step in (3, 4):
        shutil.rmtree(cut / "checkpoints" / f"step_{step:06d}")
    assert train(cut, *words, "--resume") == 0
    assert rows(cut) == metrics
    assert weights(cut, 4) == weights(run, 4)
