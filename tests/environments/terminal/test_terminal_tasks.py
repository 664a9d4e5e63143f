"""The shipped terminal tasks: each is solved by its solution, and not without it; the families and their splits."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from terminal_sites import opened, play, settings_of

from echo_cli.config.loader import load_config
from echo_cli.config.terminal import SHIPPED, Runtime, TerminalConfig, shipped_tasks
from echo_cli.environments.terminal.client import TerminalSource
from echo_cli.environments.terminal.tasks.solution import END, expert_lines
from echo_cli.environments.terminal.tasks.task_folder import SOLUTION
from echo_cli.environments.terminal.tasks.task_set import load_terminal_tasks
from echo_cli.environments.worlds import list_tasks

FAMILIES = {"find", "count", "edit", "script", "log", "git", "permissions", "csv"}
NAMES = sorted(path.parent.name for path in shipped_tasks().glob("*/task.toml"))


def test_there_are_eight_families_with_six_tasks_each_in_three_splits() -> None:
    splits, _ = list_tasks(load_config("terminal"))
    counts = {name: Counter(task.family for task in tasks) for name, tasks in splits.by_name.items()}
    assert counts == {
        "train": dict.fromkeys(FAMILIES, 4),
        "validation": dict.fromkeys(FAMILIES, 1),
        "heldout": dict.fromkeys(FAMILIES, 1),
    }
    assert len(NAMES) == 48 and all(name.split("-")[0] in FAMILIES for name in NAMES)


@pytest.mark.parametrize("runtime", ["bwrap", "process", "docker"])
def test_no_runtime_leaves_a_shipped_task_out(runtime: Runtime) -> None:
    tasks = load_terminal_tasks(TerminalConfig(folder=SHIPPED, runtime=runtime))
    assert tasks.left_out == {} and len(tasks.tasks) == 48


def test_every_shipped_solution_has_one_command_on_each_line() -> None:
    for task in load_terminal_tasks(TerminalConfig(folder=SHIPPED)).tasks.values():
        script = task.script(SOLUTION).splitlines()
        assert script[0] == "#!/bin/bash"
        assert expert_lines(task.script(SOLUTION)) == (*script[1:], END), task.name
        assert len(script) - 1 < (task.limits.max_turns or 0)


@pytest.mark.parametrize("runtime", ["bwrap", "process"])
def test_every_shipped_task_is_solved_by_its_solution_alone(runtime: str) -> None:
    """In both runtimes, without a difference; a quarter of the tasks in the second, so that the test is fast."""
    with opened(settings_of(SHIPPED, runtime=runtime)) as (source, tasks):
        half = NAMES if runtime == "bwrap" else NAMES[::4]

        def rewards(name: str) -> tuple[float | None, float | None]:
            return play(source, name, tasks.actions[name])[1], play(source, name, [END])[1]

        with ThreadPoolExecutor(4) as pool:
            assert dict(zip(half, pool.map(rewards, half), strict=True)) == dict.fromkeys(half, (1.0, 0.0))


def test_a_solution_shows_the_same_in_every_episode() -> None:
    with opened(settings_of(SHIPPED, "environment.terminal.families=[find,git]")) as (source, tasks):
        for name in ("find-executable", "git-count", "find-word"):
            first, second = (_shown(source, name, tasks.actions[name]) for _ in range(2))
            assert first == second
            assert all(text for text in (first[0], first[2]))


def _shown(source: TerminalSource, name: str, lines: tuple[str, ...]) -> list[str]:
    return [answer.observation["output"] for answer in play(source, name, lines)[0]]
