"""The policy at a Tinker service, with the primitives that the loop requires of any backend.

Tokenizer, renderer, objective and the order of calls are this process's; weights, gradients and samples the service's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from echo_cli.config.schema import Config
from echo_cli.environments.several import environment_of
from echo_cli.errors import EchoError
from echo_cli.files import read_json, write_json
from echo_cli.metrics import Metric, Metrics
from echo_cli.models.distributed.ranks import ALONE, Ranks
from echo_cli.models.renderer import Renderer, mark_ends
from echo_cli.models.tinker.adapter import Adapter
from echo_cli.models.tinker.datum import (
    Datum,
    advantages_of,
    gather,
    needs_fresh,
    sequence,
    step_sequences,
    step_targets,
    weighed,
)
from echo_cli.models.tinker.probe import Abilities
from echo_cli.models.tinker.sampler import ServiceSampler
from echo_cli.models.tinker.service import Service
from echo_cli.objective.batch import Targets
from echo_cli.objective.diagnostics import GradientComparison, Interference
from echo_cli.objective.logprobs import TokenScores
from echo_cli.objective.loss import echo_loss, env_ce_by_name
from echo_cli.objective.step import WeighedStep
from echo_cli.text import escape_unprintable
from echo_cli.trajectory import Role, Trajectory, context_views, expand_context_views

STATE_FILE = "service.json"
_FORMAT = "echo-cli service state 1"


@dataclass(frozen=True)
class ServiceModel:
    """What this process knows of the service's model."""

    max_length: int
    """Maximum sequence length, tokens."""
    vocab_size: int
    """Number of ids of the tokenizer."""


