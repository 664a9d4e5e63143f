"""Terminal tasks for tests: small task folders, and clients that play them in a real shell."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.config.loader import load_config
from echo_cli.environments.protocol import Payload
from echo_cli.environments.tasks import TaskList
from echo_cli.environments.terminal.client import TerminalSource, open_terminal
from sandbox_env.isolation import find_isolation

TOML = 'version = "1.0"\n'
TEST = '[ "$(cat answer.txt)" = 42 ]\n'
"""Tests without a reward file: their exit status is the reward."""


def write_task(folder: Path, files: Mapping[str, str] | None = None) -> Path:
    """Write a task folder whose answer is 42, with `files` in addition or in place of its own; "" omits one."""
    written = {"task.toml": TOML, "instruction.md": "Write 42 to answer.txt.\n", "tests/test.sh": TEST, **(files or {})}
    for name, text in written.items():
        if text:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder


def settings_of(folder: Path | str, *overrides: str, runtime: str = "bwrap") -> EnvironmentConfig:
    """Return the environment section that plays the tasks below `folder`."""
    words = [f"environment.terminal.folder={folder}", f"environment.terminal.runtime={runtime}"]
    splits = ["environment.terminal.validation=0", "environment.terminal.heldout=0"]
    return load_config("toy", [*words, *splits, *overrides]).environment


@contextmanager
def opened(settings: EnvironmentConfig) -> Iterator[tuple[TerminalSource, TaskList]]:
    """Open the source of the settings, and skip the test where bubblewrap is needed and does not work."""
    if settings.terminal is not None and settings.terminal.runtime == "bwrap":
        skip_without_bubblewrap()
    with open_terminal(settings, lambda _: 1) as source:
        yield source


def skip_without_bubblewrap() -> None:
    if find_isolation().program is None:
        pytest.skip("bwrap is not installed" if shutil.which("bwrap") is None else find_isolation().why_not)


def play(source: TerminalSource, task: str, lines: Sequence[str]) -> tuple[list[Payload], float | None]:
    """Play one episode: its lines until one ends it, and the task's tests. Return the answers and the reward."""

    async def played() -> tuple[list[Payload], float | None]:
        client = source.client()
        try:
            await client.reset({"task": task})
            answers: list[Payload] = []
            for line in lines:
                answers.append(await client.step({"command": line}))
                if answers[-1].done:
                    break
            return answers, (await client.step({"verify": True})).reward
        finally:
            await client.close()

    return asyncio.run(played())


def outputs(source: TerminalSource, task: str, lines: Sequence[str]) -> list[str]:
    """Return the outputs of the lines of one episode."""
    return [answer.observation["output"] for answer in play(source, task, lines)[0]]
