"""The benchmark page beside the configs that it compares."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_names_every_key_in_which_its_configs_differ() -> None:
    table: str = runpy.run_path(str(ROOT / "scripts" / "benchmark"))["differences"]()
    keys = {line.split("`")[1] for line in table.splitlines()[2:]}
    assert {"objective.world_model_coeff", "objective.kl_coeff", "optim.lr", "rollout.group_size"} <= keys
    assert table in (ROOT / "docs" / "benchmark.md").read_text()
