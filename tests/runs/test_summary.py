"""The summary of a run: the best step is chosen on validation and reported on held-out."""

from __future__ import annotations

from typing import Any

from echo_cli.cli.display.results import print_run
from echo_cli.config.schema import EvaluationConfig
from echo_cli.runs.summary import best_step, is_finished, summarize_run


def _row(step: int, validation: float | None, heldout: float | None, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "validation/env_ce": validation,
        "validation/pass_at_1": None,
        "heldout/env_ce": heldout,
        "heldout/pass_at_1": None,
        "ood/env_ce": heldout,
        "train/portable_lambda": None,
        "train/reward": None,
        **more,
    }


ROWS = [_row(0, 3.0, 3.0), _row(1, None, None), _row(2, 1.0, 2.5), _row(3, None, None), _row(4, 2.0, 0.5)]


def _summary(rows: list[dict[str, Any]], status: str = "finished") -> dict[str, Any]:
    return summarize_run(
        rows, status=status, seconds=1.23, seed=0, coeff=0.05, evaluation=EvaluationConfig(), versions={}
    )


def test_the_best_step_is_that_of_validation_and_not_of_heldout() -> None:
    heldout = _summary(ROWS)["heldout"]
    assert heldout["best"] == {"step": 2, "env_ce": 2.5, "pass_at_1": None}
    assert (heldout["before"]["step"], heldout["last"]["step"]) == (0, 4)


def test_pass_at_1_over_the_steps_is_the_area_under_its_curve() -> None:
    def of(*points: tuple[int, float | None]) -> Any:
        return _summary([_row(step, None, None, **{"heldout/pass_at_1": value}) for step, value in points])[
            "pass_at_1_mean"
        ]

    # (0.2 + 0.6) / 2 over two steps, (0.6 + 0.4) / 2 over two more.
    assert of((0, 0.2), (1, None), (2, 0.6), (4, 0.4)) == (0.4 * 2 + 0.5 * 2) / 4
    assert of((0, 0.2)) is None and of((0, None)) is None
    assert of((2, 0.2), (2, 0.4)) is None, "a damaged file"


def test_the_first_of_equals_is_the_best() -> None:
    assert best_step([_row(0, 1.0, 1.0), _row(2, 1.0, 0.5)]) == 0


def test_the_best_may_be_chosen_by_tasks_solved() -> None:
    rows = [_row(0, 1.0, 1.0, **{"validation/pass_at_1": 0.2}), _row(2, 2.0, 1.0, **{"validation/pass_at_1": 0.4})]
    assert best_step(rows, "pass_at_1") == 2
    assert best_step(rows) == 0


def test_a_measure_that_was_not_finite_is_never_the_best() -> None:
    assert best_step([_row(0, 1.0, 1.0), _row(2, None, None)]) == 0
    assert best_step([_row(0, None, None)]) is None


def test_a_run_without_rows_has_a_summary() -> None:
    summary = _summary([], "diverged")
    assert summary["steps"] == 0
    assert summary["heldout"] == {"before": None, "best": None, "last": None}
    print_run(summary, "outputs/x")


def test_a_mean_leaves_out_the_steps_without_a_value() -> None:
    rows = [_row(0, 1.0, 1.0), _row(1, None, None, **{"train/portable_lambda": 0.25}), _row(2, None, None)]
    assert _summary(rows)["portable_lambda"] == 0.25


def test_finished_means_all_the_steps() -> None:
    assert is_finished(_summary(ROWS), 4)
    assert not is_finished(_summary(ROWS), 5)
    assert not is_finished(_summary(ROWS, "stopped"), 4)
    assert not is_finished(None, 4)
