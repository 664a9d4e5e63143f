"""`scripts/reproduce-claims`: how it judges. What it trains are the runs of `cell_runner`, tested with the sweep."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from math import inf
from pathlib import Path
from typing import Any

import pytest

from echo_cli.config.loader import load_config
from echo_cli.statistics import Estimate

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


def _curve(*passes: float) -> list[tuple[float, float]]:
    return [(15 * number, value) for number, value in enumerate(passes)]


def test_a_run_that_ends_below_the_level_is_slower_than_any_that_reaches_it() -> None:
    pairs = [
        (_curve(0.2, 0.2, 0.3, 0.2), _curve(0.2, 0.4, 0.4, 0.4)),
        (_curve(0.2, 0.2, 0.2, 0.3), _curve(0.2, 0.2, 0.4, 0.3)),
        (_curve(0.9, 0.2, 0.2, 0.2), _curve(0.9, 0.1, 0.1, 0.4)),  # the value before training is no training
        (_curve(0.2, 0.2, 0.2, 0.2), _curve(0.2, 0.2, 0.2, 0.2)),
    ]
    found = CLAIMS.speed(pairs)
    assert found.level == pytest.approx((0.2 + 0.4 + 0.3 + 0.3 + 0.2 + 0.4 + 0.2 + 0.2) / 8)
    assert found.steps == [(30, 15), (45, 30), (inf, 45), (inf, inf)]
    assert found.sign_p == pytest.approx(2 / 8)  # three wins; two runs that never reach the level are a tie


def test_exchanging_the_arms_of_one_seed_leaves_the_level_as_it_is() -> None:
    a, b, c, d = (_curve(0.2, 0.1 * number, 0.2 + 0.07 * number) for number in range(4))
    assert CLAIMS.common_level([(a, b), (c, d)]) == pytest.approx(CLAIMS.common_level([(b, a), (c, d)]))
    forth, back = CLAIMS.speed([(a, b), (c, d)]), CLAIMS.speed([(b, a), (d, c)])
    assert forth.area.value == pytest.approx(-back.area.value)
    assert forth.sign_p == back.sign_p


@pytest.mark.parametrize("seeds", [5, 10])
def test_equal_arms_differ_in_one_case_of_twenty(seeds: int) -> None:
    repeats = 1000
    area, signs = CLAIMS.null_rejections(seeds, repeats=repeats)
    error = 3 * (0.05 * 0.95 / repeats) ** 0.5
    assert 0.05 - error <= area <= 0.05 + error
    assert signs <= 0.05 + error
    if seeds == 5:
        assert signs == 0  # five signs alike have p = 1/16: no run of five seeds can show it


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
