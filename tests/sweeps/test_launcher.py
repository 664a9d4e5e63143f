"""`sweep-lambda --launcher`: a command of the user starts each run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
from tiny_run import COMMAND, TINY, error_of, rows, start
from training.test_training_by_ranks import assert_equal_rows

from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.errors import EchoError
from echo_cli.sweeps.arms import lambda_arm
from echo_cli.sweeps.launcher import parse_launcher
from echo_cli.sweeps.plan import Cell, plan_cells
from echo_cli.sweeps.runner import CellStatus, log_path, run_cells

ECHO = shlex.join(COMMAND)
TORCHRUN = f"{shlex.quote(sys.executable)} -m torch.distributed.run --nproc-per-node 1 --master-port 0 -m echo_cli"
TWO_RANKS = f"{shlex.quote(sys.executable)} -m torch.distributed.run --standalone --nproc-per-node 2 -m echo_cli"


def _words(folder: Path, *words: str) -> list[str]:
    place = ["--output-dir", str(folder), "--run-name", "s", "--config", "toy-files"]
    return ["sweep-lambda", *place, "--steps", "1", *TINY, *words]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not run echo-cli"),
        ("torchrun --nproc-per-node 8", "does not run echo-cli"),
        ("torchrun 'echo_cli", "no closing quotation"),
        ("no-such-launcher -m echo_cli", "no-such-launcher not found"),
    ],
)
def test_a_wrong_launcher_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_words(tmp_path, "0", "--launcher", text)) == 2
    said, tip = error_of(capsys.readouterr().err)
    assert message in said and tip
    assert not (tmp_path / "s").exists()


def test_a_launcher_is_split_as_a_shell_splits_it() -> None:
    assert parse_launcher(None) == ()
    assert parse_launcher("env 'A=b c' echo-cli") == ("env", "A=b c", "echo-cli")
    with pytest.raises(EchoError):
        parse_launcher("env A=b")


def test_a_program_beside_this_python_needs_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin")
    torchrun = str(Path(sys.executable).parent / "torchrun")
    assert parse_launcher("torchrun -m echo_cli") == (torchrun, "-m", "echo_cli")


def _cell(folder: Path) -> Cell:
    words = ["steps=1", *TINY]
    return plan_cells({lambda_arm(0.05): load_config("toy-files", words)}, [0], folder / "s", threads=1)[0]


def _launched(folder: Path, *launcher: str) -> tuple[Cell, CellStatus]:
    cell = _cell(folder)
    outcomes = run_cells(
        [cell], jobs=1, overwrite=False, should_stop=lambda: False, show=lambda _: None, launcher=launcher
    )
    return cell, outcomes[cell.name]


def test_a_launcher_gets_the_words_of_the_run_and_all_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    seen = tmp_path / "seen"
    script = f'printf "%s\\n" "$SLURM_JOB_ID" "$@" > {shlex.quote(str(seen))}; echo said; echo wrong >&2; exit 7'
    cell, outcome = _launched(tmp_path, "bash", "-c", script, "echo-cli")
    job, *words = seen.read_text().splitlines()
    assert job == "17" and words[:2] == ["train", "--config"] and words[-2:] == ["--parent", "0"]
    assert outcome == CellStatus("failed", "wrong")
    assert log_path(cell).read_text() == "wrong\n"


def test_a_launcher_that_cannot_start_is_the_failure_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    _, outcome = _launched(tmp_path, str(tmp_path / "folder"), "echo-cli")
    assert outcome == CellStatus("failed", f"cannot start {tmp_path / 'folder'}: Permission denied")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [f"nice -n 1 env A=b {ECHO}", TWO_RANKS])
def test_a_launched_run_equals_one_that_the_sweep_starts(launcher: str, tmp_path: Path) -> None:
    assert main(_words(tmp_path / "a", "0.05")) == 0
    assert main(_words(tmp_path / "b", "0.05", "--claim", "--launcher", launcher)) == 0
    a, b = (tmp_path / name / "s" / "lambda-0.05-seed0" for name in "ab")
    if launcher == TWO_RANKS:
        assert_equal_rows(a, b)
        assert json.loads((b / "environment.json").read_text())["ranks"] == 2
    else:
        assert rows(a) == rows(b)


@pytest.mark.slow
def test_a_run_that_diverges_under_a_launcher_is_known_by_its_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_words(tmp_path, "1e38", "--launcher", TORCHRUN)) == 3
    assert error_of(capsys.readouterr().err)[0] == "λ = 1e+38, seed 0 diverged"


def _wait_until_stopped(run: Path) -> None:
    deadline = time.monotonic() + 120
    while not (run / "summary.json").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert (run / "checkpoints" / f"step_{summary['steps']:06d}").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("launcher", [f"nice -n 1 {ECHO}", TORCHRUN])
def test_a_launched_run_saves_and_stops_with_the_sweep(launcher: str, number: signal.Signals, tmp_path: Path) -> None:
    process = start(*_words(tmp_path, "0.05", "--steps", "400", "checkpoint.every=400", "--launcher", launcher))
    assert process.stderr is not None
    assert any("step 2/400" in line for line in process.stderr)
    os.kill(process.pid, number)
    process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    _wait_until_stopped(tmp_path / "s" / "lambda-0.05-seed0")


@pytest.mark.slow
def test_a_run_saves_and_stops_if_its_launcher_is_killed(tmp_path: Path) -> None:
    words = ["0.05", "--steps", "400", "checkpoint.every=400", "--launcher", TORCHRUN]
    process = start(*_words(tmp_path, *words))
    assert process.stderr is not None
    assert any("step 2/400" in line for line in process.stderr)
    (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(child, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1 and "killed by SIGKILL" in error_of(said)[0]
    _wait_until_stopped(tmp_path / "s" / "lambda-0.05-seed0")
