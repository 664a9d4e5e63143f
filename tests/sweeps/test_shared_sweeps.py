"""`sweep-lambda --claim`: no two processes that share a folder run one cell, and a dead one loses its cells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import claiming_worker
import pytest
from loopback import environment
from tiny_run import TINY, error_of, rows, start

from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.files import lock_folder
from echo_cli.sweeps.arms import parse_arms
from echo_cli.sweeps.claims import ClaimQueue, agree, claims_folder, last_tables, tables_turn
from echo_cli.sweeps.lease import ENDED, FAILED, RELEASED, Lease, joined_lease, latest
from echo_cli.sweeps.plan import Cell, plan_cells
from echo_cli.sweeps.runner import CellStatus

FINISHED = CellStatus("finished")


def _words(folder: Path, *words: str) -> list[str]:
    place = ["--output-dir", str(folder), "--run-name", "s", "--config", "toy-files"]
    return ["sweep-lambda", *place, "--steps", "1", *TINY, *words]


def _wait_for(path: Path, text: str, count: int = 1) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_text().count(text) < count:
        assert time.monotonic() < deadline, f"no {text} in {path}"
        time.sleep(0.02)


@contextmanager
def _workers(folder: Path, log: Path, seconds: list[float]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a process per entry of `seconds`, the time that it spends in a cell, and let all begin together."""
    command = [sys.executable, claiming_worker.__file__, str(folder), str(log)]
    variables = environment()
    started = [
        subprocess.Popen([*command, str(each)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
        for each in seconds
    ]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _events(log: Path) -> list[tuple[int, str, str]]:
    lines = sorted((float(time_), int(pid), what, cell) for time_, pid, what, cell in map(str.split, log.open()))
    return [(pid, what, cell) for _, pid, what, cell in lines]


def test_eight_processes_share_the_cells_and_those_of_the_killed_go_to_others(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with _workers(tmp_path / "s", log, [0.1] * 5 + [600] * 3) as processes:
        victims = processes[5:]
        for process in victims[:2]:
            _wait_for(log, f" {process.pid} start ")
            process.kill()
            process.wait()
            claiming_worker.record(log, process.pid, "killed", "-")
        _wait_for(log, f" {victims[2].pid} start ")
        os.kill(victims[2].pid, signal.SIGSTOP)
        claiming_worker.record(log, victims[2].pid, "paused", "-")
        for process in processes[:5]:
            assert process.wait(timeout=120) == 0
        os.kill(victims[2].pid, signal.SIGCONT)
        _wait_for(log, f" {victims[2].pid} lost ")
        assert victims[2].wait(timeout=60) == 0
    holder: dict[str, int] = {}
    ended: list[str] = []
    gone = set()
    for pid, what, cell in _events(log):
        if what in ("killed", "paused"):
            gone.add(pid)
        elif what == "start":
            assert cell not in ended and holder.get(cell) in {None, *gone}, f"{cell} is run twice"
            holder[cell] = pid
        elif what == "end":
            assert holder[cell] == pid
            ended.append(cell)
    assert sorted(ended) == sorted(cell.name for cell in claiming_worker.cells_in(tmp_path / "s"))
    assert len(set(holder.values())) > 1 and gone.isdisjoint(holder.values())


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    return claiming_worker.cells_in(tmp_path / "s")[:2]


def test_a_stopped_cell_goes_to_another_and_a_failed_one_only_to_a_process_started_later(cells: list[Cell]) -> None:
    folder = cells[0].path.parent
    one, other = (ClaimQueue(cells, folder, seconds=60) for _ in range(2))
    first, second = one.take(), one.take()
    assert [first, second] == cells and other.take() is None and other.has_more()
    assert {status.status for status in other.news().values()} == {"elsewhere"}
    one.end(cells[0], CellStatus("stopped"), is_gone=True)
    one.end(cells[1], CellStatus("failed", "no disk"), is_gone=True)
    other._next_look = 0.0
    assert other.take() == cells[0] and other.take() is None
    assert other.news()[cells[1].name] == CellStatus("failed", "no disk")
    assert ClaimQueue(cells, folder, seconds=60).take() == cells[1]


def test_a_process_leaves_cells_that_others_renew_and_stays_for_those_that_may_be_dead(cells: list[Cell]) -> None:
    folder = cells[0].path.parent
    one, other = (ClaimQueue(cells[:1], folder, seconds=60) for _ in range(2))
    assert one.take() == cells[0] and one.keeps(cells[0])
    assert other.has_more() and other.take() is None and other.has_more()
    for is_renewed in (False, True):
        if is_renewed:
            assert one.keeps(cells[0])
        other._next_look = 0.0
        assert other.take() is None and other.has_more() is not is_renewed


def test_the_claim_of_a_launcher_that_was_killed_is_left_to_expire(cells: list[Cell]) -> None:
    folder = cells[0].path.parent
    one, other = (ClaimQueue(cells[:1], folder, seconds=60) for _ in range(2))
    assert one.take() == cells[0]
    assert one.end(cells[0], CellStatus("failed", "killed by SIGKILL"), is_gone=False).status == "failed"
    assert other.take() is None and other.has_more()


def test_a_lease_has_one_holder_a_generation_and_keeps_its_last_note(tmp_path: Path) -> None:
    first = Lease.take(tmp_path, "a", 1, 60)
    assert first is not None and Lease.take(tmp_path, "a", 1, 60) is None
    before = latest(tmp_path, "a")
    assert (before.number, before.seconds, before.is_final) == (1, 60, False)
    first.renew()
    assert latest(tmp_path, "a").mark != before.mark and not first.is_lost()
    second = Lease.take(tmp_path, "a", 2, 30)
    assert second is not None and first.is_lost() and not second.is_lost()
    second.end(FAILED, {"error": "x" * 9000})
    found = latest(tmp_path, "a")
    assert (found.number, found.mark, found.note) == (2, FAILED, {"error": "x" * 2000})
    (tmp_path / "b.1").write_text("")  # its creator died before it wrote
    assert not latest(tmp_path, "b").is_final and latest(tmp_path, "b").seconds is None
    assert latest(tmp_path, "c").is_final


JOIN = (
    "import sys, time, pathlib; from echo_cli.sweeps.lease import joined_lease\n"
    "with joined_lease(pathlib.Path(sys.argv[1])):\n"
    "    print('joined', flush=True)\n"
    "    time.sleep(float(sys.argv[2]))\n"
)


def _join(lease: Lease, seconds: float) -> subprocess.Popen[str]:
    """Start a process that renews the lease for `seconds`, and renew it until that process does."""
    words = [sys.executable, "-c", JOIN, str(lease.path), str(seconds)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    while not lease._is_joined and process.poll() is None:
        assert lease.keep()
        time.sleep(0.05)
    return process


def test_a_run_renews_its_lease_and_dies_if_it_was_stopped_for_too_long(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, "a", 1, 8)
    assert lease is not None
    process = _join(lease, 600)
    mark = latest(tmp_path, "a").mark
    deadline = time.monotonic() + 60
    while latest(tmp_path, "a").mark == mark:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(4.5)  # half of the lease's time, and a little
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGALRM
    assert not latest(tmp_path, "a").is_final


def test_a_run_dies_as_soon_as_it_finds_its_lease_with_another(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, "a", 1, 8)
    assert lease is not None
    process = _join(lease, 600)
    assert Lease.take(tmp_path, "a", 2, 8) is not None
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGALRM and "is lost to another process" in said


def test_a_run_that_ends_in_time_is_not_killed_and_leaves_the_lease_to_the_sweep(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, "a", 1, 8)
    assert lease is not None
    process = _join(lease, 0)
    assert process.communicate(timeout=60)[0] == "joined\n" and process.returncode == 0
    assert not latest(tmp_path, "a").is_final
    lease.end(ENDED)
    assert latest(tmp_path, "a").mark == ENDED


def test_a_run_does_not_revive_a_lease_that_nobody_renews(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, "a", 1, 0.3)
    assert lease is not None
    with pytest.raises(EchoError, match="given to another process"), joined_lease(lease.path):
        pass
    lease.end(RELEASED)
    with pytest.raises(EchoError, match="given to another process"), joined_lease(lease.path):
        pass
    with pytest.raises(EchoError, match="given to another process"), joined_lease(tmp_path / "none.1"):
        pass


def test_one_process_writes_the_tables_of_the_same_cells(cells: list[Cell]) -> None:
    folder = cells[0].path.parent
    old = last_tables(folder)
    with tables_turn(folder, cells, 60, old) as first:
        pass
    with tables_turn(folder, cells, 60, old) as second:
        pass
    with tables_turn(folder, cells[:1], 60, old) as fewer:
        pass
    with tables_turn(folder, cells[:1], 60, last_tables(folder)) as later:
        pass
    assert (first, second, fewer, later) == (True, False, True, True)


def _agree(folder: Path, arm: list[str], *words: str) -> None:
    def config_of(own: Any) -> Config:
        return load_config("toy-files", [*words, *own])

    (named,) = parse_arms([json.dumps(arm)])
    cells = plan_cells({named: config_of(named.words)}, [0, 1], folder, threads=1)
    agree(folder, cells, config_of, 60)


def test_processes_with_other_settings_are_refused_before_they_claim(tmp_path: Path) -> None:
    _agree(tmp_path, ["a", "optim.lr=0.1"], "steps=4")
    _agree(tmp_path, ["b", "optim.lr=0.2"], "steps=4", f"output_dir={tmp_path}", "device=cpu", "seed=7")
    for words, message in (
        (["steps=5"], "steps was 4, now 5"),
        (["steps=4", "threads=2"], "threads was 1, now 2"),
        (["steps=4", "objective.kl_coeff=0.5"], "objective.kl_coeff was"),
    ):
        with pytest.raises(EchoError, match=message) as found:
            _agree(tmp_path, ["a", "optim.lr=0.1"], *words)
        assert str(claims_folder(tmp_path)) in (found.value.tip or "")
    with pytest.raises(EchoError, match=r"arm b of .* has the overrides optim.lr=0.2"):
        _agree(tmp_path, ["b", "optim.lr=0.3"], "steps=4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--claim", "--overwrite"], "--claim and --overwrite exclude each other"),
        (["--lease", "60"], "--lease has no effect without --claim"),
        (["--claim", "--lease", "4"], "greater than or equal to 5"),
        (["--claim", "--lease", "x"], "valid integer"),
    ],
)
def test_a_wrong_option_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_words(tmp_path, "0", *words)) == 2
    said, tip = error_of(capsys.readouterr().err)
    assert message in said and tip
    assert not (tmp_path / "s").exists()


