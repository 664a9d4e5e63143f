"""What training and evaluation require of a policy, whichever backend holds its weights.

`sampler` samples actions, `forward_backward` accumulates the step's gradient, `optim_step` applies it, `save` and
`load` persist the state; `TorchPolicy` holds the weights in this process, `ServicePolicy` at a Tinker service.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from echo_cli.metrics import Metrics
from echo_cli.models.distributed.ranks import Ranks
from echo_cli.models.renderer import Renderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.objective.diagnostics import GradientComparison, Interference
from echo_cli.objective.logprobs import TokenScores
from echo_cli.objective.step import WeighedStep
from echo_cli.trajectory import Role, Trajectory


class ContextModel(Protocol):
    """What a policy tells of its model."""

    @property
    def max_length(self) -> int:
        """Maximum sequence length, tokens."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""


class Policy(Protocol):
    """A policy with the primitives of the training loop."""

    renderer: Renderer
    tokenizer: Tokenizer
    device: torch.device
    """Device of the tensors that it takes."""

    @property
    def model(self) -> ContextModel:
        """Model of the policy."""

    @property
    def ranks(self) -> Ranks:
        """Processes among which the policy's work is divided."""

    @property
    def is_split(self) -> bool:
        """Whether the model is split over the ranks, instead of a copy on each."""

    def keep_reference(self) -> None:
        """Set the present weights as the reference of the KL penalty."""

    def sampler(self, temperature: float, seed: int) -> Callable[[Sequence[int]], Any]:
        """Return a factory of samplers by rollouts (`rollouts.rollout.Sampler`)."""

    def own_sampler(self, batch: int, temperature: float, seed: int, stop_ids: Sequence[int]) -> Any:
        """Return a sampler of `batch` sequences, whose `sample` runs until every sequence has ended."""

    def mark_ends(self, trajectory: Trajectory) -> Trajectory:
        """Return `trajectory`, which is in this policy's tokens, with the ends of its outputs marked."""

    def forward_backward(self, step: WeighedStep) -> Metrics:
        """Accumulate the gradient of the step's loss, and return the metrics of the step."""

    def probe(self, step: WeighedStep) -> GradientComparison:
        """Compare the gradients of the RL term and of the env term, without λ and without imitation."""

    def interference(self, step: WeighedStep, lr: float) -> Interference | None:
        """Measure how far the env term alone would move the logprobs of the step's actions."""

    def optim_step(self, lr: float) -> float | None:
        """Apply the gradient, clear it, and return its norm before clipping; None if the backend does not tell it."""

    def score(self, trajectories: Sequence[Trajectory], roles: Collection[Role]) -> list[TokenScores]:
        """Score each trajectory's tokens of `roles`, teacher-forced."""

    def predict(self, trajectory: Trajectory) -> list[int]:
        """Return the most probable next token after each `visible` token of the trajectory, teacher-forced."""

    def save(self, folder: Path) -> None:
        """Write what `load` needs into `folder`."""

    def load(self, folder: Path) -> None:
        """Load weights and optimizer state from a folder that `save` wrote."""
