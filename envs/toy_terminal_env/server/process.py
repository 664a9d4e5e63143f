"""A server's process: the options of its address, its socket, its access and uvicorn.

`sandbox_env` uses this module too. OpenEnv, which takes 3 s to import, is imported after the socket listens.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from toy_terminal_env.server.access import (
    Access,
    Guard,
    allowed_host,
    connection_line,
    is_loopback,
    new_access,
    url_host,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

_PLAIN = "the token goes over plain http, which anyone on the way can read"
_EVERY_ADDRESS = ("0.0.0.0", "::")

STOP_AFTER_S = 2
"""Time for sessions to end after the server is told to stop, seconds; the trainer kills it after 5."""


class OneLineParser(argparse.ArgumentParser):
    """Parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def add_address_options(parser: argparse.ArgumentParser) -> None:
    """Add `--host`, `--port` and `--allow-host`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="port, 0 for any free port (%(default)s)")
    parser.add_argument(
        "--allow-host",
        type=_host,
        action="append",
        default=[],
        metavar="NAME",
        help="host name or address, besides loopback, under which clients reach the server; repeatable "
        "(ECHO_SERVER_HOSTS, separated by commas)",
    )


def guarded(app: FastAPI, access: Access) -> FastAPI:
    """Return `app` with `access` checked before every route, docs, web interface and mounted application included."""
    app.add_middleware(Guard, access=access)
    return app


def application_access() -> Access:
    """Return the access of an application that uvicorn imports, and print how to connect to stderr."""
    access = _access_or_exit(())
    print(connection_line("http://HOST:PORT", access), file=sys.stderr)
    print(f"for a HOST on another machine: a tunnel, or --allow-plain-http, because {_PLAIN}", file=sys.stderr)
    return access


def serve(name: str, make_app: Callable[[Access], FastAPI], chosen: argparse.Namespace, *, notice: str = "") -> int:
    """Serve until SIGINT or SIGTERM, and return the exit code. Print the URL and how to connect when ready.

    Args:
        chosen: values of the options of `add_address_options`.
        notice: line about the environment, printed to stderr; none if empty.
    """
    reached_as = _host_of_clients(chosen)
    access = _access_or_exit([*chosen.allow_host, reached_as])
    try:
        listener = _listen(chosen.host, chosen.port)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        print(f"error: cannot listen on {chosen.host}:{chosen.port}: {reason}", file=sys.stderr)
        return 1
    with listener:
        try:
            for module in ("uvicorn", "openenv.core.env_server"):
                importlib.import_module(module)
        except ModuleNotFoundError as error:
            print(f"error: {error}\n  tip: {_install_command()}", file=sys.stderr)
            return 1
        if notice:
            print(notice, file=sys.stderr, flush=True)
        host, port = listener.getsockname()[:2]
        ready = f"{name} on http://{url_host(host)}:{port}"
        remote = not is_loopback(allowed_host(reached_as))
        if remote:
            inside = "127.0.0.1" if chosen.host in _EVERY_ADDRESS else url_host(host)
            tunnel = f"ssh -L {port}:{inside}:{port} {reached_as}"
            print(f"{name}: {_PLAIN}; a tunnel avoids it: {tunnel}, and http://127.0.0.1:{port}", file=sys.stderr)
        connect = connection_line(f"http://{url_host(reached_as)}:{port}", access, remote=remote)
        try:
            _run(make_app(access), listener, lambda: print(f"{ready}\n{connect}", flush=True))
        except KeyboardInterrupt:  # raised again by uvicorn after an orderly stop
            return 130
    return 0


def _access_or_exit(hosts: Sequence[str]) -> Access:
    try:
        return new_access(hosts)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _host_of_clients(chosen: argparse.Namespace) -> str:
    """Return the host name in the URL of clients: the address listened on or, if that is every address, a named one."""
    if chosen.host not in _EVERY_ADDRESS:
        return str(chosen.host)
    return str(chosen.allow_host[0]) if chosen.allow_host else "127.0.0.1"


def _install_command() -> str:
    """Return the command that installs OpenEnv: a checkout's script in its own `.venv`, else pip of this Python."""
    root = Path(__file__).resolve().parents[3]
    setup = root / "scripts" / "setup"
    if setup.is_file() and Path(sys.prefix).resolve() == root / ".venv":
        return f"bash {'scripts/setup' if Path.cwd() == root else shlex.quote(str(setup))} openenv"
    return f"{shlex.quote(sys.executable)} -m pip install 'openenv>=0.10,<0.11'"


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, so that an occupied port is an error at once and early clients wait."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=1024)


def _run(app: FastAPI, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready()

    config = uvicorn.Config(
        app,
        log_level="warning",
        ws_per_message_deflate=False,  # a few hundred bytes each way: compressing them costs a tenth of the steps/s
        timeout_graceful_shutdown=STOP_AFTER_S,
    )
    Server(config).run(sockets=[listener])


def whole_number(text: str, smallest: int, largest: int | None) -> int:
    """Parse an option's whole number within bounds.

    Raises:
        ArgumentTypeError: it is not one.
    """
    if not (text.isascii() and text.isdigit()) or not smallest <= int(text) <= (largest or int(text)):
        bounds = f"from {smallest} to {largest}" if largest else f"of at least {smallest}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {bounds}")
    return int(text)


def _port(text: str) -> int:
    return whole_number(text, 0, 65535)


def _host(text: str) -> str:
    try:
        return allowed_host(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
