"""Printing of an evaluation: measures with intervals beside their baselines, breakdowns, tasks, a predicted output.

Text from an environment or a model is data: control characters are made visible.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from echo_cli.cli.display.tables import COLUMNS, TextTable, new_table, number, print_table
from echo_cli.evaluation.records import HELDOUT, LINES, Evaluation, ModelReport, pool_title
from echo_cli.runs.summary import LINE_TITLES, criterion_title
from echo_cli.statistics import Estimate
from echo_cli.terminal import joined, put
from echo_cli.text import counted, without_middle

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
    "lines": "lines of the novel pair",
    "position": "position in the output",
    "copyable": "next token is",
}

_MOST_COMMANDS = 12
_PER_TOKEN = MEASURE_TITLES.keys() - {"env_bits_per_byte"}
_MADE_OF_TOKENS = ("position", "copyable")
"""Groups whose members depend on the tokenizer."""


def print_evaluation(found: Evaluation, *, breakdown: bool) -> None:
    """Print the tables of an evaluation; with `breakdown`, also each group of tokens and each task."""
    pools = list(found.novel_pairs)
    if found.is_curve:
        _print_curve(found, pools)
    table = new_table("", *map(_titled, pools))
    if found.kind == "runs":
        _add_runs(table, found, pools)
    else:
        _add_measures(table, found, pools)
        _add_passes(table, found, pools)
        _add_differences(table, found, pools)
        _add_sizes(table, found, pools)
    print_table(table)
    put(*textwrap.wrap(_caption(found), COLUMNS))
    for policy in found.policies:
        if (loaded := policy.loaded) is not None:
            put(f"{policy.model}: {policy.run}, {loaded.kind}, {loaded.vocab_size} tokens; {loaded.device}")
    if breakdown:
        _print_groups(found, pools)
        _print_tasks(found)
    if found.readout is not None:
        _print_readout(found.readout)
    for note in found.notes:
        put("", f"note: {note}")


def _add_measures(table: TextTable, found: Evaluation, pools: Sequence[str]) -> None:
    """Add the headlines by measure; a star marks per-token figures with other tokens than the first model's."""
    for name, title in MEASURE_TITLES.items():
        table.add_row(title)
        for model in (*found.shown, *found.baselines):
            estimates = [model.estimate(pool, name) for pool in pools]
            if any(estimates):
                star = " *" if name in _PER_TOKEN and not model.same_tokens else ""
                table.add_row(f"  {_short(model.title)}{star}", *map(_interval, estimates))
        if name == "env_ce":
            _add_seen(table, found, pools)
            _add_lines(table, found, pools)


def _add_seen(table: TextTable, found: Evaluation, pools: Sequence[str]) -> None:
    """Add env-CE over the seen pairs of the pools without novel pairs."""
    seen = [(policy, [policy.seen_env_ce(pool) for pool in pools]) for policy in found.shown]
    if any(any(estimates) for _, estimates in seen):
        table.add_row("env-CE of seen pairs, as none is novel")
        for policy, estimates in seen:
            table.add_row(f"  {_short(policy.title)}", *map(_interval, estimates))


def _add_lines(table: TextTable, found: Evaluation, pools: Sequence[str]) -> None:
    """Add env-CE over the two parts of the novel pairs, of the policies and of the first baseline."""
    if found.kind == "models" and found.fit_pool is None:
        return  # nothing was observed
    for key, title in LINE_TITLES.items():
        models = (*found.shown, *found.baselines[:1])
        parts = [(model, [model.group(pool, LINES).get(key) for pool in pools]) for model in models]
        if any(any(measured) for _, measured in parts):
            table.add_row(f"env-CE, {title}")
        for model, measured in parts:
            if any(measured):
                table.add_row(
                    f"  {_short(model.title)}",
                    *(_interval(each.estimates["env_ce"] if each else None) for each in measured),
                )


def _add_passes(table: TextTable, found: Evaluation, pools: Sequence[str]) -> None:
    for k in found.ks:
        table.add_row(f"pass@{k}")
        for policy in found.shown:
            table.add_row(f"  {policy.title}", *(_interval(policy.pass_at(pool, k)) for pool in pools))
    _add_rewards(table, found, pools)
    _add_played(table, found, pools)


