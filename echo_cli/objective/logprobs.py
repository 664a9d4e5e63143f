"""Logprobs of targets, without a [B, T, V] tensor of logits.

The hidden states of the targets are gathered first. The LM head then runs over chunks of them, and the backward pass
recomputes each chunk's logits instead of storing them.

Shape suffixes: N targets, n targets of one chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from echo_cli.objective.batch import Targets

LmHead = Callable[[Tensor], Tensor]
"""hidden_nH → logits_nV: the model's own head module, so that biases, adapters and logit caps apply."""


@dataclass(frozen=True)
class TokenScores:
    """The policy's scores of one trajectory's tokens of selected roles, in order, at temperature 1; on the CPU."""

    logprobs: Tensor
    """log p(token), nats, float32."""
    correct: Tensor
    """Whether the token is the most probable one, bool."""
    confidence: Tensor
    """Probability of the most probable token, float32."""


@dataclass(frozen=True)
class Scores:
    """Predictions of N targets. Only the logprobs carry a gradient."""

    logprobs_N: Tensor
    """log p(target) at the requested temperature, nats, float32 or wider."""
    entropy_N: Tensor
    """Entropy of the predicted distribution at the same temperature, nats; NaN if not requested."""
    correct_N: Tensor
    """Whether the target is the most probable token, bool; False if not requested."""
    confidence_N: Tensor
    """Probability of the most probable token at the same temperature; NaN if not requested."""


def selected_logprobs(
    hidden_NH: Tensor,
    lm_head: LmHead,
    target_ids_N: Tensor,
    temperature: float = 1.0,
    chunk_rows: int = 1024,
    *,
    entropy: bool = True,
    correct: bool = True,
) -> Scores:
    """Score N targets in chunks of `chunk_rows` targets.

    At extra cost, `entropy` requests `entropy_N`, and `correct` requests `correct_N` and `confidence_N`.

    Logits are widened to at least float32 before the softmax. With more than one chunk, the backward pass runs the
    head a second time; the logits of a single chunk are stored, so small batches have no overhead. Peak memory is about
    chunk_rows · V · 12 bytes. N may be 0: the result is then empty and back-propagates zeros.
    """
    recompute = torch.is_grad_enabled() and len(hidden_NH) > chunk_rows
    chunks = []
    # At least one chunk, so that with N = 0 the result is an empty tensor in the graph.
    for start in range(0, max(len(hidden_NH), 1), chunk_rows):
        hidden_nH = hidden_NH[start : start + chunk_rows]
        target_ids_n = target_ids_N[start : start + chunk_rows]
        if recompute:
            # The head has no dropout, so there is no random state to replay.
            chunk = checkpoint(
                _score_chunk,
                hidden_nH,
                lm_head,
                target_ids_n,
                temperature,
                entropy,
                correct,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        else:
            chunk = _score_chunk(hidden_nH, lm_head, target_ids_n, temperature, entropy, correct)
        chunks.append(chunk)
    return Scores(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def target_logprobs(
    hidden_NH: Tensor,
    lm_head: LmHead,
    targets: Targets,
    temperature: float,
    *,
    env_gradient: bool = True,
    correct: bool = True,
    chunk_rows: int = 1024,
) -> Scores:
    """Score a micro-batch's targets: actions at the sampling `temperature`, observations at temperature 1.

    The entropy of observations is not computed: it is not used, and it costs as much as their softmax.

    Args:
        hidden_NH: `targets.gather(hidden_RTH)`.
        env_gradient: False (for λ = 0) scores the observations without a graph. Observations never share a chunk with
            actions, so the gradient then equals, bitwise, the gradient of a batch without observation targets.
        correct: whether to compute `correct_N` and `confidence_N`; False in training.
    """
    n = targets.action_count
    # A split instead of two slices: its backward pass writes the gradient of all rows once.
    action_NH, observation_NH = hidden_NH.split_with_sizes([n, len(hidden_NH) - n])
    actions = selected_logprobs(action_NH, lm_head, targets.token_ids_N[:n], temperature, chunk_rows, correct=correct)
    with nullcontext() if env_gradient else torch.no_grad():
        observations = selected_logprobs(
            observation_NH, lm_head, targets.token_ids_N[n:], 1.0, chunk_rows, entropy=False, correct=correct
        )
    return Scores(
        logprobs_N=torch.cat([actions.logprobs_N, observations.logprobs_N]),
        entropy_N=torch.cat([actions.entropy_N, observations.entropy_N]),
        correct_N=torch.cat([actions.correct_N, observations.correct_N]),
        confidence_N=torch.cat([actions.confidence_N, observations.confidence_N]),
    )


def _score_chunk(
    hidden_nH: Tensor, lm_head: LmHead, target_ids_n: Tensor, temperature: float, entropy: bool, correct: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits_nV = lm_head(hidden_nH)
    logits_nV = logits_nV.to(torch.promote_types(logits_nV.dtype, torch.float32))
    if temperature != 1:  # a division by 1 changes no bit and costs two passes over [n, V]
        logits_nV = logits_nV / temperature
    logprobs_nV = logits_nV.log_softmax(dim=-1)
    with torch.no_grad():
        if entropy:
            # entr(p) = -p log p is 0 at p = 0, where the product would be NaN.
            entropy_n = torch.special.entr(logprobs_nV.exp()).sum(dim=-1)
        else:
            entropy_n = torch.full_like(logprobs_nV[:, 0], torch.nan)
        if correct:
            likeliest_n = logprobs_nV.argmax(dim=-1)
            correct_n = likeliest_n == target_ids_n
            confidence_n = logprobs_nV.gather(-1, likeliest_n[:, None]).squeeze(-1).exp()
        else:
            correct_n = torch.zeros_like(target_ids_n, dtype=torch.bool)
            confidence_n = torch.full_like(logprobs_nV[:, 0], torch.nan)
    return logprobs_nV.gather(-1, target_ids_n[:, None]).squeeze(-1), entropy_n, correct_n, confidence_n
