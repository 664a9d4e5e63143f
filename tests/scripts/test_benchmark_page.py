"""The benchmark page beside the configs that it compares, and the table of `benchmark-load` from known seconds."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_names_every_key_in_which_its_configs_differ() -> None:
    table: str = runpy.run_path(str(ROOT / "scripts" / "benchmark"))["differences"]()
    keys = {line.split("`")[1] for line in table.splitlines()[2:]}
    assert {"objective.world_model_coeff", "rollout.explorers", "optim.lr", "rollout.group_size"} <= keys
    assert table in (ROOT / "docs" / "benchmark.md").read_text()


def test_a_setting_is_judged_by_its_ratios_to_the_default_and_to_itself() -> None:
    def seconds(*steps: float) -> list[dict[str, float]]:
        return [{"rollout": step / 4, "update": step * 3 / 4, "step": step} for step in steps]

    rows = runpy.run_path(str(ROOT / "scripts" / "benchmark-load"))["rows"]
    default = SimpleNamespace(idle=seconds(1.0, 2.0, 4.0), busy=[])  # the machine slows down for everyone
    for idle, busy, judged in (
        ((1.1, 2.2, 4.4), 5.5, "ok"),
        ((1.2, 2.4, 4.8), 2.4, "too slow"),
        ((1, 2, 4), 5.2, "too slow"),
    ):
        found = rows("toy", {"default": default, "echo-cli": SimpleNamespace(idle=seconds(*idle), busy=seconds(busy))})
        cost, slow = f"{idle[0]:.2f}", f"{busy / idle[1]:.2f}"
        assert found == [
            ["toy", "default", "2.00", "1.00", "1.00", "1.00", "", "", "", ""],
            ["toy", "echo-cli", f"{idle[1]:.2f}", cost, cost, cost, slow, slow, slow, judged],
        ]
