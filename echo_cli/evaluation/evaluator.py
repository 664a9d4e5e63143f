"""Held-out measures: env-CE and token accuracy on frozen pools of expert trajectories, and pass@1 of the policy.

A pool holds expert trajectories on tasks that training never sees. Its headline is over *novel* pairs: those of
(command, output) that no training rollout has executed so far. Pairs that training did execute are measured apart.
The validation pool, on which the best step is chosen, is scored over all its pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.tasks import Task
from echo_cli.evaluation.measures import Predictions, Tokens, predict, tokens_of, values_of
from echo_cli.evaluation.pass_at_k import solved_share
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.limits import EpisodeLimits, limits_for
from echo_cli.rollouts.rollout import play_policy, play_scripts, without_fragments
from echo_cli.runs.pools import Pair, Pool, pool_of
from echo_cli.seeds import derive_seed
from echo_cli.trajectory import Role, Trajectory


def rollout_tasks(
    policy: TorchPolicy, worlds: TaskSuite, tasks: Sequence[Task], rollouts: int, config: Config, seed: int
) -> list[Trajectory]:
    """`rollouts` episodes of the policy on each task, at the training temperature.

    One whose session was lost again and again is missing.
    """
    wanted = [(task, task.task_id) for task in tasks for _ in range(rollouts)]
    sampler = policy.sampler(config.rollout.temperature, seed)
    played = play_policy(sampler, policy.renderer, worlds, wanted, limits_for(config, policy), verify=True)
    return [trajectory for trajectory in played if trajectory.stop_reason != "aborted"]


def pool_tasks(worlds: TaskSuite) -> dict[str, tuple[TaskSuite, Sequence[Task]]]:
    """By the name of each frozen pool, the worlds and the tasks that it is of."""
    ood = worlds.out_of_distribution()
    return {
        "validation": (worlds, worlds.tasks.validation),
        "heldout": (worlds, worlds.tasks.heldout),
        "ood": (ood, ood.tasks.heldout),
    }


def expert_pools(config: Config, worlds: TaskSuite, policy: TorchPolicy) -> dict[str, Pool]:
    """The frozen pools of worlds whose every task has an expert, for `policy`."""
    limits = limits_for(config, policy)
    return {name: expert_pool(of, tasks, policy.renderer, limits) for name, (of, tasks) in pool_tasks(worlds).items()}


def play_pools(config: Config, worlds: TaskSuite, policy: TorchPolicy) -> dict[str, list[Trajectory]]:
    """What frozen pools are made of: the expert where a task has one, elsewhere `policy`, once a task.

    Played once for a run, with the policy that it starts from: another day the environment may answer otherwise.

    Raises:
        EchoError: the environment is not available, or loses the session of a task again and again (exit code 1).
    """
    limits, played = limits_for(config, policy), {}
    for name, (of, tasks) in pool_tasks(worlds).items():
        expert = play_scripts(policy.renderer, of, expert_scripts(of, tasks), limits, "expert")
        wanted = [(task, task.task_id) for task in tasks if of.expert(task) is None]
        sampler = policy.sampler(config.rollout.temperature, derive_seed(config.seed, f"pool/{name}"))
        rollouts = play_policy(sampler, policy.renderer, of, wanted, limits, verify=False)
        played[name] = expert + without_fragments(rollouts, len(wanted), of.hosting)
    return played


@dataclass(frozen=True)
class StepEvaluation:
    """The metrics of one step, and some rollouts to keep."""

    metrics: Mapping[str, float | None]
    trajectories: Sequence[Trajectory]


class Evaluator:
    """The frozen pools of a run (`frozen_pools`), and the pairs of them that training has executed."""

    def __init__(self, config: Config, worlds: TaskSuite, pools: Mapping[str, Pool]) -> None:
        self._config = config
        self._worlds = worlds
        self.pools = pools
        self._pairs = frozenset(pair for pool in pools.values() for pair in pool.pairs)
        self.seen: set[Pair] = set()
        self._tokens: dict[str, Tokens] = {}
        self._start: Mapping[str, Predictions] = {}

    def remember_start(self, policy: TorchPolicy) -> None:
        """Score the pools with the policy that training starts from, to compare with over the same pairs later."""
        self._start = self._predict(policy)

    def observe(self, pairs: Iterable[Pair]) -> None:
        """Note which pool pairs are among those that training executed: they are novel no more."""
        self.seen |= self._pairs.intersection(pairs)

    def evaluate(self, policy: TorchPolicy, step: int, *, play: bool = True) -> StepEvaluation:
        """Score the pools and, with `play`, play the validation and held-out tasks (else their pass@1 is None).

        Draws from generators of its own.
        """
        metrics: dict[str, float | None] = {}
        for name, predictions in self._predict(policy).items():
            metrics |= {f"{name}/{key}": value for key, value in self._measure(name, predictions).items()}
        kept: list[Trajectory] = []
        settings = self._config.evaluation
        for name, tasks, rollouts in (
            ("validation", self._worlds.tasks.validation, settings.validation_rollouts),
            ("heldout", self._worlds.tasks.heldout, settings.heldout_rollouts),
        ):
            seed = derive_seed(self._config.seed, f"evaluate/{name}", step)
            wanted = play and rollouts > 0 and len(tasks) > 0
            played = rollout_tasks(policy, self._worlds, tasks, rollouts, self._config, seed) if wanted else []
            metrics[f"{name}/pass_at_1"] = solved_share(played)
            kept += played[: settings.kept_trajectories]
        return StepEvaluation(metrics, kept)

    def _predict(self, policy: TorchPolicy) -> dict[str, Predictions]:
        if not self._tokens:
            outputs = (Role.ENV_OUTPUT,)
            self._tokens = {name: tokens_of(of, (), policy.tokenizer, outputs) for name, of in self.pools.items()}
        return {name: predict(policy, pool, self._tokens[name]) for name, pool in self.pools.items()}

    def _measure(self, name: str, predictions: Predictions) -> dict[str, float | None]:
        """Measure a pool: its headline, the same pairs at the start of training, and the seen pairs."""
        tokens, start = self._tokens[name], self._start.get(name)
        seen_spans = [span.pair in self.seen for spans in self.pools[name].spans for span in spans]
        seen = np.array(seen_spans, dtype=np.bool_)[tokens.span]
        # The best step is chosen on validation, over all its pairs: steps compare only over the same ones. Elsewhere
        # the novel pairs grow fewer as the policy explores, and `env_ce_start` is where the same ones stood at first.
        headline = np.ones_like(seen) if name == "validation" else ~seen
        values: dict[str, float | None] = dict.fromkeys(("env_ce", "env_bits_per_byte", "token_accuracy"))
        return {
            **values,
            **values_of(tokens, predictions, headline),
            "novel_pairs": seen_spans.count(False),
            "env_ce_start": None if start is None else values_of(tokens, start, headline).get("env_ce"),
            "env_ce_seen": values_of(tokens, predictions, seen).get("env_ce"),
        }


def expert_pool(worlds: TaskSuite, tasks: Sequence[Task], renderer: Renderer, limits: EpisodeLimits) -> Pool:
    """Expert trajectories on `tasks`; a task whose solution is not known is left out."""
    return pool_of(play_scripts(renderer, worlds, expert_scripts(worlds, tasks), limits, "expert"))


def expert_scripts(worlds: TaskSuite, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
    """Those of `tasks` whose solution is known, each with the actions that solve it."""
    return [(task, actions) for task in tasks if (actions := worlds.expert(task)) is not None]
