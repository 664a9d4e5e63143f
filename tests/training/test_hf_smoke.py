"""`echo-cli train --config hf-smoke`, whole: it learns, a stopped run resumes bitwise, its export is the policy."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import rows

from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.evaluation.loaded_run import build_policy
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.tiny import MODEL_FILE
from echo_cli.runs.directory import open_run
from echo_cli.trajectory import Trajectory, read_trajectories

pytestmark = pytest.mark.slow

FULL: tuple[str, ...] = ()
NO_ROLLOUTS = ("evaluation.validation_rollouts=0", "evaluation.heldout_rollouts=0")
LORA = ("model.lora={rank: 4, alpha: 8.0}", "optim.lr=1e-2", "objective.kl_coeff=0.01", *NO_ROLLOUTS)


def train(run: Path, *words: str) -> int:
    place = ("--output-dir", str(run.parent), "--run-name", run.name)
    return main(["train", "--config", "hf-smoke", *place, "threads=1", "checkpoint.every=4", *words])


@pytest.fixture(scope="module", params=[FULL, LORA], ids=["full", "lora"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    run = tmp_path_factory.mktemp("smoke") / "run"
    assert train(run, *request.param) == 0
    return run, request.param


def policy_of(run: Path, step: int) -> TorchPolicy:
    opened = open_run(run)
    policy, _ = build_policy(load_config(opened.config_path))
    policy.load(opened.load_checkpoint(step)[0])
    return policy


def test_held_out_env_ce_falls_in_five_steps(finished: tuple[Path, tuple[str, ...]]) -> None:
    first, *_, last = rows(finished[0])
    assert (first["step"], last["step"]) == (0, 5)
    # ln V is the loss of a uniform prediction.
    start = torch.tensor(float(policy_of(finished[0], 0).model.vocab_size)).log()
    assert abs(first["heldout/env_ce"] - float(start)) < 0.1
    assert last["heldout/env_ce"] < 0.95 * first["heldout/env_ce"]
    assert all(row["train/ratio"] == pytest.approx(1.0, abs=1e-5) for row in rows(finished[0])[1:])


def test_a_stopped_run_goes_on_bitwise(finished: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    whole, words = finished
    again = shutil.copytree(whole, tmp_path / "run")
    (again / "summary.json").unlink()
    shutil.rmtree(again / "checkpoints" / "step_000005")
    assert train(again, *words, "--resume") == 0
    assert rows(again) == rows(whole)
    file = "adapter_model.safetensors" if words else MODEL_FILE
    resumed, straight = (run / "checkpoints" / "step_000005" / file for run in (again, whole))
    assert resumed.read_bytes() == straight.read_bytes()


def test_the_export_is_the_policy(finished: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, words = finished
    merge = ["--merge"] if words else []
    assert main(["export", str(run), "--checkpoint", "5", "-o", str(tmp_path / "model"), *merge]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    policy = policy_of(run, 5)
    with torch.no_grad():
        for trajectory in played(run):
            ids_1T = torch.tensor([trajectory.token_ids])
            ours = policy.model.head(policy.model(ids_1T))
            torch.testing.assert_close(exported(ids_1T).logits, ours, rtol=0, atol=1e-5)
            assert tokenizer.decode(trajectory.token_ids) == policy.tokenizer.decode(trajectory.token_ids)
    assert (tmp_path / "model" / MODEL_FILE).is_file()


def test_the_transcripts_are_the_models_own_template(finished: tuple[Path, tuple[str, ...]]) -> None:
    """Around the sampled text, the transcript equals the output of `apply_chat_template` for the same messages."""
    run, _ = finished
    for trajectory in played(run):
        text = "".join(segment.text for segment in trajectory.segments)
        assert text.startswith("<|im_start|>user\n") and "<|im_start|>assistant\n<think>\n\n</think>\n\n" in text
        assert text.count("<tool_response>\n") >= len(trajectory.turns) - 1


@pytest.mark.parametrize("finished", [LORA], ids=["lora"], indirect=True)
def test_a_finished_run_is_measured_and_drawn(
    finished: tuple[Path, tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    capsys.readouterr()
    assert main(["eval-heldout", str(run), "--rollouts", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert os.path.isfile(found["figure"])
    assert (run / "heldout_env_ce.png").is_file()


def played(run: Path) -> list[Trajectory]:
    return list(read_trajectories(run / "trajectories.jsonl"))[:4]
