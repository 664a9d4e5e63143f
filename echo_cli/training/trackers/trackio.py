"""Trackio, in `trackio/` of the run directory or in TRACKIO_DIR. To view: `trackio show`.

TRACKIO_SPACE_ID or TRACKIO_SERVER_URL send the rows elsewhere; without them no network is used.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.files import write_atomic
from echo_cli.symlinks import make_folder
from echo_cli.training.trackers.tracking import TrackedRun

PROJECT = "echo-cli"

_SUMMARY = "summary"


class TrackioRun:
    """A run of the project `echo-cli`, under the run directory's name."""

    def __init__(self, run: TrackedRun) -> None:
        own = Path(run.folder) / "trackio"
        make_folder(own)
        os.environ.setdefault("TRACKIO_DIR", str(own))
        self._is_local = is_local = not any(os.environ.get(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
        if is_local:
            os.environ["HF_HUB_OFFLINE"] = "1"  # if logged in, trackio would query the user's name
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        import trackio

        self._trackio = trackio
        self._failures: list[str] = []
        self._report_warnings()
        id_file = own / "run-id"
        before = id_file.read_text() if id_file.exists() and run.last_step is not None else None
        resume = "never"
        if before is not None and run.last_step is not None:
            resume = "allow" if not is_local else "must" if _cut(run.name, before, run.last_step) else "never"
        self._run: Any = trackio.init(
            PROJECT,
            name=run.name,
            group=run.group,
            config=run.config,
            resume=resume,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        if is_local:
            self._check()
        write_atomic(id_file, self._run.id.encode())
        self.first_step = 0 if resume == "never" else self._run._next_step
        self._last_step = self.first_step

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        self._last_step = step
        self._run.log(dict(values), step=step)
        if self._is_local:  # with a server, trackio retries by itself; `finish` checks the outcome
            self._check()

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            text = json.dumps(summary, indent=2, ensure_ascii=False)
            self._run.log({_SUMMARY: self._trackio.Markdown(f"```json\n{text}\n```")}, step=self._last_step)
        self._run.finish()
        self._check()

    def _report_warnings(self) -> None:
        """Collect Trackio's warnings: it raises no errors, but warns in its writing thread."""

        def note(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
            if issubclass(category, UserWarning) and "trackio" in Path(filename).parts:
                self._failures.append(str(message))

        warnings.simplefilter("always")
        warnings.showwarning = note

    def _check(self) -> None:
        if self._failures:
            raise EchoError(self._failures[0])


open_tracker = TrackioRun


def _cut(name: str, run_id: str, last_step: int) -> bool:
    """Delete a local run's summary and its rows after `last_step`; return whether any row remains."""
    from trackio.sqlite_storage import SQLiteStorage

    latest = SQLiteStorage.get_latest_run_record_by_name(PROJECT, name)
    if latest is None or latest["id"] != run_id:  # Trackio resumes by name, and would resume another run
        return False
    logs = SQLiteStorage.get_logs(PROJECT, name, run_id=run_id)
    kept = [log for log in logs if log["step"] <= last_step and _SUMMARY not in log]
    SQLiteStorage.delete_run(PROJECT, name, run_id=run_id)
    SQLiteStorage.bulk_log(
        PROJECT,
        name,
        [{key: value for key, value in log.items() if key not in ("step", "timestamp")} for log in kept],
        steps=[log["step"] for log in kept],
        timestamps=[log["timestamp"] for log in kept],
        run_id=run_id,
    )
    return bool(kept)
