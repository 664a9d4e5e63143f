"""Process that runs our step or the reference's step: `python -m lm_benchmark.contender SPEC`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echo_cli.objective.advantages import step_advantages
from echo_cli.trajectory import Role, Trajectory
from lm_benchmark.architecture import load_model
from lm_benchmark.worker import Contender, serve
from lm_benchmark.workload import SETTINGS, Workload, scripts


def make(spec: dict[str, Any], model: str) -> Contender:
    """Create the contender of a spec, which `benchmark-hf` writes, with the model in the folder `model`."""
    causal_lm = load_model(Path(model))
    workload = Workload(**spec["workload"])
    played = scripts(workload, causal_lm.config.vocab_size, spec["seed"])
    rollouts = [Trajectory.from_json(record) for record in json.loads(Path(spec["rollouts"]).read_text())]
    device = torch.device("cpu")
    # Local imports keep the other contender's libraries out of memory.
    if spec["contender"] == "ours":
        from lm_benchmark.ours import Ours, language_model

        return Ours(language_model(causal_lm), played, rollouts, workload, spec["token_budget"], device)
    from lm_benchmark.reference import Reference

    return Reference(causal_lm, played, rollouts, workload, spec["rows"], device)


def trl_tensors(rollouts: Sequence[Trajectory]) -> dict[str, Tensor]:
    """Return the rollouts as TRL's trainer takes them: prompts padded on the left, completions on the right.

    Shapes: B rollouts, P prompt tokens, T completion tokens. `env_weight_BT` is a token's weight in the env term.
    """
    openings = [len(rollout.segments[0].token_ids) for rollout in rollouts]
    lengths = [len(rollout) - opening for rollout, opening in zip(rollouts, openings, strict=True)]
    B, P, T = len(rollouts), max(openings), max(lengths)
    found = {
        "prompt_ids": torch.zeros(B, P, dtype=torch.int64),
        "prompt_mask": torch.zeros(B, P, dtype=torch.int64),
        "completion_ids": torch.zeros(B, T, dtype=torch.int64),
        "completion_mask": torch.zeros(B, T, dtype=torch.int64),
        "tool_mask": torch.zeros(B, T, dtype=torch.int64),
        "old_per_token_logps": torch.zeros(B, T),
        "env_weight_BT": torch.zeros(B, T),
        "advantages": step_advantages(rollouts, SETTINGS.advantage).float(),
    }
    for row, (rollout, opening, length) in enumerate(zip(rollouts, openings, lengths, strict=True)):
        ids = torch.tensor(rollout.token_ids)
        roles = torch.tensor(rollout.roles)[opening:]
        behaviour = [value for s in rollout.segments[1:] for value in s.logprobs or (0.0,) * len(s.token_ids)]
        found["prompt_ids"][row, P - opening :] = ids[:opening]
        found["prompt_mask"][row, P - opening :] = 1
        found["completion_ids"][row, :length] = ids[opening:]
        found["completion_mask"][row, :length] = 1
        found["tool_mask"][row, :length] = (roles == Role.ACTION).long()
        found["old_per_token_logps"][row, :length] = torch.tensor(behaviour)
        found["env_weight_BT"][row, :length] = (roles == Role.ENV_OUTPUT) / (B * rollout.count(Role.ENV_OUTPUT))
    return found


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(spec["threads"])
    serve(lambda model: make(spec, model))
