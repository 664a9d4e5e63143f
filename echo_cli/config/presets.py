"""Named presets of the objective: the paper, its released code, prime-rl, OpenEnv's example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings that a source states: fields of ObjectiveSettings, and of `optim` (AdamW and gradient clipping)."""

    objective: Mapping[str, Any]
    optim: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """The preset's keys by the section of the config that holds them."""
        return {"objective": dict(self.objective), "optim": dict(self.optim)}


_COMMON: Mapping[str, Any] = {
    "use_rl": True,
    "schedule": "constant",
    "kl_coeff": 0.0,
    "world_loss_target": "env_output",
}
"""What all sources agree on: an RL term without a KL penalty, a constant λ, no loss on harness warnings."""

PRESETS: Mapping[str, Preset] = {
    # arXiv 2605.24517, text and Eq. 3.
    "paper": Preset(
        objective={
            **_COMMON,
            "world_model_coeff": 0.05,
            "advantage": "group_norm",
            "surrogate": "clipped",
            "clip_low": 0.2,
            "clip_high": 0.28,
            "rl_normalization": "token_mean",
            "env_normalization": "observation_tokens",
        },
        optim={"betas": [0.9, 0.95], "grad_clip": 0.2},
    ),
    # The paper's released configuration, which departs from the text: qwen3_8b_rl_wm05.yaml of its example in SkyRL.
    "released": Preset(
        objective={
            **_COMMON,
            "world_model_coeff": 0.05,
            "advantage": "group_norm",
            "surrogate": "clipped",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "rl_normalization": "sequence_mean",
            "env_normalization": "observation_tokens",
        },
        optim={"betas": [0.9, 0.999], "grad_clip": 0.2, "weight_decay": 0.01},
    ),
    # "True Agents Model the World", as close as the clipped surrogate allows; the clip range is ours.
    "prime": Preset(
        objective={
            **_COMMON,
            "world_model_coeff": 0.1,
            "advantage": "group_mean",
            "surrogate": "clipped",
            "clip_low": 0.2,
            "clip_high": 0.28,
            "rl_normalization": "token_mean",
            "env_normalization": "token_mean",
        },
    ),
    # OpenEnv's RFC 010 example (echo_loss in examples/echo_world_model), with its default λ and GRPO's advantages.
    "openenv-example": Preset(
        objective={
            **_COMMON,
            "world_model_coeff": 0.05,
            "advantage": "group_norm",
            "surrogate": "reinforce",
            "rl_normalization": "token_mean",
            "env_normalization": "token_mean",
        },
    ),
}


def preset_conflicts(name: str, values: Mapping[str, Any]) -> list[str]:
    """Return the key paths among a config's `values` that differ from the preset `name`."""
    conflicts = []
    for section, settings in PRESETS[name].sections.items():
        given = values.get(section)
        if isinstance(given, Mapping):
            conflicts += [f"{section}.{key}" for key, value in settings.items() if given.get(key, value) != value]
    return conflicts
