"""A launcher, the command that starts a cell's processes, such as torchrun; as a module, the process that becomes it.

The launcher gets all variables of the sweep, because launchers of clusters need theirs. This process gets them over a
pipe; the launcher that it becomes can be read like one that was started in a shell. On Linux, the launcher gets SIGTERM
if the sweep dies.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

from echo_cli.errors import EchoError
from echo_cli.processes import take_pipes
from echo_cli.terminal import put
from echo_cli.text import escape_unprintable

_PR_SET_PDEATHSIG = 1
_NOT_STARTED = 127
_TIP = "end it with the words that run echo-cli: --launcher 'torchrun --nproc-per-node 8 -m echo_cli'"


def parse_launcher(text: str | None) -> tuple[str, ...]:
    """Return the words of a launcher's command line; none if there is no launcher.

    Raises:
        EchoError: the text is no command line, its program does not exist, or it does not name echo-cli.
    """
    if text is None:
        return ()
    shown = escape_unprintable(text)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise EchoError(f"--launcher: {str(error).lower()} in: {shown}", "close the quotes") from None
    if not any(PurePath(word).name in ("echo-cli", "echo_cli") for word in words):
        raise EchoError(f"--launcher '{shown}' does not run echo-cli", _TIP)
    # An environment's own programs, such as torchrun, are beside its Python; it need not be activated.
    beside = shutil.which(words[0], path=str(Path(sys.executable).parent))
    program = words[0] if shutil.which(words[0]) else beside
    if program is None:
        raise EchoError(f"--launcher: {escape_unprintable(words[0])} not found", "give a program on PATH, or its path")
    return (program, *words[1:])


def main(parent: int, words: Sequence[str]) -> int:
    """Become the launcher with the command line `words`, or return an exit code if that is not possible."""
    _, report = take_pipes()
    os.dup2(report.fileno(), 1)
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before this process asked for the signal
        return 128 + signal.SIGTERM
    try:
        os.execvp(words[0], list(words))
    except OSError as error:
        put(f"error: cannot start {words[0]}: {error.strerror}", err=True)
        return _NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
