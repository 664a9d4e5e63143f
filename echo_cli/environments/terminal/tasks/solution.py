"""A task's `solution/solve.sh` as the actions of an expert: one complete command each, on one line."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

from echo_cli.environments.terminal.quoting import quoted

_PLAIN = re.compile(r"[\w./ =:,@%+-]+")
_KEYWORDS = ("if", "for", "while", "until", "case", "select", "function", "do", "then", "else", "elif", "fi", "done")
_OMITTED = re.compile(r"\s*(?:#.*|set [-+][\w ]+|exit(?: \d+)?)?\s*")
_OF_THE_FOLDER = re.compile(r"/solution\b|\$\{?(?:0\b|BASH_SOURCE)|\$[1-9@*#]|\bdirname\b")
_LITERAL = re.compile(r"'[^'\n]*'")
_MOST_CHECKS = 100
"""Maximum number of runs of `bash -n` for one script; a script that needs more is no expert."""

END = "exit"
"""Line that ends an episode."""


def expert_lines(script: str) -> tuple[str, ...]:
    """Return the commands of a script, with `exit` as the last; none if it cannot be typed line by line.

    Comments, `set` of the shell's options and `exit` are omitted. A command of several lines becomes an `eval` of its
    quoted text. A script that uses other files of its own folder, or its own arguments, cannot be typed.
    """
    if _OF_THE_FOLDER.search(_LITERAL.sub("", script)):
        return ()
    try:
        commands = list(_commands(script))
    except ValueError:
        return ()
    lines = [f"eval {quoted(command)}" if "\n" in command else command for command in commands]
    return (*lines, END) if lines else ()


def _commands(script: str) -> Iterator[str]:
    """Yield the complete commands of a script.

    Raises:
        ValueError: it ends within a command, or is too long to be taken apart.
    """
    pending, checks = "", 0
    for line in script.splitlines():
        if not pending and _OMITTED.fullmatch(line):
            continue
        pending += line if not pending else f"\n{line}"
        if "\n" not in pending and _PLAIN.fullmatch(line) and line.split()[0] not in _KEYWORDS:
            yield pending.strip()
            pending = ""
            continue
        checks += 1
        if checks > _MOST_CHECKS:
            raise ValueError("too long")
        if _is_complete(pending):
            yield pending.strip("\n")
            pending = ""
    if pending:
        raise ValueError("incomplete")


def _is_complete(text: str) -> bool:
    """Return whether bash parses `text` as complete commands; nothing of it runs."""
    if text.endswith("\\"):
        return False
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-n"],
        input=text + "\n",
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode == 0 and "here-document" not in done.stderr
