"""Weights of an optimizer step: its rollouts, and the factor of each token's loss in each term."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from torch import Tensor

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.objective.advantages import step_advantages
from echo_cli.objective.batch import RolloutCounts, Targets, bucket, count_rollouts
from echo_cli.objective.filters import filter_env_rollouts
from echo_cli.objective.loss import StepWeights, env_loss, rl_loss, step_totals, step_weights
from echo_cli.objective.selection import target_factors
from echo_cli.seeds import uniforms
from echo_cli.trajectory import Role, Trajectory


@dataclass(frozen=True)
class WeighedStep:
    """The B rollouts of an optimizer step, and all inputs of its loss other than the policy."""

    trajectories: Sequence[Trajectory]
    """B rollouts, from the policy, explorers and traces."""
    settings: ObjectiveSettings
    coeff: float
    """λ, the weight of the env term."""
    temperature: float
    """Sampling temperature of the actions; the RL term scores them at this temperature."""
    advantages_B: Tensor | None
    """Advantages, float64; None without an RL term."""
    counts: RolloutCounts
    weights: StepWeights
    dropped: Mapping[str, int]
    """Number of rollouts that each filter dropped from the env term."""
    imitation_coeff: float | None = None
    """Weight of the imitation term; None omits its metrics as well."""
    misplaced: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Token ids that replace the observation targets of each rollout in the env term (`Targets.replaced`); empty unless
    `env_targets` is shuffled or random."""
    factors: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """Factors of the observation tokens of each rollout in the env term (`Targets.weighted`); empty if all are 1."""

    @property
    def misplaced_fraction(self) -> float | None:
        """Fraction of the env term's targets whose token is not the environment's; None without targets."""
        wrong = sum(
            token != wanted and factor > 0
            for index, wanted_tokens in self.misplaced.items()
            for token, wanted, factor in zip(
                observation_tokens(self.trajectories[index], self.settings.selected_roles),
                wanted_tokens,
                self.factors.get(index, (1.0,) * len(wanted_tokens)),
                strict=True,
            )
        )
        total = int(self.counts.selected_B[self.counts.in_env_B].sum())
        return wrong / total if total else None

    @property
    def unselected_fraction(self) -> float | None:
        """Fraction of the observation tokens that `env_weights` and `env_min_action_entropy` leave out.

        Of the rollouts in the env term and its roles; None without such tokens.
        """
        candidates = int(self.counts.candidates_B[self.counts.in_env_B].sum())
        selected = int(self.counts.selected_B[self.counts.in_env_B].sum())
        return 1 - selected / candidates if candidates else None

    @property
    def has_contrast(self) -> bool:
        """Whether any advantage is nonzero."""
        return self.advantages_B is not None and bool(self.advantages_B.any())


def weigh_step(
    trajectories: Sequence[Trajectory],
    settings: ObjectiveSettings,
    coeff: float,
    temperature: float,
    *,
    imitated: Collection[int] = (),
    imitation_coeff: float | None = None,
    mark_ends: Callable[[Trajectory], Trajectory] | None = None,
    seed: int = 0,
) -> WeighedStep:
    """Compute advantages within groups, filters and selection of the env term, and weights over the step.

    Args:
        coeff: λ.
        imitated: indices of the rollouts whose actions are imitated if `imitation_coeff` is above 0.
        mark_ends: marks the ends of a rollout's outputs, if `settings.end_of_output` (`TorchPolicy.mark_ends`).
        seed: seed of the step's draws of targets (`env_targets`: shuffled, random).

    Raises:
        EchoError: a rollout lacks a reward or turns that the objective needs.
        ValueError: an imitated rollout has an RL term, or `mark_ends` is missing.
    """
    if settings.end_of_output:
        if mark_ends is None:
            raise ValueError("end_of_output needs mark_ends, such as TorchPolicy.mark_ends")
        trajectories = [mark_ends(trajectory) for trajectory in trajectories]
    advantages_B = step_advantages(trajectories, settings.advantage) if settings.use_rl else None
    filtered = filter_env_rollouts(trajectories, settings)
    kept = [index for index in filtered.kept if _observes(trajectories[index], settings)]
    factors = target_factors(trajectories, settings)
    counts = count_rollouts(
        trajectories,
        settings.selected_roles,
        use_rl=settings.use_rl,
        kept=kept,
        imitated=imitated if imitation_coeff else (),
        factors=factors,
    )
    return WeighedStep(
        trajectories=trajectories,
        settings=settings,
        coeff=coeff,
        temperature=temperature,
        advantages_B=advantages_B,
        counts=counts,
        weights=step_weights(counts, step_totals(counts), settings),
        dropped=filtered.dropped,
        imitation_coeff=imitation_coeff,
        misplaced=misplaced_targets(trajectories, kept, settings, seed),
        factors=factors,
    )


