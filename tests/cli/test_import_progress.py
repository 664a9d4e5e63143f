"""The progress of an import: a bar of the inputs' bytes on a terminal, and nothing elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from echo_cli.cli.display import imports
from echo_cli.cli.display.imports import import_progress


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal_only(terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=100)
    monkeypatch.setattr(imports, "new_console", lambda *, err: console if err else None)
    with import_progress([tmp_path / "a", tmp_path / "a"]) as report:
        report(1_500)
        report(4_500)
    assert ("4.5/6.0 kB" in shown.getvalue()) == terminal
    assert bool(shown.getvalue()) == terminal
