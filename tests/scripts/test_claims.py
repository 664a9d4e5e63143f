"""`scripts/reproduce-claims`: how it judges. What it trains are the runs of `cell_runner`, tested with the sweep."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

from echo_cli.config.loader import load_config
from echo_cli.statistics import Estimate
from echo_cli.sweeps.results import CellResult
from echo_cli.sweeps.runner import CellStatus

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reproduce-claims"


def _load() -> Any:
    loader = SourceFileLoader("reproduce_claims", str(SCRIPT))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


CLAIMS = _load()


def _cell(*passes: float) -> CellResult:
    rows = [{"step": 15 * number, "heldout/pass_at_1": value} for number, value in enumerate(passes)]
    return CellResult("cell", 0.0, 0, CellStatus("finished"), None, rows)


@pytest.mark.parametrize(
    ("grpo", "echo", "steps"),
    [
        ((0.2, 0.3, 0.4, 0.4), (0.2, 0.4, 0.1, 0.1), (30, 15)),
        ((0.2, 0.3, 0.4, 0.4), (0.2, 0.3, 0.3, 0.39), (30, 60)),  # never: one evaluation past the end
        ((0.9, 0.3, 0.2, 0.1), (0.9, 0.1, 0.3, 0.1), (15, 30)),  # the start is nobody's training
    ],
)
def test_steps_to_the_best_of_grpo(grpo: tuple[float, ...], echo: tuple[float, ...], steps: tuple[int, int]) -> None:
    assert CLAIMS.steps_to_best(_cell(*grpo), _cell(*echo)) == steps


def test_a_claim_holds_only_where_the_interval_leaves_out_zero() -> None:
    assert CLAIMS.verdict(Estimate(0.1, 0.05, 0.15), wanted=1) == "holds"
    assert CLAIMS.verdict(Estimate(0.1, 0.05, 0.15), wanted=-1) == "the opposite holds"
    assert CLAIMS.verdict(Estimate(0.1, -0.05, 0.25), wanted=1) == "no difference seen"
    assert CLAIMS.verdict(Estimate(0.1, None, None), wanted=1) == "no difference seen"


def test_every_arm_is_a_config_in_the_untouched_world_and_every_comparison_has_its_arms() -> None:
    names = {arm.name for arm in CLAIMS.ARMS}
    assert {name for pair in CLAIMS.PAIRS for name in pair} <= names
    assert {name for arms in CLAIMS.PICTURES.values() for name in arms} <= names
    for arm in CLAIMS.ARMS:
        assert arm.continues in {None, *names}
        words = [*CLAIMS.MEASURED, *arm.overrides]
        config = load_config(SCRIPT.parents[1] / "configs" / f"{arm.config}.yaml", words)
        assert config.environment.toy_terminal.world_seeds == (CLAIMS.WORLD,)
