"""The objective presets against their sources' formulas, written out token by token for a hand-made batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from mock_lm import PAD_ID, A, C, E, W, episode

from echo_cli.config.loader import load_config
from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.presets import PRESETS
from echo_cli.config.schema import Config, flat_config
from echo_cli.objective.advantages import step_advantages
from echo_cli.objective.batch import collate, count_rollouts, targets
from echo_cli.objective.loss import echo_loss, step_totals, step_weights
from echo_cli.trajectory import Role, Trajectory

Token = tuple[float, float]
"""Logprobs under the policy and under the sampling distribution (0 for tokens that were not sampled), nats."""

# Two groups of two. The ratios run from 0.67 to 1.5, so that every clip range cuts some; one rollout is all actions.
ROLES = [[C, A, A, E, E, W, A], [C, A, E], [C, A, A, A, E, E, E], [C, A, A]]
REWARDS, GROUPS = [1.0, 0.0, 0.25, 1.0], ["a", "a", "b", "b"]
RATIOS = [[1.5, 0.67, 1.25], [1.3], [0.75, 1.1, 0.9], [1.21, 0.81]]


def batch() -> list[Trajectory]:
    built = []
    for number, roles in enumerate(ROLES):
        made = episode(roles, reward=REWARDS[number], group_id=GROUPS[number])
        sampled = iter([-0.5 - 0.1 * n for n in range(9)])
        segments = tuple(
            replace(segment, logprobs=tuple(next(sampled) for _ in segment.token_ids))
            if segment.role is Role.ACTION
            else segment
            for segment in made.segments
        )
        built.append(replace(made, segments=segments))
    return built


def tokens(number: int) -> tuple[list[Token], list[float]]:
    """Return the action tokens and the CE of the env_output tokens of one rollout."""
    behaviour = [-0.5 - 0.1 * n for n in range(len(RATIOS[number]))]
    actions = [(b + math.log(ratio), b) for b, ratio in zip(behaviour, RATIOS[number], strict=True)]
    observations = sum(role == E for role in ROLES[number])
    return actions, [1.0 + 0.5 * n + number for n in range(observations)]


def logprobs(trajectories: list[Trajectory]) -> tuple[torch.Tensor, object]:
    micro = collate(trajectories, range(len(trajectories)), PAD_ID)
    wanted = targets(micro, {Role.ACTION, Role.ENV_OUTPUT})
    taken = [(iter(tokens(n)[0]), iter(tokens(n)[1])) for n in range(len(ROLES))]
    values = []
    for role, rollout in zip(wanted.roles_N.tolist(), wanted.rollout_N.tolist(), strict=True):
        actions, ces = taken[rollout]
        values.append(next(actions)[0] if role == Role.ACTION else -next(ces))
    return torch.tensor(values, dtype=torch.float64), wanted


def group_norm(rewards: list[float]) -> list[float]:
    mean = sum(rewards) / len(rewards)
    # The defaults of torch and numpy differ; the sources use the sample standard deviation.
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return [(r - mean) / (std + 1e-6) for r in rewards]


def group_mean(rewards: list[float]) -> list[float]:
    return [r - sum(rewards) / len(rewards) for r in rewards]


def clipped(action: Token, advantage: float, low: float, high: float) -> float:
    ratio = math.exp(action[0] - action[1])
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def over_groups(of: object) -> list[float]:
    return [*of(REWARDS[:2]), *of(REWARDS[2:])]  # type: ignore[operator]


def paper() -> float:
    """Eq. 3: GRPO's token mean with clip-higher, and (1/B) Σ_i (1/|O_i|) Σ CE, warnings in |O_i| only."""
    advantages = over_groups(group_norm)
    terms = [clipped(action, advantages[n], 0.2, 0.28) for n in range(4) for action in tokens(n)[0]]
    env = sum(sum(tokens(n)[1]) / max(sum(role in (E, W) for role in ROLES[n]), 1) for n in range(4)) / 4
    return sum(terms) / len(terms) + 0.05 * env


def released() -> float:
    """The released configuration: clip 0.2 on both sides, mean over rollouts of the mean over tokens."""
    advantages = over_groups(group_norm)
    means = []
    for n in range(4):
        terms = [clipped(action, advantages[n], 0.2, 0.2) for action in tokens(n)[0]]
        means.append(sum(terms) / len(terms))
    env = sum(sum(tokens(n)[1]) / max(sum(role in (E, W) for role in ROLES[n]), 1) for n in range(4)) / 4
    return sum(means) / 4 + 0.05 * env


def prime() -> float:
    """One mean over all action tokens and one over all observation tokens, rewards centred only."""
    advantages = over_groups(group_mean)
    terms = [clipped(action, advantages[n], 0.2, 0.28) for n in range(4) for action in tokens(n)[0]]
    ces = [ce for n in range(4) for ce in tokens(n)[1]]
    return sum(terms) / len(terms) + 0.1 * sum(ces) / len(ces)


