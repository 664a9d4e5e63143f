"""`sweep-lambda`: one run a λ, from the same start, none of them twice."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import TINY, error_of, rows, start

from echo_cli.cli import main
from echo_cli.config import Config
from echo_cli.error import EchoError
from echo_cli.sweep import Cell, cells, parse_words, run_sweep


def _words(folder: Path, *words: str) -> list[str]:
    return ["sweep-lambda", "--output-dir", str(folder), "--run-name", "s", "--steps", "2", *TINY, *words]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    assert main(_words(folder, "0", "0.05", "0.05")) == 0
    return folder / "s"


def test_a_sweep_is_a_run_a_lambda_a_table_and_a_picture(swept: Path) -> None:
    assert sorted(path.name for path in swept.iterdir() if path.is_dir()) == ["lambda-0-seed0", "lambda-0.05-seed0"]
    assert {"comparison.png", "comparison.svg", "comparison.csv", "sweep.json", "sweep.csv"} <= {
        path.name for path in swept.iterdir()
    }
    with (swept / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["lambda"]) for row in table] == [0.0, 0.05]
    assert [row["status"] for row in table] == ["finished", "finished"]
    starts = [rows(run)[0]["heldout/env_ce"] for run in sorted(swept.glob("lambda-*"))]
    assert starts[0] == starts[1] == pytest.approx(float(table[0]["env_ce_before"]))


def test_a_finished_lambda_is_not_run_again(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.glob("lambda-*/**/*")}
    assert main(_words(swept.parent, "0", "0.05", "--json")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    printed = json.loads(captured.out)
    assert [row["lambda"] for row in printed["rows"]] == [0.0, 0.05]
    assert Path(printed["picture"]).is_file()
    assert {path: path.stat().st_mtime_ns for path in swept.glob("lambda-*/**/*")} == before


def test_an_unfinished_lambda_is_resumed_and_its_neighbour_left(swept: Path, tmp_path: Path) -> None:
    again = shutil.copytree(swept, tmp_path / "s")
    cut, whole = again / "lambda-0.05-seed0", again / "lambda-0-seed0"
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "step_000002")
    first = (cut / "checkpoints" / "step_000001" / "meta.json").stat().st_mtime_ns
    before = (whole / "summary.json").stat().st_mtime_ns
    assert main(_words(tmp_path, "0", "0.05")) == 0
    assert rows(cut) == rows(swept / "lambda-0.05-seed0")
    assert (cut / "checkpoints" / "step_000001" / "meta.json").stat().st_mtime_ns == first
    assert (whole / "summary.json").stat().st_mtime_ns == before


def test_another_config_is_refused_before_anything_is_trained(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_words(swept.parent, "0.7", "0.05", "optim.lr=0.1")) == 2
    assert "optim.lr was" in error_of(capsys.readouterr().err)[0]
    assert not (swept / "lambda-0.7-seed0").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no λ values"),
        (["steps=3"], "no λ values"),
        (["0", "high"], "'high' is not a λ value"),
        (["-1"], "λ is -1"),
        (["0", "inf"], "λ is inf"),
        (["nan"], "λ is nan"),
        (["0", "seed=-1"], "'seed' is -1"),
        (["0", "objective.use_rl=false"], "the loss is always 0"),
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


def test_the_plan_of_a_sweep_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep-lambda", "0", "0.05", "--dry-run", "--json", "--output-dir", str(tmp_path / "o")]) == 0
    planned = json.loads(capsys.readouterr().out)["runs"]
    assert [run["config"]["objective"]["world_model_coeff"] for run in planned] == [0.0, 0.05]
    assert not (tmp_path / "o").exists()


def test_words_are_values_or_overrides_and_a_value_counts_once() -> None:
    assert parse_words(["0", "5e-3", "a.b=1", "0.005", "-0"]) == ([0.0, 0.005], ["a.b=1"])


def test_close_values_have_folders_of_their_own(tmp_path: Path) -> None:
    planned = cells([0.1234567, 0.1234568], lambda coeff: Config(), tmp_path, 0)
    assert len({cell.path for cell in planned}) == len({cell.label for cell in planned}) == 2


def _summary(status: str) -> dict[str, Any]:
    return {"status": status, "steps": 60}


def test_a_stopped_run_ends_the_sweep(tmp_path: Path) -> None:
    trained = []

    def train_cell(cell: Cell, resume: bool) -> dict[str, Any]:
        trained.append(cell.coeff)
        return _summary("finished" if cell.coeff == 0 else "stopped")

    planned = cells([0.0, 0.1, 0.2], lambda coeff: Config(), tmp_path, 0)
    assert run_sweep(planned, train_cell, overwrite=False, should_stop=lambda: False) is None
    assert trained == [0.0, 0.1]
    assert run_sweep(planned, train_cell, overwrite=False, should_stop=lambda: True) is None
    assert trained == [0.0, 0.1]


def test_a_mistake_in_a_run_ends_the_sweep(tmp_path: Path) -> None:
    def train_cell(cell: Cell, resume: bool) -> dict[str, Any]:
        raise EchoError("the disk is full", exit_code=1)

    with pytest.raises(EchoError, match="the disk is full"):
        run_sweep(cells([0.1], lambda coeff: Config(), tmp_path, 0), train_cell, overwrite=True, should_stop=bool)


@pytest.mark.slow
def test_a_diverged_lambda_does_not_cost_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # λ = 1e38 overflows the loss; λ = 0.05 does not.
    assert main(_words(tmp_path, "1e38", "0.05", "--steps", "1")) == 3
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-2:][0] == "error: λ = 1e+38 diverged"
    rows_of = json.loads((tmp_path / "s" / "sweep.json").read_text())["rows"]
    assert [row["status"] for row in rows_of] == ["diverged", "finished"]


@pytest.mark.slow
def test_an_interrupted_sweep_says_how_to_continue(tmp_path: Path) -> None:
    process = start(*_words(tmp_path, "0", "0.05", "--steps", "400", "--overwrite", "checkpoint.every=400"))
    assert process.stderr is not None
    assert any("step 2/400" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    command = rest.splitlines()[-1].partition("to continue: ")[2]
    assert command.startswith("echo-cli sweep-lambda ") and "--overwrite" not in command
    assert not (tmp_path / "s" / "lambda-0.05-seed0").exists()
    assert sys.executable not in command
