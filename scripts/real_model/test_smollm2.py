"""A run of a real language model: trained, resumed, exported, measured, and its loss computed independently.

`scripts/test-real-model` starts it with the model's folder in ECHO_REAL_MODEL.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from independent import behaviour_logprobs, echo_loss, gradients, read_step
from peft import PeftModel
from real_run import BFLOAT16, MODEL, TEMPERATURE, WORDS, base_model, rows, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from echo_cli.cli.main import main
from echo_cli.config.loader import find_config, load_config
from echo_cli.config.schema import Config
from echo_cli.environments.worlds import open_worlds
from echo_cli.evaluation.loaded_run import build_policy
from echo_cli.metrics import reduce_metrics
from echo_cli.models.policy import TorchPolicy
from echo_cli.objective.step import weigh_step
from echo_cli.training.step_data import play_explorers, play_tasks


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps in bfloat16, with a checkpoint after each."""
    run = tmp_path_factory.mktemp("outputs") / "run"
    assert train(run, *BFLOAT16) == 0
    return run


@torch.no_grad()
def test_the_converted_model_speaks() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    question = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
    ids_1T = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    answer_1T = base_model().generate(ids_1T, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer_1T[0, ids_1T.shape[1] :])
    assert len(tokenizer("2026")["input_ids"]) == 4


def test_held_out_env_ce_falls_in_three_steps(run: Path) -> None:
    first, *steps = rows(run)
    assert steps[-1]["heldout/env_ce"] < 0.95 * first["heldout/env_ce"]
    assert all(row["train/env_tokens"] > 0 and row["train/action_tokens"] > 0 for row in steps)
    assert all(row["train/ratio"] == pytest.approx(1, abs=0.05) for row in steps)  # bfloat16: two kinds of attention


def test_the_loss_of_the_first_step_is_the_loss_of_its_recorded_rollouts(run: Path) -> None:
    row = rows(run)[1]
    # A fresh adapter is 0: the policy of the first step is the base.
    with torch.no_grad():
        found = echo_loss(base_model(), read_step(run / "rollouts.jsonl", 1), row["train/lambda"], TEMPERATURE)
    assert row["train/loss"] == pytest.approx(float(found.total), rel=0.02)
    assert row["train/env_ce"] == pytest.approx(found.env_ce, rel=0.02)
    assert row["train/rl_loss"] == pytest.approx(found.rl, abs=0.02)


def test_resuming_equals_never_having_stopped(run: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(run, tmp_path / "run"))
    (again / "summary.json").unlink()
    for step in (2, 3):
        shutil.rmtree(again / "checkpoints" / f"step_{step:06d}")
    assert train(again, *BFLOAT16, "--resume") == 0
    assert rows(again) == rows(run)
    assert (again / "rollouts.jsonl").read_bytes() == (run / "rollouts.jsonl").read_bytes()
    name = "checkpoints/step_000003/adapter_model.safetensors"
    assert (again / name).read_bytes() == (run / name).read_bytes()


@torch.no_grad()
def test_a_merged_export_is_the_base_with_the_adapter(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert main(["export", str(run), "--checkpoint", "3", "--merge", "-o", str(out)]) == 0
    adapted = PeftModel.from_pretrained(base_model(), str(run / "checkpoints" / "step_000003"))
    record = read_step(run / "rollouts.jsonl", 3)[0]
    ids_1T = torch.tensor([[token for segment in record["segments"] for token in segment["token_ids"]]])
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    torch.testing.assert_close(merged(ids_1T).logits, adapted(ids_1T).logits, rtol=0, atol=1e-3)
    assert (merged(ids_1T).logits - base_model()(ids_1T).logits).abs().max() > 0.1
    text = "".join(segment["text"] for segment in record["segments"])
    assert AutoTokenizer.from_pretrained(out).decode(ids_1T[0]) == text


def test_a_finished_run_is_measured_as_in_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval-heldout", str(run), "--rollouts", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    measured = rows(run)
    for when, row in (("before", measured[0]), ("after", measured[found["step"]])):
        assert found[when]["heldout/env_ce"] == pytest.approx(row["heldout/env_ce"], rel=1e-6)
    assert found["step"] == 3 and found["after"]["heldout/env_ce"] < found["before"]["heldout/env_ce"]


@pytest.fixture(scope="module")
def exact() -> tuple[Config, TorchPolicy]:
    """The policy in float32, with an adapter that is not 0."""
    config = load_config(find_config("toy-files"), [*WORDS, "model.dtype=float32"])
    policy, _ = build_policy(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.02, generator=generator)
    return config, policy


def test_logprobs_loss_and_gradient_equal_an_independent_computation(
    exact: tuple[Config, TorchPolicy], tmp_path: Path
) -> None:
    config, policy = exact
    with open_worlds(config) as worlds:
        played = play_tasks(config, policy, worlds, 0)
        # One rollout of each group is rewarded, whatever it did: without contrast there is no RL term.
        rewarded = [replace(rollout, reward=float(number % 2)) for number, rollout in enumerate(played)]
        rollouts = [*rewarded, *play_explorers(config, policy, worlds, 0, 2)]
    coeff = config.objective.base_coeff
    weighed = weigh_step(rollouts, config.objective, coeff, TEMPERATURE)
    ours = reduce_metrics([policy.forward_backward(weighed)])

    policy.model.save(tmp_path)
    model = PeftModel.from_pretrained(base_model(), str(tmp_path), is_trainable=True)
    records = [rollout.to_json() for rollout in rollouts]
    theirs = echo_loss(model, records, coeff, TEMPERATURE, base_model())
    theirs.total.backward()

    for record, logprobs_n in zip(records, theirs.action_logprobs, strict=False):
        torch.testing.assert_close(torch.tensor(behaviour_logprobs(record)), logprobs_n, rtol=0, atol=1e-4)
    assert ours["loss"] == pytest.approx(float(theirs.total.detach()), rel=1e-5)
    assert ours["env_ce"] == pytest.approx(theirs.env_ce, rel=1e-5)
    assert ours["rl_loss"] == pytest.approx(theirs.rl, abs=1e-5)
    found, expected = gradients(policy.model.named_parameters()), gradients(model.named_parameters())
    assert found.keys() == expected.keys() and len(found) == 2 * 7 * 30  # A and B of seven layers in thirty blocks
    square = sum(float(gradient.square().sum()) for gradient in expected.values())
    off = sum(float((found[name] - gradient).square().sum()) for name, gradient in expected.items())
    assert square > 0 and (off / square) ** 0.5 < 1e-5
