"""Summary of a run: each held-out measure before training, at the best step (by validation) and at the last step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from echo_cli.config.schema import EvaluationConfig
from echo_cli.errors import EchoError
from echo_cli.runs.parts import names_in, row_of
from echo_cli.text import escape_unprintable

Row = Mapping[str, Any]
SelectBy = Literal["env_ce", "pass_at_1", "mean_reward"]

_EVALUATED = ("env_ce", "env_ce_seen", "pass_at_1", "mean_reward")
"""Held-out measures, one of which a row of an evaluated step has."""
LINE_TITLES = {"shown": "all lines shown in training", "unshown": "a line never shown"}
"""Titles of the two parts of a pool's novel pairs, whose metrics end in `_shown` and `_unshown`."""
_POOLS = ("validation", "heldout", "ood", "traces")
_NUMBERS = ("steps", "seconds", "lambda", "portable_lambda", "heldout_rollouts", "solved_at", "pass_at_1_mean")
_LARGEST = 1e100
"""Largest number that is taken for a metric: figures and statistics of such numbers are finite."""


def checked_rows(rows: Iterable[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Return the rows of the metrics file `path`, whose metrics are numbers or None.

    Raises:
        EchoError: a row has no step or no readable warnings, or a metric is not a number.
    """
    found = list(rows)
    for row in found:
        step = row.get("step")
        if type(step) is not int or abs(step) > 2**53:
            raise _damaged(path, "a row has no step")
        for key, value in row.items():
            if "/" in key and not _is_number(value):
                raise _damaged(path, f"{escape_unprintable(key)} of step {step} is not a number")
        if not _are_warnings(row.get("warnings", [])):
            raise _damaged(path, f"the warnings of step {step} cannot be read")
    return found


def checked_summary(summary: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the object of the file `path`, if its values have the types of `summarize_run`; any may be missing.

    Raises:
        EchoError: a value has another type.
    """
    each = summary.get("environments", {})
    environments = list(each.values()) if isinstance(each, dict) else [each]
    if not isinstance(each, dict) or not all(isinstance(of, dict) for of in environments):
        raise _damaged(path, "its environments cannot be read")
    pools = [of.get(name, {}) for of in (summary, *environments) for name in _POOLS]
    parts = [part for pool in pools if isinstance(pool, dict) for part in pool.values() if part is not None]
    numbers = [*(summary.get(name) for name in _NUMBERS), *_values_of(parts)]
    if not all(isinstance(part, dict) for part in (*pools, *parts)) or not all(map(_is_number, numbers)):
        raise _damaged(path, "a measure is not a number")
    if not all(isinstance(summary.get(name, ""), str) for name in ("status", "selected_by")):
        raise _damaged(path, "its status cannot be read")
    if not _are_warnings(summary.get("warnings", [])):
        raise _damaged(path, "its warnings cannot be read")
    return summary


def _values_of(parts: Iterable[Any]) -> Iterator[Any]:
    return (value for part in parts if isinstance(part, dict) for value in part.values())


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) <= _LARGEST)


def _are_warnings(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, dict) and isinstance(value.get("signal"), str) and isinstance(value.get("reason"), str)
        for value in values
    )


def _damaged(path: Path, why: str) -> EchoError:
    return EchoError(f"{escape_unprintable(path)}: {why}", "the file was changed or damaged after it was written")


def summary_of(summary: Row, environment: str) -> dict[str, Any]:
    """Return the summary of one of several environments, as a run in it alone would have it."""
    return {**summary, **(summary.get("environments") or {}).get(environment, {})}


def measures_at(summary: Row, pool: str, when: str) -> Row:
    """Return the measures of a pool in a summary: "before" training, at the "best" or the "last" step; may be empty."""
    return (summary.get(pool) or {}).get(when) or {}


def best_step(rows: Sequence[Row], select_by: SelectBy = "env_ce") -> int | None:
    """Return the first step with the lowest validation env-CE, or highest validation pass@1 or mean reward.

    The result is None without validation.
    """
    key, sign = f"validation/{select_by}", 1.0 if select_by == "env_ce" else -1.0
    measured = [(sign * row[key], row["step"]) for row in rows if row.get(key) is not None]
    return min(measured)[1] if measured else None


_CRITERION = "criterion_"


def criteria_in(measures: Iterable[str]) -> list[str]:
    """Return the names of the measures of a grader's criteria, in order."""
    return [name for name in measures if name.startswith(_CRITERION)]


