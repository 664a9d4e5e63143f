"""`echo-cli eval-heldout`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echo_cli.cli.options import (
    AllowEnvironment,
    AsJson,
    ConfigName,
    Device,
    EnvironmentName,
    FetchModel,
    ImportFrom,
    PlainHttp,
    TrustRemoteCode,
    as_overrides,
    checkpoint_named,
    chosen_checkpoint,
    consent_of,
    grants_of,
    model_overrides,
    print_json,
    refuse_overrides,
)
from echo_cli.errors import EchoError
from echo_cli.terminal import put

if TYPE_CHECKING:
    from echo_cli.evaluation.loaded_run import LoadedRun
    from echo_cli.evaluation.records import Evaluation
    from echo_cli.runs.origin import Consent

_NAMES = ("best", "latest", "all")


_Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN|KEY.PATH=VALUE", help="Run directory; with --model, config overrides.", show_default=False
    ),
]
_Compare = Annotated[
    tuple[Path, Path] | None, typer.Option(help="Compare two runs, B - A, instead of RUN.", metavar="RUN_A RUN_B")
]
_Model = Annotated[
    list[str] | None,
    typer.Option(help="Model instead of RUN; repeatable; the first is the reference.", metavar="PATH|HUB-ID"),
]
_Checkpoint = Annotated[
    list[str] | None, typer.Option(help="best (default), latest, all or a step; repeatable.", metavar="NAME")
]
_FitPool = Annotated[
    Path | None, typer.Option(help="With --model: pool that the baselines are fitted on.", metavar="DIR")
]
_Rollouts = Annotated[
    int | None, typer.Option(help="Rollouts per task for pass@k. Default: as in training.", metavar="N", min=0)
]


def eval_heldout(
    words: _Words = None,
    compare: _Compare = None,
    model: _Model = None,
    checkpoint: _Checkpoint = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint by step.", metavar="N")] = None,
    environment: EnvironmentName = None,
    pool: Annotated[list[Path] | None, typer.Option(help="Additional frozen pool; repeatable.", metavar="DIR")] = None,
    fit_pool: _FitPool = None,
    config: ConfigName = None,
    rollouts: _Rollouts = None,
    pass_k: Annotated[
        list[int] | None, typer.Option(help="k of pass@k; repeatable. Default: 1 and N.", metavar="K", min=1)
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="Held-out command whose predicted output is shown.", metavar="TEXT")
    ] = None,
    breakdown: Annotated[bool, typer.Option("--breakdown", help="Add measures by token group and by task.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Figure's file or folder. Default: the run's.", metavar="PATH")
    ] = None,
    device: Device = None,
    allow_environment: AllowEnvironment = False,
    import_from: ImportFrom = None,
    plain_http: PlainHttp = False,
    trust_remote_code: TrustRemoteCode = False,
    fetch_model: FetchModel = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV rows on stdout.")] = False,
) -> None:
    """Measure a checkpoint on held-out commands and tasks.

    The run's initial policy and simple baselines are measured over the same pairs. With --model instead of RUN, the
    models are measured on the given pools and compared with the first model.
    """
    if as_json and as_csv:
        raise EchoError("--json and --csv exclude each other", "give one of them")
    of_runs: dict[str, object] = {
        "--environment": environment,
        "--checkpoint": checkpoint,
        "--step": step,
        "--rollouts": rollouts,
        "--pass-k": pass_k,
    }
    of_runs |= {"--import-from": import_from, "--allow-environment": allow_environment or None}
    of_runs |= {"--allow-plain-http": plain_http or None}
    of_model = model_overrides(trust_remote_code, fetch_model)
    options = as_overrides(words or [], device=device, **of_model)
    if model:
        overrides = [*_overrides(words or [], compare, of_runs, pool), *options]
        found, stem = _evaluate_models(model, config, overrides, pool or [], fit_pool, command, output)
    else:
        run = _one_run(words or [], compare, {"--config": config, "--fit-pool": fit_pool})
        _check_rollouts(rollouts, pass_k)
        names = _checkpoints(checkpoint, step) or ["best" if compare else chosen_checkpoint(None, run)]
        consent = consent_of("eval-heldout", grants_of(import_from, plain_http, fetch_model), allowed=allow_environment)
        chosen = _Chosen(names, rollouts, pass_k, command, pool or [], options, consent, environment)
        found, stem = _compare_runs(compare, chosen, output) if compare else _evaluate_run(run, chosen, output)
    _show(found, stem, as_json, as_csv, breakdown)


@dataclass(frozen=True)
class _Chosen:
    """Options that choose what is measured of a run."""

    checkpoints: list[str | int]
    rollouts: int | None
    """Number of rollouts per task; None for as many as in training."""
    pass_k: list[int] | None
    command: str | None
    pools: list[Path]
    overrides: list[str]
    """Overrides of the run's config."""
    consent: Consent
    environment: str | None
    """Name of the only one of several environments to measure; None for all."""

    def open(self, run: Path) -> LoadedRun:
        from echo_cli.evaluation.loaded_run import load_run

        opened = load_run(
            run,
            overrides=self.overrides,
            pool_folders=self.pools,
            consent=self.consent,
            environment=self.environment,
        )
        opened.announce = _progress
        return opened


