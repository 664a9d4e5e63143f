"""`echo-cli train`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echo_cli.cli.options import (
    AllowEnvironment,
    AsJson,
    ConfigName,
    Device,
    DryRun,
    FetchModel,
    ImportFrom,
    OutputDir,
    Overrides,
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
    run_path,
)
from echo_cli.config.effects import effects_of
from echo_cli.config.loader import find_config, load_config, parse_override
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.processes import take_pipes
from echo_cli.terminal import put

if TYPE_CHECKING:
    from echo_cli.models.distributed.launch import Launch
    from echo_cli.models.distributed.ranks import Ranks
    from echo_cli.runs.origin import Consent

Coeff = Annotated[
    str | None,
    typer.Option(
        "--lambda",
        help="Weight λ of the env term, objective.world_model_coeff. Default: the config's (toy: 3).",
        metavar="X",
    ),
]


def _take_variables(parent: int | None) -> int | None:
    """Take the environment variables that the parent, a sweep, sends; 0 stands for a launcher, which sends none."""
    if parent == 0:
        return os.getppid()
    if parent is not None:
        take_pipes()
    return parent


RankCount = Annotated[
    int | None,
    typer.Option("--ranks", min=1, help="With --dry-run: plan for this many ranks of torchrun.", metavar="N"),
]
Parent = Annotated[
    int | None,
    typer.Option(
        help="Take the variables of the process with this id; save and stop when it ends.",
        hidden=True,
        is_eager=True,
        callback=_take_variables,
    ),
]
LeaseFile = Annotated[
    Path | None, typer.Option("--lease", help="Lease of a sweep that this run renews or dies.", hidden=True)
]


def train(
    context: typer.Context,
    overrides: Overrides = None,
    config: ConfigName = None,
    steps: Steps = None,
    seed: Seed = None,
    coeff: Coeff = None,
    device: Device = None,
    output_dir: OutputDir = None,
    run_name: RunName = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in its directory, up to --steps.")] = False,
    overwrite: Overwrite = False,
    allow_environment: AllowEnvironment = False,
    import_from: ImportFrom = None,
    plain_http: PlainHttp = False,
    dry_run: DryRun = False,
    ranks: RankCount = None,
    trust_remote_code: TrustRemoteCode = False,
    fetch_model: FetchModel = False,
    as_json: AsJson = False,
    parent: Parent = None,
    group: Annotated[str | None, typer.Option(help="Group of the run in trackers.", hidden=True)] = None,
    lease: LeaseFile = None,
) -> None:
    """Train a policy on its actions and its environment's outputs.

    L = L_GRPO(action tokens) + λ · CE(environment tokens)
    """
    from echo_cli.sweeps.arms import parse_coeff

    with _told_once():
        _check_options(resume, overwrite, allow_environment)
        given = overrides or []
        options = as_overrides(given, steps=steps, seed=seed, device=device, output_dir=output_dir, run_name=run_name)
        options += as_overrides(given, **model_overrides(trust_remote_code, fetch_model))
        if coeff is not None:
            options += as_overrides(given, objective__world_model_coeff=repr(parse_coeff(coeff)))
        consent = consent_of("train", grants_of(import_from, plain_http, fetch_model), allowed=allow_environment)
        loaded, path, own_text = _load(config, [*given, *options], resume)
        if coeff is not None and loaded.objective.schedule == "step":
            raise EchoError("--lambda has no effect with objective.schedule: step", "set objective.schedule_values")
    if dry_run:
        print_plans([(loaded, path)], as_json, sweep=False, ranks=ranks or 1)
        return
    if ranks is not None:
        raise EchoError(
            "--ranks has no effect without --dry-run", f"torchrun --nproc-per-node {ranks} -m echo_cli train"
        )
    loaded, consent = loaded.granted(consent.grants), replace(consent, text=own_text)
    start = Start(resume, overwrite, ["echo-cli", *context.obj], group, parent, lease)
    exit_code, summary = _train(loaded, path, start, consent)
    if summary is not None:
        _finish(summary, path, loaded, as_json, exit_code)


@dataclass(frozen=True)
class Start:
    """How a command line starts a run."""

    resume: bool
    overwrite: bool
    argv: Sequence[str]
    group: str | None
    parent: int | None
    """Process with which the run stops."""
    lease: Path | None


def _train(config: Config, path: Path, start: Start, consent: Consent) -> tuple[int, dict[str, Any] | None]:
    """Train the run at `path`, jointly with the other ranks if torchrun has started this process.

    Returns:
        The exit code of a stopped run, and the summary; None on all ranks but the first.
    """
    from echo_cli.cli.interrupt import interruptible
    from echo_cli.models.distributed.launch import joined, launched
    from echo_cli.runs.provenance import code_record

    launch = launched()
    is_first = launch is None or launch.is_first
    consent = consent if is_first else replace(consent, say=_say_nothing)
    with _told_once():
        consent.obtain(effects_of(config, trackers=True), None if consent.text is None else path)
    with (
        interruptible(announces=is_first) as interrupt,
        _held(start.lease),
        joined(config, launch, lambda: [*code_record(), f"the run {path}"]) as ranks,
    ):

        def should_stop() -> bool:
            return interrupt() or (start.parent is not None and os.getppid() != start.parent)

        summary = run_cell(config, path, start, should_stop, ranks, launch)
    return interrupt.exit_code, summary if is_first else None


@contextmanager
def _told_once() -> Iterator[None]:
    """Let one rank tell of an error that torchrun's ranks have alike, before they have met."""
    try:
        yield
    except EchoError as error:
        if "RANK" in os.environ:
            from echo_cli.models.distributed.launch import speaks

            if not speaks(error.message):
                raise SystemExit(error.exit_code) from error
        raise


