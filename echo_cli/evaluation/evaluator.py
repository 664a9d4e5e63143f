"""Held-out measures during training: env-CE and token accuracy on frozen pools, and pass@1 of the policy.

A pool holds trajectories on tasks that training never sees, played by the expert or, for a task without an expert, by
the initial policy or, if it observes nothing, by a script. Its headline is over *novel* pairs: the (command, output)
pairs that no training rollout has executed so far. It is also measured in two parts: pairs whose lines training has
all observed under other commands, and pairs with a line that nothing showed. Executed pairs are measured separately.
The validation pool, on which the best step is chosen, is scored over all its pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from echo_cli.config.episodes.several import in_environment
from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.several import environment_of, labelled, members_of
from echo_cli.environments.tasks import Task
from echo_cli.evaluation.measures import Bools, Predictions, Tokens, pairs_in, predict, tokens_of, values_of
from echo_cli.evaluation.pass_at_k import (
    TaskOutcome,
    criterion_means,
    mean_reward,
    outcomes_by_part,
    pass_share,
    pass_shares,
)
from echo_cli.evaluation.pools.joined import ScoredPool, join_scored
from echo_cli.evaluation.records import OOD, pool_title
from echo_cli.models.backend import Policy
from echo_cli.models.distributed.ranks import ALONE, Ranks
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.behaviour import refused_fraction
from echo_cli.rollouts.environment_check import find_leak
from echo_cli.rollouts.limits import EpisodeLimits, limits_for
from echo_cli.rollouts.rollout import without_fragments
from echo_cli.rollouts.several import play_policy, play_scripts
from echo_cli.runs.parts import base_of, environment_in, with_unions
from echo_cli.runs.pools import Pair, Pool, lines_of, pool_of
from echo_cli.seeds import derive_seed, generator
from echo_cli.text import counted
from echo_cli.trajectory import Role, Trajectory


def criteria_in(config: Config) -> list[str]:
    """Return the names of the criteria of the environments' graders."""
    return list(dict.fromkeys(name for section in config.sections.values() for name in section.reward.weights))


def evaluation_seed(config: Config, split: str) -> int:
    """Return the seed of a run's evaluation rollouts on the tasks of `split`.

    It is the same at every step and in every command, so the same policy has the same rollouts and the same figures.
    """
    return derive_seed(config.seed, f"evaluate/{split}")


def rollout_tasks(
    policy: Policy, worlds: TaskSuite, tasks: Sequence[Task], rollouts: int, config: Config, seed: int
) -> list[Trajectory]:
    """Play `rollouts` episodes of the policy per task at the training temperature.

    Episodes whose session was lost in every attempt are missing from the result.
    """
    wanted = [(task, task.task_id) for task in tasks for _ in range(rollouts)]
    sampler, limits = policy.sampler(config.rollout.temperature, seed), limits_for(config, policy, worlds)
    played = play_policy(sampler, policy.renderer, worlds, wanted, limits, verify=True, ranks=policy.ranks)
    return [trajectory for trajectory in played if trajectory.stop_reason != "aborted"]


def pool_tasks(worlds: TaskSuite) -> dict[str, tuple[TaskSuite, Sequence[Task]]]:
    """Return, by pool name, the worlds and tasks of each frozen pool."""
    ood = worlds.out_of_distribution()
    return {
        "validation": (worlds, worlds.tasks.validation),
        "heldout": (worlds, worlds.tasks.heldout),
        "ood": (ood, ood.tasks.heldout),
    }


def expert_pools(config: Config, worlds: TaskSuite, policy: Policy) -> dict[str, Pool]:
    """Play the frozen pools of worlds in which every task has an expert, rendered for `policy`."""
    limits, renderer, ranks = limits_for(config, policy, worlds), policy.renderer, policy.ranks
    return {name: expert_pool(of, tasks, renderer, limits, ranks) for name, (of, tasks) in pool_tasks(worlds).items()}


def play_pools(config: Config, worlds: TaskSuite, policy: Policy) -> dict[str, list[Trajectory]]:
    """Play the frozen pools, one trajectory per task: with the task's expert if it has one, else with `policy`.

    A task on which the initial policy observes nothing, because none of its lines is a valid action, is played again
    with a script, if one is known (`_pool_scripts`). Pools are played once per run, with the initial policy, because
    the environment may answer differently later.

    Raises:
        EchoError: the environment is not available, or loses the session of a task in every attempt (exit code 1).
    """
    played: dict[str, list[Trajectory]] = {}
    for environment, member in members_of(worlds).items():
        with in_environment(environment):
            found = _play_pools(config, member, policy, limits_for(config, policy, worlds))
        for name, trajectories in found.items():
            played.setdefault(name, []).extend(labelled(environment, trajectory) for trajectory in trajectories)
    return played


