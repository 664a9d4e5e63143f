"""Row of metrics per step, with the same keys at every step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from echo_cli.config.schema import Config
from echo_cli.environments.faults import FAULT_KEYS
from echo_cli.environments.several import SEVERAL_FAULT_KEYS, environment_of
from echo_cli.evaluation.evaluator import criteria_in
from echo_cli.evaluation.pass_at_k import criteria_of, group_shares, ks_up_to
from echo_cli.files import Row
from echo_cli.objective.diagnostics import GradientComparison, Interference, portable_lambda
from echo_cli.objective.step import WeighedStep
from echo_cli.rollouts.behaviour import BEHAVIOUR_KEYS, behaviour_metrics
from echo_cli.rollouts.episode import cut_pieces
from echo_cli.traces.training_data import POOL
from echo_cli.training.curriculum import CURRICULUM_KEYS
from echo_cli.training.step_data import StepData

TRAIN_KEYS = [
    *(
        "loss rl_loss env_loss env_ce policy_env_ce misplaced_fraction reward grad_norm action_tokens env_tokens "
        "zero_advantage_fraction groups_all_failed groups_all_solved clip_fraction ratio entropy lambda "
        "portable_lambda lr padding_fraction cut_pieces env_dropped_valid_action env_dropped_clean_parse "
        "env_dropped_correct env_dropped_max_correct env_unselected_fraction "
        "probe_rl_grad_norm probe_env_grad_norm probe_ratio probe_cosine"
    ).split(),
    *BEHAVIOUR_KEYS,
]
PART_KEYS = ("rollouts", "env_ce", "reward", "groups_all_failed", "groups_all_solved", *BEHAVIOUR_KEYS)
"""Metrics of the rollouts of each of several environments."""
TRACE_KEYS = "traces traces_cut imitation_loss imitation_tokens".split()
POOL_KEYS = (
    "env_ce env_bits_per_byte token_accuracy novel_pairs env_ce_start env_ce_seen "
    "env_ce_shown pairs_shown bytes_shown env_ce_unshown pairs_unshown bytes_unshown"
).split()
PASS_KEYS = [f"{split}/{name}" for split in ("validation", "heldout") for name in ("pass_at_1", "mean_reward")]
ENVIRONMENT_KEYS = [f"environment/{name}" for name in FAULT_KEYS]
_DROPPED_SHARE = 10
"""Number of groups per dropped group below which a run says that groups are dropped."""
_LOST_ROLLOUTS = ("lost a rollout with its session", "check the server's log")
INTERFERENCE_KEYS = ("probe/action_shift", "probe/action_distance", "probe/action_kl")
TIME_KEYS = ("time/rollout_s", "time/probe_s", "time/update_s", "time/eval_s")


@dataclass(frozen=True)
class Probe:
    """Gradients of the two terms at a step, what the env term alone does to its actions, and the time of both."""

    gradients: GradientComparison
    seconds: float
    """Wall-clock time of the probe, seconds."""
    interference: Interference | None = None


def row_keys(config: Config) -> list[str]:
    """Return the keys of a row other than `step` and `warnings`; keys of traces, ends and a curriculum are only in
    runs with them."""
    pools, train, pool_keys = ["validation", "heldout", "ood"], TRAIN_KEYS, POOL_KEYS
    if config.objective.end_of_output:
        train, pool_keys = [*train, "end_ce", "end_tokens"], [*pool_keys, "end_ce"]
    if config.rollout.curriculum == "learnable":
        train = [*train, *CURRICULUM_KEYS]
    measured = [
        *(f"{pool}/{name}" for pool in pools for name in pool_keys),
        *PASS_KEYS,
        *(f"{split}/{name}" for split in ("validation", "heldout") for name in criterion_keys(config)),
        *(f"heldout/pass_at_{k}" for k in ks_up_to(config.evaluation.heldout_rollouts)[1:]),
        "heldout/refused_fraction",
    ]
    if config.traces is not None:
        train = [*train, *TRACE_KEYS]
        measured += [] if config.environment.none else [f"{POOL}/{name}" for name in pool_keys]
    return [
        *(f"train/{name}" for name in (*train, *criterion_keys(config))),
        *measured,
        *_keys_of_each(config, measured),
        *([f"environment/{name}" for name in SEVERAL_FAULT_KEYS] if config.names else ENVIRONMENT_KEYS),
        *INTERFERENCE_KEYS,
        *TIME_KEYS,
    ]


def criterion_keys(config: Config) -> list[str]:
    """Return the names of the metrics of a grader's criteria, without `train/` and the like."""
    return [f"criterion_{name}" for name in criteria_in(config)]


def _keys_of_each(config: Config, measured: Sequence[str]) -> Iterator[str]:
    """Yield the keys of each of several environments: its part of the rollouts, of the pools, and of the faults."""
    train = [*PART_KEYS, *criterion_keys(config), *(CURRICULUM_KEYS if config.rollout.curriculum else ())]
    keys = [*(f"train/{name}" for name in train), *(f"environment/{name}" for name in SEVERAL_FAULT_KEYS)]
    keys += [key for key in measured if not key.startswith(f"{POOL}/")]
    for name in config.names:
        yield from (key.replace("/", f"/{name}/", 1) for key in keys)


