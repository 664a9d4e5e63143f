"""A child process with JSON lines: messages of both ends arrive, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loopback import environment

from echo_cli.concurrency import ChildProcess

pytestmark = pytest.mark.timeout(60)

CHILD = """
import json, os, subprocess, sys, time
from echo_cli.concurrency import say, take_pipes
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
        "import os; from echo_cli.concurrency import ChildProcess\n"
        "process = ChildProcess('child'); process.receive(); os.kill(os.getpid(), 9)"
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
