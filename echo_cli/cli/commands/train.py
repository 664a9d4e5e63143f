"""`echo-cli train`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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
        print_plans([(loaded, path)], as_json, sweep=False)
        return
    from echo_cli.cli.interrupt import interruptible

    loaded = loaded.granted(consent.grants)
    consent = replace(consent, text=own_text)
    consent.obtain(effects_of(loaded, trackers=True), None if own_text is None else path)
    with interruptible() as interrupt, _held(lease):
        summary = run_cell(
            loaded,
            path,
            resume=resume,
            overwrite=overwrite,
            argv=context.obj,
            label="train",
            should_stop=lambda: interrupt() or (parent is not None and os.getppid() != parent),
            group=group,
        )
    _finish(summary, path, loaded, as_json, interrupt.exit_code)


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
    config: Config,
    path: Path,
    *,
    resume: bool,
    overwrite: bool,
    argv: Sequence[str],
    label: str,
    should_stop: Callable[[], bool],
    group: str | None,
) -> dict[str, Any]:
    from echo_cli.cli.display.progress import progress
    from echo_cli.reports.figure import drawn_or_reported
    from echo_cli.reports.run_figure import plot_run
    from echo_cli.training.experiment import RunHooks, run_experiment

    def notice(line: str) -> None:
        put(f"{label}: {line}", err=True)

    with progress(config.steps, label) as show:
        hooks = RunHooks(
            on_start=lambda reason: put(f"{label}: {path} on {reason}", err=True),
            on_notice=notice,
            on_row=show,
            on_summary=lambda: drawn_or_reported(lambda: plot_run([path]), notice),
            should_stop=should_stop,
        )
        return run_experiment(
            path, config, hooks, resume=resume, overwrite=overwrite, argv=["echo-cli", *argv], group=group
        )
