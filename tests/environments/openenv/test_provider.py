"""Servers that a run starts: once, on loopback, monitored, and stopped however the run ends."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from loopback import ROOT, answers, environment, free_port, normal_users_python
from tiny_run import error_of

from echo_cli.cli.main import main
from echo_cli.config.environment import ProviderConfig, ProviderLimits
from echo_cli.environments.openenv.provider import running_server
from echo_cli.environments.openenv.provider_kinds import RuntimeServer, end_process, make_server
from echo_cli.environments.openenv.provider_limits import LOG_BYTES
from echo_cli.errors import EchoError, install_command

pytestmark = pytest.mark.timeout(60)

TINY = str(ROOT / "tests" / "tiny_server.py")


@pytest.fixture(autouse=True)
def where_modules_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


def _process(*options: str, **more: Any) -> ProviderConfig:
    return ProviderConfig(kind="process", command=(sys.executable, TINY, "{port}", *options), **more)


def _known(url: str) -> dict[str, Any]:
    """Return a tiny server's description of itself."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as reply:
        known: dict[str, Any] = json.load(reply)
        return known


def _group(group: int) -> list[str]:
    """Return the running processes of a process group."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,command="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [row[2] for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


def _until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _until_gone(group: int) -> None:
    """Wait until a killed process group has ended: the kernel ends a process after the signal, in its own time."""
    _until(lambda: _group(group) == [])


def test_a_server_is_started_once_and_is_gone_after_the_block() -> None:
    with running_server(_process("--child")) as server:
        known = _known(server.url)
        assert known["argv"][1:] == [server.url.rpartition(":")[2], "--child"]
        assert server.url.startswith("http://127.0.0.1:")
        assert server.ended() is None
        assert known["group"] != os.getpgrp()
        assert len(_group(known["group"])) == 3  # the host, the server and its child
    assert not answers(server.url)
    _until_gone(known["group"])
    assert server.ended() == "the server was stopped"


@pytest.mark.parametrize("module", ["uvicorn", "openenv", "numpyro"])
def test_a_server_that_lacks_a_package_is_one_line_with_the_command_that_installs_it(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"No module named '{module}'"
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError({message!r}, name={module!r})")
    (tmp_path / "mine.py").write_text(f"import {module}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    mine = ["environment.provider.command=[python, -m, mine, '{port}']"] if module == "numpyro" else []
    assert main(["env", "check", "sandbox", *mine]) == 2
    found, tip = error_of(capsys.readouterr().err)
    if mine:
        assert "the server needs the module 'numpyro'" in found and sys.executable in tip
    else:
        assert (found, tip) == (f"the server needs {module}, which is not installed", install_command("openenv"))


def test_a_server_is_gone_after_an_exception() -> None:
    with pytest.raises(KeyError), running_server(_process()) as server:
        known = _known(server.url)
        raise KeyError
    assert not answers(server.url)
    _until_gone(known["group"])


def test_a_process_that_heeds_no_request_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echo_cli.environments.openenv.provider_kinds.STOP_SECONDS", 0.1)
    deaf = subprocess.Popen([sys.executable, TINY, "0", "--deaf"], stdout=subprocess.PIPE)
    assert deaf.stdout is not None
    with deaf.stdout:
        assert deaf.stdout.readline()
        end_process(deaf)
    assert deaf.returncode == -signal.SIGKILL


def test_the_death_of_a_server_is_noticed() -> None:
    with running_server(_process()) as server:
        known = _known(server.url)
        os.kill(known["pid"], signal.SIGKILL)
        _until(lambda: server.ended() is not None)
        assert server.ended() == (
            "the server has ended, killed by SIGKILL; its last output: \\x1b[1mlistening\\x1b[0m for None"
        )
    assert str(server.ended()).startswith("the server has ended")
    _until_gone(known["group"])


def test_the_death_of_the_host_is_noticed_and_nothing_is_left() -> None:
    with running_server(_process("--child")) as server:
        known = _known(server.url)
        os.kill(known["group"], signal.SIGKILL)  # its leader is the host
        _until(lambda: server.ended() is not None)
        assert str(server.ended()).startswith("the process that owns the server has ended")
    _until_gone(known["group"])
    assert not answers(server.url)


RUN = """
import signal, sys, threading
from echo_cli.cli.main import main
from echo_cli.config.environment import ProviderConfig
from echo_cli.environments.openenv.provider import running_server
ending, *command = sys.argv[1:]
if ending == "asked":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
with running_server(ProviderConfig(kind="process", command=tuple(command))) as server:
    print(server.url, flush=True)
    if ending != "end":
        threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("ending", "number", "code"),
    [
        ("end", None, 0),
        ("asked", signal.SIGTERM, 7),
        ("default", signal.SIGTERM, -signal.SIGTERM),
        ("default", signal.SIGINT, -signal.SIGINT),
        ("default", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_no_ending_of_the_run_leaves_a_server(ending: str, number: signal.Signals | None, code: int) -> None:
    command = [sys.executable, "-c", RUN, ending, sys.executable, TINY, "{port}", "--child"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment())
    assert run.stdout is not None
    url = run.stdout.readline().strip()
    if number is not None:
        group = _known(url)["group"]
        run.send_signal(number)
        assert run.wait(30) == code
        _until_gone(group)
    assert run.wait(30) == code
    run.stdout.close()
    assert not answers(url)


def test_ctrl_c_in_the_terminal_reaches_the_run_alone() -> None:
    """The signal goes to the run's whole process group; the server must last until the step is finished."""
    with running_server(_process()) as server:
        assert os.getsid(_known(server.url)["pid"]) != os.getsid(0)


def test_a_server_that_ends_before_it_is_ready() -> None:
    with pytest.raises(EchoError) as error, running_server(_process("--end", "3")):
        raise AssertionError("it has ended")
    assert error.value.message == (
        "the server has ended with exit code 3; its last output: \\x1b[1mlistening\\x1b[0m for None | no licence"
    )
    assert error.value.exit_code == 1 and "by hand" in str(error.value.tip)


def test_a_server_that_is_not_ready_in_time() -> None:
    message = r"not ready within 0\.7 s; its last output: .*listening"
    with pytest.raises(EchoError, match=message) as error, running_server(_process("--sick", start_timeout_s=0.7)):
        raise AssertionError("it is never ready")
    assert error.value.exit_code == 1 and "start_timeout_s" in str(error.value.tip)


def test_variables_reach_the_server_and_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    with running_server(_process(env={"TOKEN": "Bearer ${MY_TOKEN}", "MODE": "fast", "AT": "${HOME}"})) as server:
        assert server.secrets == {"s3cret": "${MY_TOKEN}", server.token: "${ECHO_SERVER_TOKEN}"}  # a home is no secret
        known = _known(server.url)
        assert (known["env"]["TOKEN"], known["env"]["MODE"]) == ("Bearer s3cret", "fast")
        os.kill(known["pid"], signal.SIGKILL)
        _until(lambda: server.ended() is not None)
        assert "for Bearer ${MY_TOKEN}" in str(server.ended()) and "s3cret" not in str(server.ended())


def test_a_server_inherits_an_allow_list_and_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HTTPS_PROXY", "DOCKER_HOST", "ANYTHING"):
        monkeypatch.setenv(name, "marker")
    monkeypatch.setenv("LC_TIME", "C")
    with running_server(_process(env={"MODE": "fast"})) as server:
        variables = _known(server.url)["env"]
    assert "marker" not in variables.values()
    assert (variables["MODE"], variables["LC_TIME"], variables["HOME"]) == ("fast", "C", os.environ["HOME"])


# The pattern keeps the line itself, which is in the list of processes, from being found.
SPYING = r"echo found $(cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>&- | tr '\0' '\n' | grep -c secret-mark[e]r)"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can hide a process's memory")
def test_the_sandboxs_shell_finds_no_secret_of_the_run_and_none_of_its_server() -> None:
    python, variables = normal_users_python()
    script = "import sys; from echo_cli.__main__ import main; sys.exit(main())"
    explorer = f"environment.explorer={json.dumps([SPYING])}"
    own = 'environment.provider.env={OTHER: "${OTHER}", SANDBOX_ISOLATION: none}'
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o777)
        variables |= {"HF_TOKEN": "secret-marker", "OTHER": "another-secret-marker", "HOME": home}
        command = [*python, "-c", script, "env", "check", "sandbox", explorer, own]
        done = subprocess.run(command, env=variables, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| found 0\n" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/fd").exists() or shutil.which("bash") is None, reason="no bash with <(…)")
