"""Provenance of a run: versions, git commit, device, command line."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from echo_cli.config.section import hide_secret
from echo_cli.errors import EchoError
from echo_cli.files import Row, read_json
from echo_cli.processes import inherited
from echo_cli.text import escape_unprintable

_VERSIONED = ("torch", "numpy", "tokenizers", "safetensors", "transformers", "peft", "pydantic", "echo-cli")


def environment_record(seed: int, argv: Sequence[str], device: str, threads: int) -> Row:
    """Return the record for environment.json: the conditions, besides the config, on which a result depends.

    The record has no host name, user name, absolute path or secret: paths in `argv` are reduced to their last part.
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {package: _version(package) for package in _VERSIONED},
        "git_commit": git_commit(),
        "device": device,
        "threads": threads,
        "seed": seed,
        "argv": [*(Path(word).name for word in argv[:1]), *map(_without_folder, map(hide_secret, argv[1:]))],
    }


def code_record() -> list[str]:
    """Return which code this process runs, in words that are equal for equal code."""
    return [f"commit {git_commit()}", *(f"{package} {_version(package)}" for package in ("echo-cli", "torch"))]


def read_record(run: Path) -> Row:
    """Read the environment.json of a run; empty if it has none.

    Raises:
        EchoError: the file is not a JSON object, or its versions or command line have another type.
    """
    path = run / "environment.json"
    record = read_json(path) if path.is_file() else {}
    argv, versions = record.get("argv", []), record.get("versions", {})
    if not isinstance(versions, dict) or not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        tip = "the file was changed or damaged after it was written"
        raise EchoError(f"{escape_unprintable(path)} is not the record of a run", tip)
    return record


def again_tip(run: Path, undone: str) -> str:
    """Return how to get what the directory of a run lacks: train again, elsewhere if the run had finished.

    Args:
        undone: what a run without a summary has not done yet.
    """
    argv = read_record(run).get("argv")
    if (run / "summary.json").is_file() and argv:
        return f"it was copied without some of its files; this trains it again: {shlex.join(argv)}"
    return f"it has not {undone} yet; if it was stopped, start again with --overwrite or another --run-name"


def _without_folder(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name if value.startswith(('/', '~')) else value}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of this checkout, with `-dirty` if files changed; None if it is not a git repository's root."""
    checkout = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        environ = inherited(os.environ)
        return subprocess.run(
            command, env=environ, capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()

    try:
        # In a virtual environment inside another repository, git would report that repository's commit.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
