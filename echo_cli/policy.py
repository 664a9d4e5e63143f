"""Who acts: the model and tokenizer on a device, and the four primitives that the loop needs of any backend.

`sampler` plays, `forward_backward` accumulates the step's gradient, `optim_step` applies it, `save` and `load` carry it
across processes. The loop owns the data and the order of calls; the policy owns the weights and the hardware.

Shapes: B rollouts of the step, R rows of a micro-batch, T tokens, N targets, H hidden.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from echo_cli.batch import Targets, bucket, collate, targets
from echo_cli.config import Config, OptimConfig
from echo_cli.error import EchoError, first_line
from echo_cli.logprob import Scores, selected_logprobs, target_logprobs
from echo_cli.memory import chunk_rows
from echo_cli.metric import Metric, Metrics, merge_metrics
from echo_cli.models.language_model import LanguageModel
from echo_cli.models.tiny_folder import load_model, model_folder
from echo_cli.objective import (
    GradientComparison,
    ObjectiveSettings,
    StepWeights,
    echo_loss,
    env_loss,
    gradient_comparison,
    rl_loss,
)
from echo_cli.out_of_memory import naming_memory
from echo_cli.renderer import PlainRenderer, Renderer
from echo_cli.sampler import CachedSampler
from echo_cli.tokenizer import TOKENIZER_FILE, Tokenizer
from echo_cli.trajectory import Role, Trajectory

TRAINER_FILE = "trainer.pt"


@dataclass(frozen=True)
class TokenScores:
    """What the policy says of one trajectory's tokens of some roles, in order, at temperature 1; on the CPU."""

    logprobs: Tensor
    """log p(token), nats, float32."""
    correct: Tensor
    """Whether the token is the most probable one, bool."""
    confidence: Tensor
    """The probability of the most probable token, float32."""


