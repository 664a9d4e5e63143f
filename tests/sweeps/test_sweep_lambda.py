"""`sweep-lambda`: λ × seeds, one process per cell; no cell runs twice, and a failed cell does not stop the others."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_run import TINY, error_of, rows, start, train, weights

from echo_cli.cli.display.progress import Followed, live_table, print_plain
from echo_cli.cli.main import main
from echo_cli.cli.sweep import _complain
from echo_cli.config.loader import find_config, load_config
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.runs.directory import create_run, open_run
from echo_cli.sweeps.arms import Arm, join_arms, lambda_arm, parse_arms, parse_words, read_arms, record_arms
from echo_cli.sweeps.plan import ended_summary, join_seeds, parse_seeds, plan_cells, sweep_config
from echo_cli.sweeps.runner import CellStatus, _start, log_path, run_cells

NAMES = ["lambda-0-seed0", "lambda-0-seed1", "lambda-0.05-seed0", "lambda-0.05-seed1"]


def _words(folder: Path, *words: str) -> list[str]:
    return ["sweep-lambda", "--output-dir", str(folder), "--run-name", "s", "--steps", "2", *TINY, *words]


def _two_by_two(folder: Path, *words: str, jobs: int = 2) -> list[str]:
    return _words(folder, *words, "0", "0.05", "--seeds", "0", "1", "--jobs", str(jobs), "checkpoint.keep=8")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    assert main(_two_by_two(folder)) == 0
    return folder / "s"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no pictures, which take most of the time of a command that trains nothing."""
    monkeypatch.setattr("echo_cli.reports.figure.drawn_or_reported", lambda *_: None)


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clock(entry) for key, entry in value.items() if "seconds" not in key}
    return [_without_clock(entry) for entry in value] if isinstance(value, list) else value


def _sweep(folder: Path) -> Any:
    return json.loads((folder / "sweep.json").read_text())


def _copy(swept: Path, folder: Path, *dropped: str) -> Path:
    """Return a copy of the sweep without some of its cells."""
    again = shutil.copytree(swept, folder / "s")
    for name in dropped:
        shutil.rmtree(again / name)
    return again


def test_a_sweep_is_a_run_a_cell_tables_pictures_and_a_report(swept: Path) -> None:
    assert sorted(path.name for path in swept.glob("lambda-*/")) == NAMES
    assert {
        *("comparison.png", "comparison.svg", "comparison.csv", "lambda_axis.png", "lambda_axis.svg"),
        *("sweep.json", "sweep.csv", "cells.csv", "report.html"),
    } <= {path.name for path in swept.iterdir()}
    sweep = _sweep(swept)
    assert [row["lambda"] for row in sweep["rows"]] == [0.0, 0.05]
    assert [cell["name"] for cell in sweep["cells"]] == NAMES
    with (swept / "cells.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished"] * 4
    starts = {rows(swept / name)[0]["heldout/env_ce"] for name in NAMES}
    assert len(starts) == 1
    assert starts.pop() == pytest.approx(sweep["rows"][0]["env_ce_start_best"]["value"])
    assert rows(swept / NAMES[0])[1:] != rows(swept / NAMES[1])[1:]


def test_a_cell_probes_the_gradients(swept: Path) -> None:
    assert [row["train/probe_env_grad_norm"] is not None for row in rows(swept / NAMES[2])] == [False, True, False]


def test_a_finished_sweep_is_only_read(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.glob("lambda-*/**/*")}
    assert main(_two_by_two(swept.parent, "--json")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    printed = json.loads(captured.out)
    assert [row["lambda"] for row in printed["rows"]] == [0.0, 0.05]
    assert Path(printed["report"]).is_file() and all(Path(picture).is_file() for picture in printed["pictures"])
    assert {path: path.stat().st_mtime_ns for path in swept.glob("lambda-*/**/*")} == before


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_cell_is_resumed_and_its_neighbours_left(swept: Path, tmp_path: Path) -> None:
    again = _copy(swept, tmp_path)
    cut, whole = again / NAMES[3], again / NAMES[0]
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "step_000002")
    first = (cut / "checkpoints" / "step_000001" / "meta.json").stat().st_mtime_ns
    before = (whole / "summary.json").stat().st_mtime_ns
    assert main(_two_by_two(tmp_path)) == 0
    assert rows(cut) == rows(swept / NAMES[3])
    assert (cut / "checkpoints" / "step_000001" / "meta.json").stat().st_mtime_ns == first
    assert (whole / "summary.json").stat().st_mtime_ns == before


