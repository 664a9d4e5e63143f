"""`python -m echo_cli`, the same as the console script."""

import sys

from echo_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
