"""The process of `echo-cli` and `python -m echo_cli`: it imports the command line, then runs it."""

import os
import sys

# No other imports: Python puts the current folder on the import path for `-m`, and for an empty entry in PYTHONPATH.
# `main` removes it, and sets a handler for Ctrl-C, which is a traceback during an earlier import.


def main(is_module: bool = False) -> int:
    """Run the command line of this process and return the exit code.

    Args:
        is_module: whether the process was started with `-m`.
    """
    leave_current_folder(sys.path, is_module)
    import signal

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _leave)
    from echo_cli.cli.main import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def leave_current_folder(path: list[str], is_module: bool) -> None:
    """Remove the current folder from the import path `path`, unless PYTHONPATH names it."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        return
    given = os.environ.get("PYTHONPATH", "")
    entries = given.split(os.pathsep) if given else []
    if here in [os.path.abspath(entry) for entry in entries if entry]:
        return
    if is_module and path[:1] == [here]:
        del path[0]
    if "" in entries and here in path:
        path.remove(here)


def _leave(number: int, _: object) -> None:
    """End the process, which has nothing to save or remove yet."""
    try:
        os.write(2, b"\ninterrupted\n")
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(is_module=True))
