"""Measurements of a run's policies on its held-out pools and kept rollouts, for a report.

No user environment is started: pools are read from the run directory or replayed in the toy worlds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from echo_cli.environments.grading.grade import criteria_in, fault_in
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import criteria_in as criteria_of_run
from echo_cli.evaluation.evaluator import evaluation_seed, expert_pool, rollout_tasks
from echo_cli.evaluation.loaded_run import LoadedRun
from echo_cli.evaluation.measures import Predictions, Tokens, measure, tokens_of
from echo_cli.evaluation.pass_at_k import outcomes_of, pass_at, reward_estimate
from echo_cli.evaluation.pools.frozen import part_of
from echo_cli.evaluation.pools.joined import join_tokens
from echo_cli.evaluation.records import HELDOUT, OOD, plays_line, pool_title
from echo_cli.evaluation.run_evaluation import novel_pairs, predict_pools
from echo_cli.evaluation.token_losses import TokenLosses, token_losses
from echo_cli.models.backend import Policy
from echo_cli.reports.content import Column, ObservationHeat, PageEpisode, PageText
from echo_cli.rollouts.limits import limits_of
from echo_cli.runs.parts import base_of, with_unions
from echo_cli.runs.pools import Pool, pool_of
from echo_cli.statistics import Estimate
from echo_cli.text import counted, escape_unprintable
from echo_cli.traces.training_data import POOL
from echo_cli.trajectory import Role, Trajectory

_MOST_CHOICES = 3
_NO_POOL = "the run directory has no held-out pool, and a report does not start an environment to replay it"


@dataclass(frozen=True)
class KeptRollout:
    """An evaluation rollout that the run has kept."""

    trajectory: Trajectory
    step: int | None
    """Step after which it was played."""
    advantage: float | None
    """Advantage within its group; None without an RL term, or if the group is incomplete."""


@dataclass(frozen=True)
class Found:
    """Content of a report that is measured rather than read from the run's logs; fields as in `RunReport`."""

    columns: tuple[Column, ...] | None
    """Measured columns; None without policies."""
    pairs: Mapping[str, int]
    checkpoint: int | None
    episodes: tuple[PageEpisode, ...]
    pool_episodes: int
    """Number of episodes in the held-out pool."""
    observations: tuple[ObservationHeat, ...]
    notes: tuple[str, ...]


def measured(run: LoadedRun, rollouts: Sequence[KeptRollout], checkpoint: str | int | None, most: int) -> Found:
    """Measure the run's checkpoints, and score at most `most` episodes of its pool and of `rollouts`.

    A run in training may delete a chosen checkpoint before it is loaded; other checkpoints are then chosen.

    Args:
        checkpoint: as in `run_content.read_run`.

    Raises:
        EchoError: a checkpoint or a log is damaged or missing, or training deletes checkpoints before they can be
            measured (exit code 1).
    """
    checkpoints = run.directory.checkpoints
    for _ in range(_MOST_CHOICES):
        there = set(checkpoints.steps())
        try:
            return _measured_once(run, rollouts, checkpoint, most)
        except (EchoError, OSError):
            if there <= set(checkpoints.steps()):
                raise
    raise EchoError(
        f"{escape_unprintable(run.directory.path)} is being trained and deletes its checkpoints before they are read",
        "write the report after training, or train with a larger checkpoint.keep or checkpoint.every",
        exit_code=1,
    )


def _measured_once(run: LoadedRun, rollouts: Sequence[KeptRollout], checkpoint: str | int | None, most: int) -> Found:
    checkpoints = run.directory.checkpoints
    if not checkpoints.steps() and checkpoint is None:
        return _without_policies(run, rollouts, most, ["the run directory has no checkpoints: no heat maps"])
    chosen = checkpoint
    notes = []
    if chosen is None:
        chosen = "best" if checkpoints.best_step() is not None else "latest"
        if chosen == "latest":
            notes.append("no checkpoint is marked as best: the heat maps show the latest checkpoint")
    _, step = run.checkpoint(chosen)
    if step == 0:
        notes.append("the heat maps show the checkpoint of step 0: before and after are the same policy")
    try:
        policy = run.policy()
    except EchoError as error:
        if checkpoint is not None:
            raise
        reason = f"no heat maps, as the model cannot be loaded: {error.message} ({error.tip})"
        run.announce(reason)
        return _without_policies(run, rollouts, most, [reason])
    return _with_policies(run, rollouts, policy, step, most, notes)


def _without_policies(run: LoadedRun, rollouts: Sequence[KeptRollout], most: int, notes: Sequence[str]) -> Found:
    """Return the held-out pool and the kept rollouts as text."""
    heldout, missing = _pool_as_text(run)
    played = _chosen(heldout, rollouts, most)
    texts = [tuple(_text(segment.role, segment.channel, segment.text) for segment in t.segments) for t, _ in played]
    return Found(
        columns=None,
        pairs={},
        checkpoint=None,
        episodes=tuple(_episode(*entry, text) for entry, text in zip(played, texts, strict=True)),
        pool_episodes=len(heldout.trajectories),
        observations=(),
        notes=(*notes, *missing),
    )


