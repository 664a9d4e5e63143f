"""`echo-cli pool build` and `echo-cli pool show`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from echo_cli.cli.options import (
    AllowEnvironment,
    AsJson,
    ConfigName,
    Device,
    EnvironmentName,
    FetchModel,
    ImportFrom,
    Overrides,
    Overwrite,
    PlainHttp,
    TrustRemoteCode,
    as_overrides,
    chosen_checkpoint,
    command_group,
    consent_of,
    examples,
    fetching_named,
    grants_of,
    model_overrides,
    print_json,
)
from echo_cli.config.effects import effects_of
from echo_cli.config.episodes.chosen import alone_in
from echo_cli.config.loader import find_config, load_config
from echo_cli.config.schema import Config
from echo_cli.environments.tasks import Split
from echo_cli.errors import EchoError
from echo_cli.terminal import put

if TYPE_CHECKING:
    from echo_cli.evaluation.pools.building import CheckpointActor

pool = command_group("Build and show frozen pools.", "pool build outputs/pool", "pool show outputs/pool")

_SCRIPTS = ("expert", "explorer")


@pool.command(
    "build",
    epilog=examples("pool build outputs/pool", "pool build outputs/played --actor outputs/toy-seed0", configs=True),
)
def build(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the pool.")],
    overrides: Overrides = None,
    config: ConfigName = None,
    actor: Annotated[
        str, typer.Option(help="Script (expert, explorer) or run directory.", metavar="expert|explorer|RUN")
    ] = "expert",
    checkpoint: Annotated[
        str | None, typer.Option(help="With a RUN: best (default), latest or a step.", metavar="NAME|N")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or heldout.", metavar="NAME")] = "heldout",
    ood: Annotated[bool, typer.Option("--ood", help="Play in out-of-distribution worlds.")] = False,
    environment: EnvironmentName = None,
    rollouts: Annotated[int, typer.Option(help="Rollouts per task.", metavar="N", min=1)] = 1,
    temperature: Annotated[
        float | None,
        typer.Option(help="With a RUN: sampling temperature. Default: 0.6.", metavar="X", show_default=False),
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Sampling seed. Default: the config's.", metavar="N")] = None,
    only_solved: Annotated[bool, typer.Option("--only-solved", help="With a RUN: keep only solved rollouts.")] = False,
    device: Device = None,
    allow_environment: AllowEnvironment = False,
    import_from: ImportFrom = None,
    plain_http: PlainHttp = False,
    trust_remote_code: TrustRemoteCode = False,
    fetch_model: FetchModel = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Play the tasks of a split and store the trajectories as a pool.

    With a RUN as the actor, the run's config is used; --config and overrides change the worlds and caps, not the model.
    """
    if scripted := actor in _SCRIPTS:
        of_run: dict[str, object] = {"--checkpoint": checkpoint, "--temperature": temperature, "--device": device}
        of_run |= {"--only-solved": only_solved, "--allow-environment": allow_environment}
        _refuse_for_script(actor, of_run, rollouts, seed)
    chosen = _split(split)
    words = [*(overrides or []), *as_overrides(overrides or [], seed=seed, device=device)]
    options = model_overrides(trust_remote_code, fetch_model)
    of_model = as_overrides(overrides or [], **options)
    played = actor if scripted else replace(_checkpoint_actor(actor, checkpoint, temperature), overrides=of_model)
    run = None if scripted or config is not None else Path(actor)
    consent = consent_of("pool", grants_of(import_from, plain_http, fetch_model), allowed=allow_environment)
    text = None if run is None else _config_text(run)
    every = _config(config, [*words, *of_model] if scripted else words, run, text)
    loaded = alone_in(every.granted(consent.grants), environment)
    replace(consent, text=text).obtain(effects_of(loaded, sampler=not scripted), run)

    from echo_cli.evaluation.pools.building import Recipe, build_pool

    header = f"pool: {out}, {actor} on the {split} tasks"
    recipe = Recipe(loaded, played, chosen, out_of_distribution=ood, rollouts=rollouts, only_solved=only_solved)
    manifest = build_pool(out, recipe, overwrite=overwrite, on_start=lambda: put(header, err=True))
    if as_json:
        print_json({"pool": str(out), "manifest": manifest.model_dump(mode="json")})
    else:
        from echo_cli.cli.display.results import print_pool

        print_pool(manifest)


@pool.command("show", epilog=examples("pool show outputs/pool"))
def show(
    folder: Annotated[Path, typer.Argument(metavar="POOL", help="Folder of the pool.")],
    episode: Annotated[int | None, typer.Option(help="Print one trajectory, 1-based.", metavar="N", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a pool and print its contents and provenance."""
    from echo_cli.runs.pool_folder import read_pool

    manifest, trajectories = read_pool(folder)
    if episode is not None and episode > len(trajectories):
        raise EchoError(f"{folder} has no trajectory {episode}", f"choose one from 1 to {len(trajectories)}")
    chosen = None if episode is None else trajectories[episode - 1]
    if as_json:
        trajectory = {} if chosen is None else {"trajectory": chosen.to_json()}
        print_json({"pool": str(folder), "manifest": manifest.model_dump(mode="json"), **trajectory})
        return
    from echo_cli.cli.display.results import print_pool
    from echo_cli.cli.display.transcript import transcript

    print_pool(manifest)
    if chosen is not None:
        put("", *transcript(chosen))


def _refuse_for_script(actor: str, of_run: Mapping[str, object], rollouts: int, seed: str | None) -> None:
    """Refuse options that apply to a run only and, for the expert, --rollouts and --seed."""
    if given := [name for name, value in of_run.items() if value not in (None, False)]:
        tip = "omit it, or name a run directory as the actor"
        raise EchoError(f"{given[0]} has no effect with --actor {actor}", tip)
    if actor == "expert" and (rollouts > 1 or seed is not None):
        option = "--rollouts" if rollouts > 1 else "--seed"
        tip = "omit it: the expert plays each task in one way"
        raise EchoError(f"{option} has no effect with --actor expert", tip)


def _split(name: str) -> Split:
    chosen: Split | None = next((split for split in get_args(Split) if split == name), None)
    if chosen is None:
        raise EchoError(f"no split '{name}'", f"choose one of {', '.join(get_args(Split))}")
    return chosen


def _checkpoint_actor(actor: str, checkpoint: str | None, temperature: float | None) -> CheckpointActor:
    from echo_cli.evaluation.pools.building import CheckpointActor

    path = Path(actor)
    if not path.exists() and path.name == actor:
        tip = "name expert, explorer or the run directory whose checkpoint plays"
        raise EchoError(f"no actor '{actor}': neither a script nor a run directory", tip)
    chosen = chosen_checkpoint(checkpoint, path)
    if temperature is None:
        return CheckpointActor(path, chosen)
    if not 0 < temperature < math.inf:
        raise EchoError(f"--temperature is {temperature}", "give a number above 0")
    return CheckpointActor(path, chosen, temperature)


def _config_text(run: Path) -> str:
    from echo_cli.runs.directory import open_run
    from echo_cli.runs.origin import config_text

    return config_text(open_run(run).path)


def _config(name: str | None, words: list[str], run: Path | None, text: str | None) -> Config:
    """Load the config of `run`, whose text was read, else the config `name`, else `toy`."""
    if run is not None:
        from echo_cli.runs.directory import RunDirectory

        return RunDirectory(run).read_config(words, text)
    return fetching_named(load_config(find_config("toy" if name is None else name), words))
