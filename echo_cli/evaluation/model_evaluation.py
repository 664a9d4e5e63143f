"""Evaluation of models on frozen pools without a run: only the pairs that the baselines are fitted on count as seen.

Models are loaded one after another, and each tokenizes the pools itself. Models with different tokens are comparable in
bits per byte, because all models are measured over the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.evaluation.baselines import ORDER
from echo_cli.evaluation.loaded_run import load_pool, pool_columns
from echo_cli.evaluation.measures import Predictions, Tokens, bits_per_byte_difference, env_ce_difference, tokens_of
from echo_cli.evaluation.named_models import NamedModel, contenders, loading_config
from echo_cli.evaluation.records import INITIAL, POLICY, Difference, Evaluation, LoadedModel, ModelReport
from echo_cli.evaluation.run_evaluation import (
    cut_notes,
    measure_baselines,
    missing_baselines,
    novel_pairs,
    predict_pools,
    report_policy,
)
from echo_cli.evaluation.token_losses import find_output, read
from echo_cli.models.loading import open_policy
from echo_cli.models.renderer import Renderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.runs.pool_folder import read_pool
from echo_cli.runs.pools import Pair, Pool, pool_of
from echo_cli.text import counted, escape_unprintable
from echo_cli.trajectory import Role

_COMPRESSORS = [name + known for name in ("gzip", "zstd") for known in ("", " + observations")]
_TAKEN = frozenset({INITIAL, POLICY, "difference", "uniform", "unigram", f"{ORDER}-gram", "copying", *_COMPRESSORS})
"""Names of the other rows of a table, which no model's label may take."""


_FILL_POOL = "build it again with `echo-cli pool build`, from an actor that observes something"


@dataclass(frozen=True)
class ScoredModel:
    """A model's predictions of the pools in its own tokens, without its weights."""

    contender: NamedModel
    device: str
    renderer: Renderer
    context: int
    """Maximum sequence length, tokens."""
    pools: Mapping[str, Pool]
    tokens: Mapping[str, Tokens]
    predictions: Mapping[str, Predictions]
    actual: str
    reading: Mapping[str, Any]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.renderer.tokenizer


def evaluate_models(
    paths: Sequence[str],
    *,
    config: str | None,
    overrides: Sequence[str],
    pool_folders: Sequence[Path],
    fit_folder: Path | None,
    command: str | None,
    announce: Callable[[str], None],
) -> Evaluation:
    """Measure the models of `paths` on the pools, each against the first.

    Args:
        config, overrides: settings for loading models and rendering conversations; see `loading_config`.
        fit_folder: a pool whose pairs serve as training observations: baselines are fitted on them, and they are not
            novel in any other pool.
        command: the command of the first pool to read out; None for the first novel `grep`.
        announce: called with a line about each model after it is loaded.

    Raises:
        EchoError: a model, pool, config or command does not exist or is invalid, or a model's outputs in a pool differ
            from the first model's.
    """
    columns = pool_columns(pool_folders)
    chosen = contenders(paths, _TAKEN)
    base = loading_config(config, overrides, chosen)
    played = {name: pool_of(read_pool(folder)[1]) for name, folder in columns.items()}
    observed = None if fit_folder is None else _pairs(pool_of(read_pool(fit_folder)[1]))
    seen = frozenset(observed or ())
    first_column = next(iter(columns))
    wanted = find_output(played[first_column], command, seen, first_column, _FILL_POOL).pair[0]

    scored: list[ScoredModel] = []
    for contender in chosen:
        scored.append(_score(contender, base, columns, seen, wanted, announce))
        check_same_outputs(scored[0], scored[-1])
    first = scored[0]
    fitting = Pool((), ()) if fit_folder is None else load_pool(fit_folder, first.renderer)
    same = [_same_tokens(first, other) for other in scored]
    return Evaluation(
        kind="models",
        policies=[_report(model, same_tokens) for model, same_tokens in zip(scored, same, strict=True)],
        fit_pool=None if fit_folder is None else escape_unprintable(fit_folder.resolve().name),
        pairs={name: len(pool.pairs) for name, pool in first.pools.items()},
        novel_pairs={name: novel_pairs(of) for name, of in first.tokens.items()},
        differences=[
            _difference(first, other, name, same_tokens)
            for other, same_tokens in zip(scored[1:], same[1:], strict=True)
            for name in columns
        ],
        baselines=measure_baselines(
            "", first.tokens, first.tokenizer, observed, tokens_of(fitting, (), first.tokenizer)
        ),
        notes=[*_notes(scored, same, seen), *missing_baselines()],
        readout={
            "command": wanted,
            "actual": first.actual,
            "models": [{"model": model.contender.label, **model.reading} for model in scored],
        },
    )


