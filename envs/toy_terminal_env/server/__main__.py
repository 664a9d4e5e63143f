"""`python -m toy_terminal_env.server`."""

from __future__ import annotations

import sys

from toy_terminal_env.server.serve import main

if __name__ == "__main__":
    sys.exit(main())
