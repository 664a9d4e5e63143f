"""A task's files, made by its Dockerfile's recipe: copied, and changed by its commands, which a given function runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from echo_cli.environments.terminal.tasks.dockerfile import HOME, Copy, NeedsDocker, Recipe, Run

_FILE_TIME = 1_700_000_000
"""Modification time of every file, seconds since 1970, so that `ls -l` prints the same in every episode."""


def make_files(recipe: Recipe, context: Path, root: Path, run: Callable[[Run], str | None]) -> None:
    """Make a task's files below `root`, which stands for /.

    Files are readable by all and writable by their owner, whatever the modes of the checkout are.

    Args:
        context: the folder from which the recipe copies.
        run: runs a command of the recipe, and returns why it failed, or None.

    Raises:
        NeedsDocker: a file that the recipe copies does not exist, or a command fails.
    """
    for folder in (*(f"/{name}" for name in recipe.roots), recipe.workdir, HOME):
        inside(root, folder).mkdir(parents=True, exist_ok=True)
    for step in recipe.steps:
        if isinstance(step, Copy):
            _copy(step, context, root)
        else:
            inside(root, step.workdir).mkdir(parents=True, exist_ok=True)
            if (why := run(step)) is not None:
                raise NeedsDocker(f"its Dockerfile's RUN {step.command[:60]} fails here: {why}")
    for path in _every(root):
        os.utime(path, (_FILE_TIME, _FILE_TIME), follow_symlinks=False)


def inside(root: Path, path: str) -> Path:
    """Return where the absolute path of a task lies below `root`."""
    return root / path.lstrip("/")


def size_of(folder: Path, most_files: int) -> tuple[int, int]:
    """Return the bytes on disk and the number of the files below a folder; counting stops after `most_files`."""
    size = count = 0
    for path in _every(folder):
        try:
            size += path.lstat().st_blocks * 512
        except OSError:  # it was removed meanwhile
            continue
        count += 1
        if count > most_files:
            break
    return size, count


def _copy(step: Copy, context: Path, root: Path) -> None:
    target = inside(root, step.target)
    for source in step.sources:
        pattern = source.strip("/") or "."
        found = [context] if pattern == "." else sorted(context.glob(pattern))
        if not found:
            raise NeedsDocker(f"its Dockerfile copies {source}, which is not in environment/")
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True, ignore=_ignored(path, context))
                copied = [target, *_every(target)]
            else:
                place = target / path.name if step.target.endswith("/") or target.is_dir() else target
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place, follow_symlinks=False)
                copied = [place]
            for each in copied:
                _set_mode(each, step.mode)


def _ignored(path: Path, context: Path) -> Callable[[str, list[str]], list[str]]:
    """Return a filter for `copytree` that leaves out the Dockerfile of a context that is copied whole."""

    def ignored(folder: str, names: list[str]) -> list[str]:
        whole = path == context and Path(folder) == context
        return [name for name in names if whole and name in ("Dockerfile", ".dockerignore")]

    return ignored


def _set_mode(path: Path, mode: int | None) -> None:
    if path.is_symlink():
        return
    is_open = path.is_dir() or path.stat().st_mode & 0o100
    path.chmod(mode if mode is not None and not path.is_dir() else 0o755 if is_open else 0o644)


def _every(folder: Path) -> Iterator[Path]:
    """Yield the files and folders below a folder; what cannot be read is skipped."""
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(path) / name
