"""The toy shell: the real tools' output for any line a person or a model may type, without touching the machine."""

from __future__ import annotations

import ast
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toy_terminal_env import shell
from toy_terminal_env.shell import MAX_COMMAND_CHARS, Result, run
from toy_terminal_env.world import generate_world

FILES = {
    **generate_world(0).files,
    "/odd/crlf.txt": "alpha\r\nbeta\r\n\r\n",
    "/odd/empty.txt": "",
    "/odd/open.txt": "one\ntwo two\nlast line has no newline",
    "/odd/marks.txt": "a.b\na*b\n[x]\n^start\nend$\nback\\slash\n\ntab\there\n",
    "/odd/separators.txt": "form\ffeed\nunit\x1fmark\nvertical\vtab\n",
}
PATHS = sorted(FILES)
FOLDERS = ["/", "/etc", "/odd", "/srv", "/var", "/var/log"]
MISSING = ["/etc/none.yaml", "/none", "/var/log/none/deeper", f"{PATHS[0]}/below", f"{PATHS[0]}/"]

real_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("ls", "cat", "head", "tail", "wc", "grep")) or sys.platform != "linux",
    reason="needs the GNU tools",
)


# --- Against the real tools ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for path, text in FILES.items():
        target = folder / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode())
    return folder


def really_run(root: Path, arguments: list[str]) -> Result:
    """Run the real tool in `root`: absolute operands are moved below it, and moved back in its output."""
    moved = [f"{root}{word}" if word.startswith("/") else word for word in arguments]
    done = subprocess.run(
        moved, cwd=root, env={**os.environ, "LC_ALL": "C"}, capture_output=True, stdin=subprocess.DEVNULL
    )
    stdout, stderr = (text.decode().replace(str(root), "") for text in (done.stdout, done.stderr))
    return Result(stdout, stderr, done.returncode)


def random_command(rng: random.Random) -> list[str]:
    """Return a random command of the shared subset, without the differences listed in the README."""
    name = rng.choice(["ls", "cat", "head", "tail", "wc", "grep", "grep", "grep"])
    paths = rng.sample(PATHS, rng.choice([1, 1, 1, 2, 3]))
    if rng.random() < 0.2:
        paths.insert(rng.randrange(len(paths) + 1), rng.choice(MISSING))
    if name == "ls":
        paths = sorted(rng.sample([*FOLDERS, *PATHS, *MISSING], rng.choice([1, 1, 2, 3])))
    elif len(paths) == 1 and name in ("cat", "head", "tail") and rng.random() < 0.1:
        paths = [rng.choice(FOLDERS[1:])]
    if rng.random() < 0.5:
        paths = [path[1:] or "." for path in paths]
        paths = sorted(paths) if name == "ls" else paths
    options: list[str] = []
    if name in ("head", "tail"):
        count = rng.randrange(1, 20)
        options = rng.choice([[], ["-n", str(count)], [f"-n{count}"]])
        if len(paths) == 1 and rng.random() < 0.2:  # the real tail takes -5 with one file only
            options = [f"-{count}"]
    elif name == "wc":
        options = rng.choice([[], ["-l"], ["-w"], ["-c"], ["-lc"], ["-c", "-l"]])
    elif name == "grep":
        flags = "".join(rng.sample("nciv" + rng.choice("hHlF"), rng.choice([0, 1, 1, 2, 3])))
        options = [f"-{flags}"] if flags else []
        text = rng.choice(list(FILES.values())).split("\n")
        words = [word for line in text for word in re.findall(r"\w+", line)]
        start = rng.choice(words or ["x"])
        options.append(
            rng.choice(
                [start, start[:2].upper(), f"^{start}", f"{start}$", f"{start[0]}.*{start[-1]}", "[0-9]*5", "x*", "a.b"]
            )
        )
    return [name, *options, *paths]


@real_tools
@pytest.mark.parametrize("seed", range(6))
def test_random_commands_print_what_the_real_tools_print(root: Path, seed: int) -> None:
    rng = random.Random(f"shell-{seed}")
    for _ in range(60):
        command = random_command(rng)
        ours, real = run(FILES, shlex.join(command)), really_run(root, command)
        if command[0] == "wc":  # the real tool pads its columns
            assert ours.stdout == "".join(" ".join(line.split()) + "\n" for line in real.stdout.splitlines()), command
            assert (ours.stderr, ours.exit_code) == (real.stderr, real.exit_code)
            continue
        assert ours == real, command


@real_tools
@pytest.mark.parametrize("name", ["head", "tail"])
@pytest.mark.parametrize("count", ["0", "1", "2", "3", "4", "1000", "999999999999"])
def test_the_ends_of_a_file(root: Path, name: str, count: str) -> None:
    for path in ("/odd/open.txt", "/odd/crlf.txt", "/odd/empty.txt"):
        assert run(FILES, f"{name} -n {count} {path}") == really_run(root, [name, "-n", count, path])


