"""`echo-cli plot`."""

from __future__ import annotations

from echo_cli.cli.options import AsJson, OutputBesideRuns, RunPaths, print_json, refuse_overrides
from echo_cli.terminal import put


def plot(
    runs: RunPaths,
    output: OutputBesideRuns = None,
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
        put(*map(str, (written.png, written.svg, written.csv)))
