"""Checkpoints of a run: `checkpoints/step_000060/`, complete and verified or not there, with `latest` and `best`.

A checkpoint is written under a temporary name, fsynced and renamed. Its meta.json has size and SHA-256 of every file.
`latest` and `best` are one-line text files with a folder's name; `latest` is for people and scripts: the newest
checkpoint is always the highest step there is, so that removing a damaged one is all it takes to go on.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.files import TEMPORARY, Row, delete, fsync, os_errors, read_json, sha256_of, write_atomic, write_json
from echo_cli.text import escape_unprintable

_FORMAT = "echo-cli checkpoint 1"
_REPLACED = ".old-"


@dataclass(frozen=True)
class Checkpoints:
    """The `checkpoints` folder of a run; it need not exist before the first `save`."""

    path: Path

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; not verified."""
        if not self.path.is_dir():
            return []
        names = (re.fullmatch(r"step_(\d{6,})", entry.name) for entry in self.path.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def save(self, step: int, write: Callable[[Path], None], meta: Mapping[str, Any]) -> Path:
        """Save the state after `step`: `write` fills an empty folder, which is renamed once it is on disk.

        Args:
            meta: JSON values, given back by `load`.

        Returns:
            The checkpoint's folder.

        Raises:
            EchoError: the disk is full (exit code 1) or the folder is not writable.
        """
        final = self._folder(step)
        temporary, replaced = final.with_name(TEMPORARY + final.name), final.with_name(_REPLACED + final.name)
        with os_errors(final):
            self.path.mkdir(exist_ok=True)
            self.recover()
            temporary.mkdir()
            try:
                write(temporary)
                _seal(temporary, step, meta)
            except BaseException as error:
                full = shutil.disk_usage(self.path).free < 2**20
                delete(temporary)
                if full and isinstance(error, Exception):
                    # safetensors and torch.save report a full disk with error types of their own.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise
            if final.exists():
                final.rename(replaced)
            temporary.rename(final)
            fsync(self.path)
            delete(replaced)
            self._write_latest()
        return final

    def load(self, which: str | int = "latest") -> tuple[Path, Row]:
        """The folder and the `meta` of a checkpoint, once size and SHA-256 of its files are verified.

        Args:
            which: "latest" (the highest step), "best" or a step.

        Raises:
            EchoError: there is none, or it is damaged or foreign; the tip names an intact one where there is one.
        """
        step = self._resolve(which)
        problem, meta = _verify(self._folder(step), step)
        if problem is None:
            return self._folder(step), meta
        others = [other for other in reversed(self.steps()) if other != step]
        intact = next((other for other in others if _verify(self._folder(other), other)[0] is None), None)
        if intact is None:
            tip = "no other checkpoint of the run is intact: start again with --overwrite, or another --run-name"
        elif which == "latest":
            tip = (
                f"the one of step {intact} is intact: remove {escape_unprintable(self._folder(step))} and run the "
                "command again"
            )
        else:
            tip = f"the one of step {intact} is intact"
        raise EchoError(f"checkpoint {escape_unprintable(self._folder(step))} is damaged: {problem}", tip, exit_code=1)

    def mark_best(self, step: int) -> None:
        """Point `best` at the checkpoint of `step`.

        Raises:
            ValueError: there is no such checkpoint.
            EchoError: the pointer cannot be written.
        """
        if step not in self.steps():
            raise ValueError(f"no checkpoint of step {step} to mark as best")
        write_atomic(self.path / "best", f"{self._folder(step).name}\n".encode())

    def best_step(self) -> int | None:
        """The step that `best` points at; None where nothing is marked or that checkpoint is gone."""
        pointer = self.path / "best"
        if not pointer.is_file():
            return None
        name = pointer.read_bytes().strip()
        return next((step for step in self.steps() if self._folder(step).name.encode() == name), None)

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` checkpoints and the best one.

        Raises:
            ValueError: `keep` is below 1.
            EchoError: a folder cannot be removed.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        best = self.best_step()
        for step in self.steps()[:-keep]:
            if step != best:
                self._remove(step)

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints above `step`, and `best` if it was one of them.

        Raises:
            EchoError: a folder cannot be removed.
        """
        for later in self.steps():
            if later > step:
                self._remove(later)
        self._write_latest()
        if self.best_step() is None:
            with os_errors(self.path):
                delete(self.path / "best")

    def recover(self) -> None:
        """Clear what a killed writer left: unfinished folders go, a checkpoint about to be replaced comes back.

        Raises:
            EchoError: a folder cannot be removed.
        """
        with os_errors(self.path):
            for replaced in self.path.glob(f"{_REPLACED}*"):
                final = replaced.with_name(replaced.name.removeprefix(_REPLACED))
                if final.exists():
                    delete(replaced)
                else:
                    replaced.rename(final)
            for unfinished in self.path.glob(f"{TEMPORARY}*"):
                delete(unfinished)

    def _folder(self, step: int) -> Path:
        return self.path / f"step_{step:06d}"

    def _resolve(self, which: str | int) -> int:
        steps, run = self.steps(), escape_unprintable(self.path.parent)
        if not steps:
            again = "start again with --overwrite, or another --run-name"
            tip = f"it was copied without them, or stopped before its first one: {again}"
            raise EchoError(f"{run} has no checkpoint", tip)
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = self.best_step()
            if best is None:
                raise EchoError(f"{run} has no best checkpoint", f"the latest is that of step {steps[-1]}")
            return best
        if which not in steps:
            there = ", ".join(map(str, steps))
            raise EchoError(f"{run} has no checkpoint of step {which}", f"there are those of steps {there}")
        return int(which)

    def _remove(self, step: int) -> None:
        folder = self._folder(step)
        doomed = folder.with_name(TEMPORARY + folder.name)
        with os_errors(folder):
            folder.rename(doomed)  # first: a half-deleted folder must not keep a final name
            delete(doomed)

    def _write_latest(self) -> None:
        steps = self.steps()
        if steps:
            write_atomic(self.path / "latest", f"{self._folder(steps[-1]).name}\n".encode())


def _seal(folder: Path, step: int, meta: Mapping[str, Any]) -> None:
    """Record size and hash of every file in meta.json, and bring it all to disk."""
    entries = sorted(folder.rglob("*"))
    files = {
        entry.relative_to(folder).as_posix(): {"bytes": entry.stat().st_size, "sha256": sha256_of(entry)}
        for entry in entries
        if entry.is_file()
    }
    for entry in entries:
        fsync(entry)
    write_json(folder / "meta.json", {"format": _FORMAT, "step": step, "files": files, "meta": meta})


def _verify(folder: Path, step: int) -> tuple[str | None, Row]:
    """What is wrong with a checkpoint (None: it is intact), and its `meta`."""
    if not (folder / "meta.json").is_file():
        return "it has no meta.json", {}
    try:
        record = read_json(folder / "meta.json")
    except EchoError:
        return "its meta.json is not a JSON object", {}
    if record.get("format") != _FORMAT:
        return f"its format is {escape_unprintable(repr(record.get('format')))}, this version reads {_FORMAT!r}", {}
    files, meta = record.get("files"), record.get("meta")
    if record.get("step") != step or not isinstance(files, dict) or not isinstance(meta, dict):
        return "its meta.json is not that of this checkpoint", {}
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            return f"{escape_unprintable(name)} is missing", {}
        if not isinstance(expected, dict) or file.stat().st_size != expected.get("bytes"):
            return (
                f"{escape_unprintable(name)} does not have the size it was saved with ({file.stat().st_size} "
                "bytes now)",
                {},
            )
        if sha256_of(file) != expected.get("sha256"):
            return f"{escape_unprintable(name)} does not have the content it was saved with", {}
    return None, meta