def _say_nothing(_: object) -> None:
    """Leave it to the first rank to speak."""


@contextmanager
def _held(lease: Path | None) -> Iterator[None]:
    """Hold the lease while the block runs, in the process of a run that writes its files."""
    if lease is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    import echo_cli.training.experiment  # noqa: F401 - loading libraries may keep a thread from renewing the lease
    from echo_cli.sweeps.lease import joined_lease

    with joined_lease(lease):
        yield


def _check_options(resume: bool, overwrite: bool, allow_environment: bool) -> None:
    if resume and overwrite:
        tip = "omit --overwrite to continue the run, --resume to replace it"
        raise EchoError("--resume and --overwrite exclude each other", tip)
    if allow_environment and not resume:
        raise EchoError("--allow-environment has no effect without --resume", "omit it: a new run acts on your config")


def _finish(summary: dict[str, Any], path: Path, config: Config, as_json: bool, exit_code: int) -> None:
    """Print the summary of the run at `path`; for a stopped run, exit with `exit_code`."""
    try:
        _show(summary, path, config, as_json)
    finally:
        if summary["status"] == "stopped":  # also where stdout is gone
            raise typer.Exit(exit_code)


def _show(summary: dict[str, Any], path: Path, config: Config, as_json: bool) -> None:
    """Print the summary of the run at `path`, and how to resume a stopped run."""
    if as_json:
        print_json(summary)
    else:
        from echo_cli.cli.display.results import print_run

        print_run(summary, str(path))
    if summary["status"] == "stopped":
        again = ["echo-cli", "train", "--resume", "--output-dir", str(path.parent), "--run-name", path.name]
        again += ["--trust-remote-code"] if config.model.trust_remote_code else []
        put(f"stopped and saved; to continue: {shlex.join(again)}", err=True)


def _load(name: str | None, words: list[str], resume: bool) -> tuple[Config, Path, str | None]:
    """Return the config and the directory of a run, and the text of the run's own config if that is resumed, else None.

    With --config, a resumed run takes that config. The hub model of a config that is not a run's own may be fetched.
    """
    from echo_cli.runs.directory import is_half_made, open_run
    from echo_cli.runs.origin import config_text

    source = find_config("toy" if name is None else name)
    continues = resume and name is None
    # Overrides of the run's own config, such as a key of its kind of model, may have no effect in toy.
    config = load_config(source, [word for word in words if not continues or parse_override(word).keys in _PLACE])
    path = run_path(config, f"{source.stem}-seed{config.seed}")
    # A run killed during its creation has no config of its own, so it starts with this one.
    if resume and not is_half_made(path):
        own = open_run(path)
        if continues:
            text = config_text(path)
            return load_config(own.config_path, words, text=text), path, text
    return fetching_named(load_config(source, words) if continues else config), path, None


_PLACE = {("output_dir",), ("run_name",), ("seed",)}
"""Keys that the path of a run depends on."""


def run_cell(
    config: Config, path: Path, start: Start, should_stop: Callable[[], bool], ranks: Ranks, launch: Launch | None
) -> dict[str, Any]:
    """Train the run at `path` and return its summary, jointly with the other `ranks` of the `launch`, if any."""
    from echo_cli.cli.display.progress import progress
    from echo_cli.reports.figure import drawn_or_reported
    from echo_cli.reports.run_figure import plot_run
    from echo_cli.training.experiment import RunHooks, run_experiment
    from echo_cli.training.resume import continues_launch

    def notice(line: str) -> None:
        put(f"train: {line}", err=True)

    with progress(config.steps, "train") if ranks.is_first else nullcontext(_say_nothing) as show:
        hooks = RunHooks(
            on_start=lambda reason: notice(f"{path} on {reason}"),
            on_notice=notice,
            on_row=show,
            on_summary=lambda: drawn_or_reported(lambda: plot_run([path]), notice),
            should_stop=should_stop,
        )
        restarted = ranks.first(lambda: launch is not None and continues_launch(path, launch))
        return run_experiment(
            path,
            config,
            hooks,
            resume=start.resume or restarted,
            overwrite=start.overwrite and not restarted,
            argv=start.argv,
            group=start.group,
            ranks=ranks,
        )
