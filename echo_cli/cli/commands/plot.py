"""`echo-cli plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_cli.cli.options import AsJson, print_json, refuse_overrides
from echo_cli.text import escape_unprintable


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Output file or folder. Default: the run directory; for several runs, their folder.",
            metavar="PATH",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the curves of one or more runs.

    Writes env-CE, reward and pass@1 by step as heldout_env_ce.png and .svg (several runs: comparison.*), and the
    points as CSV.
    """
    refuse_overrides(runs)
    from echo_cli.reports.run_figure import plot_run

    written = plot_run(runs, output)
    if as_json:
        print_json({name: str(path) for name, path in vars(written).items()})
    else:
        print(*map(escape_unprintable, (written.png, written.svg, written.csv)), sep="\n")