class ServicePolicy:
    """The adapter of a run at a Tinker service.

    Args:
        adapter: a fresh adapter of the run's own.
        abilities: what the service can do; None for a policy that is only sampled and scored.
    """

    def __init__(
        self,
        adapter: Adapter,
        base_model: str,
        rank: int,
        renderer: Renderer,
        model: ServiceModel,
        config: Config,
        abilities: Abilities | None,
    ) -> None:
        self.model, self.renderer, self.tokenizer = model, renderer, renderer.tokenizer
        self.device, self.is_split = torch.device("cpu"), False
        self._adapter, self._base_model, self._rank = adapter, base_model, rank
        self._optim, self._refill, self.abilities = config.optim, config.sampler.refill, abilities
        self._is_finite = True  # the loss of the gradient that is not applied yet
        self._sampling: object = None  # sampling client of the present weights; None after they have changed

    @property
    def ranks(self) -> Ranks:
        """Processes among which the policy's work is divided: this one."""
        return ALONE

    @property
    def service(self) -> Service:
        """Service that holds the weights."""
        return self._adapter.service

    def keep_reference(self) -> None:
        """Raise an error: a service keeps no second weights."""
        raise _impossible("objective.kl_coeff")

    def sampler(self, temperature: float, seed: int) -> Callable[[Sequence[int]], ServiceSampler]:
        """Return a factory of samplers by rollouts, from the present weights."""
        return lambda rollouts: self._sampler(rollouts, temperature, seed, self.renderer.stop_ids, self._refill)

    def own_sampler(self, batch: int, temperature: float, seed: int, stop_ids: Sequence[int]) -> ServiceSampler:
        """Return a sampler of `batch` sequences, whose `sample` runs until every sequence has ended."""
        return self._sampler(range(batch), temperature, seed, stop_ids, refill=1.0)

    def _sampler(
        self, rollouts: Sequence[int], temperature: float, seed: int, stop_ids: Sequence[int], refill: float
    ) -> ServiceSampler:
        # Never from older weights: SkyRL's JAX engine loads a sampler's weights over those that it trains.
        if self._sampling is None:
            self._sampling = self._adapter.sampling_client()
        size = self.tokenizer.vocab_size
        return ServiceSampler(self.service, self._sampling, rollouts, temperature, stop_ids, seed, size, refill)

    def mark_ends(self, trajectory: Trajectory) -> Trajectory:
        """Return `trajectory`, which is in this policy's tokens, with the ends of its outputs marked."""
        return mark_ends(trajectory, self.tokenizer)

    def forward_backward(self, step: WeighedStep) -> Metrics:
        """Accumulate the gradient of the step's loss in one request, and return the metrics of the step.

        The present policy's logprobs are fetched first where a token's advantage depends on them (`needs_fresh`): not
        at λ = 0 with the clipped surrogate.
        """
        assert self.abilities is not None
        views = expand_context_views(step.trajectories, use_rl=step.settings.use_rl)
        wanted = step_targets(step, views)
        sequences = step_sequences(views, wanted)
        fresh_N, needed_N = torch.zeros(len(wanted.row_N)), needs_fresh(step, wanted)
        if bool(needed_N.any()):
            fresh_N = self._fresh(sequences, wanted, needed_N)
        advantages_N = advantages_of(step, wanted, fresh_N)
        logprobs_N = torch.where(needed_N, fresh_N, wanted.behaviour_logprobs_N)
        request = weighed(sequences, wanted, advantages_N, logprobs_N, self.abilities.reduction)
        now_N = gather(self._adapter.forward_backward(request, *self._loss(step)), wanted)
        metrics = _metrics(step, wanted, now_N)
        self._is_finite = math.isfinite(metrics["loss"].total)
        return metrics

    def _fresh(self, sequences: Sequence[Datum], wanted: Targets, needed_N: Tensor) -> Tensor:
        """Return the present policy's logprobs, [N], of all targets in the views that have a needed one."""
        rows = sorted(set(wanted.row_N[needed_N].tolist()))
        found = dict(zip(rows, self._adapter.forward([sequences[row] for row in rows]), strict=True))
        empty = torch.zeros(max(map(len, sequences))).numpy()
        return gather([found.get(row, empty) for row in range(len(sequences))], wanted)

    def _loss(self, step: WeighedStep) -> tuple[str, dict[str, float] | None]:
        """Return the service's name of the surrogate, and its settings."""
        if step.settings.surrogate == "clipped":
            bounds = {
                "clip_low_threshold": 1 - step.settings.clip_low,
                "clip_high_threshold": 1 + step.settings.clip_high,
            }
            return "ppo", bounds
        return "importance_sampling", None

    def probe(self, step: WeighedStep) -> GradientComparison:
        """Raise an error: a service returns no gradients."""
        raise _impossible("probe_every")

    def interference(self, step: WeighedStep, lr: float) -> Interference | None:
        """Raise an error: a service returns no gradients."""
        raise _impossible("probe_every")

    def optim_step(self, lr: float) -> float | None:
        """Apply the gradient with AdamW and clear it; return its norm before clipping, if the service reports it.

        A gradient of a loss that is not finite is not applied.
        """
        if not self._is_finite:
            return math.nan
        self._sampling = None
        optim = self._optim
        return self._adapter.optim_step(
            lr=lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            grad_clip=optim.grad_clip,
        )

    def score(self, trajectories: Sequence[Trajectory], roles: Collection[Role]) -> list[TokenScores]:
        """Score each trajectory's tokens of `roles`, teacher-forced. The most probable tokens are unknown (NaN).

        Actions with dropped thinking are not scored; each has its own view in `context_views`.
        """
        seen = [context_views(trajectory)[0] for trajectory in trajectories]
        if not seen:
            return []
        results = []
        for trajectory, logprobs in zip(
            seen, self._adapter.forward([sequence(of.token_ids) for of in seen]), strict=True
        ):
            chosen = [place for place, role in enumerate(trajectory.roles[1:]) if role in roles]
            found = torch.from_numpy(logprobs[chosen])
            results.append(
                TokenScores(found, torch.zeros(len(chosen), dtype=torch.bool), torch.full_like(found, torch.nan))
            )
        return results

    def predict(self, trajectory: Trajectory) -> list[int]:
        """Raise an error: a service tells the probability of given tokens only."""
        raise _impossible("the most probable token")

    def save(self, folder: Path) -> None:
        """Store the adapter and its optimizer's state at the service; write where, and the tokenizer, into `folder`."""
        self.tokenizer.save(folder)
        state = {"format": _FORMAT, "state": self._adapter.save_state(), "base_model": self._base_model}
        write_json(folder / STATE_FILE, {**state, "lora_rank": self._rank})

    def load(self, folder: Path) -> None:
        """Load the adapter and its optimizer's state of a folder that `save` wrote, from the service.

        Raises:
            EchoError: the folder has no state, or one of another base or rank; the service does not have the state.
        """
        path = folder / STATE_FILE
        if not path.is_file():
            tip = "continue the run with the backend that wrote it"
            raise EchoError(f"{escape_unprintable(folder)} has no {STATE_FILE}: it is no state at a service", tip)
        found = read_json(path)
        own = {"format": _FORMAT, "base_model": self._base_model, "lora_rank": self._rank}
        for name, value in own.items():
            if found.get(name) != value:
                was = escape_unprintable(repr(found.get(name)))
                raise EchoError(
                    f"{escape_unprintable(path)}: {name} is {was}, here it is {value!r}", "use that service"
                )
        self._sampling = None
        self._adapter.load_state(str(found.get("state")))

    def close(self) -> None:
        """Remove the adapter from the service's memory and end the session; stored states stay."""
        self._adapter.close()


def _metrics(step: WeighedStep, wanted: Targets, logprobs_N: Tensor) -> Metrics:
    """Return the metrics of a step, as the torch backend computes them, from its targets' logprobs.

    `entropy` is estimated by the mean of -logprob over the sampled actions, which has its mean; `padding_fraction` is
    unknown.
    """
    _, metrics = echo_loss(
        logprobs_N,
        wanted,
        step.advantages_B,
        step.weights,
        step.settings,
        step.coeff,
        imitation_coeff=step.imitation_coeff,
    )
    own_B = torch.tensor([not trajectory.world_model_only for trajectory in step.trajectories])
    own_N = own_B[wanted.rollout_N]
    actions_n = logprobs_N[own_N & (wanted.roles_N == Role.ACTION)]
    outputs_n = logprobs_N[own_N & (wanted.roles_N == Role.ENV_OUTPUT)]
    metrics["entropy"] = Metric(-float(actions_n.sum()), len(actions_n))
    metrics["padding_fraction"] = Metric(0.0, 0)
    metrics["policy_env_ce"] = Metric(-float(outputs_n.sum()), len(outputs_n))
    names = [environment_of(trajectory) for trajectory in step.trajectories]
    return metrics | env_ce_by_name(names, wanted, logprobs_N)


def _impossible(what: str) -> EchoError:
    return EchoError(f"{what} cannot be had from a Tinker service", "use a run with backend.kind: torch")
