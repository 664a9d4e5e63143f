"""Start a server for a run, watch it, and stop it however the run ends.

A separate process (`provider_host.py`) owns the server. It stops the server when our end of a pipe is closed: at the
end of the block, or by the kernel when our process is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_urlsafe
from typing import IO, Any

from echo_cli.config.environment import ProviderConfig
from echo_cli.environments.faults import fault_line
from echo_cli.environments.openenv.address import expand_all
from echo_cli.environments.openenv.package import missing_module, require_openenv
from echo_cli.environments.openenv.provider_kinds import docker_variables
from echo_cli.errors import EchoError
from echo_cli.processes import ChildProcess, inherited
from echo_cli.text import escape_unprintable, suggest
from toy_terminal_env.server.access import TOKEN_VARIABLE

_STOP_SECONDS = 30.0
_TAIL_BYTES = 8192
_TAIL_LINES = 2
_TOKEN_BYTES = 32
_SECRET_CHARS = 4
"""Minimum length of a secret, characters; hiding shorter values, such as every 1, would make messages unreadable."""

_KEYS = {"process": {"command"}, "docker": {"image"}, "uv": {"project_path", "app", "options"}}
_CLASS_KEYS = {"image", "options"}
_TIPS = {
    "docker": "install Docker, or start the server yourself and set environment.url",
    "uv": "install uv (https://docs.astral.sh/uv), or use kind: process",
}


class Provided:
    """A server that was started for the run; it may have ended."""

    def __init__(
        self, host: ChildProcess, log: IO[bytes], token: str, secrets: Mapping[str, str], *, is_our_python: bool
    ) -> None:
        self._host = host
        self._log = log
        self.token = token
        """Secret that the server expects from its clients, if it is one of ours; it is new at each start."""
        self.secrets = secrets
        """Values of variables that the server was given, mapped to the `${NAME}` that is shown instead."""
        self._is_our_python = is_our_python
        self._lock = threading.Lock()
        self._end: str | None = None
        self.url = ""
        """Base URL of the server; empty until it is ready."""

    def ended(self) -> str | None:
        """Return why the server has ended, with its last output, on one line; None while it runs."""
        with self._lock:
            if self._end is None:
                self._host.exchange(0)
                if self._host.has_message or self._host.has_ended:
                    self._end = self._how_it_ended(self._host.receive() or {})
            return self._end

    def wait_ready(self) -> None:
        """Wait until the server is ready, and set `url`.

        Raises:
            EchoError: the server cannot be started (exit code 2), or ended or was not ready in time (exit code 1).
        """
        message = self._host.receive() or {}
        if "url" in message:
            self.url = message["url"]
        elif "error" in message:
            text = fault_line(message["error"], self.secrets)
            tail = self._tail() if message["exit_code"] == 1 else ""
            raise EchoError(f"{text}{tail}", message["tip"], exit_code=message["exit_code"])
        else:
            how = self._how_it_ended(message)
            if "limit" in message:
                raise EchoError(how, "raise environment.provider.limits; null switches one off", exit_code=1)
            missing = missing_module(how) if self._is_our_python else None
            raise missing or EchoError(how, "start it by hand to see why", exit_code=1)

    def stop(self) -> None:
        """Stop the server and its host process, and wait for them."""
        with self._lock:
            self._end = self._end or "the server was stopped"
            self._host.stop(_STOP_SECONDS)

    def _how_it_ended(self, message: Mapping[str, Any]) -> str:
        if "ended" not in message:
            return f"the process that owns the server has ended{self._tail()}"
        if "limit" in message:
            return f"the server was stopped: {message['limit']}{self._tail()}"
        code = message["ended"]
        if code is None:
            how = ""
        elif code < 0:
            how = f", killed by {signal.Signals(-code).name}"
        else:
            how = f" with exit code {code}"
        return f"the server has ended{how}{self._tail()}"

    def _tail(self) -> str:
        """Return the last lines of the server's output, joined to one line."""
        size = os.fstat(self._log.fileno()).st_size
        # Not `seek`, which would move the server's write position.
        tail = os.pread(self._log.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace")
        lines = [fault_line(line, self.secrets) for line in tail.splitlines() if line.strip()]
        return f"; its last output: {' | '.join(lines[-_TAIL_LINES:])}" if lines else ""


@contextmanager
def running_server(config: ProviderConfig, import_from: str | None = None) -> Iterator[Provided]:
    """Yield a ready server; stop it at the end of the block, or when this process ends in any other way.

    Ctrl-C in the terminal does not reach the server, because the trainer needs the server to finish the step.

    Args:
        import_from: folder from which a provider class may be imported, besides the installed packages.

    Raises:
        EchoError: the config does not suit its kind, or a program or package is missing (exit code 2); the server
            ended or was not ready in time (exit code 1).
    """
    _check(config)
    token = config.env.get(TOKEN_VARIABLE) or token_urlsafe(_TOKEN_BYTES)
    env, secrets = expand_all({**config.env, TOKEN_VARIABLE: token}, "environment.provider.env", empty=True)
    options, more = expand_all(config.options, "environment.provider.options", empty=True)
    secrets |= more | {env[TOKEN_VARIABLE]: f"${{{TOKEN_VARIABLE}}}"}
    public = {f"${{{name}}}" for name in inherited(os.environ)}  # a home folder is a part of many paths
    secrets = {value: name for value, name in secrets.items() if len(value) >= _SECRET_CHARS and name not in public}
    with tempfile.TemporaryFile("a+b") as log:
        host = ChildProcess(
            "echo_cli.environments.openenv.provider_host", _host_variables(config.kind, env), stderr=log
        )
        is_our_python = config.kind == "process" and config.command[0] in ("python", sys.executable)
        server = Provided(host, log, env[TOKEN_VARIABLE], secrets, is_our_python=is_our_python)
        try:
            host.send({"provider": config.model_dump(mode="json"), "import_from": import_from})
            host.send({"env": env, "options": options})
            server.wait_ready()
            yield server
        finally:
            server.stop()


def _check(config: ProviderConfig) -> None:
    kind = config.kind
    if kind not in _KEYS and ":" not in kind:
        raise EchoError(
            f"environment.provider.kind: unknown kind '{escape_unprintable(kind)}'", suggest(kind, _KEYS, "kinds")
        )
    taken = _KEYS.get(kind, _CLASS_KEYS)
    for key in sorted({"command", "image", "project_path", "app", "options"} - taken):
        if getattr(config, key) != ProviderConfig.model_fields[key].default:
            raise EchoError(f"environment.provider.{key} is not used with kind {escape_unprintable(kind)}", "omit it")
    for key in sorted(taken - {"options"} if kind in _KEYS else ()):
        if not getattr(config, key):
            raise EchoError(f"environment.provider of kind {kind} has no {key}", f"add environment.provider.{key}")
    if kind == "process" and config.port is None and not any("{port}" in word for word in config.command):
        raise EchoError(
            "environment.provider.command has no {port}",
            "write {port} where the server expects its port, or set environment.provider.port",
        )
    if kind == "uv" and not (str(config.project_path).startswith("git+") or Path(str(config.project_path)).is_dir()):
        path = escape_unprintable(str(config.project_path))
        raise EchoError(f"folder {path} does not exist", "set environment.provider.project_path to a uv project")
    if config.limits.cpus is not None and kind != "docker":
        raise EchoError("environment.provider.limits.cpus applies only to kind docker", "omit it")
    if kind not in ("process", "docker"):
        require_openenv(f"environment.provider of kind {escape_unprintable(kind)}")
    if kind in _TIPS and shutil.which(kind) is None:
        raise EchoError(f"{kind} is not installed", _TIPS[kind])
    if config.port is not None:
        _check_port(config.port)


def _check_port(port: int) -> None:
    """Raise an EchoError if the port is in use: another server would answer in place of ours."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise EchoError(f"environment.provider.port {port}: {reason}", "omit it to use a free port") from None


def _host_variables(kind: str, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the host process: where Docker is, or the server's own for a provider class."""
    if kind == "docker":
        return docker_variables(os.environ)
    return dict(env) if ":" in kind else {}
