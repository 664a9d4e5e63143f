"""The hook in real shells: each test types at the prompt of bash, zsh or fish in a pseudo-terminal.

A stub `echo-cli` records its arguments in a file and exits with 7, so that routed calls are read from the file and not
from the terminal's redraws; no plain echo exits with 7.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from echo_cli.cli.shell_hook import shell_hook
from echo_cli.errors import EchoError

ROOT = Path(__file__).resolve().parents[2]

DEADLINE_S = 30.0  # per command; reached only on failure
ROUTED = 7

SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
LOAD = {"bash": 'eval "$(cat hook)"', "zsh": 'eval "$(cat hook)"', "fish": "cat hook | source"}
STATUS = {"bash": "$?", "zsh": "$?", "fish": "$status"}

# Job control needs a controlling terminal, which a new session has to request.
_IN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)

# A shell starts it, because #! does not support an interpreter path with a space.
_STUB = f"""#!/bin/sh
'''exec' '{sys.executable}' -S "$0" "$@"
'''
import json, os, sys
with open(os.environ["STUB_LOG"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit({ROUTED})
"""


@dataclass(frozen=True)
class Outcome:
    """Result of one line at the prompt: exit status, calls of echo-cli, and terminal text."""

    status: int
    calls: list[list[str]]
    text: str


class Prompt:
    """An interactive shell in a pseudo-terminal, with the hook loaded, in a folder of its own."""

    def __init__(self, shell: str, folder: Path) -> None:
        self.shell = shell
        self.folder = folder
        self._lines = 0
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        stub = bin_folder / "echo-cli"
        stub.write_text(_STUB)
        stub.chmod(0o755)
        (folder / "hook").write_text(shell_hook(shell))
        self._log = folder / "calls.jsonl"
        self._log.touch()
        self.environment = {
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "XDG_DATA_HOME": str(folder),
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
            "STUB_LOG": str(self._log),
        }
        self._terminal, inside = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _IN_TERMINAL, *SHELLS[shell]],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            cwd=folder,
            env=self.environment,
            start_new_session=True,
        )
        os.close(inside)
        self.run(LOAD[shell])

    def run(self, line: str) -> Outcome:
        """Type `line`, wait for it to finish, and return its result."""
        self._lines += 1
        done = self.folder / f"status.{self._lines}"
        calls_before = len(self._log.read_text().splitlines())
        typed = f"{line}; command printf '%s\\n' {STATUS[self.shell]} > {done.name}\r"
        os.write(self._terminal, typed.encode())
        text = self._read_until(lambda: done.exists() and done.read_text().endswith("\n"), line)
        calls = [json.loads(call) for call in self._log.read_text().splitlines()[calls_before:]]
        return Outcome(int(done.read_text()), calls, text)

    def bytes_of(self, line: str) -> bytes:
        """Return the output of `line`, redirected to a file."""
        self.run(f"{line} > captured")
        return (self.folder / "captured").read_bytes()

    def script(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return name

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def _read_until(self, is_done: Callable[[], bool], line: str) -> str:
        end = time.monotonic() + DEADLINE_S
        text = b""
        while not is_done():
            assert time.monotonic() < end, f"{self.shell} did not finish {line!r}; its terminal:\n{text!r}"
            text += self._read(0.02)
        # The status is written after the line's own output, so the rest of the output is already available.
        while more := self._read(0.0):
            text += more
        return text.decode(errors="replace")

    def _read(self, wait_s: float) -> bytes:
        ready, _, _ = select.select([self._terminal], [], [], wait_s)
        return os.read(self._terminal, 65536) if ready else b""


def _start(shell: str, folder: Path) -> Prompt:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    return Prompt(shell, folder)


@pytest.fixture(scope="module", params=list(SHELLS))
def prompt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prompt]:
    shell = request.param
    started = _start(shell, tmp_path_factory.mktemp(shell))
    (started.folder / "run dir").mkdir()
    (started.folder / "a1").touch()
    (started.folder / "a2").touch()
    yield started
    started.close()


@pytest.fixture
def fresh_prompt(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Prompt]:
    """A shell for one test, which may change its options."""
    started = _start(request.param, tmp_path)
    yield started
    started.close()


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("echo train --steps 60 --seed 0", ["train", "--steps", "60", "--seed", "0"]),
        ("echo sweep-lambda 0 0.005 0.05", ["sweep-lambda", "0", "0.005", "0.05"]),
        ("echo sweep-lambda", ["sweep-lambda"]),
        ("echo eval-heldout outputs/demo", ["eval-heldout", "outputs/demo"]),
        ("echo train -h", ["train", "-h"]),
        ("echo train seed=3", ["train", "seed=3"]),
        ("echo train optim.lr=1e-3 --json", ["train", "optim.lr=1e-3", "--json"]),
        ("echo train _a.0.b=", ["train", "_a.0.b="]),
        ("echo train 'run.name=two words'", ["train", "run.name=two words"]),
        ("echo plot 'run dir'", ["plot", "run dir"]),
        ("echo plot ./a1", ["plot", "./a1"]),
        ("echo train", ["train"]),
        ("echo plot", ["plot"]),
        ("echo train --run-name ''", ["train", "--run-name", ""]),
        ("echo train --steps 1 > captured", ["train", "--steps", "1"]),
    ],
)
def test_a_command_line_of_ours_reaches_echo_cli_with_its_words_and_exit_code(
    prompt: Prompt, line: str, argv: list[str]
) -> None:
    outcome = prompt.run(line)
    assert outcome.calls == [argv]
    assert outcome.status == ROUTED


def test_routes_at_the_prompt_in_a_pipe_and_in_a_block(prompt: Prompt) -> None:
    assert prompt.run("echo train --steps 1 | cat").calls == [["train", "--steps", "1"]]
    block = "begin; echo train --steps 2; end" if prompt.shell == "fish" else "{ echo train --steps 2; }"
    assert prompt.run(block).calls == [["train", "--steps", "2"]]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "''",
        "hello world",
        "train wreck",
        "plot twist",
        "train wreck --steps 60",
        "'train --steps 60'",
        "'sweep-lambda 0'",
        "train ''",
        "train -",
        "train --",
        "train -5",
        "train ---x",
        "train '=x'",
        "train 1a=x",
        "train a..b=x",
        "train .a=x",
        "train a.=x",
        "train a-b=x",
        "train 'a b=x'",
        "train no-such-path",
        "train ''' --steps'''",
        "eval-heldouts x",
        "Train --steps 1",
        "-n x",
        "-n train --steps 1",
        "-e 'a\\tb'",
        "-E 'a\\tb'",
        "'a\\tb'",
        "-ne 'a\\n\\n'",
        "-- train --steps 1",
        "a  '  b  ' \"c\"",
        "a*",
        "'a*' '$HOME' '`x`'",
        "$HOME",
        "-x --y",
        "λ 'é\\c' z",
    ],
)
def test_every_other_echo_writes_the_builtins_bytes(prompt: Prompt, words: str) -> None:
    expected = prompt.bytes_of(f"builtin echo {words}")
    outcome = prompt.run(f"echo {words} > captured")
    assert (prompt.folder / "captured").read_bytes() == expected
    assert outcome.calls == []
    assert outcome.status == 0


@pytest.mark.parametrize("words", ["train wreck", "plot twist", "hello", "'train --steps 60'", "train a..b=1"])
def test_plain_text_on_the_terminal_stays_text(prompt: Prompt, words: str) -> None:
    outcome = prompt.run(f"echo {words}")
    assert outcome.calls == []
    assert outcome.status == 0
    assert re.search(rf"[\r\n]{words.strip(chr(39))}\r*\n", outcome.text)


def test_a_lone_word_is_text_when_stdout_is_not_a_terminal(prompt: Prompt) -> None:
    for word in ("train", "plot"):
        outcome = prompt.run(f"echo {word} > captured")
        assert (outcome.calls, outcome.status) == ([], 0)
        assert (prompt.folder / "captured").read_text() == f"{word}\n"
        outcome = prompt.run(f"echo {word} | cat > captured")
        assert outcome.calls == []
        assert (prompt.folder / "captured").read_text() == f"{word}\n"


def test_status_of_the_last_command_and_appending_behave_as_ever(prompt: Prompt) -> None:
    line = f"command false; echo {STATUS[prompt.shell]} > captured; echo two >> captured; echo err >&2 2>> captured"
    prompt.run(line)
    assert (prompt.folder / "captured").read_text() == "1\ntwo\n"


def test_a_write_that_fails_fails_as_the_builtins_does(prompt: Prompt) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    assert prompt.run("echo x > /dev/full").status == prompt.run("builtin echo x > /dev/full").status


def test_plain_inside_functions(prompt: Prompt) -> None:
    define = "function f; echo train --steps 1; end" if prompt.shell == "fish" else "f() { echo train --steps 1; }"
    prompt.run(define)
    outcome = prompt.run("f > captured")
    assert (outcome.calls, outcome.status) == ([], 0)
    assert (prompt.folder / "captured").read_text() == "train --steps 1\n"
    assert prompt.run("f").calls == []


@pytest.mark.parametrize("fresh_prompt", ["zsh", "fish"], indirect=True)
def test_plain_inside_command_substitutions(fresh_prompt: Prompt) -> None:
    prompt = fresh_prompt
    for word in ("sweep-lambda 0", "train --steps 1"):
        line = f"echo (echo {word})" if prompt.shell == "fish" else f'echo "$(echo {word})"'
        outcome = prompt.run(f"{line} > captured")
        assert (outcome.calls, outcome.status) == ([], 0)
        assert (prompt.folder / "captured").read_text() == f"{word}\n"


def test_plain_inside_sourced_files_and_functions_defined_there(prompt: Prompt) -> None:
    function = "function g; echo plot -x; end" if prompt.shell == "fish" else "g() { echo plot -x; }"
    script = prompt.script("sourced", f"echo sweep-lambda 0\n{function}\ng\n")
    outcome = prompt.run(f"source ./{script} > captured")
    assert (outcome.calls, outcome.status) == ([], 0)
    assert (prompt.folder / "captured").read_text() == "sweep-lambda 0\nplot -x\n"
    assert prompt.run("g").calls == []


def test_plain_inside_scripts_and_child_shells(prompt: Prompt) -> None:
    script = prompt.script("child", f"{LOAD[prompt.shell]}\necho train --steps 1\necho sweep-lambda 0\n")
    if prompt.shell == "bash":
        prompt.run("export -f echo _echo_cli_routes")
        assert prompt.run("bash -c 'echo train --steps 1'").calls == []
        assert prompt.run("bash -ic 'echo train --steps 1'").calls == []
    outcome = prompt.run(f"{prompt.shell} {script} > captured")
    assert (outcome.calls, outcome.status) == ([], 0)
    assert (prompt.folder / "captured").read_text() == "train --steps 1\nsweep-lambda 0\n"


def test_programs_that_run_echo_never_see_the_hook(prompt: Prompt) -> None:
    outcome = prompt.run("printf '%s\\n' --steps | xargs echo train > captured")
    assert outcome.calls == []
    assert (prompt.folder / "captured").read_text() == "train --steps\n"


def test_the_hook_leaves_two_names_and_no_variable_behind(prompt: Prompt) -> None:
    listing = {"bash": "compgen -A function", "zsh": "print -l ${(k)functions}", "fish": "functions --all --names"}
    variables = {"bash": "compgen -v", "zsh": "print -l ${(k)parameters}", "fish": "set --names"}
    prompt.run(f"{listing[prompt.shell]} > captured")
    names = set((prompt.folder / "captured").read_text().split())
    assert "echo" in names
    assert {name for name in names if "echo_cli" in name} == {"_echo_cli_routes"}
    prompt.run(f"{variables[prompt.shell]} > captured")
    assert "echo_cli" not in (prompt.folder / "captured").read_text().lower()


@pytest.mark.parametrize(
    ("fresh_prompt", "options"),
    [
        ("bash", "set -u"),
        ("bash", "set -f; IFS=t"),
        ("bash", "set -o posix"),
        ("bash", "shopt -s nocasematch extglob xpg_echo"),
        ("zsh", "set -u"),
        ("zsh", "set -f; IFS=t"),
        ("zsh", "setopt ksh_arrays sh_word_split"),
        ("zsh", "setopt extended_glob no_case_match bsd_echo"),
    ],
    indirect=["fresh_prompt"],
)
def test_shell_options_change_nothing(fresh_prompt: Prompt, options: str) -> None:
    fresh_prompt.run(options)
    for words in ("", "train wreck", "'a\\tb'", "-e 'a\\tb'", "Train -x", "'train  x'"):
        assert fresh_prompt.bytes_of(f"echo {words}") == fresh_prompt.bytes_of(f"builtin echo {words}")
    assert fresh_prompt.run("echo Train -x").calls == []
    assert fresh_prompt.run("echo train a.b=t").calls == [["train", "a.b=t"]]
    assert fresh_prompt.run("echo train").calls == [["train"]]


@pytest.mark.parametrize("fresh_prompt", list(SHELLS), indirect=True)
def test_sourcing_activate_sets_up_the_checkout_around_it_and_asks_for_the_hook(fresh_prompt: Prompt) -> None:
    shell, checkout = fresh_prompt.shell, fresh_prompt.folder / "a check out"
    scripts, programs = checkout / "scripts", checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    name = "activate.fish" if shell == "fish" else "activate"
    scripts.mkdir()
    shutil.copy(ROOT / "scripts" / name, scripts)
    (scripts / "setup").write_text('touch -- "$(dirname -- "$0")/was-set-up"\n')
    (programs / name).write_text("true\n")
    outcome = fresh_prompt.run(f"source 'a check out/scripts/{name}'")
    assert (outcome.calls, outcome.status) == ([["shell-hook", shell]], ROUTED), outcome.text
    assert (scripts / "was-set-up").exists()


@pytest.mark.parametrize("fresh_prompt", ["bash", "zsh"], indirect=True)
def test_errexit_does_not_end_the_shell_on_plain_text(fresh_prompt: Prompt) -> None:
    fresh_prompt.run("set -e")
    for words in ("train wreck", "train > captured", "train a..b=1", "x", "train -5"):
        assert fresh_prompt.run(f"echo {words}").status == 0


@pytest.mark.parametrize("fresh_prompt", ["bash", "zsh"], indirect=True)
def test_an_alias_called_echo_is_no_obstacle(fresh_prompt: Prompt) -> None:
    fresh_prompt.run("alias echo='echo -n'")
    fresh_prompt.run(LOAD[fresh_prompt.shell])
    assert fresh_prompt.bytes_of("echo train --x") == b"train --x"
    assert fresh_prompt.run("\\echo train --x").calls == [["train", "--x"]]


@pytest.mark.parametrize("shell", ["sh", "", "BASH", "powershell"])
def test_another_shell_is_a_user_error_that_names_the_three(shell: str) -> None:
    with pytest.raises(EchoError) as error:
        shell_hook(shell)
    assert error.value.tip == "choose one of: bash, zsh, fish"
    assert error.value.exit_code == 2
