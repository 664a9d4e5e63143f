"""The folder of an episode: its files before the episode, and the name under which the policy knows it.

The real path differs from episode to episode, so no policy could predict it. Calls and answers have `/workdir` in its
place.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

PLACEHOLDER = "{workdir}"
"""Text in the server's command and variables that stands for the folder's path."""

SHOWN = "/workdir"
"""Path of the folder in calls and answers."""


class Workdir:
    """A new, empty temporary folder."""

    def __init__(self) -> None:
        self.path = os.path.realpath(tempfile.mkdtemp(prefix="echo-mcp-"))

    def write(self, files: Mapping[str, str]) -> None:
        """Write text files, whose paths are relative to the folder."""
        for name, text in files.items():
            path = Path(self.path, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def fill(self, template: str) -> str:
        """Return `template` with the folder's path in place of `{workdir}`."""
        return template.replace(PLACEHOLDER, self.path)

    def inward(self, value: Any) -> Any:
        """Return the JSON value of a call as the server gets it."""
        return _replaced(value, SHOWN, self.path)

    def outward(self, value: Any) -> Any:
        """Return the JSON value of an answer as the policy gets it."""
        return _replaced(value, self.path, SHOWN)

    def remove(self) -> None:
        """Remove the folder and everything in it, as far as the file system allows."""
        rmtree(self.path, ignore_errors=True)


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key: _replaced(entry, old, new) for key, entry in value.items()}
    return [_replaced(entry, old, new) for entry in value] if isinstance(value, list) else value
