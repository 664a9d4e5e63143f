"""A run of the model in ECHO_REAL_MODEL: LoRA, three steps in the toy terminal; every rollout is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from echo_cli.cli.main import main

MODEL = os.environ["ECHO_REAL_MODEL"]
TEMPERATURE = 0.8
WORDS = (
    "model.kind=hf",
    f"model.path={MODEL}",
    "model.lora={rank: 8, alpha: 16.0}",
    "threads=1",
    "environment.toy_terminal={families: [key], ood_world_seeds: []}",
    "rollout.tasks_per_step=2",
    "rollout.group_size=2",
    f"rollout.temperature={TEMPERATURE}",
    "rollout.max_action_tokens=16",
    "rollout.explorers=4",
    "rollout.keep=99",
    "evaluation.every=3",
    "evaluation.validation_rollouts=0",
    "evaluation.heldout_rollouts=0",
    "checkpoint.every=1",
    "checkpoint.keep=9",
)
BFLOAT16 = ("model.dtype=bfloat16", "optim.lr=1e-3")


def train(run: Path, *words: str) -> int:
    place = ("--output-dir", str(run.parent), "--run-name", run.name)
    return main(["train", "--config", "toy-files", "--steps", "3", *place, *WORDS, *words])


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without values that depend on the clock."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in found]


def base_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
