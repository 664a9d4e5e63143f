"""The toy terminal's application and its command line. OpenEnv, which takes 3 s to import, is imported last."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from toy_terminal_env.server.access import Access
from toy_terminal_env.server.process import OneLineParser, add_address_options, guarded, serve, whole_number

if TYPE_CHECKING:
    from fastapi import FastAPI


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the server's options. An invalid one ends the process with a one-line error and exit code 2."""
    parser = OneLineParser(
        prog="python -m toy_terminal_env.server", description="Serve the toy terminal over OpenEnv's wire."
    )
    add_address_options(parser)
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


def make_app(max_sessions: int, max_turns: int, access: Access) -> FastAPI:
    """Return OpenEnv's application around the toy terminal, for requests that have `access`.

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
    return guarded(app, access)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit code. Prints the URL once the server is ready."""
    chosen = options(sys.argv[1:] if arguments is None else arguments)
    return serve("toy_terminal_env", partial(make_app, chosen.max_sessions, chosen.max_turns), chosen)


def _positive(text: str) -> int:
    return whole_number(text, 1, None)
