"""Child processes: messages of both ends arrive, no process is left, and no secret is readable from another one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from loopback import environment, normal_users_python

from echo_cli.processes import ChildProcess, inherited, without_current_folder

pytestmark = pytest.mark.timeout(60)

CHILD = """
import json, os, subprocess, sys, time
from echo_cli.processes import say, take_pipes
orders, report = take_pipes()
{body}
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of the module `child`, written by the tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]]))
    return tmp_path / "child.py"


def started(child: Path, body: str) -> ChildProcess:
    child.write_text(CHILD.format(body=body))
    return ChildProcess("child")


def test_messages_longer_than_a_pipe_arrive_both_ways(child: Path) -> None:
    process = started(child, "for line in orders: say(report, json.loads(line))")
    messages = [{"number": number, "text": "é\n" * 200_000} for number in range(2)]
    for message in messages:
        process.send(message)
    assert process.unsent > 2**20 and not process.has_message
    assert [process.receive() for _ in messages] == messages
    process.stop(30)
    assert process.has_ended and process.receive() is None


def test_sending_to_a_child_that_does_not_read_never_blocks(child: Path) -> None:
    process = started(child, "time.sleep(600)")
    begun = time.monotonic()
    process.send({"text": "x" * 2**20})
    process.exchange(0)
    assert time.monotonic() - begun < 30 and process.unsent > 0
    process.kill()
    assert process.exit_code() == -signal.SIGKILL


def test_a_child_that_dies_is_noticed_and_its_cut_message_is_left_out(child: Path) -> None:
    process = started(child, 'say(report, {"a": 1}); report.write(b\'{"b": \'); os._exit(3)')
    process.send({"text": "x" * 2**20})
    assert process.receive() == {"a": 1}
    assert process.receive() is None and process.has_ended
    assert process.exit_code() == 3
    process.kill()


def test_children_of_the_child_hold_no_pipe_and_end_with_its_group(child: Path) -> None:
    code = "import sys; print(sys.stdin.read() + 'printed', flush=True); import time; time.sleep(600)"
    process = started(
        child,
        f"other = subprocess.Popen([sys.executable, '-c', {code!r}])\nsay(report, {{'pid': other.pid}})\nos._exit(0)",
    )
    message = process.receive()
    assert message is not None and process.receive() is None  # stdout has ended, but the process lives
    process.stop(30)
    deadline = time.monotonic() + 30
    while _runs(message["pid"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_child_that_ignores_the_end_of_its_stdin_is_killed(child: Path) -> None:
    process = started(child, "say(report, {}); time.sleep(600)")
    assert process.receive() == {}
    process.stop(0.1)
    assert process.exit_code() == -signal.SIGKILL


def test_a_child_learns_that_its_parent_was_killed(child: Path) -> None:
    child.write_text(CHILD.format(body="say(report, {})\norders.read()\nopen(os.environ['NOTE'], 'w').close()"))
    note = child.parent / "note"
    parent = (
        "import os; from echo_cli.processes import ChildProcess\n"
        "process = ChildProcess('child', {'NOTE': os.environ['NOTE']}); process.receive(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", parent], env={**os.environ, "NOTE": str(note)})
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while not note.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(listed.strip()) and not listed.startswith("Z")


def test_children_inherit_places_and_settings_but_no_secret_proxy_or_empty_entry_of_a_search_path() -> None:
    kept = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1",
        "HF_HOME": "/models",
        "HOME": "/home/a",
        "LC_ALL": "C",
        "NCCL_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "2",
        "SSL_CERT_FILE": "/etc/ssl/cert.pem",
        "TMPDIR": "/tmp",
        "TZ": "UTC",
        "VIRTUAL_ENV": "/venv",
    }
    names = (
        "HF_TOKEN WANDB_API_KEY AWS_SECRET_ACCESS_KEY NVIDIA_API_KEY ECHO_SERVER_TOKEN HTTPS_PROXY SSH_AUTH_SOCK "
        "PYTHONSTARTUP MINE"
    )
    searched = {"PATH": ":/bin::/usr/bin:", "PYTHONPATH": "", "LD_LIBRARY_PATH": ":/opt/lib"}
    assert inherited(kept | dict.fromkeys(names.split(), "marker") | searched) == kept | {
        "PATH": "/bin:/usr/bin",
        "PYTHONPATH": "",
        "LD_LIBRARY_PATH": "/opt/lib",
    }