def _play_pools(
    config: Config, worlds: TaskSuite, policy: Policy, limits: EpisodeLimits
) -> dict[str, list[Trajectory]]:
    """Play the frozen pools of one environment."""
    ranks, played = policy.ranks, {}
    for name, (of, tasks) in pool_tasks(worlds).items():
        expert = _play_known(of, tasks, policy.renderer, limits, ranks)
        wanted = [(task, task.task_id) for task in tasks if of.expert(task) is None]
        sampler = policy.sampler(config.rollout.temperature, derive_seed(config.seed, f"pool/{name}"))
        rollouts = play_policy(sampler, policy.renderer, of, wanted, limits, verify=False, ranks=ranks)
        whole = without_fragments(rollouts, len(wanted), of.hosting)
        blind = {rollout.task_id for rollout in whole if not pool_of([rollout]).pairs}
        missing = [task for task, _ in wanted if task.task_id in blind]
        scripts = _pool_scripts(config, name, worlds, of, missing)
        explored = play_scripts(policy.renderer, of, scripts, limits, "explorer", ranks=ranks)
        scripted = {each.task_id: each for each in explored}
        played[name] = expert + [scripted.get(rollout.task_id, rollout) for rollout in whole]
    return played


def _pool_scripts(
    config: Config, pool: str, worlds: TaskSuite, of: TaskSuite, tasks: Sequence[Task]
) -> list[tuple[Task, list[str]]]:
    """Return the scripts that are known for `tasks` without an expert, which are in the suite `of`.

    A script consists of explorer lines or, without explorer lines, of a training task's actions. It does not depend on
    the actions of a held-out task.
    """
    rng = generator(config.seed, f"pool/{pool}/explorer")
    known = [actions for _, actions in expert_scripts(worlds, worlds.tasks.train)]
    scripts = []
    for task in tasks:
        lines = of.explorer(task, config.rollout.explorer_commands, rng)
        if lines or known:
            scripts.append((task, lines or rng.choice(known)))
    return scripts


FEW_PAIRS = 5
"""Number of pairs below which a pool's figures are mostly the luck of which pairs it has."""


def pool_notices(config: Config, worlds: TaskSuite, pools: Mapping[str, Pool]) -> list[str]:
    """Return a line for each of a run's pools that has fewer than `FEW_PAIRS` pairs, with the key to set."""
    tasks = {
        "/".join(filter(None, (name, environment))): len(of)
        for environment, member in members_of(worlds).items()
        for name, (_, of) in pool_tasks(member).items()
    }
    notices = []
    for name, pool in pools.items():
        pairs, title = len(pool.pairs), pool_title(name)
        if pairs >= FEW_PAIRS or (base_of(name) == OOD and not tasks[name]):
            continue
        if config.environment.none or name not in tasks:
            remedy = "add traces, or raise their share in traces.split or traces.max_tokens"
        elif not tasks[name]:
            remedy = "it has no tasks; add some in environment.tasks"
        elif pairs:
            remedy = "add tasks in environment.tasks, or commands in rollout.explorer_commands"
        else:
            remedy = "neither the initial policy nor a script observed anything; list actions in environment.explorer"
        size = "is empty" if pairs == 0 else f"rests on {counted(pairs, '(command, output) pair')}"
        notices.append(f"warning: the {title} pool {size}: {remedy}")
    return notices


def split_notices(worlds: TaskSuite) -> list[str]:
    """Return a line for each split of a run with one task, and one on rows of a dataset that are left out."""
    repeated = worlds.tasks.repeated
    lines = [f"{counted(repeated, 'row')} of the dataset repeat the task of another row, and are left out"]
    return lines[: min(repeated, 1)] + [
        f"warning: the {name} split has {count} task: list more tasks, or set the split of some"
        for name, count in worlds.tasks.small.items()
        if count
    ]


