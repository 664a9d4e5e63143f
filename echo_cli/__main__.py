"""`python -m echo_cli`, the same as the console script."""

from __future__ import annotations

import sys

from echo_cli.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
