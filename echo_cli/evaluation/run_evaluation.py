"""Evaluation of a run's checkpoints, its initial policy and baselines, over the same tokens of frozen pools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from echo_cli.errors import install_command
from echo_cli.evaluation.baselines import (
    ORDER,
    compress,
    compressors,
    copy_predictions,
    exchange_tokens,
    fit_copying,
    fit_ngram,
    has_zstd,
    ngram_predictions,
)
from echo_cli.evaluation.loaded_run import LoadedRun, load_run
from echo_cli.evaluation.measures import (
    Bools,
    Measures,
    Predictions,
    Tokens,
    measure,
    pairs_in,
    predict,
    reliability,
    tokens_of,
)
from echo_cli.evaluation.pass_at_k import TaskOutcome, clusters_of, criterion_estimates, pass_at, reward_estimate
from echo_cli.evaluation.pools.joined import join_predictions, join_tokens
from echo_cli.evaluation.records import (
    HEADLINE,
    INITIAL,
    LINES,
    POLICY,
    Evaluation,
    Measured,
    ModelReport,
    Passed,
    TaskRow,
    pool_title,
)
from echo_cli.evaluation.token_losses import find_output, read_out
from echo_cli.models.backend import Policy
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.runs.parts import with_unions
from echo_cli.runs.pools import Pair, Pool

POSITIONS = (("0", 0), ("1-3", 1), ("4-15", 4), ("16-63", 16), ("64+", 64))
"""Buckets of the position in an output: title and lowest position."""

_AT_SERVICE = (
    "a Tinker service does not tell the most probable tokens: no accuracy, calibration or readout of an output"
)
_FILL_POOL = "list actions in environment.explorer, or `actions` of tasks, and train again"


def evaluate_run(
    path: Path,
    *,
    checkpoints: Sequence[str | int] = ("best",),
    rollouts: int | None = None,
    pass_k: Sequence[int] | None = None,
    command: str | None = None,
    pool_folders: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    announce: Callable[[str], object] = lambda _: None,
) -> Evaluation:
    """Measure checkpoints of the run at `path`.

    The headline is over the pairs that training had not executed by the last of the checkpoints. All checkpoints, the
    initial policy and the baselines are measured over the same tokens.

    Args:
        checkpoints: "best", "latest", "all" or steps.
        rollouts: Number of rollouts per held-out task; 0 plays none; None for the run's `evaluation.heldout_rollouts`,
            or the highest k.
        pass_k: values of k for pass@k, each at most `rollouts`; None for 1 and `rollouts`.
        command: the held-out command to read out; None for the first novel `grep` of the pool.
        pool_folders: folders of pools to measure besides the run's own.
        overrides: overrides of the run's config, as in `load_run`.
        announce: called with a line before each slow part.

    Raises:
        EchoError: the run, a checkpoint or a pool does not exist, `command` is not in the held-out pool, or the run is
            from elsewhere and would play in an environment that is not the toy terminal.
    """
    with load_run(path, overrides=overrides, pool_folders=pool_folders) as run:
        run.announce = announce
        return evaluate_loaded(run, checkpoints=checkpoints, rollouts=rollouts, pass_k=pass_k, command=command)


def evaluate_loaded(
    run: LoadedRun,
    *,
    checkpoints: Sequence[str | int],
    rollouts: int | None,
    pass_k: Sequence[int] | None,
    command: str | None,
) -> Evaluation:
    """Measure checkpoints of an open run; arguments and errors as in `evaluate_run`."""
    count, ks = rollouts_and_ks([run], rollouts, pass_k)
    run.samples_as_trained = count > 0
    if count:
        run.obtain_consent()
    return _evaluate(run, checkpoints, count, ks, command)


def rollouts_and_ks(
    runs: Sequence[LoadedRun], rollouts: int | None, pass_k: Sequence[int] | None
) -> tuple[int, Sequence[int]]:
    """Return the number of rollouts per task and the values of k; the defaults are as many rollouts as in training."""
    if rollouts is None:
        rollouts = max(*(run.config.evaluation.heldout_rollouts for run in runs), *(pass_k or ()), 0)
    return rollouts, sorted(set(pass_k or (1, rollouts))) if rollouts else ()


def _evaluate(
    run: LoadedRun, checkpoints: Sequence[str | int], rollouts: int, pass_k: Sequence[int], command: str | None
) -> Evaluation:
    steps = run.checkpoint_steps(checkpoints)
    executed = run.observed(steps[-1])
    output = None
    if run.heldout.trajectories or command is not None:
        output = find_output(run.heldout, command, executed, "held-out", _FILL_POOL)

    tokens = pool_tokens(run, steps[-1])
    who = "the initial policy"
    played = run.play(run.initial, rollouts, who)
    predictions = score_pools(run, run.initial, tokens, who)
    policies = [report_policy(run.name, INITIAL, 0, predictions, tokens, played, pass_k)]
    policy, played_after = run.policy(purpose="for the checkpoints"), played
    for step in steps:
        run.load(policy, step)
        played_after = run.play(policy, rollouts, f"step {step}")
        predictions = score_pools(run, policy, tokens, f"step {step}")
        detailed = step == steps[-1]
        policies.append(
            report_policy(run.name, POLICY, step, predictions, tokens, played_after, pass_k, detailed=detailed)
        )
    at_service = run.config.service is not None
    readout = None if output is None or at_service else read_out(output, run.initial, policy)
    validation = tokens_of(run.validation, (), policy.tokenizer)
    return Evaluation(
        kind="run",
        policies=policies,
        novel_pairs={name: novel_pairs(of) for name, of in tokens.items()},
        baselines=measure_baselines(run.name, tokens, policy.tokenizer, executed, validation),
        tasks=[row for pool in played for row in _task_rows(pool, played[pool], played_after[pool])],
        notes=[
            *cut_notes(run.pools, policy.model.max_length),
            *met_notes(tokens),
            *([] if output else [f"the held-out pool is empty: {_FILL_POOL}"]),
            *([_AT_SERVICE] if at_service else []),
            *run.notes,
            *_notes(executed, steps[-1]),
        ],
        readout=readout,
    )


def pool_tokens(run: LoadedRun, step: int) -> dict[str, Tokens]:
    """Return the tokens of the run's pools, and of all environments together, with what training met by `step`."""
    found = {
        name: tokens_of(pool, set(run.observed(step, name)), run.initial.tokenizer) for name, pool in run.pools.items()
    }
    return with_unions(found, join_tokens)


