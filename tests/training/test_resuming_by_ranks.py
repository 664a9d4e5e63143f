"""Checkpoints of several ranks: resumed by as many, by more, by fewer and by one process; and of a split model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launched import on_ranks
from safetensors.torch import load_file
from tiny_run import rows, train_words, weights
from training.test_training_by_ranks import assert_equal_rows, train_jointly

from echo_cli.cli.main import main

QUICK = "rollout.tasks_per_step=2 rollout.explorers=2".split()
SPLIT = "--config hf-smoke distributed.strategy=fsdp environment.toy_terminal.families=[key] probe_every=0".split()


def train_on(size: int, run: Path, steps: int, *words: str) -> None:
    """Train `run` to `steps` on `size` ranks, or in this process for 0; continue it if it exists."""
    again = ["--resume"] if run.exists() else []
    line = train_words(run, "--steps", str(steps), *words, *again)
    on_ranks(size, train_jointly, line) if size else train_jointly(line)


@pytest.mark.slow
def test_a_run_resumed_by_as_many_ranks_is_bitwise_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_on(2, whole, 3, *QUICK)
    train_on(2, parts, 1, *QUICK)
    train_on(2, parts, 3, *QUICK)
    # The evaluation after the last step of the first part is the only difference.
    trained = [
        [{key: row[key] for key in row if key.startswith("train/")} for row in rows(run)] for run in (whole, parts)
    ]
    assert trained[0] == trained[1]
    assert weights(whole, 3) == weights(parts, 3)


@pytest.mark.slow
def test_a_run_goes_from_one_process_to_several_ranks_and_back(tmp_path: Path) -> None:
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    train_on(0, alone, 4, *QUICK, "evaluation.every=1")
    for size, steps in ((0, 1), (2, 2), (0, 3), (4, 4)):
        train_on(size, moved, steps, *QUICK, "evaluation.every=1")
    assert_equal_rows(alone, moved)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_split_model_trains_as_a_whole_one_and_its_checkpoint_is_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    alone, split = tmp_path / "alone", tmp_path / "split"
    train_on(0, alone, 2, *SPLIT, "rollout.tasks_per_step=1")
    train_on(0, split, 1, *SPLIT, "rollout.tasks_per_step=1")
    train_on(2, split, 2)
    for one, two in zip(rows(alone), rows(split), strict=True):
        for key in ("train/loss", "train/grad_norm", "train/env_ce", "train/reward", "train/action_tokens"):
            assert two.get(key) == (pytest.approx(one[key], rel=1e-5) if one.get(key) is not None else None), key
    saved = [load_file(run / "checkpoints" / "step_000002" / "model.safetensors") for run in (alone, split)]
    assert saved[0].keys() == saved[1].keys()
    for name, value in saved[0].items():
        torch.testing.assert_close(saved[1][name], value, rtol=1e-4, atol=1e-4)
    assert main(["export", str(split), "--checkpoint", "latest", "-o", str(tmp_path / "model")]) == 0
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(exported[name], value) for name, value in saved[1].items())
