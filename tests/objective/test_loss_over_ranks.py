"""The loss over two real processes, with totals all-reduced and gradients summed, equals one process."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mock_lm import PAD_ID, TinyLM, plan_step, random_episodes, run_step
from objective.test_loss import NORMALIZATIONS, normalized
from torch import Tensor

from echo_cli.objective.advantages import step_advantages
from echo_cli.objective.batch import collate, count_rollouts
from echo_cli.objective.loss import StepTotals, step_totals, step_weights
from echo_cli.trajectory import Trajectory

RANKS = 2
COEFF = 0.5


def rollouts() -> list[Trajectory]:
    return random_episodes(seed=8, number=8)


def shard(rank: int) -> list[Trajectory]:
    """Return a rank's whole groups: rank 0 has group g, rank 1 the rest, so the shards are uneven."""
    return [t for t in rollouts() if (t.group_id == "g") == (rank == 0)]


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    trajectories = shard(rank)
    results = []
    for rl, env in NORMALIZATIONS:
        settings = normalized(rl, env)
        counts = count_rollouts(trajectories, settings.selected_roles)
        summed = torch.tensor(astuple(step_totals(counts)))
        dist.all_reduce(summed)
        weights = step_weights(counts, StepTotals(*summed.tolist()), settings)
        advantages_B = step_advantages(trajectories, settings.advantage)
        micros = [collate(trajectories, [index], PAD_ID) for index in range(len(trajectories))]
        loss, gradient, _ = run_step(TinyLM(), micros, advantages_B, weights, settings, COEFF)
        result = torch.cat([torch.tensor([loss], dtype=torch.float64), gradient])
        dist.all_reduce(result)
        results.append(result)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_give_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    assert all(shard(rank) for rank in range(RANKS))
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=RANKS)
    results: list[Tensor] = torch.load(tmp_path / "results.pt", weights_only=True)
    trajectories = rollouts()
    for (rl, env), result in zip(NORMALIZATIONS, results, strict=True):
        settings = normalized(rl, env)
        micro = collate(trajectories, range(len(trajectories)), PAD_ID)
        loss, gradient, _ = run_step(TinyLM(), [micro], *plan_step(trajectories, settings), settings, COEFF)
        assert float(result[0]) == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(result[1:], gradient, rtol=1e-6, atol=1e-9)
