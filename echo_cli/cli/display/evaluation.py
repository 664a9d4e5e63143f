"""What `eval-heldout` prints: measures with intervals beside their baselines, breakdowns, tasks, one command read out.

Text that came from an environment or a model is data: control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from echo_cli.cli.display.tables import new_table, number, print_table
from echo_cli.evaluation.measures import Measures
from echo_cli.evaluation.records import (
    HEADLINE,
    HELDOUT,
    INITIAL,
    POLICY,
    Comparison,
    Evaluation,
    Found,
    Measured,
    ModelEvaluation,
    model_title,
    pool_title,
)
from echo_cli.statistics import Estimate
from echo_cli.text import LINES, escape_unprintable

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
_READ = {"before": "predicted before", "after": "predicted after"}
_PER_TOKEN = MEASURE_TITLES.keys() - {"env_bits_per_byte"}
_OF_ANY_TOKENS = GROUP_TITLES.keys() - {"position", "copyable"}
"""Groups that hold the same text whatever its tokens are."""
_DIFFERENCES = ("env_bits_per_byte", "env_ce")


def print_found(found: Found, *, breakdown: bool) -> None:
    """The tables of what was found; with `breakdown` also group by group."""
    match found:
        case Evaluation():
            print_evaluation(found, breakdown=breakdown)
        case Comparison():
            print_comparison(found, breakdown=breakdown)
        case ModelEvaluation():
            print_models(found, breakdown=breakdown)


def print_evaluation(found: Evaluation, *, breakdown: bool) -> None:
    """The tables of an evaluation; with `breakdown` also each group of tokens, and each task."""
    pools = list(found.novel_pairs)
    if len(found.steps) > 1:
        _print_curve(found, pools)
    _print_headline(found, pools)
    if breakdown:
        last = [*found.before.measured, *found.after[-1].measured]
        _print_groups(last, pools, {INITIAL: "before", POLICY: f"step {found.step}"})
        _print_tasks(found)
    readout = found.readout
    read = {title: {**readout[when], "tokens": readout["tokens"]} for when, title in _READ.items()}
    _print_readout(readout, read)
    _print_notes(found.notes)


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
        _print_groups(found.measured, pools, dict(zip(found.labels, ("A", "B"), strict=True)))
    _print_notes(found.notes)


def print_models(found: ModelEvaluation, *, breakdown: bool) -> None:
    """The tables of models without a run; with `breakdown` also each group of tokens."""
    pools, first = list(found.novel_pairs), found.models[0]
    other_tokens = [model.label for model in found.models if not model.same_tokens]
    table = new_table("", *map(_titled, pools))
    entries = _add_measures(table, found.measured, pools, other_tokens)
    for name in _DIFFERENCES:
        less = {(entry.model, entry.pool): getattr(entry, name) for entry in found.differences}
        if any(less.values()):
            table.add_row(Text(f"{MEASURE_TITLES[name]}, less {_short(first.label)}"))
            for model in found.models[1:]:
                estimates = [less[model.label, pool] for pool in pools]
                if name not in _PER_TOKEN or model.same_tokens:
                    table.add_row(Text(f"  {_short(model.label)}"), *map(_interval, estimates))
    table.add_row("pairs", *(str(count) for count in found.pairs.values()))
    if found.fit_pool is not None:
        table.add_row("novel pairs", *(str(count) for count in found.novel_pairs.values()))
    _add_sizes(table, entries, pools, first.label, ("bytes", "trajectories", "tokens"))
    for label in other_tokens:
        _add_sizes(table, entries, pools, label, ("tokens",), f" of {_short(label)}")
    print_table(table)
    chosen = "every pair counts: nothing is trained here, so none is seen"
    if found.fit_pool is not None:
        chosen = f"pairs that are not in {found.fit_pool}, which the baselines are fitted on"
    print(f"95 % intervals over trajectories; differences are paired; {chosen}")
    for model in found.models:
        print(
            f"{model.label}: {escape_unprintable(model.path)}, {model.kind}, {model.vocab_size} tokens; {model.device}"
        )
    if breakdown:
        titles = {model.label: _short(model.label) for model in found.models}
        if found.same_tokens:
            _print_groups(found.measured, pools, titles)
        else:
            _print_groups(found.measured, pools, titles, "env_bits_per_byte", _OF_ANY_TOKENS)
    _print_readout(found.readout, {f"predicted by {read['model']}": read for read in found.readout["models"]})
    _print_notes(found.notes)


def _print_headline(found: Evaluation, pools: Sequence[str]) -> None:
    last = [*found.before.measured, *found.after[-1].measured, *found.baselines]
    table = new_table("", *map(_titled, pools))
    entries = _add_measures(table, last, pools)
    for k in sorted({entry.k for entry in found.passed}):
        table.add_row(f"pass@{k}")
        for model, step in ((INITIAL, 0), (POLICY, found.step)):
            passed = {e.pool: e.estimate for e in found.passed if (e.model, e.step, e.k) == (model, step, k)}
            table.add_row(f"  {model_title(model, step)}", *(_interval(passed.get(pool)) for pool in pools))
    table.add_row("novel pairs", *(str(count) for count in found.novel_pairs.values()))
    _add_sizes(table, entries, pools, INITIAL, ("tokens", "bytes", "trajectories"))
    print_table(table)
    print("95 % intervals over trajectories (pass@k: tasks); all models over the same tokens, of novel pairs")


def _add_measures(
    table: Table, measured: Sequence[Measured], pools: Sequence[str], other_tokens: Collection[str] = ()
) -> dict[tuple[str, str], Measured]:
    """Add the headlines, measure by measure; a star is at what is measured a token for models of `other_tokens`.

    Returns:
        The headlines by pool and model.
    """
    entries = {(entry.pool, entry.model): entry for entry in measured if entry.group == HEADLINE}
    models = {entry.model: entry.step for entry in entries.values()}
    for name, title in MEASURE_TITLES.items():
        table.add_row(title)
        for model, step in models.items():
            estimates = [
                entries[pool, model].measures.estimates.get(name) if (pool, model) in entries else None
                for pool in pools
            ]
            if any(estimates):
                star = " *" if model in other_tokens and name in _PER_TOKEN else ""
                table.add_row(Text(f"  {_short(model_title(model, step))}{star}"), *map(_interval, estimates))
    return entries


def _add_sizes(
    table: Table,
    entries: Mapping[tuple[str, str], Measured],
    pools: Sequence[str],
    model: str,
    names: Sequence[str],
    of: str = "",
) -> None:
    for name in names:
        sizes = [entries.get((pool, model)) for pool in pools]
        table.add_row(Text(f"{name}{of}"), *(str(getattr(entry.measures, name)) if entry else "0" for entry in sizes))


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
    measured: Sequence[Measured],
    pools: Sequence[str],
    titles: Mapping[str, str],
    measure: str = "env_ce",
    groups: Collection[str] = GROUP_TITLES.keys(),
) -> None:
    """A measure of the models that `titles` names, a table a pool, group by group.

    The other measures of a group, and the other groups, are in --json and --csv.
    """
    size = "tokens" if measure in _PER_TOKEN else "bytes"
    first = next(iter(titles))
    for pool in pools:
        entries = {(entry.model, entry.group, entry.key): entry.measures for entry in measured if entry.pool == pool}
        table = new_table(f"{_titled(pool)} {MEASURE_TITLES[measure]}", *titles.values(), size)
        for group, title in GROUP_TITLES.items():
            if group not in groups:
                continue
            keys = [key for model, of, key in entries if (model, of) == (first, group)]
            listed = keys[:_MOST_COMMANDS] if group == "command" else keys
            table.add_row(title)
            for key in listed:
                found = [entries[model, group, key] for model in titles]
                cells = [_interval(measures.estimates[measure]) for measures in found]
                table.add_row(Text(f"  {_short(escape_unprintable(key))}"), *cells, str(getattr(found[0], size)))
            if len(keys) > len(listed):
                table.add_row(f"  and {len(keys) - len(listed)} more in --json and --csv")
        print_table(table)


def _print_tasks(found: Evaluation) -> None:
    if not found.tasks:
        return
    table = new_table("task", "family", "rollouts", "solved before", f"step {found.step}")
    for task in found.tasks:
        if task.pool == HELDOUT:
            names = (Text(escape_unprintable(task.task_id)), Text(escape_unprintable(task.family)))
            table.add_row(*names, *(str(count) for count in (task.rollouts, task.solved_before, task.solved_after)))
    print_table(table)
    if any(task.pool != HELDOUT for task in found.tasks):
        print("the tasks of the other pools are in --json")


def _print_readout(readout: Mapping[str, Any], read: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"\n$ {escape_unprintable(readout['command'], keep=LINES)}")
    texts = {"actual": readout["actual"]}
    for title, found in read.items():
        texts[f"{title} ({found['correct']} of {found['tokens']} tokens, teacher-forced)"] = found["text"]
    for title, text in texts.items():
        print(f"{title}:")
        print("\n".join(f"    {line}" for line in escape_unprintable(text, keep=LINES).splitlines()))


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"\nnote: {note}")


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