def predict_pools(pools: Mapping[str, Pool], policy: Policy, tokens: Mapping[str, Tokens]) -> dict[str, Predictions]:
    """Predict every pool's tokens with `policy`; those of all environments together are predicted in their parts."""
    found = {name: predict(policy, pools[name], of) for name, of in tokens.items() if name in pools}
    return with_unions(found, join_predictions)


def score_pools(run: LoadedRun, policy: Policy, tokens: Mapping[str, Tokens], who: str) -> dict[str, Predictions]:
    """Predict the tokens of the run's pools with `policy`; `who` names it in the line that announces this."""
    run.announce(f"{who} scores {', '.join(map(pool_title, run.pools))}")
    return predict_pools(run.pools, policy, tokens)


def cut_notes(pools: Mapping[str, Pool], context: int) -> list[str]:
    """Describe, per pool, how many trajectories were truncated to the model's context of `context` tokens."""
    return [
        f"{pool_title(name)}: trajectories truncated to the model's context of {context} tokens: {pool.cut}"
        for name, pool in pools.items()
        if pool.cut
    ]


def met_notes(tokens: Mapping[str, Tokens]) -> list[str]:
    """Describe the pools without a novel pair, whose env-CE is over seen pairs alone."""
    return [
        f"{pool_title(name)}: training has executed every pair; no pair is novel, and env-CE is over seen pairs alone"
        for name, of in tokens.items()
        if of.seen.any() and not of.headline.any()
    ]


def novel_pairs(tokens: Tokens) -> int:
    """Return the number of pairs in the headline."""
    return pairs_in(tokens, tokens.headline)


def groups(tokens: Tokens) -> Iterator[tuple[str, str, Bools]]:
    """Yield the groups of tokens by which measures are broken down, as (group, key, mask of the tokens).

    All groups cover the headline's tokens only, except that `role` adds the warnings and `pair` the seen pairs.
    Pairs of the group `lines` are novel, and training has observed all their lines under other commands, or not.
    """
    headline, warning = tokens.headline, tokens.role == "warning"
    measured = headline | warning
    for role, channel in sorted(Counter(zip(tokens.role[measured], tokens.channel[measured], strict=True))):
        name = f"{role} {channel}".strip()
        yield "role", name, measured & (tokens.role == role) & (tokens.channel == channel)
    for command, _ in Counter(tokens.command[headline]).most_common():
        yield "command", command, headline & (tokens.command == command)
    for status in sorted(set(tokens.exit_status[headline]), key=lambda text: (not text.isdigit(), len(text), text)):
        yield "exit_status", status, headline & (tokens.exit_status == status)
    for key, chosen in (("novel", headline), ("seen", tokens.seen)):
        if chosen.any():
            yield "pair", key, chosen
    yield from line_groups(tokens)
    bucket = np.searchsorted([first for _, first in POSITIONS], tokens.position, side="right") - 1
    for number, (name, _) in enumerate(POSITIONS):
        if (chosen := headline & (bucket == number)).any():
            yield "position", name, chosen
    for key, mask in (("copyable", tokens.copyable), ("not copyable", ~tokens.copyable)):
        if (chosen := headline & mask).any():
            yield "copyable", key, chosen


def line_groups(tokens: Tokens) -> Iterator[tuple[str, str, Bools]]:
    """Yield the group `lines` of `groups`."""
    for key, chosen in tokens.by_lines.items():
        if chosen.any():
            yield LINES, key, chosen


