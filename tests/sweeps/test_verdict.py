"""Verdicts on a λ: each of the six verdicts, and the order of the rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echo_cli.statistics import Estimate
from echo_cli.sweeps.verdict import RULE, Evidence, judge, judge_tasks

STILL = Evidence(
    finished=5,
    broken=0,
    idle=0,
    met=0,
    change=Estimate(0.0, -0.01, 0.01),
    rise=Estimate(0.0, -0.01, 0.01),
    pass_before=0.4,
    pass_change=Estimate(0.0, -0.1, 0.1),
)
LEARNT = Estimate(-0.3, -0.4, -0.2)
HALVED = Estimate(-0.2, -0.25, -0.15)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "flat"),
        ({"change": Estimate(0.0, -0.05, 0.05)}, "flat"),
        ({"change": Estimate(0.0, -0.06, 0.04)}, "inconclusive"),
        ({"change": Estimate(0.0, -0.04, 0.06)}, "inconclusive"),
        ({"change": LEARNT}, "learns"),
        ({"change": Estimate(-0.3, -0.4, -0.05)}, "inconclusive"),
        ({"change": Estimate(0.3, 0.06, 0.5)}, "over-fits"),
        ({"change": LEARNT, "rise": Estimate(0.1, 0.06, 0.2)}, "over-fits"),
        ({"change": LEARNT, "rise": Estimate(0.1, 0.04, 0.2)}, "learns"),
        ({"change": LEARNT, "rise": None}, "learns"),
        ({"change": LEARNT, "pass_change": HALVED}, "collapsed"),
        ({"pass_change": Estimate(-0.19, -0.25, -0.15)}, "flat"),
        ({"pass_change": Estimate(-0.3, -0.7, 0.1)}, "flat"),
        ({"pass_change": Estimate(-0.3, None, None)}, "flat"),
        ({"pass_change": None, "pass_before": None}, "flat"),
        ({"change": LEARNT, "finished": 2, "pass_change": HALVED}, "inconclusive"),
        ({"change": LEARNT, "finished": 3, "broken": 2}, "learns"),
        ({"change": LEARNT, "finished": 3, "broken": 3}, "collapsed"),
        ({"finished": 0, "broken": 1, "change": None, "rise": None, "pass_change": None}, "collapsed"),
        ({"finished": 0, "idle": 1, "change": None, "rise": None, "pass_change": None}, "no gradient"),
        ({"finished": 0, "broken": 1, "idle": 1, "change": None, "rise": None, "pass_change": None}, "collapsed"),
        ({"finished": 1, "broken": 1, "idle": 2}, "no gradient"),
        ({"change": LEARNT, "finished": 3, "broken": 1, "idle": 1}, "learns"),
        ({"finished": 0, "broken": 0, "change": None, "rise": None, "pass_change": None}, "inconclusive"),
        ({"change": None, "rise": None}, "inconclusive"),
        ({"change": Estimate(-0.3, None, None)}, "inconclusive"),
    ],
    ids=str,
)
def test_the_first_rule_that_holds_gives_the_verdict(changes: dict[str, object], name: str) -> None:
    verdict = judge(replace(STILL, **changes))
    assert verdict.name == name
    assert verdict.reason


def test_the_written_rule_names_every_verdict_in_the_order_of_the_cases() -> None:
    names = [line.partition(":")[0] for line in RULE[1:-1]]
    outcomes = ["learns", "flat", "inconclusive"]
    assert names == ["collapsed", "no gradient", "inconclusive", "collapsed", "over-fits", *outcomes]


@pytest.mark.parametrize(
    ("difference", "seeds", "name"),
    [
        (Estimate(0.1, 0.01, 0.19), 3, "solves more"),
        (Estimate(-0.1, -0.19, -0.01), 3, "solves fewer"),
        (Estimate(0.1, -0.01, 0.21), 3, "inconclusive"),
        (Estimate(0.1, 0.01, 0.19), 2, "inconclusive"),
        (Estimate(0.1, None, None), 3, "inconclusive"),
        (None, 0, "inconclusive"),
    ],
    ids=str,
)
def test_more_tasks_are_solved_if_the_interval_over_the_seeds_says_so(
    difference: Estimate | None, seeds: int, name: str
) -> None:
    verdict = judge_tasks(difference, seeds)
    assert verdict.name == name and verdict.reason
