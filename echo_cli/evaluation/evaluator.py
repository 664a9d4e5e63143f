"""Held-out measures: env-CE and token accuracy on frozen pools of expert trajectories, and pass@1 of the policy.

A pool holds expert trajectories on tasks that training never sees. Its headline is over *novel* pairs: those of
(command, output) that no training rollout has executed so far. Pairs that training did execute are measured apart.
The validation pool, on which the best step is chosen, is scored over all its pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.tasks import Task
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.limits import EpisodeLimits, limits_for
from echo_cli.rollouts.rollout import play_policy, play_scripts, without_fragments
from echo_cli.runs.pools import Pair, Pool, pool_of
from echo_cli.seeds import derive_seed
from echo_cli.trajectory import Role, Trajectory


@dataclass(frozen=True)
class PairScore:
    """What the policy makes of one output, teacher-forced at temperature 1."""

    pair: Pair
    nats: float
    correct: int
    tokens: int
    output_bytes: int


def score_pool(policy: TorchPolicy, pool: Pool) -> list[PairScore]:
    """Score every output of the pool."""
    scores = []
    for of, spans in zip(policy.score(pool.trajectories, {Role.ENV_OUTPUT}), pool.spans, strict=True):
        for span in spans:
            window = slice(span.start, span.start + span.count)
            nats = -float(of.logprobs[window].double().sum())
            scores.append(PairScore(span.pair, nats, int(of.correct[window].sum()), span.count, span.output_bytes))
    return scores


def summarize(scores: Sequence[PairScore], prefix: str) -> dict[str, float | None]:
    """env-CE (nats/token), bits per byte and token accuracy over all tokens of `scores`; None over nothing."""
    tokens = sum(score.tokens for score in scores)
    if tokens == 0:
        return {f"{prefix}/{name}": None for name in ("env_ce", "env_bits_per_byte", "token_accuracy")}
    nats = sum(score.nats for score in scores)
    return {
        f"{prefix}/env_ce": nats / tokens,
        f"{prefix}/env_bits_per_byte": nats / math.log(2) / sum(score.output_bytes for score in scores),
        f"{prefix}/token_accuracy": sum(score.correct for score in scores) / tokens,
    }


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


def pass_at_1(trajectories: Sequence[Trajectory]) -> float | None:
    """The mean reward; None without rollouts."""
    rewards = [trajectory.reward for trajectory in trajectories if trajectory.reward is not None]
    return sum(rewards) / len(rewards) if rewards else None


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
class Evaluation:
    """One evaluation: its metrics, and some rollouts to keep."""

    metrics: Mapping[str, float | None]
    trajectories: Sequence[Trajectory]


class Evaluator:
    """The frozen pools of a run (`frozen_pools`), and the pairs of them that training has executed."""

    def __init__(self, config: Config, worlds: TaskSuite, pools: Mapping[str, Pool]) -> None:
        self._config = config
        self._worlds = worlds
        self.pools = pools
        self._pairs = frozenset(pair for pool in self.pools.values() for pair in pool.pairs)
        self.seen: set[Pair] = set()
        self._start: Mapping[str, Sequence[PairScore]] = {}

    def remember_start(self, policy: TorchPolicy) -> None:
        """Score the pools with the policy that training starts from, to compare with over the same pairs later."""
        self._start = {name: score_pool(policy, pool) for name, pool in self.pools.items()}

    def observe(self, pairs: Iterable[Pair]) -> None:
        """Note which pool pairs are among those that training executed: they are novel no more."""
        self.seen |= self._pairs.intersection(pairs)

    def evaluate(self, policy: TorchPolicy, step: int, *, play: bool = True) -> Evaluation:
        """Score the pools and, with `play`, play the validation and held-out tasks (else their pass@1 is None).

        Draws from generators of its own.
        """
        metrics: dict[str, float | None] = {}
        for name, pool in self.pools.items():
            scores = score_pool(policy, pool)
            novel = [score for score in scores if score.pair not in self.seen]
            # The best step is chosen on validation, over all its pairs: steps compare only over the same ones.
            metrics |= summarize(scores if name == "validation" else novel, name)
            metrics[f"{name}/novel_pairs"] = len(novel)
            # What is novel shrinks as the policy explores; this is where the same pairs stood before training.
            start = [s for s in self._start.get(name, ()) if name == "validation" or s.pair not in self.seen]
            metrics[f"{name}/env_ce_start"] = summarize(start, name)[f"{name}/env_ce"]
            seen = [score for score in scores if score.pair in self.seen]
            metrics[f"{name}/env_ce_seen"] = summarize(seen, name)[f"{name}/env_ce"]
        kept: list[Trajectory] = []
        settings = self._config.evaluation
        for name, tasks, rollouts in (
            ("validation", self._worlds.tasks.validation, settings.validation_rollouts),
            ("heldout", self._worlds.tasks.heldout, settings.heldout_rollouts),
        ):
            seed = derive_seed(self._config.seed, f"evaluate/{name}", step)
            wanted = play and rollouts > 0 and len(tasks) > 0
            played = rollout_tasks(policy, self._worlds, tasks, rollouts, self._config, seed) if wanted else []
            metrics[f"{name}/pass_at_1"] = pass_at_1(played)
            kept += played[: settings.kept_trajectories]
        return Evaluation(metrics, kept)


def expert_pool(worlds: TaskSuite, tasks: Sequence[Task], renderer: Renderer, limits: EpisodeLimits) -> Pool:
    """Expert trajectories on `tasks`; a task whose solution is not known is left out."""
    return pool_of(play_scripts(renderer, worlds, expert_scripts(worlds, tasks), limits, "expert"))


def expert_scripts(worlds: TaskSuite, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
    """Those of `tasks` whose solution is known, each with the actions that solve it."""
    return [(task, actions) for task in tasks if (actions := worlds.expert(task)) is not None]
