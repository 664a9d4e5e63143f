"""What the policies of a run make of its held-out pool and of its kept rollouts, for a report.

No environment of a user is started: pools are those that the run has kept, or those of the toy worlds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from echo_cli.config.model import SamplerConfig
from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.worlds import open_worlds
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import expert_pool, rollout_tasks
from echo_cli.evaluation.loaded_run import frozen_pools
from echo_cli.evaluation.measures import Predictions, Tokens, measure, predict, tokens_of
from echo_cli.evaluation.pass_at_k import outcomes_of, pass_at
from echo_cli.evaluation.records import HELDOUT, OOD, pool_title
from echo_cli.evaluation.token_losses import TokenLosses, token_losses
from echo_cli.models.loading import load_renderer, open_policy
from echo_cli.models.policy import TorchPolicy
from echo_cli.reports.content import Column, ObservationHeat, PageEpisode, PageText
from echo_cli.rollouts.limits import limits_of
from echo_cli.runs.directory import RunDirectory
from echo_cli.runs.pools import Pool, pairs_of, pool_of
from echo_cli.seeds import derive_seed
from echo_cli.statistics import Estimate
from echo_cli.text import escape_unprintable
from echo_cli.traces.training_data import POOL
from echo_cli.trajectory import Role, Trajectory, read_trajectories

_MOST_CHOICES = 3


@dataclass(frozen=True)
class KeptRollout:
    """An evaluation rollout that the run has kept, the step it is of, and its advantage where its group is whole."""

    trajectory: Trajectory
    step: int | None
    advantage: float | None


@dataclass(frozen=True)
class Found:
    """What the policies of a run, or the pools without them, add to its files."""

    columns: tuple[Column, ...] | None
    pairs: Mapping[str, int]
    checkpoint: int | None
    episodes: tuple[PageEpisode, ...]
    pool_episodes: int
    observations: tuple[ObservationHeat, ...]
    notes: tuple[str, ...]


def measured(
    run: RunDirectory, config: Config, rollouts: Sequence[KeptRollout], checkpoint: str | int | None, most: int
) -> Found:
    """Measure the run's checkpoints, and score at most `most` episodes of its pool and of `rollouts`.

    A run that is still trained may delete a checkpoint that was chosen and is not loaded yet: then others are chosen.

    Args:
        checkpoint: as in `report_run.read_run`.

    Raises:
        EchoError: a checkpoint or a log is damaged, or is not there; training deletes checkpoints faster than they
            are measured (exit code 1).
    """
    for _ in range(_MOST_CHOICES):
        there = set(run.checkpoints.steps())
        try:
            return _measured_once(run, config, rollouts, checkpoint, most)
        except (EchoError, OSError):
            if there <= set(run.checkpoints.steps()):
                raise
    raise EchoError(
        f"{escape_unprintable(run.path)} is being trained, and deletes its checkpoints before they are read",
        "report it when training has ended, or train with a larger checkpoint.keep or checkpoint.every",
        exit_code=1,
    )


def _measured_once(
    run: RunDirectory, config: Config, rollouts: Sequence[KeptRollout], checkpoint: str | int | None, most: int
) -> Found:
    if not run.checkpoints.steps() and checkpoint is None:
        return _without_policies(run, config, rollouts, most, ["it has no checkpoints here: no heat maps"])
    chosen = checkpoint
    notes = []
    if chosen is None:
        chosen = "best" if run.checkpoints.best_step() is not None else "latest"
        if chosen == "latest":
            notes.append("no checkpoint is marked as the best: the heat maps are of the latest")
    step = int(run.load_checkpoint(chosen)[1]["step"])
    if step == 0:
        notes.append("the checkpoint of the heat maps is that of step 0: before and after are one policy")
    try:
        policy, _ = open_policy(config.model_copy(update={"sampler": SamplerConfig()}))
    except EchoError as error:
        if checkpoint is not None:
            raise
        return _without_policies(run, config, rollouts, most, [f"its model cannot be loaded, so no heat maps: {error}"])
    return _with_policies(run, config, rollouts, policy, step, most, notes)


def _without_policies(
    run: RunDirectory, config: Config, rollouts: Sequence[KeptRollout], most: int, notes: Sequence[str]
) -> Found:
    """The held-out pool and the kept rollouts as text."""
    said, heldout = list(notes), pool_of(())
    if path := run.pool_paths.get("heldout"):
        heldout = pool_of(read_trajectories(path))
    elif config.environment.toy_terminal is not None:
        try:
            renderer = load_renderer(config)
        except EchoError as error:
            said.append(f"its tokenizer cannot be loaded, so its held-out pool is left out: {error}")
        else:
            with open_worlds(config) as worlds:
                heldout = expert_pool(worlds, worlds.tasks.heldout, renderer, limits_of(config))
    else:
        said.append(_NO_POOL)
    played = _chosen(heldout, rollouts, most)
    texts = [tuple(_text(segment.role, segment.channel, segment.text) for segment in t.segments) for t, _ in played]
    return Found(
        columns=None,
        pairs={},
        checkpoint=None,
        episodes=tuple(_episode(*entry, text) for entry, text in zip(played, texts, strict=True)),
        pool_episodes=len(heldout.trajectories),
        observations=(),
        notes=tuple(said),
    )


_NO_POOL = "its held-out pool is not in the run directory, and a report starts no environment to play it again"


def _with_policies(
    run: RunDirectory,
    config: Config,
    rollouts: Sequence[KeptRollout],
    policy: TorchPolicy,
    step: int,
    most: int,
    notes: Sequence[str],
) -> Found:
    """Measure the policy before training and those of the checkpoints, in `policy`, which is loaded for each in turn.

    As `eval-heldout` does, everything is over the pairs that training had not executed by the last of the steps.
    """
    best, last = run.checkpoints.best_step(), run.checkpoints.steps()[-1]
    labels = {"best": best, "last": last} | ({} if step in (best, last) else {"chosen": step})
    steps = {label: at for label, at in labels.items() if at is not None}
    said = list(notes)
    with _own_worlds(config) as worlds:
        pools = _pools(run, config, worlds, policy)
        if not pools:
            said.append(_NO_POOL)
        if not run.observations_path.is_file():
            said.append("it did not record what training executed: the figures are over all pairs, seen ones too")
        executed = pairs_of(run.read_observations(max(steps.values()))) if run.observations_path.is_file() else set()
        tokens = {name: tokens_of(pool, executed, policy.tokenizer) for name, pool in pools.items()}
        said += [f"no {pool_title(name)} pair is novel any more" for name, of in tokens.items() if not _novel(of)]
        plays = worlds is not None and config.evaluation.heldout_rollouts > 0 and config.sampler.kind != "openai"
        if not plays and any(row.get("heldout/pass_at_1") is not None for row in run.read_metrics()):
            said.append("pass@1 has no interval: its tasks are not played again for a report")
        heldout = pools.get(HELDOUT, pool_of(()))
        played = _chosen(heldout, rollouts, most)
        scored = [number for number, (trajectory, _) in enumerate(played) if _fits(trajectory, policy)]
        if len(scored) < len(played):
            other = len(played) - len(scored)
            said.append(
                f"episodes without heat, as they are not in the tokens of its model or too long for it: {other}"
            )

        def look(label: str, at: int) -> tuple[Column, Predictions | None]:
            predictions = {name: predict(policy, pool, tokens[name]) for name, pool in pools.items()}
            figures = _figures(tokens, predictions)
            if plays and worlds is not None:
                figures |= _pass_at_1(policy, worlds, config, at)
            return Column(label, at, figures), predictions.get(HELDOUT)

        def heats() -> dict[int, list[TokenLosses]]:
            return dict(zip(scored, token_losses(policy, [played[number][0] for number in scored]), strict=True))

        column, predicted_before = look("before", 0)
        columns, before = [column], heats()
        scores: dict[int, tuple[Column, Predictions | None]] = {}
        for at in sorted(set(steps.values()), key=lambda at: at == step):  # the one of the heat maps comes last
            policy.load(run.load_checkpoint(at)[0])
            scores[at] = look("", at)
        after = heats()
    columns += [Column(_label(label, at), at, scores[at][0].figures) for label, at in steps.items()]
    return Found(
        columns=tuple(_with_plain_pass_at_1(columns, run)) if not plays else tuple(columns),
        pairs={name: _novel(of) for name, of in tokens.items()},
        checkpoint=step,
        episodes=tuple(
            _episode(*entry, _texts(entry[0], before.get(number), after.get(number)))
            for number, entry in enumerate(played)
        ),
        pool_episodes=len(heldout.trajectories),
        observations=tuple(_observations(heldout, tokens.get(HELDOUT), executed, predicted_before, scores[step][1])),
        notes=tuple(said),
    )


@contextmanager
def _own_worlds(config: Config) -> Iterator[TaskSuite | None]:
    """The toy worlds of this process; None for every other environment, which belongs to the user."""
    if config.environment.toy_terminal is None:
        yield None
    else:
        with open_worlds(config) as worlds:
            yield worlds


def _pools(run: RunDirectory, config: Config, worlds: TaskSuite | None, policy: TorchPolicy) -> dict[str, Pool]:
    if worlds is not None:
        pools = frozen_pools(run, config, worlds, policy)
    else:
        pools = {name: pool_of(read_trajectories(path)) for name, path in run.pool_paths.items()}
    return {name: pools[name] for name in (HELDOUT, OOD, POOL) if name in pools and pools[name].trajectories}


def _chosen(heldout: Pool, rollouts: Sequence[KeptRollout], most: int) -> list[tuple[Trajectory, KeptRollout | None]]:
    """At most `most` episodes, half of them the pool's where there are as many of both. A pool has no rollouts.

    Of too many rollouts, which are in the order of training, a quarter are the first ones and the others the last.
    """
    from_pool = min(len(heldout.trajectories), max(most // 2, most - len(rollouts)))
    room = most - from_pool
    if len(rollouts) > room:
        first = room // 4
        rollouts = [*rollouts[:first], *rollouts[len(rollouts) - (room - first) :]]
    pool: list[tuple[Trajectory, KeptRollout | None]] = [(trajectory, None) for trajectory in heldout.trajectories]
    return [*pool[:from_pool], *((rollout.trajectory, rollout) for rollout in rollouts)]


def _fits(trajectory: Trajectory, policy: TorchPolicy) -> bool:
    """Whether the policy can score it: its ids are those of the vocabulary, and as many as the model takes."""
    ids = trajectory.token_ids
    return len(ids) <= policy.model.max_length and min(ids) >= 0 and max(ids) < policy.tokenizer.vocab_size


def _novel(tokens: Tokens) -> int:
    return len(set(tokens.span[tokens.headline].tolist()))


def _figures(tokens: Mapping[str, Tokens], predictions: Mapping[str, Predictions]) -> dict[str, Estimate]:
    figures: dict[str, Estimate] = {}
    for pool, of in tokens.items():
        if (found := measure(of, predictions[pool], of.headline)) is not None:
            figures |= {f"{pool}/{name}": estimate for name, estimate in found.estimates.items()}
    return figures


def _pass_at_1(policy: TorchPolicy, worlds: TaskSuite, config: Config, step: int) -> dict[str, Estimate]:
    """pass@1 of the rollouts that the evaluation at `step` sampled, sampled again: resampled over tasks."""
    tasks, rollouts = worlds.tasks.heldout, config.evaluation.heldout_rollouts
    seed = derive_seed(config.seed, "evaluate/heldout", step)
    played = rollout_tasks(policy, worlds, tasks, rollouts, config, seed)
    estimate = pass_at(outcomes_of(tasks, played), 1)
    return {} if estimate is None else {"heldout/pass_at_1": estimate}


def _with_plain_pass_at_1(columns: Sequence[Column], run: RunDirectory) -> Iterator[Column]:
    """The columns with the pass@1 that the run measured at their steps, where it did."""
    found = {row["step"]: row.get("heldout/pass_at_1") for row in run.read_metrics()}
    for column in columns:
        value = found.get(column.step)
        plain = {} if value is None else {"heldout/pass_at_1": Estimate(value, None, None)}
        yield Column(column.label, column.step, {**column.figures, **plain})


def _observations(
    pool: Pool,
    tokens: Tokens | None,
    executed: set[tuple[str, str]],
    before: Predictions | None,
    after: Predictions | None,
) -> Iterator[ObservationHeat]:
    if tokens is None or before is None or after is None:
        return
    inside = tokens.span >= 0
    spans = [span for of in pool.spans for span in of]
    nats = [np.bincount(tokens.span[inside], found.nats[inside], len(spans)) for found in (before, after)]
    for span, first, second in zip(spans, *nats, strict=True):
        command, output = span.pair
        yield ObservationHeat(
            command,
            output,
            span.count,
            float(first) / span.count,
            float(second) / span.count,
            span.pair not in executed,
        )


def _texts(
    trajectory: Trajectory, before: list[TokenLosses] | None, after: list[TokenLosses] | None
) -> tuple[PageText, ...]:
    if before is None or after is None:
        return tuple(_text(segment.role, segment.channel, segment.text) for segment in trajectory.segments)
    return tuple(
        _text(segment.role, segment.channel, segment.text)
        if first.nats is None
        else PageText(segment.role.name.lower(), segment.channel, first.pieces, first.nats, second.nats)
        for segment, first, second in zip(trajectory.segments, before, after, strict=True)
    )


def _text(role: Role, channel: str | None, text: str) -> PageText:
    return PageText(role.name.lower(), channel, (text,))


def _episode(trajectory: Trajectory, rollout: KeptRollout | None, texts: tuple[PageText, ...]) -> PageEpisode:
    return PageEpisode(
        origin="held-out pool" if rollout is None else "rollout",
        step=None if rollout is None else rollout.step,
        task_id=trajectory.task_id,
        source=trajectory.source,
        stop_reason=trajectory.stop_reason,
        reward=trajectory.reward,
        advantage=None if rollout is None else rollout.advantage,
        texts=texts,
    )


def _label(label: str, step: int) -> str:
    return f"step {step}" if label == "chosen" else label