def leak_notices(config: Config, worlds: TaskSuite, policy: Policy) -> list[str]:
    """Return a line if state leaks between episodes: a pool's expert has solved a task, and now no action is needed."""
    if not (config.objective.use_rl or config.evaluation.heldout_rollouts):  # rewards are not used
        return []
    lines, limits = [], limits_for(config, policy, worlds)
    for name, member in members_of(worlds).items():
        if name and member.replayable:
            continue
        scripts = expert_scripts(member, (*member.tasks.heldout, *member.tasks.validation))
        found = [finding for task, _ in scripts[:1] for finding in find_leak(member, policy.renderer, limits, task)]
        lines += [f"warning: {f'{name}: ' * bool(name)}{finding.message}; {finding.tip}" for finding in found]
    return lines


@dataclass(frozen=True)
class StepEvaluation:
    """Metrics of one step, and the rollouts to keep."""

    metrics: Mapping[str, float | None]
    trajectories: Sequence[Trajectory]


class Evaluator:
    """Evaluator of policies on a run's frozen pools (`frozen_pools`), with a record of the executed pool pairs."""

    def __init__(self, config: Config, worlds: TaskSuite, pools: Mapping[str, Pool]) -> None:
        self._config = config
        self._worlds = worlds
        self.pools = pools
        self._pairs = frozenset(pair for pool in pools.values() for pair in pool.pairs)
        self._lines = lines_of(self._pairs)
        self.seen: set[Pair] = set()
        self.shown: set[str] = set()
        """Lines of the pools' outputs that training has observed, under any command."""
        self._met: dict[str, tuple[set[Pair], set[str]]] = {name: (set(), set()) for name in config.names}
        """`seen` and `shown` in each of several environments."""
        self._scored = dict(pools)  # with the ends of outputs marked, if they are learned
        self._tokens: dict[str, Tokens] = {}
        self._start: Mapping[str, Predictions] = {}

    def remember_start(self, policy: Policy) -> None:
        """Score the pools with the initial policy, as the reference for later steps over the same pairs."""
        self._start = self._predict(policy)

    def observe(self, pairs: Collection[Pair], environment: str = "") -> None:
        """Mark the pool pairs among the executed `pairs` as seen, and the pools' lines in their outputs as shown.

        Args:
            environment: the one of several in which they were executed.
        """
        met = [(self.seen, self.shown)]
        if environment in self._met:
            met.append(self._met[environment])
        for seen, shown in met:
            seen |= self._pairs.intersection(pairs)
            shown |= self._lines & lines_of(pairs)

    def evaluate(self, policy: Policy, *, play: bool = True) -> StepEvaluation:
        """Score the pools and, with `play`, play the validation and held-out tasks.

        Without `play`, pass@1 and the mean reward are None; so are those of all environments together if one of them
        is left out.

        Sampling uses generators separate from training's.
        """
        metrics: dict[str, float | None] = {}
        scored = {name: self._meet(name, found) for name, found in self._predict(policy).items()}
        for name, of in with_unions(scored, join_scored).items():
            metrics |= {f"{name}/{key}": value for key, value in self._measure(name, of).items()}
        kept: list[Trajectory] = []
        settings = self._config.evaluation
        for name, tasks, rollouts in (
            ("validation", self._worlds.tasks.validation, settings.validation_rollouts),
            ("heldout", self._worlds.tasks.heldout, settings.heldout_rollouts),
        ):
            seed = evaluation_seed(self._config, name)
            wanted = play and rollouts > 0 and len(tasks) > 0
            played = rollout_tasks(policy, self._worlds, tasks, rollouts, self._config, seed) if wanted else []
            for part, of_part in outcomes_by_part(name, self._worlds, tasks, played, settings.solved_at).items():
                own = [rollout for rollout in played if environment_in(part) in ("", environment_of(rollout))]
                metrics |= {f"{part}/{key}": value for key, value in self._task_metrics(name, of_part, own).items()}
            kept += self._kept(played)
        return StepEvaluation(metrics, kept)

    def _kept(self, played: Sequence[Trajectory]) -> list[Trajectory]:
        """Return the rollouts to keep: the first of each environment."""
        most = self._config.evaluation.kept_trajectories
        names = self._config.names or ("",)
        return [each for name in names for each in [of for of in played if environment_of(of) == name][:most]]

    def _task_metrics(
        self, split: str, outcomes: Sequence[TaskOutcome], played: Sequence[Trajectory]
    ) -> dict[str, float | None]:
        found = {"pass_at_1": pass_share(outcomes), "mean_reward": mean_reward(outcomes)}
        found |= criterion_means(outcomes, criteria_in(self._config))
        if split == "heldout":
            found |= pass_shares(outcomes, self._config.evaluation.heldout_rollouts)
            found["refused_fraction"] = refused_fraction(played)
        return found

    def _predict(self, policy: Policy) -> dict[str, Predictions]:
        if not self._tokens:
            roles = [Role.ENV_OUTPUT]
            if self._config.objective.end_of_output:
                roles.append(Role.END)
                self._scored = {
                    name: replace(pool, trajectories=tuple(map(policy.mark_ends, pool.trajectories)))
                    for name, pool in self.pools.items()
                }
            self._tokens = {name: tokens_of(of, (), policy.tokenizer, roles) for name, of in self._scored.items()}
        return {name: predict(policy, pool, self._tokens[name]) for name, pool in self._scored.items()}

    def _meet(self, name: str, predictions: Predictions) -> ScoredPool:
        """Return a pool's predictions with what training has met of it, in its own environment."""
        known, lines = self._met.get(environment_in(name), (self.seen, self.shown))
        pairs = [span.pair for spans in self.pools[name].spans for span in spans]
        seen = np.array([pair in known for pair in pairs], dtype=np.bool_)
        shown = np.array([lines_of([pair]) <= lines for pair in pairs], dtype=np.bool_)
        return ScoredPool(self._tokens[name], predictions, self._start.get(name), seen, shown)

    def _measure(self, name: str, scored: ScoredPool) -> dict[str, float | None]:
        """Measure the headline of a pool, the same pairs at the start of training, its parts, and the seen pairs."""
        tokens, predictions, start = scored.tokens, scored.predictions, scored.start
        seen = scored.seen[tokens.span]
        # The best step is chosen on validation over all its pairs, because steps are comparable only over the same
        # pairs. In the other pools the number of novel pairs falls as the policy explores; `env_ce_start` is the
        # initial policy's env-CE over the pairs that remain.
        measured = np.ones_like(seen) if base_of(name) == "validation" else ~seen
        output, end = tokens.role == "env_output", tokens.role == "end"
        headline, seen = measured & output, seen & output
        end_ce = {"end_ce": values_of(tokens, predictions, measured & end).get("env_ce")}
        values: dict[str, float | None] = dict.fromkeys(("env_ce", "env_bits_per_byte", "token_accuracy"))
        return {
            **values,
            **values_of(tokens, predictions, headline),
            "novel_pairs": int((~scored.seen).sum()),
            "env_ce_start": None if start is None else values_of(tokens, start, headline).get("env_ce"),
            "env_ce_seen": values_of(tokens, predictions, seen).get("env_ce"),
            **_measure_by_lines(scored, output & ~seen),
            **(end_ce if self._config.objective.end_of_output else {}),
        }


