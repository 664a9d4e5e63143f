"""The worked example: real bash, real files and a real server, all removed afterwards."""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import ROOT, answers, environment, free_port

from sandbox_env.environment import SandboxEnvironment
from sandbox_env.files import generate
from sandbox_env.isolation import CHOICES, Isolation, IsolationError, Wanted, find_isolation
from sandbox_env.models import SandboxAction, SandboxObservation
from sandbox_env.shell import run

SANDBOX = ROOT / "envs" / "sandbox_env"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in which the episodes' folders are created."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(params=["none", "bubblewrap"])
def isolation(request: pytest.FixtureRequest) -> Wanted:
    """Isolation of the lines: what is true of them is true with and without it."""
    wanted: Wanted = request.param
    if wanted == "bubblewrap" and find_isolation().program is None:
        pytest.skip("bwrap is not installed" if shutil.which("bwrap") is None else find_isolation().why_not)
    return wanted


@pytest.fixture
def sandbox(folders: Path, isolation: Wanted) -> Iterator[SandboxEnvironment]:
    environment = SandboxEnvironment(timeout_s=20, isolation=isolation)
    environment.reset(seed=1)
    yield environment
    environment.close()
    assert list(folders.iterdir()) == []


def _run(sandbox: SandboxEnvironment, line: str) -> SandboxObservation:
    return sandbox.step(SandboxAction(line))