def _observes(trajectory: Trajectory, settings: ObjectiveSettings) -> bool:
    """Return whether `env_targets` leaves a rollout in the env term: of a placebo of another world, only explorers."""
    return settings.env_targets != "other_world" or trajectory.world_model_only


def micro_batches(
    trajectories: Sequence[Trajectory],
    imitated: Sequence[bool],
    token_budget: int,
    share: Callable[[Sequence[int]], Sequence[int]] = lambda indices: indices,
) -> list[list[int]]:
    """Bucket trajectories by how they learn from their actions (RL, not at all, imitation), then by length.

    Mixed buckets would be slower: a bucket without action targets costs less.

    Args:
        imitated: whether the actions of each trajectory are imitated.
        token_budget: maximum size of a micro-batch, tokens including padding (`bucket`).
        share: selects the part of this rank from indices of one kind, the longest first, so that every rank has about
            as many tokens of each kind.

    Returns:
        Lists of indices into `trajectories`.
    """
    kinds = [(trajectory.world_model_only, copied) for trajectory, copied in zip(trajectories, imitated, strict=True)]
    batches = []
    for kind in ((False, False), (True, False), (True, True)):
        of_kind = [index for index, found in enumerate(kinds) if found == kind]
        group = sorted(share(sorted(of_kind, key=lambda index: -len(trajectories[index]))))
        buckets = bucket([trajectories[index] for index in group], token_budget)
        batches += [[group[member] for member in members] for members in buckets]
    return batches


def observation_tokens(trajectory: Trajectory, selected_roles: Collection[Role]) -> list[int]:
    """Return the tokens of a trajectory that have one of the env term's roles, in order."""
    segments = (segment for segment in trajectory.segments if segment.role in selected_roles)
    return [token for segment in segments for token in segment.token_ids]


def misplaced_targets(
    trajectories: Sequence[Trajectory], kept: Collection[int], settings: ObjectiveSettings, seed: int
) -> dict[int, list[int]]:
    """Return the wrong targets of the placebos `shuffled` and `random`, by rollout; no entry otherwise.

    Both deal the step's own observation tokens out again, each once, so that every rollout keeps its number of targets
    and the step its counts of tokens:

    - `shuffled`: the rollouts' observations follow each other in random order, the longest first, and all targets move
      ahead by its length. The text stays whole, and no rollout has a target of its own unless it has more than half.
    - `random`: the tokens in random order, of which the frequencies are all that is left to learn.

    Args:
        kept: indices of the rollouts in the env term.
        seed: seed of the draws, of the run and the step.
    """
    if settings.env_targets not in ("shuffled", "random"):
        return {}
    tokens = {index: observation_tokens(trajectories[index], settings.selected_roles) for index in kept}
    tokens = {index: found for index, found in tokens.items() if found}
    if not tokens:
        return {}
    if settings.env_targets == "random":
        order, pool = list(tokens), list(chain.from_iterable(tokens.values()))
        dealt = [pool[place] for place in _permutation(len(pool), seed)]
    else:
        drawn = [list(tokens)[place] for place in _permutation(len(tokens), seed)]
        order = sorted(drawn, key=lambda index: len(tokens[index]), reverse=True)[:1]
        order += [index for index in drawn if index != order[0]]
        pool = [token for index in order for token in tokens[index]]
        ahead = len(tokens[order[0]])
        dealt = [*pool[ahead:], *pool[:ahead]]
    cards = iter(dealt)
    return {index: [next(cards) for _ in tokens[index]] for index in order}


def _permutation(count: int, seed: int) -> list[int]:
    """Return the numbers below `count` in an order that depends on `count` and `seed` alone."""
    order: list[int] = np.argsort(uniforms(seed, 0, 0, count), kind="stable").tolist()
    return order


Term = Callable[[Tensor, Targets, Tensor | None], Tensor]
"""A term of the loss: of the logprobs of a micro-batch's targets and, if there is a KL term, the reference's."""


def rl_term(step: WeighedStep) -> Term:
    """Return the RL term of a step."""

    def rl(logprobs_N: Tensor, wanted: Targets, reference_logprobs_N: Tensor | None) -> Tensor:
        return rl_loss(logprobs_N, wanted, step.advantages_B, step.weights, step.settings, reference_logprobs_N)

    return rl


def env_term(step: WeighedStep) -> Term:
    """Return the env term of a step, before λ."""

    def env(logprobs_N: Tensor, wanted: Targets, _: Tensor | None) -> Tensor:
        return env_loss(logprobs_N, wanted, step.weights, step.settings)

    return env
