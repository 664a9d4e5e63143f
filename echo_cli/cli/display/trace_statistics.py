"""Printing for `traces stats`."""

from __future__ import annotations

from collections.abc import Mapping

from echo_cli.cli.display.tables import new_table, print_table
from echo_cli.evaluation.data.trace_statistics import TraceStatistics
from echo_cli.terminal import put
from echo_cli.text import clipped, share
from echo_cli.traces.inspection.account import UNNAMED, Amount

_ROWS = 12
"""Maximum number of channels listed per role, and of tools."""


def print_statistics(found: TraceStatistics, *, tokens: str | None) -> None:
    """Print one table of all figures.

    Args:
        tokens: name of the counted tokens; None if none are counted.
    """
    table = new_table("", "number", "share", "bytes", *([] if tokens is None else ["tokens"]))
    longest, bits = found.longest, found.compression

    def add(name: str, number: str, share: float | None = None, size: int | None = None, of: int | None = None) -> None:
        cells = name, number, _percent(share), "" if size is None else f"{size:,}", "" if of is None else f"{of:,}"
        table.add_row(*cells[: len(table.columns)])

    def add_amount(name: str, amount: Amount) -> None:
        add(name, f"{amount.segments:,}", amount.bytes_share, amount.bytes, amount.tokens)

    add("traces", f"{found.traces:,}")
    add("  equal to an earlier trace", f"{found.equal.copies:,}", found.equal.copies_share)
    add("  nearly equal to an earlier trace", f"{found.near_copies:,}", found.near_copies_share)
    add("turns", f"{found.turns:,}")
    add("  command and output repeated", f"{found.pairs.copies:,}", found.pairs.copies_share)
    add(f"longest trace, number {longest.number}", f"{longest.turns:,} turns", None, longest.bytes, longest.tokens)
    add_amount("segments", found.account.total)
    for role, of_role in found.account.roles.items():
        add_amount(f"  {role}", of_role)
        channels = {} if of_role.channels.keys() == {UNNAMED} else of_role.channels
        for channel, part in list(channels.items())[:_ROWS]:
            add_amount(f"    {clipped(channel)}", part)
        if (left := len(channels) - _ROWS) > 0:
            add(f"    and {left} more channels", "")
    if bits is not None:
        add("bits per byte of outputs, 5-gram", f"{bits.ngram_bits_per_byte:.3f}", None, bits.scored_bytes)
        add("bits per byte of outputs, gzip", f"{bits.gzip_bits_per_byte:.3f}", None, bits.scored_bytes)
    calls = sum(tool.calls for tool in found.tools)
    add("actions by tool, and their languages", f"{calls:,}")
    for tool in found.tools[:_ROWS]:
        add(f"  {clipped(tool.name)}: {_languages(tool.languages)}", f"{tool.calls:,}", share(tool.calls, calls))
    if (left := len(found.tools) - _ROWS) > 0:
        add(f"  and {left} more tools", "")
    print_table(table)
    if tokens is not None:
        put(f"tokens: {tokens}")


def _languages(languages: Mapping[str, int]) -> str:
    total = sum(languages.values())
    if len(languages) == 1:
        return next(iter(languages))
    return ", ".join(f"{name} {_percent(share(count, total))}" for name, count in list(languages.items())[:3])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
