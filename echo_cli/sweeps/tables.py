"""Tables of a sweep as text, for the terminal and for the report: one row per arm, intervals in brackets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from echo_cli.sweeps.arms import baseline_of, column_of, row_label
from echo_cli.sweeps.results import (
    ArmPair,
    ArmResult,
    CellResult,
    Measure,
    cells_in,
    environments_of,
    results_of,
)
from echo_cli.sweeps.verdict import TASK_RULE

Text = Callable[[ArmResult], str]


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
    "vs: mean difference at the same seeds, to λ = 0 or, without it, to the first arm. 'mean' averages pass@1 over the "
    "steps (area under its curve): of two runs that end alike, the faster learner's is higher.",
    "portable λ: env weight per observation token / (RL weight per action token · mean |advantage|). "
    "λ·env/RL and cosine: norm ratio and cosine of the two terms' gradients, λ included, at the probed steps.",
    TASK_RULE,
    "pass@k: k = rollouts per held-out task. refused: actions on held-out tasks that the environment could not run. "
    "groups: of the training rollouts, mean over the steps. action KL: nats per action token by which a step on the "
    "env term alone moves the step's own actions, at the probed steps.",
)


def sweep_tables(results: Sequence[ArmResult], pairs: Sequence[ArmPair] = ()) -> list[SweepTable]:
    """Return tables: env-CE, tasks, portable λ with the time and, if an arm has a name, the differences of `pairs`.

    The tasks have two tables, pass@1 and what is measured beside it, and one for each criterion of a grader.
    """
    tables = [
        _table("held-out env-CE, nats/token", _CE_COLUMNS, results),
        _table("held-out tasks", _TASK_COLUMNS, results),
        _table("beside pass@1", _OUTCOME_COLUMNS, results),
        *(
            _table(f"held-out criterion {name}, mean", _criterion_columns(name), results)
            for name in (results[0].criteria if results else ())
        ),
        _table("portable λ, gradients and time", _UNIT_COLUMNS, results),
    ]
    named = [pair for pair in pairs if pair.arm.named or pair.other.named]
    return [*tables, _pair_table(named)] if named else tables


def environment_tables(cells: Sequence[CellResult]) -> list[SweepTable]:
    """Return the tables of env-CE and of tasks of each of several environments; none of cells in one."""
    tables = []
    for name in environments_of(cells):
        results = results_of(cells_in(cells, name))
        tables += [
            _table(f"{name}: held-out env-CE, nats/token", _CE_COLUMNS, results),
            _table(f"{name}: held-out tasks", _TASK_COLUMNS, results),
        ]
    return tables


def _table(title: str, columns: Sequence[tuple[str, Text]], results: Sequence[ArmResult]) -> SweepTable:
    arms = [result.arm for result in results]
    baseline = baseline_of(arms)
    to = "λ = 0" if baseline is None else baseline.title
    column = column_of(arms)
    names = [column, *(name.format(to=to) for name, _ in columns)]
    return SweepTable(
        title, names, [[row_label(row.arm, column), *(text(row) for _, text in columns)] for row in results]
    )


def _pair_table(pairs: Sequence[ArmPair]) -> SweepTable:
    rows = [
        [
            f"{pair.arm.title} - {pair.other.title}",
            *(_bracketed(pair.differences[name], "+.2f") for name in _PAIR_COLUMNS),
        ]
        for pair in pairs
    ]
    return SweepTable("differences between arms, at the same seeds", ["arms", *_PAIR_COLUMNS.values()], rows)


_PAIR_COLUMNS = {"pass_at_1_last": "pass@1 last", "pass_at_1_mean": "pass@1 mean", "env_ce_last": "env-CE last"}


def _value(name: str, form: str = ".3f") -> Text:
    def text(result: ArmResult) -> str:
        found = result.measures[name]
        return "-" if found is None else format(found.estimate.value, form)

    return text


def _interval(name: str, form: str, *, scale: float = 1.0) -> Text:
    return lambda result: _bracketed(result.measures[name], form, scale=scale)


def _bracketed(found: Measure | None, form: str, *, scale: float = 1.0) -> str:
    if found is None:
        return "-"
    estimate = found.estimate
    value, *ends = (format(scale * of, form) for of in (estimate.value, estimate.low, estimate.high) if of is not None)
    return f"{value} [{', '.join(ends)}]" if ends else value


def _last_env_ce(result: ArmResult) -> str:
    """Return env-CE of novel pairs and, of runs without novel pairs, of seen pairs, each with its number of runs."""
    finished = result.statuses.count("finished")
    texts = []
    for name, mark in (("env_ce_last", ""), ("env_ce_seen_last", " seen")):
        if (found := result.measures[name]) is not None:
            share = f" ({found.seeds}/{finished})" if found.seeds < finished else ""
            texts.append(f"{found.estimate.value:.3f}{mark}{share}")
    return ", ".join(texts) or "-"


def _runs(result: ArmResult) -> str:
    return f"{result.statuses.count('finished')}/{len(result.statuses)}"


_CE_COLUMNS: Sequence[tuple[str, Text]] = (
    ("runs", _runs),
    ("verdict", lambda result: result.verdict.name),
    ("before", _value("env_ce_start_last")),
    ("best", _value("env_ce_best")),
    ("last", _last_env_ce),
    ("change, %", _interval("env_ce_change_last", "+.0f", scale=100)),
    ("last vs {to}", _interval("env_ce_last_difference", "+.2f")),
    ("OOD\nlast", _value("ood_env_ce_last")),
)

_TASK_COLUMNS: Sequence[tuple[str, Text]] = (
    ("pass@1\nbefore", _value("pass_at_1_before")),
    ("pass@1\nlast", _value("pass_at_1_last")),
    ("last vs {to}", _interval("pass_at_1_last_difference", "+.2f")),
    ("pass@1\nmean", _value("pass_at_1_mean")),
    ("mean vs {to}", _interval("pass_at_1_mean_difference", "+.2f")),
    ("reward\nlast", _value("mean_reward_last")),
)

_OUTCOME_COLUMNS: Sequence[tuple[str, Text]] = (
    ("tasks", lambda result: result.tasks.name),
    ("pass@k\nlast", _value("pass_at_k_last")),
    ("last vs {to}", _interval("pass_at_k_last_difference", "+.2f")),
    ("refused\nlast", _value("refused_last", ".1%")),
    ("groups\nall fail", _value("groups_all_failed", ".1%")),
    ("all\nsolve", _value("groups_all_solved", ".1%")),
    ("action\nKL", _value("action_kl", ".4f")),
)


def _criterion_columns(name: str) -> Sequence[tuple[str, Text]]:
    return (
        ("before", _value(f"criterion_{name}_before")),
        ("last", _interval(f"criterion_{name}_last", ".3f")),
        ("last vs {to}", _interval(f"criterion_{name}_last_difference", "+.2f")),
    )


_UNIT_COLUMNS: Sequence[tuple[str, Text]] = (
    ("portable\nλ", _value("portable_lambda")),
    ("λ·env\n/RL", _value("gradient_ratio", ".2f")),
    ("cosine", _value("gradient_cosine", "+.2f")),
    ("seconds", _value("seconds", ".1f")),
    ("probes'\nshare", _value("probe_share_of_seconds", ".1%")),
)