def test_variables_arrive_in_the_child_and_not_in_what_it_is_started_with(
    child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_TOKEN", "marker-of-the-parent")
    child.write_text(
        CHILD.format(
            body="say(report, {'own': os.environ.get('OWN_TOKEN'), 'other': os.environ.get('OTHER_TOKEN'),"
            "'started': open('/proc/self/environ').read() if os.path.exists('/proc/self/environ') "
            "and os.access('/proc/self/environ', os.R_OK) else ''})"
        )
    )
    process = ChildProcess("child", {"OWN_TOKEN": "marker"})
    message = process.receive()
    process.stop(30)
    assert message is not None and (message["own"], message["other"]) == ("marker", None)
    assert "marker" not in message["started"]


SPIES = """
import os, pathlib, sys
marker, found = b'-'.join([b'marker', b'of', b'a', b'test']), []
for folder in pathlib.Path('/proc').iterdir():
    if folder.name.isdigit() and int(folder.name) != os.getpid():
        for name in ('environ', 'cmdline', 'fd/0', 'maps'):
            try:
                text = os.readlink(folder / name).encode() if name == 'fd/0' else (folder / name).read_bytes()
            except OSError:
                continue
            if marker in text or (folder.name in sys.argv[1:] and name in ('fd/0', 'maps')):
                found.append(f'{folder.name}/{name}')
print(*found)
"""
"""Program that prints what it can read of other processes: the marker, and any memory map or file of those named."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can hide a process's memory")
def test_no_secret_of_this_process_or_of_a_child_of_ours_is_readable_from_a_child_of_another_kind() -> None:
    """The parent starts a child of ours with a secret, and a spy as a normal user; root could read anything."""
    parent = (
        "import os, subprocess, sys\n"
        "from echo_cli.processes import ChildProcess, inherited\n"
        "ours = ChildProcess('child', {'TOKEN': os.environ['TOKEN']})\n"
        "pids = [str(os.getpid()), str(ours.receive()['pid'])]\n"
        f"spy = subprocess.run([sys.executable, '-c', {SPIES!r}, *pids], env=inherited(os.environ), "
        "capture_output=True, text=True, check=True)\n"
        "ours.stop(30)\n"
        "print(spy.stdout)"
    )
    with tempfile.TemporaryDirectory() as folder:  # unlike tmp_path, readable for others
        os.chmod(folder, 0o755)
        Path(folder, "child.py").write_text(CHILD.format(body="say(report, {'pid': os.getpid()})\norders.read()"))
        python, variables = normal_users_python()
        variables |= {"PYTHONPATH": f"{folder}{os.pathsep}{variables['PYTHONPATH']}", "TOKEN": "marker-of-a-test"}
        done = subprocess.run([*python, "-c", parent], env=variables, capture_output=True, text=True, cwd="/")
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize("version", [(3, 10), (3, 11)])
def test_python_does_not_import_from_the_current_folder_for_m_and_c(
    version: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form for Python 3.10 works with every version."""
    if sys.version_info < version:
        pytest.skip("-P is new in 3.11")
    monkeypatch.setattr("echo_cli.processes.sys.version_info", version)
    for name in ("pydantic", "json", "runpy", "elsewhere"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (elsewhere / "there.py").write_text("import sys, json, pydantic; print(__name__, sys.argv[1:], '' in sys.path)")
    run = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(elsewhere)}, "capture_output": True, "text": True}
    for words in (
        ["-m", "there", "a", "-m"],
        ["-u", "-W", "ignore", "-m", "there", "a", "-m"],
        ["-c", "from there import *", "a", "-m"],
        [str(elsewhere / "there.py"), "a", "-m"],
    ):
        done = subprocess.run(without_current_folder([sys.executable, *words]), **run)  # type: ignore[call-overload]
        name = "there" if "-c" in words else "__main__"
        assert (done.stdout, done.stderr) == (f"{name} ['a', '-m'] False\n", "")
    beside = without_current_folder([sys.executable, str(tmp_path / "script.py")])
    (tmp_path / "script.py").write_text("import elsewhere")
    assert b"imported from the current folder" in subprocess.run(beside, capture_output=True).stderr
