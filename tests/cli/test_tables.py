"""Tables and the progress line fit their terminal and cut nothing."""

from __future__ import annotations

import pytest

from echo_cli.cli.display.progress import fitting_values
from echo_cli.cli.display.tables import new_table, parts_of, print_table


def test_a_wide_table_is_printed_in_parts_that_fit_and_hold_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"measure\n{number}" for number in range(12)]
    table = new_table("λ", *names)
    for row in range(3):
        table.add_row(f"row {row}", *(f"{row}.{number:03}_____" for number in range(12)))
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    for row in range(3):
        found = [line.split()[2:] for line in lines if line.startswith(f" row {row}")]
        assert len(found) > 1
        assert [cell for cells in found for cell in cells] == [f"{row}.{number:03}_____" for number in range(12)]


def test_a_table_that_fits_or_whose_text_never_would_stays_whole() -> None:
    table = new_table("name", "text")
    table.add_row("a", "word " * 10)
    assert len(parts_of(table, 80)) == 1
    table.add_row("b", "x" * 100)
    assert parts_of(table, 80) == [table]


def test_a_progress_line_drops_whole_values_only() -> None:
    values = {"reward": "0.281", "env-CE": "1.105", "held-out env-CE": "1.373"}
    whole = "reward 0.281 env-CE 1.105 held-out env-CE 1.373"
    ends = {fitting_values(values, room) for room in range(len(whole) + 1)}
    assert ends == {"", "reward 0.281", "reward 0.281 env-CE 1.105", whole}
    assert all(len(fitting_values(values, room)) <= room for room in range(60))
