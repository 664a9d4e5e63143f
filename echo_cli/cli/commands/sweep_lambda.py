"""`echo-cli sweep-lambda`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from echo_cli.cli.options import (
    AsJson,
    ConfigName,
    Device,
    DryRun,
    FetchModel,
    ImportFrom,
    OutputDir,
    Overwrite,
    PlainHttp,
    RunName,
    Seed,
    Steps,
    TrustRemoteCode,
    as_overrides,
    consent_of,
    fetching_named,
    grants_of,
    model_overrides,
    print_json,
    print_plans,
    refuse_options,
    run_path,
)
from echo_cli.config.effects import Effects, effects_of
from echo_cli.config.loader import find_config
from echo_cli.config.section import hide_secret
from echo_cli.errors import EchoError
from echo_cli.terminal import put
from echo_cli.text import counted

if TYPE_CHECKING:
    from echo_cli.config.schema import Config
    from echo_cli.sweeps.arms import Arm
    from echo_cli.sweeps.plan import Cell
    from echo_cli.sweeps.runner import CellStatus


Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="LAMBDA|KEY.PATH=VALUE", help="λ values; words with = are config overrides."),
]
Seeds = Annotated[
    list[str] | None,
    typer.Option(help="Seeds for every λ: 0,1,2, or 0 1 2 up to the next option or override.", metavar="SEEDS"),
]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm",
        help="Named arm, trained with every seed as each λ is: a name and config overrides, KEY=VALUE. Repeatable. "
        "Overrides before the first --arm are of every run.",
        metavar="NAME OVERRIDES",
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        help="Number of parallel runs. No result depends on it: a run has one CPU thread, or threads=N.",
        metavar="N",
        min=1,
    ),
]


class SweepCommand(TyperCommand):
    """Command whose option `--seeds` takes all words up to the next option or override, and `--arm` all overrides."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from echo_cli.sweeps.arms import join_arms
        from echo_cli.sweeps.plan import join_seeds

        return super().parse_args(ctx, join_seeds(join_arms(args)))


def sweep_lambda(
    context: typer.Context,
    words: Words = None,
    config: ConfigName = None,
    seeds: Seeds = None,
    arm: Arms = None,
    jobs: Jobs = 1,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = None,
    output_dir: OutputDir = None,
    run_name: RunName = None,
    overwrite: Overwrite = False,
    import_from: ImportFrom = None,
    plain_http: PlainHttp = False,
    dry_run: DryRun = False,
    trust_remote_code: TrustRemoteCode = False,
    fetch_model: FetchModel = False,
    as_json: AsJson = False,
) -> None:
    """Train once per λ or arm, and seed, and compare the runs.

    Each run has its own process and folder. Repeat the command to complete a sweep: finished runs are kept, stopped
    runs resume, and a failed run does not affect the others. Tables cover all runs of the sweep's folder, which have
    one config apart from λ, their arm's overrides and the seed. With more --steps, runs continue, unless a schedule was
    stretched over their steps (in toy, the learning rate's): then choose --overwrite or another --run-name.

    Unlike train, a sweep compares the gradients of the two terms every 10 steps (probe_every; 0 disables it) and plays
    the held-out tasks at every evaluation (evaluation.pass_every). Neither changes the training.
    """
    from echo_cli.sweeps import plan
    from echo_cli.sweeps.arms import parse_sweep

    refuse_options(context, words or [])
    arms, overrides = parse_sweep(words or [], arm or [])
    if seeds is not None and (seed is not None or any(word.startswith("seed=") for word in overrides)):
        raise EchoError("--seeds and a seed exclude each other", "list all seeds after --seeds")
    options = as_overrides(overrides, steps=steps, seed=seed, device=device, output_dir=output_dir, run_name=run_name)
    options += as_overrides(overrides, **model_overrides(trust_remote_code, fetch_model))
    source = find_config("toy" if config is None else config)
    grants = grants_of(import_from, plain_http, fetch_model)

    def config_of(own: Sequence[str]) -> Config:
        return fetching_named(plan.sweep_config(source, [*overrides, *options, *own])).granted(grants)

    configs = {each: config_of(each.words) for each in arms}
    _check_schedules(configs)
    first = configs[arms[0]]
    folder = run_path(first, f"sweep-{source.stem}")
    every = [first.seed] if seeds is None else plan.parse_seeds(seeds)
    plan.check_folder(folder)
    cells = plan.plan_cells(configs, every, folder, threads=plan.threads_of_cells())
    if dry_run:
        print_plans([(cell.config, cell.path) for cell in cells], as_json, sweep=True)
        return
    others = plan.other_cells(folder, cells, config_of)
    argv = ["echo-cli", *map(hide_secret, context.obj)]
    outcomes = _train(cells, folder, jobs=jobs, overwrite=overwrite, argv=argv)
    _report(cells, others, outcomes, folder, command=shlex.join(argv), as_json=as_json)
    _complain(cells, outcomes)


