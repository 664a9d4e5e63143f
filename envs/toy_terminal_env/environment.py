"""The toy terminal as an OpenEnv-shaped environment: `reset`, `step`, `state`."""

from __future__ import annotations

from functools import lru_cache

from toy_terminal_env.machine import generate_machine
from toy_terminal_env.models import ToyTerminalAction, ToyTerminalObservation, ToyTerminalState
from toy_terminal_env.shell import run
from toy_terminal_env.tasks import ToyTask, generate_tasks
from toy_terminal_env.world import Kind, World, generate_world

ANSWER = "answer:"


@lru_cache(maxsize=64)
def world_and_tasks(world_seed: int, kind: Kind = "files") -> tuple[World, dict[str, ToyTask]]:
    """Return the world of a seed and its tasks by id; both are immutable, so one copy serves every episode.

    Raises:
        ValueError: no world of this kind has the seed.
    """
    world = generate_machine(world_seed) if kind == "machine" else generate_world(world_seed)
    return world, {task.task_id: task for task in generate_tasks(world)}


class EpisodeError(RuntimeError):
    """Call without a running episode: none was started, or it has ended."""


class ToyTerminalEnvironment:
    """One episode at a time: `reset` chooses the world and the task, `step` runs one line.

    The episode ends with an answer or after `max_turns` lines, set in `reset` or else in the constructor. A step after
    the end is an error.
    """

    def __init__(self, max_turns: int = 5) -> None:
        self.max_turns = _at_least_one(max_turns)
        self._task: ToyTask | None = None

    def reset(
        self,
        seed: int = 0,
        episode_id: str | None = None,
        *,
        task_id: str | None = None,
        max_turns: int | None = None,
        kind: Kind = "files",
    ) -> ToyTerminalObservation:
        """Start an episode in the world of `seed`, on the task `task_id` or else the world's first training task.

        Raises:
            ValueError: no world of this kind has the seed, the world has no such task, or `max_turns` is below 1; the
                previous episode continues.
        """
        episode_turns = _at_least_one(self.max_turns if max_turns is None else max_turns)
        world, tasks = world_and_tasks(seed, kind)
        if task_id is None:
            task_id = next(task.task_id for task in tasks.values() if task.split == "train")
        if task_id not in tasks:
            raise ValueError(f"world {seed} has no task {task_id!r}")
        self._world = world
        self._task = tasks[task_id]
        self._episode_id = episode_id or task_id
        self._episode_turns = episode_turns
        self._step_count = 0
        self._done = False
        return ToyTerminalObservation(instruction=self._task.question)

    def step(self, action: ToyTerminalAction) -> ToyTerminalObservation:
        """Run one line. Raises EpisodeError before `reset` and after the episode's end."""
        task = self._current_task()
        if self._done:
            raise EpisodeError("the episode is over: call reset() first")
        self._step_count += 1
        line = action.command.strip()
        if line.startswith(ANSWER):
            self._done = True
            return ToyTerminalObservation(done=True, reward=float(line[len(ANSWER) :].strip() == task.answer))
        result = run(self._world.files, line)
        self._done = self._step_count >= self._episode_turns
        return ToyTerminalObservation(
            stdout=result.stdout,
            stderr=result.stderr,
            exit_code=result.exit_code,
            done=self._done,
            reward=0.0 if self._done else None,
        )

    @property
    def state(self) -> ToyTerminalState:
        """State of the episode. Raises EpisodeError before `reset`."""
        task = self._current_task()
        return ToyTerminalState(self._episode_id, self._step_count, self._world.seed, task.task_id)

    def close(self) -> None:
        """Do nothing: the environment holds no resources."""

    def _current_task(self) -> ToyTask:
        if self._task is None:
            raise EpisodeError("call reset() first")
        return self._task


def _at_least_one(max_turns: int) -> int:
    if max_turns < 1:
        raise ValueError(f"max_turns must be at least 1, not {max_turns}")
    return max_turns
