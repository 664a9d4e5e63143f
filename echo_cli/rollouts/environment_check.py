"""Check of an environment: plays the same actions twice on one task and once on another, and reports problems.

Episodes are played as training plays scripts, so transcript, roles and token counts are the same as in a run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.environments.protocol import Description, TaskSuite
from echo_cli.environments.tasks import Task
from echo_cli.errors import EchoError
from echo_cli.models.renderer import Renderer, tools_tokens
from echo_cli.rollouts.environment_findings import Finding, find_problems, idle_reward, leak
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.random_actions import random_line
from echo_cli.rollouts.watched_episode import play_watched
from echo_cli.trajectory import Role, Source, Trajectory

_CONTEXT_TIP = "lower rollout.max_episode_tokens or rollout.max_output_tokens, or choose a model with a longer context"
_MOST_LINES = 8
"""Maximum number of actions of an episode without a script that solves the task."""


@dataclass(frozen=True)
class CheckReport:
    """Result of a check. Durations cover the environment alone, in seconds."""

    description: Description
    sessions: int | None
    """Maximum number of concurrent episodes in training; None means no limit."""
    tasks: Mapping[str, int]
    """Number of tasks by split."""
    script: str
    """Source of the actions: `actions` of the task, `explorer` lines, or `random` lines."""
    trajectory: Trajectory
    step_rewards: tuple[float | None, ...]
    reset_seconds: float
    step_seconds: float | None
    """Median duration of an environment step, seconds; None if the environment answered no action."""
    faults: Mapping[str, int]
    limits: EpisodeLimits
    """Caps of the episodes, those of a run with this config."""
    findings: tuple[Finding, ...]

    @property
    def tokens(self) -> dict[tuple[Role, str | None], int]:
        """Number of tokens of the episode by role and channel, in order of first occurrence."""
        counts: Counter[tuple[Role, str | None]] = Counter()
        for segment in self.trajectory.segments:
            counts[segment.role, segment.channel] += len(segment.token_ids)
        return dict(counts)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "environment": vars(self.description),
            "sessions": self.sessions,
            "limits": vars(self.limits),
            "tasks": dict(self.tasks),
            "script": self.script,
            "trajectory": self.trajectory.to_json(),
            "tokens": [
                {"role": role.name.lower(), "channel": channel, "tokens": count}
                for (role, channel), count in self.tokens.items()
            ],
            "reward": self.trajectory.reward,
            "step_rewards": list(self.step_rewards),
            "reset_seconds": self.reset_seconds,
            "step_seconds": self.step_seconds,
            "faults": dict(self.faults),
            "warnings": [vars(finding) for finding in self.findings],
        }


def check_environment(
    worlds: TaskSuite,
    renderer: Renderer,
    limits: EpisodeLimits,
    settings: EnvironmentConfig,
    *,
    context: int | None = None,
    seed: int = 0,
) -> CheckReport:
    """Play the same actions twice on one task and once on another, and return a report. No file is written.

    The actions are a known solution of a task if one exists, else `settings.explorer` lines, else random lines.

    Args:
        limits: configured caps; they are lowered to `context` as in training.
        context: maximum length of the model's sequences, tokens; None if unknown.
        settings: environment section with the action mapping, the volatile patterns and the turn cap.
        seed: seed of random actions.

    Raises:
        EchoError: there is no environment, it cannot be reached, or an episode does not complete (exit code 1); one
            turn does not fit in `context`.
    """
    if settings.none:
        raise EchoError("environment.none is true: there is no environment to check", "set one in the config")
    lowered = None
    if context is not None:
        tools = tools_tokens(renderer, worlds.description.tools)
        lowered = limits.lowered_line(context, renderer.overhead, tools)
        limits = limits.within(context, renderer.overhead, tools)
    tasks = (*worlds.tasks.train, *worlds.tasks.validation, *worlds.tasks.heldout)
    task = next((task for task in tasks if worlds.expert(task) is not None), tasks[0])
    script, lines = _script(worlds, task, settings, random.Random(seed))
    source: Source = "expert" if script == "actions" else "explorer"
    first = play_watched(worlds, renderer, limits, task, lines, source)
    second = play_watched(worlds, renderer, limits, task, lines, source)
    # A task of a frozen pool if there is one, to see that scripts observe something there.
    others = [other for other in reversed(tasks) if not other.asks_the_same_as(task)]
    elsewhere = play_watched(worlds, renderer, limits, others[0], lines, source) if others else None
    times = [seconds for play in (first, second) for seconds in play.step_seconds]
    counts = {"train": worlds.tasks.train, "validation": worlds.tasks.validation, "heldout": worlds.tasks.heldout}
    reasons: list[str] = []
    worlds.hosting.faults.tell_reasons(reasons.append)
    return CheckReport(
        description=worlds.description,
        sessions=worlds.hosting.sessions,
        tasks={split: len(of_split) for split, of_split in counts.items()},
        script=script,
        trajectory=first.trajectory,
        step_rewards=tuple(reply.reward for reply in first.replies),
        reset_seconds=first.reset_seconds,
        step_seconds=median(times) if times else None,
        faults=worlds.hosting.faults.take(),
        limits=limits,
        findings=(
            *([] if lowered is None else [Finding("context", lowered, _CONTEXT_TIP)]),
            *(find_leak(worlds, renderer, limits, task) if (first.trajectory.reward or 0.0) > 0 else ()),
            *find_problems(first, second, elsewhere, worlds, settings, limits, reasons),
        ),
    )


def find_leak(worlds: TaskSuite, renderer: Renderer, limits: EpisodeLimits, task: Task) -> tuple[Finding, ...]:
    """Play an episode without any action on `task`, which was solved before; return a finding if it is rewarded."""
    play = play_watched(worlds, renderer, limits, task, (), "explorer")
    reward = play.trajectory.reward
    if reward is None or reward <= 0:
        return ()
    return ((leak if play.grader is None else idle_reward)(task.task_id, reward),)


def _script(worlds: TaskSuite, task: Task, settings: EnvironmentConfig, rng: random.Random) -> tuple[str, list[str]]:
    known = worlds.expert(task)
    if known is not None:
        return "actions", known
    count = min(settings.max_turns, _MOST_LINES)
    if settings.explorer:
        return "explorer", worlds.explorer(task, count, rng)
    return "random", [random_line(settings.action, worlds.description.action_schema, rng) for _ in range(count)]