def _add_rewards(table: TextTable, found: Evaluation, pools: Sequence[str]) -> None:
    if any(policy.rewards for policy in found.shown):
        table.add_row("mean reward")
        for policy in found.shown:
            table.add_row(f"  {_short(policy.title)}", *(_interval(policy.rewards.get(pool)) for pool in pools))
    graded = [policy.criteria.get(pool, {}) for policy in found.shown for pool in pools]
    for name in dict.fromkeys(name for of in graded for name in of):
        table.add_row(criterion_title(name))
        for policy in found.shown:
            cells = (_interval(policy.criteria.get(pool, {}).get(name)) for pool in pools)
            table.add_row(f"  {_short(policy.title)}", *cells)


def _add_played(table: TextTable, found: Evaluation, pools: Sequence[str]) -> None:
    """Add what pass@k and the mean reward are over: tasks, clusters of tasks, rollouts."""
    played = {entry.pool: entry for _, entry in found.passed}
    if played:
        for title, name in (
            ("tasks", "tasks"),
            ("  clusters with one solution", "clusters"),
            ("  rollouts per task", "rollouts"),
        ):
            table.add_row(title, *(str(getattr(played[pool], name)) if pool in played else "-" for pool in pools))


def _add_differences(table: TextTable, found: Evaluation, pools: Sequence[str]) -> None:
    first = found.policies[0].model
    for name in ("env_bits_per_byte", "env_ce"):
        less = {(entry.model, entry.pool): getattr(entry, name) for entry in found.differences}
        if any(less.values()):
            table.add_row(f"{MEASURE_TITLES[name]}, minus {_short(first)}")
            for policy in found.policies[1:]:
                estimates = [less[policy.model, pool] for pool in pools]
                if any(estimates):
                    table.add_row(f"  {_short(policy.model)}", *map(_interval, estimates))


def _add_sizes(table: TextTable, found: Evaluation, pools: Sequence[str]) -> None:
    first, *others = found.policies
    sizes = [(name, "", first) for name in ("tokens", "bytes", "trajectories")]
    if found.kind == "models":
        table.add_row("pairs", *map(str, found.pairs.values()))
        others = [policy for policy in others if not policy.same_tokens]
        sizes = [*sizes[1:], *sizes[:1], *(("tokens", f" of {_short(policy.model)}", policy) for policy in others)]
    if found.kind != "models" or found.fit_pool is not None:
        _add_pairs(table, found, pools)
    for name, of, policy in sizes:
        headlines = [policy.headline(pool) for pool in pools]
        table.add_row(f"{name}{of}", *(str(getattr(each, name)) if each else "0" for each in headlines))


def _add_runs(table: TextTable, found: Evaluation, pools: Sequence[str]) -> None:
    """Add run A, run B, and B - A."""
    for policy in found.policies:
        title = f"env-CE, nats/token, {_short(policy.model)}, step {policy.step}"
        table.add_row(title, *(_interval(policy.estimate(pool, "env_ce")) for pool in pools))
    table.add_row("  B - A", *(_interval(less.env_ce) for less in found.differences))
    _add_seen(table, found, pools)
    tasks = [less.tasks for less in found.differences]
    for k in found.ks:
        for policy in found.policies:
            cells = [_interval(policy.pass_at(pool, k)) for pool in pools]
            table.add_row(f"pass@{k}, {_short(policy.model)}", *cells)
        if k == 1:
            table.add_row("  B - A", *(_interval(each.difference if each else None) for each in tasks))
    if any(tasks):
        table.add_row("tasks solved by A only, B only", *(f"{t.only_a}, {t.only_b}" if t else "-" for t in tasks))
        table.add_row("  exact McNemar p", *(number(each.p_value if each else None) for each in tasks))
    _add_rewards(table, found, pools)
    _add_played(table, found, pools)
    _add_pairs(table, found, pools)


def _add_pairs(table: TextTable, found: Evaluation, pools: Sequence[str]) -> None:
    """Add the numbers of novel pairs, and of their two parts."""
    table.add_row("novel pairs", *map(str, found.novel_pairs.values()))
    for key, title in LINE_TITLES.items():
        parts = [found.policies[0].group(pool, LINES).get(key) for pool in pools]
        table.add_row(f"  {title}", *(f"{part.pairs} ({part.bytes} bytes)" if part else "0" for part in parts))


