"""Results of a sweep: figures per cell; per arm their means, paired differences to other arms, and a verdict."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from echo_cli.files import Row
from echo_cli.runs.directory import is_run, open_run
from echo_cli.runs.parts import names_in, row_of
from echo_cli.runs.summary import is_met, measures_at, pass_curve, summary_of
from echo_cli.statistics import Estimate, mean_height, mean_over_seeds, spread
from echo_cli.sweeps.arms import Arm, baseline_of
from echo_cli.sweeps.plan import BROKEN, Cell, Summary
from echo_cli.sweeps.runner import CellStatus
from echo_cli.sweeps.verdict import Evidence, Verdict, judge, judge_tasks

Figures = Mapping[str, float | None]
"""Figures of a cell, by the names of `figures_of`."""

FIGURES: Mapping[str, str] = {
    "env_ce_start_best": "held-out env-CE before training, over the pairs novel at the best step, nats/token",
    "env_ce_best": "held-out env-CE at the best step, nats/token",
    "best_step": "best step, selected on validation",
    "env_ce_start_last": "held-out env-CE before training, over the pairs novel at the last step, nats/token",
    "env_ce_last": "held-out env-CE at the last step, nats/token",
    "env_ce_seen_last": "held-out env-CE at the last step over seen pairs, if training has executed every held-out "
    "pair, nats/token",
    "env_ce_change_best": "(best - start) / start of held-out env-CE, over the same pairs",
    "env_ce_change_last": "(last - start) / start of held-out env-CE, over the same pairs",
    "env_ce_rise": "env_ce_change_last - env_ce_change_best: rise from the best step to the last",
    "ood_env_ce_start_last": "out-of-distribution env-CE before training, over the pairs novel at the last step, "
    "nats/token",
    "ood_env_ce_last": "out-of-distribution env-CE at the last step, nats/token",
    "ood_env_ce_change_last": "(last - start) / start of out-of-distribution env-CE",
    "pass_at_1_before": "held-out pass@1 before training",
    "pass_at_1_last": "held-out pass@1 at the last step",
    "pass_at_1_change": "last - before of held-out pass@1",
    "pass_at_1_mean": "held-out pass@1, mean over the steps: area under its curve / number of steps",
    "pass_at_k_last": "held-out pass@k at the last step, k = rollouts per task",
    "refused_last": "fraction of actions on held-out tasks that the environment could not run, at the last step",
    "groups_all_failed": "fraction of training groups in which every rollout fails, mean over the steps",
    "groups_all_solved": "fraction of training groups in which every rollout solves the task, mean over the steps",
    "mean_reward_before": "held-out mean reward before training",
    "mean_reward_last": "held-out mean reward at the last step",
    "portable_lambda": "env weight per observation token / (RL weight per action token · mean |advantage|)",
    "gradient_ratio": "λ · norm of the env term's gradient / norm of the RL term's gradient, mean over probed steps",
    "gradient_cosine": "cosine between the gradients of the two terms, mean over probed steps",
    "action_kl": "KL by which a step on the env term alone moves the step's own actions, nats per action token, mean "
    "over probed steps",
    "seconds": "wall-clock time of the run, seconds",
    "probe_share_of_seconds": "fraction of the wall-clock time spent on gradient probes",
}

DIFFERENCES: Mapping[str, str] = {
    "env_ce_last": "held-out env-CE at the last step, nats/token; the novel pairs may differ between arms",
    "env_ce_change_last": "relative change of held-out env-CE, over each run's own pairs",
    "pass_at_1_last": "held-out pass@1 at the last step",
    "pass_at_1_mean": "held-out pass@1, mean over the steps",
    "pass_at_k_last": "held-out pass@k at the last step, k = rollouts per task",
    "mean_reward_last": "held-out mean reward at the last step",
}
"""Figures with a paired difference to another arm at the same seeds, reported as `<name>_difference`.

