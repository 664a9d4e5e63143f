"""TensorBoard's event files, in `tensorboard/` of the run directory. To view: `tensorboard --logdir outputs`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from echo_cli.config.schema import flat_config
from echo_cli.symlinks import make_folder
from echo_cli.training.trackers.tracking import TrackedRun


class TensorBoardFiles:
    """An additional event file of a run, unbuffered: every record is on disk once it is logged.

    TensorBoard reads a folder's files in the order of their names, and drops an earlier file's records from the first
    step of a later file onwards. Numbers have single precision.
    """

    def __init__(self, run: TrackedRun) -> None:
        folder = Path(run.folder) / "tensorboard"
        make_folder(folder)
        before = sorted(folder.glob("*.tfevents.*"))
        held = _last_step(before)
        self.first_step = 0 if run.last_step is None else min(held, run.last_step) + 1
        self._last_step = self.first_step
        # TensorBoard's usual name contains the host name.
        self._file = (folder / f"events.out.tfevents.{len(before):010d}").open("xb", buffering=0)
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(session_log=SessionLog(status=SessionLog.START), step=self.first_step)
        self._write(summary=hparams_pb(_hyperparameters(run.config), trial_id=run.name), step=self.first_step)

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        self._last_step = step
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        self._write(
            step=step, summary=Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in numbers.items()])
        )
        for name, text in values.items():
            if isinstance(text, str):
                self._write(step=step, summary=text_pb(name, text))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        ended_well = summary is not None and summary["status"] in ("finished", "stopped")
        if summary is not None:
            lines = json.dumps(summary, indent=2, ensure_ascii=False).splitlines()
            as_code = "\n".join(f"    {line}" for line in lines)  # in Markdown
            self._write(step=self._last_step, summary=text_pb("summary", as_code))
        status = api_pb2.STATUS_SUCCESS if ended_well else api_pb2.STATUS_FAILURE
        self._write(step=self._last_step, summary=_session_end(status))
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())


open_tracker = TensorBoardFiles


def _session_end(status: int) -> Summary:
    """Return the record that ends a run in TensorBoard's HPARAMS tab; TensorBoard's own function needs TensorFlow."""
    ended = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    content = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=ended))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=content, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _last_step(files: list[Path]) -> int:
    """Return the last step with numbers in the event files; -1 if there is none."""
    last = -1
    for path in files:
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.HasField("session_log"):
                last = min(last, event.step - 1)
            elif any(value.HasField("simple_value") for value in event.summary.value):
                last = max(last, event.step)
    return last


def _hyperparameters(config: Mapping[str, Any]) -> dict[str, float | str]:
    """Return a config as hyper-parameters: dotted key paths, no nulls, and lists as JSON."""
    flat = flat_config(dict(config))
    return {
        key: json.dumps(value) if isinstance(value, list) else value for key, value in flat.items() if value is not None
    }