def _is_gone(process_id: int) -> bool:
    """Return whether a process has ended, or ends within a few seconds; a zombie counts as ended."""
    for _ in range(500):
        try:
            stat = Path(f"/proc/{process_id}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        if stat.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def _running(mark: str) -> list[int]:
    """Return the processes of this machine whose command line contains `mark`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
    return found


def _all_gone(mark: str) -> bool:
    """Return whether no process with `mark` runs, or all end within a few seconds."""
    return all(map(_is_gone, _running(mark)))


def test_a_seed_gives_the_same_files_and_another_seed_others() -> None:
    assert generate(3) == generate(3)
    assert len({json.dumps(dict(generate(seed).files)) for seed in range(50)}) == 50
    assert len({generate(seed).question for seed in range(50)}) > 10


@pytest.mark.parametrize("seed", range(12))
def test_bash_finds_the_answer(seed: int, folders: Path) -> None:
    sandbox = SandboxEnvironment()
    words = (sandbox.reset(seed=seed).instruction or "").split()
    if words[1] == "many":  # how many LEVEL lines are in FILE?
        line = f"grep -c {words[2]} {words[6][:-1]}"
    elif "zone" in words:  # what is the zone of HOST in FILE?
        line = f"grep ^{words[5]}, {words[7][:-1]} | cut -d, -f3"
    else:  # what is KEY in FILE?
        line = f"grep '^{words[2]} ' {words[4][:-1]} | cut -d' ' -f3"
    found = _run(sandbox, line).stdout.strip()
    right = _run(sandbox, f"answer: {found}" if seed % 2 else f"answer {found}")
    assert (right.reward, right.done) == (1.0, True)
    sandbox.reset(seed=seed)
    assert _run(sandbox, "answer nothing").reward == 0.0
    sandbox.close()
    assert list(folders.iterdir()) == []


def test_a_line_prints_to_two_channels_and_exits(sandbox: SandboxEnvironment) -> None:
    assert _run(sandbox, "ls").stdout == "etc\nevents.log\nhosts.csv\n"
    assert _run(sandbox, "echo out; echo err >&2; exit 3") == SandboxObservation("out\n", "err\n", 3)
    missing = _run(sandbox, "nonesuch")
    assert (missing.stderr, missing.exit_code) == ("bash: line 1: nonesuch: command not found\n", 127)
    assert "syntax error" in _run(sandbox, "echo (").stderr
    assert _run(sandbox, "printf '\\377|'").stdout == "\ufffd|"
    assert _run(sandbox, "echo a\0b").stdout == "ab\n"
    assert _run(sandbox, "echo a\ud800b").stdout == "a?b\n"


def test_files_stay_between_lines_and_the_folder_and_variables_do_not(sandbox: SandboxEnvironment) -> None:
    _run(sandbox, "cd etc; NAME=x; echo kept > new")
    assert _run(sandbox, "cat etc/new; echo $NAME").stdout == "kept\n\n"
    sandbox.reset(seed=1)
    assert _run(sandbox, "ls etc").stdout == "settings.conf\n"


def test_what_ls_prints_of_the_times_is_the_same_in_every_episode(sandbox: SandboxEnvironment) -> None:
    first = _run(sandbox, "ls -l . etc").stdout
    sandbox.reset(seed=1)
    assert "Nov 14  2023 events.log" in first
    assert _run(sandbox, "ls -l . etc").stdout == first


def test_a_line_sees_no_variable_of_ours_and_no_standard_input(
    sandbox: SandboxEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    seen = dict(line.split("=", 1) for line in _run(sandbox, "env").stdout.splitlines())
    assert seen.keys() == {"PATH", "HOME", "LC_ALL", "PWD", "SHLVL", "_"}
    assert seen["HOME"] == seen["PWD"]
    assert _run(sandbox, "cat; echo end").stdout == "end\n"


def test_a_line_that_takes_too_long_is_stopped_with_all_that_it_started(folders: Path, isolation: Wanted) -> None:
    sandbox = SandboxEnvironment(timeout_s=1, isolation=isolation)
    sandbox.reset()
    escape = "setsid" if isolation == "bubblewrap" else ""
    stopped = _run(sandbox, f"{escape} sleep 1000.0017 & echo begun; wait")
    assert (stopped.exit_code, stopped.notice, stopped.stdout) == (None, "[stopped after 1 s]\n", "begun\n")
    assert _all_gone("1000.0017")
    assert _run(sandbox, "echo on").stdout == "on\n"
    sandbox.close()


def test_nothing_runs_on_behind_a_line_that_is_done(sandbox: SandboxEnvironment, isolation: Wanted) -> None:
    escape = "setsid" if isolation == "bubblewrap" else ""
    done = _run(sandbox, f"{escape} sleep 1000.0018 & echo begun")
    assert (done.exit_code, done.stdout) == (0, "begun\n")
    assert _all_gone("1000.0018")


def test_output_and_files_are_bounded(folders: Path, isolation: Wanted) -> None:
    sandbox = SandboxEnvironment(max_output=10, isolation=isolation)
    sandbox.reset()
    assert _run(sandbox, "echo 123456789").notice == ""
    cut = _run(sandbox, "echo 1234567890; yes >&2")
    assert (cut.stdout, cut.stderr) == ("1234567890", "y\n" * 5)
    assert cut.notice == "[output cut at 10 characters]\n"
    assert _run(sandbox, "yes ä").stdout == "ä\n" * 5
    _run(sandbox, "head -c 3000000 /dev/zero > big")
    assert _run(sandbox, "stat -c %s big").stdout == "1048576\n"
    sandbox.close()


def test_a_folder_that_its_lines_have_locked_is_removed(sandbox: SandboxEnvironment, folders: Path) -> None:
    assert _run(sandbox, "mkdir -p a/b; touch a/b/c; chmod 000 a/b a; ln -s / root").exit_code == 0
    sandbox.close()
    assert list(folders.iterdir()) == []


def test_a_step_outside_an_episode_is_an_error(sandbox: SandboxEnvironment) -> None:
    with pytest.raises(RuntimeError, match="reset"):
        _run(SandboxEnvironment(), "ls")
    _run(sandbox, "answer 1")
    assert sandbox.state.step_count == 1
    with pytest.raises(RuntimeError, match="over"):
        _run(sandbox, "ls")


# --- Isolation -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user with a secret in its environment, as a trainer has."""
    process = subprocess.Popen(["sleep", "1000"], env={"HF_TOKEN": "hf-s3cret"})
    yield process
    process.kill()
    process.wait()


def test_a_line_reads_other_processes_and_files_and_reaches_servers_only_without_isolation(
    sandbox: SandboxEnvironment, isolation: Wanted, bystander: subprocess.Popen[bytes], tmp_path_factory: Any
) -> None:
    """Without isolation all of it is possible, which shows that these lines would notice a hole."""
    private = tmp_path_factory.mktemp("home") / "private"
    private.write_text("private text")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        lines = {
            "environment": "cat /proc/[0-9]*/environ | grep -ao hf-s3cret",
            "processes": "tr '\\0' ' ' 2>&1 < /proc/{} | cat".replace("{}", f"{bystander.pid}/cmdline"),
            "file": f"cat {private}",
            "folder": f"ls {private.parent} ~root {Path.home()}",
            "network": f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo connected",
        }
        seen = {name: _run(sandbox, line).stdout for name, line in lines.items()}
    open_ = isolation == "none"
    assert ("hf-s3cret" in seen["environment"]) == open_
    assert ("sleep 1000" in seen["processes"]) == open_
    assert (seen["file"] == "private text") == ("private" in seen["folder"]) == open_
    assert (seen["network"] == "connected\n") == open_


@pytest.mark.parametrize("isolation", ["bubblewrap"], indirect=True)
def test_an_isolated_line_writes_only_to_its_folder(sandbox: SandboxEnvironment) -> None:
    for path in ("/x", "/usr/x", "/usr/local/x", "/etc/x", "/dev/x", "/proc/sys/kernel/hostname", "/proc/self/comm"):
        assert "x\n" not in _run(sandbox, f"echo x > {path}; cat {path}").stdout, path
    assert _run(sandbox, "echo x > /tmp/x; cat /tmp/x").stdout == "x\n"
    assert _run(sandbox, "ls -A /tmp").stdout.count("\n") <= 1  # at most the way to the folder
    assert _run(sandbox, "echo x > x; cat x; pwd").stdout == f"x\n{_run(sandbox, 'echo ~').stdout}"


@pytest.mark.parametrize("isolation", ["bubblewrap"], indirect=True)
def test_an_isolated_line_has_no_descriptor_but_its_streams(sandbox: SandboxEnvironment) -> None:
    line = "for fd in {3..9} {11..60}; do true 2> /dev/null >&$fd && echo $fd; done"  # 10 is bash's own
    assert _run(sandbox, line).stdout == ""


def _fake(folder: Path, script: str) -> Path:
    """Write a program called bwrap to `folder`."""
    program = folder / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def test_where_bubblewrap_does_not_work_the_notice_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = find_isolation.__wrapped__  # not its cache
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find("auto") == Isolation(None, "bubblewrap (bwrap) is not installed")
    _fake(tmp_path, "echo first >&2; echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1")
    why = "bubblewrap does not work here: setting up uid map: Permission denied"
    assert find("auto") == Isolation(None, why)
    assert find("auto").notice == (f"commands run with the rights of this user, which is no security boundary: {why}")
    with pytest.raises(IsolationError, match=r"isolation is bubblewrap: .*Permission denied"):
        find("bubblewrap")
    with pytest.raises(IsolationError, match="unknown isolation 'docker': use auto, bubblewrap, none"):
        find("docker")
    program = _fake(tmp_path, "exit 0")
    assert find("auto") == find("bubblewrap") == Isolation(str(program))
    assert "under bubblewrap" in find("auto").notice
    assert find("none").program is None
    assert CHOICES == ("auto", "bubblewrap", "none")


def test_a_failure_of_bubblewrap_is_no_output_of_the_line(tmp_path: Path) -> None:
    broken = Isolation(str(_fake(tmp_path, "echo 'bwrap: no space' >&2; exit 1")))
    with pytest.raises(IsolationError, match="bubblewrap has failed: bwrap: no space"):
        run("ls", tmp_path, timeout_s=20, limit=100, isolation=broken)


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--isolation", "docker"], {}, "argument --isolation: unknown isolation 'docker': use auto, bubblewrap, none"),
        ([], {"SANDBOX_ISOLATION": "no"}, "argument --isolation: unknown isolation 'no': use auto, bubblewrap, none"),
        (["--isolation", "bubblewrap"], {}, "argument --isolation: isolation is bubblewrap: bubblewrap (bwrap) is not"),
    ],
)
def test_isolation_that_is_not_there_is_one_line(
    arguments: list[str],
    variables: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sandbox_env.server.serve import options

    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    find_isolation.cache_clear()
    try:
        with pytest.raises(SystemExit) as ended:
            options(arguments)
    finally:
        find_isolation.cache_clear()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1


def test_only_the_server_imports_more_than_the_standard_library() -> None:
    for path in SANDBOX.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        third_party = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        allowed = {"openenv", "fastapi", "toy_terminal_env", "echo_cli"} if path.parent.name == "server" else set()
        assert third_party <= {"sandbox_env"} | allowed, path


class _Server:
    """Provide the sandbox's server as a separate process, with its folders in `folders`."""

    def __init__(self, folders: Path) -> None:
        self.port = free_port()
        self.folders = folders
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sandbox_env.server", "--port", str(self.port), "--isolation", "none"],
            env={**environment(), "TMPDIR": str(folders), "ECHO_SERVER_TOKEN": "test-token"},
        )

    def wait(self) -> None:
        while self.process.poll() is None:
            if answers(f"http://127.0.0.1:{self.port}"):
                return
            time.sleep(0.05)
        raise AssertionError(f"the server ended with {self.process.returncode}")

    @contextlib.contextmanager
    def session(self) -> Iterator[Any]:
        from websockets.sync.client import connect

        headers = {"Authorization": "Bearer test-token"}
        with connect(f"ws://127.0.0.1:{self.port}/ws", proxy=None, additional_headers=headers) as socket_:

            def ask(kind: str, **data: Any) -> dict[str, Any]:
                socket_.send(json.dumps({"type": kind, "data": data}))
                answer: dict[str, Any] = json.loads(socket_.recv(30))
                return answer

            yield ask


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Server]:
    pytest.importorskip("openenv")
    started = _Server(tmp_path_factory.mktemp("server"))
    try:
        started.wait()
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def _wait_for_no_folder(server: _Server) -> None:
    for _ in range(1000):
        if not list(server.folders.glob("sandbox-*")):
            return
        time.sleep(0.01)
    raise AssertionError("a session's folder was left")