def test_a_run_with_a_server_writes_into_the_shells_pipes() -> None:
    python, variables = normal_users_python()
    script = "import sys; from echo_cli.__main__ import main; sys.exit(main())"
    line = '"$@" env check sandbox 2> >(cat > log) > >(cat > out); code=$?; wait; exit $code'
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o777)
        variables["HOME"] = home
        command = [*python[:-1], "bash", "-c", line, "bash", python[-1], "-c", script]
        done = subprocess.run(command, env=variables, cwd=home)
        _until(lambda: "faults: none" in Path(home, "out").read_text())
        assert "this command starts" in Path(home, "log").read_text()
    assert done.returncode == 0


MINE = """
import os
class Mine:
    def __init__(self, key):
        self.key = key
    def start(self, env_vars):
        raise RuntimeError(f"{os.environ.get('A_KEY')} {self.key} {os.environ.get('B')}")
    def stop(self):
        pass
"""


def test_a_provider_class_finds_the_servers_variables_in_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]]))
    monkeypatch.setenv("A_KEY", "s3cret-a")
    monkeypatch.setenv("B", "s3cret-b")
    config = ProviderConfig(kind="mine:Mine", env={"A_KEY": "${A_KEY}"}, options={"key": "${B}"})
    with pytest.raises(EchoError) as error, running_server(config):
        raise AssertionError("it does not start")
    assert error.value.message.startswith("the provider failed: RuntimeError: ${A_KEY} ${B} None")


