"""`echo-cli dream`."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echo_cli.cli.options import (
    AllowEnvironment,
    AsJson,
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
)
from echo_cli.errors import EchoError
from echo_cli.terminal import ask, put

if TYPE_CHECKING:
    from echo_cli.evaluation.dream.scoring import DreamReport
    from echo_cli.evaluation.dream.session import Event, OpenDream

_Score = Annotated[int | None, typer.Option(help="Score replies on N novel held-out pairs.", metavar="N", min=1)]
_Checkpoint = Annotated[
    str | None, typer.Option(help="best (default), latest or a step.", metavar="NAME|N", show_default=False)
]
_MaxTokens = Annotated[
    int | None, typer.Option(help="Maximum length of a predicted reply, tokens.", metavar="N", min=1)
]
_Temperature = Annotated[
    float, typer.Option(help="Sampling temperature; 0 (default) is greedy.", metavar="X", show_default=False)
]
_ClosedLoop = Annotated[bool, typer.Option("--closed-loop", help="Continue after predicted replies, not real ones.")]


def dream(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    score: _Score = None,
    checkpoint: _Checkpoint = None,
    max_tokens: _MaxTokens = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of pairs and of sampling.", metavar="N", min=0)] = 0,
    pool: Annotated[Path | None, typer.Option(help="With --score: another frozen pool.", metavar="DIR")] = None,
    breakdown: Annotated[bool, typer.Option("--breakdown", help="With --score: also per command.")] = False,
    task: Annotated[str | None, typer.Option(help="Task to play; default: first held-out task.", metavar="ID")] = None,
    environment: EnvironmentName = None,
    list_tasks: Annotated[bool, typer.Option("--list-tasks", help="List the tasks that --task accepts.")] = False,
    temperature: _Temperature = 0.0,
    closed_loop: _ClosedLoop = False,
    device: Device = None,
    allow_environment: AllowEnvironment = False,
    import_from: ImportFrom = None,
    plain_http: PlainHttp = False,
    trust_remote_code: TrustRemoteCode = False,
    fetch_model: FetchModel = False,
    as_json: AsJson = False,
) -> None:
    """Let the policy answer commands in place of the environment.

    Type commands or pipe them in, one per line; the policy's reply is printed beside the real one. `exit` or Ctrl-D
    ends the session. With --score, replies to held-out commands are compared with the true replies.
    """
    which = checkpoint_named(checkpoint or "best") if list_tasks else chosen_checkpoint(checkpoint, run)
    if not 0 <= temperature < math.inf:
        raise EchoError(f"--temperature is {temperature}", "give 0 or a positive number")
    consent = consent_of("dream", grants_of(import_from, plain_http, fetch_model), allowed=allow_environment)
    words = as_overrides([], device=device, **model_overrides(trust_remote_code, fetch_model))
    of_run: dict[str, Any] = {"overrides": words, "consent": consent, "environment": environment}
    of_play = {"--task": task, "--temperature": temperature, "--closed-loop": closed_loop}
    if score is not None:
        tip = "omit it: scored replies are greedy and follow true transcripts of a pool"
        _refuse({**of_play, "--list-tasks": list_tasks}, "with --score", tip)
        from echo_cli.evaluation.dream.scoring import score_dreams
        from echo_cli.evaluation.loaded_run import load_run

        loaded = load_run(run, **of_run)
        found = score_dreams(loaded, checkpoint=which, number=score, pool_folder=pool, seed=seed, max_tokens=max_tokens)
        _print_score(found, breakdown, as_json)
        return
    _refuse({"--pool": pool, "--breakdown": breakdown}, "without --score", "add --score N")
    if list_tasks:
        _refuse({**of_play, "--max-tokens": max_tokens}, "with --list-tasks", "omit --list-tasks to play")
        _print_tasks(run, environment, as_json)
        return
    from echo_cli.evaluation.dream.session import DreamSettings, open_dream

    settings = DreamSettings(max_tokens, temperature, seed, closed_loop)
    with open_dream(run, checkpoint=which, task_id=task, settings=settings, **of_run) as opened:
        events = _play(opened, as_json)
    if as_json:
        _print_events(opened, closed_loop, events)


def _refuse(options: Mapping[str, object], when: str, tip: str) -> None:
    for name, value in options.items():
        if value:
            raise EchoError(f"{name} has no effect {when}", tip)


def _print_score(found: DreamReport, breakdown: bool, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    from echo_cli.cli.display.dream import print_dreams

    print_dreams(found, breakdown=breakdown)


def _print_tasks(run: Path, environment: str | None, as_json: bool) -> None:
    from echo_cli.cli.display.dream import print_tasks
    from echo_cli.evaluation.dream.session import tasks_of

    tasks = tasks_of(run, environment)
    if as_json:
        print_json({"tasks": [{"id": of.task_id, "split": of.split, "family": of.family} for of in tasks]})
    else:
        print_tasks(tasks)


def _play(opened: OpenDream, as_json: bool) -> list[Event]:
    """Answer the commands on stdin and print events as they occur; with `as_json`, return them instead."""
    from echo_cli.cli.display.dream import print_event

    put(f"{opened.title}; exit or Ctrl-D ends the session", err=True)
    # If printing fails, the generator is closed here, so that the episode is closed before its environment.
    with closing(opened.play.converse(_commands(opened.prompt, err=as_json))) as events:
        if as_json:
            return list(events)
        for event in events:
            print_event(event, None if _is_typed() else opened.prompt)
    return []


def _print_events(opened: OpenDream, closed_loop: bool, events: Sequence[Event]) -> None:
    from echo_cli.evaluation.dream.session import Answer, Notice, Opening

    print_json(
        {
            **{"run": opened.run, "step": opened.step, "task": opened.task_id, "closed_loop": closed_loop},
            "openings": [event.text for event in events if isinstance(event, Opening)],
            "exchanges": [vars(event) for event in events if isinstance(event, Answer)],
            "notices": [event.text for event in events if isinstance(event, Notice)],
        }
    )


def _is_typed() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _commands(prompt: str, *, err: bool) -> Iterator[str]:
    """Yield the non-empty lines of stdin up to `exit`; a terminal is prompted on stdout or, with `err`, on stderr."""
    if sys.stdin is None:  # closed by the parent process
        return
    if isinstance(sys.stdin, io.TextIOWrapper):  # input may have another encoding, on a terminal too
        sys.stdin.reconfigure(errors="replace")
    typed = _is_typed()
    if typed:
        import readline  # noqa: F401 - gives input() history and editing
    while True:
        if typed:
            try:
                line = ask(prompt, err=err)
            except EOFError:
                put("", err=err)
                return
        else:
            line = sys.stdin.readline()
            if not line:
                return
        command = line.rstrip("\r\n")
        if command.strip() == "exit":
            return
        if command.strip():
            yield command