def report_policy(
    run: str,
    model: str,
    step: int | None,
    predictions: Mapping[str, Predictions],
    tokens: Mapping[str, Tokens],
    played: Mapping[str, Sequence[TaskOutcome]],
    pass_k: Sequence[int],
    *,
    detailed: bool = True,
) -> ModelReport:
    """Measure one policy on every pool; without `detailed`, headlines and pass@k only.

    Args:
        run, model, step: as in `ModelReport`.
    """
    measured, bins = [], {}
    for pool, of in tokens.items():
        chosen: list[tuple[str, str, Bools]] = [(HEADLINE, "", of.headline)]
        if detailed:
            chosen += groups(of)
            bins[pool] = reliability(predictions[pool], of.headline)
        elif not of.headline.any():
            chosen.append(("pair", "seen", of.seen))
        for group, key, mask in chosen:
            if (found := measure(of, predictions[pool], mask)) is not None:
                measured.append(Measured(pool, group, key, found))
    passed = [
        Passed(pool, k, estimate, *_sizes(outcomes))
        for pool, outcomes in played.items()
        for k in pass_k
        if (estimate := pass_at(outcomes, k)) is not None
    ]
    rewards = {pool: mean for pool, outcomes in played.items() if (mean := reward_estimate(outcomes)) is not None}
    criteria = {pool: criterion_estimates(outcomes) for pool, outcomes in played.items()}
    return ModelReport(run, step, model, measured, passed, bins, rewards=rewards, criteria=criteria)


def _sizes(outcomes: Sequence[TaskOutcome]) -> tuple[int, int, int]:
    """Return the numbers of tasks, of their clusters, and of rollouts per task."""
    return len(outcomes), clusters_of(outcomes), max(len(outcome.rewards) for outcome in outcomes)


def measure_baselines(
    run: str,
    tokens: Mapping[str, Tokens],
    tokenizer: Tokenizer,
    observed: Sequence[Pair] | None,
    validation: Tokens,
) -> list[ModelReport]:
    """Measure the headline of every baseline, and its two parts by lines.

    Args:
        tokens: tokens of the pools under `tokenizer`.
        observed: pairs on which the n-gram models and compressors are fitted; None omits the baselines that need pairs.
        validation: tokens under `tokenizer` on which copying is fitted.
    """
    exchanges = exchange_tokens(observed or (), tokenizer)
    orders = {"uniform": 1} if observed is None else {f"{ORDER}-gram": ORDER, "unigram": 1}
    ngrams = {name: fit_ngram(exchanges, order, tokenizer.vocab_size) for name, order in orders.items()}
    *_, unigram = ngrams.values()
    mass = fit_copying(validation)
    transcript = None if observed is None else "".join(f"{command}\n{output}" for command, output in observed).encode()

    def predicting(predict: Callable[[Tokens], Predictions]) -> Measuring:
        predictions = {pool: predict(of) for pool, of in tokens.items()}
        return lambda pool, chosen: measure(tokens[pool], predictions[pool], chosen)

    def compressing(size: Callable[[bytes], int]) -> Measuring:
        return lambda pool, chosen: compress(size, tokens[pool], chosen, tokenizer)

    measuring = {
        **{label: predicting(partial(ngram_predictions, model)) for label, model in ngrams.items()},
        "copying": predicting(partial(copy_predictions, mass, unigram)),
        **{label: compressing(size) for label, size in compressors(transcript).items()},
    }
    return [ModelReport(run, None, label, list(_headlines(tokens, each))) for label, each in measuring.items()]


Measuring = Callable[[str, Bools], Measures | None]
"""Measures of a model over the masked tokens of the named pool."""


def _headlines(tokens: Mapping[str, Tokens], measuring: Measuring) -> Iterator[Measured]:
    """Yield a model's headline of each pool, and its two parts by lines."""
    for pool, of in tokens.items():
        for group, key, chosen in ((HEADLINE, "", of.headline), *line_groups(of)):
            if (found := measuring(pool, chosen)) is not None:
                yield Measured(pool, group, key, found)


def missing_baselines() -> list[str]:
    """Return notes on baselines whose package is not installed."""
    return [] if has_zstd() else [f"zstd is omitted, as it is not installed: {install_command('zstd')}"]


def _task_rows(pool: str, before: Sequence[TaskOutcome], after: Sequence[TaskOutcome]) -> list[TaskRow]:
    return [
        TaskRow(pool, first.task_id, first.family, first.rollouts, first.solved, second.solved)
        for first, second in zip(before, after, strict=True)
    ]


def _notes(executed: Sequence[Pair], step: int) -> list[str]:
    notes = []
    if not executed:
        notes.append(
            f"no training observations by step {step}: n-gram models are uniform, compressors have no dictionary"
        )
    return [*notes, *missing_baselines()]
