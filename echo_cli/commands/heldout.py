"""`echo-cli eval-heldout`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echo_cli.commands.option import AsJson, Device, is_step, print_json
from echo_cli.error import EchoError
from echo_cli.storage import shown

if TYPE_CHECKING:
    from echo_cli.heldout_report import Comparison, Evaluation

_NAMES = ("best", "latest", "all")


def eval_heldout(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two runs, B less A, instead of RUN.", metavar="RUN_A RUN_B")
    ] = None,
    checkpoint: Annotated[
        list[str] | None, typer.Option(help="best (default), latest, all or a step; repeatable.", metavar="NAME")
    ] = None,
    step: Annotated[int | None, typer.Option(help="A checkpoint by its step.", metavar="N")] = None,
    pool: Annotated[list[Path] | None, typer.Option(help="One more frozen pool; repeatable.", metavar="DIR")] = None,
    rollouts: Annotated[int, typer.Option(help="Rollouts per task, for pass@k.", metavar="N", min=0)] = 4,
    pass_k: Annotated[
        list[int] | None, typer.Option(help="k of pass@k; repeatable. Default: 1 and N.", metavar="K", min=1)
    ] = None,
    command: Annotated[str | None, typer.Option(help="Held-out command to read out.", metavar="TEXT")] = None,
    breakdown: Annotated[bool, typer.Option("--breakdown", help="Also by kind of token, and by task.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File or folder of the picture.", metavar="PATH")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV rows on stdout.")] = False,
) -> None:
    """Measure a checkpoint on held-out commands and tasks.

    Beside it stand the policy that the run started from and simple baselines, over the same pairs.
    """
    if (run is None) == (compare is None):
        raise EchoError("name one RUN, or two with --compare RUN_A RUN_B", "echo-cli eval-heldout --help")
    if as_json and as_csv:
        raise EchoError("--json and --csv exclude each other", "give one of them")
    wanted = _checkpoints(checkpoint, step)
    ks = sorted(set(pass_k or [1, rollouts])) if rollouts else []
    if pass_k and max(pass_k) > rollouts:
        raise EchoError(f"pass@{max(pass_k)} needs {max(pass_k)} rollouts per task", "give more --rollouts")
    pools = pool or []
    if compare is not None:
        if len(wanted) > 1 or wanted == ["all"]:
            raise EchoError("--compare takes one checkpoint of each run", "--checkpoint best or latest, or --step N")
        if command is not None:
            raise EchoError("--command reads out one run, not two", "leave --compare or --command away")
        folder = _shared_folder(compare, output)
        _check_place(output, folder, "heldout_comparison")
        from echo_cli.comparison import compare_runs
        from echo_cli.heldout_plot import plot_comparison

        comparison = compare_runs(
            compare, checkpoint=wanted[0], rollouts=rollouts, pass_k=ks, pool_folders=pools, device=device
        )
        _show(comparison, plot_comparison(comparison, folder, output).png, as_json, as_csv, breakdown)
        return
    assert run is not None
    _check_place(output, run, "heldout_evaluation")
    from echo_cli.heldout import evaluate_run
    from echo_cli.heldout_plot import plot_evaluation

    evaluation = evaluate_run(
        run,
        checkpoints=wanted,
        rollouts=rollouts,
        pass_k=ks,
        command=command,
        pool_folders=pools,
        device=device,
    )
    _show(evaluation, plot_evaluation(evaluation, run, output).png, as_json, as_csv, breakdown)


def _checkpoints(names: list[str] | None, step: int | None) -> list[str | int]:
    if names and step is not None:
        raise EchoError("--checkpoint and --step exclude each other", "give one of them; --checkpoint takes steps too")
    if step is not None:
        return [step]
    for name in names or []:
        if name not in _NAMES and not is_step(name):
            raise EchoError(f"no checkpoint '{shown(name)}'", "--checkpoint best, latest, all or a step")
    return [int(name) if is_step(name) else name for name in names or ["best"]]


def _check_place(output: Path | None, folder: Path, name: str) -> None:
    """See that the picture can be written, before the time is spent on what it shows."""
    from echo_cli.picture import picture_stem
    from echo_cli.storage import check_writable

    check_writable(picture_stem(output, folder, name).parent)


def _shared_folder(runs: tuple[Path, Path], output: Path | None) -> Path:
    first, second = (run.absolute().parent for run in runs)
    if output is None and first != second:
        raise EchoError("the runs are in different folders", "say where the picture goes with --output")
    return first


def _show(found: Evaluation | Comparison, picture: Path, as_json: bool, as_csv: bool, breakdown: bool) -> None:
    if as_json:
        print_json({**found.to_json(), "figure": str(picture)})
    elif as_csv:
        import csv

        from echo_cli.heldout_report import CSV_COLUMNS, csv_rows

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        writer.writerows(csv_rows(found))
        print(f"figure: {shown(picture)}", file=sys.stderr)
    else:
        from echo_cli.heldout_report import Evaluation
        from echo_cli.heldout_table import print_comparison, print_evaluation

        if isinstance(found, Evaluation):
            print_evaluation(found, breakdown=breakdown)
        else:
            print_comparison(found, breakdown=breakdown)
        print(f"\nfigure: {shown(picture)}")