def _caption(found: Evaluation) -> str:
    if found.kind == "run":
        return "95 % intervals over trajectories (pass@k: clusters of tasks); all models over the same novel pairs"
    if found.kind == "runs":
        paired = "paired bootstrap over trajectories (env-CE) and clusters of tasks (pass@1)"
        return f"95 % intervals, {paired}; pairs novel to both runs"
    chosen = "all pairs are included, as nothing is trained here"
    if found.fit_pool is not None:
        chosen = f"only pairs outside {found.fit_pool}, the pool that the baselines are fitted on"
    return f"95 % intervals over trajectories; differences are paired; {chosen}"


def _print_curve(found: Evaluation, pools: Sequence[str]) -> None:
    ks, played = found.ks, [pool for pool in pools if any(entry.pool == pool for _, entry in found.passed)]
    columns = [f"{_titled(pool)}\nenv-CE" for pool in pools]
    table = new_table("step", *columns, *(f"{_titled(pool)}\npass@{k}" for k in ks for pool in played))
    for order, policy in enumerate(found.policies):
        table.add_row(
            str(policy.step) if order else "before",
            *(_novel_or_seen(policy, pool) for pool in pools),
            *(_interval(policy.pass_at(pool, k)) for k in ks for pool in played),
        )
    print_table(table)


def _print_groups(found: Evaluation, pools: Sequence[str]) -> None:
    """Print one measure of the policies by group, one table per pool.

    The other measures, and the groups not listed, are in --json and --csv.
    """
    measure, size = ("env_ce", "tokens") if found.same_tokens else ("env_bits_per_byte", "bytes")
    headings = [_short(policy.model) for policy in found.policies]
    if found.kind != "models":
        headings = ["A", "B"] if found.kind == "runs" else ["before", found.policies[-1].title]
    for pool in pools:
        table = new_table(f"{_titled(pool)} {MEASURE_TITLES[measure]}", *headings, size)
        for group, title in GROUP_TITLES.items():
            if not found.same_tokens and group in _MADE_OF_TOKENS:
                continue
            measured = [policy.group(pool, group) for policy in found.shown]
            keys = list(measured[0])
            listed = keys[:_MOST_COMMANDS] if group == "command" else keys
            table.add_row(title)
            for key in listed:
                cells = [_interval(of[key].estimates[measure]) for of in measured]
                table.add_row(f"  {_short(key)}", *cells, str(getattr(measured[0][key], size)))
            if len(keys) > len(listed):
                table.add_row(f"  and {len(keys) - len(listed)} more in --json and --csv")
        print_table(table)


def _print_tasks(found: Evaluation) -> None:
    if not found.tasks:
        return
    table = new_table("task", "family", "rollouts", "solved before", found.policies[-1].title)
    for task in found.tasks:
        if task.pool == HELDOUT:
            counts = task.rollouts, task.solved_before, task.solved_after
            table.add_row(task.task_id, task.family, *map(str, counts))
    print_table(table)
    if any(task.pool != HELDOUT for task in found.tasks):
        put("the tasks of the other pools are in --json")


def _print_readout(readout: Mapping[str, Any]) -> None:
    """Print one command, its output, and every policy's prediction of the output."""
    if "models" in readout:
        readings = [(f"by {reading['model']}", reading["tokens"], reading) for reading in readout["models"]]
    else:
        readings = [(when, readout["tokens"], readout[when]) for when in ("before", "after")]
    texts = {"actual": readout["actual"]}
    for reader, tokens, reading in readings:
        correct = f"{reading['correct']} of {counted(tokens, 'token')} correct, teacher-forced"
        texts[f"predicted {reader} ({correct})"] = reading["text"]
    put("", f"$ {readout['command']}")
    for title, text in texts.items():
        put(f"{title}:", *(f"    {line}" for line in text.expandtabs().removesuffix("\n").split("\n") if text))


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None:
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def _novel_or_seen(policy: ModelReport, pool: str) -> str:
    seen = policy.seen_env_ce(pool)
    return _interval(policy.estimate(pool, "env_ce")) if seen is None else f"{_interval(seen)} seen"


def _titled(pool: str) -> str:
    return _short(pool_title(pool))


def _short(text: str) -> str:
    return without_middle(joined(text), 32)
