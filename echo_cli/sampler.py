"""Batched token sampling with a KV cache: context goes in, actions and their behaviour logprobs come out.

Shapes: B sequences, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from echo_cli.error import EchoError
from echo_cli.models.tiny import KVCache, TinyModel


class CachedSampler:
    """Growing sequences, sampled token-synchronously. Each token is computed once, whoever wrote it.

    `logprobs` are those of the distribution sampled from, temperature included.
    """

    def __init__(
        self,
        model: TinyModel,
        batch: int,
        temperature: float,
        stop_ids: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        weight = model.lm_head_VH
        self._model = model
        self._temperature = temperature
        self._generator = generator
        self._device = weight.device
        self._is_stop_V = torch.zeros(weight.shape[0], dtype=torch.bool, device=self._device)
        self._is_stop_V[list(stop_ids)] = True
        self._cache = KVCache(model.config, batch, weight.device, weight.dtype)
        self._lengths_B = torch.zeros(batch, dtype=torch.int64, device=self._device)
        self._waiting: list[list[int]] = [[] for _ in range(batch)]

    def append(self, token_lists: Sequence[Sequence[int]]) -> None:
        """Add tokens that the policy did not sample, one list a sequence; they are computed before the next sample."""
        for waiting, tokens in zip(self._waiting, token_lists, strict=True):
            waiting.extend(tokens)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with the sequences `rows` only."""
        index = torch.tensor(list(rows), dtype=torch.int64, device=self._device)
        self._cache.keep(index)
        self._lengths_B = self._lengths_B[index]
        self._waiting = [self._waiting[row] for row in rows]

    def add(self, count: int) -> None:
        """Go on with `count` empty sequences after the others."""
        self._cache.add(count)
        self._lengths_B = pad(self._lengths_B, (0, count))
        self._waiting += [[] for _ in range(count)]

    @torch.inference_mode()
    def sample(self, max_tokens: int, rows: Sequence[int] | None = None) -> list[tuple[list[int], list[float]]]:
        """Sample the sequences `rows` up to and including a stop token, or `max_tokens` tokens: (token ids, logprobs).

        The others, which have no tokens to go on from, are computed along and stay as they are.

        Raises:
            EchoError: the model's logits are not finite (exit code 3).
        """
        chosen = list(range(len(self._waiting)) if rows is None else rows)
        logits_BV = self._prefill(chosen)
        B = logits_BV.shape[0]
        tokens_BT = torch.empty(B, max_tokens, dtype=torch.int64, device=self._device)
        logprobs_BT = torch.empty(B, max_tokens, device=self._device)
        counts_B = torch.zeros(B, dtype=torch.int64, device=self._device)
        sampled_B = torch.zeros(B, dtype=torch.bool, device=self._device)
        sampled_B[chosen] = True
        running_B = sampled_B
        for position in range(max_tokens):
            scaled_BV = torch.log_softmax(logits_BV.float() / self._temperature, dim=-1)
            chosen_B1 = _draw(scaled_BV.exp(), self._generator)
            tokens_BT[:, position] = chosen_B1[:, 0]
            logprobs_BT[:, position] = scaled_BV.gather(1, chosen_B1)[:, 0]
            counts_B += running_B
            running_B = running_B & ~self._is_stop_V[chosen_B1[:, 0]]
            if position + 1 == max_tokens or not bool(running_B.any()):
                break
            # Finished rows go on as well: what they write lands past their end, where the next tokens overwrite it.
            hidden_B1H = self._model.extend(chosen_B1, self._lengths_B + position, self._cache)
            logits_BV = hidden_B1H[:, 0] @ self._model.lm_head_VH.T
        counts = counts_B.tolist()
        tokens, logprobs = tokens_BT.tolist(), logprobs_BT.tolist()
        samples = [(tokens[row][: counts[row]], logprobs[row][: counts[row]]) for row in chosen]
        # The last token of each is not in the cache yet in every case; computing it again is cheaper than asking.
        self._lengths_B = self._lengths_B + counts_B - sampled_B.int()
        for row, (sampled, _) in zip(chosen, samples, strict=True):
            self._waiting[row] = [sampled[-1]]
        return samples

    def _prefill(self, rows: Sequence[int]) -> Tensor:
        """Compute the waiting tokens of `rows` in one right-padded call; logits after the last of each."""
        computed: list[list[int]] = [[] for _ in self._waiting]
        for row in rows:
            computed[row], self._waiting[row] = self._waiting[row], []
        counts_B = torch.tensor([len(tokens) for tokens in computed], device=self._device)
        width = int(counts_B.max())
        ids_BT = torch.zeros(len(computed), width, dtype=torch.int64, device=self._device)
        for row, tokens in enumerate(computed):
            ids_BT[row, : len(tokens)] = torch.tensor(tokens, device=self._device)
        hidden_BTH = self._model.extend(ids_BT, self._lengths_B, self._cache)
        self._lengths_B = self._lengths_B + counts_B
        last_BH = hidden_BTH[torch.arange(len(counts_B), device=self._device), counts_B - 1]
        return last_BH @ self._model.lm_head_VH.T


def _draw(probabilities_BV: Tensor, generator: torch.Generator) -> Tensor:
    """One token of each distribution, [B, 1], by the inverse of its cumulative distribution.

    torch.multinomial draws V exponentials a row where one uniform does: 20 times the work on a CPU at V = 1024.
    """
    cumulative_BV = probabilities_BV.double().cumsum(dim=-1)
    uniform_B1 = torch.rand(
        len(cumulative_BV), 1, generator=generator, dtype=torch.float64, device=cumulative_BV.device
    )
    # right=True never lands on a token of probability zero; u < 1 never past the last token of positive probability.
    chosen_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
    if int(chosen_B1.max()) >= cumulative_BV.shape[1]:  # past the end: only where the sum is not a finite number
        tip = "the last checkpoint is intact; try a lower optim.lr, or another model.path"
        raise EchoError("the policy's logits are not finite", tip, exit_code=3)
    return chosen_B1
