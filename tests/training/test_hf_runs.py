"""Runs of a Hugging Face model: resumed bit for bit, exported for transformers, used as a pool's actor."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hf_models import CPU, RENDERER, TOKENIZER, VOCABULARY, make_qwen3
from peft import PeftModel
from tiny_run import error_of, observations, rows, train
from transformers import AutoModelForCausalLM

from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config
from echo_cli.evaluation.pools.building import CheckpointActor, _load, _weights_sha256
from echo_cli.files import sha256_of
from echo_cli.models.hf.loading import hf_folder, load_hf_model
from echo_cli.models.tiny import load_model
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.runs.directory import open_run

torch.set_num_threads(1)

WORDS = (
    *("model.kind=hf", "device=cpu", "rollout.max_output_tokens=64", "rollout.max_episode_tokens=256"),
    *("rollout.max_action_tokens=6", "objective.kl_coeff=0.1", "sampler.refill=0.5"),
)
IDS_1T = torch.arange(20)[None] * 7 % VOCABULARY


@pytest.fixture(scope="module", autouse=True)
def plain_transcripts() -> Iterator[None]:
    """Use tiny-base's tokenizer, because the models here have none."""
    name = "echo_cli.models.hf.renderer"
    stand_in: Any = ModuleType(name)
    stand_in.load_hf_renderer = lambda folder, model, conversation: RENDERER
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, stand_in)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3(tmp_path_factory.mktemp("base"), tied=True)


