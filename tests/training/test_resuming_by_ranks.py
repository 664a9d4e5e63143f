"""Checkpoints of several ranks: resumed by as many, by more, by fewer and by one process; and of a split model."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import OnRanks, say
from safetensors.torch import load_file
from tiny_run import error_of, rows, train_words, weights
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from training.test_training_by_ranks import ARRANGED, assert_equal_rows, train_jointly

from echo_cli.cli.main import main
from echo_cli.evaluation.loaded_run import load_run
from echo_cli.models.distributed import shards
from echo_cli.models.distributed.shards import whole_tensors
from echo_cli.runs.directory import open_run

QUICK = "rollout.tasks_per_step=2 rollout.explorers=2".split()
SPLIT = "--config hf-smoke distributed.strategy=fsdp environment.toy_terminal.families=[key] probe_every=0".split()


def line(run: Path, steps: int, *words: str) -> list[str]:
    """Return the command line that trains `run` to `steps`, or continues it if it exists."""
    return train_words(run, "--steps", str(steps), *words, *(["--resume"] if run.exists() else []))


def trained(run: Path) -> list[dict[str, object]]:
    return [{key: row[key] for key in row if key.startswith("train/")} for row in rows(run)]


@pytest.mark.slow
def test_a_run_resumed_by_as_many_ranks_is_bitwise_the_uninterrupted_one(on_ranks: OnRanks, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    on_ranks(2, train_jointly, line(whole, 3, *QUICK))
    on_ranks(2, train_jointly, line(parts, 1, *QUICK))
    on_ranks(2, train_jointly, line(parts, 3, *QUICK))
    # The evaluation after the last step of the first part is the only difference.
    assert trained(whole) == trained(parts)
    assert weights(whole, 3) == weights(parts, 3)


@pytest.mark.slow
def test_a_run_goes_from_one_process_to_several_ranks_and_back(on_ranks: OnRanks, tmp_path: Path) -> None:
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    train_jointly(line(alone, 4, *QUICK, "evaluation.every=1"))
    for size, steps in ((0, 1), (2, 2), (0, 3), (4, 4)):
        words = line(moved, steps, *QUICK, "evaluation.every=1")
        on_ranks(size, train_jointly, words) if size else train_jointly(words)
    assert_equal_rows(alone, moved)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_split_model_is_saved_in_parts_and_continues_anywhere(
    on_ranks: OnRanks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    alone, moved, whole, parts = (tmp_path / name for name in ("alone", "moved", "whole", "parts"))
    train_jointly(line(alone, 4, *SPLIT))
    # A checkpoint of one process goes to ranks that split the model, to one process, and to more ranks.
    train_jointly(line(moved, 1, *SPLIT))
    shutil.copytree(moved, whole)
    on_ranks(2, train_jointly, line(moved, 2, *SPLIT))
    saved = moved / "checkpoints" / "step_000002"
    assert {path.name for path in saved.iterdir()}.isdisjoint({"model.safetensors", "trainer.pt"})
    assert len([*saved.glob("weights/*")]) == len([*saved.glob("trainer/*")]) == 2
    shutil.copytree(moved, parts)
    train_jointly(line(moved, 3, *SPLIT))
    on_ranks(4, train_jointly, line(moved, 4, *SPLIT))
    assert_close_rows(alone, moved)
    # As many ranks continue bitwise.
    on_ranks(2, train_jointly, line(whole, 3, *SPLIT))
    on_ranks(2, train_jointly, line(parts, 3, *SPLIT))
    assert trained(whole) == trained(parts)
    last = parts / "checkpoints" / "step_000003"
    for file in [*last.glob("weights/*"), *last.glob("trainer/*")]:
        one, other = load_file(file), load_file(whole / file.relative_to(parts))
        assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    # One process exports and plays it, and a new run begins with its weights.
    assert main(["export", str(parts), "--checkpoint", "latest", "-o", str(tmp_path / "model")]) == 0
    assert_trained_logits(parts, tmp_path / "model")
    own = ["distributed=null", f"model.path={last}"]
    assert main(train_words(tmp_path / "next", "--steps", "1", *SPLIT, *own)) == 0
    begun, exported = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "next" / "checkpoints" / "step_000000", tmp_path / "model")
    )
    assert begun.keys() == exported.keys() and all(torch.equal(value, begun[name]) for name, value in exported.items())
    # A damaged part is found before anything is loaded.
    part = next((last / "trainer").iterdir())
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    capsys.readouterr()
    assert main(line(parts, 4, *SPLIT)) == 1
    message, tip = error_of(capsys.readouterr().err)
    assert message == f"checkpoint {last} is damaged: trainer/{part.name} does not have its saved content"
    assert "the checkpoint of step 2 is intact" in tip


def assert_close_rows(run: Path, other: Path) -> None:
    for one, two in zip(trained(run), trained(other), strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - ARRANGED:
            wanted = pytest.approx(one[key], rel=1e-5, abs=1e-5) if isinstance(one[key], float) else one[key]
            assert two[key] == wanted, key


def assert_trained_logits(run: Path, folder: Path) -> None:
    """Assert that a model folder has the logits of the run's latest policy."""
    from transformers import AutoModelForCausalLM

    loaded = load_run(run)
    policy = loaded.policy(loaded.checkpoint("latest")[0])
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits = policy.model.head(policy.model(ids)[0])
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0], logits)


def fail_in_a_write(words: list[str], how: str, folder: str) -> None:
    """Train in a rank. As it writes the second checkpoint, the last one is killed, or its disk is full or another."""
    write, writes = HuggingFaceStorageWriter.write_data, []

    def write_or_fail(self: Any, plan: Any, planner: Any) -> Any:
        writes.append(plan)
        if os.environ["RANK"] == "1" and len(writes) == 2:  # the first checkpoint has weights alone
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.path = Path(folder, "elsewhere")
            self.path.mkdir()
        return write(self, plan, planner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HuggingFaceStorageWriter, "write_data", write_or_fail)
        patch.setattr(shards, "_FILE_BYTES", 2**18)
        say(words, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("full", "No space left on device"),
        ("elsewhere", "rank 0 does not see all files that the ranks wrote to "),
        ("killed", "rank 1 of 2 was lost: "),
    ],
)
def test_a_rank_that_fails_in_a_write_leaves_the_checkpoint_before(
    how: str, message: str, on_ranks: OnRanks, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    run, is_killed = tmp_path / "run", how == "killed"
    words = train_words(run, "--steps", "2", *SPLIT)
    on_ranks(2, fail_in_a_write, words, how, str(tmp_path), killed=[1] if is_killed else [])
    said = (tmp_path / "said0").read_text()
    assert said.startswith("1 ") and message in error_of(said[2:])[0]
    assert is_killed or (tmp_path / "said1").read_text() == "1 "
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == ["step_000000"]
    folder, _ = open_run(run).load_checkpoint()  # verified
    # The parts of a rank are in several files.
    assert len([*folder.glob("weights/*")]) > 2 and whole_tensors(folder / "weights")
