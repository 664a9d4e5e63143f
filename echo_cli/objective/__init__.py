"""The ECHO objective as pure functions on tensors. A custom trainer needs only the names below.

Each name is imported on first access, so that importing a torch-free module of this package does not load torch.
"""

from typing import TYPE_CHECKING

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
    "target_factors",
    "target_logprobs",
    "targets",
    "weigh_step",
]

if TYPE_CHECKING:
    from echo_cli.config.objective import ObjectiveSettings
    from echo_cli.objective.advantages import step_advantages
    from echo_cli.objective.batch import bucket, collate, count_rollouts, targets
    from echo_cli.objective.logprobs import target_logprobs
    from echo_cli.objective.loss import echo_loss, step_totals, step_weights
    from echo_cli.objective.selection import target_factors
    from echo_cli.objective.step import WeighedStep, weigh_step
else:
    # The same imports as a table. Hidden from type checkers: with __getattr__, they would accept every name.
    _MODULES = {
        "ObjectiveSettings": "config.objective",
        "WeighedStep": "objective.step",
        "bucket": "objective.batch",
        "collate": "objective.batch",
        "count_rollouts": "objective.batch",
        "echo_loss": "objective.loss",
        "step_advantages": "objective.advantages",
        "step_totals": "objective.loss",
        "step_weights": "objective.loss",
        "target_factors": "objective.selection",
        "target_logprobs": "objective.logprobs",
        "targets": "objective.batch",
        "weigh_step": "objective.step",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"echo_cli.{_MODULES[name]}"), name)

    def __dir__():
        return __all__
