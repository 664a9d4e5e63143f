"""The configs that scripts write for `env check --judge` are configs of eight tasks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from echo_cli.config.loader import load_config


@pytest.mark.parametrize(("folder", "count"), [("mcp_servers", 5), ("openenv_servers", 10)])
def test_every_written_config_loads_and_lists_eight_tasks(folder: str, count: int, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / folder / "judged_tasks.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    written = sorted(tmp_path.glob("*.yaml"))
    assert len(written) == count
    for path in written:
        tasks = load_config(path).environment.tasks
        assert tasks is not None and tasks.items is not None and len(tasks.items) == 8, path.name
