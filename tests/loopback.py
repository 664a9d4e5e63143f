"""Servers on loopback that tests start and end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def answers(url: str) -> bool:
    """Return whether a server's `/health` answers 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def environment() -> dict[str, str]:
    """Return the environment variables with which a child process finds the packages and the tests' modules."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "envs"), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path}


def normal_users_python() -> tuple[list[str], dict[str, str]]:
    """Return the command of a Python that runs as a normal user, and its variables; skip the test if there is none.

    Root's own Python may lie in a folder that only root can enter.
    """
    variables = {**environment(), "PYTHONPATH": os.pathsep.join([environment()["PYTHONPATH"], *filter(None, sys.path)])}
    if os.geteuid() != 0:
        return [sys.executable], variables
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    try_it = "import subprocess, sys, echo_cli.cli.main; sys.exit(subprocess.call([sys.executable, '-c', '']))"
    for python in (sys.executable, shutil.which(f"python3.{sys.version_info.minor}", path=os.defpath)):
        if python is not None and shutil.which("setpriv") is not None:
            command = [*as_nobody, python]
            if subprocess.run([*command, "-c", try_it], env=variables, capture_output=True, cwd="/").returncode == 0:
                return command, variables
    pytest.skip("root can read every process, and no Python here can be run as a normal user")


class OpenEnvServer:
    """The environments of `openenv_samples`, each at `/NAME` of a server that can be killed and started again."""

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._host = subprocess.Popen(
            [sys.executable, "openenv_samples.py", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            cwd=ROOT / "tests",
        )
        self.restart()

    def restart(self) -> None:
        """Kill the server if there is one, and start a new one."""
        assert self._host.stdin is not None and self._host.stdout is not None
        self._host.stdin.write(b"\n")
        self._host.stdin.flush()
        assert self._host.stdout.readline(), "the server's host has ended"
        while not answers(self.url):
            time.sleep(0.02)

    def stop(self) -> None:
        """Kill the server and wait for it."""
        assert self._host.stdin is not None and self._host.stdout is not None
        self._host.stdin.close()
        self._host.wait()
        self._host.stdout.close()
