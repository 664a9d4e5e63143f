"""Check of `objective.env_targets`: the rollouts that a placebo of the env term needs."""

from __future__ import annotations

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.config.episodes.rollout import RolloutConfig
from echo_cli.config.episodes.traces import TracesConfig
from echo_cli.config.objective import EnvTargets
from echo_cli.errors import EchoError


def check_placebo(
    targets: EnvTargets, rollout: RolloutConfig, environment: EnvironmentConfig, traces: TracesConfig | None
) -> None:
    """Check that the targets have the rollouts that they need, and the keys of a placebo an effect."""
    toy = environment.toy_worlds
    if toy is not None and toy.other_world_seeds and targets != "other_world":
        raise EchoError(
            f"toy_terminal.other_world_seeds has no effect with objective.env_targets: {str(targets).lower()}",
            "set objective.env_targets=other_world, or omit the seeds",
        )
    if targets == "other_world":
        if environment.none:
            raise EchoError(
                "objective.env_targets is other_world and environment.none is true: there is no other world",
                "set env_targets to shuffled or random",
            )
        if traces is not None:
            raise EchoError(
                "objective.env_targets is other_world and traces are of the run's own world", "set traces=null"
            )
        if rollout.explorers == 0:
            raise EchoError(
                "objective.env_targets is other_world and rollout.explorers is 0: nothing plays the other world",
                "set rollout.explorers above 0, or env_targets to shuffled or random",
            )
        if toy is not None and len(toy.placebo_seeds) < len(toy.world_seeds):
            raise EchoError(
                "no machine is left for objective.env_targets: other_world",
                "list fewer world_seeds, or name one in toy_terminal.other_world_seeds",
            )
    rollouts = rollout.tasks_per_step * rollout.group_size + rollout.explorers
    rollouts += 0 if traces is None else traces.per_step
    if targets == "shuffled" and rollouts == 1:
        raise EchoError(
            "objective.env_targets is shuffled and a step has one rollout: there is none to exchange targets with",
            "set rollout.group_size above 1, or env_targets: random",
        )
