"""Comparison of two runs on the same tasks and frozen pools, over the pairs that neither run has executed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from echo_cli.config.loader import parse_override
from echo_cli.config.schema import flat_config
from echo_cli.errors import EchoError
from echo_cli.evaluation.loaded_run import LoadedRun
from echo_cli.evaluation.measures import env_ce_difference, tokens_of
from echo_cli.evaluation.pass_at_k import compare_outcomes
from echo_cli.evaluation.pools.joined import join_tokens
from echo_cli.evaluation.records import Difference, Evaluation
from echo_cli.evaluation.run_evaluation import (
    cut_notes,
    met_notes,
    novel_pairs,
    report_policy,
    rollouts_and_ks,
    score_pools,
)
from echo_cli.models.backend import Policy
from echo_cli.runs.directory import open_run
from echo_cli.runs.parts import with_unions
from echo_cli.text import escape_unprintable
from echo_cli.traces.training_data import POOL

# Config keys that determine the built-in pools, their tasks, and how a task is played and counted as solved.
_POOL_KEYS = ("environment.", "environments.", "rollout.temperature", "rollout.max_", "evaluation.solved_at")


def overrides_of(runs: Sequence[Path], overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each run's config.

    Those of Hugging Face models, such as --trust-remote-code, hold for the runs that have one; if none has, for all, so
    that the config says that they have no effect.

    Raises:
        EchoError: a path is not a run, or its config cannot be read.
    """
    kinds = [open_run(run).read_config().model.kind for run in runs]
    of_model = [word for word in overrides if parse_override(word).keys[0] == "model"] if "hf" in kinds else []
    return [[word for word in overrides if kind == "hf" or word not in of_model] for kind in kinds]


def compare_runs(
    runs: tuple[LoadedRun, LoadedRun], *, checkpoint: str | int, rollouts: int | None, pass_k: Sequence[int] | None
) -> Evaluation:
    """Compare a checkpoint of run A with a checkpoint of run B.

    Args:
        checkpoint: "best" or "latest" of each run, or one step for both.
        rollouts, pass_k: as in `evaluate_run`.

    Raises:
        EchoError: a run, checkpoint or pool does not exist; the runs differ in their pools, tasks or tokenizers; or a
            pool would be truncated to contexts of different lengths.
    """
    first, second = runs
    count, ks = rollouts_and_ks(runs, rollouts, pass_k)
    for run in runs:
        run.samples_as_trained = count > 0
        if count:
            run.obtain_consent()
    _check_same_pools(first, second)
    policy_a, step_a = _checkpoint(first, checkpoint)
    policy_b, step_b = _checkpoint(second, checkpoint)
    executed = {name: {*first.observed(step_a, name), *second.observed(step_b, name)} for name in first.pools}
    parts = {name: tokens_of(pool, executed[name], first.initial.tokenizer) for name, pool in first.pools.items()}
    tokens = with_unions(parts, join_tokens)
    labels = f"A: {escape_unprintable(first.name)}", f"B: {escape_unprintable(second.name)}"
    compared = tuple(zip((policy_a, policy_b), labels, strict=True))
    predictions_a, predictions_b = (score_pools(first, policy, tokens, who) for policy, who in compared)
    played_a, played_b = (first.play(policy, count, who) for policy, who in compared)
    both = played_a.keys() & played_b.keys()
    return Evaluation(
        kind="runs",
        policies=[
            report_policy(first.name, labels[0], step_a, predictions_a, tokens, played_a, ks),
            report_policy(second.name, labels[1], step_b, predictions_b, tokens, played_b, ks),
        ],
        novel_pairs={name: novel_pairs(of) for name, of in tokens.items()},
        differences=[
            Difference(
                name,
                labels[1],
                env_ce=env_ce_difference(of, predictions_a[name], predictions_b[name], of.headline),
                tasks=compare_outcomes(played_a[name], played_b[name]) if name in both else None,
            )
            for name, of in tokens.items()
        ],
        notes=[*cut_notes(first.pools, first.initial.model.max_length), *met_notes(tokens), *first.notes],
    )


def _checkpoint(run: LoadedRun, which: str | int) -> tuple[Policy, int]:
    """Return the policy of a checkpoint and its step."""
    folder, step = run.checkpoint(which)
    purpose = f"for step {step} of {escape_unprintable(run.name)}"
    return run.policy(folder, purpose), step


def _check_same_pools(first: LoadedRun, second: LoadedRun) -> None:
    before, now = (flat_config(run.config.model_dump(mode="json")) for run in (first, second))
    for key in sorted(before.keys() | now.keys()):
        if key.startswith(_POOL_KEYS) and not key.endswith(".weight") and before.get(key) != now.get(key):
            raise EchoError(
                f"the runs differ in their pools and tasks: {key} is {before.get(key)} in A and {now.get(key)} in B",
                "compare runs with the same environment and limits",
            )
    if first.config.traces is not None and second.config.traces is not None:
        held = [run.pools.get(POOL) or run.heldout for run in (first, second)]
        if held[0].trajectories != held[1].trajectories:
            raise EchoError(
                "the runs hold out different traces: trace files, split or truncation differ",
                "compare runs trained on the same traces",
            )
    if first.initial.tokenizer.to_json() != second.initial.tokenizer.to_json():
        raise EchoError(
            "the runs have different tokenizers: model.path is "
            f"{escape_unprintable(first.config.model.path)} in A and "
            f"{escape_unprintable(second.config.model.path)} in B",
            "nats per token are not comparable across tokenizers: evaluate each run alone and compare bits per byte",
        )
    contexts = [run.initial.model.max_length for run in (first, second)]
    if contexts[0] != contexts[1] and any(pool.cut for run in (first, second) for pool in run.pools.values()):
        raise EchoError(
            f"a pool exceeds the models' context, {contexts[0]} tokens in A and {contexts[1]} in B",
            "the pool would be truncated to different lengths: compare on pools with shorter trajectories",
        )
