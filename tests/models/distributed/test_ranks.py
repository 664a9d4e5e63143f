"""Updates and errors of one, two and four real processes that meet over gloo."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import OnRanks
from mock_lm import A, C, E, episode, random_episodes
from objective.test_loss import NORMALIZATIONS, normalized

from echo_cli.config.loader import find_config, load_config
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.metrics import reduce_metrics
from echo_cli.models.distributed.launch import joined, launched
from echo_cli.models.distributed.ranks import ALONE, Ranks
from echo_cli.models.loading import load_policy
from echo_cli.objective.step import weigh_step
from echo_cli.trajectory import Role, Trajectory

COEFF, TEMPERATURE, LR = 0.5, 0.8, 1e-6

AFTER_A_STEP = {"shift", "distance", "kl"}
"""Measures after a step of AdamW, which turns the rounding of a small gradient into a change of the size of a step."""

OF_MICRO_BATCHES = {"padding_fraction"}
"""Metrics of how the trajectories are arranged, which is what the ranks change."""

STEPS: dict[str, Callable[[], list[Trajectory]]] = {
    "seven": lambda: random_episodes(seed=3, number=7),
    # On four ranks, one has nothing, one no action and one no observation.
    "three": lambda: [episode([C, A, A, A], reward=1.0), episode([C, A], reward=0.0), episode([C, E, E], seed=4)],
}


def config() -> Config:
    return load_config(find_config("toy"), ["threads=1", "device=cpu"])


def updated(ranks: Ranks) -> list[dict[str, Any]]:
    """Return the figures of one update per normalisation and step; each update begins with the weights of the last."""
    found = []
    policy = load_policy(config(), torch.device("cpu"), ranks=ranks)
    for (rl, env), (name, trajectories) in product(NORMALIZATIONS, STEPS.items()):
        step = weigh_step(trajectories(), normalized(rl, env), COEFF, TEMPERATURE)
        values: dict[str, Any] = {"of": (name, rl, env)}
        if (rl, env) == NORMALIZATIONS[0]:
            moved = policy.interference(step, LR)
            values |= {**asdict(policy.probe(step)), **({} if moved is None else asdict(moved))}
            scores = policy.score(trajectories(), [Role.ENV_OUTPUT])
            values["scores"] = torch.cat([score.logprobs for score in scores])
        values |= reduce_metrics([policy.forward_backward(step)])
        values["grad_norm"] = policy.optim_step(LR)
        found.append(values)
    found[-1]["weights"] = torch.cat([each.detach().flatten() for each in policy.model.parameters()])
    return found


def update_jointly(folder: str) -> None:
    with joined(config(), launched()) as ranks:
        torch.save(updated(ranks), f"{folder}/rank{ranks.rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_several_ranks_update_as_one_process_does(size: int, on_ranks: OnRanks, tmp_path: Path) -> None:
    on_ranks(size, update_jointly, str(tmp_path))
    alone = updated(ALONE)
    per_rank = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(size)]
    for number, one in enumerate(alone):
        first = per_rank[0][number]
        for other in per_rank[1:]:
            assert other[number].keys() == first.keys() == one.keys()
            for key, value in first.items():
                equal = torch.equal if isinstance(value, torch.Tensor) else lambda left, right: left == right
                assert equal(value, other[number][key]), f"ranks differ in {key}"
        for key in one.keys() - OF_MICRO_BATCHES - {"of", "weights", "scores"}:
            tolerance = 1e-3 if key in AFTER_A_STEP else 1e-5
            assert first[key] == pytest.approx(one[key], rel=tolerance, abs=1e-6), (one["of"], key)
        assert math.isfinite(one["loss"]) and one["grad_norm"] > 0
        if "scores" in one:
            torch.testing.assert_close(first["scores"], one["scores"], rtol=1e-5, atol=1e-5)


def fail_on_the_last(folder: str) -> None:
    with joined(config(), launched()) as ranks:

        def work() -> int:
            if ranks.rank == ranks.size - 1:
                raise EchoError("the last rank fails", "a tip", exit_code=3)
            return ranks.rank

        try:
            ranks.collect(work)
        except EchoError as error:
            Path(folder, str(ranks.rank)).write_text(f"{error.message} {error.tip} {error.exit_code}")
        dealt = ranks.map(lambda share: [item * item for item in share], range(5))
        written = ranks.first(lambda: Path(folder, "first").write_text(str(ranks.rank)))
        assert (dealt, ranks.any(ranks.rank == 1), ranks.any(False), written) == ([0, 1, 4, 9, 16], True, False, 1)


@pytest.mark.slow
def test_an_error_of_one_rank_is_raised_on_all(on_ranks: OnRanks, tmp_path: Path) -> None:
    on_ranks(2, fail_on_the_last, str(tmp_path))
    assert {(tmp_path / str(rank)).read_text() for rank in range(2)} == {"the last rank fails a tip 3"}
    assert (tmp_path / "first").read_text() == "0"


def differ(folder: str) -> None:
    import os

    rank = int(os.environ["RANK"])
    own = config().model_copy(update={"seed": rank})
    try:
        with joined(own, launched()):
            raise AssertionError("it has to refuse")
    except EchoError as error:
        Path(folder, f"said{rank}").write_text(error.message)
    except SystemExit as end:
        Path(folder, f"left{rank}").write_text(str(end.code))


@pytest.mark.slow
def test_ranks_with_different_configs_refuse_to_start_and_one_says_why(on_ranks: OnRanks, tmp_path: Path) -> None:
    on_ranks(2, differ, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["left1", "said0"]
    assert (tmp_path / "left1").read_text() == "2"
    said = "the ranks have different configs: seed is 0 on rank 0 and 1 on rank 1"
    assert (tmp_path / "said0").read_text() == said


def test_one_process_does_everything_itself() -> None:
    assert (ALONE.is_first, ALONE.size, list(ALONE.share([1, 2, 3]))) == (True, 1, [1, 2, 3])
    with joined(config(), launched()) as ranks:
        assert ranks is ALONE
    parameter = torch.ones(2, requires_grad=True)
    ALONE.sum_gradients([parameter])
    assert parameter.grad is None
