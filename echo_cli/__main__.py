"""The process of `echo-cli` and `python -m echo_cli`: it imports the command line, then runs it."""

import os
import signal
import sys

# No other imports: Ctrl-C during an import is a traceback until `main` has set its handler.


def main() -> int:
    """Run the command line of this process and return the exit code."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _leave)
    from echo_cli.cli.main import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _leave(number: int, _: object) -> None:
    """End the process, which has nothing to save or remove yet."""
    try:
        os.write(2, b"\ninterrupted\n")
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
