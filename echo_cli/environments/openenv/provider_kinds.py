"""The kinds of servers that we can start: a process, and what OpenEnv's providers start.

OpenEnv's providers leave some things to their caller: Docker publishes on every address unless told, uv binds every
address and nobody notices when either has died. Here all are bound to 127.0.0.1, and can be waited for.
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
"""How long a server may take to end by itself."""

_POLL_SECONDS = 0.05


class Server(Protocol):
    """One server, started once. Its methods are called from several threads."""

    def start(self) -> str:
        """Start it and return its base URL, before it is ready.

        Raises:
            EchoError: it cannot be started.
        """

    def wait_ready(self, url: str, timeout_s: float) -> None:
        """Wait until it answers. Whoever waits also watches for its end.

        Raises:
            TimeoutError: it does not within `timeout_s`.
        """
        _poll_health(url, timeout_s)

    def wait(self) -> int | None:
        """Wait until it has ended, and return its exit code where there is one."""

    def log_tail(self) -> None:
        """Write its last output to our own stderr; by default, that is where it writes anyway."""
        return

    def stop(self) -> None:
        """End it, whatever its state."""


def make_server(config: ProviderConfig) -> Server:
    """The server of a config whose `env` is filled in.

    Raises:
        EchoError: there is no such provider, or it does not take the options.
    """
    if config.kind == "process":
        return ProcessServer(config)
    if config.kind == "docker":
        return DockerServer(config)
    return RuntimeServer(config)


class ProcessServer(Server):
    """The server of `command`, run without a shell; `python` is the one that runs echo-cli."""

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
                "environment.provider.command is a list of words, the first a program",
            ) from None
        return f"http://127.0.0.1:{port}"

    def wait(self) -> int | None:
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            end_process(self._process)


class DockerServer(Server):
    """A container of `image`, whose port 8000 is published on 127.0.0.1 alone."""

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
            # `-p {port}:8000` is what OpenEnv makes of it; without the address Docker would publish on every one.
            self._provider.start_container(self._config.image, port=f"127.0.0.1:{port}", env_vars=self._config.env)
        except RuntimeError as error:  # its text holds the whole command, and with it the values of env
            said = getattr(error.__cause__, "stderr", None) or "it does not say why"
            raise EchoError(
                f"docker cannot run image '{self._config.image}': {fault_line(said)}",
                f"docker pull {self._config.image}, or build it",
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
        name = self._provider._container_name  # known before there is a container
        with suppress(subprocess.TimeoutExpired):  # Docker gives a container as long as OpenEnv gives Docker
            self._provider.stop_container()
        if name is not None:
            subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)


class RuntimeServer(Server):
    """What `uv run` or a provider class starts.

    The end of a provider class's server is noticed where the provider keeps its process as `_process`, as OpenEnv's
    own do; where it keeps none, sessions that cannot be had tell of it.
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
            raise EchoError(f"'{config.kind}' is no provider: it has no start", "name one of OpenEnv's providers")
        if self._in_container and config.image is None:
            raise EchoError(
                f"'{config.kind}' starts containers, and there is no image", "add environment.provider.image"
            )
        try:
            self._provider = provider(**given, **config.options)
        except TypeError as error:
            raise _wrong_options(error) from None
        except (RuntimeError, subprocess.CalledProcessError) as error:
            raise EchoError(f"{config.kind}: {fault_line(str(error))}", "install what the provider needs") from None

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
        raise AssertionError("nobody sets it")

    def stop(self) -> None:
        process = getattr(self._provider, "_process", None)
        if isinstance(process, subprocess.Popen):
            end_process(process)
        self._provider.stop_container() if self._in_container else self._provider.stop()


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and kill it where it does not within `STOP_SECONDS`."""
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
        except (urllib.error.URLError, OSError):  # refused while it starts, or not yet healthy
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
        f"environment.provider.options: {fault_line(str(error))}", "they are the provider's constructor's arguments"
    )
