"""`echo-cli sweep-lambda`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    fetching_named,
    grants_of,
    model_overrides,
    print_plans,
    refuse_options,
    run_path,
)
from echo_cli.config.loader import find_config
from echo_cli.config.section import hide_secret
from echo_cli.errors import EchoError

if TYPE_CHECKING:
    from echo_cli.config.schema import Config
    from echo_cli.sweeps.arms import Arm

LEASE_SECONDS = 120

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


Launcher = Annotated[
    str | None,
    typer.Option(
        help="Command that starts each run, such as 'torchrun --nproc-per-node 8 -m echo_cli'.",
        metavar="COMMAND",
    ),
]
Claim = Annotated[
    bool,
    typer.Option(
        "--claim", help="Take the runs that no other process with --claim has, on machines that share the folder."
    ),
]
Lease = Annotated[
    int | None,
    typer.Option(
        help=f"Seconds after which others take the runs of a process that died. Default: {LEASE_SECONDS}.",
        metavar="SECONDS",
        min=5,
        max=86400,
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
    launcher: Launcher = None,
    claim: Claim = False,
    lease: Lease = None,
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
    one config apart from λ, their arm's overrides and the seed. Another config, or another number of steps or threads,
    needs --overwrite or another --run-name.

    Unlike train, a sweep compares the gradients of the two terms every 10 steps (probe_every; 0 disables it) and plays
    the held-out tasks at every evaluation (evaluation.pass_every). Neither changes the training.
    """
    from echo_cli.cli.sweep import Sweep, Ways, run_sweep
    from echo_cli.sweeps import plan
    from echo_cli.sweeps.arms import parse_sweep
    from echo_cli.sweeps.launcher import parse_launcher

    refuse_options(context, words or [])
    arms, overrides = parse_sweep(words or [], arm or [])
    if seeds is not None and (seed is not None or any(word.startswith("seed=") for word in overrides)):
        raise EchoError("--seeds and a seed exclude each other", "list all seeds after --seeds")
    ways = Ways(jobs, overwrite, parse_launcher(launcher), _lease_seconds(claim, lease, overwrite))
    options = as_overrides(overrides, steps=steps, seed=seed, device=device, output_dir=output_dir, run_name=run_name)
    options += as_overrides(overrides, **model_overrides(trust_remote_code, fetch_model))
    source = find_config("toy" if config is None else config)
    grants = grants_of(import_from, plain_http, fetch_model)

    def config_of(own: Sequence[str]) -> Config:
        return fetching_named(plan.sweep_config(source, [*overrides, *options, *own])).granted(grants)

    configs = {each: config_of(each.words) for each in arms}
    _check_schedules(configs)
    folder = run_path(configs[arms[0]], f"sweep-{source.stem}")
    every = [configs[arms[0]].seed] if seeds is None else plan.parse_seeds(seeds)
    plan.check_folder(folder)
    cells = plan.plan_cells(configs, every, folder, threads=plan.threads_of_cells())
    if dry_run:
        return print_plans([(cell.config, cell.path) for cell in cells], as_json, sweep=True)
    run_sweep(Sweep(cells, folder, config_of, ["echo-cli", *map(hide_secret, context.obj)], ways), as_json)


def _lease_seconds(claim: bool, lease: int | None, overwrite: bool) -> float | None:
    """Return the time in which claims expire, or None without --claim.

    Raises:
        EchoError: an option has no meaning with, or without, --claim.
    """
    if claim and overwrite:
        tip = "train again with another --run-name, or without --claim"
        raise EchoError("--claim and --overwrite exclude each other: each process would replace the others' runs", tip)
    if lease is not None and not claim:
        raise EchoError("--lease has no effect without --claim", "omit it, or add --claim")
    return (lease or LEASE_SECONDS) if claim else None


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
