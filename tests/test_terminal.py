"""Everything that a command prints goes through one printer, which escapes what a terminal would obey."""

from __future__ import annotations

import ast
import logging
import re
import sys
import traceback
import unicodedata
import warnings
from pathlib import Path

import pytest
from rich.color import ColorSystem
from rich.style import Style
from rich.text import Text

import echo_cli
from echo_cli.cli.display.tables import new_console, new_table, print_table, styled
from echo_cli.terminal import guarded_streams, joined, put, show_warning

PACKAGE = Path(echo_cli.__file__).parent

# A window title, CSI with a C1 byte, a blinking text, DEL, bidi overrides, separators, zero width, a backspace, a
# carriage return, and a line that would pass for one of ours. A lone surrogate is added where the file format has any.
HOSTILE = "\x1b]0;T\x07\x9b2J\x1b[5m\x7f\u202e\u2066\u2028\u2029\x85\u200b\x08\r\nerror: FORGED"
MARK = "FORGED"


def _dangerous(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}} - {"\n"}


# --- One printer -----------------------------------------------------------------------------------------------------


_WRITERS = re.compile(
    r"print|input|breakpoint|pprint|Console|(.*\.)?s?echo|rich\.print|traceback\.print_\w+|warnings\.warn"
    r"|logging\.basicConfig|sys\.(__)?std(out|err)(__)?(\.buffer)?\.write(lines)?"
)


def _prints(node: ast.Call) -> bool:
    """Return whether a call writes to stdout or stderr."""
    called = ast.unparse(node.func)
    if called in ("Live", "Progress"):
        return "console" not in {keyword.arg for keyword in node.keywords}
    if called == "os.write" and ast.unparse(node.args[0]) in ("1", "2"):
        return not isinstance(node.args[1], ast.Constant)
    return _WRITERS.fullmatch(called) is not None


def test_only_the_terminal_prints() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {ast.unparse(node)}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _prints(node) and path != PACKAGE / "terminal.py"
    }
    assert found == set()


def test_a_line_is_escaped_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    put(f"value: {HOSTILE}\ud800", "λ = 0,5 ü 日本 🚀", err=True)
    put()
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        r"value: \x1b]0;T\x07\x9b2J\x1b[5m\x7f\u202e\u2066\u2028\u2029\x85\u200b\x08\r\nerror: FORGED\ud800"
    )
    assert second == "λ = 0,5 ü 日本 🚀"


def test_only_our_own_styles_survive(capsys: pytest.CaptureFixture[str]) -> None:
    red = styled(f"a{HOSTILE}", Style(color="red"), ColorSystem.STANDARD)
    put(joined("plain \x1b[31m", red), red + "\x1b[0m")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(r"plain \x1b[31m" + "\x1b[31ma\\x1b]0;T") and first.endswith("FORGED\x1b[0m")
    assert "\x1b" not in second  # what was added to a styled text may be anything, so the sum is no longer styled


def test_a_table_shows_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = new_table("name", f"x{HOSTILE[:3]}")
    table.add_row(f"[link=http://localhost]{HOSTILE}[/link]", Text(HOSTILE))
    table.add_row("[bold]:rocket:", "1")
    print_table(table)
    new_console(err=True).print(f"[red]{HOSTILE}", soft_wrap=True)
    shown = capsys.readouterr()
    assert not _dangerous(shown.out + shown.err)
    assert "[link=http://localhost]" in shown.out and "[bold]:rocket:" in shown.out and "[red]" in shown.err
    assert not [line for line in shown.out.splitlines() if line.startswith("error:")]


def test_what_other_code_prints_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with guarded_streams():
        print(HOSTILE)
        sys.stdout.writelines([HOSTILE])
        print("a\tb")
        logging.getLogger("theirs").warning(HOSTILE)  # without a handler: logging's last resort
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            traceback.print_exc()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(HOSTILE, stacklevel=1)
        show_warning(HOSTILE, UserWarning, "file.py", 3)
    assert (sys.stdout, sys.stderr) == before
    shown = capsys.readouterr()
    assert not _dangerous(shown.out.replace("a\tb", "") + shown.err) and "a\tb" in shown.out
    assert [line for line in shown.err.splitlines() if line.startswith("file.py:3: UserWarning: ") and MARK in line]
    assert "ValueError" in shown.err