def _evaluate_models(
    models: list[str],
    config: str | None,
    overrides: list[str],
    pools: list[Path],
    fit_pool: Path | None,
    command: str | None,
    output: Path | None,
) -> tuple[Evaluation, Path | None]:
    stem = None if output is None else _stem(output, Path(), "heldout_models")
    from echo_cli.evaluation.model_evaluation import evaluate_models

    found = evaluate_models(
        models,
        config=config,
        overrides=overrides,
        pool_folders=pools,
        fit_folder=fit_pool,
        command=command,
        announce=lambda line: put(f"model {line}", err=True),
    )
    return found, stem


def _compare_runs(runs: tuple[Path, Path], chosen: _Chosen, output: Path | None) -> tuple[Evaluation, Path]:
    if len(chosen.checkpoints) > 1 or chosen.checkpoints == ["all"]:
        tip = "give one of --checkpoint best, --checkpoint latest and --step N"
        raise EchoError("--compare takes one checkpoint per run", tip)
    if chosen.command is not None:
        raise EchoError("--command and --compare exclude each other", "omit either --compare or --command")
    stem = _stem(output, _shared_folder(runs, output), "heldout_comparison")
    from echo_cli.evaluation.comparison import compare_runs, overrides_of

    of_first, of_second = (replace(chosen, overrides=words) for words in overrides_of(runs, chosen.overrides))
    with of_first.open(runs[0]) as first, of_second.open(runs[1]) as second:
        found = compare_runs(
            (first, second), checkpoint=chosen.checkpoints[0], rollouts=chosen.rollouts, pass_k=chosen.pass_k
        )
    return found, stem


def _evaluate_run(run: Path, chosen: _Chosen, output: Path | None) -> tuple[Evaluation, Path]:
    stem = _stem(output, run, "heldout_evaluation")
    from echo_cli.evaluation.run_evaluation import evaluate_loaded

    with chosen.open(run) as opened:
        found = evaluate_loaded(
            opened,
            checkpoints=chosen.checkpoints,
            rollouts=chosen.rollouts,
            pass_k=chosen.pass_k,
            command=chosen.command,
        )
    return found, stem


def _one_run(words: list[str], compare: tuple[Path, Path] | None, of_models: Mapping[str, object]) -> Path:
    """Return the run of a command line without --model; with --compare, the first of the two runs.

    Raises:
        EchoError: an option applies to models only, or the words are not exactly one run.
    """
    if given := [name for name, value in of_models.items() if value is not None]:
        raise EchoError(f"{given[0]} has no effect without --model", "omit it: RUN has its own config and observations")
    refuse_overrides(words)
    if len(words) + (compare is not None) != 1:
        runs = [str(run) for run in compare or words]
        two = f"--compare {shlex.join(runs)}" if len(runs) == 2 else "--compare RUN_A RUN_B"
        tip = f"echo-cli eval-heldout RUN, or {two}; for models without a run: --model PATH --pool DIR"
        raise EchoError("name one RUN, or two runs with --compare RUN_A RUN_B", tip)
    return compare[0] if compare is not None else Path(words[0])


