"""A process that claims the cells of a sweep and waits in each: `claiming_worker FOLDER LOG SECONDS`.

It says `ready` on stdout, begins at a line on stdin, and appends `TIME PID WHAT CELL` to the log.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from echo_cli.config.loader import load_config
from echo_cli.sweeps.arms import lambda_arm
from echo_cli.sweeps.claims import ClaimQueue
from echo_cli.sweeps.plan import Cell, plan_cells
from echo_cli.sweeps.runner import CellStatus

SEEDS = range(12)


def cells_in(folder: Path) -> list[Cell]:
    return plan_cells({lambda_arm(1.0): load_config("toy-files")}, list(SEEDS), folder, threads=1)


def record(log: Path, pid: int, what: str, cell: str) -> None:
    with log.open("a") as file:  # one write, so lines of several processes do not mix
        file.write(f"{time.monotonic()} {pid} {what} {cell}\n")


def main(folder: Path, log: Path, seconds: float) -> None:
    queue = ClaimQueue(cells_in(folder), folder, seconds=6)
    print("ready", flush=True)
    sys.stdin.readline()
    while queue.has_more():
        cell = queue.take()
        if cell is None:
            time.sleep(0.05)
            continue
        record(log, os.getpid(), "start", cell.name)
        until, kept = time.monotonic() + seconds, True
        while kept and time.monotonic() < until:
            time.sleep(0.05)
            kept = queue.keeps(cell)
        record(log, os.getpid(), "end" if kept else "lost", cell.name)
        queue.end(cell, CellStatus("finished" if kept else "elsewhere"), is_gone=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
