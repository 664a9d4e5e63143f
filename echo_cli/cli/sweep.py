"""A sweep, carried out: its runs trained, reported on, and complained about."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from echo_cli.cli.options import consent_of, print_json
from echo_cli.config.effects import Effects, effects_of
from echo_cli.errors import EchoError
from echo_cli.terminal import put
from echo_cli.text import counted

if TYPE_CHECKING:
    from echo_cli.config.schema import Config
    from echo_cli.sweeps.plan import Cell
    from echo_cli.sweeps.runner import CellStatus


@dataclass(frozen=True)
class Ways:
    """How the runs of a sweep are trained, which no result depends on."""

    jobs: int
    overwrite: bool
    launcher: Sequence[str]
    lease_s: float | None
    """Time in which the lease on a claimed run expires; None if this process has all runs for itself."""


@dataclass(frozen=True)
class Sweep:
    """A sweep as a command line states it."""

    cells: Sequence[Cell]
    folder: Path
    config_of: Callable[[Sequence[str]], Config]
    """Function that returns the config of the sweep with the overrides of an arm."""
    argv: Sequence[str]
    ways: Ways

    def others(self) -> list[Cell]:
        """Return the cells in the folder that are not of this command."""
        from echo_cli.sweeps.plan import other_cells

        return other_cells(self.folder, self.cells, self.config_of)


def run_sweep(sweep: Sweep, as_json: bool) -> None:
    """Train, report and complain; with --claim, the process after which no run is left reports."""
    others = sweep.others()
    if sweep.ways.lease_s is None:
        outcomes = _train(sweep)
        _report(sweep, others, outcomes, as_json=as_json)
        _complain(sweep.cells, outcomes)
        return
    from echo_cli.sweeps.claims import last_tables, tables_turn

    old = last_tables(sweep.folder)
    own: set[str] = set()
    outcomes = _train(sweep, own)
    mine = [cell for cell in sweep.cells if cell.name in own]
    left = [cell.name for cell in sweep.cells if outcomes[cell.name].status == "elsewhere"]
    if left:
        _notice(f"other processes have {len(left)} of {counted(len(sweep.cells), 'run')}; the last writes the tables")
    else:
        with tables_turn(sweep.folder, sweep.cells, sweep.ways.lease_s, old) as is_ours:
            if is_ours:
                _report(sweep, sweep.others(), outcomes, as_json=as_json)
                mine = list(sweep.cells)
            else:
                _notice(f"all runs are done, and another process has written {sweep.folder / 'report.html'}")
    if as_json and (left or not is_ours):
        print_json({"trained": [cell.name for cell in mine], "elsewhere": left})
    _complain(mine, outcomes)


def _train(sweep: Sweep, own: set[str] | None = None) -> Mapping[str, CellStatus]:
    """Train the cells that are not done and return all outcomes; with --claim, add the names of our cells to `own`."""
    from echo_cli.cli.display.progress import sweep_progress
    from echo_cli.cli.interrupt import interruptible
    from echo_cli.files import lock_folder, os_errors
    from echo_cli.sweeps.arms import record_arms
    from echo_cli.sweeps.claims import ClaimQueue, agree
    from echo_cli.sweeps.plan import check_cells, ended_summary
    from echo_cli.sweeps.runner import run_cells
    from echo_cli.symlinks import make_folder
    from echo_cli.training.trackers.tracking import check_trackers

    cells, folder, ways = sweep.cells, sweep.folder, sweep.ways
    for track in dict.fromkeys(cell.config.track for cell in cells):
        check_trackers(track)
    if not ways.overwrite:
        check_cells(cells)
    with os_errors(folder):
        make_folder(folder, mode=0o700)
    missing = [cell for cell in cells if ways.overwrite or ended_summary(cell) is None]
    with lock_folder(folder, shared=ways.lease_s is not None):
        if ways.lease_s is not None:
            agree(folder, cells, sweep.config_of, ways.lease_s)
        _announce(sweep, missing)
        queue = None if ways.lease_s is None else ClaimQueue(missing, folder, ways.lease_s)
        with interruptible() as interrupt, sweep_progress(cells) as show:
            if queue is None:
                record_arms(folder, [cell.arm for cell in cells])
            outcomes = run_cells(
                cells,
                jobs=ways.jobs,
                overwrite=ways.overwrite,
                should_stop=interrupt,
                show=show,
                launcher=ways.launcher,
                queue=queue,
            )
    if queue is not None and own is not None:
        own |= queue.own
    ours = ("waiting", "stopped", "elsewhere") if interrupt() else ("waiting", "stopped")
    if any(outcome.status in ours for outcome in outcomes.values()):
        again = shlex.join(word for word in sweep.argv if word != "--overwrite")
        put(f"stopped and saved; to continue: {again}", err=True)
        raise typer.Exit(interrupt.exit_code)
    return outcomes


def _announce(sweep: Sweep, missing: Sequence[Cell]) -> None:
    """Say what is to be done and what it acts on, and check the models, if any run is missing."""
    if not missing:
        return
    configs, ways = [cell.config for cell in sweep.cells], sweep.ways
    threads, probe, played = (
        "/".join(dict.fromkeys(map(str, found)))
        for found in zip(*((of.threads, of.probe_every, of.evaluation.pass_every) for of in configs), strict=True)
    )
    put(
        f"sweep: {len(missing)} of {counted(len(configs), 'run')} to do, {min(ways.jobs, len(missing))} in parallel, "
        f"threads={threads} each",
        f"sweep: probe_every={probe}, evaluation.pass_every={played}; sweep-lambda --help explains both",
        err=True,
    )
    effects = sum((effects_of(config, trackers=True) for config in configs), Effects())
    consent_of("sweep", configs[0].environment.grants).obtain(effects)
    # The errors of a model of hf hold for every run with it: the first need not start to report them.
    for config in {(of.model, of.conversation): of for of in configs if of.model.kind == "hf"}.values():
        from echo_cli.models.loading import check_model

        check_model(config)


def _report(sweep: Sweep, others: Sequence[Cell], outcomes: Mapping[str, CellStatus], *, as_json: bool) -> None:
    """Write and print the tables, figures and report of the planned cells and of the others in the folder."""
    from echo_cli.cli.display.results import print_sweep
    from echo_cli.reports.figure import drawn_or_reported
    from echo_cli.reports.run_figure import plot_sweep
    from echo_cli.reports.sweep_figure import plot_lambda_axis
    from echo_cli.reports.sweep_page import write_report
    from echo_cli.sweeps.arms import column_of
    from echo_cli.sweeps.files import sweep_object, write_tables
    from echo_cli.sweeps.plan import in_order
    from echo_cli.sweeps.results import pairs_of, read_cell, results_of, with_figures
    from echo_cli.sweeps.runner import ended_status
    from echo_cli.sweeps.tables import NOTES, environment_tables, sweep_tables
    from echo_cli.sweeps.verdict import RULE

    cells, folder = [*sweep.cells], sweep.folder
    if others:
        cells = in_order([*cells, *others])
        ended = {cell.name: status for cell in others if (status := ended_status(cell)) is not None}
        outcomes = {**outcomes, **ended}
    found = with_figures([read_cell(cell, outcomes[cell.name]) for cell in cells])
    results = results_of(found)
    written = sweep_object([cell.config for cell in cells], found, results)
    write_tables(folder, written)
    pictures = []
    finished = [cell for cell in cells if outcomes[cell.name].status == "finished"]
    if finished:
        drawings = (
            ("Over the steps", lambda: plot_sweep([(cell.arm.title, [cell.path]) for cell in finished], folder)),
            (
                "Along λ" if column_of(cell.arm for cell in cells) == "λ" else "Arm by arm",
                lambda: plot_lambda_axis(results, found, folder),
            ),
        )
        drawn = [(title, drawn_or_reported(draw, _notice)) for title, draw in drawings]
        pictures = [(title, picture.png) for title, picture in drawn if picture is not None]
    tables = [*sweep_tables(results, pairs_of(found)), *environment_tables(found)]
    report = write_report(folder, written, tables, command=shlex.join(sweep.argv), pictures=pictures)
    if as_json:
        print_json({**written, "report": str(report), "pictures": [str(picture) for _, picture in pictures]})
    else:
        print_sweep(tables, NOTES, RULE, str(report))


def _notice(line: str) -> None:
    put(f"sweep: {line}", err=True)


def _complain(cells: Sequence[Cell], outcomes: Mapping[str, CellStatus]) -> None:
    """Report cells that did not finish.

    Raises:
        EchoError: a cell failed (exit code 1), or the training of some broke down and none failed (exit code 3).
    """
    from echo_cli.sweeps.plan import BROKEN
    from echo_cli.sweeps.runner import log_path

    failed = [cell for cell in cells if outcomes[cell.name].status == "failed"]
    if failed:
        first = failed[0]
        raise EchoError(
            f"{len(failed)} of {counted(len(cells), 'run')} failed, the first: {first.title}: "
            f"{outcomes[first.name].error}",
            f"see {log_path(first)}, then repeat the command to complete the sweep",
            exit_code=1,
        )
    broken = [(cell, status) for cell in cells if (status := outcomes[cell.name].status) in BROKEN]
    if broken:
        tip = "their last checkpoints are intact; try a lower optim.lr"
        if all(status == "no_gradient" for _, status in broken):
            tip = f"{log_path(broken[0][0])} names the cause and the key to change"
        ends = {"no_gradient": "stopped for lack of any gradient"}
        raise EchoError("; ".join(f"{cell.title} {ends.get(end, end)}" for cell, end in broken), tip, exit_code=3)
