"""One run from config to summary: train, then write summary.json, whatever the ending."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.evaluation.loaded_run import run_notices
from echo_cli.files import Row, read_json
from echo_cli.models.device import OutOfMemory
from echo_cli.runs.directory import RunDirectory, is_half_made, open_run
from echo_cli.runs.summary import is_finished, summarize_run
from echo_cli.training.collapse import CollapseError
from echo_cli.training.loop import train
from echo_cli.training.plan import memory_notice
from echo_cli.training.resume import check_same_config
from echo_cli.training.session import Session, open_session
from echo_cli.training.trackers.tracking import Trackers, check_trackers, tracking


def run_experiment(
    path: Path,
    config: Config,
    *,
    resume: bool,
    overwrite: bool,
    argv: Sequence[str],
    on_start: Callable[[str], None],
    on_notice: Callable[[str], None],
    on_row: Callable[[Row], None],
    should_stop: Callable[[], bool],
    group: str | None = None,
) -> dict[str, Any]:
    """Train the run at `path` and return its summary; a finished run is left as it is.

    Args:
        on_start: called once with the reason for the device.
        on_notice: called then with each line about its traces and about the memory that it will need, and later with
            one for each tracker that fails.
        on_row: called after each step with its metrics.
        group: what trackers show the run together with.

    Raises:
        EchoError: as `check_trackers`, `open_session` and `train`; a run that diverged or collapsed has its summary
            written first.
    """
    # Killed before it was a run, it has nothing to continue from, and nothing to lose by starting.
    resume = resume and not is_half_made(path)
    if resume:
        run = open_run(path)
        check_same_config(run, config)
        summary = run.read_summary()
        if summary is not None and is_finished(summary, config.steps):
            return summary
    check_trackers(config.track)
    with open_session(path, config, resume=resume, overwrite=overwrite, argv=argv) as session:
        on_start(session.device.reason)
        for line in (*run_notices(session.run, config), *memory_notice(config, session.device)):
            on_notice(line)
        rows = session.run.read_metrics()
        with tracking(
            path,
            config.track,
            json.loads(config.model_dump_json()),
            group=group,
            last_step=rows[-1]["step"] if rows else None,
            warn=on_notice,
        ) as trackers:
            return _train(session, trackers, on_row, should_stop)


def _train(
    session: Session, trackers: Trackers, on_row: Callable[[Row], None], should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """The summary, which is written and tracked also when the run diverged or collapsed."""
    run, config = session.run, session.config

    def finish(status: str) -> dict[str, Any]:
        summary = _finish(run, config, status, session.seconds)
        trackers.summarize(summary)
        return summary

    try:
        for row in train(session, should_stop):
            trackers.log(row)
            on_row(row)
    except OutOfMemory as error:
        saved = run.checkpoints.steps()
        kept = f"; the checkpoint of step {saved[-1]} is intact, and --resume goes on from it" if saved else ""
        raise EchoError(error.message, f"{error.tip}{kept}", exit_code=1) from error
    except EchoError as error:
        if error.exit_code == 3:
            finish("collapsed" if isinstance(error, CollapseError) else "diverged")
        raise
    return finish("finished" if run.checkpoints.steps()[-1] == config.steps else "stopped")


def _finish(run: RunDirectory, config: Config, status: str, seconds: float) -> dict[str, Any]:
    rows = run.read_metrics()
    summary = summarize_run(
        rows,
        status=status,
        seconds=seconds,
        seed=config.seed,
        coeff=config.objective.base_coeff,
        select_by=config.evaluation.select_by,
        versions=read_json(run.path / "environment.json")["versions"],
    )
    best = run.checkpoints.best_step()
    summary["checkpoint"] = f"checkpoints/step_{best:06d}" if best is not None else None
    run.write_summary(summary)
    return summary