def _measure_by_lines(scored: ScoredPool, novel: Bools) -> dict[str, float | None]:
    """Measure the novel pairs whose lines training has all observed under other commands, and the other ones."""
    tokens, values = scored.tokens, dict[str, float | None]()
    shown = scored.shown[tokens.span]
    for key, chosen in (("shown", novel & shown), ("unshown", novel & ~shown)):
        values[f"env_ce_{key}"] = values_of(tokens, scored.predictions, chosen).get("env_ce")
        values[f"pairs_{key}"] = pairs_in(tokens, chosen)
        values[f"bytes_{key}"] = int(tokens.byte_count[chosen].sum())
    return values


def expert_pool(
    worlds: TaskSuite, tasks: Sequence[Task], renderer: Renderer, limits: EpisodeLimits, ranks: Ranks = ALONE
) -> Pool:
    """Play the expert on each of `tasks` with a known solution, and the commands reserved for their pool."""
    return pool_of(_play_known(worlds, tasks, renderer, limits, ranks))


def _play_known(
    worlds: TaskSuite, tasks: Sequence[Task], renderer: Renderer, limits: EpisodeLimits, ranks: Ranks
) -> list[Trajectory]:
    solved = play_scripts(renderer, worlds, expert_scripts(worlds, tasks), limits, "expert", ranks=ranks)
    return solved + play_scripts(renderer, worlds, worlds.reserved(tasks), limits, "explorer", ranks=ranks)


def expert_scripts(worlds: TaskSuite, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
    """Return the tasks with a known solution, each with the actions that solve it."""
    return [(task, actions) for task in tasks if (actions := worlds.expert(task)) is not None]