def check_same_outputs(first: ScoredModel, other: ScoredModel) -> None:
    """Check that two models are measured on the same pairs and bytes of every trajectory.

    Raises:
        EchoError: pairs or bytes differ.
    """
    for name, pool in first.pools.items():
        texts = [
            [[(span.pair, span.output_bytes) for span in spans] for spans in of.spans]
            for of in (pool, other.pools[name])
        ]
        if texts[0] != texts[1]:
            labels = other.contender.label, first.contender.label
            message = f"the outputs of {name} differ between {labels[0]} and {labels[1]}"
            raise EchoError(message, f"measure {labels[0]} alone: the figures would be over different text")


def _score(
    contender: NamedModel,
    base: Config,
    columns: Mapping[str, Path],
    seen: frozenset[Pair],
    command: str,
    announce: Callable[[str], None],
) -> ScoredModel:
    config = contender.config(base)
    policy, device = open_policy(config.model_copy(update={"model": config.model.fetchable()}))
    announce(f"{contender.label}: {device.reason}")
    context, cut = policy.model.max_length, contender.kind == "hf"
    pools = {name: load_pool(folder, policy.renderer, context, cut=cut) for name, folder in columns.items()}
    tokens = {name: tokens_of(pool, seen, policy.tokenizer) for name, pool in pools.items()}
    first_column = next(iter(pools))
    output = find_output(pools[first_column], command, seen, first_column, _FILL_POOL)
    return ScoredModel(
        contender,
        device.reason,
        policy.renderer,
        context,
        pools,
        tokens,
        predict_pools(pools, policy, tokens),
        policy.tokenizer.decode(output.token_ids),
        {"tokens": len(output.token_ids), **read(policy, output)},
    )


def _report(model: ScoredModel, same_tokens: bool) -> ModelReport:
    contender = model.contender
    report = report_policy(contender.path, contender.label, None, model.predictions, model.tokens, {}, ())
    return replace(report, loaded=LoadedModel(contender.kind, model.device, model.tokenizer.vocab_size, same_tokens))


def _difference(first: ScoredModel, other: ScoredModel, pool: str, same_tokens: bool) -> Difference:
    ours, theirs = first.tokens[pool], other.tokens[pool]
    before, after = first.predictions[pool], other.predictions[pool]
    return Difference(
        pool,
        other.contender.label,
        env_bits_per_byte=bits_per_byte_difference(ours, before, theirs, after),
        env_ce=env_ce_difference(ours, before, after, ours.headline) if same_tokens else None,
    )


def _same_tokens(first: ScoredModel, other: ScoredModel) -> bool:
    """Return whether both models predict the same token ids from vocabularies of the same size."""
    return first.tokenizer.vocab_size == other.tokenizer.vocab_size and all(
        np.array_equal(tokens.token_id, other.tokens[name].token_id) for name, tokens in first.tokens.items()
    )


def _pairs(pool: Pool) -> list[Pair]:
    return [span.pair for spans in pool.spans for span in spans]


def _notes(scored: Sequence[ScoredModel], same: Sequence[bool], seen: frozenset[Pair]) -> list[str]:
    first, notes = scored[0].contender.label, []
    if others := [model.contender.label for model, same_tokens in zip(scored, same, strict=True) if not same_tokens]:
        notes.append(
            f"* {', '.join(others)}: tokens differ from the tokens of {first} and of the baselines; bits per byte are "
            "comparable, per-token figures are not"
        )
    for model in scored:
        if changed := _changed_outputs(model):
            notes.append(f"{model.contender.label}: the tokenizer changes the text of {counted(changed, 'output')}")
        notes += [f"{model.contender.label}: {note}" for note in cut_notes(model.pools, model.context)]
    if seen and (left_out := sum(pair in seen for pool in scored[0].pools.values() for pair in pool.pairs)):
        notes.append(f"pairs omitted from the headline because the baselines are fitted on them: {left_out}")
    return notes


def _changed_outputs(model: ScoredModel) -> int:
    """Return the number of outputs whose tokens decode to a different text: some tokenizers normalise text."""
    return sum(
        model.tokenizer.decode(list(segment.token_ids)) != segment.text
        for pool in model.pools.values()
        for trajectory in pool.trajectories
        for segment in trajectory.segments[1:]
        if segment.role is Role.ENV_OUTPUT
    )