def _pool_as_text(run: LoadedRun) -> tuple[Pool, list[str]]:
    """Return the held-out pool without loading a model; an empty pool has a note with the reason."""
    kept = run.kept_pool(HELDOUT)
    if kept is not None:
        return kept, []
    if run.config.names or run.config.environment.toy_terminal is None:
        return pool_of(()), [_NO_POOL]
    try:
        renderer = run.renderer
    except EchoError as error:
        return pool_of(()), [f"the held-out pool is omitted, as the tokenizer cannot be loaded: {error}"]
    return expert_pool(run.task_suite, run.task_suite.tasks.heldout, renderer, limits_of(run.config)), []


def _with_policies(
    run: LoadedRun,
    rollouts: Sequence[KeptRollout],
    policy: Policy,
    step: int,
    most: int,
    notes: Sequence[str],
) -> Found:
    """Measure the initial policy and the checkpoints, which are loaded into `policy` one after another.

    As in `eval-heldout`, all figures are over the pairs that training had not executed by the last of the steps.
    """
    steps = _steps(run, step)
    pools = _pools(run, policy)
    recorded = run.directory.observations_path.is_file()
    until = max(steps.values())
    parts = {
        name: tokens_of(pool, set(run.observed(until, name)) if recorded else set(), policy.tokenizer)
        for name, pool in pools.items()
    }
    tokens = with_unions(parts, join_tokens)
    heldout = part_of(pools, HELDOUT) or pool_of(())
    played = _chosen(heldout, rollouts, most)
    if run.config.objective.end_of_output:
        played = [(policy.mark_ends(trajectory), rollout) for trajectory, rollout in played]
    scored = [number for number, (trajectory, _) in enumerate(played) if _fits(trajectory, policy)]

    def look(at: int) -> tuple[dict[str, Estimate], Predictions | None]:
        who = f"step {at}" if at else "the initial policy"
        run.announce(f"{who} scores {', '.join(map(pool_title, pools))}" if pools else "no pool to measure")
        predictions = predict_pools(pools, policy, tokens)
        played = _task_figures(policy, run, who) if _plays(run) else {}
        return {**_figures(tokens, predictions), **played}, predictions.get(HELDOUT)

    def heats() -> dict[int, list[TokenLosses]]:
        run.announce(f"scoring {counted(len(scored), 'episode')} for the heat maps")
        return dict(zip(scored, token_losses(policy, [played[number][0] for number in scored]), strict=True))

    figures_before, predicted_before = look(0)
    before, found = heats(), {}
    for at in sorted(set(steps.values()), key=lambda at: at == step):  # the heat maps' checkpoint last
        run.load(policy, at)
        found[at] = look(at)
    after = heats()
    columns = [Column("before", 0, figures_before)]
    columns += [Column(_label(label, at), at, found[at][0]) for label, at in steps.items()]
    return Found(
        columns=tuple(columns if _plays(run) else _with_plain_task_figures(columns, run)),
        pairs={name: novel_pairs(of) for name, of in tokens.items()},
        checkpoint=step,
        episodes=tuple(
            _episode(*entry, _texts(entry[0], before.get(number), after.get(number)))
            for number, entry in enumerate(played)
        ),
        pool_episodes=len(heldout.trajectories),
        observations=tuple(_observations(heldout, tokens.get(HELDOUT), predicted_before, found[step][1])),
        notes=(*notes, *_remarks(run, tokens, len(played) - len(scored))),
    )


def _steps(run: LoadedRun, chosen: int) -> dict[str, int]:
    """Return the measured steps by label: the best, the last, and `chosen` if it is neither."""
    best, last = run.directory.checkpoints.best_step(), run.directory.checkpoints.steps()[-1]
    labels = {"best": best, "last": last} | ({} if chosen in (best, last) else {"chosen": chosen})
    return {label: step for label, step in labels.items() if step is not None}


def _pools(run: LoadedRun, policy: Policy) -> dict[str, Pool]:
    """Return the non-empty pools, without pools for which an environment would have to be started."""
    names = (HELDOUT, OOD, POOL)
    here = run.config.names or run.config.environment.toy_terminal is not None
    pools: Mapping[str, Pool | None] = (
        run.frozen_pools(policy) if here else {name: run.kept_pool(name, policy.renderer) for name in names}
    )
    found = {name: pool for name, pool in pools.items() if pool is not None and pool.trajectories}
    return {name: found[name] for base in names for name in found if base_of(name) == base}


def _plays(run: LoadedRun) -> bool:
    """Return whether the held-out tasks are replayed: only in this process, and only if training played them here."""
    config = run.config
    here = not config.names and config.environment.toy_terminal is not None and config.sampler.kind != "openai"
    return here and config.evaluation.heldout_rollouts > 0


