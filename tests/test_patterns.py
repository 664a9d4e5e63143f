"""Every shipped regular expression takes linear time: no text of an environment, a model or a trace stalls a command.

Python's `re` backtracks, so a pattern such as `/\\S*/x` takes quadratic time on a line of slashes. Bad inputs are
derived from each pattern: its beginnings, repeated, and stretched where it repeats, before one that fits nothing.
"""

from __future__ import annotations

import ast
import importlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import echo_cli
from echo_cli.text import escape_unprintable
from echo_cli.traces.builder import ImportOptions
from echo_cli.traces.formats.harnesses import terminus
from echo_cli.traces.formats.terminals import terminal_line
from echo_cli.traces.inspection.outputs import PATTERNS, find_volatile

try:
    from re import _parser as regex_parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_parse as regex_parser

PACKAGE = Path(echo_cli.__file__).parent
ROOT = PACKAGE.parent
LENGTH = 50_000
"""Length of the worst inputs, characters."""
_NOTICEABLE = 0.1
"""Time on the worst input below which a pattern is not suspected, seconds of this process."""
_KEYS = {"pattern", "volatile", "drop", "split", "echo_omits", "drop_echo", "extract"}


# --- Bad inputs ------------------------------------------------------------------------------------------------------


def _member(items: list[Any]) -> str:
    """Return a character of a set."""
    tried = [*"a0 /.[-_\n:\t;", *map(chr, range(256))]
    pattern = regex_parser.SubPattern(regex_parser.State(), [(regex_parser.IN, items)])
    compiled = re._compiler.compile(pattern) if hasattr(re, "_compiler") else __import__("sre_compile").compile(pattern)
    return next((character for character in tried if compiled.fullmatch(character)), "a")