@pytest.fixture(scope="module", params=["whole", "adapter"])
def run(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps with a checkpoint after each."""
    path = tmp_path_factory.mktemp("outputs") / str(request.param)
    lora = () if request.param == "whole" else ("model.lora.rank=4",)
    assert train(path, "--steps", "3", f"model.path={base}", *WORDS, *lora) == 0
    return path


@torch.no_grad()
def logits_of(run: Path, step: int) -> torch.Tensor:
    """Return the logits of the run's checkpoint of `step`."""
    config: Config = load_config(run / "config.yaml")
    with hf_folder(config.model, 0) as folder:
        model = load_hf_model(folder, config.model, CPU, torch.float32, config.seed, VOCABULARY)
    model.load(run / "checkpoints" / f"step_{step:06d}")
    return model.head(model(IDS_1T)[0])


def is_adapter(run: Path) -> bool:
    return run.name == "adapter"


def test_resuming_equals_never_having_stopped(run: Path, tmp_path: Path) -> None:
    again = shutil.copytree(run, tmp_path / run.name)
    (again / "summary.json").unlink()
    for step in (2, 3):
        shutil.rmtree(again / "checkpoints" / f"step_{step:06d}")
    assert train(again, "--steps", "3", "--resume", *_own(run)) == 0
    assert rows(again) == rows(run)
    assert observations(again) == observations(run)
    name = "adapter_model.safetensors" if is_adapter(run) else "model.safetensors"
    one, other = (place / "checkpoints" / "step_000003" / name for place in (again, run))
    assert one.read_bytes() == other.read_bytes()


def _own(run: Path) -> list[str]:
    """Return the words that a run was started with."""
    config = load_config(run / "config.yaml")
    return [f"model.path={config.model.path}", *WORDS, *(["model.lora.rank=4"] if config.model.lora else [])]


def test_an_export_says_in_transformers_what_the_checkpoint_says(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert main(["export", str(run), "--output", str(out), "--checkpoint", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["kind"], printed["step"]) == ("adapter" if is_adapter(run) else "model", 2)
    names = {entry.name for entry in out.iterdir()}
    assert names == set(printed["files"]) and not names & {"trainer.pt", "meta.json"}
    assert Tokenizer.load(out / "tokenizer.json").vocab_size == TOKENIZER.vocab_size
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(out)
        torch.testing.assert_close(loaded(IDS_1T).logits[0], logits_of(run, 2), rtol=1e-5, atol=1e-5)
        if is_adapter(run):
            adapter = json.loads((out / "adapter_config.json").read_text())
            under = AutoModelForCausalLM.from_pretrained(adapter["base_model_name_or_path"])
            torch.testing.assert_close(PeftModel.from_pretrained(under, out)(IDS_1T).logits[0], logits_of(run, 2))
            assert (
                adapter["target_modules"] == sorted(adapter["target_modules"]) and "q_proj" in adapter["target_modules"]
            )


def test_a_merged_export_is_one_model_with_the_logits_of_both(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    if not is_adapter(run):
        assert main(["export", str(run), "--output", str(out), "--merge"]) == 2
        assert "--merge has no effect" in error_of(capsys.readouterr().err)[0]
        assert not out.exists()
        return
    assert main(["export", str(run), "--output", str(out), "--merge", "--checkpoint", "latest"]) == 0
    assert "base and adapter as one model, step 3" in capsys.readouterr().out
    assert not list(out.glob("adapter*"))
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(out)
        torch.testing.assert_close(merged(IDS_1T).logits[0], logits_of(run, 3), rtol=1e-5, atol=1e-5)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_an_adapter_that_was_trained_further_is_exported_as_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not is_adapter(run):
        return
    before, further = tmp_path / "before", tmp_path / "further"
    assert main(["export", str(run), "-o", str(before)]) == 0
    assert train(further, "--steps", "1", f"model.path={before}", *WORDS) == 0
    shutil.rmtree(before)  # the checkpoint no longer has the earlier value
    capsys.readouterr()
    for out, words, kind in (("adapter", (), "adapter"), ("merged", ("--merge",), "merged")):
        command = ["export", str(further), "-o", str(tmp_path / out), "--checkpoint", "latest", "--json", *words]
        assert main(command) == 0
        assert json.loads(capsys.readouterr().out)["kind"] == kind
    with torch.no_grad():
        merged, adapted = (AutoModelForCausalLM.from_pretrained(tmp_path / out) for out in ("merged", "adapter"))
        torch.testing.assert_close(merged(IDS_1T).logits, adapted(IDS_1T).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_actor_of_a_pool_is_the_checkpoint_whatever_the_seed_of_the_pool(run: Path) -> None:
    config = load_config(run / "config.yaml", ["seed=9"])
    policy, actor = _load(CheckpointActor(run, 2), config)
    assert torch.equal(policy.model.head(policy.model(IDS_1T)[0]), logits_of(run, 2))
    assert (actor.run, actor.step) == (run.name, 2)
    (file,) = (run / "checkpoints" / "step_000002").glob("*.safetensors")
    assert actor.model_sha256 == sha256_of(file)


def test_the_weights_of_several_files_have_one_hash(tmp_path: Path) -> None:
    for name, content in (("b.safetensors", b"2"), ("a.safetensors", b"1"), ("c.json", b"3")):
        (tmp_path / name).write_bytes(content)
    one, two = hashlib.sha256(b"1").hexdigest(), hashlib.sha256(b"2").hexdigest()
    expected = hashlib.sha256(f"{one}  a.safetensors\n{two}  b.safetensors\n".encode()).hexdigest()
    assert _weights_sha256(tmp_path) == expected


def test_a_run_of_the_built_in_model_is_exported_in_its_own_form(finished: Path, tmp_path: Path) -> None:
    assert main(["export", str(finished), "-o", str(tmp_path / "tiny"), "--checkpoint", "4"]) == 0
    assert {entry.name for entry in (tmp_path / "tiny").iterdir()} == {
        *("model.safetensors", "config.json", "tokenizer.json"),
    }
    model, _ = load_model(tmp_path / "tiny")
    saved, _ = load_model(finished / "checkpoints" / "step_000004")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.state_dict().items())


def test_what_cannot_be_exported_is_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").touch()
    for words, message in (
        ([str(tmp_path / "none"), "-o", str(tmp_path / "out")], "does not exist"),
        ([str(finished), "-o", str(used)], "already exists"),
        ([str(finished), "-o", str(used / "file")], "already exists"),
        ([str(finished), "-o", str(tmp_path / "out"), "--checkpoint", "77"], "no checkpoint of step 77"),
        ([str(finished), "-o", str(tmp_path / "out"), "--checkpoint", "newest"], "no checkpoint 'newest'"),
        ([str(finished), "-o", str(tmp_path / "out"), "--merge"], "--merge has no effect"),
    ):
        assert main(["export", *words]) == 2
        assert message in error_of(capsys.readouterr().err)[0]
    assert not (tmp_path / "out").exists()
    if is_adapter(run):  # its base model cannot be reproduced elsewhere
        copy = shutil.copytree(run, tmp_path / "scratch")
        text = (copy / "config.yaml").read_text().replace("init: pretrained", "init: scratch")
        (copy / "config.yaml").write_text(text)
        assert main(["export", str(copy), "-o", str(tmp_path / "out")]) == 2
        error, tip = error_of(capsys.readouterr().err)
        assert "random weights" in error and "--merge" in tip


def test_a_damaged_checkpoint_is_not_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run, tmp_path / run.name)
    folder, _ = open_run(copy).load_checkpoint(3)
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["export", str(copy), "-o", str(tmp_path / "out"), "--checkpoint", "3"]) == 1
    assert "is damaged" in error_of(capsys.readouterr().err)[0]
