"""Results of the commands: tables of a run, a sweep, a pool and a benchmark."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from echo_cli.cli.display.tables import COLUMNS, new_table, number, print_table
from echo_cli.runs.pool_folder import Manifest
from echo_cli.runs.summary import LINE_TITLES, criteria_in, criterion_title, is_met, measures_at, summary_of
from echo_cli.terminal import put
from echo_cli.text import counted

if TYPE_CHECKING:
    from echo_cli.sweeps.tables import SweepTable

Summary = Mapping[str, Any]


def print_run(summary: Summary, folder: str) -> None:
    """Print the result table of `train`, and the paths of its files."""
    held, ood, traces = (
        {when: measures_at(summary, pool, when) for when in ("before", "best", "last")}
        for pool in ("heldout", "ood", "traces")
    )
    best, last = held["best"], held["last"]
    table = new_table("", "before", f"best (step {best.get('step')})" if best else "best", "last")
    pools = {"held-out": held, "out-of-distribution": ood, "held-out traces'": traces}
    most = summary.get("heldout_rollouts") or 1
    met = {title: of for title, of in pools.items() if any(is_met(of[when]) for when in ("best", "last"))}
    for label, source, name in (
        ("held-out env-CE, nats/token", held, "env_ce"),
        ("  the same pairs before training", held, "env_ce_start"),
        *((f"  {title}", held, f"env_ce_{key}") for key, title in LINE_TITLES.items() if f"pairs_{key}" in last),
        *((f"{title} env-CE of seen pairs", of, "env_ce_seen") for title, of in met.items()),
        ("held-out bits per byte", held, "env_bits_per_byte"),
        ("held-out token accuracy", held, "token_accuracy"),
        (_pass_title(summary), held, "pass_at_1"),
        *([(f"held-out pass@{most}", held, f"pass_at_{most}")] if most > 1 else []),
        ("held-out mean reward", held, "mean_reward"),
        *((f"held-out {criterion_title(name)}", held, name) for name in criteria_in(last)),
        ("held-out actions refused", held, "refused_fraction"),
        ("out-of-distribution env-CE", ood, "env_ce"),
        *([("held-out traces, env-CE", traces, "env_ce")] if "traces" in summary else []),
    ):
        table.add_row(label, *(number(source[when].get(name)) for when in ("before", "best", "last")))
    for label, name in (
        ("novel held-out pairs", "novel_pairs"),
        *((f"  {title}", f"pairs_{key}") for key, title in LINE_TITLES.items() if f"pairs_{key}" in last),
    ):
        table.add_row(label, *(_count(held[when].get(name)) for when in ("before", "best", "last")))
    print_table(table)
    _print_environments(summary)
    if not best and held["last"]:
        reason = _NO_BEST.get(summary.get("selected_by", ""), "no validation task was played")
        put(f"no best step: {reason}; commands use the latest checkpoint")
    for title in met:
        put(f"training has executed every {title} pair: no pair is novel, and env-CE is over seen pairs alone")
    for warning in summary.get("warnings", ()):  # summaries of earlier versions have none
        put(f"warning at step {warning.get('step')}: {warning['signal']}: {warning['reason']}")
    if (mean := summary.get("pass_at_1_mean")) is not None:
        put(f"held-out pass@1, mean over the steps (area under its curve): {mean:.3f}")
    coeff = summary.get("lambda")
    shown = "-" if coeff is None else f"{coeff:g}"
    put(f"{summary.get('status')} at step {summary.get('steps')}, λ = {shown}, {summary.get('seconds', '-')} s")
    put(f"curve: {folder}/heldout_env_ce.png   run: {folder}")


def _print_environments(summary: Summary) -> None:
    """Print the figures of each of several environments before training, at the best and at the last step."""
    names = list(summary.get("environments", ()))
    table = new_table("environment", *(f"{title}\n{when}" for title in _EACH.values() for when in ("before", "last")))
    for name in names:
        held = {when: measures_at(summary_of(summary, name), "heldout", when) for when in ("before", "last")}
        table.add_row(name, *(number(held[when].get(key)) for key in _EACH for when in ("before", "last")))
    if names:
        print_table(table)


_EACH = {"env_ce": "held-out\nenv-CE", "pass_at_1": "held-out\npass@1", "mean_reward": "mean\nreward"}
_NO_BEST = {"validation/env_ce": "the validation pool has no (command, output) pair"}


def _pass_title(summary: Summary) -> str:
    """Return the title of pass@1, with what it is measured over."""
    if measures_at(summary, "heldout", "last").get("pass_at_1") is None:
        return "held-out pass@1"
    rollouts, solved_at = summary.get("heldout_rollouts"), summary.get("solved_at")
    of = [f"{counted(rollouts, 'rollout')} a task"] if rollouts else []
    of += [f"reward ≥ {solved_at:g}"] if solved_at not in (None, 1) else []
    return f"held-out pass@1 ({', '.join(of)})" if of else "held-out pass@1"


def print_sweep(tables: Sequence[SweepTable], notes: Sequence[str], rule: Sequence[str], report: str) -> None:
    """Print the tables of `sweep-lambda`, the notes and the rule that explain them, and the report's path."""
    for found in tables:
        table = new_table(*found.columns)
        table.padding = (0, 0, 0, 1)  # fits 80 columns
        for row in found.rows:
            table.add_row(*row)
        put(found.title)
        print_table(table)
    for line in (*notes, "", f"verdicts: {rule[0]}", *(f"- {line}" for line in rule[1:])):
        put(*(textwrap.wrap(line, COLUMNS, subsequent_indent="  ") or [""]))
    put("", f"report: {report}")