def test_python_in_a_command_does_not_import_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("json", "http", "tiny_server"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    with running_server(_module("tiny_server")) as server:
        assert answers(server.url)
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(EchoError) as error, running_server(_module("mine")):
        raise AssertionError("it is not found")
    assert "the server needs the module 'mine'" in error.value.message and "PYTHONPATH" in str(error.value.tip)


def _module(name: str) -> ProviderConfig:
    return ProviderConfig(kind="process", command=("python", "-m", name, "{port}"))


@pytest.mark.parametrize(
    ("options", "limits", "reason"),
    [
        (["--eat", "300"], {"memory_mb": 200}, r"exit code 1; its last output: .*MemoryError"),
        (["--write", "3"], {"file_mb": 2}, r"exit code 1; its last output: .*File too large"),
        (["--family", "3", "100"], {"memory_mb": 200}, r"stopped: it uses \d+ MiB, over limits\.memory_mb 200"),
        (["--family", "9", "0"], {"processes": 6}, r"stopped: it has \d+ processes, over limits\.processes 6"),
    ],
)
def test_a_server_that_exceeds_a_limit_is_stopped_with_all_that_it_started(
    options: list[str], limits: dict[str, int], reason: str
) -> None:
    marker = f"--limit-{os.getpid()}"
    config = _process(*options, marker, limits=ProviderLimits(**limits))  # type: ignore[arg-type]
    with pytest.raises(EchoError, match=reason), running_server(config) as server:
        _until(lambda: server.ended() is not None)
        raise EchoError(str(server.ended()), None)
    listed = subprocess.run(["ps", "-eo", "stat=,command="], capture_output=True, text=True, check=True).stdout
    assert not [line for line in listed.splitlines() if marker in line and not line.startswith("Z")]


def test_a_limit_that_is_null_is_off() -> None:
    off = ProviderLimits(memory_mb=None, processes=None, file_mb=None)
    with running_server(_process("--eat", "300", "--write", "3", limits=off)) as server:
        assert answers(server.url)


def test_an_endless_log_is_bounded_and_its_end_is_kept() -> None:
    with running_server(_process("--print", "3", limits=ProviderLimits(file_mb=2))) as server:
        os.kill(_known(server.url)["pid"], signal.SIGKILL)
        _until(lambda: server.ended() is not None)
        assert os.fstat(server._log.fileno()).st_size <= LOG_BYTES
        assert f"{3 * 2**14 - 1:063d} | \\x1b[1mlistening" in str(server.ended())


def test_a_port_of_ones_own() -> None:
    port = free_port()
    with running_server(_process(port=port)) as server:
        assert server.url == f"http://127.0.0.1:{port}"


def test_a_process_needs_no_openenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openenv.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]]))
    with running_server(_process()) as server:
        assert answers(server.url)


