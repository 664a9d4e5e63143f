"""The probe of extraction: does the base look in the right file of a machine that it has read about?"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from echo_cli.models.tiny import TinyModel
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.trajectory import Role, Trajectory
from tiny_machine.demonstrations import READ, SHOWN, play
from toy_terminal_env.environment import world_and_tasks
from toy_terminal_env.machine import SEEDS

GROUPS: Mapping[str, Sequence[int]] = {"A": SHOWN, "B": READ, "unknown": SEEDS["evaluation"][-8:]}
"""Machines by what the base knows: shown acting, only read, never seen. Chance is 1 of 16 files."""


def probe(model: TinyModel, tokenizer: Tokenizer, questions: int = 48) -> dict[str, float]:
    """Return, by group, the share of questions after which `grep KEY` is most probably followed by the right file.

    The command with each of the 16 files is scored as the first line after the question; all share `grep KEY`.
    """
    rng = random.Random("tiny-base-probe")
    shares = {}
    for group, seeds in GROUPS.items():
        right = 0
        for number in range(questions):
            seed = seeds[number % len(seeds)]
            world, tasks = world_and_tasks(seed, "machine")
            task = rng.choice(list(tasks.values()))
            _, key, path = task.solution[0].split()
            paths = list(world.service_of)
            scores = _scores(model, play(tokenizer, seed, "machine", task, [[f"grep {key} {p}"] for p in paths]))
            right += paths[int(scores.argmax())] == path
        shares[group] = right / questions
    return shares


@torch.no_grad()
def _scores(model: TinyModel, trajectories: Sequence[Trajectory]) -> torch.Tensor:
    """Return the log-probability of each trajectory's action tokens, shape [N], nats."""
    ends = [max(i for i, role in enumerate(each.roles) if role is Role.ACTION) + 1 for each in trajectories]
    ids_NT = torch.zeros(len(trajectories), max(ends), dtype=torch.long)
    action_NT = torch.zeros(ids_NT.shape, dtype=torch.bool)
    for row, (each, end) in enumerate(zip(trajectories, ends, strict=True)):
        ids_NT[row, :end] = torch.tensor(each.token_ids[:end])
        action_NT[row, :end] = torch.tensor([role is Role.ACTION for role in each.roles[:end]])
    logprobs_NTV = (model(ids_NT[:, :-1]) @ model.lm_head_VH.T).log_softmax(-1)
    chosen_NT = logprobs_NTV.gather(-1, ids_NT[:, 1:, None]).squeeze(-1)
    return (chosen_NT * action_NT[:, 1:]).sum(-1)
