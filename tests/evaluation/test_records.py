"""Records of an evaluation: the JSON object of each kind, the CSV rows, and the policies shown side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import pytest

from echo_cli.evaluation.measures import Measures
from echo_cli.evaluation.pass_at_k import OutcomeComparison
from echo_cli.evaluation.records import (
    CSV_COLUMNS,
    MEASURES,
    Difference,
    Evaluation,
    LoadedModel,
    Measured,
    ModelReport,
    Passed,
    csv_rows,
)
from echo_cli.statistics import Estimate

Kind = Literal["run", "runs", "models"]
HALF = Estimate(0.5, 0.25, 0.75)
AT = {
    "run": [("initial", 0), ("policy", 2), ("policy", 4)],
    "runs": [("A: a", 4), ("B: b", 2)],
    "models": [("m", None), ("n", None)],
}
DIFFERENCES = {
    "run": [],
    "runs": [Difference("heldout", "B: b", env_ce=HALF, tasks=OutcomeComparison(1, 2, 3, 4, 7, 0.9, HALF))],
    "models": [Difference("heldout", "n", env_bits_per_byte=HALF)],
}


def report(model: str, step: int | None, value: float, *pools: str, same_tokens: bool | None = None) -> ModelReport:
    measures = Measures(dict.fromkeys(MEASURES, Estimate(value, None, None)), 2, 3, 1, 1)
    return ModelReport(
        run="r",
        step=step,
        model=model,
        measured=[Measured(pool, "headline", "", measures) for pool in pools],
        passed=[] if step is None else [Passed(pools[0], 1, HALF, 5, 3, 4)],
        reliability={pools[0]: [(0.5, 0.5, 2)]},
        loaded=None if same_tokens is None else LoadedModel("tiny", "cpu", 8, same_tokens),
    )


def evaluation(kind: Kind) -> Evaluation:
    loaded = [True, False] if kind == "models" else [None] * 3
    return Evaluation(
        kind=kind,
        policies=[
            report(model, step, number, "heldout", "ood", same_tokens=same)
            for number, ((model, step), same) in enumerate(zip(AT[kind], loaded, strict=False))
        ],
        novel_pairs={"heldout": 7, "ood": 8},
        notes=["n"],
        baselines=[report("gzip", None, 9, "heldout", "ood"), report("zstd", None, 10, "heldout", "ood")],
        differences=DIFFERENCES[kind],
        readout={"command": "c"},
        pairs={"heldout": 9, "ood": 9},
    )


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (
            "run",
            "run step checkpoints before after measurements pass_at_k mean_reward criteria reliability tasks notes "
            "readout",
        ),
        ("runs", "runs steps differences measurements pass_at_k mean_reward criteria reliability notes"),
        ("models", "models fit_pool pairs novel_pairs differences measurements reliability notes readout"),
    ],
)
def test_each_kind_has_its_json_object(kind: Kind, keys: str) -> None:
    found: dict[str, Any] = json.loads(json.dumps(evaluation(kind).to_json()))
    assert list(found) == keys.split()
    place = {"run": "r", "step": AT[kind][1][1], "pool": "heldout", "model": AT[kind][1][0]}
    measured = found["measurements"][2]
    assert measured == {
        **{**place, "group": "headline", "key": "", "tokens": 2, "bytes": 3, "trajectories": 1, "pairs": 1},
        **{name: {"value": 1.0, "low": None, "high": None} for name in MEASURES},
    }
    assert found["reliability"][1] == {**place, "bins": [[0.5, 0.5, 2]]}
    if kind != "models":
        estimate = {"value": 0.5, "low": 0.25, "high": 0.75}
        assert found["pass_at_k"][1] == {
            **place,
            "k": 1,
            "estimate": estimate,
            "tasks": 5,
            "clusters": 3,
            "rollouts": 4,
        }


def test_plain_values_are_those_of_the_start_and_the_last_checkpoint() -> None:
    found = evaluation("run").to_json()
    assert (found["step"], found["checkpoints"]) == (4, [2, 4])
    assert (found["before"]["heldout/env_ce"], found["after"]["heldout/env_ce"]) == (0, 2)
    assert (found["after"]["ood/novel_pairs"], found["after"]["heldout/pass_at_1"]) == (8, 0.5)
    assert found["after"]["heldout/env_ce_seen"] is None


def test_the_mean_reward_is_in_the_json_object_and_the_rows() -> None:
    plain = evaluation("run")
    policies = [replace(policy, rewards={"ood": HALF}) for policy in plain.policies]
    found = replace(plain, policies=policies)
    rewards = found.to_json()["mean_reward"]
    assert [entry["step"] for entry in rewards] == [0, 2, 4]
    assert rewards[1] == {
        **{"run": "r", "step": 2, "pool": "ood", "model": "policy"},
        **{"value": 0.5, "low": 0.25, "high": 0.75},
    }
    after = found.to_json()["after"]
    assert after["ood/mean_reward"] == 0.5 and "heldout/mean_reward" not in after
    rows = [row for row in csv_rows(found) if "mean_reward" in row]
    assert rows[1] == ("r", 2, "ood", "policy", "tasks", "", "mean_reward", 0.5, 0.25, 0.75, None)


def test_a_graders_criteria_are_in_the_json_object_and_the_rows() -> None:
    plain = evaluation("run")
    policies = [replace(policy, criteria={"heldout": {"criterion_form": HALF}}) for policy in plain.policies]
    found = replace(plain, policies=policies)
    assert found.to_json()["criteria"][1] == {
        **{"run": "r", "step": 2, "pool": "heldout", "model": "policy", "criterion": "form"},
        **{"value": 0.5, "low": 0.25, "high": 0.75},
    }
    assert found.to_json()["after"]["heldout/criterion_form"] == 0.5
    policies = [replace(policy, rewards={"heldout": HALF}) for policy in policies]
    rows = [row for row in csv_rows(replace(found, policies=policies)) if "criterion_form" in row]
    assert rows[1] == ("r", 2, "heldout", "policy", "tasks", "", "criterion_form", 0.5, 0.25, 0.75, None)


def test_differences_have_the_keys_that_their_kind_compares() -> None:
    (runs,) = evaluation("runs").to_json()["differences"]
    assert list(runs) == ["pool", "novel_pairs", "env_ce", "tasks"] and runs["novel_pairs"] == 7
    models = evaluation("models").to_json()
    assert list(models["differences"][0]) == ["pool", "model", "env_bits_per_byte", "env_ce"]
    first = models["models"][0]
    assert list(first)[:6] == ["model", "path", "kind", "device", "vocab_size", "same_tokens"]
    assert first["heldout/env_ce"] == 0


def test_rows_are_one_a_measure_and_one_a_difference() -> None:
    rows = [dict(zip(CSV_COLUMNS, row, strict=True)) for row in csv_rows(evaluation("runs"))]
    assert len(rows) == 4 * 2 * len(MEASURES) + 2 + 3
    # Baselines are ordered by pool.
    baselines = [(row["pool"], row["model"]) for row in rows if row["model"] in ("gzip", "zstd")]
    order = list(dict.fromkeys(baselines))
    assert order == [("heldout", "gzip"), ("heldout", "zstd"), ("ood", "gzip"), ("ood", "zstd")]
    less = [row for row in rows if row["model"] == "difference"]
    assert {row["run"] for row in less} == {"B: b - A: a"}
    assert [(row["group"], row["measure"], row["value"]) for row in less] == [
        ("headline", "env_ce", 0.5),
        ("tasks", "pass_at_1", 0.5),
        ("tasks", "mcnemar_p", 0.9),
    ]


def test_the_last_checkpoint_stands_beside_the_start_and_models_beside_each_other() -> None:
    run, models = evaluation("run"), evaluation("models")
    assert [policy.title for policy in run.shown] == ["initial policy", "step 4"] and run.is_curve
    assert [policy.title for policy in models.shown] == ["m", "n"] and not models.is_curve
    assert run.same_tokens and not models.same_tokens
    assert (run.ks, models.ks) == ([1], [])