def openenv_example() -> float:
    """REINFORCE with GRPO's advantages: -A log p, no ratio and no clip; one mean each; λ 0.05."""
    advantages = over_groups(group_norm)
    terms = [-advantages[n] * action[0] for n in range(4) for action in tokens(n)[0]]
    ces = [ce for n in range(4) for ce in tokens(n)[1]]
    return sum(terms) / len(terms) + 0.05 * sum(ces) / len(ces)


@pytest.mark.parametrize(
    ("name", "formula"),
    [("paper", paper), ("released", released), ("prime", prime), ("openenv-example", openenv_example)],
)
def test_a_preset_is_its_sources_formula(name: str, formula: object) -> None:
    settings = ObjectiveSettings(**PRESETS[name].objective)
    trajectories = batch()
    logprobs_N, wanted = logprobs(trajectories)
    counts = count_rollouts(trajectories, settings.selected_roles)
    weights = step_weights(counts, step_totals(counts), settings)
    advantages_B = step_advantages(trajectories, settings.advantage)
    loss, _ = echo_loss(logprobs_N, wanted, advantages_B, weights, settings, settings.base_coeff)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(formula(), rel=1e-6)  # type: ignore[operator]


# What each source states, in this project's names, with the place. Sources:
# paper: arXiv 2605.24517. released: examples/train_integrations/echo_terminal/configs/qwen3_8b_rl_wm05.yaml in SkyRL.
# prime: "True Agents Model the World". openenv-example: echo_loss.py of OpenEnv's examples/echo_world_model (RFC 010).
SOURCES: dict[str, dict[str, object]] = {
    "paper": {
        "objective.use_rl": True,
        "objective.world_model_coeff": 0.05,
        "objective.schedule": "constant",
        "objective.advantage": "group_norm",
        "objective.surrogate": "clipped",
        "objective.clip_low": 0.2,
        "objective.clip_high": 0.28,
        "objective.rl_normalization": "token_mean",
        "objective.kl_coeff": 0.0,
        "objective.env_normalization": "observation_tokens",  # Eq. 3
        "objective.world_loss_target": "env_output",  # Eq. 3: warnings count in |O|, not in the sum
        "optim.betas": [0.9, 0.95],
        "optim.grad_clip": 0.2,
    },
    "released": {
        "objective.use_rl": True,
        "objective.world_model_coeff": 0.05,  # world_model_coeff: 0.05
        "objective.schedule": "constant",
        "objective.advantage": "group_norm",  # GRPO without advantage_batch_normalize
        "objective.surrogate": "clipped",
        "objective.clip_low": 0.2,  # eps_clip_low: 0.2
        "objective.clip_high": 0.2,  # eps_clip_high: 0.2
        "objective.rl_normalization": "sequence_mean",  # loss_reduction: sequence_mean
        "objective.kl_coeff": 0.0,  # use_kl_loss: false, use_kl_in_reward: false, kl_loss_coef: 0.0
        "objective.env_normalization": "observation_tokens",  # world_loss_normalization: full_observation_tokens
        "objective.world_loss_target": "env_output",  # world_loss_target: env_only
        "optim.betas": [0.9, 0.999],  # adam_betas: [0.9, 0.999]
        "optim.grad_clip": 0.2,  # max_grad_norm: 0.2
        "optim.weight_decay": 0.01,  # weight_decay: 0.01
    },
    "prime": {
        "objective.use_rl": True,
        "objective.world_model_coeff": 0.1,
        "objective.schedule": "constant",
        "objective.advantage": "group_mean",
        "objective.surrogate": "clipped",  # as close as the clipped surrogate allows
        "objective.clip_low": 0.2,  # ours
        "objective.clip_high": 0.28,  # ours
        "objective.rl_normalization": "token_mean",
        "objective.kl_coeff": 0.0,
        "objective.env_normalization": "token_mean",
        "objective.world_loss_target": "env_output",
    },
    "openenv-example": {
        "objective.use_rl": True,  # use_rl: bool = True
        "objective.world_model_coeff": 0.05,  # world_model_coeff: float = 0.05
        "objective.schedule": "constant",
        "objective.advantage": "group_norm",  # "GRPO group-relative"
        "objective.surrogate": "reinforce",  # -(token_logp * a * adv); clip_low and clip_high have no effect
        "objective.rl_normalization": "token_mean",  # / a.sum()
        "objective.kl_coeff": 0.0,
        "objective.env_normalization": "token_mean",  # / o.sum()
        "objective.world_loss_target": "env_output",  # RFC 010: env_only is the default
    },
}


def test_the_presets_are_those_of_the_config() -> None:
    assert {str(name) for name in get_args(get_args(Config.model_fields["preset"].annotation)[0])} == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_a_preset_sets_every_key_that_its_source_states_whatever_the_file_says(name: str) -> None:
    sections = PRESETS[name].sections
    assert {f"{section}.{key}": value for section in sections for key, value in sections[section].items()} == SOURCES[
        name
    ]
    config = flat_config(load_config("toy", [f"preset={name}"]).model_dump(mode="json"))
    assert {key: config[key] for key in SOURCES[name]} == SOURCES[name]
    assert config["preset"] == name
