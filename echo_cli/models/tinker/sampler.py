"""A sampler that draws tokens at a Tinker service: sequences are kept here as ids and sent whole with each request."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.models.endpoint.sampler import RequestedSequences, Row
from echo_cli.models.sampler import Sample
from echo_cli.models.tinker.service import Service
from echo_cli.seeds import derive_seed

_SAMPLE = "sample actions"
_GRACE_S = 0.1
"""Wait for samples that a service has computed in one batch with those that have arrived, seconds."""

_PAUSE_S = 0.5
"""Wait before a request is sent again, seconds."""


class ServiceSampler(RequestedSequences):
    """A sampler like `CachedSampler`, with a request per sequence and turn.

    A request's seed derives from `seed`, rollout and turn. A service that batches by load may return other tokens for
    the same seed.

    Args:
        client: the SDK's sampling client of the policy's present weights.
        vocab_size: number of ids that the policy's tokenizer knows.
        refill: `sample` returns once this share of its sequences has finished; the others continue in the next call.
    """

    def __init__(
        self,
        service: Service,
        client: Any,
        rollouts: Sequence[int],
        temperature: float,
        stop_ids: Sequence[int],
        seed: int,
        vocab_size: int,
        refill: float = 1.0,
    ) -> None:
        super().__init__(rollouts)
        self._service, self._client = service, client
        self._temperature, self._stop_ids, self._seed = temperature, sorted(stop_ids), seed
        self._vocab_size, self._refill = vocab_size, refill

    def sample(self, max_tokens: int, rows: Sequence[int] | None = None) -> list[Sample | None]:
        """Sample the sequences `rows` (None: all) up to and including a stop token, or `max_tokens` tokens.

        Return (token ids, logprobs) per row, and None for an unfinished sequence. Its request continues meanwhile; a
        later call has to include its row.

        Raises:
            EchoError: the service is lost, or its answer is not a record of a sample (exit code 1).
        """
        chosen = self._rows if rows is None else [self._rows[row] for row in rows]
        found: list[Sample | None] = [None] * len(chosen)
        missing = min(len(chosen), max(1, math.ceil(self._refill * len(chosen))))
        while missing > 0:  # again after a passing failure
            requests = {
                place: row.request or self._ask(row, max_tokens)
                for place, row in enumerate(chosen)
                if found[place] is None
            }
            self._service.wait(_SAMPLE, list(requests.values()), missing, _GRACE_S)
            for place, request in requests.items():
                found[place] = self._take(chosen[place], request, max_tokens)
                missing -= found[place] is not None
            if missing > 0:
                time.sleep(_PAUSE_S)
        return found

    def _ask(self, row: Row, max_tokens: int) -> Future[Any]:
        types = self._service.sdk.types
        settings = types.SamplingParams(
            max_tokens=max_tokens,
            seed=derive_seed(self._seed, f"service/{row.rollout}", row.turn) >> 32,  # 31 bits
            stop=self._stop_ids,
            temperature=self._temperature,
            top_k=-1,
            top_p=1.0,
        )
        prompt = types.ModelInput.from_ints(list(row.token_ids))
        row.request = self._client.sample(prompt=prompt, num_samples=1, sampling_params=settings)
        return row.request

    def _take(self, row: Row, request: Future[Any], max_tokens: int) -> Sample | None:
        if not request.done():
            return None
        row.request = None
        if (error := request.exception()) is not None:
            if row.retried or not isinstance(error, Exception) or not self._service.is_passing(error):
                raise self._service.failure(_SAMPLE, error) if isinstance(error, Exception) else error
            row.retried = True
            return None
        sample = self._checked(request.result(), max_tokens)
        row.token_ids.extend(sample[0])
        row.turn, row.retried = row.turn + 1, False
        return sample

    def _checked(self, answer: Any, max_tokens: int) -> Sample:
        found = answer.sequences[0]
        ids, logprobs = list(found.tokens), found.logprobs
        if not 1 <= len(ids) <= max_tokens or logprobs is None or len(logprobs) != len(ids):
            problem = f"{len(ids)} tokens with {0 if logprobs is None else len(logprobs)} logprobs"
        elif not all(0 <= token < self._vocab_size for token in ids):
            problem = f"ids outside the tokenizer's {self._vocab_size}"
        elif len(ids) < max_tokens and ids[-1] not in self._stop_ids:
            problem = "an action that ends before a stop token"
        elif not all(map(math.isfinite, logprobs)):
            problem = "logprobs that are not finite"
        else:
            return ids, list(logprobs)
        tip = "check that backend.base_model is the model of model.path, and that an episode fits the service's context"
        raise EchoError(f"the Tinker service at {self._service.url} samples {problem}", tip, exit_code=1)
