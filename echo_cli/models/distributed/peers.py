"""What the ranks of a run know of each other besides their collectives: who has ended, and who tells the user why.

They meet in the store of torchrun, which outlives every rank.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from torch.distributed import Store  # type: ignore[attr-defined]  # public, and missing in __all__

from echo_cli.errors import EchoError, first_line

_ANSWER_S = 5.0
"""Seconds within which a rank that is alive notices a failed collective and says so."""
_POLL_S = 0.1


class LostRank(EchoError):
    """A rank of the run has ended or does not answer (exit code 1)."""


@dataclass(frozen=True)
class Peers:
    """The ranks of a run, seen from `rank`, with a store that all of them share."""

    rank: int
    size: int
    store: Store

    def register(self) -> None:
        """Tell the others in which process of which machine this rank runs."""
        self.store.set(f"process/{self.rank}", f"{os.getpid()} {socket.gethostname()}")

    def lost(self, error: Exception) -> LostRank:
        """Return the error that names the ranks that have ended, after a collective failed with `error`.

        A process of this machine that is gone has ended; without one, so has every rank that does not notice the
        failure as well. The first rank to find out decides for all, since its own end would be found next.
        """
        self.store.set(f"noticed/{self.rank}", "1")
        others = [rank for rank in range(self.size) if rank != self.rank]
        until = time.monotonic() + _ANSWER_S
        while time.monotonic() < until:
            gone = [rank for rank in others if self._has_ended(rank)]
            if gone or all(self.store.check([f"noticed/{rank}"]) for rank in others):
                break
            time.sleep(_POLL_S)
        gone = gone or [rank for rank in others if not self.store.check([f"noticed/{rank}"])]
        message = f"{_named(gone, self.size)}: {' '.join(first_line(error).split())[:200]}"
        agreed = self.store.compare_set("lost", "", message).decode()
        tip = "the last checkpoint is intact; --resume continues from it, torchrun --max-restarts N does so by itself"
        return LostRank(agreed, tip, exit_code=1)

    def speaks(self, message: str) -> bool:
        """Return whether this rank tells the user of an error: the first one does, the others if theirs is another."""
        self.store.set(f"error/{self.rank}", message)
        if self.rank == 0:
            return True
        self.store.wait(["process/0"])  # it may start later
        until = time.monotonic() + _ANSWER_S
        while time.monotonic() < until and not self.store.check(["error/0"]) and not self._has_ended(0):
            time.sleep(_POLL_S)
        before = [f"error/{rank}" for rank in range(self.rank)]
        return all(self.store.get(key).decode() != message for key in before if self.store.check([key]))

    def _has_ended(self, rank: int) -> bool:
        """Return whether the process of a rank is known to have ended: it ran on this machine and is gone."""
        number, _, host = self.store.get(f"process/{rank}").decode().partition(" ")
        return host == socket.gethostname() and not _runs(int(number))


def started_at(process: int) -> str:
    """Return when a process of this machine started, in ticks since the machine did; empty if it does not run."""
    found = _stat(process)
    return found[19] if found else ""


def _runs(process: int) -> bool:
    """Return whether a process of this machine runs; one that torchrun has not reaped yet does not."""
    found = _stat(process)
    return bool(found) and found[0] not in ("Z", "X")


def _stat(process: int) -> list[str]:
    """Return the fields of a process in Linux's /proc, from its state on; empty if there is none."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _named(ranks: Iterable[int], size: int) -> str:
    """Return which ranks of a run were lost, as text."""
    numbers = [str(rank) for rank in ranks]
    if not numbers:
        return f"the {size} ranks lost their connection"
    of = f"of {size} was lost" if len(numbers) == 1 else f"of {size} were lost"
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} {of}"
