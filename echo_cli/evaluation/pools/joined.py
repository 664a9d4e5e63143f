"""Tokens and predictions of several pools as those of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np

from echo_cli.evaluation.measures import Bools, Predictions, Tokens


def join_tokens(parts: Sequence[Tokens]) -> Tokens:
    """Return the tokens of several pools, one after another; trajectories and spans are numbered on."""
    columns: dict[str, list[Any]] = {of.name: [] for of in fields(Tokens) if of.name != "sequences"}
    trajectories = spans = 0
    for part in parts:
        for name, column in columns.items():
            column.append(getattr(part, name))
        columns["trajectory"][-1] = part.trajectory + trajectories
        columns["span"][-1] = np.where(part.span < 0, part.span, part.span + spans)
        trajectories += len(part.sequences)
        spans += int(part.span.max(initial=-1)) + 1  # every span of a pool has a token
    joined = {name: np.concatenate(column) for name, column in columns.items()}
    return Tokens(list(chain(*(part.sequences for part in parts))), **joined)


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several pools, one after another."""
    columns = {of.name: [getattr(part, of.name) for part in parts] for of in fields(Predictions)}
    return Predictions(**{name: np.concatenate(column) for name, column in columns.items()})


@dataclass(frozen=True)
class ScoredPool:
    """A pool's tokens and their predictions, now and at the start of training; and what training has met, by span."""

    tokens: Tokens
    predictions: Predictions
    start: Predictions | None
    seen: Bools
    """Whether training has executed the pair."""
    shown: Bools
    """Whether training has observed every line of the pair's output, under any command."""


def join_scored(parts: Sequence[ScoredPool]) -> ScoredPool:
    """Return the scored tokens of several pools, one after another."""
    starts = [part.start for part in parts if part.start is not None]
    return ScoredPool(
        join_tokens([part.tokens for part in parts]),
        join_predictions([part.predictions for part in parts]),
        join_predictions(starts) if len(starts) == len(parts) else None,
        np.concatenate([part.seen for part in parts]),
        np.concatenate([part.shown for part in parts]),
    )
