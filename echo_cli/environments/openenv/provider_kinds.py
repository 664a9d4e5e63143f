"""The kinds of servers that a run can start: a process, a Docker container, and the servers of OpenEnv's providers.

By default, OpenEnv's Docker and uv providers listen on every address, and neither reports that its server has ended.
The classes here bind to 127.0.0.1 and can be waited for.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from echo_cli.config.environment import ProviderConfig
from echo_cli.environments.faults import fault_line
from echo_cli.environments.openenv.package import load_class
from echo_cli.environments.openenv.provider_limits import docker_limits
from echo_cli.errors import EchoError
from echo_cli.processes import inherited, without_current_folder
from echo_cli.text import escape_unprintable

STOP_SECONDS = 5.0
"""Seconds that a server has to end before it is killed."""

_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 10.0


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

    def process_id(self) -> int | None:
        """Return the id of the server's process if it is a child of ours that `wait` waits for; by default None."""
        return None

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
    """The server of `command`, run without a shell.

    `python` is the interpreter that runs echo-cli; its `-m` does not import from the current folder.
    """

    def __init__(self, config: ProviderConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        port = self._config.port or _free_port()
        words = [word.replace("{port}", str(port)) for word in self._config.command]
        if words[0] in ("python", sys.executable):
            words = without_current_folder([sys.executable, *words[1:]])
        env = inherited(os.environ)
        # echo-cli may run from a virtual environment that nobody has activated.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH") or os.defpath])
        env |= self._config.env
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

    def process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        if self._process is not None:
            end_process(self._process)


class DockerServer(Server):
    """A container of `image` whose port 8000 is published only on 127.0.0.1.

    OpenEnv's own provider passes the values of `env` to `docker run` as arguments, which every user can see in `ps`.
    """

    def __init__(self, config: ProviderConfig) -> None:
        self._config = config
        self._name: str | None = None
        require_docker()

    def start(self) -> str:
        port, image = self._config.port or _free_port(), str(self._config.image)
        self._name = f"echo-{secrets.token_hex(8)}"
        with _env_file(self._config.env) as env:
            words = ["-d", "--name", self._name, "-p", f"127.0.0.1:{port}:8000", *env]
            started = run_docker("run", *words, *docker_limits(self._config.limits), image)
        if started.returncode != 0:
            raise EchoError(
                f"docker cannot run image '{image}': {fault_line(started.stderr or 'no reason given')}",
                f"run docker pull {image}, or build it",
            )
        return f"http://127.0.0.1:{port}"

    def wait(self) -> int | None:
        ended = run_docker("wait", str(self._name)).stdout.strip()
        return int(ended) if ended.isdigit() else None

    def log_tail(self) -> None:
        if self._name is not None:
            environ = docker_environment()
            subprocess.run(["docker", "logs", "--tail", "20", self._name], env=environ, check=False)

    def stop(self) -> None:
        if self._name is not None:
            run_docker("stop", "-t", f"{STOP_SECONDS:.0f}", self._name)
            run_docker("rm", "--force", self._name)


def docker_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `environ` that say how Docker's client reaches its daemon."""
    return {name: environ[name] for name in environ if name.startswith("DOCKER_") or name == "SSH_AUTH_SOCK"}


def require_docker() -> None:
    """Raise an EchoError if Docker is not installed, or its daemon does not answer."""
    with suppress(subprocess.TimeoutExpired, FileNotFoundError):
        if run_docker("version", timeout_s=_ANSWER_SECONDS).returncode == 0:
            return
    raise EchoError("Docker does not answer", "start the Docker daemon: 'docker version' must work")


def docker_environment() -> dict[str, str]:
    """Return the variables of Docker's client."""
    return inherited(os.environ) | docker_variables(os.environ)


def run_docker(*words: str, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run Docker's client to its end.

    Raises:
        subprocess.TimeoutExpired: it takes longer than `timeout_s` seconds.
    """
    command, environ = ["docker", *words], docker_environment()
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s
    )


@contextmanager
def _env_file(env: Mapping[str, str]) -> Iterator[list[str]]:
    """Yield the options that give a container its variables: a file that only this user can read, until it has run.

    Raises:
        EchoError: a variable does not fit into the file, whose lines are `NAME=value`.
    """
    for name, value in env.items():
        if not name or set(name) & set("=# \t\n\0") or set(value) & set("\n\r\0"):
            raise EchoError(
                f"environment.provider.env.{escape_unprintable(name)} has a line break, or a name that Docker refuses",
                "pass it in another form, such as base64",
            )
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="echo-env-") as file:  # exclusive, mode 0600
        file.writelines(f"{name}={value}\n" for name, value in env.items())
        file.flush()
        yield ["--env-file", file.name] if env else []


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
        if (process := self._process()) is not None:
            return process.wait()
        threading.Event().wait()
        raise AssertionError("the event is never set")

    def process_id(self) -> int | None:
        return None if (process := self._process()) is None else process.pid

    def _process(self) -> subprocess.Popen[bytes] | None:
        process = getattr(self._provider, "_process", None)
        return process if isinstance(process, subprocess.Popen) else None

    def stop(self) -> None:
        if (process := self._process()) is not None:
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
