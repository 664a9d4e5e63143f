"""Ranks whose rollouts are sampled by an endpoint, or played in several environments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import OnRanks
from stand_in_endpoint import StandInEndpoint
from tiny_run import rows, train_words
from training.test_several_environments import config, servers
from training.test_training_by_ranks import train_jointly

from echo_cli.config.loader import find_config, load_config
from echo_cli.models.loading import load_policy
from echo_cli.trajectory import read_trajectories

__all__ = ["config", "servers"]

SMOKE = "--config hf-smoke probe_every=0 rollout.tasks_per_step=2 rollout.keep=9".split()
KEYS = "environment.toy_terminal.families=[key]"


@pytest.fixture
def endpoint() -> Iterator[StandInEndpoint]:
    pytest.importorskip("transformers")
    server = StandInEndpoint(None)
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "sync", "words"),
    [("ddp", "sglang", []), ("fsdp", "sglang", []), ("fsdp", "vllm-lora", ["model.lora={rank: 4, alpha: 8.0}"])],
)
def test_ranks_sample_at_an_endpoint_with_the_weights_of_each_step(
    strategy: str, sync: str, words: list[str], endpoint: StandInEndpoint, on_ranks: OnRanks, tmp_path: Path
) -> None:
    def load(folder: Path) -> Any:
        model = load_policy(load_config(find_config("hf-smoke"), words), torch.device("cpu")).model
        model.load(folder)
        return model

    endpoint.load = load
    run = tmp_path / "run"
    told = [*words, f"sampler.url={endpoint.url}/v1", f"sampler.weights={tmp_path / 'weights'}"]
    told += f"distributed.strategy={strategy} sampler.kind=openai sampler.model=policy sampler.sync={sync}".split()
    on_ranks(2, train_jointly, train_words(run, *SMOKE, KEYS, *told))
    loads = {"sglang": ("/update_weights_from_disk", "model_path"), "vllm-lora": ("/v1/load_lora_adapter", "lora_path")}
    path, key = loads[sync]
    assert len({body[key] for body in endpoint.bodies(path)}) == len(endpoint.bodies(path)) == 2
    own = [play for play in read_trajectories(run / "rollouts.jsonl") if not play.world_model_only]
    assert len(own) == 2 * 4
    assert [row["train/ratio"] for row in rows(run)[1:]] == [pytest.approx(1.0, abs=1e-3)] * 2


@pytest.mark.slow
def test_ranks_train_in_several_environments(config: Path, on_ranks: OnRanks, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", "--config", str(config), "--output-dir", str(tmp_path), "--run-name", "run"]
    on_ranks(2, train_jointly, words)
    last = rows(run)[-1]
    assert last["step"] == 3
    assert last["train/left/rollouts"] + last["train/right/rollouts"] == 6
