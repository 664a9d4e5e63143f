"""The process of one tracker: `python -m echo_cli.training.trackers.host`, for `tracking.py`.

The process reads a `TrackedRun` from the first line of stdin, then `{"row": …}` lines, and finally `{"end": summary}`.
It writes one line to stdout: `{"done": true}`, or `{"error": …}` if the tracker failed. If the run is killed, stdin
ends without `end`; the tracker then writes out the rows recorded so far.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from echo_cli.errors import EchoError, first_line
from echo_cli.files import read_jsonl
from echo_cli.processes import say, take_pipes
from echo_cli.text import escape_unprintable
from echo_cli.training.trackers.tracking import FINISH_SECONDS, Row, TrackedRun, Tracker

_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|_URL")  # in the names of environment variables


def main() -> None:
    """Track until the run ends. Never returns, so that a tracker's leftover threads cannot keep the process alive."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the run handles signals, and says when it ends
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()
    orders, report = take_pipes()
    secrets = {value: name for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 8}
    try:
        _track(orders)
    except Exception as error:  # whatever a tracker raises, the run continues and prints a warning
        say(report, {"error": _reason(error, secrets)})
        os._exit(1)
    say(report, {"done": True})
    os._exit(0)


def values_of(row: Row) -> dict[str, float | str]:
    """Return the tracked values of a metrics.jsonl row: finite numbers except `step`, and `warnings` as text."""
    values: dict[str, float | str] = {}
    for name, value in row.items():
        if isinstance(value, int | float) and math.isfinite(value) and name != "step":
            values[name] = value
    if row.get("warnings"):
        values["warnings"] = "\n".join(f"{warning['signal']}: {warning['reason']}" for warning in row["warnings"])
    return values


def _track(orders: BinaryIO) -> None:
    run = TrackedRun(**json.loads(orders.readline()))
    tracker: Tracker = importlib.import_module(f"echo_cli.training.trackers.{run.tracker}").open_tracker(run)
    summary: Mapping[str, Any] | None = None
    for message in itertools.chain(_rows_before(run), map(json.loads, orders)):
        if "row" not in message:
            summary = message["end"]
            break
        row = message["row"]
        if row["step"] >= tracker.first_step:
            tracker.log(row["step"], values_of(row))
    tracker.finish(summary)


def _rows_before(run: TrackedRun) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of metrics.jsonl before a resumed run's first step, which a newly added tracker lacks."""
    if run.last_step is None:
        return
    for row in read_jsonl(Path(run.folder) / "metrics.jsonl"):
        if row["step"] <= run.last_step:
            yield {"row": row}


def _reason(error: Exception, secrets: Mapping[str, str]) -> str:
    """Return the error as one line; values of environment variables that may be secret are replaced by their names."""
    text = error.message if isinstance(error, EchoError) else f"{type(error).__name__}: {first_line(error)}"
    for value, name in secrets.items():
        text = text.replace(value, f"${{{name}}}")
    return escape_unprintable(text)


def _end_after(parent: int) -> None:
    """End this process `FINISH_SECONDS` after its parent: nothing else ends a hanging tracker of a killed run."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(FINISH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
