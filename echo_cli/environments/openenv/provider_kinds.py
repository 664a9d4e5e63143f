"""The kinds of servers that a run can start: a process, and the servers of OpenEnv's providers.

By default, OpenEnv's Docker and uv providers listen on every address, and neither reports that its server has ended.
The classes here bind to 127.0.0.1 and can be waited for.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from echo_cli.config.environment import ProviderConfig
from echo_cli.environments.faults import fault_line
from echo_cli.environments.openenv.package import load_class
from echo_cli.errors import EchoError

STOP_SECONDS = 5.0
"""Seconds that a server has to end before it is killed."""

_POLL_SECONDS = 0.05


class Server(Protocol):
    """One server, started once. Its methods are called from several threads."""

    def start(self) -> str:
        """Start the server and return its base URL, before it is ready.

        Raises:
            EchoError: the server cannot be started.
        """

    def wait_ready(self, url: str, timeout_s: float) -> None:
        """Wait until the server answers. The caller also watches for its end.

        Raises:
            TimeoutError: the server does not answer within `timeout_s` seconds.
        """
        _poll_health(url, timeout_s)

    def wait(self) -> int | None:
        """Wait until the server has ended, and return its exit code; None if it has none."""

    def log_tail(self) -> None:
        """Copy the server's last output to our stderr; by default, the server writes there itself."""
        return

    def stop(self) -> None:
        """Stop the server, whatever its state."""


def make_server(config: ProviderConfig) -> Server:
    """Return the server of a config whose `env` is filled in.

    Raises:
        EchoError: the provider does not exist, or does not accept the options.
    """
    if config.kind == "process":
        return ProcessServer(config)
    if config.kind == "docker":
        return DockerServer(config)
    return RuntimeServer(config)


class ProcessServer(Server):
    """The server of `command`, run without a shell; `python` is the interpreter that runs echo-cli."""

    def __init__(self, config: ProviderConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        port = self._config.port or _free_port()
        words = [word.replace("{port}", str(port)) for word in self._config.command]
        # echo-cli may run from a virtual environment that nobody has activated.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        env = os.environ | {"PATH": path} | self._config.env
        try:
            self._process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise EchoError(
                f"cannot start '{fault_line(words[0])}': {error.strerror}",
                "write environment.provider.command as a list of words, the first of which is a program",
            ) from None
        return f"http://127.0.0.1:{port}"

    def wait(self) -> int | None:
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            end_process(self._process)


class DockerServer(Server):
    """A container of `image` whose port 8000 is published only on 127.0.0.1."""

    def __init__(self, config: ProviderConfig) -> None:
        from openenv.core.containers.runtime.providers import LocalDockerProvider

        self._config = config
        try:
            self._provider = LocalDockerProvider(**config.options)
        except TypeError as error:
            raise _wrong_options(error) from None
        except RuntimeError:
            raise EchoError("Docker does not answer", "start the Docker daemon: 'docker version' must work") from None

    def start(self) -> str:
        port = self._config.port or _free_port()
        try:
            # OpenEnv passes `-p {port}:8000` to Docker, which publishes on every address if none is given.
            self._provider.start_container(self._config.image, port=f"127.0.0.1:{port}", env_vars=self._config.env)
        except RuntimeError as error:  # its text contains the whole command, including the values of env
            said = getattr(error.__cause__, "stderr", None) or "no reason given"
            raise EchoError(
                f"docker cannot run image '{self._config.image}': {fault_line(said)}",
                f"run docker pull {self._config.image}, or build it",
            ) from None
        return f"http://127.0.0.1:{port}"

    def wait(self) -> int | None:
        waited = subprocess.run(
            ["docker", "wait", self._provider._container_id], capture_output=True, text=True, check=False
        )
        return int(waited.stdout) if waited.stdout.strip().isdigit() else None

    def log_tail(self) -> None:
        if self._provider._container_id is not None:
            subprocess.run(["docker", "logs", "--tail", "20", self._provider._container_id], check=False)

    def stop(self) -> None:
        name = self._provider._container_name  # set before the container exists
        with suppress(subprocess.TimeoutExpired):  # Docker's own grace period is as long as OpenEnv's timeout
            self._provider.stop_container()
        if name is not None:
            subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)


class RuntimeServer(Server):
    """The server of `uv run` or of a provider class.

    The end of a provider class's server is detected if the provider stores its process as `_process`, as OpenEnv's own
    providers do; otherwise only unavailable sessions reveal it.
    """

    def __init__(self, config: ProviderConfig) -> None:
        self._config = config
        given: dict[str, Any] = {}
        if config.kind == "uv":
            from openenv.core.containers.runtime.uv_provider import UVProvider

            provider: type[Any] = UVProvider
            given = {"project_path": config.project_path, "app": config.app, "host": "127.0.0.1"}
            given["context_timeout_s"] = config.start_timeout_s
        else:
            provider = load_class(config.kind)
        self._in_container = hasattr(provider, "start_container")
        if not (self._in_container or hasattr(provider, "start")):
            raise EchoError(
                f"'{config.kind}' is not a provider: it has no method start", "name one of OpenEnv's providers"
            )
        if self._in_container and config.image is None:
            raise EchoError(f"'{config.kind}' starts containers and needs an image", "add environment.provider.image")
        try:
            self._provider = provider(**given, **config.options)
        except TypeError as error:
            raise _wrong_options(error) from None
        except (RuntimeError, subprocess.CalledProcessError) as error:
            raise EchoError(
                f"{config.kind}: {fault_line(str(error))}", "install the software that the provider needs"
            ) from None

    def start(self) -> str:
        arguments: dict[str, Any] = {"env_vars": self._config.env}
        if self._config.port is not None or self._config.kind == "uv":
            arguments["port"] = self._config.port or _free_port()
        if self._in_container:
            return str(self._provider.start_container(self._config.image, **arguments))
        return str(self._provider.start(**arguments))

    def wait_ready(self, url: str, timeout_s: float) -> None:
        if self._config.kind == "uv":
            _poll_health(url, timeout_s)
        elif self._in_container:
            self._provider.wait_for_ready(url, timeout_s=timeout_s)
        else:
            self._provider.wait_for_ready(timeout_s=timeout_s)

    def wait(self) -> int | None:
        process = getattr(self._provider, "_process", None)
        if isinstance(process, subprocess.Popen):
            return process.wait()
        threading.Event().wait()
        raise AssertionError("the event is never set")

    def stop(self) -> None:
        process = getattr(self._provider, "_process", None)
        if isinstance(process, subprocess.Popen):
            end_process(process)
        self._provider.stop_container() if self._in_container else self._provider.stop()


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process, and kill it if it does not end within `STOP_SECONDS`."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _poll_health(url: str, timeout_s: float) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        try:
            with opener.open(f"{url}/health", timeout=left) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):  # the server is starting, or not healthy yet
            pass
        time.sleep(_POLL_SECONDS)
    raise TimeoutError


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wrong_options(error: TypeError) -> EchoError:
    return EchoError(
        f"environment.provider.options: {fault_line(str(error))}", "give the arguments of the provider's constructor"
    )
