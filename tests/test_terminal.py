"""Everything that a command prints goes through one printer, which escapes what a terminal would obey."""

from __future__ import annotations

import ast
import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys
import traceback
import unicodedata
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.color import ColorSystem
from rich.style import Style
from rich.text import Text
from tiny_run import TINY

import echo_cli
from echo_cli.cli.display.tables import new_console, new_table, print_table, styled
from echo_cli.config.loader import find_config, load_config
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


# --- All commands on a terminal --------------------------------------------------------------------------------------

_RUN_ALL = """
import json, sys
from echo_cli.cli.main import main
for words in json.load(open(sys.argv[1])):
    code = main(words)
    sys.stderr.write(f"[{words[0]!a} ended with {code}]\\n")
"""
# What rich writes for colours, the cursor and the live display.
_OURS = re.compile(r"\x1b\[(?:[0-9;]*m|[0-9]*[AK]|2K|\?25[lh])")


def _tainted(value: Any, keys: set[str] | None, key: str = "") -> Any:
    """Return a JSON value with `HOSTILE` at the end of each text, or of those under `keys`."""
    if isinstance(value, dict):
        return {name: _tainted(inner, keys, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_tainted(inner, keys, key) for inner in value]
    if not isinstance(value, str) or (keys is not None and key not in keys):
        return value
    return value + HOSTILE + ("\ud800" if keys is None else "")  # a trajectory file with a surrogate is refused


def _taint(folder: Path, keys: set[str] | None) -> None:
    """Rewrite the JSON files in `folder` with hostile texts."""
    for path in [*folder.glob("*.json"), *folder.glob("*.jsonl")]:
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        values = [_tainted(json.loads(line), keys) for line in lines]
        kept = [
            {**value, "format": json.loads(line)["format"]} if "format" in value else value
            for value, line in zip(values, lines, strict=True)
        ]
        path.write_text("".join(f"{json.dumps(value)}\n" for value in kept))


def _commands(finished: Path, folder: Path) -> list[list[str]]:
    """Return command lines on runs, a pool, traces and configs that are hostile in every text."""
    free = {"task_id", "command", "output", "text", "family", "argv", "git_commit", "reason", "group_id", "channel"}
    every, some = folder / f"every{HOSTILE}", folder / f"some{HOSTILE}"
    for run, keys in ((every, None), (some, free)):
        shutil.copytree(finished, run)
        _taint(run, keys)
    config = folder / "hostile.yaml"
    values = json.loads(load_config(find_config("toy")).model_dump_json())
    config.write_text(yaml.safe_dump(_tainted(values, None)))
    traces = folder / f"traces{HOSTILE}.jsonl"
    traces.write_text(json.dumps(_tainted({"messages": [{"role": "user", "content": "x"}]}, None)) + "\n")
    out = str(folder / "out.png")
    lines = [
        ["train", "--dry-run", *TINY, "--output-dir", str(folder / HOSTILE), f"model.path=tiny-base{HOSTILE}"],
        ["train", "--dry-run", *TINY, "--output-dir", str(folder / HOSTILE)],
        ["train", "--steps", "1", *TINY, "--output-dir", str(folder / HOSTILE), "--run-name", "r"],
        ["sweep-lambda", "0", "1", "--dry-run", *TINY, "--output-dir", str(folder / HOSTILE)],
        ["train", "--dry-run", "--config", str(config)],
        ["train", HOSTILE, f"--{HOSTILE}"],
        [HOSTILE],
        ["env", "check", str(config)],
        ["pool", "show", str(every)],
        ["traces", "import", "openai", str(traces), "-o", str(folder / "t.jsonl"), "--skip-bad"],
        ["traces", "import", HOSTILE, str(traces), "-o", "-"],
        ["shell-hook", HOSTILE],
    ]
    for run in map(str, (every, some)):
        lines += [
            ["inspect", run, "--training"],
            ["inspect", run, "--training", "--episode", "1"],
            ["plot", run, "-o", out],
        ]
        lines += [["export", run, "-o", str(folder / "model"), "--checkpoint", HOSTILE], ["dream", run, "--list-tasks"]]
        lines += [["report", run, "--episodes", "0", "-o", str(folder / "page.html")]]
        lines += [["eval-heldout", run, "--rollouts", "0", "--command", HOSTILE]]
        lines += [["traces", "export", run, "--to", "echo", "-o", "-"]]
    return lines


@pytest.mark.slow
def test_no_command_writes_a_raw_escape_to_a_terminal(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "commands.json").write_text(json.dumps(_commands(finished, tmp_path)))
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "PYTHONPATH": str(PACKAGE.parent)}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN_ALL, str(tmp_path / "commands.json")],
        **{"stdin": subprocess.DEVNULL, "stdout": theirs, "stderr": theirs, "env": environment, "cwd": tmp_path},
    )
    os.close(theirs)
    blocks = []
    with suppress(OSError):  # Linux's error after the other end is closed
        while block := os.read(ours, 65536):
            blocks.append(block)
    os.close(ours)
    shown = b"".join(blocks).decode().replace("\r\n", "\n")
    assert process.wait() == 0, shown[-3000:]
    assert "Traceback" not in shown and shown.count(MARK) > 30
    assert shown.count("['inspect' ended with 0]") >= 2
    assert "\x1b[5m" not in shown  # blinking is never ours
    plain = _OURS.sub("", shown).replace("\r", "")
    assert not _dangerous(plain)
    assert not re.search(rf"^(error: )?{MARK}", plain, re.MULTILINE)