The other arm is that of `baseline_of`; `pairs_of` compares every two arms. The criteria of `criteria_of` have one too.
"""


@dataclass(frozen=True)
class CellResult:
    """A cell with its outcome, the summary and rows of its run, and its figures, empty until computed."""

    name: str
    arm: Arm
    coeff: float
    """λ at the first step."""
    seed: int
    outcome: CellStatus
    summary: Summary | None
    rows: Sequence[Row]
    criteria: Sequence[str] = ()
    """Names of the criteria of its grader."""
    figures: Figures = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.outcome.status == "finished"


@dataclass(frozen=True)
class Measure:
    """A figure over the seeds that have it: mean with interval, sample standard deviation, and number of seeds."""

    estimate: Estimate
    spread: float | None
    seeds: int

    def to_json(self) -> dict[str, float | None]:
        return {**self.estimate.to_json(), "spread": self.spread, "seeds": self.seeds}


@dataclass(frozen=True)
class ArmResult:
    """The result for one λ or named arm: a row of a sweep's table."""

    arm: Arm
    coeff: float
    statuses: Sequence[str]
    """Statuses of the cells, one per seed."""
    measures: Mapping[str, Measure | None]
    """Measures by the names of `figures_of`, then as `<name>_difference` of `DIFFERENCES` and of the criteria."""
    verdict: Verdict
    tasks: Verdict
    """Verdict on the tasks solved, against the arm of `baseline_of`."""
    criteria: Sequence[str] = ()
    """Names of the criteria of the graders of all arms."""

    def to_json(self) -> dict[str, Any]:
        counts = {status: self.statuses.count(status) for status in ("finished", *BROKEN, "failed")}
        return {
            "arm": self.arm.label,
            "lambda": self.coeff,
            "verdict": self.verdict.name,
            "reason": self.verdict.reason,
            "tasks": self.tasks.name,
            "tasks_reason": self.tasks.reason,
            "runs": len(self.statuses),
            **counts,
            **{name: None if found is None else found.to_json() for name, found in self.measures.items()},
        }


def read_cell(cell: Cell, outcome: CellStatus) -> CellResult:
    """Read a cell's run; rows are read only if it finished, because damaged rows may be the cause of a failure.

    Raises:
        EchoError: a file of the run is damaged.
    """
    run = open_run(cell.path) if is_run(cell.path) else None
    summary = None if run is None else run.read_summary()
    rows = run.read_metrics() if run is not None and outcome.status == "finished" else []
    graders = [section.reward for section in cell.config.sections.values()]
    criteria = tuple(dict.fromkeys(name for reward in graders for name in reward.weights))
    return CellResult(cell.name, cell.arm, cell.coeff, cell.seed, outcome, summary, rows, criteria)


def criteria_of(cells: Sequence[CellResult]) -> list[str]:
    """Return the names of the criteria of the cells' graders, in order."""
    return list(dict.fromkeys(name for cell in cells for name in cell.criteria))


def figures_of(criteria: Sequence[str]) -> dict[str, str]:
    """Return what each figure of a cell is, by name: those of `FIGURES`, then two per criterion."""
    when = {"before": "before training", "last": "at the last step"}
    own = {
        f"criterion_{name}_{of}": f"held-out mean of the grader's criterion {name} {text}"
        for name in criteria
        for of, text in when.items()
    }
    return {**FIGURES, **own}


def differences_of(criteria: Sequence[str]) -> dict[str, str]:
    """Return what each paired difference is, by name: those of `DIFFERENCES`, then one per criterion."""
    figures, lasts = figures_of(criteria), [f"criterion_{name}_last" for name in criteria]
    return {**DIFFERENCES, **{last: figures[last] for last in lasts}}


