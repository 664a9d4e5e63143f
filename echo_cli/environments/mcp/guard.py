"""A process that kills the servers of a run that was killed.

A server ends when its stdin is closed, if it follows the protocol; a server that hangs does not. This process reads
`{"started": id, "folder": path}` and `{"ended": id}` from stdin, and at its end kills the process group of each server
that has not ended and removes its folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import suppress

from echo_cli.processes import ChildProcess, take_pipes

_READY_SECONDS = 10.0
_STOP_SECONDS = 5.0


class Guard:
    """The guard process of a run."""

    def __init__(self) -> None:
        self._host = ChildProcess("echo_cli.environments.mcp.guard")
        self._host.wait_sent(_READY_SECONDS)

    def started(self, process: int, folder: str | None) -> None:
        """Guard a server that leads a process group.

        Args:
            folder: folder to remove with the server; None if there is none.
        """
        self._tell({"started": process, "folder": folder})

    def ended(self, process: int) -> None:
        """Forget a server that has ended."""
        self._tell({"ended": process})

    def close(self) -> None:
        """End the guard; servers that still run are killed."""
        self._host.stop(_STOP_SECONDS)

    def _tell(self, message: dict[str, int | str | None]) -> None:
        self._host.send(message)
        self._host.exchange(0)


def main() -> None:
    """Guard servers until stdin ends."""
    orders, _ = take_pipes()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    servers: dict[int, str | None] = {}
    for line in orders:
        message = json.loads(line)
        if "started" in message:
            servers[message["started"]] = message["folder"]
        else:
            servers.pop(message["ended"], None)
    for process, folder in servers.items():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGKILL)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
