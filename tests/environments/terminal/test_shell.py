"""A real bash on a real pseudo-terminal: the echo, the output and the prompt of every command, told apart exactly."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from echo_cli.environments.terminal.quoting import quoted
from echo_cli.environments.terminal.shell import Shell, ShellError
from echo_cli.environments.terminal.site import BASH

ENVIRON = {"PATH": "/usr/local/bin:/usr/bin:/bin", "TERM": "dumb", "LC_ALL": "C", "HOME": "/nonexistent"}
LIMIT = 10_000


@pytest.fixture
def shell() -> Iterator[Shell]:
    shell = Shell(BASH, ENVIRON)
    shell.start()
    yield shell
    shell.close()


def test_a_command_gives_its_output_and_nothing_else(shell: Shell) -> None:
    ran = shell.run("echo one; echo two >&2; (exit 3)", 20, LIMIT)
    assert (ran.output, ran.exit_code, ran.notice, ran.ended) == (b"one\ntwo\n", 3, "", False)
    assert (ran.echo, ran.prompt) == (b"echo one; echo two >&2; (exit 3)\n", b"$ ")


@pytest.mark.parametrize(
    ("line", "output"),
    [
        ("printf 'no end'", b"no end"),
        ("printf '\\r\\n\\t\\033[31mred\\033[0m\\r'", b"\r\n\t\x1b[31mred\x1b[0m\r"),
        ("printf '$ echo one\\n$ '", b"$ echo one\n$ "),
        ("printf '\\033]133;D;0\\007\\033]133;C\\007'", b"\x1b]133;D;0\x07\x1b]133;C\x07"),
        ("printf '\\377\\303\\251'", b"\xff\xc3\xa9"),
        ("echo é ü", "é ü\n".encode()),
        ("", b""),
        ("# nothing", b""),
        ("echo (", b"bash: syntax error near unexpected token `newline'\n"),
        ("nonesuch", b"bash: nonesuch: command not found\n"),
        ("echo a\tb !! '!x'", b"a b !! !x\n"),
        ("tty > /dev/null && echo a terminal", b"a terminal\n"),
        ("cat <<E\n$((6*7))\nE\necho \\\n  joined", b"42\njoined\n"),
        ("echo '\x01\x7f\x1b'", b"\x01\x7f\x1b\n"),
        (f"echo {'z' * 9000}", b"z" * 9000 + b"\n"),
        (f"echo {'é' * 1200}", ("é" * 1200 + "\n").encode()),
    ],
)
def test_outputs_are_exact(shell: Shell, line: str, output: bytes) -> None:
    """The output is what the command wrote, whatever is in it; a prompt or boundary that it prints is its own text."""
    ran = shell.run(line, 20, 20_000)
    assert (ran.output, ran.prompt, ran.notice) == (output, b"$ ", "")


def test_the_session_persists(shell: Shell) -> None:
    shell.run("cd /usr; x=5; f() { echo f $x; }; export Y=6", 20, LIMIT)
    assert shell.run("pwd; f; bash -c 'echo $Y'; echo $?", 20, LIMIT).output == b"/usr\nf 5\n6\n0\n"
    assert shell.run("(exit 4)", 20, LIMIT).exit_code == 4
    assert shell.run("echo $?", 20, LIMIT).output == b"4\n"


def test_a_command_that_waits_for_input_gets_its_end(shell: Shell) -> None:
    for line, output in [("cat", b""), ("read x; echo [$x]", b"[]\n"), ("cat | wc -c", b"0\n"), ("sort - | cat", b"")]:
        ran = shell.run(line, 20, LIMIT)
        assert (ran.output, ran.notice) == (output, ""), line
    assert shell.run("echo on", 20, LIMIT).output == b"on\n"


def test_an_incomplete_command_is_cancelled(shell: Shell) -> None:
    for line in ("echo 'abc", "cat <<E", "if true; then", "echo \\"):
        ran = shell.run(line, 20, LIMIT)
        assert (ran.notice, ran.exit_code) == ("the command is incomplete", None), line
    assert shell.run("echo on", 20, LIMIT).output == b"on\n"


def test_a_command_that_takes_too_long_is_interrupted(shell: Shell) -> None:
    ran = shell.run("echo begun; sleep 1000", 0.3, LIMIT)
    assert (ran.output, ran.exit_code, ran.notice, ran.ended) == (b"begun\n\n", None, "interrupted after 0.3 s", False)
    assert shell.run("echo on", 20, LIMIT).output == b"on\n"


@pytest.mark.slow
def test_a_command_that_ignores_signals_is_killed(shell: Shell) -> None:
    ran = shell.run("bash -c 'trap \"\" INT QUIT; while true; do sleep 1; done'", 0.2, LIMIT)
    assert ran.notice == "interrupted after 0.2 s" and not ran.ended
    assert shell.run("echo on", 20, LIMIT).output == b"on\n"


def test_a_flood_is_interrupted_and_cut(shell: Shell) -> None:
    ran = shell.run("yes", 60, 100)
    assert ran.output.startswith(b"y\n" * 50) and len(ran.output) <= 101
    assert ran.notice == "interrupted after 8 MiB of output"
    assert shell.run("echo on", 20, LIMIT).output == b"on\n"


def test_redirections_of_the_shell_itself_hide_no_boundary(shell: Shell) -> None:
    assert shell.run("exec 2>/dev/null", 20, LIMIT).exit_code == 0
    ran = shell.run("echo hidden >&2; echo shown; false", 20, LIMIT)
    assert (ran.output, ran.exit_code) == (b"shown\n", 1)
    shell.run("exec 2>/dev/tty", 20, LIMIT)
    assert shell.run("exec > /dev/null", 20, LIMIT).exit_code == 0
    assert shell.run("echo hidden", 20, LIMIT).output == b""


def test_the_policy_cannot_change_the_boundaries(shell: Shell) -> None:
    for line in (
        "PS1=x PS0=y PS2=z",
        "PROMPT_COMMAND=",
        "unset -f __echo_cli",
        "__echo_cli() { :; }",
        "stty echo sane",
    ):
        shell.run(line, 20, LIMIT)
    ran = shell.run("echo on", 20, LIMIT)
    assert (ran.output.replace(b"\r", b""), ran.exit_code) == (b"on\n", 0)
    assert ran.prompt == b"$ "


@pytest.mark.parametrize("line", ["exit 3", "exec true", "kill -9 $$", "logout; exit"])
def test_a_shell_that_ends_has_ended(shell: Shell, line: str) -> None:
    ran = shell.run(line, 20, LIMIT)
    assert ran.ended and ran.exit_code is None and shell.ended
    assert b"exit\n" not in ran.output
    assert shell.run("echo on", 20, LIMIT).ended


def test_closing_kills_what_the_shell_started() -> None:
    shell = Shell(BASH, ENVIRON)
    shell.start()
    shell.run("sleep 1000.0031 & sleep 1000.0031 & disown", 20, LIMIT)
    shell.close()
    deadline = time.monotonic() + 10
    while _running(b"1000.0031") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _running(b"1000.0031")
    shell.close()


def test_a_limit_ends_the_session() -> None:
    reasons: list[str] = []
    shell = Shell(BASH, ENVIRON, exceeded=lambda: reasons[0] if reasons else None)
    shell.start()
    reasons.append("it is too much")
    ran = shell.run("sleep 1000", 60, LIMIT)
    assert (ran.notice, ran.ended) == ("stopped: it is too much", True)


@pytest.mark.parametrize(
    ("command", "why"), [(["sh", "-c", "echo no such place; exit 1"], "no such place"), (["nonesuch"], "not found")]
)
def test_a_shell_that_does_not_start_says_why(command: list[str], why: str) -> None:
    with pytest.raises(ShellError, match=f"does not start: .*{why}"):
        Shell(command, ENVIRON).start()


def test_the_prompt_is_literal() -> None:
    shell = Shell(BASH, ENVIRON, prompt="\\u $HOME `id` > ")
    shell.start()
    assert shell.run("true", 20, LIMIT).prompt == b"\\u $HOME `id` > "
    shell.close()


def test_quoted_text_is_one_word_of_bash() -> None:
    for text in ("a'b\\c\nd", "\x01\x1f\x7f0", "é$x`y`!", ""):
        done = subprocess.run(["bash", "-c", f"printf %s {quoted(text)}"], capture_output=True, check=True)
        assert done.stdout == text.encode()


def _running(mark: bytes) -> bool:
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if mark in file.read():
                    return True
        except OSError:
            continue
    return False
