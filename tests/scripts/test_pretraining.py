"""The script that pretrains `tiny-machine`: the base without home machines, which is a control and has no card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain_tiny_machine.py"


def _pretrain(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


def test_the_base_without_home_machines_is_written_without_the_card_of_the_shipped_one(tmp_path: Path) -> None:
    done = _pretrain("--without-home", "--output", str(tmp_path), "--steps", "1", "--demonstrations", "4")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "pretraining.json",
        "tokenizer.json",
    }
    assert json.loads((tmp_path / "pretraining.json").read_text())["shares"].keys() == {"files", "fresh"}


def test_the_control_does_not_replace_the_shipped_base() -> None:
    done = _pretrain("--without-home", "--steps", "1")
    assert done.returncode == 2 and "--output" in done.stderr
