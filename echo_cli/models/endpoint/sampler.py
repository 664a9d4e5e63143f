"""A sampler that draws tokens at an endpoint: sequences are kept here as ids and sent whole with each request."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from echo_cli.models.endpoint.client import Completions
from echo_cli.models.sampler import Sample
from echo_cli.seeds import derive_seed


@dataclass
class Row:
    """A growing sequence, and the pending request for its next tokens."""

    rollout: int
    """Number of the rollout; it does not depend on which request finishes first."""
    token_ids: list[int] = field(default_factory=list)
    turn: int = 0
    request: Future[Any] | None = None
    retried: bool = False
    """Whether the pending request has failed once."""


class RequestedSequences:
    """Sequences of a sampler like `CachedSampler` whose tokens are drawn elsewhere, a request per sequence and turn."""

    def __init__(self, rollouts: Sequence[int]) -> None:
        self._rows: list[Row] = []
        self.add(rollouts)

    def append(self, token_lists: Sequence[Sequence[int]]) -> None:
        for row, token_ids in zip(self._rows, token_lists, strict=True):
            row.token_ids.extend(token_ids)

    def rewind(self, row: int, count: int) -> None:
        token_ids = self._rows[row].token_ids
        del token_ids[max(len(token_ids) - count, 0) :]

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    def add(self, rollouts: Sequence[int]) -> None:
        self._rows += map(Row, rollouts)


class EndpointSampler(RequestedSequences):
    """A sampler like `CachedSampler`, with separate requests per sequence: a slow request delays no other sequence.

    A request's seed derives from `seed`, rollout and turn, so all seeds differ. A server that batches by load does not
    guarantee the same tokens for the same seed.

    Args:
        rollouts: number of the rollout of each initial sequence.
    """

    def __init__(self, completions: Completions, rollouts: Sequence[int], seed: int) -> None:
        super().__init__(rollouts)
        self._completions = completions
        self._seed = seed

    def keep(self, rows: Sequence[int]) -> None:
        before = self._rows
        super().keep(rows)
        _cancel([row for row in before if row not in self._rows])

    def sample(self, max_tokens: int, rows: Sequence[int] | None = None) -> list[Sample | None]:
        """Sample the sequences `rows` (None: all) up to and including a stop token, or `max_tokens` tokens.

        Return (token ids, logprobs) per row as soon as one sequence has finished, and None for an unfinished sequence.
        Its request continues meanwhile; a later call has to include its row.

        Raises:
            EchoError: the endpoint is not available, or its answer is not an exact record of a sample (exit code 1).
        """
        chosen = self._rows if rows is None else [self._rows[row] for row in rows]
        requests = [row.request or self._ask(row, max_tokens) for row in chosen]
        samples: list[Sample | None] = []
        try:
            wait(requests, return_when=FIRST_COMPLETED)
            for row, request in zip(chosen, requests, strict=True):
                sample = request.result() if request.done() else None
                if sample is not None:
                    row.request = None
                    row.token_ids.extend(sample[0])
                    row.turn += 1
                samples.append(sample)
        except BaseException:
            _cancel(self._rows)
            raise
        return samples

    def _ask(self, row: Row, max_tokens: int) -> Future[Sample]:
        seed = derive_seed(self._seed, f"endpoint/{row.rollout}", row.turn)
        asked = self._completions.sample(list(row.token_ids), max_tokens, seed)
        row.request = self._completions.endpoint.start(asked)
        return row.request


def _cancel(rows: Sequence[Row]) -> None:
    for row in rows:
        if row.request is not None:
            row.request.cancel()