@real_tools
def test_recursive_grep_finds_the_same_lines_under_the_same_names(root: Path) -> None:
    for command in (["grep", "-rn", "INFO", "/var"], ["grep", "-r", "e", "etc"], ["grep", "-rc", "one", PATHS[0]]):
        ours, real = run(FILES, shlex.join(command)), really_run(root, command)
        assert sorted(ours.stdout.splitlines()) == sorted(real.stdout.splitlines())
        assert ours.exit_code == real.exit_code


@pytest.mark.parametrize(
    "command",
    ["cat", "grep a", "grep", "tail -n '' etc", "head -n -1 etc", "ls -Z9", "grep -E a etc"],
)
def test_a_usage_error_prints_nothing_and_fails(command: str) -> None:
    result = run(FILES, command)
    assert (result.stdout, result.exit_code) == ("", 2)
    assert result.stderr.startswith(command.split()[0] + ": ")


@real_tools
@pytest.mark.parametrize(
    "command", ["head -n x etc", "head -n", "wc -q etc", "cat -q etc", "ls --foo", "grep '[a' etc", r"grep 'a\' etc"]
)
def test_usage_errors_read_like_the_real_ones(root: Path, command: str) -> None:
    real = really_run(root, shlex.split(command)).stderr.splitlines()[0]
    assert run(FILES, command).stderr == real + "\n"


# --- The grep's regular expressions ----------------------------------------------------------------------------------

# Basic regular expressions, each with its equivalent in Python's re.
LITERALS = [(character, re.escape(character)) for character in "ab1:, |+?(){}"]
ATOMS = [
    *LITERALS,
    (".", "."),
    ("[ab]", "[ab]"),
    ("[^a]", "[^a]"),
    ("[a-c1]", "[a-c1]"),
    ("[]a]", r"[\]a]"),
    ("[^]a]", r"[^\]a]"),
    ("[a.*$]", "[a.*$]"),
    *((f"\\{mark}", f"\\{mark}") for mark in ".*$\\["),
]
STARS = [("", ""), ("", ""), ("*", "*"), ("**", "*")]


@st.composite
def patterns(draw: st.DrawFn) -> tuple[str, str]:
    pieces = draw(st.lists(st.tuples(st.sampled_from(ATOMS), st.sampled_from(STARS)), max_size=6))
    start, end = draw(st.sampled_from(["", "^"])), draw(st.sampled_from(["", "$"]))
    basic, python = ("".join(atom[i] + star[i] for atom, star in pieces) for i in (0, 1))
    return start + basic + end, start + python + (r"\Z" if end else "")


@given(patterns(), st.text("abc1:.*$\\[] |", max_size=12))
@settings(max_examples=400, deadline=None)
def test_grep_matches_what_python_re_matches(pattern: tuple[str, str], line: str) -> None:
    basic, python = pattern
    result = run({"/f": line + "\n"}, f"grep -- {shlex.quote(basic)} /f")
    assert result == (Result(line + "\n") if re.search(python, line) else Result(exit_code=1))


@given(st.text("ab.*[]^$\\", max_size=6), st.text("ab.*[]^$\\", max_size=8))
@settings(deadline=None)
def test_a_fixed_string_has_no_special_characters(pattern: str, line: str) -> None:
    result = run({"/f": line + "\n"}, f"grep -F -- {shlex.quote(pattern)} /f")
    assert (result.exit_code == 0) == (pattern in line)


@pytest.mark.parametrize("pattern", ["a*" * 480 + "b", ".*" * 480 + "b", "[ab]*" * 190 + "c"])
def test_a_hostile_pattern_completes(pattern: str) -> None:
    assert len(pattern) < MAX_COMMAND_CHARS - 20
    assert run({"/f": "a" * 1000 + "\n"}, f"grep -c '{pattern}' /f") == Result("0\n", "", 1)


# --- Lines, quoting, operators ---------------------------------------------------------------------------------------


def test_only_a_newline_ends_a_line() -> None:
    text = "one\u2028still one\x0bone\x85one\rone\ntwo\r\n"
    assert run({"/f": text}, "head -n 1 /f").stdout == text.split("\n")[0] + "\n"
    assert run({"/f": text}, "wc -l /f").stdout == "2 /f\n"
    assert run({"/f": text}, "grep -n two /f").stdout == "2:two\r\n"
    assert run({"/f": text}, "grep -c one /f").stdout == "1\n"


def test_a_line_may_end_in_a_carriage_return() -> None:
    assert run(FILES, "ls /etc\r\n") == run(FILES, "ls /etc")


@pytest.mark.parametrize("command", ["cat '/my file'", 'cat "/my file"', r"cat /my\ file", "cat /'my'\" \"file"])
def test_quotes_hold_a_word_together(command: str) -> None:
    assert run({"/my file": "text\n"}, command) == Result("text\n")


@pytest.mark.parametrize("command", ["cat '/etc", 'grep "a b /etc', "cat \\", "'", 'ls "\\"'])
def test_an_open_quote_is_a_syntax_error(command: str) -> None:
    assert run(FILES, command) == Result("", "sh: syntax error: unterminated quoted string\n", 2)


