"""Trackers, for real: what was logged is read back from the files of each, with its own reader where it has one."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import error_of, rows, train, train_words
from wandb.proto import wandb_internal_pb2

from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError, install_command
from echo_cli.files import append_jsonl, read_json, read_jsonl
from echo_cli.runs.directory import create_run
from echo_cli.sweeps import runner as cell_runner
from echo_cli.sweeps.arms import lambda_arm
from echo_cli.sweeps.plan import plan_cells
from echo_cli.training.plan import plan
from echo_cli.training.trackers import tracking as tracker
from echo_cli.training.trackers.host import values_of
from echo_cli.training.trackers.tracking import Trackers, check_trackers, tracking
from echo_cli.training.trackers.wandb import has_key

ALL = ("tensorboard", "trackio", "wandb")
SECRET = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"seed": 3, "preset": None, "optim": {"lr": 1e-3}, "environment": {"headers": {"A": "Bearer ${TOKEN}"}}}
WARNING = {"signal": "entropy", "reason": "below 0.02 <script>\x1b[1m"}

# Every connection but to this machine, or to one's own files, is noted and refused.
GUARD = """
import os, socket
def connect(self, address, _connect=socket.socket.connect):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        open(LOG, "a").write(f"{address}\\n")
        raise OSError("no network")
    return _connect(self, address)
def getaddrinfo(host, *rest, _ask=socket.getaddrinfo, **more):
    if host not in ("127.0.0.1", "::1", "localhost", None):
        open(LOG, "a").write(f"{host}\\n")
        raise OSError("no network")
    return _ask(host, *rest, **more)
socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""


def _row(step: int, loss: float | None = None) -> dict[str, Any]:
    return {
        "step": step,
        "train/loss": 1 / (step + 3) if loss is None else loss,
        "train/env_tokens": 7 * step,
        "heldout/env_ce": 1.5 - step / 10 if step % 2 == 0 else None,
        "train/ratio": math.inf if step == 1 else 1.0,
        "warnings": [WARNING] if step in (1, 4) else [],
    }


