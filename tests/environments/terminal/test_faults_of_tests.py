"""Terminal tasks whose tests break: the episode has no reward, and the user is told why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from terminal_sites import write_task

from echo_cli.cli.main import main


def test_the_check_says_why_a_task_has_no_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_task(tmp_path / "tasks" / "one", {"tests/test.sh": 'echo nan > "$LOGS_DIR/reward.txt"\n'})
    words = [f"environment.terminal.folder={tmp_path / 'tasks'}", "environment.terminal.runtime=process"]
    words += ["environment.terminal.validation=0", "environment.terminal.heldout=0"]
    assert main(["env", "check", "terminal", *words, "--json"]) == 0
    warnings = {found["name"]: found for found in json.loads(capsys.readouterr().out)["warnings"]}
    said = "the final action failed: the tests of one wrote no number to reward.txt: nan"
    assert warnings["final_failed"]["message"] == said and "tests/test.sh" in warnings["final_failed"]["tip"]
    assert "no_reward" not in warnings