def test_a_sweep_that_has_the_folder_for_itself_keeps_claims_out_and_is_kept_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s" / "cells").mkdir(parents=True)
    for shared, words in ((False, ["--claim"]), (True, [])):
        with lock_folder(tmp_path / "s", shared=shared):
            assert main(_words(tmp_path, "0", *words)) == 2
        assert "locked by another process" in error_of(capsys.readouterr().err)[0]


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_eight_sweeps_claim_the_runs_of_one_and_the_survivors_complete_it(tmp_path: Path) -> None:
    words = _words(tmp_path, "0", "0.05", "--seeds", "0", "1", "2", "3", "--claim", "--lease", "20")
    folder = tmp_path / "s"
    victims = [start(*words, stdout=subprocess.DEVNULL) for _ in range(3)]
    for process in victims:
        assert process.stderr is not None
        assert any(": running" in line for line in process.stderr)
    survivors = [start(*words, stdout=subprocess.DEVNULL) for _ in range(5)]
    for number, process in enumerate(victims):
        children = _children(process.pid)
        process.kill()  # its run saves and stops, or dies with it, or before it
        if number > 0:
            for child in children:
                os.kill(child, signal.SIGKILL)
    for process in victims:
        process.communicate()
    said = [process.communicate(timeout=900)[1] for process in survivors]
    assert [process.returncode for process in survivors] == [0] * 5, said
    with (folder / "cells.csv").open() as file:
        assert [line.split(",")[4] for line in file][1:] == ["finished"] * 8
    # One that ran twice would have found the folder locked, or have trained a step twice.
    assert all([row["step"] for row in rows(run)] == [0, 1] for run in folder.glob("lambda-*/"))
    assert not any("locked" in log.read_text() for log in (folder / "cells").glob("*.log"))
    assert sum("the last writes the tables" in each or "another process has written" in each for each in said) == 4


@pytest.mark.slow
def test_an_interrupted_claimer_gives_its_run_back_and_another_continues_it(tmp_path: Path) -> None:
    words = _words(tmp_path, "0.05", "--claim", "--steps", "400", "checkpoint.every=400")
    process = start(*words)
    assert process.stderr is not None
    assert any("step 2/400" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "stopped and saved; to continue: echo-cli sweep-lambda" in said
    assert latest(claims_folder(tmp_path / "s"), "lambda-0.05-seed0").mark == RELEASED
    run = tmp_path / "s" / "lambda-0.05-seed0"
    done = json.loads((run / "summary.json").read_text())["steps"]
    process = start(*words)  # at once: it waits for no lease to expire
    assert process.stderr is not None
    assert any("step" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert json.loads((run / "summary.json").read_text())["steps"] > done


def test_of_two_processes_that_have_seen_a_cell_free_one_gets_it(cells: list[Cell]) -> None:
    one, other = (ClaimQueue(cells[:1], cells[0].path.parent, seconds=60) for _ in range(2))
    seen = one._free(cells[0])
    assert seen is not None and other.take() == cells[0]
    assert not one._claim(cells[0], seen.number + 1) and one.take() is None