def _beginnings(parsed: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Yield beginnings of a text that matches, each with the part at its end that the pattern may repeat."""
    text = before
    for kind, value in parsed:
        name, repeated = str(kind), ""
        if name == "LITERAL":
            text += chr(value)
        elif name == "NOT_LITERAL":
            text += "a" if value != ord("a") else "b"
        elif name == "ANY":
            text += "a"
        elif name == "IN":
            text += _member(value)
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, inner = value
            yield from _beginnings(inner, text)
            *_, (one, _) = [("", ""), *_beginnings(inner)]
            repeated = one if high > low and high > 20 else ""
            text += one * max(low, 1)
        elif name == "SUBPATTERN":
            *_, (one, _) = [("", ""), *_beginnings(value[3])]
            yield from _beginnings(value[3], text)
            text += one
        elif name == "BRANCH":
            for branch in value[1]:
                yield from _beginnings(branch, text)
            *_, (one, _) = [("", ""), *_beginnings(value[1][0])]
            text += one
        elif name in ("ASSERT", "ATOMIC_GROUP"):
            inner = value[1] if name == "ASSERT" else value
            *_, (one, _) = [("", ""), *_beginnings(inner)]
            text += one if name != "ASSERT" or value[0] < 0 or not text.endswith(one) else ""
        yield text, repeated


def bad_inputs(pattern: str, length: int) -> Iterator[str]:
    """Yield texts of about `length` characters on which a backtracking match of `pattern` may be slow."""
    for start, repeated in dict.fromkeys(_beginnings(regex_parser.parse(pattern))):
        pieces = [start, f"{start}\n", *([repeated, start + repeated * 20] if repeated else ())]
        bodies = [piece * (length // len(piece) + 1) for piece in pieces if piece]
        bodies += [start + repeated * length] if repeated else []
        yield from (body[:length] + end for body in bodies for end in ("\0", "\n\0"))


def _seconds(run: Callable[[str], object], text: str, times: int = 1) -> float:
    found = []
    for _ in range(times):
        begin = time.process_time()
        run(text)
        found.append(time.process_time() - begin)
    return min(found)


def is_slow(run: Callable[[str], object], shorter: str, longer: str) -> bool:
    """Return whether `run` takes more than 8 times as long on a text that is 4 times as long; 16 times is quadratic."""
    if _seconds(run, shorter) < _NOTICEABLE / 16:
        return False
    return _seconds(run, longer) > max(_NOTICEABLE, 8 * _seconds(run, shorter, 3))


def _slow_inputs(pattern: str, *, anchored: bool = False, length: int = LENGTH) -> Iterator[str]:
    """Yield the bad inputs on which a pattern is slow; `anchored`: it is only matched at the start of a text."""
    compiled = re.compile(pattern)

    def run(text: str) -> object:
        return compiled.match(text) if anchored else [match.end() for match in compiled.finditer(text)]

    for shorter, longer in zip(bad_inputs(pattern, length // 4), bad_inputs(pattern, length), strict=True):
        if is_slow(run, shorter, longer):
            yield longer


# --- What is shipped -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shipped:
    """A pattern, the file that has it, and whether it is only matched at the start of a text."""

    pattern: str
    where: str
    anchored: bool = False


_CALLS = "re.match re.fullmatch re.search re.sub re.split re.findall re.finditer".split()
_AT_START = {"match", "fullmatch"}
_FLAGS = {re.VERBOSE: "x", re.DOTALL: "s", re.MULTILINE: "m", re.IGNORECASE: "i"}


def _of_code() -> Iterator[Shipped]:
    """Yield the patterns in the package: constant in a call of `re`, or compiled at the top of a module."""
    for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "envs").rglob("*.py")]):
        where, source = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in _CALLS and isinstance(node.args[0], ast.Constant):
                yield Shipped(node.args[0].value, where, called.removeprefix("re.") in _AT_START)
        if "re.compile(" in source and "import re\n" in source:
            package = "" if path.is_relative_to(PACKAGE) else "envs/"
            module = importlib.import_module(".".join(Path(where.removeprefix(package)).with_suffix("").parts))
            for name, found in vars(module).items():
                if isinstance(found, re.Pattern) and isinstance(found.pattern, str):
                    flags = "".join(letter for flag, letter in _FLAGS.items() if found.flags & flag)
                    used = set(re.findall(rf"\b{name}\.(\w+)\(", source)) or {"search"}
                    yield Shipped(f"(?{flags}){found.pattern}" if flags else found.pattern, where, used <= _AT_START)


def _of_configs() -> Iterator[Shipped]:
    def below(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name != "arguments":  # of a tool, which may call a glob a pattern
                    yield from below(inner, name)
        elif isinstance(value, list):
            for inner in value:
                yield from below(inner, key)
        elif isinstance(value, str) and key in _KEYS:
            yield key, value.replace("{action}", r"go\ on")

    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        for key, pattern in below(yaml.safe_load(path.read_text(encoding="utf-8"))):
            yield Shipped(pattern, path.relative_to(ROOT).as_posix(), key == "drop_echo")


def shipped() -> list[Shipped]:
    """Return every shipped pattern once."""
    found = [*_of_code(), *_of_configs(), *(Shipped(pattern, "traces/inspection") for pattern in PATTERNS.values())]
    return list({(each.pattern, each.anchored): each for each in found}.values())


def test_all_shipped_patterns_take_linear_time() -> None:
    found = shipped()
    assert len(found) > 80 and any("sandbox-" in each.pattern for each in found)
    slow = {
        f"{each.where}: {each.pattern}": next(_slow_inputs(each.pattern, anchored=each.anchored), "")[:80]
        for each in found
    }
    assert {pattern: text for pattern, text in slow.items() if text} == {}


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        (r"/\S*/sandbox-\w+", 12_000),
        (r"invalid move\. [^\n]*\Z", LENGTH),
        (r"(?<=are: )\[[^\]\n]*\]", LENGTH),
        (r"(?m)^Trace:\n(?:[\s\S]*\n)?  File", 25_000),
        (r"answer:? +(.*)\Z", 12_000),
    ],
)
def test_a_quadratic_pattern_would_be_found(pattern: str, length: int) -> None:
    assert next(_slow_inputs(pattern, length=length), None)


_PARSERS: dict[str, Callable[[str], object]] = {
    "shown": terminal_line.shown,
    "typed": terminal_line.typed,
    "prompts": lambda text: terminal_line.prompts(text, r"\$ "),
    "terminus": lambda text: terminus.terminal_text(text, ImportOptions()),
    "volatile": find_volatile,
    "escaped": escape_unprintable,
}
_TIMED_OUT = "Previous command:\nx\n\nThe previous command timed out after 1 second\n"
_PIECES = ("\x1b[", "\x1b[4096@", "\x1b[4096Dx", "\x1b[P", "\x1b]", "\x1bP", "\b", "\r", "$ ", "\r\n", "a", _TIMED_OUT)


@pytest.mark.parametrize("parser", _PARSERS)
def test_parsers_of_terminal_text_take_linear_time(parser: str) -> None:
    run = _PARSERS[parser]
    for piece in _PIECES:
        longer = piece * (LENGTH // len(piece))
        assert not is_slow(run, longer[: LENGTH // 4], longer), repr(piece)


def test_inserted_spaces_take_no_more_room_than_the_text() -> None:
    assert len(terminal_line.typed("\x1b[4096@" * 1000)) <= 7000
    assert terminal_line.typed("bc\x1b[2D\x1b[1@a") == "abc"