@contextmanager
def _taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("config", "message", "tip"),
    [
        ({"kind": "dokcer"}, "unknown kind 'dokcer'", "did you mean 'docker'?"),
        ({"kind": "process"}, "has no command", "add environment.provider.command"),
        ({"kind": "process", "command": ("serve",)}, "command has no {port}", "write {port}"),
        (
            {"kind": "process", "command": ("no-such-program", "{port}")},
            "cannot start 'no-such-program': No such",
            "words",
        ),
        (
            {"kind": "process", "command": ("a", "{port}"), "image": "b"},
            "image is not used with kind process",
            "omit it",
        ),
        ({"kind": "docker"}, "has no image", "add environment.provider.image"),
        ({"kind": "docker", "image": "a"}, "docker is not installed", "install Docker"),
        ({"kind": "docker", "image": "a", "options": {"gpus": 1}}, "options is not used with kind docker", "omit it"),
        (
            {"kind": "process", "command": ("a", "{port}"), "limits": ProviderLimits(cpus=1.0)},
            "limits.cpus applies only to kind docker",
            "omit it",
        ),
        ({"kind": "uv"}, "has no project_path", "add environment.provider.project_path"),
        ({"kind": "uv", "project_path": "no/such"}, "/no/such does not exist", "uv project"),
        ({"kind": "uv", "project_path": "."}, "uv is not installed", "install uv"),
        (
            {"kind": "process", "command": ("a", "{port}"), "env": {"A": "${NO_SUCH}"}},
            "NO_SUCH is not set",
            "export NO_SUCH",
        ),
    ],
)
def test_what_cannot_be_started_is_one_line_with_a_tip(
    config: dict[str, Any], message: str, tip: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EchoError) as error, running_server(ProviderConfig(**config)):
        raise AssertionError("nothing is started")
    assert message in error.value.message and tip in str(error.value.tip)
    assert error.value.exit_code == 2 and "\n" not in error.value.message


def test_python_is_the_one_that_runs_us_without_an_activated_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    ours_alone = f"import pydantic, runpy; runpy.run_path({str(TINY)!r}, run_name='__main__')"
    config = ProviderConfig(kind="process", command=("python", "-c", ours_alone, "{port}"))
    with running_server(config) as server:
        assert answers(server.url)


