"""A run opened for dreaming: its environment, a checkpoint, and a task to play."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from echo_cli.config.loader import load_config
from echo_cli.environments.protocol import Worlds
from echo_cli.environments.task import Task
from echo_cli.environments.worlds import open_worlds, text_settings
from echo_cli.errors import EchoError
from echo_cli.evaluation.dream.replies import reply_form
from echo_cli.evaluation.dream.session import DreamPlay
from echo_cli.evaluation.evaluator import limits_for
from echo_cli.event_loop import EventLoop
from echo_cli.files import shown
from echo_cli.runs.directory import open_run
from echo_cli.training.session import build_policy


@dataclass(frozen=True)
class OpenDream:
    """What is dreamt of, and by whom."""

    run: str
    step: int
    task_id: str
    prompt: str
    play: DreamPlay

    @property
    def title(self) -> str:
        return f"{shown(self.run)}, step {self.step}, task {shown(self.task_id)}"


def tasks_of(path: Path) -> list[Task]:
    """The tasks of the run at `path`, held-out ones first, and those out of distribution last.

    Raises:
        EchoError: no such run, or its environment is not available (exit code 1).
    """
    with open_worlds(load_config(open_run(path).config_path)) as worlds:
        return [task for _, task in _tasks(worlds)]


@contextmanager
def open_dream(
    path: Path,
    *,
    checkpoint: str | int,
    task_id: str | None,
    max_tokens: int | None,
    temperature: float,
    seed: int,
    closed_loop: bool,
    device: str | None,
) -> Iterator[OpenDream]:
    """Open the run at `path` with its environment, for a `with` block.

    Args:
        checkpoint: "best", "latest" or a step.
        task_id: None for the first held-out task.

    Raises:
        EchoError: no such run, checkpoint or task, or the environment is not available (exit code 1).
    """
    run = open_run(path)
    config = load_config(run.config_path, [f"device={device}"] if device else [])
    folder, meta = run.load_checkpoint(checkpoint)
    with open_worlds(config) as worlds:
        of, task = _task(worlds, task_id)
        policy, _ = build_policy(config, quiet=True)
        policy.load(folder)
        form = reply_form(policy.renderer, text_settings(config.environment))
        with EventLoop() as loop:
            play = DreamPlay(
                policy,
                of,
                task,
                limits_for(config, policy),
                form,
                loop,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                closed_loop=closed_loop,
            )
            yield OpenDream(path.resolve().name, int(meta["step"]), task.task_id, form.prompt or "> ", play)


def _tasks(worlds: Worlds) -> list[tuple[Worlds, Task]]:
    elsewhere = worlds.out_of_distribution()
    splits = worlds.tasks
    here = [(worlds, task) for task in (*splits.heldout, *splits.validation, *splits.train)]
    return [*here, *((elsewhere, task) for task in elsewhere.tasks.heldout)]


def _task(worlds: Worlds, task_id: str | None) -> tuple[Worlds, Task]:
    found = _tasks(worlds)
    if not found:
        raise EchoError("the run has no tasks", "dream --score needs none")
    if task_id is None:
        return found[0]
    chosen = next((entry for entry in found if entry[1].task_id == task_id), None)
    if chosen is None:
        nearest = difflib.get_close_matches(task_id, [task.task_id for _, task in found], n=1, cutoff=0.0)[0]
        raise EchoError(f"no task '{shown(task_id)}'", f"did you mean {shown(nearest)}? --list-tasks prints them all")
    return chosen
