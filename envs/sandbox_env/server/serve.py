"""The sandbox's application and its command line. OpenEnv, which takes 3 s to import, is imported last."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from sandbox_env.isolation import CHOICES, IsolationError, Wanted, find_isolation
from toy_terminal_env.server.access import Access
from toy_terminal_env.server.process import OneLineParser, add_address_options, guarded, serve

if TYPE_CHECKING:
    from fastapi import FastAPI

SESSIONS = 16


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the server's options. An invalid one ends the process with a one-line error and exit code 2."""
    parser = OneLineParser(prog="python -m sandbox_env.server", description="Serve the sandbox over OpenEnv's wire.")
    add_address_options(parser)
    parser.add_argument(
        "--isolation",
        type=_isolation,
        metavar="|".join(CHOICES),
        default=os.environ.get("SANDBOX_ISOLATION", "auto"),
        help="auto: run commands under bubblewrap where it works; bubblewrap: fail where it does not; none: without it "
        "(SANDBOX_ISOLATION, else auto)",
    )
    return parser.parse_args(arguments)


def make_app(isolation: Wanted, access: Access) -> FastAPI:
    """Return OpenEnv's application around the sandbox, for requests that have `access`."""
    from openenv.core.env_server import create_app

    from sandbox_env.server.environment import Command, Output, Sandbox

    make = partial(Sandbox, isolation=isolation)
    return guarded(create_app(make, Command, Output, env_name="sandbox_env", max_concurrent_envs=SESSIONS), access)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit code."""
    chosen = options(sys.argv[1:] if arguments is None else arguments)
    return serve("sandbox_env", partial(make_app, chosen.isolation), chosen, notice=notice(chosen.isolation))


def notice(isolation: Wanted) -> str:
    """Return the server's line about the isolation of commands."""
    return f"sandbox_env: {find_isolation(isolation).notice}"


def _isolation(text: str) -> str:
    try:
        find_isolation(cast(Wanted, text))
    except IsolationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