def test_a_port_that_another_server_has_is_refused() -> None:
    message = "Address already in use"
    with _taken_port() as port, pytest.raises(EchoError, match=message), running_server(_process(port=port)):
        raise AssertionError("the other would answer")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide a folder at the front of PATH, with stand-ins for docker and uv."""
    docker, uv = tmp_path / "docker", tmp_path / "uv"
    python, tiny = shlex.quote(sys.executable), shlex.quote(str(TINY))
    for script in (ROOT / "tests" / "stand_in_docker.py", TINY):
        shutil.copy(script, tmp_path)
    docker.write_text(f'#!/bin/sh\nexec {python} {shlex.quote(str(tmp_path))}/stand_in_docker.py "$@"\n')
    uv.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$1" = --version ] && exit\n'
        # uv run --isolated --project PATH -- uvicorn APP --host HOST --port PORT --workers 1
        f'shift 7\n[ "$1 $2" = "--host 127.0.0.1" ] && {python} {tiny} "$4"\nexit 9\n'
    )
    for program in (docker, uv):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def _asked(programs: Path) -> list[list[str]]:
    return [json.loads(line) for line in (programs / "asked").read_text().splitlines()]


def test_docker_publishes_on_loopback_alone_and_its_death_is_noticed(programs: Path) -> None:
    limits = ProviderLimits(cpus=1.5)
    config = ProviderConfig(kind="docker", image="org/echo-env:latest", env={"MODE": "fast"}, limits=limits)
    with running_server(config) as server:
        assert answers(server.url)
        port = server.url.rpartition(":")[2]
        run = next(words for words in _asked(programs) if words[0] == "run")
        assert run[:3] == ["run", "-d", "--name"] and run[4:7] == ["-p", f"127.0.0.1:{port}:8000", "--env-file"]
        assert not Path(run[7]).exists() and "fast" not in str(run) and server.token not in str(run)
        assert json.loads((programs / "env").read_text()) == [
            "0o100600",
            f"MODE=fast\nECHO_SERVER_TOKEN={server.token}\n",
        ]
        assert run[8:] == [
            *("--log-driver", "json-file", "--log-opt", "max-size=16m", "--log-opt", "max-file=1"),
            *("--memory", "8192m", "--pids-limit", "512", "--ulimit", f"fsize={2**30}", "--cpus", "1.5"),
            "org/echo-env:latest",
        ]
        os.kill(int((programs / "pid").read_text()), signal.SIGKILL)
        _until(lambda: server.ended() is not None)
        assert server.ended() == "the server has ended with exit code 247; its last output: from the container"
    assert not answers(server.url)
    verbs = [words[0] for words in _asked(programs)]
    assert verbs[:2] == ["version", "run"] and verbs.index("stop") < verbs.index("rm")
    assert ["rm", "--force", run[3]] in _asked(programs)


def test_what_docker_refuses_is_told_without_its_command(programs: Path) -> None:
    server = make_server(ProviderConfig(kind="docker", image="missing"))
    with pytest.raises(EchoError) as error:
        server.start()
    assert error.value.message == "docker cannot run image 'missing': Unable to find image 'missing:latest' locally"
    assert error.value.tip == "run docker pull missing, or build it" and error.value.exit_code == 2
    server.stop()
    server = make_server(ProviderConfig(kind="docker", image="a", env={"LINES": "a\nb"}))
    with pytest.raises(EchoError, match=r"environment\.provider\.env\.LINES has a line break"):
        server.start()
    server.stop()

    (programs / "asleep").touch()
    with pytest.raises(EchoError, match="Docker does not answer"):
        make_server(ProviderConfig(kind="docker", image="a"))


def test_uv_runs_the_app_on_loopback(programs: Path, tmp_path: Path) -> None:
    server = make_server(ProviderConfig(kind="uv", project_path=str(tmp_path), app="mine:app", env={"MODE": "fast"}))
    url = server.start()
    server.wait_ready(url, 20.0)
    known = _known(url)
    assert known["env"]["MODE"] == "fast"
    assert (programs / "asked").read_text().splitlines() == [
        "--version",
        f"run --isolated --project {tmp_path} -- "
        f"uvicorn mine:app --host 127.0.0.1 --port {url.rpartition(':')[2]} --workers 1",
    ]
    os.kill(known["pid"], signal.SIGKILL)
    assert server.wait() == 9
    server.stop()


class Own:
    """A user-defined provider."""

    def __init__(self, mode: str) -> None:
        self._mode = mode

    def start(self, port: int | None = None, env_vars: dict[str, str] | None = None) -> str:
        port = port or free_port()
        command = [sys.executable, TINY, str(port), self._mode]
        self._process = subprocess.Popen(command, env=os.environ | (env_vars or {}))
        return f"http://127.0.0.1:{port}"

    def wait_for_ready(self, timeout_s: float = 30.0) -> None:
        self.waited_s = timeout_s

    def stop(self) -> None:
        self.stopped = True


def test_a_provider_class_of_ones_own() -> None:
    server = RuntimeServer(ProviderConfig(kind=f"{__name__}:Own", options={"mode": "fast"}, env={"MODE": "x"}))
    url = server.start()
    server.wait_ready(url, 5.0)
    _until(lambda: answers(url))
    known = _known(url)
    assert known["argv"][2] == "fast" and known["env"]["MODE"] == "x"
    server.stop()
    assert not answers(url)
    assert server.wait() == -signal.SIGTERM
    provider = server._provider
    assert provider.stopped and provider.waited_s == 5.0


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("openenv.core.containers.runtime.providers:DockerSwarmProvider", "starts containers and needs an image"),
        ("pathlib:Path", "is not a provider: it has no method start"),
        (f"{__name__}:Own", "environment.provider.options: .*missing 1 required positional argument: 'mode'"),
    ],
)
def test_what_is_no_provider_is_refused(kind: str, message: str) -> None:
    with pytest.raises(EchoError, match=message):
        make_server(ProviderConfig(kind=kind))