def criterion_title(name: str) -> str:
    """Return the title of a criterion's measure in tables and figures."""
    return f"criterion {name.removeprefix(_CRITERION)}"


def is_met(values: Row, pool: str = "") -> bool:
    """Return whether training had executed every pair of a pool, so that its env-CE is over seen pairs alone.

    Args:
        values: a row or, without `pool`, the measures of one pool.
    """
    prefix = f"{pool}/" if pool else ""
    return values.get(f"{prefix}env_ce") is None and values.get(f"{prefix}env_ce_seen") is not None


def warnings_of(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield the alarms recorded in `rows` (training/collapse.py), each with its `step`."""
    for row in rows:
        for warning in row.get("warnings", ()):
            yield {"step": row["step"], **warning}


def is_finished(summary: Row | None, steps: int) -> bool:
    """Return whether a summary belongs to a run that trained all `steps`."""
    return summary is not None and summary.get("status") == "finished" and summary.get("steps") == steps


def summarize_run(
    rows: Sequence[Row],
    *,
    status: str,
    seconds: float,
    seed: int,
    coeff: float,
    evaluation: EvaluationConfig,
    versions: Any,
) -> dict[str, Any]:
    """Return the object of summary.json. `seconds` is wall-clock time; `coeff` is λ before its schedule."""
    best = best_step(rows, evaluation.select_by)
    evaluated = [row for row in rows if any(row.get(f"heldout/{name}") is not None for name in _EVALUATED)]
    chosen = {
        "before": evaluated[0] if evaluated and evaluated[0]["step"] == 0 else None,
        "best": next((row for row in evaluated if row["step"] == best), None),
        "last": evaluated[-1] if evaluated else None,
    }
    return {
        "status": status,
        "steps": rows[-1]["step"] if rows else 0,
        "seconds": round(seconds, 1),
        "seed": seed,
        "lambda": coeff,
        "portable_lambda": _mean([row.get("train/portable_lambda") for row in rows]),
        "selected_by": f"validation/{evaluation.select_by}",
        "heldout_rollouts": evaluation.heldout_rollouts,
        "solved_at": evaluation.solved_at,
        **{
            pool: {name: _measures(row, pool) for name, row in chosen.items()}
            for pool in ("validation", "heldout", "ood", *(["traces"] if rows and "traces/env_ce" in rows[-1] else []))
        },
        "pass_at_1_mean": _pass_at_1_mean(rows),
        **_of_each(rows, chosen),
        "train": {"reward_first": _first(rows, "train/reward"), "reward_last": _last(rows, "train/reward")},
        "warnings": list(warnings_of(rows)),
        "versions": versions,
    }


def _of_each(rows: Sequence[Row], chosen: Mapping[str, Row | None]) -> dict[str, Any]:
    """Return the measures of each of several environments, by name under `environments`; nothing for a run in one."""
    names = names_in(rows[-1]) if rows else []
    found = {}
    for name in names:
        own = {when: None if row is None else row_of(row, name, names) for when, row in chosen.items()}
        found[name] = {
            **{pool: {when: _measures(row, pool) for when, row in own.items()} for pool in _POOLS[:3]},
            "pass_at_1_mean": _pass_at_1_mean([row_of(row, name, names) for row in rows]),
        }
    return {"environments": found} if names else {}


def pass_curve(rows: Iterable[Row]) -> list[tuple[int, float]]:
    """Return (step, held-out pass@1) of each evaluation that measured it."""
    key = "heldout/pass_at_1"
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def _pass_at_1_mean(rows: Sequence[Row]) -> float | None:
    """Return the area under the curve of held-out pass@1, per step; None with fewer than two points in order."""
    from echo_cli.statistics import mean_height  # loads numpy

    curve = pass_curve(rows)
    in_order = all(step < later for (step, _), (later, _) in pairwise(curve))
    return mean_height(curve) if len(curve) > 1 and in_order else None


def _measures(row: Row | None, pool: str) -> dict[str, Any] | None:
    if row is None:
        return None
    return {"step": row["step"]} | {
        key.split("/")[1]: value for key, value in row.items() if key.startswith(f"{pool}/") and key.count("/") == 1
    }


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _first(rows: Sequence[Row], key: str) -> float | None:
    return next(iter(_values(rows, key)), None)


def _last(rows: Sequence[Row], key: str) -> float | None:
    return next(reversed(_values(rows, key)), None)


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
