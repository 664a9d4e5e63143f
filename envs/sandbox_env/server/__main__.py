"""Serve the sandbox on 127.0.0.1: `python -m sandbox_env.server --port 8000`."""

from __future__ import annotations

import sys

from sandbox_env.server.serve import main

if __name__ == "__main__":
    sys.exit(main())