def _check_rollouts(rollouts: int | None, pass_k: list[int] | None) -> None:
    """Check that there are enough rollouts for pass@k.

    Raises:
        EchoError: a k is larger than the number of rollouts.
    """
    if pass_k and rollouts is not None and max(pass_k) > rollouts:
        raise EchoError(f"pass@{max(pass_k)} needs {max(pass_k)} rollouts per task", "increase --rollouts")


def _overrides(
    words: list[str], compare: tuple[Path, Path] | None, of_runs: Mapping[str, object], pools: list[Path] | None
) -> list[str]:
    """Return the overrides of a command line with --model.

    Raises:
        EchoError: a word or option applies to runs only, or no pool is named.
    """
    runs = [word for word in words if "=" not in word]
    if runs or compare is not None:
        what = "--compare" if compare is not None else f"RUN {runs[0]}"
        raise EchoError(f"{what} and --model exclude each other", "name either runs or models")
    for name, value in of_runs.items():
        if value is not None:
            tip = "rollouts need an environment: name a RUN instead of --model"
            if name in ("--checkpoint", "--step"):
                tip = "name the folder of a checkpoint: --model RUN/checkpoints/step_000060"
            raise EchoError(f"{name} has no effect with --model", tip)
    if not pools:
        raise EchoError("--model needs a pool", "name a pool with --pool DIR; `echo-cli pool build DIR` builds one")
    return words


def _checkpoints(names: list[str] | None, step: int | None) -> list[str | int]:
    """Return the named checkpoints; empty if none is named."""
    if names and step is not None:
        raise EchoError("--checkpoint and --step exclude each other", "use --checkpoint, which also accepts steps")
    if step is not None:
        return [step]
    return [checkpoint_named(name, _NAMES) for name in names or ()]


def _stem(output: Path | None, folder: Path, name: str) -> Path:
    """Return the figure's path without its extension.

    Raises:
        EchoError: the figure cannot be written there.
    """
    from echo_cli.files import check_writable
    from echo_cli.reports.figure import picture_stem

    stem = picture_stem(output, folder, name)
    check_writable(stem.parent)
    return stem


def _shared_folder(runs: tuple[Path, Path], output: Path | None) -> Path:
    first, second = (run.absolute().parent for run in runs)
    if output is None and first != second:
        raise EchoError("the runs are in different folders", "name the figure's folder with --output")
    return first


def _progress(line: str) -> None:
    put(f"eval-heldout: {line}", err=True)


def _show(found: Evaluation, stem: Path | None, as_json: bool, as_csv: bool, breakdown: bool) -> None:
    """Write the figure if there is a `stem`, and print the evaluation."""
    figure = None
    if stem is not None:
        from echo_cli.reports.evaluation_figure import plot_evaluation
        from echo_cli.reports.figure import drawn_or_reported

        drawn = drawn_or_reported(lambda: plot_evaluation(found, stem), _progress)
        figure = None if drawn is None else drawn.png
    if as_json:
        print_json({**found.to_json(), "figure": None if figure is None else str(figure)})
    elif as_csv:
        import csv
        import io

        from echo_cli.evaluation.records import CSV_COLUMNS, csv_rows

        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        writer.writerows(csv_rows(found))
        put(*text.getvalue().rstrip("\n").split("\n"))
        if figure is not None:
            put(f"figure: {figure}", err=True)
    else:
        from echo_cli.cli.display.evaluation import print_evaluation

        print_evaluation(found, breakdown=breakdown)
        if figure is not None:
            put("", f"figure: {figure}")
