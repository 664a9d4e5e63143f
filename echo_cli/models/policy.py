"""The policy: a model and tokenizer on a device, with the four primitives that the loop requires of any backend.

`sampler` samples actions, `forward_backward` accumulates the step's gradient, `optim_step` applies it, `save` and
`load` persist the state. The loop owns the data and the order of calls; the policy owns the weights and the hardware.

Shapes: B rollouts of the step, V their views, R rows of a micro-batch, T tokens, N targets, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from echo_cli.config.model import SamplerConfig
from echo_cli.config.schema import OptimConfig
from echo_cli.environments.several import environment_of
from echo_cli.metrics import Metric, Metrics, merge_metrics
from echo_cli.models.device import naming_memory
from echo_cli.models.distributed.ranks import ALONE, Ranks
from echo_cli.models.distributed.split import whole
from echo_cli.models.endpoint.sampler import EndpointSampler
from echo_cli.models.endpoint.served_policy import ServedPolicy
from echo_cli.models.language_model import LanguageModel, SplitModel
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
from echo_cli.objective.logprobs import Scores, TokenScores, selected_logprobs, target_logprobs
from echo_cli.objective.loss import echo_loss, env_ce_by_name
from echo_cli.objective.step import Term, WeighedStep, env_term, micro_batches, rl_term
from echo_cli.trajectory import ContextViews, Role, Trajectory, context_views, expand_context_views, visible


class TorchPolicy:
    """A model with AdamW; with `sampling.kind` openai, an endpoint samples its actions.

    Without `sampling`, a call of a sampler's `sample` ends when every sequence of the batch has finished.

    With several `ranks`, each has a copy of the model, and `sampler`, `forward_backward`, `probe`, `interference`,
    `optim_step` and `score` are collectives: all ranks call them, with equal arguments, and get equal results.
    """

    def __init__(
        self,
        model: LanguageModel,
        renderer: Renderer,
        optim: OptimConfig,
        device: torch.device,
        sampling: SamplerConfig | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model.to(device)
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer
        self.device = device
        self.ranks = ranks
        """Processes among which the policy's work is divided."""
        self._optim = optim
        self._refill = 1.0 if sampling is None else sampling.refill
        self._prefill_tokens = None if sampling is None else sampling.prefill_tokens
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        self._names, self._parameters = list(trained), list(trained.values())
        self._optimizer = AdamW(self._parameters, optim.lr, optim.betas, optim.eps, optim.weight_decay, fused=True)
        self._splits = model if isinstance(model, SplitModel) else None
        self._reference: LanguageModel | None = None
        self._updates = 0  # number of weight changes
        self._served: ServedPolicy | None = None
        if sampling is not None and sampling.kind == "openai":
            self._served = ServedPolicy(sampling, self.model, renderer, device)

    @property
    def is_split(self) -> bool:
        """Whether the model is split over the ranks, instead of a copy on each."""
        return self._splits is not None

    def _hold_whole(self, whole: bool) -> None:
        """Gather the weights of a split model on every rank, to sample or score, or split them again, to update."""
        if self._splits is not None:
            self._splits.hold_whole(whole)

    def keep_reference(self) -> None:
        """Set the present weights as the reference of the KL penalty."""
        self._reference = self.model.reference()

    def sampler(self, temperature: float, seed: int) -> Callable[[Sequence[int]], CachedSampler | EndpointSampler]:
        """Return a factory of samplers by rollouts. Equal seeds sample equal tokens, except at an endpoint."""
        self._hold_whole(True)
        served, version = self._served, ""
        if served is not None and self.ranks.size > 1:  # before some ranks have rollouts to play and others none
            version = self.ranks.first(lambda: served.synced(self._updates, temperature, seed))

        def new(rollouts: Sequence[int]) -> CachedSampler | EndpointSampler:
            if served is not None:
                loaded = version or served.synced(self._updates, temperature, seed)
                return served.sampler(loaded, rollouts, temperature, seed)
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

    def forward_backward(self, step: WeighedStep) -> Metrics:
        """Accumulate the gradient of this rank's part of the step's loss, and return the metrics of the whole step."""
        views = expand_context_views(step.trajectories, use_rl=step.settings.use_rl)
        self._hold_whole(False)
        if self._splits is None:
            parts = self.ranks.collect(lambda: self._backward(step, views))
        else:  # its passes are collectives: a rank that fails in one cannot tell the others
            parts = self.ranks.gather(self._backward(step, views))
        merged = merge_metrics(filter(None, parts))
        if len(views.owners) > len(step.trajectories) and step.advantages_B is not None:
            # A rollout with views in several micro-batches was counted once per micro-batch.
            learned_n = step.advantages_B.cpu()[(step.weights.rl_weight_B.cpu() > 0) & (step.counts.actions_B > 0)]
            merged["zero_advantage_fraction"] = Metric(float((learned_n == 0).sum()), len(learned_n))
        return merged

    @naming_memory("update")
    def _backward(self, step: WeighedStep, views: ContextViews) -> Metrics:
        """Accumulate the gradient over this rank's micro-batches, one forward pass each, and return their metrics."""
        parts = []
        imitated_B = (step.weights.imitation_weight_B > 0).tolist()
        imitated_V = [imitated_B[owner] for owner in views.owners]
        batches = self._micro_batches(views, imitated_V)
        passes = len(batches) if self._splits is None else max(self.ranks.gather(len(batches)))
        for indices in batches:
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
            names = [environment_of(trajectory) for trajectory in step.trajectories]
            metrics |= env_ce_by_name(names, wanted, scores.logprobs_N)
            parts.append(metrics)
        if self._splits is not None:
            for _ in range(passes - len(batches)):
                self._splits.pass_without_loss()
        return merge_metrics(parts)

    def probe(self, step: WeighedStep) -> GradientComparison:
        """Compare the gradients of the RL term and of the env term, without λ and without imitation.

        The accumulated gradient does not change.
        """
        return gradient_comparison(*self._gradients(step, rl_term(step), env_term(step)))

    def interference(self, step: WeighedStep, lr: float) -> Interference | None:
        """Measure how far the env term alone would move the logprobs of the step's actions.

        One optimizer step on λ · env term is taken with learning rate `lr` and undone (`scratch_step`). The result is
        None at λ = 0 and without actions of the policy.
        """
        if step.coeff == 0:
            return None
        before_n = self._action_logprobs(step)
        gradients = [step.coeff * gradient for gradient in self._gradients(step, env_term(step))[0]]
        with naming_memory("update"), scratch_step(self._optimizer, gradients, self._optim.grad_clip, lr):
            after_n = self._action_logprobs(step)
        return measure_interference(before_n, after_n)

    @naming_memory("update")
    def optim_step(self, lr: float) -> float:
        """Add the ranks' gradients, clip the sum, apply AdamW, clear it, and return its norm before clipping.

        A non-finite gradient is not applied.
        """
        self.ranks.sum_gradients(self._parameters)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self._parameters, self._optim.grad_clip)))
        if norm == norm and norm != float("inf"):
            self._optimizer.param_groups[0]["lr"] = lr
            self._optimizer.step()
            # Fused AdamW does not count its writes, by which a merged adapter knows that it is outdated.
            torch.autograd.graph.increment_version(self._parameters)
            self._updates += 1
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def score(self, trajectories: Sequence[Trajectory], roles: Collection[Role]) -> list[TokenScores]:
        """Score each trajectory's tokens of `roles`, teacher-forced.

        Actions with dropped thinking are not scored; each has its own view in `context_views`.
        """
        self._hold_whole(True)
        return self.ranks.map(lambda share: self._score(share, roles), trajectories)

    @naming_memory("scoring")
    @torch.inference_mode()
    def _score(self, trajectories: Sequence[Trajectory], roles: Collection[Role]) -> list[TokenScores]:
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
        """Write weights, architecture, tokenizer and optimizer state into `folder`, on the first rank.

        If the model is split over the ranks, all of them call this with the same folder, and each writes its part.
        """
        # What all ranks write comes before what the first one writes alone, which may fail there.
        save_optimizer(self._optimizer, self._names, folder, self.ranks)
        if self._splits is not None or self.ranks.is_first:
            self.model.save(folder)
        if self.ranks.is_first:
            self.tokenizer.save(folder)

    def load(self, folder: Path) -> None:
        """Load weights and optimizer state from a folder that `save` wrote.

        Raises:
            EchoError: a file is damaged or belongs to another architecture.
        """
        self.model.load(folder)
        self._updates += 1
        load_optimizer(self._optimizer, self._names, folder, self.device)

    def _micro_batches(self, views: ContextViews, imitated_V: Sequence[bool]) -> list[list[int]]:
        return micro_batches(views.trajectories, imitated_V, self._optim.token_budget, self.ranks.share)

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
        """Return the gradient of each of some terms of the step's loss over all ranks, a tensor per parameter."""
        found = self.ranks.each(lambda: self._own_gradients(step, *terms))
        for gradients in found:
            self.ranks.sum(gradients)
        return found

    @naming_memory("update")
    def _own_gradients(self, step: WeighedStep, *terms: Term) -> list[list[Tensor]]:
        totals = [[torch.zeros_like(parameter) for parameter in self._parameters] for _ in terms]
        views = expand_context_views(step.trajectories, use_rl=step.settings.use_rl)
        for indices in self._micro_batches(views, [False] * len(views.owners)):
            wanted, scores, reference_logprobs_N = self._forward(step, views, indices)
            for place, term in enumerate(terms, start=1):
                loss = term(scores.logprobs_N, wanted, reference_logprobs_N)
                grads = torch.autograd.grad(loss, self._parameters, retain_graph=place < len(terms))
                for total, grad in zip(totals[place - 1], grads, strict=True):
                    total += grad
        return totals

    def _action_logprobs(self, step: WeighedStep) -> Tensor:
        """Return the logprobs of the actions of the policy's own rollouts, at the sampling temperature, on the CPU."""
        own = [trajectory for trajectory in step.trajectories if not trajectory.world_model_only]
        views = self.ranks.share(expand_context_views(own, use_rl=True).trajectories)
        return torch.cat(self.ranks.collect(lambda: self._logprobs_of_actions(views, step.temperature)))

    @naming_memory("update")
    @torch.no_grad()
    def _logprobs_of_actions(self, views: Sequence[Trajectory], temperature: float) -> Tensor:
        found = [torch.zeros(0)]
        for indices in bucket(views, self._optim.token_budget):
            micro = collate(views, indices, self.tokenizer.pad_id).to(self.device)
            wanted = targets(micro, {Role.ACTION})
            hidden_NH = wanted.gather(self.model(micro.token_ids_RT))
            scores = target_logprobs(
                hidden_NH, self.model.head, wanted, temperature, correct=False, chunk_rows=self._chunk_rows
            )
            found.append(scores.logprobs_N.cpu())
        return torch.cat(found)

    @property
    def _chunk_rows(self) -> int:
        return chunk_rows(self.model.vocab_size, self.device.type)
