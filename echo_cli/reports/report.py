"""Writing of report.html: its location, its content, and notes over all runs."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.evaluation.comparison import overrides_of
from echo_cli.files import check_writable, os_errors, write_atomic
from echo_cli.reports.charts import METRICS, criterion_metrics, environment_metrics
from echo_cli.reports.content import Report, RunReport
from echo_cli.reports.figure import names_a_file
from echo_cli.reports.page import Page, page
from echo_cli.reports.run_content import read_run
from echo_cli.reports.run_figure import run_names
from echo_cli.runs.curves import read_curve
from echo_cli.symlinks import make_folder
from echo_cli.text import escape_unprintable

_NAME = "report.html"


@dataclass(frozen=True)
class Written:
    """A written report: its file, its content, and its page with the counts of episodes."""

    path: Path
    report: Report
    page: Page

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with the file, its size in bytes, the counts of episodes, and the report's figures."""
        episodes = {"shown": self.page.shown, "cut": self.page.cut, "left_out": self.page.left_out}
        size = len(self.page.html.encode())
        return {"file": str(self.path), "bytes": size, "episodes": episodes, **self.report.to_json()}


def write_report(
    runs: Sequence[Path],
    output: Path | None,
    *,
    checkpoint: str | int | None,
    most_episodes: int,
    overrides: Sequence[str] = (),
    announce: Callable[[str], None],
) -> Written:
    """Write the report of `runs`.

    Args:
        output: a file name with the extension .html or .htm, or a folder. Default: the run's folder; for several runs,
            their common parent folder.
        checkpoint, most_episodes: as in `read_run`.
        overrides: as in `overrides_of`.
        announce: called with a line before each run is read, and before each part of its measurement.

    Raises:
        EchoError: as in `read_run`; the runs are in different folders and `output` is None; or the report cannot be
            written.
    """
    typed = {Path(os.path.abspath(run)): run for run in runs}
    paths = list(typed)
    if not paths:
        raise EchoError("no run to report on", "name one or more run directories")
    if output is None and len({path.parent for path in paths}) > 1:
        raise EchoError("the runs are in different folders", "name the report's file or folder with --output")
    fitting = overrides_of(list(typed.values()), overrides)
    names = run_names(paths)
    curves = [read_curve(path, name, METRICS) for path, name in zip(paths, names, strict=True)]
    file = _file(output or (runs[0] if len(paths) == 1 else paths[0].parent))
    check_writable(file.parent)
    found = []
    for path, name, words in zip(paths, names, fitting, strict=True):
        announce(name)
        found.append(
            read_run(
                path,
                name,
                checkpoint=checkpoint,
                most_episodes=most_episodes,
                overrides=words,
                announce=_of_run(name, announce),
            )
        )
    criteria = dict.fromkeys(name for run in found for name in run.criteria)
    environments = dict.fromkeys(name for run in found for name in run.environments)
    if criteria or environments:
        metrics = (*METRICS, *environment_metrics(environments), *criterion_metrics(criteria))
        curves = [read_curve(path, name, metrics) for path, name in zip(paths, names, strict=True)]
    report = Report(tuple(found), tuple(curves), tuple(_notes(found)))
    html = page(report)
    with os_errors(file):
        make_folder(file.parent)
    write_atomic(file, html.html.encode())
    return Written(file, report, html)


def _of_run(name: str, announce: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: announce(f"{name}: {line}")


def _file(place: Path) -> Path:
    """Return the report's path: `place`, or report.html in the folder `place`.

    Raises:
        EchoError: `place` has the extension of another file format.
    """
    if place.suffix.lower() in (".html", ".htm") and not place.is_dir():
        return place
    if names_a_file(place):
        raise EchoError(
            f"cannot write {escape_unprintable(place)}: not an .html file",
            "a report is a page; for a folder of this name, create it first",
        )
    return place / _NAME


def _notes(runs: Sequence[RunReport]) -> list[str]:
    models = {
        tuple((key, value) for key, value in run.config.items() if key in ("model.kind", "model.path")) for run in runs
    }
    if len(models) > 1:
        return [
            "the runs have different models: bits per byte are comparable, nats per token only between runs with the "
            "same tokenizer"
        ]
    return []
