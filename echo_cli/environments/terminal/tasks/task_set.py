"""The terminal tasks of a run: task folders below a folder or in a git repository, and those that cannot be played."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from echo_cli.config.episodes.tasks import TasksConfig
from echo_cli.config.terminal import SHIPPED, GitTasks, TerminalConfig, shipped_tasks
from echo_cli.environments.tasks import Task, TaskList, TaskSplits, load_tasks
from echo_cli.environments.terminal.tasks.requirements import missing_of
from echo_cli.environments.terminal.tasks.solution import expert_lines
from echo_cli.environments.terminal.tasks.task_folder import SOLUTION, TerminalTask, read_task
from echo_cli.errors import EchoError
from echo_cli.processes import inherited
from echo_cli.text import counted, escape_unprintable

_DEPTH = 6
_FETCH_SECONDS = 600.0
_MOST_NAMES, _MOST_REASONS = 8, 40
_GIT_VARIABLES = ("SSH_AUTH_SOCK", "http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY")
"""Variables with which git reaches a server, besides those that every child gets."""


@dataclass(frozen=True)
class TerminalTasks:
    """Task folders by name, and for those that are left out the reason."""

    tasks: Mapping[str, TerminalTask]
    left_out: Mapping[str, str]

    def without(self, more: Mapping[str, str]) -> TerminalTasks:
        """Return the tasks without those of `more`, which maps names to reasons."""
        kept = {name: task for name, task in self.tasks.items() if name not in more}
        return TerminalTasks(kept, {**self.left_out, **more})

    def task_list(self, config: TerminalConfig) -> TaskList:
        """Return the tasks in their splits, with their solutions.

        Raises:
            EchoError: no task remains, or none to train on; the message has the first reason for leaving one out.
        """
        if not self.tasks:
            first = next(iter(self.left_out.items()), None)
            why = "" if first is None else f": {escape_unprintable(first[0])} {first[1]}"
            raise EchoError(
                f"no terminal task of {escape_unprintable(config.place)} can be played{why}",
                "choose another environment.terminal.runtime, or install what the tasks need",
            )
        items = tuple(_item(task) for task in self.tasks.values())
        found = load_tasks(TasksConfig(items=items, validation=config.validation, heldout=config.heldout))
        splits = TaskSplits(*(tuple(map(self._capped, split)) for split in found.splits.by_name.values()))
        return replace(
            found,
            splits=splits,
            ood=tuple(map(self._capped, found.ood)),
            other_world=tuple(map(self._capped, found.other_world)),
        )

    def notices(self) -> tuple[str, ...]:
        """Return a line with the number of tasks that are left out, and a line for each reason, frequent ones first.

        Rare reasons share a line if there are many.
        """
        if not self.left_out:
            return ()
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            by_reason.setdefault(reason, []).append(name)
        total = len(self.left_out) + len(self.tasks)
        lines = [f"warning: {counted(len(self.left_out), 'terminal task')} of {total} left out"]
        frequent = sorted(by_reason.items(), key=lambda item: -len(item[1]))
        for reason, names in frequent[:_MOST_REASONS]:
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            lines.append(escape_unprintable(f"left out: {', '.join(names[:_MOST_NAMES])}{more}: {reason}"))
        if rest := frequent[_MOST_REASONS:]:
            lines.append(f"left out: {sum(len(names) for _, names in rest)} more, for {len(rest)} other reasons")
        return tuple(lines)

    def _capped(self, task: Task) -> Task:
        return replace(task, max_turns=self.tasks[task.reset_arguments["task"]].limits.max_turns)


def load_terminal_tasks(config: TerminalConfig, *, may_fetch: bool = False) -> TerminalTasks:
    """Read the task folders of a config; none of their scripts runs.

    Args:
        may_fetch: whether to fetch a git repository that this machine does not have yet.

    Raises:
        EchoError: there is no task folder, one cannot be read, or a repository cannot be fetched (exit code 1).
    """
    if config.git is not None:
        root = _checkout(config.git, may_fetch)
    else:
        root = shipped_tasks() if config.folder == SHIPPED else Path(str(config.folder))
    if not root.is_dir():
        raise EchoError(
            f"the folder of terminal tasks {escape_unprintable(root)} does not exist",
            "set environment.terminal.folder to a folder with task folders, or to one of them",
        )
    folders = list(_task_folders(root))
    if not folders:
        raise EchoError(
            f"no task folder below {escape_unprintable(root)}",
            "a task folder has task.toml, instruction.md and tests/test.sh",
        )
    tasks: dict[str, TerminalTask] = {}
    for folder in folders:
        if (task := read_task(folder, folder.name)).name in tasks:
            both = f"{escape_unprintable(tasks[task.name].folder)} and {escape_unprintable(folder)}"
            raise EchoError(f"two task folders have the same name: {both}", "rename one: the name is the task's id")
        tasks[task.name] = task
    of_family = {name: task for name, task in tasks.items() if not config.families or task.family in config.families}
    if not of_family:
        known = ", ".join(sorted({task.family for task in tasks.values()}))
        raise EchoError(f"no terminal task of the families {list(config.families)}", f"the families are {known}")
    reasons = {name: reason for name, task in of_family.items() if (reason := missing_of(task, config)) is not None}
    return TerminalTasks(of_family, {}).without(reasons)


def _item(task: TerminalTask) -> dict[str, Any]:
    item = {"reset": {"task": task.name}, "id": task.name, "family": task.family}
    lines = expert_lines(task.script(SOLUTION))
    return {
        **item,
        **({"split": task.split} if task.split is not None else {}),
        **({"actions": list(lines)} if lines else {}),
    }


def _task_folders(root: Path) -> Iterator[Path]:
    """Yield the folders with a `task.toml`, sorted, at most six levels down; hidden ones and links are skipped."""
    if (root / "task.toml").is_file():
        yield root
        return
    for path, names, files in os.walk(root):
        depth = len(Path(path).relative_to(root).parts)
        if "task.toml" in files:
            yield Path(path)
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith(".") and depth < _DEPTH)


def _checkout(git: GitTasks, may_fetch: bool) -> Path:
    """Return the folder of the tasks in this machine's copy of a repository.

    Raises:
        EchoError: there is no copy, and none may be fetched; or git fails (exit code 1).
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "echo-cli" / "tasks"
    target = cache / f"{hashlib.sha256(git.url.encode()).hexdigest()[:16]}-{git.revision}"
    if not target.is_dir():
        if not may_fetch:
            raise EchoError(
                f"{escape_unprintable(git.url)} at {git.revision[:12]} is not on this machine",
                "fetch it with `echo-cli env check`",
            )
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as folder:
            copy = Path(folder) / "copy"
            _git("clone", "--quiet", "--no-checkout", "--", git.url, str(copy))
            _git("-C", str(copy), "checkout", "--quiet", "--detach", git.revision)
            if not target.is_dir():  # another run may have been faster
                copy.rename(target)
    inside = (target / git.path).resolve()
    if not inside.is_relative_to(target.resolve()):
        raise EchoError(f"environment.terminal.git.path {escape_unprintable(git.path)} leaves the repository", "fix it")
    return inside


def _git(*words: str) -> None:
    environ = {name: os.environ[name] for name in _GIT_VARIABLES if name in os.environ}
    environ |= {**inherited(os.environ), "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", *words],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_FETCH_SECONDS,
        )
    except FileNotFoundError:
        raise EchoError("git is not installed", "install it, or set environment.terminal.folder") from None
    except subprocess.TimeoutExpired:
        raise EchoError(f"git has not finished after {_FETCH_SECONDS:g} s", "check the address", exit_code=1) from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise EchoError(
            f"git cannot fetch the terminal tasks: {escape_unprintable(said[-1])}",
            "check environment.terminal.git: url and revision",
            exit_code=1,
        )
