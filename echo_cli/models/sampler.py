"""Batched token sampling with a KV cache: from context to actions and their behaviour logprobs.

Shapes: B sequences, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from echo_cli.errors import EchoError
from echo_cli.models.device import naming_memory
from echo_cli.models.language_model import LanguageModel
from echo_cli.objective.batch import cheapest_cut
from echo_cli.seeds import uniforms

Sample = tuple[list[int], list[float]]
"""Token ids and their behaviour logprobs."""

# Fixed cost of a forward pass by device type, in tokens, order of magnitude: reading the weights on a CPU, launching
# kernels on a CUDA device.
_PASS_TOKENS = {"cpu": 64, "cuda": 4096}


class CachedSampler:
    """A batch of growing sequences, sampled token by token in lockstep. Each token is computed once, whoever wrote it.

    Logprobs are of the distribution sampled from, temperature included. The n-th token that is sampled for a rollout
    takes the n-th uniform number of (seed, rollout): which sequences share a batch, and when, changes rounding at most.

    Args:
        rollouts: number of the rollout of each initial sequence.
        temperature: 0 always selects the most probable token, with logprob 0.
        seed: 63-bit seed of the draws.
        refill: `sample` returns once this share of its sequences has finished; the others continue in the next call.
        prefill_cells: maximum number of tokens, padding included, per forward pass before sampling; None: unlimited.
    """

    def __init__(
        self,
        model: LanguageModel,
        rollouts: Sequence[int],
        temperature: float,
        stop_ids: Sequence[int],
        seed: int,
        refill: float = 1.0,
        prefill_cells: int | None = None,
    ) -> None:
        self._model = model
        self._temperature = temperature
        self._seed = seed
        self._refill = refill
        self._prefill_cells = prefill_cells
        self._device = next(model.parameters()).device
        self._is_stop_V = torch.zeros(model.vocab_size, dtype=torch.bool, device=self._device)
        self._is_stop_V[list(stop_ids)] = True
        self._cache = model.new_cache(0)
        self._lengths_B = torch.zeros(0, dtype=torch.int64, device=self._device)
        self._waiting: list[list[int]] = []
        self._begun: list[Sample] = []
        self._rollouts: list[int] = []
        self._drawn: list[int] = []  # number of tokens sampled so far, per row
        self.add(rollouts)

    def append(self, token_lists: Sequence[Sequence[int]]) -> None:
        """Append tokens that the policy did not sample, one list per sequence; computed before the next sample."""
        for waiting, tokens in zip(self._waiting, token_lists, strict=True):
            waiting.extend(tokens)

    @torch.inference_mode()
    def rewind(self, row: int, count: int) -> None:
        """Remove the last `count` tokens of the sequence `row`."""
        waiting = self._waiting[row]
        if count > len(waiting):
            self._lengths_B[row] -= count - len(waiting)
        self._waiting[row] = waiting[: max(len(waiting) - count, 0)]

    @naming_memory("rollout")
    def keep(self, rows: Sequence[int]) -> None:
        """Keep only the sequences `rows`, in the given order."""
        index = torch.tensor(list(rows), dtype=torch.int64, device=self._device)
        self._cache.keep(index)
        self._lengths_B = self._lengths_B[index]
        self._waiting = [self._waiting[row] for row in rows]
        self._begun = [self._begun[row] for row in rows]
        self._rollouts = [self._rollouts[row] for row in rows]
        self._drawn = [self._drawn[row] for row in rows]

    @naming_memory("rollout")
    def add(self, rollouts: Sequence[int]) -> None:
        """Append an empty sequence for each of `rollouts`."""
        count = len(rollouts)
        self._cache.add(count)
        self._lengths_B = pad(self._lengths_B, (0, count))
        self._waiting += [[] for _ in range(count)]
        self._begun += [([], []) for _ in range(count)]
        self._rollouts += rollouts
        self._drawn += [0] * count

    @naming_memory("rollout")
    @torch.inference_mode()
    def sample(self, max_tokens: int, rows: Sequence[int] | None = None) -> list[Sample | None]:
        """Sample the sequences `rows` (None: all) up to and including a stop token, or `max_tokens` tokens.

        Return (token ids, logprobs) per row, or None for an unfinished sequence, which continues in the next call that
        includes its row. Other sequences do not change.

        Raises:
            EchoError: the model's logits are not finite (exit code 3).
        """
        with self._model.holding_weights():
            return self._sample(max_tokens, list(range(len(self._waiting)) if rows is None else rows))

    def _sample(self, max_tokens: int, chosen: Sequence[int]) -> list[Sample | None]:
        logits_BV = self._prefill(chosen)
        uniform_BT = self._uniforms(max_tokens, chosen)
        B = logits_BV.shape[0]
        tokens_BT = torch.empty(B, max_tokens, dtype=torch.int64, device=self._device)
        logprobs_BT = torch.empty(B, max_tokens, device=self._device)
        counts_B = torch.zeros(B, dtype=torch.int64, device=self._device)
        sampled_B = torch.zeros(B, dtype=torch.bool, device=self._device)
        sampled_B[chosen] = True
        left_B = max_tokens - torch.tensor([len(ids) for ids, _ in self._begun], device=self._device)
        unfinished = len(chosen) - max(1, math.ceil(self._refill * len(chosen)))
        running_B = sampled_B
        for position in range(max_tokens):
            scaled_BV = _log_probabilities(logits_BV.float(), self._temperature)
            chosen_B1 = _draw(scaled_BV.exp(), uniform_BT[:, position, None])
            tokens_BT[:, position] = chosen_B1[:, 0]
            logprobs_BT[:, position] = scaled_BV.gather(1, chosen_B1)[:, 0]
            counts_B += running_B
            running_B = running_B & ~self._is_stop_V[chosen_B1[:, 0]] & (counts_B < left_B)
            if int(running_B.sum()) <= unfinished:
                break
            # Finished rows keep running: they write cache slots past their end, which their next tokens overwrite.
            hidden_B1H = self._model.extend(chosen_B1, self._lengths_B + position, self._cache)
            logits_BV = self._model.head(hidden_B1H[:, 0])
        counts, running = counts_B.tolist(), running_B.tolist()
        tokens, logprobs = tokens_BT.tolist(), logprobs_BT.tolist()
        # The last token of a row may not be in the cache yet; computing it again is cheaper than checking.
        self._lengths_B = self._lengths_B + counts_B - sampled_B.int()
        samples: list[Sample | None] = []
        for row in chosen:
            before_ids, before_logprobs = self._begun[row]
            sample = (
                before_ids + tokens[row][: counts[row]],
                before_logprobs + logprobs[row][: counts[row]],
            )
            self._waiting[row] = [sample[0][-1]]
            self._begun[row] = sample if running[row] else ([], [])
            self._drawn[row] += counts[row]
            samples.append(None if running[row] else sample)
        return samples

    def _uniforms(self, max_tokens: int, rows: Sequence[int]) -> Tensor:
        """Return the uniform numbers [B, T] of the next tokens of `rows`; zeros for other rows."""
        uniform_BT = np.zeros((len(self._waiting), max_tokens))
        for row in rows:
            uniform_BT[row] = uniforms(self._seed, self._rollouts[row], self._drawn[row], max_tokens)
        return torch.from_numpy(uniform_BT).to(self._device)

    def _prefill(self, rows: Sequence[int]) -> Tensor:
        """Compute the waiting tokens of `rows`, right-padded.

        Return logits [B, V] after each row's last token; zeros for other rows.
        """
        everyone = list(range(len(self._waiting)))
        overhead = _PASS_TOKENS[self._device.type]
        parts = [
            (group, self._prefill_together(group, whole=group == everyone))
            for group in _groups(rows, [len(tokens) for tokens in self._waiting], self._prefill_cells, overhead)
        ]
        if parts[0][0] == everyone:
            return parts[0][1]
        V = self._model.vocab_size
        logits_BV = torch.zeros(len(self._waiting), V, dtype=parts[0][1].dtype, device=self._device)
        for group, logits_nV in parts:
            logits_BV[group] = logits_nV
        return logits_BV

    def _prefill_together(self, rows: Sequence[int], *, whole: bool) -> Tensor:
        """Return logits [n, V] after the waiting tokens of `rows`; `whole`: these are all rows, in order."""
        waiting = [self._waiting[row] for row in rows]
        index_n = torch.tensor(list(rows), dtype=torch.int64, device=self._device)
        counts_n = torch.tensor([len(tokens) for tokens in waiting], device=self._device)
        width = max(map(len, waiting))
        ids_nT = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in waiting], device=self._device)
        starts_n = self._lengths_B[index_n]
        hidden_nTH = self._model.extend(ids_nT, starts_n, self._cache, None if whole else index_n)
        self._lengths_B[index_n] = starts_n + counts_n
        for row in rows:
            self._waiting[row] = []
        return self._model.head(hidden_nTH[torch.arange(len(rows), device=self._device), counts_n - 1])


def _groups(rows: Sequence[int], lengths: Sequence[int], cells: int | None, overhead: int) -> list[list[int]]:
    """Split `rows` into groups of similar length, each at most `cells` tokens with padding; None: a single group.

    Args:
        overhead: fixed cost of a forward pass, in tokens.
    """
    if cells is None:
        return [list(rows)]
    order = sorted(rows, key=lambda row: -lengths[row])
    cut = cheapest_cut([lengths[row] for row in order], cells, overhead)
    return [sorted(order[place] for place in part) for part in cut]


def _log_probabilities(logits_BV: Tensor, temperature: float) -> Tensor:
    """Return the logprobs [B, V] of the distribution to sample from; at temperature 0, all mass is on the argmax."""
    if temperature > 0:
        return torch.log_softmax(logits_BV / temperature, dim=-1)
    greatest = logits_BV.max(dim=-1, keepdim=True)
    # 0 if the logit is finite, otherwise NaN, which `_draw` rejects.
    return torch.full_like(logits_BV, -math.inf).scatter(1, greatest.indices, greatest.values * 0.0)


def _draw(probabilities_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """Select one token per distribution, [B, 1], by inverting the cumulative distribution at `uniform_B1` in [0, 1).

    torch.multinomial draws V exponentials per row instead of one uniform: 20 times the work on a CPU at V = 1024.
    """
    cumulative_BV = probabilities_BV.double().cumsum(dim=-1)
    # right=True never selects a token of probability zero; u < 1 never passes the last token of positive probability.
    chosen_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
    if int(chosen_B1.max()) >= cumulative_BV.shape[1]:  # past the end only if the sum is not finite
        tip = "the last checkpoint is intact; try a lower optim.lr or another model.path"
        raise EchoError("the policy's logits are not finite", tip, exit_code=3)
    return chosen_B1