@pytest.mark.slow
def test_sessions_of_the_server_have_folders_of_their_own(server: _Server) -> None:
    with server.session() as first, server.session() as second:
        opening = first("reset", seed=1)["data"]
        assert opening["observation"]["instruction"] == generate(1).question
        assert (opening["reward"], opening["done"]) == (None, False)
        second("reset", seed=1)
        first("step", command="echo mine > new")
        listed = second("step", command="ls")["data"]["observation"]
        assert (listed["stdout"], listed["exit_code"]) == ("etc\nevents.log\nhosts.csv\n", 0)
        assert len(list(server.folders.glob("sandbox-*"))) == 2
        answered = first("step", command=f"answer {generate(1).answer}")["data"]
        assert (answered["reward"], answered["done"]) == (1.0, True)
        assert first("step", command="ls")["data"]["code"] == "EXECUTION_ERROR"
        assert first("step", line="ls")["data"]["code"] == "VALIDATION_ERROR"
    _wait_for_no_folder(server)


@pytest.mark.slow
def test_a_server_told_to_stop_in_an_episode_leaves_nothing(server: _Server) -> None:
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(ConnectionClosed), server.session() as ask:
        ask("reset", seed=2)
        running = int(ask("step", command="echo $$")["data"]["observation"]["stdout"])
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
    _wait_for_no_folder(server)
    assert _is_gone(running)
    assert _is_gone(server.process.pid)
