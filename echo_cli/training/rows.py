"""The row of metrics of a step: the same keys on every step."""

from __future__ import annotations

from typing import Any

from echo_cli.config.schema import Config
from echo_cli.environments.faults import FAULT_KEYS
from echo_cli.files import Row
from echo_cli.objective.diagnostics import GradientComparison
from echo_cli.rollouts.behaviour import BEHAVIOUR_KEYS
from echo_cli.traces.training_data import POOL, RenderedTraces
from echo_cli.training.session import Session

TRAIN_KEYS = [
    *(
        "loss rl_loss env_loss env_ce policy_env_ce reward grad_norm action_tokens env_tokens zero_advantage_fraction "
        "clip_fraction ratio entropy lambda portable_lambda lr padding_fraction cut_pieces env_dropped_valid_action "
        "env_dropped_clean_parse env_dropped_correct probe_rl_grad_norm probe_env_grad_norm probe_ratio probe_cosine"
    ).split(),
    *BEHAVIOUR_KEYS,
]
TRACE_KEYS = "traces traces_cut imitation_loss imitation_tokens".split()
POOL_KEYS = "env_ce env_bits_per_byte token_accuracy novel_pairs env_ce_start env_ce_seen".split()
PASS_KEYS = ("validation/pass_at_1", "heldout/pass_at_1")
ENVIRONMENT_KEYS = [f"environment/{name}" for name in FAULT_KEYS]
TIME_KEYS = ("time/rollout_s", "time/probe_s", "time/update_s", "time/eval_s")


def _trace_row(config: Config, traces: RenderedTraces) -> Row:
    """The columns of a step's traces, in runs that have some."""
    if config.traces is None:
        return {}
    return {"train/traces": len(traces.trajectories), "train/traces_cut": traces.cut}


def _probe_row(compared: GradientComparison | None, seconds: float) -> Row:
    """The columns of a probe; None in all of them without one."""
    return {
        "train/probe_rl_grad_norm": compared and compared.rl_norm,
        "train/probe_env_grad_norm": compared and compared.env_norm,
        "train/probe_ratio": compared and compared.ratio,
        "train/probe_cosine": compared and compared.cosine,
        "time/probe_s": seconds if compared else None,
    }


def row_keys(config: Config) -> list[str]:
    """The keys of a row beside `step` and `warnings`; those of traces are in the rows of runs that have some."""
    pools, train = ["validation", "heldout", "ood"], TRAIN_KEYS
    if config.traces is not None:
        train = [*train, *TRACE_KEYS]
        pools += [] if config.environment.none else [POOL]
    return [
        *(f"train/{name}" for name in train),
        *(f"{pool}/{name}" for pool in pools for name in POOL_KEYS),
        *PASS_KEYS,
        *ENVIRONMENT_KEYS,
        *TIME_KEYS,
    ]


def _faults(session: Session) -> Row:
    """What is counted since the last time, by the names of `ENVIRONMENT_KEYS`."""
    return {f"environment/{name}": count for name, count in session.worlds.hosting.faults.take().items()}


def _mean(values: list[Any]) -> float | None:
    return sum(values) / len(values) if values else None
