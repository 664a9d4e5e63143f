"""What the commands print: tables of results, as plain text that also reads well in a file.

Text that came from an environment or a model is data: control characters are made visible.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from echo_cli.storage import shown

Summary = Mapping[str, Any]


def printable(text: str) -> str:
    """`text` with every control or format character but newline and tab shown as its code point."""
    return "".join(
        character if character in "\n\t" or unicodedata.category(character)[0] != "C" else f"\\u{ord(character):04x}"
        for character in text
    )


def print_run(summary: Summary, folder: str) -> None:
    """The table that ends `train`, and where the files are."""
    held, ood = summary["heldout"], summary["ood"]
    best = held["best"]
    table = _table("", "before", f"best (step {best['step']})" if best else "best", "last")
    for label, source, name in (
        ("held-out env-CE, nats/token", held, "env_ce"),
        ("  the same pairs before training", held, "env_ce_start"),
        ("held-out bits per byte", held, "env_bits_per_byte"),
        ("held-out token accuracy", held, "token_accuracy"),
        ("held-out pass@1", held, "pass_at_1"),
        ("out-of-distribution env-CE", ood, "env_ce"),
    ):
        table.add_row(label, *(_number((source[when] or {}).get(name)) for when in ("before", "best", "last")))
    table.add_row(
        "novel held-out pairs", *(_count((held[when] or {}).get("novel_pairs")) for when in ("before", "best", "last"))
    )
    _print(table)
    for warning in summary.get("warnings", ()):  # summaries of earlier versions have none
        print(f"warning at step {warning['step']}: {warning['signal']}: {warning['reason']}")
    print(f"{summary['status']} at step {summary['steps']}, λ = {summary['lambda']:g}, {summary['seconds']} s")
    print(f"curve: {shown(folder)}/heldout_env_ce.png   run: {shown(folder)}")


def print_sweep(rows: Sequence[Mapping[str, Any]], picture: str) -> None:
    """The table of `sweep-lambda`."""
    table = _table(
        *("λ", "env-CE\nbefore", "best\n(step)", "last", "OOD\nlast"),
        *("pass@1\nbefore", "pass@1\nlast", "r", "seconds"),
    )
    for row in rows:
        step = row["best_step"]
        table.add_row(
            f"{row['lambda']:g}",
            _number(row["env_ce_start_best"]),
            f"{_number(row['env_ce_best'])} ({step})",
            _number(row["env_ce_last"]),
            _number(row["ood_env_ce_last"]),
            _number(row["pass_at_1_before"]),
            _number(row["pass_at_1_last"]),
            _number(row["portable_lambda"]),
            f"{row['seconds']}",
        )
    _print(table)
    print("held-out env-CE in nats/token over novel pairs; best by validation; r: λ in portable units (see README)")
    print(f"curves: {shown(picture)}")


def print_evaluation(result: Mapping[str, Any]) -> None:
    """The tables of `eval-heldout`: measures before and after, then one command read token by token."""
    table = _table("", "before", f"step {result['step']}")
    for label, key in (
        ("held-out env-CE, nats/token", "heldout/env_ce"),
        ("held-out bits per byte", "heldout/env_bits_per_byte"),
        ("held-out token accuracy", "heldout/token_accuracy"),
        ("held-out env-CE, seen pairs", "heldout/env_ce_seen"),
        ("held-out pass@1", "heldout/pass_at_1"),
        ("validation env-CE", "validation/env_ce"),
        ("out-of-distribution env-CE", "ood/env_ce"),
    ):
        table.add_row(label, _number(result["before"][key]), _number(result["after"][key]))
    _print(table)
    print(f"{result['after']['heldout/novel_pairs']} novel held-out pairs, the same ones in both columns")
    readout = result["readout"]
    print(f"\n$ {printable(readout['command'])}")
    for label, text, correct in (
        ("actual", readout["actual"], None),
        ("predicted before", readout["before"]["text"], readout["before"]["correct"]),
        ("predicted after", readout["after"]["text"], readout["after"]["correct"]),
    ):
        share = "" if correct is None else f" ({correct} of {readout['tokens']} tokens, teacher-forced)"
        print(f"{label}{share}:")
        print("\n".join(f"    {line}" for line in printable(text).splitlines()))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _print(table: Table) -> None:
    # Wide enough that no figure is cut, on a narrow terminal too.
    Console(highlight=False, width=160).print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)