@pytest.mark.parametrize(
    ("command", "operator"),
    [
        ("cat /f | grep a", "|"),
        ("ls / ; ls /etc", ";"),
        ("ls /;ls /etc", ";"),
        ("ls / && ls /", "&&"),
        ("ls /||ls", "||"),
        ("cat /f > /g", ">"),
        ("cat<</f", "<<"),
        ("(ls)", "("),
        ("ls /\\\\;ls", ";"),
        ("ls '/'&", "&"),
    ],
)
def test_operators_are_refused_by_name(command: str, operator: str) -> None:
    assert run({"/f": "a\n"}, command) == Result("", f"sh: syntax error: '{operator}' is not supported\n", 2)


@pytest.mark.parametrize("mark", ["|", ";", "&&", ">", "("])
def test_a_quoted_operator_is_text(mark: str) -> None:
    files = {"/f": f"x {mark} y\nother\n"}
    for quoted in (f"'{mark}'", f'"{mark}"', "".join(f"\\{character}" for character in mark)):
        assert run(files, f"grep {quoted} /f") == Result(f"x {mark} y\n")


@pytest.mark.parametrize("line", ["", " ", "\t\r\n", "\n\n"])
def test_an_empty_line_does_nothing(line: str) -> None:
    assert run(FILES, line) == Result()


@pytest.mark.parametrize("name", ["sed", "awk", "vim", "LS", "./ls", "$(ls)", "`ls`", "''", "python"])
def test_an_unknown_command_is_not_found(name: str) -> None:
    line = f"'{name}' /etc" if name != "''" else "'' /etc"
    shown = "" if name == "''" else name
    assert run(FILES, line) == Result("", f"sh: {shown}: command not found\n", 127)


def test_a_line_beyond_the_limit_is_refused() -> None:
    assert run(FILES, "ls" + " /" * (MAX_COMMAND_CHARS // 2)).exit_code == 126
    assert run(FILES, ("ls" + " /" * MAX_COMMAND_CHARS)[:MAX_COMMAND_CHARS]).exit_code == 0


# --- Nothing of the machine ------------------------------------------------------------------------------------------

_touched: list[str] | None = None


def _audit(event: str, _: Any) -> None:
    if _touched is not None and event.split(".")[0] in {
        "open",
        "os",
        "subprocess",
        "socket",
        "shutil",
        "glob",
        "ctypes",
    }:
        _touched.append(event)


sys.addaudithook(_audit)


@contextmanager
def untouched_machine() -> Iterator[None]:
    """Fail if Python's audit events show an opened file, a listed folder, a process or a socket."""
    global _touched
    _touched = []
    try:
        yield
    finally:
        touched, _touched = _touched, None
    assert touched == []


def test_the_audit_would_notice(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), untouched_machine():
        os.listdir(tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", "/proc/self/environ", "~/.ssh", __file__])
@pytest.mark.parametrize("command", ["cat", "ls", "head", "tail", "wc", "grep root", "grep -r root"])
def test_a_real_file_is_not_there(command: str, path: str) -> None:
    with untouched_machine():
        result = run(FILES, f"{command} '{path}'")
    assert result.stdout == "" and "No such file or directory" in result.stderr


def test_the_root_has_no_parent() -> None:
    assert run(FILES, "ls ../../../..").stdout == run(FILES, "ls /").stdout == "etc\nodd\nsrv\nvar\n"
    assert run(FILES, f"cat /../../..{PATHS[0]}").stdout == FILES[PATHS[0]]


WORDS = [
    *shell.COMMANDS,
    *FOLDERS,
    *PATHS[:3],
    *MISSING,
    "-n",
    "-c",
    "-r",
    "--",
    "-",
    "..",
    "*",
    "$HOME",
    "'",
    '"',
    "\\",
]
TYPED = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(), max_size=30),  # lone surrogates and NUL included
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=6).map(" ".join),
)


@given(TYPED)
@settings(max_examples=500, deadline=None)
def test_whatever_is_typed_has_an_answer_and_touches_nothing(line: str) -> None:
    before = dict(FILES)
    with untouched_machine():
        result = run(FILES, line)
    assert run(FILES, line) == result
    assert dict(FILES) == before
    assert result.exit_code in (0, 1, 2, 126, 127)
    assert (result.exit_code == 0) == (result.stderr == "" and result.exit_code != 1)


@given(st.dictionaries(st.sampled_from(["/a", "/b/c"]), st.text(), min_size=1), st.sampled_from(sorted(shell.COMMANDS)))
@settings(deadline=None)
def test_any_text_in_a_file_is_fine(files: dict[str, str], name: str) -> None:
    for path, text in files.items():
        result = run(files, f"{name} . {path}" if name == "grep" else f"{name} {path}")
        assert result.stderr == ""
        if name == "cat":
            assert result.stdout == text


def test_the_shell_imports_nothing_that_reaches_out() -> None:
    tree = ast.parse(Path(shell.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"__future__", "posixpath", "shlex", "collections.abc", "dataclasses"}