def _expected(logged: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """By step: what is not null, and the warnings as text."""
    found = {}
    for row in logged:
        values = {key: value for key, value in row.items() if key not in ("step", "warnings")}
        texts = [f"{warning['signal']}: {warning['reason']}" for warning in row["warnings"]]
        found[row["step"]] = {key: value for key, value in values.items() if value is not None and value != math.inf}
        found[row["step"]] |= {"warnings": "\n".join(texts)} if texts else {}
    return found


# --- What each holds -------------------------------------------------------------------------------------------------


def _in_tensorboard(run: Path) -> dict[int, dict[str, Any]]:
    files = EventAccumulator(str(run / "tensorboard")).Reload()
    held: dict[int, dict[str, Any]] = {}
    for tag in files.Tags()["scalars"]:
        for event in files.Scalars(tag):
            assert tag not in held.setdefault(event.step, {})
            held[event.step][tag] = event.value
    for event in files.Tensors("warnings") if "warnings" in files.Tags()["tensors"] else ():
        held[event.step]["warnings"] = event.tensor_proto.string_val[0].decode()
    return held


def _single(expected: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """In single precision, which is what TensorBoard has."""
    return {
        step: {key: value if isinstance(value, str) else float(np.float32(value)) for key, value in values.items()}
        for step, values in expected.items()
    }


def _in_trackio(run: Path) -> tuple[dict[int, dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Rows, config and summary. Read in a process of its own, as the folder is an environment variable."""
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S\n"
        "[run] = S.get_run_records('echo-cli')\n"
        "print(json.dumps([S.get_logs('echo-cli', run['name']), S.get_run_config('echo-cli', run['name'])]))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(run / "trackio")}
    logs, config = json.loads(subprocess.check_output([sys.executable, "-c", code], env=environment))
    held: dict[int, dict[str, Any]] = {}
    summaries = []
    for log in logs:
        step = log.pop("step")
        del log["timestamp"]
        if "summary" in log:
            summaries.append(json.loads(log["summary"]["_value"].removeprefix("```json\n").removesuffix("\n```")))
        else:
            assert step not in held
            held[step] = log
    assert len(summaries) == 1
    return held, config, summaries[0]


def _records(path: Path) -> Iterator[Any]:
    """The protocol buffers of a .wandb file: a LevelDB log after a header of seven bytes, in blocks of 32 KiB."""
    data, at, whole = path.read_bytes(), 7, b""
    while len(data) - at > 7:
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def _in_wandb(run: Path) -> tuple[dict[int, dict[str, Any]], dict[str, Any], dict[str, Any], Any]:
    """Rows, config, summary and the record of the run itself."""
    [path] = (run / "wandb").glob("offline-run-*/run-*.wandb")
    held: dict[int, dict[str, Any]] = {}
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    about: Any = None
    for record in _records(path):
        if record.HasField("run"):
            about = record.run
            config |= {item.key: json.loads(item.value_json) for item in about.config.update}
        for item in record.summary.update:
            summary[item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            assert record.history.step.num not in held
            held[record.history.step.num] = {key: value for key, value in items.items() if key[0] != "_"}
    return held, config, summary, about


# --- A run that was stopped, rewound and resumed ---------------------------------------------------------------------


@dataclass(frozen=True)
class Tracked:
    run: Path
    expected: dict[int, dict[str, Any]]
    warned: list[str]
    asked: list[str]
    """Connections that were tried."""
    home: Path
    here: Path
    generators_changed: bool


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What asks for the network, of processes started while the fixture holds: Python's calls, others' proxy."""
    log = tmp_path_factory.mktemp("guard") / "log"
    log.write_text("")
    (log.parent / "sitecustomize.py").write_text(f"LOG = {str(log)!r}\n{GUARD}")
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as proxy:

        def note() -> None:
            while True:
                try:
                    connection, _ = proxy.accept()
                except OSError:
                    return
                asked.append("proxy")
                connection.close()

        threading.Thread(target=note, daemon=True).start()
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
            patch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in list(os.environ):
            if name.startswith(("WANDB_", "TRACKIO_", "HF_")):
                patch.delenv(name)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(log.parent), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("HF_TOKEN", SECRET)  # with it, Trackio would ask who that is
        yield asked
        asked += log.read_text().splitlines()
    assert asked == []


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, network: list[str]) -> Tracked:
    folder = tmp_path_factory.mktemp("tracked")
    run, home, here = folder / "run", folder / "home", folder / "here"
    for path in (run, home, here, here / "wandb"):
        path.mkdir()
    (here / "wandb" / "settings").write_text("[default]\nentity = someone-else\nbase_url = http://127.0.0.1:9\n")
    warned: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("HOME", str(home))
        patch.setenv("WANDB_API_KEY", SECRET)
        patch.setenv("WANDB_MODE", "offline")
        before = (random.getstate(), torch.get_rng_state().tolist())
        with tracking(run, ALL, CONFIG, group="sweep", last_step=None, warn=warned.append) as trackers:
            for step in range(4):
                trackers.log(_row(step, loss=9.0 if step == 3 else None))
            trackers.summarize({"status": "stopped", "steps": 3})
        kept, new = [_row(step) for step in range(3)], [_row(step) for step in range(3, 6)]
        append_jsonl(run / "metrics.jsonl", kept)
        with tracking(run, ALL, CONFIG, group="sweep", last_step=2, warn=warned.append) as trackers:
            for row in new:
                append_jsonl(run / "metrics.jsonl", [row])
                trackers.log(row)
            trackers.summarize({"status": "finished", "steps": 5, "heldout": {"best": {"env_ce": 1.1}}})
        after = (random.getstate(), torch.get_rng_state().tolist())
    return Tracked(run, _expected([*kept, *new]), warned, network, home, here, before != after)


@pytest.mark.slow
def test_tensorboard_holds_the_rows_of_a_resumed_run_once(tracked: Tracked) -> None:
    assert _in_tensorboard(tracked.run) == _single(tracked.expected)
    files = EventAccumulator(str(tracked.run / "tensorboard")).Reload()
    last = files.Tensors("summary")[-1].tensor_proto.string_val[0].decode()
    assert json.loads(last)["heldout"] == {"best": {"env_ce": 1.1}}
    started = files.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"optim.lr" in started and b"${TOKEN}" in started
    assert not any(socket.gethostname() in path.name for path in (tracked.run / "tensorboard").iterdir())


@pytest.mark.slow
def test_trackio_holds_the_rows_of_a_resumed_run_once(tracked: Tracked) -> None:
    held, config, summary = _in_trackio(tracked.run)
    assert held == tracked.expected
    assert {key: config[key] for key in CONFIG} == CONFIG and config["_Group"] == "sweep"
    assert summary == {"status": "finished", "steps": 5, "heldout": {"best": {"env_ce": 1.1}}}


@pytest.mark.slow
def test_wandb_holds_the_rows_of_a_resumed_run_once_in_one_folder_to_upload(tracked: Tracked) -> None:
    held, config, summary, about = _in_wandb(tracked.run)
    assert held == tracked.expected
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert summary["status"] == "finished" and summary["heldout"] == {"best": {"env_ce": 1.1}}
    assert (about.display_name, about.run_group, about.project) == ("run", "sweep", "echo-cli")
    assert about.entity == ""  # not what a file in the working directory says
    assert about.run_id == (tracked.run / "wandb" / "run-id").read_text()


@pytest.mark.slow
def test_trackers_ask_no_network_and_write_below_the_run_alone(tracked: Tracked) -> None:
    assert tracked.warned == [] and tracked.asked == []
    assert list(tracked.here.rglob("*")) == [tracked.here / "wandb", tracked.here / "wandb" / "settings"]
    assert [path for path in tracked.home.rglob("*") if path.is_file()] == []
    written = [path for path in tracked.run.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert not tracked.generators_changed


# --- A run of the command --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_the_same_with_trackers_that_begin_when_it_is_resumed(
    finished: Path,
    network: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "summary.json").unlink()
    for later in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"step_{later:06d}")
    capfd.readouterr()
    assert train(run, "--resume", "--steps", "4", f"track={json.dumps(ALL)}", "--json") == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out) == read_json(run / "summary.json")
    assert all(line.startswith("train: ") for line in printed.err.splitlines()) and "warning" not in printed.err
    assert rows(run) == rows(finished)
    expected = _expected(list(read_jsonl(run / "metrics.jsonl")))
    assert sorted(expected) == [0, 1, 2, 3, 4]
    assert _in_tensorboard(run) == _single(expected)
    in_trackio, config, summary = _in_trackio(run)
    in_wandb, _, _, _ = _in_wandb(run)
    assert in_trackio == in_wandb == expected
    assert config["track"] == list(ALL) and summary == read_json(run / "summary.json")
    assert network == []


def test_a_package_that_is_missing_ends_it_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb").mkdir()  # as wandb leaves in a folder: Python can import it, and it is not the package
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(EchoError, match="track: wandb needs wandb, which is not installed") as caught:
        check_trackers(("wandb",))
    assert (caught.value.exit_code, caught.value.tip) == (2, install_command("wandb"))
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for words in (train_words(tmp_path / "run", "track=wandb"), ["sweep-lambda", "0", "track=wandb"]):
        assert main([*words, "--output-dir", str(tmp_path / "outputs")]) == 2
        assert error_of(capsys.readouterr().err)[1] == install_command("wandb")
        assert main([*words, "--dry-run"]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and error_of(captured.err)[1] == install_command("wandb")
    assert [path.name for path in tmp_path.iterdir()] == ["wandb"]


# --- Failures --------------------------------------------------------------------------------------------------------


def _hosts() -> list[int]:
    """The processes of trackers that this one has started and that run."""
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    return [int(pid) for pid in children if b"trackers.host" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _host() -> int:
    """The one that was started last, once it is what it is."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not _hosts():
        time.sleep(0.01)
    return _hosts()[0]


def _wait_for(path: Path, size: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size > size):
        time.sleep(0.02)


def _track(run: Path, warned: list[str], name: str = "tensorboard") -> Any:
    run.mkdir(exist_ok=True)
    return tracking(run, (name,), CONFIG, group=None, last_step=None, warn=warned.append)


def test_a_tracker_without_its_folder_is_warned_of_once_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("mine")
    warned: list[str] = []
    with _track(tmp_path, warned) as trackers:
        for step in range(3):
            trackers.log(_row(step))
    [line] = warned
    assert line.startswith("warning: tensorboard failed; the run continues without it: FileExistsError")
    assert "\n" not in line and (tmp_path / "tensorboard").read_text() == "mine"


def test_a_tracker_that_fails_on_a_row_is_warned_of_once_and_left_out(tmp_path: Path) -> None:
    warned: list[str] = []
    file = tmp_path / "tensorboard" / "events.out.tfevents.0000000000"
    with _track(tmp_path, warned) as trackers:
        trackers.log(_row(0))
        _wait_for(file, 0)
        resource.prlimit(_host(), resource.RLIMIT_FSIZE, (4096, 4096))
        for step in range(1, 200):
            trackers.log(_row(step))
        deadline = time.monotonic() + 60
        while not warned and time.monotonic() < deadline:  # on some row, before the end
            trackers.log(_row(200))
            time.sleep(0.02)
        assert _hosts() == []
    assert warned == ["warning: tensorboard failed; the run continues without it: OSError: [Errno 27] File too large"]


@pytest.mark.parametrize("ending", [None, SystemExit(130)])
def test_a_tracker_that_hangs_does_not_hang_the_run(
    ending: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "FINISH_SECONDS" if ending is None else "_LEAVE_SECONDS", 0.3)
    warned: list[str] = []
    try:
        with _track(tmp_path, warned) as trackers:
            os.kill(_host(), signal.SIGSTOP)
            for step in range(100):  # more than a pipe holds
                trackers.log({**_row(step), "filling": "x" * 2000})
            if ending is not None:
                raise ending
    except SystemExit as caught:
        assert caught is ending
    assert _hosts() == []
    assert warned == ["warning: tensorboard failed; the run continues without it: it did not finish within 0.3 s"]


def test_a_tracker_that_hangs_is_no_failure_of_the_one_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 3.0)
    warned: list[str] = []
    names: Any = ("trackio", "tensorboard")
    with tracking(tmp_path, names, CONFIG, group=None, last_step=None, warn=warned.append) as trackers:
        trackers.log(_row(0))
        _wait_for(tmp_path / "tensorboard" / "events.out.tfevents.0000000000", 0)
        os.kill(_host(), signal.SIGSTOP)
    assert warned == ["warning: trackio failed; the run continues without it: it did not finish within 3 s"]
    assert _in_tensorboard(tmp_path)


def test_rows_that_a_tracker_never_takes_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "_MOST_PENDING", 10_000)
    warned: list[str] = []
    with _track(tmp_path, warned) as trackers:
        os.kill(_host(), signal.SIGSTOP)
        for _ in range(100):
            trackers.log({"step": 0, "filling": "x" * 2000})
        assert _hosts() == []
    assert warned == ["warning: tensorboard failed; the run continues without it: it does not read its rows"]


def test_a_process_that_cannot_be_started_is_a_failure_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    warned: list[str] = []
    with _track(tmp_path, warned) as trackers:
        trackers.log(_row(0))
    assert len(warned) == 1 and "No such file or directory" in warned[0]


def test_what_was_logged_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from echo_cli.training.trackers.tracking import tracking\n"
        f"with tracking(Path({str(tmp_path)!r}), ['tensorboard'], {{}}, group=None, last_step=None, warn=print) as t:\n"
        "    t.log({'step': 0, 'train/loss': 0.5}); t.log({'step': 1, 'train/loss': 0.25})\n"
        "    os.killpg(0, 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], start_new_session=True)
    assert killed.returncode == -9
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        held = _in_tensorboard(tmp_path) if (tmp_path / "tensorboard").is_dir() else {}
        if len(held) == 2:
            break
        time.sleep(0.1)
    assert held == {0: {"train/loss": 0.5}, 1: {"train/loss": 0.25}}


# --- Config and plan -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "names"),
    [("null", None), ('"wandb"', ("wandb",)), ('["trackio", "wandb", "trackio"]', ("trackio", "wandb")), ("[]", None)],
)
def test_track_is_a_name_or_some(value: str, names: tuple[str, ...] | None) -> None:
    config = Config.model_validate_json(f'{{"track": {value}}}')
    assert config.track == names
    assert ("tracked by" in plan(config, Path("outputs/a"))) == (names is not None)


@pytest.mark.parametrize("value", ["wandbb", "[wandbb]", "3", "{a: 1}", "[3]"])
def test_another_value_of_track_is_refused(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "a", f"track={value}") == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "track" in message
    assert tip == "did you mean 'wandb'?" if "wandbb" in value else tip


def test_a_null_that_is_not_finite_or_a_warning_is_no_number() -> None:
    row = {"step": 1, "a": math.nan, "b": None, "c": 2, "warnings": [WARNING, {"signal": "x", "reason": "y"}]}
    assert values_of(row) == {"c": 2, "warnings": "entropy: below 0.02 <script>\x1b[1m\nx: y"}


def test_overwrite_deletes_what_trackers_left_in_the_run(tmp_path: Path) -> None:
    create_run(tmp_path, config_yaml="seed: 0\n", environment={})
    for name in (*ALL, "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    create_run(tmp_path, config_yaml="seed: 0\n", environment={}, overwrite=True)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"mine"}


def test_trackers_without_any_do_nothing() -> None:
    trackers = Trackers(print)
    trackers.log(_row(0))
    trackers.close(0)


@pytest.mark.parametrize(
    ("variables", "netrc", "key"),
    [
        ({}, "", False),
        ({"WANDB_API_KEY": SECRET}, "", True),
        ({"WANDB_API_KEY": ""}, "", False),
        ({}, f"machine api.wandb.ai login user password {SECRET}", True),
        ({}, f"machine elsewhere.example login user password {SECRET}", False),
    ],
)
def test_wandb_is_online_only_with_a_key_for_its_server(
    variables: dict[str, str], netrc: str, key: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text(netrc)
    (tmp_path / ".netrc").chmod(0o600)
    assert has_key("https://api.wandb.ai", None) is key


def test_a_cell_is_shown_with_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(cell_runner, "ChildProcess", lambda module, variables, words, **_: started.append(words))
    [cell] = plan_cells({lambda_arm(0.05): Config(track=("wandb",))}, [0], tmp_path / "my-sweep", threads=1)
    cell_runner._start(cell, overwrite=False)
    assert started[0][started[0].index("--group") + 1] == "my-sweep"
    assert load_config(tmp_path / "my-sweep" / "cells" / f"{cell.name}.yaml").track == ("wandb",)
