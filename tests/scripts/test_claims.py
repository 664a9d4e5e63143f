"""`scripts/reproduce-claims`: how it judges. What it trains are the runs of `cell_runner`, tested with the sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from claims.arms import ARMS, BY_NAME, Place
from claims.comparison import Curve, difference, null_rejections, speed, step_at
from claims.measured import Measured
from claims.page import PAIRS, PICTURES, figures, verdict
from claims.records import Record
from claims.runs import Study, cell_of, chosen_rate

from echo_cli.statistics import Estimate


def _curve(*passes: float) -> Curve:
    return [(10 * number, value) for number, value in enumerate(passes)]


def test_the_value_before_training_is_no_training_and_a_level_may_never_be_reached() -> None:
    assert step_at(_curve(0.9, 0.2, 0.4), 0.3) == 20
    assert step_at(_curve(0.9, 0.2, 0.2), 0.3) == math.inf


def test_the_ratio_of_steps_is_a_geometric_mean_over_machines_in_which_a_late_run_counts_as_one_evaluation_more() -> (
    None
):
    slow, fast, never = _curve(0.0, 0.1, 0.3, 0.4), _curve(0.0, 0.3, 0.4, 0.4), _curve(0.0, 0.1, 0.1, 0.1)
    found = speed([[(slow, fast), (never, fast)], [(slow, slow), (slow, slow)]], level=0.3)
    first = (math.log(10 / 20) + math.log(10 / 40)) / 2  # never: 30, the last step, and one evaluation more
    assert found.ratio.value == pytest.approx(math.exp(first / 2))
    assert (found.reached, found.runs) == ((3, 4), 4)
    assert found.sign_p == 1.0  # one machine faster, one without a difference

    back = speed([[(fast, slow), (fast, never)], [(slow, slow), (slow, slow)]], level=0.3)
    assert back.ratio.value == pytest.approx(1 / found.ratio.value)


def test_equal_arms_differ_in_one_case_of_twenty() -> None:
    repeats = 600
    error = 3 * (0.05 * 0.95 / repeats) ** 0.5
    for test, share in null_rejections(10, repeats=repeats).items():
        assert share <= 0.05 + error, test
        if test != "sign":  # exact, and below its level where few signs are possible
            assert share >= 0.05 - error, test


def _record(arm: str, place: Place, value: float) -> Record:
    curves = {"heldout/pass_at_1": [(0, 0.0), (15, value)]}
    return Record(arm, place.machine, place.seed, 1e-3, "", {"pass_at_1_last": value}, curves, ())


def _measured(arm: str, values: dict[Place, float]) -> Measured:
    return Measured(BY_NAME[arm], {place: _record(arm, place, value) for place, value in values.items()})


def test_a_difference_is_paired_by_seed_and_its_interval_is_over_machines() -> None:
    grpo = _measured("grpo", {Place(1, 0): 0.1, Place(1, 1): 0.3, Place(2, 0): 0.5, Place(2, 1): 0.9})
    echo = _measured("echo", {Place(1, 0): 0.5, Place(1, 1): 0.5, Place(2, 0): 0.7})
    found = difference(grpo, echo, "pass_at_1_last")
    assert found is not None
    assert found.value == pytest.approx(((0.4 + 0.2) / 2 + 0.2) / 2)
    # t of one degree of freedom at 97.5 %, and the standard error of .3 and .2
    assert found.high == pytest.approx(found.value + 12.7062 * 0.05, rel=1e-4)


def test_arms_are_compared_where_both_have_runs_and_the_page_says_how_many() -> None:
    rates = {"grpo": [{"lr": 1e-3, "pass_at_1": 0.2}]}
    grpo = _measured("grpo", {Place(1, 0): 0.1, Place(1, 1): 0.3, Place(2, 0): 0.5})
    own, echo = _measured("own", {Place(1, 0): 0.5, Place(3, 0): 0.5}), _measured("echo", {Place(4, 0): 0.7})
    page = figures({"grpo": grpo, "own": own, "echo": echo}, 15, rates)
    assert page[0].startswith("15 steps on machines 1, 2, 3, 4 with seeds 0, 1")
    assert any(line.startswith("- GRPO (3 runs): ") for line in page)
    compared = [line for line in page if " against " in line]
    assert len(compared) == 2 and all("λ 0.3 against GRPO (1 pair of runs): " in line for line in compared)


def test_the_rate_of_an_arm_is_the_best_on_the_machines_of_the_tuning(tmp_path: Path) -> None:
    tuned = {"grpo": [{"lr": 1e-4, "pass_at_1": 0.2}, {"lr": 5e-4, "pass_at_1": 0.4}, {"lr": 1e-3, "pass_at_1": 0.3}]}
    (tmp_path / "rates.json").write_text(json.dumps(tuned))
    study = Study(tmp_path, 1, rates=tmp_path / "rates.json")
    assert chosen_rate(BY_NAME["grpo"], study) == 5e-4
    with pytest.raises(SystemExit, match="no learning rate was chosen for echo"):
        chosen_rate(BY_NAME["echo"], study)


def test_a_claim_holds_only_where_the_interval_leaves_out_zero() -> None:
    assert verdict(Estimate(0.1, 0.05, 0.15), wanted=1) == "holds"
    assert verdict(Estimate(0.1, 0.05, 0.15), wanted=-1) == "the opposite holds"
    assert verdict(Estimate(0.1, -0.05, 0.25), wanted=1) == "no difference seen"
    assert verdict(Estimate(0.1, None, None), wanted=1) == "no difference seen"


def test_every_arm_is_a_config_on_its_machine_and_every_comparison_has_its_arms() -> None:
    assert {name for pair in PAIRS for name in pair} <= set(BY_NAME)
    assert {name for arms in PICTURES.values() for name in arms} <= set(BY_NAME)
    for arm in ARMS:
        assert bool(arm.rates) != bool(arm.rate_of), "a learning rate of its own, or another arm's"
        assert arm.continues in {None, *BY_NAME} and arm.rate_of in {None, *BY_NAME}
        if arm.continues is None:
            config = cell_of(arm, Place(25, 1), 1e-3, Study(Path("unused"), 1, homeless_base=Path("base"))).config
            assert config.environment.toy_terminal is not None
            assert config.environment.toy_terminal.world_seeds == (25,) and config.seed == 1
