"""Small trajectory files to train on: a store of words that a shell prints, without token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment, write_traces
from echo_cli.trajectory import Role, Turn

WORDS = "oak elm ash yew fir fig bay box ivy rye oat pea nut hop haw sloe".split()

ALONE = (
    "environment.none=true rollout.tasks_per_step=0 rollout.explorers=0 objective.use_rl=false "
    "traces.per_step=4 traces.split.validation=0.2 threads=1 evaluation.every=2 checkpoint.every=1 checkpoint.keep=9"
).split()
"""Overrides of a run on traces only, without `traces.path`."""


def turn(command: str, output: str) -> Turn:
    return Turn(command, output, 0, valid_action=True, clean_parse=True)


def episode(*exchanges: tuple[str, str], opening: str = "$ ", **fields: Any) -> Trace:
    """Return a trace of (command, output) exchanges at a prompt."""
    segments = [TraceSegment(Role.CONTEXT, opening)]
    for command, output in exchanges:
        segments.append(TraceSegment(Role.ACTION, f"{command}\n"))
        segments += [TraceSegment(Role.ENV_OUTPUT, output, "stdout")] if output else []
        segments.append(TraceSegment(Role.CONTEXT, "$ "))
    turns = tuple(turn(command, output) for command, output in exchanges)
    return Trace("store", tuple(segments), turns, **{"reward": 1.0, **fields})


def store(number: int = 16) -> list[Trace]:
    """Return traces that each print a unique line and a common line."""
    return [
        episode((f"cat {word}", f"{word} has {place * 37 % 100} leaves\n"), ("pwd", "/srv/store\n"))
        for place, word in enumerate(WORDS[:number])
    ]


def trace_file(folder: Path, traces: list[Trace], name: str = "traces.jsonl") -> Path:
    path = folder / name
    write_traces(path, traces)
    return path
