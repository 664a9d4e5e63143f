"""Command line of the server: options, socket and uvicorn. OpenEnv, which takes 3 s to import, is imported last."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from fastapi import FastAPI

STOP_AFTER_S = 5
"""Time for sessions to end after the server is told to stop, seconds."""


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the server's options. An invalid one ends the process with a one-line error and exit code 2."""
    parser = _Parser(
        prog="python -m toy_terminal_env.server", description="Serve the toy terminal over OpenEnv's wire."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="port, 0 for any free port (%(default)s)")
    parser.add_argument(
        "--max-sessions",
        type=_positive,
        metavar="N",
        default=os.environ.get("MAX_CONCURRENT_ENVS", "256"),
        help="maximum number of concurrent sessions (MAX_CONCURRENT_ENVS, else 256)",
    )
    parser.add_argument(
        "--max-turns",
        type=_positive,
        metavar="N",
        default=os.environ.get("MAX_TURNS", "5"),
        help="turns per episode if reset sets no max_turns (MAX_TURNS, else 5)",
    )
    return parser.parse_args(arguments)


def make_app(max_sessions: int, max_turns: int) -> FastAPI:
    """Return OpenEnv's application around the toy terminal.

    OpenEnv runs each plain HTTP request in a new environment without an episode. An EpisodeError or a ValueError is
    answered with status 400 there, and with an error message in a session.
    """
    from fastapi import Request
    from fastapi.responses import JSONResponse
    from openenv.core.env_server import create_app

    from toy_terminal_env.environment import EpisodeError
    from toy_terminal_env.server.environment import OpenEnvToyTerminal
    from toy_terminal_env.wire import ToyTerminalWireAction, ToyTerminalWireObservation, ToyTerminalWireState

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400)

    app: FastAPI = create_app(
        partial(OpenEnvToyTerminal, max_turns),
        ToyTerminalWireAction,
        ToyTerminalWireObservation,
        env_name="toy_terminal_env",
        max_concurrent_envs=max_sessions,
        state_cls=ToyTerminalWireState,
    )
    app.add_exception_handler(EpisodeError, refuse)
    app.add_exception_handler(ValueError, refuse)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit code. Prints the URL once the server is ready."""
    chosen = options(sys.argv[1:] if arguments is None else arguments)
    try:
        listener = _listen(chosen.host, chosen.port)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        print(f"error: cannot listen on {chosen.host}:{chosen.port}: {reason}", file=sys.stderr)
        return 1
    with listener:
        try:
            import openenv.core.env_server  # noqa: F401
        except ModuleNotFoundError as error:
            print(f"error: {error}\n  tip: {_install_command()}", file=sys.stderr)
            return 1
        try:
            _run(make_app(chosen.max_sessions, chosen.max_turns), listener)
        except KeyboardInterrupt:  # raised again by uvicorn after an orderly stop
            return 130
    return 0


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


def _run(app: FastAPI, listener: socket.socket) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listener.getsockname()[:2]
            print(f"toy_terminal_env on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    config = uvicorn.Config(
        app,
        log_level="warning",
        ws_per_message_deflate=False,  # a few hundred bytes each way: compressing them costs a tenth of the steps/s
        timeout_graceful_shutdown=STOP_AFTER_S,
    )
    Server(config).run(sockets=[listener])


def _positive(text: str) -> int:
    return _whole(text, 1, None)


def _port(text: str) -> int:
    return _whole(text, 0, 65535)


def _whole(text: str, smallest: int, largest: int | None) -> int:
    if not (text.isascii() and text.isdigit()) or not smallest <= int(text) <= (largest or int(text)):
        bounds = f"from {smallest} to {largest}" if largest else f"of at least {smallest}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {bounds}")
    return int(text)
