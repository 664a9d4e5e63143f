"""Checkpoints of a run: folders such as `checkpoints/step_000060/`, and the pointers `latest` and `best`.

A checkpoint is written under a temporary name, fsynced and renamed, so it is complete or absent. Its meta.json has the
size and SHA-256 of every file. `latest` and `best` are one-line text files with a folder's name. `latest` is for people
and scripts; echo-cli uses the highest step, so a run can be resumed after a damaged checkpoint's folder is deleted.
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
from echo_cli.files import (
    TEMPORARY,
    Row,
    delete,
    fsync,
    os_errors,
    read_json,
    sha256_of,
    unfinished_beside,
    write_atomic,
    write_json,
)
from echo_cli.runs.provenance import again_tip
from echo_cli.symlinks import make_folder
from echo_cli.text import escape_unprintable

_FORMAT = "echo-cli checkpoint 1"
_REPLACED = ".old-"


@dataclass(frozen=True)
class Checkpoints:
    """The `checkpoints` folder of a run, created by the first `save`."""

    path: Path

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in increasing order, without verification."""
        if not self.path.is_dir():
            return []
        names = (re.fullmatch(r"step_(\d{6,})", entry.name) for entry in self.path.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def save(self, step: int, write: Callable[[Path], None], meta: Mapping[str, Any]) -> Path:
        """Save the state after `step`: `write` fills an empty folder, which is renamed once it is on disk.

        Args:
            meta: JSON values, which `load` returns.

        Returns:
            The checkpoint's folder.

        Raises:
            EchoError: the disk is full (exit code 1) or the folder is not writable.
        """
        final = self._folder(step)
        temporary, replaced = unfinished_beside(final), final.with_name(_REPLACED + final.name)
        with os_errors(final):
            make_folder(self.path)
            self.recover()
            temporary.mkdir()
            try:
                write(temporary)
                _seal(temporary, step, meta)
            except BaseException as error:
                full = shutil.disk_usage(self.path).free < 2**20
                delete(temporary)
                if full and isinstance(error, Exception):
                    # safetensors and torch.save report a full disk with their own error types.
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
        """Return the folder and the `meta` of a checkpoint, after verifying the size and SHA-256 of its files.

        Args:
            which: "latest" (the highest step), "best" or a step.

        Raises:
            EchoError: the checkpoint does not exist, is damaged, or has another format; the tip names an intact
                checkpoint, if any.
        """
        step = self._resolve(which)
        problem, meta = _verify(self._folder(step), step)
        if problem is None:
            return self._folder(step), meta
        others = [other for other in reversed(self.steps()) if other != step]
        intact = next((other for other in others if _verify(self._folder(other), other)[0] is None), None)
        if intact is None:
            tip = "the run has no other intact checkpoint: start again with --overwrite or another --run-name"
        elif which == "latest":
            tip = (
                f"the checkpoint of step {intact} is intact: delete {escape_unprintable(self._folder(step))} and run "
                "the command again"
            )
        else:
            tip = f"the checkpoint of step {intact} is intact"
        raise EchoError(f"checkpoint {escape_unprintable(self._folder(step))} is damaged: {problem}", tip, exit_code=1)

    def mark_best(self, step: int) -> None:
        """Point `best` at the checkpoint of `step`.

        Raises:
            ValueError: the checkpoint does not exist.
            EchoError: the pointer cannot be written.
        """
        if step not in self.steps():
            raise ValueError(f"no checkpoint of step {step} to mark as best")
        write_atomic(self.path / "best", f"{self._folder(step).name}\n".encode())

    def best_step(self) -> int | None:
        """Return the step that `best` points to; None if there is no mark or the checkpoint does not exist."""
        pointer = self.path / "best"
        if not pointer.is_file():
            return None
        name = pointer.read_bytes().strip()
        return next((step for step in self.steps() if self._folder(step).name.encode() == name), None)

    def prune(self, keep: int) -> None:
        """Delete all checkpoints except the newest `keep` and the best.

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
        """Delete the checkpoints above `step`, and the pointer `best` if its checkpoint is deleted.

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
        """Clean up after a killed writer: delete unfinished folders, restore a checkpoint that was being replaced.

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
            raise EchoError(f"{run} has no checkpoint", again_tip(self.path.parent, "saved a checkpoint"))
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = self.best_step()
            if best is None:
                raise EchoError(f"{run} has no best checkpoint", f"use the latest checkpoint (step {steps[-1]})")
            return best
        if which not in steps:
            there = ", ".join(map(str, steps))
            raise EchoError(f"{run} has no checkpoint of step {which}", f"steps with checkpoints: {there}")
        return int(which)

    def _remove(self, step: int) -> None:
        folder = self._folder(step)
        doomed = unfinished_beside(folder)
        with os_errors(folder):
            folder.rename(doomed)  # before deletion: a partially deleted folder must not keep its final name
            delete(doomed)

    def _write_latest(self) -> None:
        steps = self.steps()
        if steps:
            write_atomic(self.path / "latest", f"{self._folder(steps[-1]).name}\n".encode())


def check_meta(folder: Path, meta: Row) -> Row:
    """Return the meta of a run's checkpoint, whose values resuming and measuring use as numbers.

    Raises:
        EchoError: a value is missing or has another type.
    """
    norms = meta.get("gradient_norms", {})
    numbers = [meta.get("seconds", 0.0), *(norms.values() if isinstance(norms, dict) else [None])]
    known = isinstance(norms, dict) and norms.keys() <= {"rl", "env"} and type(meta.get("step")) is int
    numeric = all(isinstance(number, (int, float)) and abs(number) < 1e18 for number in numbers)
    if not known or not numeric or not isinstance(meta.get("unrecorded", {}), dict):
        tip = "restore the folder from its source, or choose another checkpoint"
        raise EchoError(f"{escape_unprintable(folder / 'meta.json')} is not the record of a run", tip, exit_code=1)
    return meta


def _seal(folder: Path, step: int, meta: Mapping[str, Any]) -> None:
    """Record the size and SHA-256 of every file in meta.json, and fsync everything."""
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
    """Return the problem of a checkpoint (None if it is intact) and its `meta`."""
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
        return "its meta.json does not match this checkpoint", {}
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
        return "its meta.json lists a file outside the checkpoint", {}
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            return f"{escape_unprintable(name)} is missing", {}
        if not isinstance(expected, dict) or file.stat().st_size != expected.get("bytes"):
            return (
                f"{escape_unprintable(name)} does not have its saved size (it is {file.stat().st_size} bytes)",
                {},
            )
        if sha256_of(file) != expected.get("sha256"):
            return f"{escape_unprintable(name)} does not have its saved content", {}
    return None, meta
