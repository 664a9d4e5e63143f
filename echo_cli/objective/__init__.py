"""The ECHO objective as pure functions on tensors. The names below are what a trainer of your own needs."""

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.objective.advantages import step_advantages
from echo_cli.objective.batch import bucket, collate, count_rollouts, targets
from echo_cli.objective.logprobs import target_logprobs
from echo_cli.objective.loss import echo_loss, step_totals, step_weights
from echo_cli.objective.step import WeighedStep, weigh_step

__all__ = [
    "ObjectiveSettings",
    "WeighedStep",
    "bucket",
    "collate",
    "count_rollouts",
    "echo_loss",
    "step_advantages",
    "step_totals",
    "step_weights",
    "target_logprobs",
    "targets",
    "weigh_step",
]
