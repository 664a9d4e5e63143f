"""Serve the sandbox on 127.0.0.1: `python -m sandbox_env.server --port 8000`."""

from __future__ import annotations

import argparse


def main() -> None:
    """Serve until the process is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m sandbox_env.server", description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port

    import uvicorn

    from sandbox_env.server.app import app

    # Commands run with this user's rights, so no other machine may reach the server.
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=2)


if __name__ == "__main__":
    main()
