"""`env check --judge`: figures of plays against values worked out by hand, and what the verdicts say of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from echo_cli.cli.main import main
from echo_cli.evaluation.data.byte_ngram import bits_per_byte
from echo_cli.evaluation.environment_figures import EnvironmentFigures, Rewards
from echo_cli.evaluation.environment_verdicts import verdicts_of

NO_REWARDS = Rewards(2, 0, None, None, None)
PLAIN = EnvironmentFigures(
    tasks=2,
    plays=10,
    output_bytes=100,
    ngram_bits_per_byte=2.0,
    copied_fraction=0.2,
    differing_fraction=0.0,
    rewards={"scripted": Rewards(2, 2, 1.0, 1.0, 1.0), "random": Rewards(8, 8, 0.0, 0.25, 1.0)},
    no_contrast_fraction=0.5,
    reset_seconds=0.01,
    step_seconds=0.02,
)


def meaning(name: str, **changed: Any) -> str:
    return next(verdict.meaning for verdict in verdicts_of(replace(PLAIN, **changed)) if verdict.name == name)


def test_bits_per_byte_of_a_model_worked_out_by_hand() -> None:
    assert bits_per_byte([], [b"abc"]) == pytest.approx(8.0)
    assert bits_per_byte([b"abc"], []) is None
    # Witten-Bell, order 1, after "aab": c = 3, t = 2, so p(a) = (2 + 2 / 256) / 5 and p(b) = (1 + 2 / 256) / 5.
    expected = -(math.log2((2 + 2 / 256) / 5) + math.log2((1 + 2 / 256) / 5)) / 2
    assert bits_per_byte([b"aab"], [b"ab"], order=1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "changed", "told"),
    [
        ("predictable", {"ngram_bits_per_byte": 0.1}, "nearly all of it repeats"),
        ("predictable", {"ngram_bits_per_byte": 7.0}, "nearly random"),
        ("copied", {"copied_fraction": 0.9}, "most of it is copied"),
        ("repeatable", {"differing_fraction": 0.1}, "would learn noise"),
        ("reward", {"rewards": {"scripted": NO_REWARDS, "random": NO_REWARDS}}, "nothing to learn from"),
        (
            "reward",
            {"rewards": {"scripted": PLAIN.rewards["scripted"], "random": PLAIN.rewards["scripted"]}},
            "does not tell solutions from random play",
        ),
        (
            "reward",
            {"rewards": {"scripted": PLAIN.rewards["scripted"], "random": Rewards(8, 8, 0.0, 0.0, 0.0)}},
            "always earns the same",
        ),
        ("contrast", {"no_contrast_fraction": 1.0}, "without a gradient"),
        ("time", {"step_seconds": 3.0}, "slow"),
    ],
)
def test_a_bad_figure_has_a_verdict_of_its_own(name: str, changed: dict[str, Any], told: str) -> None:
    assert told in meaning(name, **changed)
    assert told not in meaning(name)


def test_a_figure_that_no_play_shows_has_no_verdict() -> None:
    nothing = {"ngram_bits_per_byte": None, "copied_fraction": None, "differing_fraction": None, "step_seconds": None}
    names = [verdict.name for verdict in verdicts_of(replace(PLAIN, **nothing, no_contrast_fraction=None))]
    assert names == ["reward"]


def test_the_toy_world_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "check", "toy-files", "--judge", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    figures = found["figures"]
    assert (figures["tasks"], figures["plays"], figures["differing_fraction"]) == (4, 24, 0.0)
    assert figures["rewards"]["scripted"] == {"plays": 4, "scored": 4, "low": 1.0, "mean": 1.0, "high": 1.0}
    assert figures["rewards"]["random"]["plays"] == 16
    assert 0 < figures["ngram_bits_per_byte"] < 8 and 0 < figures["copied_fraction"] < 1
    assert [verdict["name"] for verdict in found["verdicts"]][:3] == ["predictable", "copied", "repeatable"]
    assert main(["env", "check", "toy-files", "--json"]) == 0
    assert not {"figures", "verdicts"} & set(json.loads(capsys.readouterr().out))
