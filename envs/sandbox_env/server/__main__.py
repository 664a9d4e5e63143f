"""Serve the sandbox on 127.0.0.1: `python -m sandbox_env.server --port 8000`."""

from __future__ import annotations

import argparse
import sys

from echo_cli.errors import install_command


def main() -> int:
    """Serve until the process is told to stop, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sandbox_env.server", description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port

    try:
        import uvicorn

        from sandbox_env.server.app import app
    except ModuleNotFoundError as error:
        print(f"error: {error}\n  tip: {install_command('openenv')}", file=sys.stderr)
        return 1
    # Commands run with this user's rights, so no other machine may reach the server.
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