def _remarks(run: LoadedRun, tokens: Mapping[str, Tokens], without_heat: int) -> Iterator[str]:
    """Yield notes on gaps in the measurements."""
    if not tokens:
        yield _NO_POOL
    if not run.directory.observations_path.is_file():
        yield "the run has no record of executed pairs: the figures are over all pairs, including seen pairs"
    for name, of in tokens.items():
        if not novel_pairs(of):
            yield f"training has executed every {pool_title(name)} pair: env-CE is over seen pairs, as none is novel"
    if not _plays(run) and any(row.get("heldout/pass_at_1") is not None for row in run.directory.read_metrics()):
        yield "pass@1 and mean reward have no intervals: their tasks are not replayed for a report"
    if without_heat:
        yield f"episodes without heat map, as they exceed the model's vocabulary or context: {without_heat}"


def _chosen(heldout: Pool, rollouts: Sequence[KeptRollout], most: int) -> list[tuple[Trajectory, KeptRollout | None]]:
    """Choose at most `most` episodes, half of them from the pool if both have enough; pool episodes have no rollout.

    If there are too many rollouts, a quarter of the chosen rollouts are the first of training, the others the last.
    """
    from_pool = min(len(heldout.trajectories), max(most // 2, most - len(rollouts)))
    room = most - from_pool
    if len(rollouts) > room:
        first = room // 4
        rollouts = [*rollouts[:first], *rollouts[len(rollouts) - (room - first) :]]
    pool: list[tuple[Trajectory, KeptRollout | None]] = [(trajectory, None) for trajectory in heldout.trajectories]
    return [*pool[:from_pool], *((rollout.trajectory, rollout) for rollout in rollouts)]


def _fits(trajectory: Trajectory, policy: Policy) -> bool:
    """Return whether the policy can score a trajectory: its ids are in the vocabulary, and it fits the context."""
    ids = trajectory.token_ids
    return len(ids) <= policy.model.max_length and min(ids) >= 0 and max(ids) < policy.tokenizer.vocab_size


def _figures(tokens: Mapping[str, Tokens], predictions: Mapping[str, Predictions]) -> dict[str, Estimate]:
    figures: dict[str, Estimate] = {}
    for pool, of in tokens.items():
        if (found := measure(of, predictions[pool], of.headline)) is not None:
            figures |= {f"{pool}/{name}": estimate for name, estimate in found.estimates.items()}
            parts = {key: measure(of, predictions[pool], mask) for key, mask in of.by_lines.items()}
            figures |= {f"{pool}/env_ce_{key}": part.estimates["env_ce"] for key, part in parts.items() if part}
        elif (met := measure(of, predictions[pool], of.seen)) is not None:
            figures[f"{pool}/env_ce_seen"] = met.estimates["env_ce"]
    return figures


def _task_figures(policy: Policy, run: LoadedRun, who: str) -> dict[str, Estimate]:
    """Return pass@1 and mean reward with intervals, from a replay of the rollouts of the run's evaluations."""
    suite, config = run.task_suite, run.config
    tasks, rollouts = suite.tasks.heldout, config.evaluation.heldout_rollouts
    run.announce(plays_line(who, len(tasks), HELDOUT, rollouts))
    played = rollout_tasks(policy, suite, tasks, rollouts, config, evaluation_seed(config, "heldout"))
    outcomes = outcomes_of(suite, tasks, played, config.evaluation.solved_at)
    found = {"heldout/pass_at_1": pass_at(outcomes, 1), "heldout/mean_reward": reward_estimate(outcomes)}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _with_plain_task_figures(columns: Sequence[Column], run: LoadedRun) -> Iterator[Column]:
    """Yield the columns with pass@1, mean reward and criteria as the run measured them, without intervals."""
    rows = {row["step"]: row for row in run.directory.read_metrics()}
    parts = (HELDOUT, *(f"{HELDOUT}/{name}" for name in run.config.names))
    measures = ("pass_at_1", "mean_reward", *(f"criterion_{name}" for name in criteria_of_run(run.config)))
    names = [f"{part}/{measure}" for part in parts for measure in measures]
    for column in columns:
        found = {name: rows.get(column.step, {}).get(name) for name in names}
        plain = {name: Estimate(value, None, None) for name, value in found.items() if value is not None}
        yield Column(column.label, column.step, {**column.figures, **plain})


def _observations(
    pool: Pool,
    tokens: Tokens | None,
    before: Predictions | None,
    after: Predictions | None,
) -> Iterator[ObservationHeat]:
    if tokens is None or before is None or after is None:
        return
    inside, novel = tokens.span >= 0, set(tokens.span[tokens.headline].tolist())
    spans = [span for of in pool.spans for span in of]
    nats = [np.bincount(tokens.span[inside], found.nats[inside], len(spans)) for found in (before, after)]
    for number, (span, first, second) in enumerate(zip(spans, *nats, strict=True)):
        command, output = span.pair
        yield ObservationHeat(
            command,
            output,
            span.count,
            float(first) / span.count,
            float(second) / span.count,
            number in novel,
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
        criteria=criteria_in(trajectory.meta),
        grader_fault=fault_in(trajectory.meta),
    )


def _label(label: str, step: int) -> str:
    return f"step {step}" if label == "chosen" else label
