"""`echo-cli report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from echo_cli.cli.options import AsJson, Device, checkpoint_named, print_json
from echo_cli.text import escape_unprintable


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File or folder.", metavar="PATH")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Of the heat maps: best (default), latest or a step.", metavar="NAME")
    ] = None,
    episodes: Annotated[
        int, typer.Option(help="Most episodes of a run that are scored and shown.", metavar="N", min=0)
    ] = 60,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Write runs as one HTML page that needs no network.

    Curves to zoom, the summary with intervals, config differences, role shares, and episodes to page through, with how
    hard each token was before and after training.
    """
    which = None if checkpoint is None else checkpoint_named(checkpoint)
    from echo_cli.reports.report import write_report

    written = write_report(
        runs,
        output,
        checkpoint=which,
        most_episodes=episodes,
        device=device,
        announce=lambda line: print(f"report: {line}", file=sys.stderr),
    )
    if as_json:
        print_json(written.to_json())
    else:
        print(escape_unprintable(written.path))
