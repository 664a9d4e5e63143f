"""The terminal: the one place where commands write text to stdout and stderr.

A terminal obeys escape sequences, and the text of a config, a run, a model or an environment may contain them. So
everything is escaped but the styles that commands choose themselves:

- `put` writes lines. A newline in a line is escaped too, so no value can pass for a line of its own.
- `display/tables.py` makes the console that renders tables and progress.
- Guarded streams escape what other code writes: libraries, tracebacks, environments in this process.

A result in bytes, such as a trajectory file on stdout, is written by `files.output_file`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from echo_cli.text import LINES, escape_unprintable


class Styled(str):
    """Text that is written as it is: the escape sequences in it are ours, and everything else is escaped."""

    __slots__ = ()


def joined(*parts: str) -> Styled:
    """Return one line made of `parts`; each is escaped, newlines included, unless it is `Styled`."""
    return Styled("".join(part if isinstance(part, Styled) else escape_unprintable(part) for part in parts))


def put(*lines: str, err: bool = False) -> None:
    """Write each of `lines`, escaped unless it is `Styled`, as one line on stdout or, with `err`, on stderr."""
    stream = unguarded(sys.stderr if err else sys.stdout)
    if stream is not None:  # None: closed by the parent process
        stream.write("".join(f"{joined(line)}\n" for line in lines))
        if err:
            stream.flush()


def ask(prompt: str, *, err: bool = False) -> str:
    """Write `prompt` on stdout or, with `err`, on stderr, and return the line that is typed.

    Raises:
        EOFError: stdin has ended.
    """
    if not err:
        return input(joined(prompt))
    if (stream := unguarded(sys.stderr)) is not None:
        stream.write(joined(prompt))
        stream.flush()
    return input()


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line on stderr; the parameters are those of `warnings.showwarning`."""
    put(f"{filename}:{lineno}: {category.__name__}: {message}", err=True)


class _Guard:
    """A text stream that escapes what is written to it, apart from newlines and tabs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write `text`, escaped, and return its length, characters."""
        if not isinstance(text, str):  # as text streams do; typer tells them from binary streams by it
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.stream.write(escape_unprintable(text, keep=LINES))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write `lines`, escaped."""
        for line in lines:
            self.write(line)


def guard_streams() -> None:
    """Escape what any code writes to stdout and stderr from now on."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Escape what any code writes to stdout and stderr while the block runs."""
    before = sys.stdout, sys.stderr
    guard_streams()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def unguarded(stream: TextIO) -> TextIO:
    """Return the stream behind a guard, for text that is escaped already."""
    return stream.stream if isinstance(stream, _Guard) else stream


def _guarded(stream: TextIO) -> TextIO:
    return stream if stream is None or isinstance(stream, _Guard) else cast("TextIO", _Guard(stream))
