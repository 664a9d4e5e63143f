"""`echo-cli inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echo_cli.cli.options import (
    AsJson,
    ConfigName,
    Device,
    TrustRemoteCode,
    as_overrides,
    checkpoint_named,
    model_overrides,
    print_json,
)
from echo_cli.errors import EchoError
from echo_cli.terminal import put

if TYPE_CHECKING:
    from echo_cli.config.schema import Config
    from echo_cli.models.renderer import Renderer
    from echo_cli.reports.episode_view import EpisodeView
    from echo_cli.runs.recordings import Recording

_NAMES = ("initial", "best", "latest")


_Training = Annotated[
    bool, typer.Option("--training", help="With a RUN: the training rollouts that rollout.keep recorded.")
]


def inspect(
    place: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="Run directory, pool, or trajectory file.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY.PATH=VALUE", help="With --model: config overrides.", show_default=False),
    ] = None,
    episode: Annotated[int | None, typer.Option(help="Print one episode, 1-based.", metavar="N", min=1)] = None,
    step: Annotated[
        int | None, typer.Option(help="With a RUN: only the evaluation after this step.", metavar="N", min=0)
    ] = None,
    training: _Training = False,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="With --episode of a RUN: policy that scores the tokens; initial, best, latest or a step.",
            metavar="NAME|N",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="With --checkpoint: second policy to compare.", metavar="NAME|N")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model whose tokens are counted; with --episode, it scores them.", metavar="PATH|HUB-ID"),
    ] = None,
    config: ConfigName = None,
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Inspect recorded episodes by role and by token.

    Prints tokens and bytes per role, tokens that straddle role boundaries, outputs, volatile-looking text and
    duplicates. With --episode, prints one transcript with its reward, advantage and, given a policy, nats per token.
    """
    _refuse_unused(episode, checkpoint, against, model, overrides, config, device)
    options = as_overrides(overrides or [], device=device, **model_overrides(trust_remote_code))

    from echo_cli.runs.recordings import open_recording

    recording = open_recording(place, step, options if model is None else [], training=training)
    if recording.run is None:
        _refuse_for_file(place, checkpoint, trust_remote_code and model is None)
    wanted = _checkpoints({"--checkpoint": checkpoint, "--against": against})
    chosen = None if model is None else _model(model, config, [*(overrides or []), *options])

    from echo_cli.reports.episode_view import view_episode

    view = None if episode is None else view_episode(recording, episode, checkpoints=wanted, model=chosen)
    if view is None or as_json:
        _inspect_all(recording, chosen, view, as_json)
        return
    from echo_cli.cli.display.inspection import print_episode

    print_episode(view, place=str(place))


def _inspect_all(
    recording: Recording, chosen: tuple[str, Config] | None, view: EpisodeView | None, as_json: bool
) -> None:
    """Print the figures of all episodes; as JSON, include the episode of `view`."""
    from echo_cli.traces.inspection.account import inspect as count

    place = str(recording.place)
    label, renderer = _renderer(recording, chosen)
    own_ids = chosen is None and all(trace.has_token_ids for trace in recording.traces())
    inspection = count(recording.traces(), renderer.tokenizer, own_ids=own_ids)
    recording.check_any(inspection.trajectories)
    if as_json:
        named = {"place": place, "tokens": "file" if own_ids else label, "boundaries": label}
        shown_episode = {} if view is None else {"episode": view.to_json()}
        print_json({**named, **inspection.to_json(), **shown_episode})
        return
    from echo_cli.cli.display.inspection import print_inspection

    tokens = "the file's own" if own_ids else f"encoded by {label}, each segment alone"
    print_inspection(inspection, place=place, tokens=tokens, boundaries=label)


def _checkpoints(given: Mapping[str, str | None]) -> list[str | int]:
    """Return the checkpoints that the options name."""
    return [checkpoint_named(name, _NAMES, option) for option, name in given.items() if name is not None]


def _refuse_for_file(place: Path, checkpoint: str | None, trust_remote_code: bool) -> None:
    if checkpoint is not None:
        raise EchoError(
            f"{place} is not a run, so it has no checkpoints", "score the episodes of a file with --model NAME"
        )
    if trust_remote_code:
        raise EchoError(f"--trust-remote-code has no effect: {place} has no model", "combine it with --model")


def _refuse_unused(
    episode: int | None,
    checkpoint: str | None,
    against: str | None,
    model: str | None,
    overrides: list[str] | None,
    config: str | None,
    device: str | None,
) -> None:
    if checkpoint is not None and model is not None:
        raise EchoError("--checkpoint and --model exclude each other", "give one of them")
    needs: Mapping[str, tuple[object, object, str]] = {
        "--checkpoint": (checkpoint, episode, "--episode N"),
        "--against": (against, checkpoint, "--checkpoint"),
        "--config": (config, model, "--model"),
        f"'{(overrides or [''])[0]}'": (overrides or None, model, "--model"),
        "--device": (device, checkpoint or (model and episode), "--episode N and a policy (--checkpoint or --model)"),
    }
    for name, (given, needed, what) in needs.items():
        if given is not None and not needed:
            raise EchoError(f"{name} has no effect alone", f"combine it with {what}")


def _model(path: str, config: str | None, overrides: list[str]) -> tuple[str, Config]:
    """Return the model's label and the config that loads it."""
    from echo_cli.evaluation.named_models import contenders, loading_config

    (contender,) = contenders([path], ())
    return contender.label, contender.config(loading_config(config, overrides, [contender]))


def _renderer(recording: Recording, chosen: tuple[str, Config] | None) -> tuple[str, Renderer]:
    """Return the name and renderer of the chosen model, else of the run's model, else of the built-in model.

    A run whose model cannot be loaded here is read with the built-in tokenizer, and a line on stderr says so.
    """
    from echo_cli.config.model import TINY_BASE
    from echo_cli.models.loading import load_renderer

    if chosen is None and recording.config is not None:
        try:
            return recording.config.model.path, load_renderer(recording.config)
        except EchoError as error:
            reason = f"the run's tokenizer cannot be loaded: {error.message} ({error.tip})"
            put(f"inspect: the tokens are {TINY_BASE}'s, as {reason}", err=True)
    label, config = chosen or _model(TINY_BASE, None, [])
    return label, load_renderer(config)
