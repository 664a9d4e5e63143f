"""The server's command line: options, the socket, and uvicorn in it. OpenEnv, 3 s to import, is imported last."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from fastapi import FastAPI

STOP_AFTER_S = 5
"""How long sessions may take to end once the server is told to stop."""


class _Parser(argparse.ArgumentParser):
    """An error is one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The server's options. Ends the process with one line and exit code 2 where one is not valid."""
    parser = _Parser(prog="python -m toy_terminal_env.server", description="Serve the toy terminal by OpenEnv's wire.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="the port, 0 for any free one (%(default)s)")
    parser.add_argument(
        "--max-sessions",
        type=_positive,
        metavar="N",
        default=os.environ.get("MAX_CONCURRENT_ENVS", "256"),
        help="sessions at a time (MAX_CONCURRENT_ENVS, else 256)",
    )
    parser.add_argument(
        "--max-turns",
        type=_positive,
        metavar="N",
        default=os.environ.get("MAX_TURNS", "5"),
        help="turns of an episode whose reset names no max_turns (MAX_TURNS, else 5)",
    )
    return parser.parse_args(arguments)


def make_app(max_sessions: int, max_turns: int) -> FastAPI:
    """OpenEnv's application around the toy terminal.

    OpenEnv runs a plain HTTP request in an environment of its own, without an episode before it; what the environment
    refuses there is the request's error (400), as it is an error message in a session.
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
    """Serve until SIGINT or SIGTERM, and return the exit code. Prints its URL once it answers there."""
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
            print(f"error: no module {error.name}: pip install 'openenv>=0.10,<0.11'", file=sys.stderr)
            return 1
        try:
            _run(make_app(chosen.max_sessions, chosen.max_turns), listener)
        except KeyboardInterrupt:  # uvicorn has stopped in order and passes it on
            return 130
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens already: another server's claim to the port is found now, and early clients wait."""
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
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number {bounds}")
    return int(text)
