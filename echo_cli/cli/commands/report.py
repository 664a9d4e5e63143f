"""`echo-cli report`."""

from __future__ import annotations

from typing import Annotated

import typer

from echo_cli.cli.options import (
    AsJson,
    Device,
    OutputBesideRuns,
    RunPaths,
    TrustRemoteCode,
    as_overrides,
    checkpoint_named,
    model_overrides,
    print_json,
    refuse_overrides,
)
from echo_cli.terminal import put


def report(
    runs: RunPaths,
    output: OutputBesideRuns = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Policy after training: best (default), latest or a step.", metavar="NAME")
    ] = None,
    episodes: Annotated[
        int, typer.Option(help="Maximum number of episodes scored and shown per run.", metavar="N", min=0)
    ] = 60,
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Write a report on runs as one self-contained HTML page.

    It contains curves, a summary with intervals, config differences, role shares, and episodes with the nats of each
    token before and after training. Nothing is fetched, and no environment is started.
    """
    refuse_overrides(runs)
    which = None if checkpoint is None else checkpoint_named(checkpoint)
    from echo_cli.reports.report import write_report

    written = write_report(
        runs,
        output,
        checkpoint=which,
        most_episodes=episodes,
        overrides=as_overrides([], device=device, **model_overrides(trust_remote_code)),
        announce=lambda line: put(f"report: {line}", err=True),
    )
    if as_json:
        print_json(written.to_json())
    else:
        put(str(written.path))
