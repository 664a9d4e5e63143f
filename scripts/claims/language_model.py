"""The study of a language model in attics (`attic.py`): its arms, their runs, and the tables of its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims.arms import NEUTRAL, Arm, Place
from claims.attic import tasks
from claims.comparison import difference, estimate, shared_places
from claims.measured import Measured, collect
from claims.page import rate_table, shown, table, verdict
from claims.runs import Placed, Study, chosen_rate, planned, run_name, tune, tuned_rates
from echo_cli.files import write_atomic, write_json
from echo_cli.statistics import Estimate, mean_over_seeds

TUNED = (1000,)
"""Attics on which learning rates are chosen; none is reported."""
RATES = (4e-4, 1e-3)
EXPLORERS = 16
"""Number of the placebo's explorers: as many rollouts are observed as in the arms that it stands beside."""


def _arm(name: str, label: str, coeff: float, *overrides: str) -> Arm:
    return Arm(name, label, "attic", (f"objective.world_model_coeff={coeff:g}", *overrides), RATES)


ARMS = (
    _arm("grpo", "GRPO (λ 0)", 0),
    _arm("echo-0.05", "ECHO, λ 0.05", 0.05),
    _arm("echo-0.3", "ECHO, λ 0.3", 0.3),
    _arm("placebo", "placebo: another attic, λ 0.3", 0.3, NEUTRAL, f"rollout.explorers={EXPLORERS}"),
)
PAIRS = (("grpo", "echo-0.05"), ("grpo", "echo-0.3"), ("placebo", "echo-0.3"), ("grpo", "placebo"))
"""Arms that are compared, the second with the first."""
COLUMNS: Mapping[str, tuple[str, str]] = {
    "env_ce_start_last": ("env-CE before", ".2f"),
    "env_ce_last": ("env-CE last", ".2f"),
    "env_ce_change_last": ("relative change", "+.2f"),
    "pass_at_1_before": ("pass@1 before", ".2f"),
    "pass_at_1_last": ("pass@1 last", ".2f"),
    "pass_at_1_mean": ("pass@1 over the steps", ".2f"),
    "pass_at_k_last": ("pass@k last", ".2f"),
    "refused_last": ("refused actions", ".2f"),
    "seconds": ("s", ".0f"),
}
COMPARED = ("pass_at_1_last", "pass_at_1_mean", "pass_at_k_last", "env_ce_change_last")
"""Figures whose differences are reported."""


def study_of(model: Path, folder: Path, jobs: int, overrides: Sequence[str]) -> Study:
    """Return the study of a model folder; its runs, their records and the learning rates are kept in `folder`."""
    here = Path(__file__).parent
    return Study(
        folder,
        jobs,
        (f"model.path={json.dumps(str(model.resolve()))}", *overrides),
        configs=here,
        world_words=attic_words,
        rates=folder / "rates.json",
        import_from=str(here.parent),
        arms={arm.name: arm for arm in ARMS},
        by_task=True,
    )


def attic_words(number: int) -> list[str]:
    """Return the overrides that put a run into an attic."""
    return [f"environment.tasks.items={json.dumps(tasks(number))}"]


def reproduce(study: Study, arms: Sequence[Arm], seeds: Sequence[int], *, tune_only: bool) -> Path | None:
    """Choose the learning rates that are not chosen yet, train the arms, and write the figures of all runs so far.

    Returns:
        The file of the tables; `figures.json` is beside it. None with `tune_only`.
    """
    missing = [arm for arm in arms if arm.name not in tuned_rates(study)]
    if missing:
        tune(missing, TUNED, study)
    if tune_only:
        return None
    placed: Placed = [(arm, [Place(seed, seed) for seed in seeds]) for arm in arms]
    measured = collect(placed, study, study.folder / "runs.jsonl")
    write_json(study.folder / "figures.json", to_json(measured, study))
    page = study.folder / "figures.md"
    write_atomic(page, "\n".join([*markdown(measured, study), ""]).encode())
    return page


def over_tasks(first: Measured, second: Measured) -> Estimate | None:
    """Return the mean of second - first of the last pass@1, paired by held-out task, with its interval over tasks."""
    differences = []
    for place in shared_places(first, second):
        a, b = (of.records[place].solved or {} for of in (first, second))
        differences += [b[task_id] - a[task_id] for task_id in sorted(a.keys() & b.keys())]
    return mean_over_seeds(differences) if differences else None


def markdown(arms: Mapping[str, Measured], study: Study) -> list[str]:
    """Return the tables of the study, and a line for each comparison of two arms."""
    config = next(planned(of.arm, place, study).config for of in arms.values() for place in of.records)
    seeds = sorted({place.seed for of in arms.values() for place in of.records})
    heldout = sum(task["split"] == "heldout" for task in tasks(seeds[0]))
    lines = [
        f"{Path(config.model.path).name}, {config.steps} steps, seeds {', '.join(map(str, seeds))}, each with an attic "
        f"of its own on which nothing was chosen. Mean and 95 % interval over the seeds (Student's t), differences "
        f"paired by seed. pass@1 and pass@k over k = {config.evaluation.heldout_rollouts} rollouts of each of "
        f"{heldout} held-out tasks; env-CE in nats/token over the held-out pairs still novel at the end.",
        "",
        *table(list(arms.values()), COLUMNS),
        "",
    ]
    for first, second in PAIRS:
        if first in arms and second in arms:
            a, b = arms[first], arms[second]
            found = difference(a, b, "pass_at_1_last")
            lines.append(
                f"- {b.arm.label} against {a.arm.label}: pass@1 {shown(found)}: {verdict(found, wanted=1)}; over tasks "
                f"{shown(over_tasks(a, b))}; pass@k {shown(difference(a, b, 'pass_at_k_last'))}; relative change of "
                f"env-CE {shown(difference(a, b, 'env_ce_change_last'))}"
            )
    labels = {name: of.arm.label for name, of in arms.items()}
    return [*lines, "", *rate_table(tuned_rates(study), labels)]


def to_json(arms: Mapping[str, Measured], study: Study) -> dict[str, Any]:
    """Return the figures of every run, the estimates of every arm, and the differences between arms."""
    return {
        "rates": tuned_rates(study),
        "arms": {name: _arm_json(of, study) for name, of in arms.items()},
        "differences": [
            {
                "first": first,
                "second": second,
                "over_tasks": _json(over_tasks(arms[first], arms[second])),
                **{figure: _json(difference(arms[first], arms[second], figure)) for figure in COMPARED},
            }
            for first, second in PAIRS
            if first in arms and second in arms
        ],
    }


def _arm_json(of: Measured, study: Study) -> dict[str, Any]:
    return {
        "label": of.arm.label,
        "lr": chosen_rate(of.arm, study),
        "runs": {run_name(of.arm.name, place): record.figures for place, record in of.records.items()},
        **{figure: _json(estimate(of, figure)) for figure in COLUMNS},
    }


def _json(found: Estimate | None) -> dict[str, float | None] | None:
    return None if found is None else found.to_json()
