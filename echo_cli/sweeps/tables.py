"""Tables of a sweep as text, for the terminal and for the report: one row per λ, intervals in brackets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from echo_cli.sweeps.plan import shown_coeff
from echo_cli.sweeps.results import LambdaResult

Text = Callable[[LambdaResult], str]


@dataclass(frozen=True)
class SweepTable:
    """A title, the column names (lines separated by newlines) and the cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


NOTES = (
    "In brackets: 95 % intervals over the seeds (Student's t). env-CE is measured on novel pairs, which the run has "
    "not executed in training; 'before' and 'change' use the pairs of 'last'. 'best' is selected on validation. "
    "'seen': the run has executed every held-out pair, and env-CE is over these pairs.",
    "vs λ = 0: mean difference at the same seeds. 'mean' averages pass@1 over the steps (area under its curve): of two "
    "runs that end alike, the faster learner's is higher.",
    "portable λ: env weight per observation token / (RL weight per action token · mean |advantage|). "
    "λ·env/RL and cosine: norm ratio and cosine of the two terms' gradients, λ included, at the probed steps.",
)


def sweep_tables(results: Sequence[LambdaResult]) -> list[SweepTable]:
    """Return three tables: env-CE, tasks, and portable λ with the time."""
    return [
        _table("held-out env-CE, nats/token", _CE_COLUMNS, results),
        _table("held-out tasks", _TASK_COLUMNS, results),
        _table("portable λ, gradients and time", _UNIT_COLUMNS, results),
    ]


def _table(title: str, columns: Sequence[tuple[str, Text]], results: Sequence[LambdaResult]) -> SweepTable:
    return SweepTable(title, [name for name, _ in columns], [[text(row) for _, text in columns] for row in results])


def _value(name: str, form: str = ".3f") -> Text:
    def text(result: LambdaResult) -> str:
        found = result.measures[name]
        return "-" if found is None else format(found.estimate.value, form)

    return text


def _interval(name: str, form: str, *, scale: float = 1.0) -> Text:
    def text(result: LambdaResult) -> str:
        found = result.measures[name]
        if found is None:
            return "-"
        estimate = found.estimate
        value, *ends = (
            format(scale * of, form) for of in (estimate.value, estimate.low, estimate.high) if of is not None
        )
        return f"{value} [{', '.join(ends)}]" if ends else value

    return text


def _last_env_ce(result: LambdaResult) -> str:
    """Return env-CE of novel pairs and, of runs without novel pairs, of seen pairs, each with its number of runs."""
    finished = result.statuses.count("finished")
    texts = []
    for name, mark in (("env_ce_last", ""), ("env_ce_seen_last", " seen")):
        if (found := result.measures[name]) is not None:
            share = f" ({found.seeds}/{finished})" if found.seeds < finished else ""
            texts.append(f"{found.estimate.value:.3f}{mark}{share}")
    return ", ".join(texts) or "-"


def _runs(result: LambdaResult) -> str:
    return f"{result.statuses.count('finished')}/{len(result.statuses)}"


_CE_COLUMNS: Sequence[tuple[str, Text]] = (
    ("λ", lambda result: shown_coeff(result.coeff)),
    ("runs", _runs),
    ("verdict", lambda result: result.verdict.name),
    ("before", _value("env_ce_start_last")),
    ("best", _value("env_ce_best")),
    ("last", _last_env_ce),
    ("change, %", _interval("env_ce_change_last", "+.0f", scale=100)),
    ("last vs λ = 0", _interval("env_ce_last_difference", "+.2f")),
    ("OOD\nlast", _value("ood_env_ce_last")),
)

_TASK_COLUMNS: Sequence[tuple[str, Text]] = (
    ("λ", lambda result: shown_coeff(result.coeff)),
    ("pass@1\nbefore", _value("pass_at_1_before")),
    ("pass@1\nlast", _value("pass_at_1_last")),
    ("last vs λ = 0", _interval("pass_at_1_last_difference", "+.2f")),
    ("pass@1\nmean", _value("pass_at_1_mean")),
    ("mean vs λ = 0", _interval("pass_at_1_mean_difference", "+.2f")),
    ("reward\nlast", _value("mean_reward_last")),
)

_UNIT_COLUMNS: Sequence[tuple[str, Text]] = (
    ("λ", lambda result: shown_coeff(result.coeff)),
    ("portable\nλ", _value("portable_lambda")),
    ("λ·env\n/RL", _value("gradient_ratio", ".2f")),
    ("cosine", _value("gradient_cosine", "+.2f")),
    ("seconds", _value("seconds", ".1f")),
    ("probes'\nshare", _value("probe_share_of_seconds", ".1%")),
)