def print_pool(manifest: Manifest) -> None:
    """Print a pool's content by role, and its provenance."""
    contents, made = manifest.contents, manifest.provenance
    total = sum(contents.bytes.values())
    table = new_table("", "bytes", "share", "tokens")
    for role, size in contents.bytes.items():
        table.add_row(role, str(size), f"{size / total:.1%}", str(contents.tokens[role]))
        for channel, part in contents.env_output_bytes.items() if role == "env_output" else ():
            table.add_row(f"  {channel}", str(part), f"{part / total:.1%}", "")
    print_table(table)
    actor = made.actor
    played = f"{actor.run}, step {actor.step}, model {(actor.model_sha256 or '')[:12]}" if actor.run else actor.kind
    worlds = f"{', '.join(map(str, made.world_seeds))}{' (out of distribution)' if made.out_of_distribution else ''}"
    rows: dict[str, object] = {
        "pool": manifest.name,
        "trajectories": f"{contents.trajectories}, with {counted(contents.pairs, '(command, output) pair')}",
        "actor": played,
        "tasks": f"{made.split}, {made.rollouts_per_task} each{', solved ones only' if made.only_solved else ''}",
        "worlds": worlds or "-",
        "temperature": "-" if made.temperature is None else made.temperature,
        "seed": "-" if made.seed is None else made.seed,
        "echo-cli": f"{made.echo_cli}, commit {made.git_commit or 'unknown'}",
        "tokenizer": f"{manifest.tokenizer.vocab_size} tokens, {manifest.tokenizer.sha256[:12]}",
        "sha256": manifest.sha256,
    }
    for name, value in rows.items():
        put(f"{name + ':':14}{value}")


def print_bench(result: Mapping[str, Any]) -> None:
    """Print the table of `bench`, how it was measured, and its conclusion."""
    updates = new_table("variant", "update,\ns", "/ λ = 0,\n95 %", "tokens\n/s")
    steps = new_table("variant", "step, s", "/ λ\n= 0", "roll-\nouts", "tokens", "peak,\nMB")
    for row in result["variants"]:
        ratio = row["update_ratio"]
        interval = "" if ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        updates.add_row(
            row["label"],
            number(row["update_seconds"]["median"]),
            f"{number(ratio['median'])}{interval}",
            f"{row['update_tokens_per_second']:.0f}",
        )
        steps.add_row(
            row["label"],
            number(row["step_seconds"]["median"]),
            number(row["step_ratio"]["median"]),
            str(row["rollouts"]),
            f"{row['tokens']:.0f}",
            f"{row['peak_memory_bytes'] / 1e6:.0f}",
        )
    for table in (updates, steps):
        table.padding = (0, 0, 0, 1)  # fits 80 columns
        print_table(table)
    repeats = counted(result["repeats"], "repeat")
    put(f"{result['device']}; CPU threads: {result['threads']}; medians of {repeats} after a warm-up")
    put("a step consists of the rollouts and the update; ratios are paired within each repeat, on the same rollouts")
    put(f"memory: {result['memory']}")
    if result["traces_left_out"]:
        put("the config's traces are omitted; in training, every update contains their tokens too")
    if not result["lambda_from_config"]:
        put(f"λ is 0 at the first step of this config; {result['lambda']:g} is used for λ > 0")
    put(result["sentence"])


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)