def _check_schedules(configs: Mapping[Arm, Config]) -> None:
    """Reject values of λ that a schedule replaces.

    Raises:
        EchoError: the config of such a value has a schedule with values of its own.
    """
    for arm, config in configs.items():
        if not arm.named and config.objective.schedule in ("step", "gradient_ratio"):
            raise EchoError(
                f"a sweep over λ has no effect with objective.schedule: {config.objective.schedule}",
                "use schedule: constant",
            )


def _train(
    cells: Sequence[Cell], folder: Path, *, jobs: int, overwrite: bool, argv: Sequence[str]
) -> Mapping[str, CellStatus]:
    from echo_cli.cli.display.progress import sweep_progress
    from echo_cli.cli.interrupt import interruptible
    from echo_cli.files import lock_folder, os_errors
    from echo_cli.sweeps.arms import record_arms
    from echo_cli.sweeps.plan import check_cells, ended_summary
    from echo_cli.sweeps.runner import run_cells
    from echo_cli.symlinks import make_folder
    from echo_cli.training.trackers.tracking import check_trackers

    for track in dict.fromkeys(cell.config.track for cell in cells):
        check_trackers(track)
    if not overwrite:
        check_cells(cells)
    with os_errors(folder):
        make_folder(folder, mode=0o700)
    missing = [cell for cell in cells if overwrite or ended_summary(cell) is None]
    if missing:
        configs = [cell.config for cell in cells]
        threads, probe, played = (
            "/".join(dict.fromkeys(map(str, found)))
            for found in zip(*((of.threads, of.probe_every, of.evaluation.pass_every) for of in configs), strict=True)
        )
        put(
            f"sweep: {len(missing)} of {counted(len(cells), 'run')} to do, {min(jobs, len(missing))} in parallel, "
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
    with lock_folder(folder), interruptible() as interrupt, sweep_progress(cells) as show:
        record_arms(folder, [cell.arm for cell in cells])
        outcomes = run_cells(cells, jobs=jobs, overwrite=overwrite, should_stop=interrupt, show=show)
    if any(outcome.status in ("waiting", "stopped") for outcome in outcomes.values()):
        again = shlex.join(word for word in argv if word != "--overwrite")
        put(f"stopped and saved; to continue: {again}", err=True)
        raise typer.Exit(interrupt.exit_code)
    return outcomes


def _report(
    planned: Sequence[Cell],
    others: Sequence[Cell],
    outcomes: Mapping[str, CellStatus],
    folder: Path,
    *,
    command: str,
    as_json: bool,
) -> None:
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
    from echo_cli.sweeps.tables import NOTES, sweep_tables
    from echo_cli.sweeps.verdict import RULE

    cells = [*planned]
    if others:
        cells = in_order([*planned, *others])
        ended = {cell.name: status for cell in others if (status := ended_status(cell)) is not None}
        outcomes = {**outcomes, **ended}
    found = with_figures([read_cell(cell, outcomes[cell.name]) for cell in cells])
    results = results_of(found)
    sweep = sweep_object([cell.config for cell in cells], found, results)
    write_tables(folder, sweep)
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
    tables = sweep_tables(results, pairs_of(found))
    report = write_report(folder, sweep, tables, command=command, pictures=pictures)
    if as_json:
        print_json({**sweep, "report": str(report), "pictures": [str(picture) for _, picture in pictures]})
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