def step_row(
    step: int,
    config: Config,
    data: StepData,
    weighed: WeighedStep,
    probe: Probe | None,
    values: Mapping[str, float | None],
    faults: Mapping[str, int],
    started: float,
) -> Row:
    """Return the row of a step before its evaluation.

    Args:
        step: number of optimizer steps, including this step.
        values: metrics of the update, by name without `train/`.
        faults: fault counts of the step.
        started: `time.perf_counter()` at the start of the step.
    """
    train: Row = {
        **values,
        **behaviour_metrics(data.rollouts),
        **group_shares(data.rollouts, config.evaluation.solved_at),
        **_probe_columns(probe),
        "reward": _mean([rollout.reward for rollout in data.rollouts if rollout.reward is not None]),
        **{f"criterion_{name}": _mean(values) for name, values in criteria_of(data.rollouts).items()},
        "cut_pieces": cut_pieces(data.rollouts),
        "misplaced_fraction": weighed.misplaced_fraction,
        "env_unselected_fraction": weighed.unselected_fraction,
        "lambda": weighed.coeff,
        "portable_lambda": portable_lambda(weighed.coeff, weighed.counts, weighed.weights, weighed.advantages_B),
        **{f"env_dropped_{name}": count for name, count in weighed.dropped.items()},
    }
    if weighed.imitation_coeff is not None:
        train |= {"traces": len(data.traces.trajectories), "traces_cut": data.traces.cut}
    probe_s = None if probe is None else probe.seconds
    return {
        "step": step,
        **{f"train/{name}": value for name, value in train.items()},
        **_parts(config, data),
        **_fault_columns(faults),
        **_interference_columns(probe),
        "time/rollout_s": data.seconds,
        "time/probe_s": probe_s,
        "time/update_s": time.perf_counter() - started - data.seconds - (probe_s or 0.0),
    }


def _parts(config: Config, data: StepData) -> Row:
    """Return the metrics of the rollouts of each of several environments."""
    found: Row = {}
    for name in config.names:
        rollouts = [rollout for rollout in data.rollouts if environment_of(rollout) == name]
        of: Row = {
            "rollouts": len(rollouts),
            **behaviour_metrics(rollouts),
            **group_shares(rollouts, config.evaluation.solved_at),
            "reward": _mean([rollout.reward for rollout in rollouts if rollout.reward is not None]),
            **{f"criterion_{key}": _mean(values) for key, values in criteria_of(rollouts).items()},
        }
        found |= {f"train/{name}/{key}": value for key, value in of.items()}
    return found


def full_row(config: Config, row: Row, measured: Mapping[str, Any], faults: Mapping[str, int], eval_s: float) -> Row:
    """Return the `row` of a step completed with the `measured` values of its evaluation; missing values are None.

    Args:
        faults: fault counts of the evaluation, added to the row's counts.
        eval_s: wall-clock time of the evaluation, seconds.
    """
    return {
        "step": row["step"],
        **dict.fromkeys(row_keys(config)),
        **row,
        **measured,
        **{key: row.get(key, 0) + count for key, count in _fault_columns(faults).items()},
        "time/eval_s": eval_s,
    }


def dropped_groups_line(rows: Sequence[Row], tasks_per_step: int, none: str) -> str | None:
    """Return a line if the last of `rows` is the first after which more than a tenth of the run's groups are dropped.

    Args:
        tasks_per_step: number of groups per step.
        none: `environment.reward.none` of the config.
    """
    dropped, crossed = 0, None
    for row in rows:
        dropped += row["environment/groups_dropped"]
        groups = row["step"] * tasks_per_step
        if dropped * _DROPPED_SHARE > groups:
            crossed = row
            break
    if crossed is None or crossed is not rows[-1]:
        return None
    unrewarded = any(row["environment/unrewarded"] for row in rows)
    tip = "environment.reward.none=zero counts a missing reward as 0" if none == "skip" else "check the server's log"
    if any(row.get("environment/ungraded") for row in rows):
        tip = "fix the grader; environment.reward.on_error has the rule for its failures"
    cause, tip = ("have a rollout without a reward", tip) if unrewarded else _LOST_ROLLOUTS
    return f"warning: {dropped} of {groups} groups are excluded from the RL term, because they {cause}; {tip}"


def _probe_columns(probe: Probe | None) -> Row:
    found = None if probe is None else probe.gradients
    return {
        "probe_rl_grad_norm": found and found.rl_norm,
        "probe_env_grad_norm": found and found.env_norm,
        "probe_ratio": found and found.ratio,
        "probe_cosine": found and found.cosine,
    }


def _interference_columns(probe: Probe | None) -> Row:
    found = None if probe is None else probe.interference
    values = (None, None, None) if found is None else (found.shift, found.distance, found.kl)
    return dict(zip(INTERFERENCE_KEYS, values, strict=True))


def _fault_columns(faults: Mapping[str, int]) -> Row:
    """Return the counts of faults by the names in `ENVIRONMENT_KEYS`."""
    return {f"environment/{name}": count for name, count in faults.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
