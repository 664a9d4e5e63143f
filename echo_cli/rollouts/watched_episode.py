"""A recorded episode of an environment, played as training plays scripts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from echo_cli.environments.protocol import Environment, Grader, StepResult, TaskSuite, TextPiece
from echo_cli.environments.tasks import Task
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_scripts
from echo_cli.trajectory import Role, Source, Trajectory, text_of


@dataclass
class Play:
    """An episode: the environment's replies, and the trajectory for training."""

    environment: Environment
    task: Task
    opening: tuple[TextPiece, ...] = ()
    replies: list[StepResult] = field(default_factory=list)
    reset_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    trajectory: Trajectory = field(init=False)

    @property
    def grader(self) -> Grader | None:
        return self.environment.grader

    async def reset(self, task: Task) -> tuple[TextPiece, ...]:
        start = time.perf_counter()
        self.opening = await self.environment.reset(task)
        self.reset_seconds = time.perf_counter() - start
        return self.opening

    async def step(self, action: str, problem: str | None = None) -> StepResult:
        start = time.perf_counter()
        reply = await self.environment.step(action, problem)
        self.step_seconds.append(time.perf_counter() - start)
        self.replies.append(reply)
        return reply

    async def verify(self) -> float | None:
        return await self.environment.verify()

    async def close(self) -> None:
        await self.environment.close()

    @property
    def outputs(self) -> list[str]:
        """Learnable text per reply: env_output, which excludes volatile text."""
        return [text_of(reply.pieces, Role.ENV_OUTPUT) for reply in self.replies]


class _WatchedWorlds:
    """Task suite that records its last episode. An episode whose session is lost is followed by another."""

    def __init__(self, worlds: TaskSuite, task: Task) -> None:
        self.tasks, self.hosting, self.description = worlds.tasks, worlds.hosting, worlds.description
        self.replayable = worlds.replayable
        self.expert, self.explorer = worlds.expert, worlds.explorer
        self.reserved, self.out_of_distribution = worlds.reserved, worlds.out_of_distribution
        self._worlds, self._task = worlds, task

    def environment(self) -> Environment:
        self.last = Play(self._worlds.environment(), self._task)
        return self.last

    def other_world(self) -> TaskSuite | None:
        return self._worlds.other_world()


def play_watched(
    worlds: TaskSuite, renderer: Renderer, limits: EpisodeLimits, task: Task, actions: Sequence[str], source: Source
) -> Play:
    """Play one script and call the verifier.

    Raises:
        EchoError: as `play_scripts`.
    """
    watched = _WatchedWorlds(worlds, task)
    (watched.last.trajectory,) = play_scripts(renderer, watched, [(task, actions)], limits, source, verify=True)
    return watched.last