def with_figures(cells: Sequence[CellResult]) -> list[CellResult]:
    """Return the cells with their figures, which are all None for a cell that did not finish."""
    criteria = criteria_of(cells)
    return [
        replace(
            cell,
            figures=_summary_figures(cell.summary, cell.rows) | _criterion_figures(cell.summary, criteria)
            if cell.finished and cell.summary is not None
            else dict.fromkeys(figures_of(criteria)),
        )
        for cell in cells
    ]


def results_of(cells: Sequence[CellResult]) -> list[ArmResult]:
    """Return a result per arm, in order of first occurrence, from cells with figures."""
    of_arm = {arm: [cell for cell in cells if cell.arm == arm] for arm in dict.fromkeys(cell.arm for cell in cells)}
    baseline, criteria = baseline_of(list(of_arm)), criteria_of(cells)
    results = []
    for arm, ours in of_arm.items():
        finished = [cell.figures for cell in ours if cell.finished]
        measures = {name: _measure([values[name] for values in finished]) for name in figures_of(criteria)}
        others = [] if baseline is None or arm == baseline else of_arm[baseline]
        measures |= {f"{name}_difference": found for name, found in _differences(ours, others, criteria).items()}
        statuses = [cell.outcome.status for cell in ours]
        verdict = judge(_evidence(statuses, measures))
        results.append(ArmResult(arm, ours[0].coeff, statuses, measures, verdict, _tasks(measures), criteria))
    return results


@dataclass(frozen=True)
class ArmPair:
    """Two arms with the mean differences `arm` - `other` over the seeds that both finished, by `differences_of`."""

    arm: Arm
    other: Arm
    differences: Mapping[str, Measure | None]

    def to_json(self) -> dict[str, Any]:
        measures = {name: None if found is None else found.to_json() for name, found in self.differences.items()}
        return {"arm": self.arm.label, "minus": self.other.label, **measures}


def pairs_of(cells: Sequence[CellResult]) -> list[ArmPair]:
    """Return every two arms of cells with figures, each arm with those before it."""
    arms, criteria = list(dict.fromkeys(cell.arm for cell in cells)), criteria_of(cells)
    of_arm = {arm: [cell for cell in cells if cell.arm == arm] for arm in arms}
    return [
        ArmPair(arm, other, _differences(of_arm[arm], of_arm[other], criteria))
        for other, arm in itertools.combinations(arms, 2)
    ]


def _differences(
    ours: Sequence[CellResult], others: Sequence[CellResult], criteria: Sequence[str]
) -> dict[str, Measure | None]:
    """Return the mean differences of `differences_of` between two arms, paired by seed."""
    mine, theirs = ({cell.seed: cell.figures for cell in cells if cell.finished} for cells in (ours, others))
    both = sorted(mine.keys() & theirs.keys())
    return {
        name: _measure([_minus(mine[seed][name], theirs[seed][name]) for seed in both])
        for name in differences_of(criteria)
    }


def _tasks(measures: Mapping[str, Measure | None]) -> Verdict:
    """Return the verdict on tasks, by the difference of pass@1 over the steps."""
    found = measures["pass_at_1_mean_difference"]
    return judge_tasks(None if found is None else found.estimate, 0 if found is None else found.seeds)


def _evidence(statuses: Sequence[str], measures: Mapping[str, Measure | None]) -> Evidence:
    def estimate(name: str) -> Estimate | None:
        found = measures[name]
        return None if found is None else found.estimate

    before, met = estimate("pass_at_1_before"), measures["env_ce_seen_last"]
    return Evidence(
        finished=statuses.count("finished"),
        broken=statuses.count("diverged") + statuses.count("collapsed"),
        idle=statuses.count("no_gradient"),
        met=0 if met is None else met.seeds,
        change=estimate("env_ce_change_last"),
        rise=estimate("env_ce_rise"),
        pass_before=None if before is None else before.value,
        pass_change=estimate("pass_at_1_change"),
    )