def test_another_config_is_refused_before_anything_is_trained(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_words(swept.parent, "0.7", "0.05", "optim.lr=0.1")) == 2
    assert "optim.lr was" in error_of(capsys.readouterr().err)[0]
    assert not (swept / "lambda-0.7-seed0").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "3"], "was trained with steps=2, not 3"),
        (["--steps", "1"], "was trained with steps=2, not 1"),
        (["threads=2"], "was trained with threads=1, not 2"),
    ],
)
def test_what_changes_the_figures_of_finished_cells_is_refused_and_they_stay_finished(
    words: list[str], message: str, swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in swept.rglob("*") if path.is_file()}
    for coeffs in (["0", "0.05"], ["0.7"]):  # the sweep's own cells, and one beside them
        assert main(_words(swept.parent, *coeffs, *words)) == 2
        found, tip = error_of(capsys.readouterr().err)
        assert message in found and tip
    assert {path: path.read_bytes() for path in swept.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("undrawn")
def test_a_narrower_sweep_keeps_the_results_of_the_wider_one(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = _copy(swept, tmp_path)
    assert main(_words(tmp_path, "0.05", "--seeds", "1", "checkpoint.keep=8", "--json")) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and [row["lambda"] for row in json.loads(captured.out)["rows"]] == [0.0, 0.05]
    assert _sweep(again) == _sweep(swept)
    assert (again / "cells.csv").read_bytes() == (swept / "cells.csv").read_bytes()


def test_a_named_arm_is_trained_beside_the_lambdas_and_known_by_its_overrides(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    again = _copy(swept, tmp_path)
    same = ("checkpoint.keep=8", "--seeds", "1", "--json")

    def run(*words: str) -> tuple[int, str, str]:
        code = main(_words(tmp_path, *same, *words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    arm = ("--arm", "slow", "objective.world_model_coeff=0.05", "optim.lr=1e-9")
    code, out, err = run("0.05", *arm)
    assert code == 0 and "slow, seed 1: finished" in err and "λ = 0.05, seed 1" not in err and "no picture" not in err
    sweep = json.loads(out)
    assert [row["arm"] for row in sweep["rows"]] == ["0", "0.05", "slow"]
    assert sweep["rows"][2]["lambda"] == 0.05 and sweep["rows"][2]["env_ce_last_difference"]["seeds"] == 1
    assert sweep["arms"] == {"slow": list(arm[2:])} and "lr" not in sweep["config"]["optim"]
    assert load_config(again / "arm-slow-seed1" / "config.yaml").optim.lr == 1e-9
    request.getfixturevalue("undrawn")  # the first command drew the same pictures
    for words in (("0.05",), arm, ("--arm", "slow", *reversed(arm[2:]))):  # λ alone, the arm alone, other order
        code, out, err = run(*words)
        assert (code, err) == (0, "") and {row["arm"] for row in json.loads(out)["rows"]} == {"0", "0.05", "slow"}
    before = {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}
    code, _, err = run("--arm", "slow", "objective.world_model_coeff=0.05", "optim.lr=1e-8")
    assert code == 2 and "optim.lr was 1e-09, now 1e-08" in error_of(err)[0]
    (again / "cells" / "arms.json").rename(tmp_path / "arms.json")
    code, _, err = run("0.05")
    assert code == 2 and "arm-slow-seed1 is of an arm that is not recorded" in error_of(err)[0]
    (tmp_path / "arms.json").rename(again / "cells" / "arms.json")
    assert {path: path.read_bytes() for path in again.rglob("*") if path.is_file()} == before


def test_a_sweep_keeps_out_of_a_run_and_of_other_folders(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, message in ((swept / NAMES[0], "is a run, not a sweep"), (tmp_path, "is not empty and not a sweep")):
        (tmp_path / "notes.txt").write_text("mine")
        before = sorted(folder.iterdir())
        assert main(["sweep-lambda", "0", "--output-dir", str(folder.parent), "--run-name", folder.name]) == 2
        found, tip = error_of(capsys.readouterr().err)
        assert message in found and "--run-name" in tip
        assert sorted(folder.iterdir()) == before


@pytest.mark.usefixtures("undrawn")
def test_a_finished_cell_is_not_passed_off_as_one_with_a_lowered_lambda(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _copy(swept, tmp_path)
    assert main(_two_by_two(tmp_path, "collapse.action=lower_lambda")) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "a different collapse section" in message and "--overwrite" in tip
    assert main(_two_by_two(tmp_path, "collapse.action=stop")) == 0


@pytest.mark.slow
def test_a_failed_cell_costs_only_itself_and_is_done_the_next_time(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = _copy(swept, tmp_path, NAMES[0], NAMES[3])
    (again / NAMES[0]).write_text("in the way")
    assert main(_two_by_two(tmp_path)) == 1
    captured = capsys.readouterr()
    message, tip = error_of(captured.err)
    assert message.startswith("1 of 4 runs failed, the first: λ = 0, seed 0: ") and "is not a folder" in message
    assert "error: " in Path(tip.split()[1].rstrip(",")).read_text()
    assert [cell["status"] for cell in _sweep(again)["cells"]] == ["failed", "finished", "finished", "finished"]
    assert "is not a folder" in (again / "report.html").read_text()
    assert rows(again / NAMES[3]) == rows(swept / NAMES[3])
    (again / NAMES[0]).unlink()
    before = (again / NAMES[3] / "summary.json").stat().st_mtime_ns
    assert main(_two_by_two(tmp_path)) == 0
    assert (again / NAMES[3] / "summary.json").stat().st_mtime_ns == before
    assert _without_clock(_sweep(again)) == _without_clock(_sweep(swept))


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _gone(pid: int) -> bool:
    """Return whether a process has ended; a zombie has ended too."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while not _gone(pid):
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.05)


def test_a_cell_takes_classes_from_the_folder_that_the_sweep_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "class Mine:\n    def start(self, **_):\n        raise RuntimeError('mine was started')\n"
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "mine.py").write_text(source)
    words = _words(tmp_path, "0", "environment.provider.kind=mine:Mine", "--import-from", str(tmp_path / "given"))
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "the provider failed: RuntimeError: mine was started" in error_of(said)[0]
    line = f"this command starts a server of mine:Mine; imports mine:Mine (also from {tmp_path / 'given'})\n"
    assert f"sweep: {line}" in said
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    (log,) = (tmp_path / "s" / "cells").glob("*.log")
    assert log.read_text().startswith(f"train: {line}")


def test_a_cell_may_run_and_fetch_on_its_command_line_what_the_sweep_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("echo_cli.sweeps.runner.ChildProcess", lambda *_, words, **__: started.append(words))
    options = {"--trust-remote-code", "--fetch-model"}
    for words in ([], ["model.trust_remote_code=true", "model.fetch=all"]):
        (cell,) = plan_cells(
            {lambda_arm(1.0): load_config("hf-smoke", words)}, [0], tmp_path / str(len(words)), threads=1
        )
        _start(cell, overwrite=False)
        assert options & set(started[-1]) == (options if words else set())
        model = load_config(Path(started[-1][2])).model
        assert (model.trust_remote_code, model.fetch) == (False, "never")


@pytest.mark.slow
def test_a_killed_cell_is_a_failed_one(swept: Path, tmp_path: Path) -> None:
    again = _copy(swept, tmp_path, NAMES[3])
    process = start(*_two_by_two(tmp_path))
    assert process.stderr is not None
    assert any("λ = 0.05, seed 1: running" in line for line in process.stderr)
    (child,) = _children(process.pid)
    os.kill(child, signal.SIGKILL)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "killed by SIGKILL" in error_of(rest)[0]
    assert _sweep(again)["cells"][3]["error"].startswith("killed by SIGKILL")


@pytest.mark.slow
def test_a_cell_with_a_damaged_file_fails_alone_and_can_be_replaced(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = _copy(swept, tmp_path)
    (again / NAMES[1] / "summary.json").unlink()
    (again / NAMES[1] / "metrics.jsonl").open("a").write("damaged\n")
    assert main(_words(tmp_path, "0", "--seeds", "0", "1", "checkpoint.keep=8")) == 1
    assert "metrics.jsonl:4: not JSON" in error_of(capsys.readouterr().err)[0]
    assert [cell["status"] for cell in _sweep(again)["cells"][:2]] == ["finished", "failed"]
    assert main(_words(tmp_path, "0", "--seeds", "1", "checkpoint.keep=8", "--overwrite")) == 0


def _wait_for_a_row(cell: Path) -> None:
    """Wait for the first row of a run that replaces a finished one, with frequent checks, as its steps are short."""
    deadline = time.monotonic() + 60
    metrics = cell / "metrics.jsonl"
    while (cell / "summary.json").exists() or not metrics.exists() or metrics.stat().st_size == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_to_the_same_result(swept: Path, tmp_path: Path) -> None:
    again = _copy(swept, tmp_path)
    before = (again / NAMES[1] / "summary.json").stat().st_mtime_ns
    process = start(*_two_by_two(tmp_path, "--overwrite", jobs=1))
    _wait_for_a_row(again / NAMES[0])
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    command = shlex.split(rest.splitlines()[-1].partition("to continue: ")[2])
    assert command[:2] == ["echo-cli", "sweep-lambda"] and "--overwrite" not in command
    # Two steps are short: the cell may have finished them before the request to stop.
    assert json.loads((again / NAMES[0] / "summary.json").read_text())["status"] in ("stopped", "finished")
    assert main(command[1:]) == 0
    assert (again / NAMES[1] / "summary.json").stat().st_mtime_ns == before
    assert _without_clock(_sweep(again)) == _without_clock(_sweep(swept))
    assert [rows(again / name) for name in NAMES] == [rows(swept / name) for name in NAMES]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_stops_the_cells_now(tmp_path: Path, number: signal.Signals) -> None:
    process = start(*_words(tmp_path, "0.05", "--steps", "400"))
    assert process.stderr is not None
    assert any("running" in line for line in process.stderr)
    (child,) = _children(process.pid)
    os.kill(child, signal.SIGSTOP)  # it ignores the first request
    process.send_signal(number)
    assert any("interrupt again to stop now" in line for line in process.stderr)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    _wait_until_gone(child)


@pytest.mark.slow
def test_a_sweep_outlives_the_reader_of_its_output(tmp_path: Path) -> None:
    process = start(*_words(tmp_path, "0.05", "--steps", "400", "checkpoint.every=400"), stderr=subprocess.STDOUT)
    assert process.stdout is not None
    assert any("step 2/400" in line for line in process.stdout)
    process.stdout.close()  # as of a pipe into a tee that the same Ctrl-C ended
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    cell = tmp_path / "s" / "lambda-0.05-seed0"
    summary = json.loads((cell / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert (cell / "checkpoints" / f"step_{summary['steps']:06d}").is_dir()


@pytest.mark.slow
def test_the_cells_of_a_killed_sweep_save_and_stop(tmp_path: Path) -> None:
    process = start(*_words(tmp_path, "0.05", "--steps", "400", "checkpoint.every=400"))
    assert process.stderr is not None
    assert any("step 2/400" in line for line in process.stderr)
    (child,) = _children(process.pid)
    process.kill()
    process.communicate(timeout=60)
    _wait_until_gone(child)
    cell = tmp_path / "s" / "lambda-0.05-seed0"
    summary = json.loads((cell / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert (cell / "checkpoints" / f"step_{summary['steps']:06d}").is_dir()


@pytest.mark.slow
def test_a_diverged_cell_does_not_cost_the_others_and_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # λ = 1e38 overflows the loss; λ = 0.05 does not.
    words = _words(tmp_path, "1e38", "0.05", "--steps", "1", "--jobs", "2")
    assert main(words) == 3
    assert error_of(capsys.readouterr().err)[0] == "λ = 1e+38, seed 0 diverged"
    sweep = _sweep(tmp_path / "s")
    assert [cell["status"] for cell in sweep["cells"]] == ["diverged", "finished"]
    assert [row["verdict"] for row in sweep["rows"]] == ["collapsed", "inconclusive"]
    assert main(words) == 3
    assert "running" not in capsys.readouterr().err


def test_a_collapsed_cell_is_done_as_long_as_the_config_stops_it(tmp_path: Path) -> None:
    stopping, warning = (load_config(find_config("toy"), [f"collapse.action={action}"]) for action in ("stop", "warn"))
    (stopped,) = plan_cells({lambda_arm(1.0): stopping}, [0], tmp_path, threads=1)
    (warned,) = plan_cells({lambda_arm(1.0): warning}, [0], tmp_path, threads=1)
    create_run(stopped.path, config_yaml=stopping.to_yaml(), environment={}).write_summary(
        {"status": "collapsed", "steps": 5}
    )
    assert ended_summary(stopped) is not None
    assert ended_summary(warned) is None
    open_run(stopped.path).write_summary({"status": "no_gradient", "steps": 1})
    assert ended_summary(stopped) is not None and ended_summary(warned) is None
    with pytest.raises(EchoError, match=r"^λ = 1, seed 0 stopped for lack of any gradient$") as idle:
        _complain([stopped], {stopped.name: CellStatus("no_gradient", "all is malformed")})
    assert idle.value.exit_code == 3 and "names the cause" in str(idle.value.tip) and "lr" not in str(idle.value.tip)
    open_run(stopped.path).write_summary({"status": "collapsed", "steps": 5})
    log_path(stopped).parent.mkdir()
    log_path(stopped).write_text("train: step 5\nerror: collapsed at step 5: entropy\n  tip: go on\n")
    found = run_cells([stopped], jobs=1, overwrite=False, should_stop=lambda: False, show=lambda _: None)
    assert found[stopped.name] == CellStatus("collapsed", "collapsed at step 5: entropy")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (45, 12), (100, 40)])
def test_the_live_table_fits_its_terminal_and_shows_the_cells_that_run(width: int, height: int, tmp_path: Path) -> None:
    cells = plan_cells(_of(0.0, 0.005, 0.05, 1.0), range(8), tmp_path, threads=1)
    outcomes = {cell.name: CellStatus("finished") for cell in cells} | {
        cell.name: CellStatus("running") for cell in cells[30:]
    }
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(live_table(console, [Followed(cell) for cell in cells], outcomes))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines) and not any("…" in line for line in lines)
    assert sum("running" in line for line in lines) == 2
    shown = sum("finished" in line for line in lines)
    assert shown == 30 or f"and {30 - (shown - 1)} finished" in lines[-1]


@pytest.mark.parametrize("step", [0, 3])
def test_a_line_of_progress_never_ends_in_nothing(step: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_plain({"step": step, "warnings": []}, 3, "train")
    assert capsys.readouterr().err == f"train: step {step}/3: nothing measured\n"


@pytest.mark.slow
def test_probes_and_played_tasks_change_nothing_in_the_training(tmp_path: Path) -> None:
    words = ("evaluation.every=1", "evaluation.validation_rollouts=1", "environment.toy_terminal.families=[key]")
    assert train(tmp_path / "plain", *words, "evaluation.pass_every=2") == 0
    assert train(tmp_path / "probed", *words, "evaluation.pass_every=1", "probe_every=1") == 0
    plain, probed = rows(tmp_path / "plain"), rows(tmp_path / "probed")
    assert [row["validation/pass_at_1"] is None for row in plain] == [False, True, False]
    assert [row["validation/pass_at_1"] is None for row in probed] == [False, False, False]
    ours = {"train/probe_rl_grad_norm", "train/probe_env_grad_norm", "train/probe_ratio", "train/probe_cosine"}
    ours |= {f"probe/action_{name}" for name in ("shift", "distance", "kl")}
    assert all(row["probe/action_kl"] > 0 for row in probed[1:]) and plain[1]["probe/action_kl"] is None
    assert weights(tmp_path / "probed", 2) == weights(tmp_path / "plain", 2)
    for a, b in zip(plain, probed, strict=True):
        extra = (
            ours if a["validation/pass_at_1"] is not None else ours | {"validation/pass_at_1", "validation/mean_reward"}
        )
        assert {key for key in a if a[key] != b[key]} <= extra


def _differences(a: Any, b: Any, prefix: str = "") -> set[str]:
    if not isinstance(a, dict):
        return {prefix} if a != b else set()
    return set().union(*(_differences(a[key], b[key], f"{prefix}.{key}") for key in a))


@pytest.mark.parametrize(
    ("name", "words", "changed", "probe", "played"),
    [
        ("toy-files", (), {".probe_every", ".evaluation.pass_every"}, 10, 10),
        ("toy-files", ("evaluation.every=3",), {".probe_every", ".evaluation.pass_every"}, 10, 3),
        ("toy-files", ("probe_every=0", "evaluation.pass_every=20"), set(), 0, 20),
        ("toy-files", ("probe_every=7",), {".evaluation.pass_every"}, 7, 10),
        ("toy", ("evaluation.every=10", "evaluation.pass_every=10"), {".probe_every"}, 10, 10),
        ("toy", ("evaluation.every=3",), {".probe_every", ".evaluation.pass_every"}, 10, 3),
    ],
)
def test_a_cell_is_its_config_with_probes_and_more_plays(
    name: str, words: tuple[str, ...], changed: set[str], probe: int, played: int
) -> None:
    source = find_config(name)
    plain, config = load_config(source, words), sweep_config(source, words)
    assert _differences(plain.model_dump(mode="json"), config.model_dump(mode="json")) == changed
    assert (config.probe_every, config.evaluation.pass_every) == (probe, played)


def test_the_arms_of_a_sweep_are_recorded_before_its_first_run(tmp_path: Path) -> None:
    arm = Arm("short", ("steps=3",), named=True)
    record_arms(tmp_path / "new", [lambda_arm(0.3), arm])
    assert read_arms(tmp_path / "new") == {"short": arm}
    record_arms(tmp_path / "plain", [lambda_arm(0.3)])
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["backend.kind=tinker", "backend.url=http://127.0.0.1:8000", "rollout.temperature=1"],
        ["distributed.strategy=fsdp"],
    ],
)
def test_a_cell_that_can_have_no_gradient_probes_has_none(words: list[str]) -> None:
    config = sweep_config(find_config("hf-smoke"), ["model.lora.rank=8", *words])
    assert config.probe_every == 0 and config.evaluation.pass_every == config.evaluation.every


def test_a_probe_in_the_config_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("probe_every: 4\n")
    assert sweep_config(file, []).probe_every == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no λ values"),
        (["steps=3"], "no λ values"),
        (["--seeds", "0", "1"], "no λ values"),
        (["0", "high"], "'high' is not a λ value"),
        (["-1"], "λ is -1"),
        (["0", "inf"], "λ is inf"),
        (["nan"], "λ is nan"),
        (["0", "seed=-1"], "'seed' is -1"),
        (["0", "--seeds"], "--seeds has no value"),
        (["0", "--seeds", "steps=2"], "--seeds has no value"),
        (["0", "--seeds", "0", "0.05"], "'0.05' is not a seed"),
        (["0", "--seeds=0,x"], "'x' is not a seed"),
        (["0", "--seeds", "9" * 30], f"'{'9' * 30}' is not a seed"),
        (["0", "--seeds", "9" * 5000], "is not a seed"),
        (["0", "objective.world_model_coeff=1"], "a sweep sets objective.world_model_coeff itself"),
        (["0.1", "0.1000000000000001"], "are the same to 12 digits"),
        (["0", "--seeds", "0", "--seed", "1"], "--seeds and a seed exclude each other"),
        (["0", "--seeds", "0", "seed=1"], "--seeds and a seed exclude each other"),
        (["0", "0.05", "0.050"], "λ 0.05 is given twice"),
        (["0", "-0"], "λ 0 is given twice"),
        (["0", "--seeds", "3", "1", "3"], "seed 3 is given twice"),
        (["0", "--steps", "2", "steps=400"], "--steps and steps=400 both set steps"),
        (["0", "--jobs", "0"], "Invalid value for '--jobs'"),
        (["0", "--jobs", "many"], "Invalid value for '--jobs'"),
        (["0", "objective.use_rl=false"], "the loss is always 0"),
        (["0", "--arm"], "--arm has no name"),
        (["0", "--arm", "--json"], "--arm has no name"),
        (["--arm", "optim.lr=1e-3"], "'optim.lr=1e-3' is not the name of an arm"),
        (["--arm", "../x"], "'../x' is not the name of an arm"),
        (["--arm", "0.05", "optim.lr=1e-3"], "'0.05' is not the name of an arm"),
        (["--arm", "a", "--arm", "A", "optim.lr=1e-3"], "arm A is given twice"),
        (["--arm", "a", "seed=1"], "arm a sets seed"),
        (["--arm", "a", "run_name=x"], "arm a sets run_name"),
        (["--arm", "a", "optim.lrr=1"], "unknown key 'optim.lrr'"),
        (["--arm", "a", "--arm", "b"], "a and b have the same config"),
        (["3", "--arm", "a"], "λ = 3 and a have the same config"),
        (["0", "objective.schedule=step", "objective.schedule_values=[0.1]"], "no effect with objective.schedule"),
        (["0.1", "objective.schedule=gradient_ratio"], "no effect with objective.schedule: gradient_ratio"),
    ],
)
def test_a_wrong_word_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep-lambda", "--output-dir", str(tmp_path / "o"), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in error_of(captured.err)[0]
    assert not (tmp_path / "o").exists()


def _planned(capsys: pytest.CaptureFixture[str], *words: str) -> list[tuple[float, int]]:
    assert main(["sweep-lambda", "--dry-run", "--json", *words]) == 0
    configs = [run["config"] for run in json.loads(capsys.readouterr().out)["runs"]]
    return [(config["objective"]["world_model_coeff"], config["seed"]) for config in configs]


@pytest.mark.parametrize(
    "words",
    [
        ("0", "0.05", "--seeds", "3", "1", "--jobs", "2", "steps=2"),
        ("0", "0.05", "--seeds", "3", "1", "steps=2"),
        ("--seeds", "3", "1", "--jobs", "2", "0", "0.05"),
        ("--seeds", "3,1", "--", "0", "0.05"),
        ("--seeds=3,1", "0", "0.05"),
        ("0", "--seeds", "3", "--json", "0.05", "--seeds", "1"),
    ],
    ids=" ".join,
)
def test_the_words_after_seeds_are_seeds(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert _planned(capsys, *words) == [(0.0, 3), (0.0, 1), (0.05, 3), (0.05, 1)]


def test_one_seed_is_that_of_the_config_or_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert _planned(capsys, "0") == [(0.0, 0)]
    assert _planned(capsys, "0", "--seed", "4") == [(0.0, 4)]
    assert _planned(capsys, "0", "seed=5") == [(0.0, 5)]


def test_the_plan_says_what_a_sweep_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep-lambda", "0", "--dry-run", "--output-dir", str(tmp_path / "o")]) == 0
    plan = capsys.readouterr().out
    assert "# steps between gradient probes, 0 for none: 10" in plan
    assert f"# steps between held-out rollouts: {load_config(find_config('toy')).evaluation.every}" in plan
    assert not (tmp_path / "o").exists()
    assert main(["sweep-lambda", "--help"]) == 0
    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "probe_every" in told and "evaluation.pass_every" in told and "up to the next option" in told


def test_words_are_values_or_overrides() -> None:
    assert parse_words(["-0", "a.b=1", "5e-3"]) == ([0.0, 0.005], ["a.b=1"])


def test_the_overrides_after_the_name_of_an_arm_are_its_own() -> None:
    words = ["a.b=1", "--arm", "x", "c=[1, 2]", "d=e f", "0.05", "--seeds", "1", "--arm=y", 'g="h"', "-j", "2"]
    joined = join_arms(words)
    assert [word for word in joined if not word.startswith("--arm=")] == ["a.b=1", "0.05", "--seeds", "1", "-j", "2"]
    arms = parse_arms([word.removeprefix("--arm=") for word in joined if word.startswith("--arm=")])
    assert [(arm.label, arm.words) for arm in arms] == [("x", ("c=[1, 2]", "d=e f")), ("y", ('g="h"',))]
    assert join_arms(["--", "0"]) == ["--", "0"]


def test_arms_share_the_seeds_and_the_overrides_before_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["steps=3", "--arm", "grpo", "objective.world_model_coeff=0", "--arm", "long", "steps=5"]
    assert main(["sweep-lambda", "--dry-run", "--json", "--seeds", "3", "1", *words]) == 0
    configs = [run["config"] for run in json.loads(capsys.readouterr().out)["runs"]]
    shown = [(of["objective"]["world_model_coeff"], of["steps"], of["seed"]) for of in configs]
    coeff = load_config("toy").objective.base_coeff
    assert shown == [(0.0, 3, 3), (0.0, 3, 1), (coeff, 5, 3), (coeff, 5, 1)]
    assert _planned(capsys, "0.5", "--arm", "grpo", "objective.world_model_coeff=0") == [(0.5, 0), (0.0, 0)]


def test_seeds_end_at_an_option_or_an_override() -> None:
    assert join_seeds(["0", "--seeds", "1", "2", "a=b", "3", "-h"]) == ["0", "--seeds=1,2", "a=b", "3", "-h"]
    assert join_seeds(["--seeds", "1", "--seeds", "--jobs", "2"]) == ["--seeds=1", "--seeds=", "--jobs", "2"]
    assert parse_seeds(["2,0", "1"]) == [2, 0, 1]


def _of(*coeffs: float) -> dict[Arm, Config]:
    return {arm: load_config(find_config("toy"), arm.words) for arm in map(lambda_arm, coeffs)}


@pytest.mark.parametrize(
    ("variable", "word", "each"),
    [(None, None, 1), ("3", None, 3), ("4,2", None, 4), ("", None, 1), ("0", None, 1), ("many", None, 1), ("3", 5, 5)],
)
def test_the_threads_of_a_cell_depend_on_neither_jobs_nor_the_machine(
    variable: str | None,
    word: int | None,
    each: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    words = [] if word is None else [f"threads={word}"]
    for jobs in ("1", "2", "64"):
        assert main(["sweep-lambda", "0", "1", "--dry-run", "--json", "--jobs", jobs, *words]) == 0
        planned = json.loads(capsys.readouterr().out)["runs"]
        assert [run["config"]["threads"] for run in planned] == [each, each]


def test_close_values_have_folders_of_their_own(tmp_path: Path) -> None:
    planned = plan_cells(_of(0.1234567, 0.1234568), [0], tmp_path, threads=1)
    assert len({cell.path for cell in planned}) == len({cell.title for cell in planned}) == 2
