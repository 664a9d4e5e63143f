"""Traces as trajectories in the policy's tokens: the traces of a step, and the held-out pools.

A trace is re-encoded (`retokenize.render_trace`), so it is one sequence, whichever model recorded it: thinking that
later turns dropped is omitted, and an action is its turn's command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from echo_cli.config.episodes.traces import TracesConfig
from echo_cli.environments.tasks import Split
from echo_cli.files import Row
from echo_cli.models.distributed.ranks import ALONE, Ranks
from echo_cli.models.renderer import Renderer
from echo_cli.seeds import epoch_sample
from echo_cli.trace import Trace
from echo_cli.traces.corpus import TraceCorpus, observations, overlap_line
from echo_cli.traces.retokenize import render_trace, truncated
from echo_cli.trajectory import Role, Trajectory, split_at_actions

POOL = "traces"
"""Name of the pool of held-out traces in a run that also has an environment's pools."""


FIT_TIP = "raise traces.max_tokens, choose a model with a longer context, or leave out traces with a long opening"
"""What to do about traces whose opening fills the maximum length."""


@dataclass(frozen=True)
class Traces:
    """Traces that a run trains on."""

    corpus: TraceCorpus
    settings: TracesConfig
    max_tokens: int
    """Maximum length of a trace, tokens of the policy."""


@dataclass(frozen=True)
class RenderedTraces:
    """Traces as trajectories that get no RL term."""

    trajectories: tuple[Trajectory, ...]
    cut: int
    """Number of truncated traces, including those without a trajectory because their first segment does not fit."""
    emptied: int = 0
    """Number of held-out traces that have something to measure, all of it beyond the maximum length."""


def render_and_truncate(traces: Iterable[Trace], renderer: Renderer, max_tokens: int) -> RenderedTraces:
    """Encode `traces` with `renderer`, each truncated to `max_tokens`, with `source` set to `trace`."""
    whole = [replace(render_trace(trace, renderer), source="trace") for trace in traces]
    found = [truncated(trajectory, renderer.tokenizer, max_tokens) for trajectory in whole]
    kept = tuple(trajectory for trajectory in found if trajectory is not None)
    return RenderedTraces(kept, sum(len(trajectory) > max_tokens for trajectory in whole))


def traces_of_step(traces: Traces, renderer: Renderer, seed: int, step: int, ranks: Ranks = ALONE) -> RenderedTraces:
    """Return the traces of a 0-based `step`, drawn in shuffled epochs from the training split; each rank encodes some.

    Raises:
        EchoError: as `TraceCorpus.read`.
    """
    entries = epoch_sample(traces.corpus.of("train"), traces.settings.per_step, seed, "traces", step)
    found = ranks.map(
        lambda share: [render_and_truncate([of], renderer, traces.max_tokens) for of in traces.corpus.read(share)],
        entries,
    )
    return RenderedTraces(tuple(each for one in found for each in one.trajectories), sum(one.cut for one in found))


def held_out(traces: Traces, renderer: Renderer, split: Split) -> RenderedTraces:
    """Return the traces of a held-out split; observations that also occur in training become context.

    So do all observations of a trace that nearly repeats a training trace.

    Raises:
        EchoError: as `TraceCorpus.read`.
    """
    corpus, kept, cut, emptied = traces.corpus, [], 0, 0
    entries = corpus.of(split)
    for entry, trace in zip(entries, corpus.read(entries), strict=True):
        found = render_and_truncate([trace], renderer, traces.max_tokens)
        cut += found.cut
        # Match by turn: the text of a truncated observation no longer has the hash of the whole.
        whole = observations(trace)
        seen = {turn for turn, hashes in whole if entry.near_copy or corpus.sees(hashes)}
        fitting = [_without(trajectory, seen) for trajectory in found.trajectories]
        emptied += any(turn >= 0 and turn not in seen for turn, _ in whole) and not any(map(_has_answers, fitting))
        kept += fitting
    return RenderedTraces(tuple(kept), cut, emptied)


def pool_splits(*, alone: bool) -> dict[str, Split]:
    """Return the split of each pool of held-out traces, by pool name.

    Args:
        alone: whether the run has no environment; with an environment, the traces are one pool beside its pools.
    """
    return {"validation": "validation", "heldout": "heldout"} if alone else {POOL: "heldout"}


def traces_record(traces: Traces, pools: Mapping[str, RenderedTraces]) -> Row:
    """Return the record of a run's traces for environment.json: files, splits, overlap, truncated traces per pool."""
    counts = {name: {each: getattr(pool, name) for each, pool in pools.items()} for name in ("cut", "emptied")}
    return {**traces.corpus.to_json(), "max_tokens": traces.max_tokens, **counts}


def trace_notices(record: Row, splits: Mapping[str, Split]) -> list[str]:
    """Describe a run's traces from their record, one notice per line: counts, overlap, and truncation per pool."""
    repeated = f"; {record['repeated']} repeated" if record["repeated"] else ""
    held = (record[name]["traces"] for name in ("validation", "heldout"))
    lines = ["traces: {} training, {} validation, {} held-out{}".format(record["train"], *held, repeated)]
    for pool, split in splits.items():
        name = "held-out" if split == "heldout" else split
        lines.append(f"{name} traces: {overlap_line(record[split])}")
        if cut := record["cut"][pool]:
            lines.append(f"{name} traces: {cut} truncated to {record['max_tokens']} tokens")
        if emptied := record.get("emptied", {}).get(
            pool
        ):  # the record of a run of an earlier version has no such count
            of, most = record[split]["traces"], record["max_tokens"]
            lines.append(
                f"warning: {name} traces: {emptied} of {of} have no observation within {most} tokens: {FIT_TIP}"
            )
    return lines


def _has_answers(trajectory: Trajectory) -> bool:
    """Return whether an action is followed by an observation."""
    return any(segment.token_ids for exchange in trajectory.exchanges() for segment in exchange.outputs)


def _without(trajectory: Trajectory, turns: set[int]) -> Trajectory:
    """Turn the observations of these turns (0-based; -1 is before the first action) into context."""
    segments = tuple(
        replace(segment, role=Role.CONTEXT) if turn in turns and segment.role is Role.ENV_OUTPUT else segment
        for turn, part in enumerate(split_at_actions(trajectory.segments), start=-1)
        for segment in part
    )
    return replace(trajectory, segments=segments)
