"""`echo-cli env`: check an environment before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from echo_cli.cli.options import (
    AsJson,
    EnvironmentName,
    FetchModel,
    ImportFrom,
    Overrides,
    PlainHttp,
    TrustRemoteCode,
    as_overrides,
    command_group,
    consent_of,
    examples,
    grants_of,
    model_overrides,
    print_json,
)
from echo_cli.config.effects import Effects, effects_of
from echo_cli.config.episodes.chosen import alone_in
from echo_cli.config.episodes.several import in_environment
from echo_cli.config.loader import find_config, load_config
from echo_cli.errors import EchoError
from echo_cli.terminal import put

if TYPE_CHECKING:
    from echo_cli.config.schema import Config
    from echo_cli.environments.protocol import TaskSuite
    from echo_cli.evaluation.environment_figures import EnvironmentFigures
    from echo_cli.rollouts.environment_check import CheckReport
    from echo_cli.training.model_check import ModelReport

env = command_group("Environments: check one before training.", "env check sandbox")


@env.command(
    "check", epilog=examples("env check sandbox", "env check toy environment.url=http://127.0.0.1:8000", configs=True)
)
def check(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Shipped config or YAML file.")],
    overrides: Overrides = None,
    model: Annotated[
        bool,
        typer.Option(
            "--model", help="Also play a few training rollouts with the config's model, and show its actions."
        ),
    ] = False,
    judge: Annotated[
        int,
        typer.Option("--judge", min=0, help="Also play N tasks, and judge what can be learned in them.", metavar="N"),
    ] = 0,
    environment: EnvironmentName = None,
    import_from: ImportFrom = None,
    plain_http: PlainHttp = False,
    trust_remote_code: TrustRemoteCode = False,
    fetch_model: FetchModel = False,
    as_json: AsJson = False,
) -> None:
    """Play one episode in each environment and report problems.

    A config has one environment or several. The transcript shows the roles as training uses them. Nothing is written.
    """
    if model and (named := [word for word in overrides or () if "=" not in word]):
        raise EchoError(
            f"--model takes no value, so '{named[0]}' is not a model",
            f"it plays the config's own model; for another: --model model.kind=hf model.path={named[0]}",
        )
    grants = grants_of(import_from, plain_http, fetch_model)
    options = model_overrides(trust_remote_code, fetch_model)
    words = [*(overrides or []), *as_overrides(overrides or [], **options)]
    loaded = load_config(find_config(config), words).granted(grants)

    from echo_cli.environments.worlds import open_worlds

    chosen = loaded.of_each if environment is None else {environment: alone_in(loaded, environment)}
    effects = sum((effects_of(alone, sampler=model) for alone in chosen.values()), Effects())
    consent_of("env check", grants).obtain(effects)
    found = {}
    for name, alone in chosen.items():
        with in_environment(name), open_worlds(alone) as worlds:
            if worlds.description.about:
                put(f"env check: the environment's description: {worlds.description.about}", err=True)
            found[name] = (*_check(alone, worlds, judge), _play(alone, worlds) if model else None)
        if not as_json:
            _print(name, found[name], loaded.model.path)
    if as_json:
        each = {name: _to_json(of) for name, of in found.items()}
        print_json({"environments": each} if loaded.names and environment is None else next(iter(each.values())))


_Found = tuple["CheckReport", "EnvironmentFigures | None", "ModelReport | None"]


def _to_json(found: _Found) -> dict[str, Any]:
    report, figures, played = found
    judged = {} if figures is None else {"figures": figures.to_json(), "verdicts": _verdicts(figures)}
    return report.to_json() | judged | ({} if played is None else {"model": played.to_json()})


def _print(name: str, found: _Found, model: str) -> None:
    from echo_cli.cli.display.environment import print_check, print_figures, print_model

    report, figures, played = found
    if name:
        put(f"{name}:", "")
    print_check(report)
    if figures is not None:
        print_figures(figures)
    if played is not None:
        print_model(played, model)
    if name:
        put("")


def _check(config: Config, worlds: TaskSuite, judged_tasks: int) -> tuple[CheckReport, EnvironmentFigures | None]:
    """Return the report of the check, and the figures of `judged_tasks` tasks, if any."""
    from echo_cli.evaluation.environment_figures import environment_figures
    from echo_cli.models.architecture import architecture_of
    from echo_cli.models.loading import load_renderer
    from echo_cli.rollouts.environment_check import check_environment
    from echo_cli.rollouts.limits import limits_of

    renderer, architecture = load_renderer(config), architecture_of(config.model)
    context = None if architecture is None else architecture.max_length
    report = check_environment(worlds, renderer, limits_of(config), config.environment, context=context)
    if not judged_tasks:
        return report, None
    return report, environment_figures(worlds, renderer, report.limits, config.environment, tasks=judged_tasks)


def _verdicts(figures: EnvironmentFigures) -> list[dict[str, str]]:
    from echo_cli.evaluation.environment_verdicts import verdicts_of

    return [vars(verdict) for verdict in verdicts_of(figures)]


def _play(config: Config, worlds: TaskSuite) -> ModelReport:
    from echo_cli.evaluation.loaded_run import build_policy
    from echo_cli.models.loading import close_policy
    from echo_cli.training.model_check import check_model

    policy, _ = build_policy(config)
    try:
        return check_model(config, policy, worlds)
    finally:
        close_policy(policy)
