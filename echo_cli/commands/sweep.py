"""`echo-cli sweep-lambda`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echo_cli.commands.option import (
    AsJson,
    ConfigName,
    Device,
    DryRun,
    OutputDir,
    Overwrite,
    RunName,
    Seed,
    Steps,
    as_overrides,
    print_json,
    print_plans,
    refuse_options,
    run_path,
)
from echo_cli.commands.train import run_cell
from echo_cli.config import Config, find_config, load_config
from echo_cli.error import EchoError

if TYPE_CHECKING:
    from echo_cli.sweep import Cell


def sweep_lambda(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="LAMBDA|KEY.PATH=VALUE", help="λ values; words with = are config overrides."),
    ] = None,
    config: ConfigName = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = None,
    output_dir: OutputDir = None,
    run_name: RunName = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train once per λ from the same start, and compare.

    A λ that is finished is not run again.
    """
    from echo_cli.sweep import cells, parse_words

    refuse_options(context, words or [])
    coeffs, overrides = parse_words(words or [])
    options = as_overrides(steps=steps, seed=seed, device=device, output_dir=output_dir, run_name=run_name)
    source = find_config("toy" if config is None else config)

    def config_of(coeff: float) -> Config:
        return load_config(source, [*overrides, *options, f"objective.world_model_coeff={coeff!r}"])

    first = config_of(coeffs[0])
    if first.objective.schedule in ("step", "gradient_ratio"):
        raise EchoError(
            f"a sweep over λ has no effect with objective.schedule: {first.objective.schedule}",
            "use schedule: constant",
        )
    folder = run_path(first, f"sweep-{source.stem}")
    planned = cells(coeffs, config_of, folder, first.seed)
    if dry_run:
        print_plans([(cell.config, cell.path) for cell in planned], as_json, sweep=True)
        return
    _sweep(planned, folder, overwrite=overwrite, argv=context.obj, as_json=as_json)


def _sweep(planned: Sequence[Cell], folder: Path, *, overwrite: bool, argv: Sequence[str], as_json: bool) -> None:
    from echo_cli.display import print_sweep
    from echo_cli.interrupt import interruptible
    from echo_cli.plot import plot_sweep
    from echo_cli.sweep import run_sweep, table, write_sweep

    with interruptible() as interrupt:

        def train_cell(cell: Cell, resume: bool) -> dict[str, Any]:
            return run_cell(
                cell.config,
                cell.path,
                resume=resume,
                overwrite=overwrite,
                argv=argv,
                label=cell.label,
                should_stop=interrupt,
            )

        summaries = run_sweep(planned, train_cell, overwrite=overwrite, should_stop=interrupt)
    if summaries is None:
        again = ["echo-cli", *(word for word in argv if word != "--overwrite")]
        print(f"stopped and saved; to continue: {shlex.join(again)}", file=sys.stderr)
        raise typer.Exit(interrupt.exit_code)
    write_sweep(folder, summaries)
    picture = plot_sweep([(cell.label, [cell.path]) for cell in planned], folder)
    if as_json:
        print_json({"rows": table(summaries), "picture": str(picture.png)})
    else:
        print_sweep(table(summaries), str(picture.png))
    broken = [
        f"{cell.label} {summary['status']}"
        for cell, summary in zip(planned, summaries, strict=True)
        if summary["status"] in ("diverged", "collapsed")
    ]
    if broken:
        raise EchoError(", ".join(broken), "its last checkpoint is intact; try a lower optim.lr", exit_code=3)
