"""Servers on loopback that tests start and end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def answers(url: str) -> bool:
    """Whether a server's `/health` answers 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def environment() -> dict[str, str]:
    """Our environment, in which the packages and the tests' own modules are found."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "envs"), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path}


def start(command: Sequence[str], url: str) -> subprocess.Popen[bytes]:
    """A server process, once it answers."""
    process = subprocess.Popen(command, env=environment(), cwd=ROOT / "tests")
    while not answers(url):
        assert process.poll() is None, "the server has ended"
        time.sleep(0.02)
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and wait for it."""
    process.kill()
    process.wait()


@contextmanager
def openenv_server(port: int | None = None) -> Iterator[str]:
    """The base URL of the environments of `openenv_samples`, each at `/NAME`."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    process = start([sys.executable, "openenv_samples.py", str(port)], url)
    try:
        yield url
    finally:
        stop(process)
