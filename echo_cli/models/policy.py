"""The policy: a model and tokenizer on a device, with the four primitives that the loop requires of any backend.

`sampler` samples actions, `forward_backward` accumulates the step's gradient, `optim_step` applies it, `save` and
`load` persist the state. The loop owns the data and the order of calls; the policy owns the weights and the hardware.

Shapes: B rollouts of the step, V their views, R rows of a micro-batch, T tokens, N targets, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from echo_cli.config.model import SamplerConfig
from echo_cli.config.schema import OptimConfig
from echo_cli.environments.several import environment_of
from echo_cli.metrics import Metric, Metrics, merge_metrics
from echo_cli.models.device import naming_memory
from echo_cli.models.endpoint.sampler import EndpointSampler
from echo_cli.models.endpoint.served_policy import ServedPolicy
from echo_cli.models.language_model import LanguageModel
from echo_cli.models.memory import chunk_rows
from echo_cli.models.optimizer_state import AdamW, load_optimizer, save_optimizer, scratch_step
from echo_cli.models.renderer import Renderer, mark_ends
from echo_cli.models.sampler import CachedSampler
from echo_cli.objective.batch import Targets, bucket, collate, targets
from echo_cli.objective.diagnostics import (
    GradientComparison,
    Interference,
    gradient_comparison,
    measure_interference,
)
from echo_cli.objective.logprobs import Scores, selected_logprobs, target_logprobs
from echo_cli.objective.loss import echo_loss, env_loss, rl_loss
from echo_cli.objective.step import WeighedStep
from echo_cli.trajectory import ContextViews, Role, Trajectory, context_views, expand_context_views, visible

Term = Callable[[Tensor, Targets, Tensor | None], Tensor]
"""A term of the loss: of the logprobs of a micro-batch's targets and, if there is a KL term, the reference's."""


@dataclass(frozen=True)
class TokenScores:
    """The policy's scores of one trajectory's tokens of selected roles, in order, at temperature 1; on the CPU."""

    logprobs: Tensor
    """log p(token), nats, float32."""
    correct: Tensor
    """Whether the token is the most probable one, bool."""
    confidence: Tensor
    """Probability of the most probable token, float32."""


class TorchPolicy:
    """A model with AdamW in one process; with `sampling.kind` openai, an endpoint samples its actions.

    Without `sampling`, a call of a sampler's `sample` ends when every sequence of the batch has finished.
    """

    def __init__(
        self,
        model: LanguageModel,
        renderer: Renderer,
        optim: OptimConfig,
        device: torch.device,
        sampling: SamplerConfig | None = None,
    ) -> None:
        self.model = model.to(device)
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer
        self.device = device
        self._optim = optim
        self._refill = 1.0 if sampling is None else sampling.refill
        self._prefill_tokens = None if sampling is None else sampling.prefill_tokens
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = AdamW(self._parameters, optim.lr, optim.betas, optim.eps, optim.weight_decay, fused=True)
        self._reference: LanguageModel | None = None
        self._updates = 0  # number of weight changes
        self._served: ServedPolicy | None = None
        if sampling is not None and sampling.kind == "openai":
            self._served = ServedPolicy(sampling, self.model, renderer, device)

    def keep_reference(self) -> None:
        """Set the present weights as the reference of the KL penalty."""
        self._reference = self.model.reference()

    def sampler(self, temperature: float, seed: int) -> Callable[[Sequence[int]], CachedSampler | EndpointSampler]:
        """Return a factory of samplers by rollouts. Equal seeds sample equal tokens, except at an endpoint."""

        def new(rollouts: Sequence[int]) -> CachedSampler | EndpointSampler:
            if self._served is not None:
                return self._served.sampler(self._updates, rollouts, temperature, seed)
            stop_ids = self.renderer.stop_ids
            return CachedSampler(self.model, rollouts, temperature, stop_ids, seed, self._refill, self._prefill_tokens)

        return new

    def own_sampler(self, batch: int, temperature: float, seed: int, stop_ids: Sequence[int]) -> CachedSampler:
        """Return a sampler of `batch` sequences in this process, even if an endpoint samples the actions.

        `sample` runs until every sequence has ended at one of `stop_ids` or at its token limit. At temperature 0 it
        selects the most probable token.
        """
        cells = self._prefill_tokens
        return CachedSampler(self.model, range(batch), temperature, stop_ids, seed, prefill_cells=cells)

    def mark_ends(self, trajectory: Trajectory) -> Trajectory:
        """Return `trajectory`, which is in this policy's tokens, with the ends of its outputs marked."""
        return mark_ends(trajectory, self.tokenizer)

    @naming_memory("update")
    def forward_backward(self, step: WeighedStep) -> Metrics:
        """Accumulate the gradient of the step's loss over micro-batches, one forward pass each."""
        parts, views = [], expand_context_views(step.trajectories, use_rl=step.settings.use_rl)
        imitated_B = (step.weights.imitation_weight_B > 0).tolist()
        imitated_V = [imitated_B[owner] for owner in views.owners]
        for indices in self._micro_batches(views.trajectories, imitated_V):
            imitating = imitated_V[indices[0]]
            wanted, scores, reference_logprobs_N = self._forward(
                step, views, indices, env_gradient=step.coeff > 0, imitating=imitating
            )
            loss, metrics = echo_loss(
                scores.logprobs_N,
                wanted,
                step.advantages_B,
                step.weights,
                step.settings,
                step.coeff,
                reference_logprobs_N,
                step.imitation_coeff,
            )
            loss.backward()  # type: ignore[no-untyped-call]
            lengths = [len(views.trajectories[index]) for index in indices]
            cells = len(lengths) * max(lengths)
            # An imitated action is not the policy's own.
            entropy_n = scores.entropy_N[: 0 if imitating else wanted.action_count]
            metrics["entropy"] = Metric(float(entropy_n.sum()), len(entropy_n))
            metrics["padding_fraction"] = Metric(cells - sum(lengths), cells)
            # A micro-batch never mixes the policy's own rollouts with scripted ones.
            on_policy = not views.trajectories[indices[0]].world_model_only
            metrics["policy_env_ce"] = metrics["env_ce"] if on_policy else Metric(0.0, 0)
            metrics |= _env_ce_by_environment(step, wanted, scores.logprobs_N)
            parts.append(metrics)
        merged = merge_metrics(parts)
        if len(views.owners) > len(step.trajectories) and step.advantages_B is not None:
            # A rollout with views in several micro-batches was counted once per micro-batch.
            learned_n = step.advantages_B.cpu()[(step.weights.rl_weight_B.cpu() > 0) & (step.counts.actions_B > 0)]
            merged["zero_advantage_fraction"] = Metric(float((learned_n == 0).sum()), len(learned_n))
        return merged

    @naming_memory("update")
    def probe(self, step: WeighedStep) -> GradientComparison:
        """Compare the gradients of the RL term and of the env term, without λ and without imitation.

        The accumulated gradient does not change.
        """

        def rl(logprobs_N: Tensor, wanted: Targets, reference_logprobs_N: Tensor | None) -> Tensor:
            return rl_loss(logprobs_N, wanted, step.advantages_B, step.weights, step.settings, reference_logprobs_N)

        return gradient_comparison(*self._gradients(step, rl, _env_term(step)))

    @naming_memory("update")
    def interference(self, step: WeighedStep, lr: float) -> Interference | None:
        """Measure how far the env term alone would move the logprobs of the step's actions.

        One optimizer step on λ · env term is taken with learning rate `lr` and undone (`scratch_step`). The result is
        None at λ = 0 and without actions of the policy.
        """
        if step.coeff == 0:
            return None
        before_n = self._action_logprobs(step)
        gradients = [step.coeff * gradient for gradient in self._gradients(step, _env_term(step))[0]]
        with scratch_step(self._optimizer, gradients, self._optim.grad_clip, lr):
            after_n = self._action_logprobs(step)
        return measure_interference(before_n, after_n)

    @naming_memory("update")
    def optim_step(self, lr: float) -> float:
        """Clip the accumulated gradient, apply AdamW, clear the gradient, and return its norm before clipping.

        A non-finite gradient is not applied.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._optim.grad_clip))
        if norm == norm and norm != float("inf"):
            self._optimizer.param_groups[0]["lr"] = lr
            self._optimizer.step()
            # Fused AdamW does not count its writes, by which a merged adapter knows that it is outdated.
            torch.autograd.graph.increment_version(self._parameters)
            self._updates += 1
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    @naming_memory("scoring")
    @torch.inference_mode()
    def score(self, trajectories: Sequence[Trajectory], roles: Collection[Role]) -> list[TokenScores]:
        """Score each trajectory's tokens of `roles`, teacher-forced.

        Actions with dropped thinking are not scored; each has its own view in `context_views`.
        """
        results: dict[int, TokenScores] = {}
        seen = [context_views(trajectory)[0] for trajectory in trajectories]
        for indices in bucket(seen, self._optim.token_budget):
            micro = collate(seen, indices, self.tokenizer.pad_id).to(self.device)
            wanted = targets(micro, roles)
            with self.model.holding_weights():
                hidden_NH = wanted.gather(self.model(micro.token_ids_RT))
                scores = target_logprobs(hidden_NH, self.model.head, wanted, 1.0, chunk_rows=self._chunk_rows)
            order = torch.argsort(wanted.position_N, stable=True)
            for index in indices:
                chosen = order[wanted.rollout_N[order] == index]
                parts = (scores.logprobs_N, scores.correct_N, scores.confidence_N)
                results[index] = TokenScores(*(part[chosen].cpu() for part in parts))
        return [results[index] for index in range(len(trajectories))]

    @naming_memory("scoring")
    @torch.inference_mode()
    def predict(self, trajectory: Trajectory) -> list[int]:
        """Return the most probable next token after each `visible` token of the trajectory, teacher-forced."""
        ids_1T = torch.tensor([visible(trajectory).token_ids], device=self.device)
        chunks = self.model(ids_1T)[0].split(self._chunk_rows)
        return [token for hidden_nH in chunks for token in self.model.head(hidden_nH).argmax(dim=-1).tolist()]

    def save(self, folder: Path) -> None:
        """Write weights, architecture, tokenizer and optimizer state into `folder`."""
        self.model.save(folder)
        self.tokenizer.save(folder)
        save_optimizer(self._optimizer, folder)

    def load(self, folder: Path) -> None:
        """Load weights and optimizer state from a folder that `save` wrote.

        Raises:
            EchoError: a file is damaged or belongs to another architecture.
        """
        self.model.load(folder)
        self._updates += 1
        load_optimizer(self._optimizer, folder, self.device)

    def _micro_batches(self, trajectories: Sequence[Trajectory], imitated: Sequence[bool]) -> list[list[int]]:
        """Bucket the trajectories by how they learn from their actions (RL, not at all, imitation), then by length.

        Mixed buckets would be slower: a bucket without action targets costs less.
        """
        kinds = [
            (trajectory.world_model_only, copied) for trajectory, copied in zip(trajectories, imitated, strict=True)
        ]
        groups = [
            [index for index, found in enumerate(kinds) if found == kind]
            for kind in ((False, False), (True, False), (True, True))
        ]
        return [
            [group[member] for member in members]
            for group in groups
            for members in bucket([trajectories[index] for index in group], self._optim.token_budget)
        ]

    def _forward(
        self,
        step: WeighedStep,
        views: ContextViews,
        indices: Sequence[int],
        *,
        env_gradient: bool = True,
        imitating: bool = False,
    ) -> tuple[Targets, Scores, Tensor | None]:
        """Score the targets of one micro-batch, the `views` at `indices`; add the reference's logprobs for the KL term.

        With `imitating`, the actions of rollouts without an RL term are also targets, at temperature 1.
        """
        micro = collate(views.trajectories, indices, self.tokenizer.pad_id).to(self.device)
        observing = views.trajectories[indices[0]].world_model_only
        roles = step.settings.selected_roles if observing else step.settings.target_roles
        temperature = step.temperature
        if imitating:
            roles, temperature = roles | {Role.ACTION}, 1.0
        wanted = targets(micro, roles).of_rollouts(views.owners).replaced(step.misplaced).weighted(step.factors)
        hidden_NH = wanted.gather(self.model(micro.token_ids_RT))
        scores = target_logprobs(
            hidden_NH,
            self.model.head,
            wanted,
            temperature,
            env_gradient=env_gradient,
            correct=False,
            chunk_rows=self._chunk_rows,
        )
        if step.settings.kl_coeff == 0 or self._reference is None:
            return wanted, scores, None
        if observing:  # no action targets of the RL term, hence no KL
            return wanted, scores, scores.logprobs_N.detach()
        actions = wanted.action_count  # the KL uses action targets only; the other reference values are never read
        with torch.no_grad():
            reference = self._reference
            reference_NH = wanted.gather(reference(micro.token_ids_RT))
            reference_scores = selected_logprobs(
                reference_NH[:actions],
                reference.head,
                wanted.token_ids_N[:actions],
                temperature,
                self._chunk_rows,
                entropy=False,
                correct=False,
            )
        return wanted, scores, torch.cat([reference_scores.logprobs_N, scores.logprobs_N[actions:].detach()])

    def _gradients(self, step: WeighedStep, *terms: Term) -> list[list[Tensor]]:
        """Return the gradient of each of some terms of the step's loss, a tensor per parameter."""
        totals = [[torch.zeros_like(parameter) for parameter in self._parameters] for _ in terms]
        views = expand_context_views(step.trajectories, use_rl=step.settings.use_rl)
        for indices in self._micro_batches(views.trajectories, [False] * len(views.owners)):
            wanted, scores, reference_logprobs_N = self._forward(step, views, indices)
            for place, term in enumerate(terms, start=1):
                loss = term(scores.logprobs_N, wanted, reference_logprobs_N)
                grads = torch.autograd.grad(loss, self._parameters, retain_graph=place < len(terms))
                for total, grad in zip(totals[place - 1], grads, strict=True):
                    total += grad
        return totals

    @torch.no_grad()
    def _action_logprobs(self, step: WeighedStep) -> Tensor:
        """Return the logprobs of the actions of the policy's own rollouts, at the sampling temperature, on the CPU."""
        own = [trajectory for trajectory in step.trajectories if not trajectory.world_model_only]
        views, found = expand_context_views(own, use_rl=True).trajectories, [torch.zeros(0)]
        for indices in bucket(views, self._optim.token_budget):
            micro = collate(views, indices, self.tokenizer.pad_id).to(self.device)
            wanted = targets(micro, {Role.ACTION})
            hidden_NH = wanted.gather(self.model(micro.token_ids_RT))
            scores = target_logprobs(
                hidden_NH, self.model.head, wanted, step.temperature, correct=False, chunk_rows=self._chunk_rows
            )
            found.append(scores.logprobs_N.cpu())
        return torch.cat(found)

    @property
    def _chunk_rows(self) -> int:
        return chunk_rows(self.model.vocab_size, self.device.type)


def _env_ce_by_environment(step: WeighedStep, wanted: Targets, logprobs_N: Tensor) -> Metrics:
    """Return `NAME/env_ce` of a micro-batch for each of several environments in the step, as `env_ce`."""
    names = [environment_of(trajectory) for trajectory in step.trajectories]
    found: Metrics = {}
    for name in sorted({*names} - {""}):
        own_B = torch.tensor([each == name for each in names], device=logprobs_N.device)
        ce_n = -logprobs_N.detach()[own_B[wanted.rollout_N] & (wanted.roles_N == Role.ENV_OUTPUT)]
        found[f"{name}/env_ce"] = Metric(float(ce_n.sum()), len(ce_n))
    return found


def _env_term(step: WeighedStep) -> Term:
    def env(logprobs_N: Tensor, wanted: Targets, _: Tensor | None) -> Tensor:
        return env_loss(logprobs_N, wanted, step.weights, step.settings)

    return env
