"""What a Tinker service can do, measured with an adapter of its own that is thrown away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echo_cli.config.backend import BackendConfig
from echo_cli.errors import EchoError
from echo_cli.models.tinker.adapter import Adapter
from echo_cli.models.tinker.datum import Datum, Floats, Reduction
from echo_cli.models.tinker.service import Service

LOSSES = ("importance_sampling", "ppo")
_SHORT, _LONG = 8, 32
"""Lengths of the probe's sequences, targets."""
_CLOSE = 0.05
"""Relative error of a ratio of gradient norms, which a service may compute in bfloat16."""
_MOVED = 1e-3
"""Change of a logprob that an update without clipping exceeds by far, nats."""


@dataclass(frozen=True)
class Abilities:
    """What a service can do."""

    losses: tuple[str, ...]
    reduction: Reduction
    clips: bool
    """Whether it clips the gradient's norm."""

    @property
    def line(self) -> str:
        """Return the abilities as a phrase."""
        clipping = "clips gradients" if self.clips else "does not clip gradients"
        return f"losses {', '.join(self.losses)}; reduction {self.reduction}; {clipping}"


def measure(backend: BackendConfig, base_model: str, rank: int) -> Abilities:
    """Measure the abilities of the service of `backend` in a session of its own.

    Raises:
        EchoError: the service is lost, lacks every loss, or reduces losses in a way that is not known.
    """
    service = Service(backend)
    adapter = Adapter.new(service, base_model, rank, seed=0)
    try:
        return _measure(adapter, backend)
    finally:
        # Its place in the service's memory is the next adapter's, so no gradient may be left there: SkyRL's engine
        # does not clear it. Each measurement ends with an optimizer step.
        adapter.close()


def _measure(adapter: Adapter, backend: BackendConfig) -> Abilities:
    before = adapter.forward([_probe(_SHORT)])[0]
    losses = tuple(loss for loss in LOSSES if adapter.has_loss([_probe(_SHORT, before)], loss))
    if not losses:
        raise EchoError(
            f"the Tinker service at {adapter.service.url} has none of the losses {', '.join(LOSSES)}",
            "use a service with policy-gradient losses",
            exit_code=1,
        )
    adapter.forward_backward([_probe(_SHORT, before)], losses[0], None)
    adapter.optim_step(lr=1e-3, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.0, grad_clip=1e-9)
    after = adapter.forward([_probe(_SHORT)])[0]  # as long: in bfloat16, the length may change logprobs by more
    clips = bool(np.abs(after - before).max() < _MOVED)
    reduction = _reduction(adapter, losses[0], after) if backend.reduction == "auto" else backend.reduction
    return Abilities(losses, reduction, clips)


def _reduction(adapter: Adapter, loss: str, logprobs: Floats) -> Reduction:
    """Find the reduction from the norms of one token's gradient in requests of different sizes."""

    def norm(request: Sequence[Datum]) -> float | None:
        adapter.forward_backward(request, loss, None)
        return adapter.optim_step(lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, grad_clip=1e9)

    alone = norm([_probe(_SHORT, logprobs)])
    padded = norm([_probe(_LONG, logprobs)])
    joined = norm([_probe(_SHORT, logprobs), _probe(_LONG - _SHORT)])
    if alone is None or padded is None or joined is None:
        raise EchoError(
            f"the Tinker service at {adapter.service.url} reports no gradient norm by which to measure its reduction",
            "set backend.reduction: sum for Thinking Machines' service, sequence_mean for SkyRL's JAX engine",
        )
    found = padded / alone, joined / alone
    expected: dict[Reduction, tuple[float, float]] = {"sum": (1.0, 1.0), "sequence_mean": (_SHORT / _LONG, 0.5)}
    for name, ratios in expected.items():
        if all(math.isclose(*pair, rel_tol=_CLOSE) for pair in zip(found, ratios, strict=True)):
            return name
    raise EchoError(
        f"the Tinker service at {adapter.service.url} reduces losses in an unknown way: a token's gradient has "
        f"{found[0]:.3f} of its norm in a sequence four times as long, and {found[1]:.3f} beside a second sequence",
        "use a service that adds tokens' losses or averages over sequences: see docs/scale.md",
        exit_code=1,
    )


def _probe(length: int, logprobs: Floats | None = None) -> Datum:
    """Return a sequence of `length` targets; with the logprobs of its first ones, the first has the advantage 1."""
    ids = np.arange(1, length + 2, dtype=np.int64)
    advantages, shifted = np.zeros(length, dtype=np.float32), np.zeros(length, dtype=np.float32)
    if logprobs is not None:
        advantages[0], shifted[0] = 1.0, logprobs[0]
    return Datum(ids[:-1], ids[1:], advantages, shifted)