def cells_in(cells: Sequence[CellResult], environment: str) -> list[CellResult]:
    """Return the cells with the summary, the rows and the figures of one of several environments."""
    found = [
        replace(
            cell,
            summary=None if cell.summary is None else summary_of(cell.summary, environment),
            rows=[row_of(row, environment, names_in(row)) for row in cell.rows],
        )
        for cell in cells
    ]
    return with_figures(found)


def environments_of(cells: Iterable[CellResult]) -> list[str]:
    """Return the names of the several environments of the cells; none for cells in one."""
    return list(dict.fromkeys(name for cell in cells for name in (cell.summary or {}).get("environments", ())))


def _summary_figures(summary: Summary, rows: Sequence[Row]) -> dict[str, float | None]:
    before, best, last = (measures_at(summary, "heldout", when) for when in ("before", "best", "last"))
    ood_last = measures_at(summary, "ood", "last")
    passes, seconds = pass_curve(rows), summary.get("seconds")
    change_best = _change(best.get("env_ce"), best.get("env_ce_start"))
    change_last = _change(last.get("env_ce"), last.get("env_ce_start"))
    probed = [row for row in rows if row.get("train/probe_ratio") is not None and row.get("train/lambda") is not None]
    probing = _present(row.get("time/probe_s") for row in rows)
    return {
        "env_ce_start_best": best.get("env_ce_start"),
        "env_ce_best": best.get("env_ce"),
        "best_step": best.get("step"),
        "env_ce_start_last": last.get("env_ce_start"),
        "env_ce_last": last.get("env_ce"),
        "env_ce_seen_last": last["env_ce_seen"] if is_met(last) else None,
        "env_ce_change_best": change_best,
        "env_ce_change_last": change_last,
        "env_ce_rise": _minus(change_last, change_best),
        "ood_env_ce_start_last": ood_last.get("env_ce_start"),
        "ood_env_ce_last": ood_last.get("env_ce"),
        "ood_env_ce_change_last": _change(ood_last.get("env_ce"), ood_last.get("env_ce_start")),
        "pass_at_1_before": before.get("pass_at_1"),
        "pass_at_1_last": last.get("pass_at_1"),
        "pass_at_1_change": _minus(last.get("pass_at_1"), before.get("pass_at_1")),
        "pass_at_1_mean": mean_height(passes) if len(passes) > 1 else None,
        "pass_at_k_last": last.get(f"pass_at_{summary.get('heldout_rollouts')}"),
        "refused_last": last.get("refused_fraction"),
        "groups_all_failed": _mean(_present(row.get("train/groups_all_failed") for row in rows)),
        "groups_all_solved": _mean(_present(row.get("train/groups_all_solved") for row in rows)),
        "mean_reward_before": before.get("mean_reward"),
        "mean_reward_last": last.get("mean_reward"),
        "portable_lambda": summary.get("portable_lambda"),
        "gradient_ratio": _mean([row["train/probe_ratio"] * row["train/lambda"] for row in probed]),
        "gradient_cosine": _mean(_present(row.get("train/probe_cosine") for row in rows)),
        "action_kl": _mean(_present(row.get("probe/action_kl") for row in rows)),
        "seconds": seconds,
        "probe_share_of_seconds": sum(probing) / seconds if probing and seconds else None,
    }


def _criterion_figures(summary: Summary, criteria: Sequence[str]) -> dict[str, float | None]:
    measures = {when: measures_at(summary, "heldout", when) for when in ("before", "last")}
    return {
        f"criterion_{name}_{when}": of.get(f"criterion_{name}") for name in criteria for when, of in measures.items()
    }


def _measure(values: Sequence[float | None]) -> Measure | None:
    present = _present(values)
    return Measure(mean_over_seeds(present), spread(present), len(present)) if present else None


def _change(after: float | None, before: float | None) -> float | None:
    return (after - before) / before if after is not None and before else None


def _minus(after: float | None, before: float | None) -> float | None:
    return after - before if after is not None and before is not None else None


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
