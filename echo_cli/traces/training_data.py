"""Traces as trajectories in the policy's tokens: those that a step trains on, and the held-out pools.

A trace is rendered anew (`retokenize.render_trace`), so it is one sequence whoever recorded it: thinking that its
recorder dropped from later turns is not in it, and an action is the command that its turn says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from echo_cli.config.schema import TracesConfig
from echo_cli.environments.tasks import Split
from echo_cli.files import Row
from echo_cli.models.renderer import Renderer
from echo_cli.seeds import epoch_sample
from echo_cli.trace import Trace
from echo_cli.traces.corpus import TraceCorpus, observations, overlap_line
from echo_cli.traces.retokenize import render_trace, truncated
from echo_cli.trajectory import Role, Trajectory, split_at_actions

POOL = "traces"
"""The pool of held-out traces beside those of an environment."""


@dataclass(frozen=True)
class Traces:
    """What a run trains on beside its rollouts, and how long a trace may be, in tokens of its policy."""

    corpus: TraceCorpus
    settings: TracesConfig
    max_tokens: int


@dataclass(frozen=True)
class RenderedTraces:
    """Traces as trajectories that get no RL term."""

    trajectories: tuple[Trajectory, ...]
    cut: int
    """Number of traces that were truncated; one whose first segment does not fit has no trajectory."""


def render_and_truncate(traces: Iterable[Trace], renderer: Renderer, max_tokens: int) -> RenderedTraces:
    """`traces` in the tokens of `renderer`, each in at most `max_tokens`, whoever acted: `source` is `trace`."""
    whole = [replace(render_trace(trace, renderer), source="trace") for trace in traces]
    found = [truncated(trajectory, renderer.tokenizer, max_tokens) for trajectory in whole]
    kept = tuple(trajectory for trajectory in found if trajectory is not None)
    return RenderedTraces(kept, sum(len(trajectory) > max_tokens for trajectory in whole))


def traces_of_step(traces: Traces, renderer: Renderer, seed: int, step: int) -> RenderedTraces:
    """The traces of the 0-based `step`, in shuffled epochs of the training split.

    Raises:
        EchoError: as `TraceCorpus.read`.
    """
    entries = epoch_sample(traces.corpus.of("train"), traces.settings.per_step, seed, "traces", step)
    return render_and_truncate(traces.corpus.read(entries), renderer, traces.max_tokens)


def held_out(traces: Traces, renderer: Renderer, split: Split) -> RenderedTraces:
    """The traces of a held-out split, in which observations that training sees are context: not measured.

    Raises:
        EchoError: as `TraceCorpus.read`.
    """
    corpus, kept, cut = traces.corpus, [], 0
    for trace in corpus.read(corpus.of(split)):
        found = render_and_truncate([trace], renderer, traces.max_tokens)
        cut += found.cut
        # By turn: of what is cut, the text here is not what the hash is of.
        seen = {turn for turn, hashes in observations(trace) if corpus.sees(hashes)}
        kept += [_without(trajectory, seen) for trajectory in found.trajectories]
    return RenderedTraces(tuple(kept), cut)


def pool_splits(*, alone: bool) -> dict[str, Split]:
    """The pools of held-out traces by name, each with its split: all that a run has, or one beside an environment's."""
    return {"validation": "validation", "heldout": "heldout"} if alone else {POOL: "heldout"}


def traces_record(traces: Traces, pools: Mapping[str, RenderedTraces]) -> Row:
    """What environment.json says of a run's traces: files, splits, overlap, and what was cut of each pool."""
    cut = {name: pool.cut for name, pool in pools.items()}
    return {**traces.corpus.to_json(), "max_tokens": traces.max_tokens, "cut": cut}


def trace_notices(record: Row, splits: Mapping[str, Split]) -> list[str]:
    """What a run's traces are, from its record, line by line: counts, and what of its pools is not measured."""
    repeated = f"; {record['repeated']} repeat another" if record["repeated"] else ""
    held = (record[name]["traces"] for name in ("validation", "heldout"))
    lines = ["traces: {} to train on, {} for validation, {} held out{}".format(record["train"], *held, repeated)]
    for pool, split in splits.items():
        name = "held-out" if split == "heldout" else split
        lines.append(f"{name} traces: {overlap_line(record[split])}")
        if cut := record["cut"][pool]:
            lines.append(f"{name} traces: cut at {record['max_tokens']} tokens: {cut}")
    return lines


def _without(trajectory: Trajectory, turns: set[int]) -> Trajectory:
    """Return `trajectory` with the observations of these turns as context; -1 is what precedes the first action."""
    segments = tuple(
        replace(segment, role=Role.CONTEXT) if turn in turns and segment.role is Role.ENV_OUTPUT else segment
        for turn, part in enumerate(split_at_actions(trajectory.segments), start=-1)
        for segment in part
    )
    return replace(trajectory, segments=segments)