class TorchPolicy:
    """A model with AdamW, in one process."""

    def __init__(self, model: LanguageModel, renderer: Renderer, optim: OptimConfig, device: torch.device) -> None:
        self.model = model.to(device)
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer
        self.device = device
        self._optim = optim
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self._reference: LanguageModel | None = None

    def keep_reference(self) -> None:
        """Make the present weights the reference of the KL penalty."""
        self._reference = self.model.reference()

    def sampler(self, temperature: float, seed: int) -> Callable[[int], CachedSampler]:
        """Makes samplers for a number of sequences. The same seed samples the same tokens."""

        def new(batch: int) -> CachedSampler:
            generator = torch.Generator(self.device).manual_seed(seed)
            return CachedSampler(self.model, batch, temperature, self.renderer.stop_ids, generator)

        return new

    @naming_memory("update")
    def forward_backward(
        self,
        trajectories: Sequence[Trajectory],
        advantages_B: Tensor | None,
        weights: StepWeights,
        settings: ObjectiveSettings,
        coeff: float,
        temperature: float,
    ) -> Metrics:
        """Accumulate the gradient of the step's loss over micro-batches, from one forward pass each."""
        parts = []
        for indices in self._micro_batches(trajectories):
            wanted, scores, reference_logprobs_N = self._forward(
                trajectories, indices, settings, temperature, env_gradient=coeff > 0
            )
            loss, metrics = echo_loss(
                scores.logprobs_N, wanted, advantages_B, weights, settings, coeff, reference_logprobs_N
            )
            loss.backward()  # type: ignore[no-untyped-call]
            lengths = [len(trajectories[index]) for index in indices]
            cells = len(lengths) * max(lengths)
            entropy_n = scores.entropy_N[: wanted.action_count]
            metrics["entropy"] = Metric(float(entropy_n.sum()), len(entropy_n))
            metrics["padding_fraction"] = Metric(cells - sum(lengths), cells)
            # A micro-batch never mixes the policy's own rollouts with scripted ones.
            on_policy = not trajectories[indices[0]].world_model_only
            metrics["policy_env_ce"] = metrics["env_ce"] if on_policy else Metric(0.0, 0)
            parts.append(metrics)
        return merge_metrics(parts)

    @naming_memory("update")
    def probe(
        self,
        trajectories: Sequence[Trajectory],
        advantages_B: Tensor | None,
        weights: StepWeights,
        settings: ObjectiveSettings,
        temperature: float,
    ) -> GradientComparison:
        """The gradients of the two terms alone, λ left out; the accumulated gradient is not touched."""
        rl_grads = [torch.zeros_like(parameter) for parameter in self._parameters]
        env_grads = [torch.zeros_like(parameter) for parameter in self._parameters]
        for indices in self._micro_batches(trajectories):
            wanted, scores, reference_logprobs_N = self._forward(trajectories, indices, settings, temperature)
            rl = rl_loss(scores.logprobs_N, wanted, advantages_B, weights, settings, reference_logprobs_N)
            env = env_loss(scores.logprobs_N, wanted, weights)
            for grads, term, keep in ((rl_grads, rl, True), (env_grads, env, False)):
                for total, grad in zip(
                    grads, torch.autograd.grad(term, self._parameters, retain_graph=keep), strict=True
                ):
                    total += grad
        return gradient_comparison(rl_grads, env_grads)

    @naming_memory("update")
    def optim_step(self, lr: float) -> float:
        """Clip the accumulated gradient, apply AdamW and clear it. Returns the norm before clipping.

        A gradient that is not finite is not applied.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._optim.grad_clip))
        if norm == norm and norm != float("inf"):
            self._optimizer.param_groups[0]["lr"] = lr
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    @naming_memory("scoring")
    @torch.inference_mode()
    def score(self, trajectories: Sequence[Trajectory], roles: Collection[Role]) -> list[TokenScores]:
        """Teacher-forced scores of each trajectory's tokens of `roles`."""
        results: dict[int, TokenScores] = {}
        for indices in bucket(trajectories, self._optim.token_budget):
            micro = collate(trajectories, indices, self.tokenizer.pad_id).to(self.device)
            wanted = targets(micro, roles)
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
        """The most probable next token after each token of the trajectory, teacher-forced."""
        ids_1T = torch.tensor([trajectory.token_ids], device=self.device)
        predicted: list[int] = self.model.head(self.model(ids_1T)[0]).argmax(dim=-1).tolist()
        return predicted

    def save(self, folder: Path) -> None:
        """Write weights, architecture, tokenizer and optimizer state into `folder`."""
        self.model.save(folder)
        self.tokenizer.save(folder)
        state = io.BytesIO()
        torch.save(self._optimizer.state_dict(), state)
        (folder / TRAINER_FILE).write_bytes(state.getbuffer())

    def load(self, folder: Path) -> None:
        """Take weights and optimizer state from a folder that `save` wrote.

        Raises:
            EchoError: a file is damaged or belongs to another architecture.
        """
        self.model.load(folder)
        try:
            state = torch.load(folder / TRAINER_FILE, map_location=self.device, weights_only=True)
            self._optimizer.load_state_dict(state)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            raise EchoError(
                f"{folder / TRAINER_FILE} is not this run's trainer state: {first_line(error)}",
                "resume from another checkpoint",
            ) from error

    def _micro_batches(self, trajectories: Sequence[Trajectory]) -> list[list[int]]:
        """Buckets in which either all rollouts learn from their actions or none does: the latter cost less."""
        groups = [
            [index for index, trajectory in enumerate(trajectories) if trajectory.world_model_only is world_model_only]
            for world_model_only in (False, True)
        ]
        return [
            [group[member] for member in members]
            for group in groups
            for members in bucket([trajectories[index] for index in group], self._optim.token_budget)
        ]

    def _forward(
        self,
        trajectories: Sequence[Trajectory],
        indices: Sequence[int],
        settings: ObjectiveSettings,
        temperature: float,
        env_gradient: bool = True,
    ) -> tuple[Targets, Scores, Tensor | None]:
        micro = collate(trajectories, indices, self.tokenizer.pad_id).to(self.device)
        observing = trajectories[indices[0]].world_model_only
        wanted = targets(micro, settings.selected_roles if observing else settings.target_roles)
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
        if settings.kl_coeff == 0 or self._reference is None:
            return wanted, scores, None
        if observing:  # no action target, so nothing that the KL could be taken on
            return wanted, scores, scores.logprobs_N.detach()
        actions = wanted.action_count  # the KL is on these; what stands for the others is never read
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

    @property
    def _chunk_rows(self) -> int:
        return chunk_rows(self.model.vocab_size)


def load_renderer(config: Config) -> Renderer:
    """How the config's model writes conversations, without its weights.

    Raises:
        EchoError: a file of the tokenizer is missing or is not what it should be.
    """
    return PlainRenderer(Tokenizer.load(model_folder(config.model.path) / TOKENIZER_FILE))


@naming_memory("loading")
def load_policy(config: Config, device: torch.device) -> TorchPolicy:
    """The policy at the start of a run: the weights of the config's model, or random ones with `init: scratch`.

    Raises:
        EchoError: the model is missing or a file of it is not what it should be.
    """
    tiny, tokenizer = load_model(model_folder(config.model.path))
    if config.model.init == "scratch":
        tiny.init_weights(torch.Generator().manual_seed(config.seed))
    return TorchPolicy(tiny, PlainRenderer(tokenizer), config.optim, device)
