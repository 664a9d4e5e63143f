"""What `eval-heldout` prints: measures with intervals beside their baselines, breakdowns, tasks, one command read out.

Text that came from an environment or a model is data: control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from echo_cli.display import new_table, number, print_table, printable
from echo_cli.heldout_report import (
    HEADLINE,
    HELDOUT,
    INITIAL,
    POLICY,
    Comparison,
    Evaluation,
    Measured,
    model_title,
    pool_title,
)
from echo_cli.measure import Measures
from echo_cli.statistic import Estimate
from echo_cli.storage import shown

MEASURE_TITLES = {
    "env_ce": "env-CE, nats/token",
    "env_bits_per_byte": "bits per byte",
    "token_accuracy": "token accuracy",
    "calibration_error": "calibration error",
}
GROUP_TITLES = {
    "role": "role and channel",
    "command": "command",
    "exit_status": "exit status",
    "pair": "pair",
    "position": "position in the output",
    "copyable": "next token is",
}

_MOST_COMMANDS = 12


def print_evaluation(found: Evaluation, *, breakdown: bool) -> None:
    """The tables of an evaluation; with `breakdown` also each group of tokens, and each task."""
    pools = list(found.novel_pairs)
    if len(found.steps) > 1:
        _print_curve(found, pools)
    _print_headline(found, pools)
    if breakdown:
        last = [*found.before.measured, *found.after[-1].measured]
        _print_groups(last, pools, (INITIAL, POLICY), ("before", f"step {found.step}"))
        _print_tasks(found)
    _print_readout(found.readout)
    for note in found.notes:
        print(f"\nnote: {note}")


def print_comparison(found: Comparison, *, breakdown: bool) -> None:
    """The tables of a comparison: B less A, and what it rests on."""
    pools = [difference.pool for difference in found.differences]
    table = new_table("", *map(_titled, pools))
    for label, step in zip(found.labels, found.steps, strict=True):
        table.add_row(Text(f"env-CE, nats/token, {_short(label)}, step {step}"), *_estimates(found, pools, label))
    table.add_row("  B - A", *(_interval(difference.env_ce) for difference in found.differences))
    for k in sorted({entry.k for entry in found.passed}):
        for label in found.labels:
            cells = [_passed(found, pool, label, k) for pool in pools]
            table.add_row(Text(f"pass@{k}, {_short(label)}"), *cells)
        if k == 1:
            table.add_row("  B - A", *(_interval(d.tasks.difference if d.tasks else None) for d in found.differences))
    if any(difference.tasks for difference in found.differences):
        tasks = [difference.tasks for difference in found.differences]
        table.add_row("tasks solved by A only, B only", *(f"{t.only_a}, {t.only_b}" if t else "-" for t in tasks))
        table.add_row("  exact McNemar p", *(number(t.p_value if t else None) for t in tasks))
    table.add_row("novel pairs", *(str(difference.novel_pairs) for difference in found.differences))
    print_table(table)
    print("95 % intervals, paired bootstrap over trajectories (env-CE) and tasks (pass@1); pairs novel to both runs")
    if breakdown:
        _print_groups(found.measured, pools, found.labels, ("A", "B"))


def _print_headline(found: Evaluation, pools: Sequence[str]) -> None:
    last = [*found.before.measured, *found.after[-1].measured, *found.baselines]
    entries = {(entry.pool, entry.model): entry for entry in last if entry.group == HEADLINE}
    models = {entry.model: entry.step for entry in entries.values()}
    table = new_table("", *map(_titled, pools))
    for name, title in MEASURE_TITLES.items():
        table.add_row(title)
        for model, step in models.items():
            estimates = [
                entries[pool, model].measures.estimates.get(name) if (pool, model) in entries else None
                for pool in pools
            ]
            if any(estimates):
                table.add_row(f"  {model_title(model, step)}", *map(_interval, estimates))
    for k in sorted({entry.k for entry in found.passed}):
        table.add_row(f"pass@{k}")
        for model, step in ((INITIAL, 0), (POLICY, found.step)):
            passed = {e.pool: e.estimate for e in found.passed if (e.model, e.step, e.k) == (model, step, k)}
            table.add_row(f"  {model_title(model, step)}", *(_interval(passed.get(pool)) for pool in pools))
    table.add_row("novel pairs", *(str(count) for count in found.novel_pairs.values()))
    for name in ("tokens", "bytes", "trajectories"):
        sizes = [entries.get((pool, INITIAL)) for pool in pools]
        table.add_row(name, *(str(getattr(entry.measures, name)) if entry else "0" for entry in sizes))
    print_table(table)
    print("95 % intervals over trajectories (pass@k: tasks); all models over the same tokens, of novel pairs")


def _print_curve(found: Evaluation, pools: Sequence[str]) -> None:
    ks = sorted({entry.k for entry in found.passed})
    columns = [f"{_titled(pool)}\nenv-CE" for pool in pools]
    columns += [f"{_titled(pool)}\npass@{k}" for k in ks for pool in pools if _has_tasks(found, pool)]
    table = new_table("step", *columns)
    for step, model, report in (
        (0, INITIAL, found.before),
        *((step, POLICY, report) for step, report in zip(found.steps, found.after, strict=True)),
    ):
        headlines = {entry.pool: entry.measures for entry in report.measured if entry.group == HEADLINE}
        passed = {(entry.k, entry.pool): entry.estimate for entry in report.passed}
        table.add_row(
            "before" if model == INITIAL else str(step),
            *(_interval(_env_ce(headlines.get(pool))) for pool in pools),
            *(_interval(passed.get((k, pool))) for k in ks for pool in pools if _has_tasks(found, pool)),
        )
    print_table(table)


def _print_groups(
    measured: Sequence[Measured], pools: Sequence[str], models: tuple[str, str], titles: tuple[str, str]
) -> None:
    """env-CE of two models, a table a pool, group by group; the other measures of a group are in --json and --csv."""
    for pool in pools:
        entries = {(entry.model, entry.group, entry.key): entry.measures for entry in measured if entry.pool == pool}
        table = new_table(f"{_titled(pool)} env-CE, nats/token", *titles, "tokens")
        for group, title in GROUP_TITLES.items():
            keys = [key for model, of, key in entries if (model, of) == (models[0], group)]
            listed = keys[:_MOST_COMMANDS] if group == "command" else keys
            table.add_row(title)
            for key in listed:
                first, second = (entries[model, group, key] for model in models)
                cells = (_interval(_env_ce(first)), _interval(_env_ce(second)), str(first.tokens))
                table.add_row(Text(f"  {_short(shown(key))}"), *cells)
            if len(keys) > len(listed):
                table.add_row(f"  and {len(keys) - len(listed)} more in --json and --csv")
        print_table(table)


def _print_tasks(found: Evaluation) -> None:
    if not found.tasks:
        return
    table = new_table("task", "family", "rollouts", "solved before", f"step {found.step}")
    for task in found.tasks:
        if task.pool == HELDOUT:
            names = (Text(shown(task.task_id)), Text(shown(task.family)))
            table.add_row(*names, *(str(count) for count in (task.rollouts, task.solved_before, task.solved_after)))
    print_table(table)
    if any(task.pool != HELDOUT for task in found.tasks):
        print("the tasks of the other pools are in --json")


def _print_readout(readout: Mapping[str, Any]) -> None:
    print(f"\n$ {printable(readout['command'])}")
    for label, text, correct in (
        ("actual", readout["actual"], None),
        ("predicted before", readout["before"]["text"], readout["before"]["correct"]),
        ("predicted after", readout["after"]["text"], readout["after"]["correct"]),
    ):
        share = "" if correct is None else f" ({correct} of {readout['tokens']} tokens, teacher-forced)"
        print(f"{label}{share}:")
        print("\n".join(f"    {line}" for line in printable(text).splitlines()))


def _estimates(found: Comparison, pools: Sequence[str], label: str) -> list[str]:
    headlines = {(e.pool, e.model): e.measures for e in found.measured if e.group == HEADLINE}
    return [_interval(_env_ce(headlines.get((pool, label)))) for pool in pools]


def _passed(found: Comparison, pool: str, label: str, k: int) -> str:
    return _interval(next((e.estimate for e in found.passed if (e.pool, e.model, e.k) == (pool, label, k)), None))


def _has_tasks(found: Evaluation, pool: str) -> bool:
    return any(entry.pool == pool for entry in found.passed)


def _env_ce(measures: Measures | None) -> Estimate | None:
    return measures.estimates["env_ce"] if measures else None


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None:
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def _titled(pool: str) -> str:
    return _short(pool_title(pool))


def _short(text: str) -> str:
    return text if len(text) <= 32 else f"{text[:15]}…{text[-16:]}"
