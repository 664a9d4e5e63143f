"""How runs under the real torchrun end: a rank that is killed, a restart, Ctrl-C, an environment that is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import rows, train_words

from echo_cli.runs.directory import open_run


def launch(size: int, words: list[str], *options: str) -> subprocess.Popen[str]:
    """Start `torchrun` with the tiny run of `words` on `size` ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, "-m", "echo_cli", *words], text=True, env=environment, stdout=pipe, stderr=subprocess.STDOUT
    )


def ranks_of(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """Return the process ids of the launcher's ranks, by rank."""
    found = {}
    for task in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((task / "stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(
                entry.split("=", 1) for entry in (task / "environ").read_text().split("\0") if "=" in entry
            )
        except (OSError, ValueError):
            continue
        if parent == launcher.pid and "RANK" in variables:
            found[int(variables["RANK"])] = int(task.name)
    return found


def wait_until(condition: Callable[[], bool], launcher: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while not condition():
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.2)


def has_saved(run: Path, step: int) -> Callable[[], bool]:
    return lambda: (run / "checkpoints" / f"step_{step:06d}").is_dir()


@pytest.mark.slow
def test_torchrun_starts_the_ranks_again_after_a_kill_and_the_next_one_ends_all_and_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = launch(2, train_words(run, "--steps", "999"), "--max-restarts", "1")
    wait_until(has_saved(run, 1), launcher)
    first = ranks_of(launcher)
    os.kill(first[1], signal.SIGKILL)
    wait_until(
        lambda: first.keys() == (now := ranks_of(launcher)).keys() and not {*first.values()} & {*now.values()}, launcher
    )
    begun = max(open_run(run).checkpoints.steps())
    wait_until(has_saved(run, begun + 2), launcher)
    others = ranks_of(launcher)
    os.kill(others.pop(0), signal.SIGKILL)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    for killed in (1, 0):
        assert output.count(f"error: rank {killed} of 2 was lost") == 1
    assert output.count("error: rank") == 2
    assert not any(Path(f"/proc/{process}").exists() for process in others.values())
    folder, meta = open_run(run).load_checkpoint()  # verified
    assert meta["step"] >= begun + 2 and folder.is_dir()
    assert [row["step"] for row in rows(run)] == list(range(len(rows(run))))


@pytest.mark.slow
def test_ctrl_c_on_the_launcher_saves_once_and_says_how_to_continue(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = launch(2, train_words(run, "--steps", "999", "checkpoint.every=500"))
    wait_until(lambda: (run / "metrics.jsonl").is_file() and len(rows(run)) > 1, launcher)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=100)
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"
    assert max(open_run(run).checkpoints.steps()) == rows(run)[-1]["step"] > 0
    assert output.count("stopped and saved; to continue:") == 1
    assert output.count("stopping after this step") == 1


@pytest.mark.slow
def test_an_environment_that_cannot_be_reached_ends_all_with_one_line(tmp_path: Path) -> None:
    words = ["environment.toy_terminal=null", "environment.url=http://127.0.0.1:9", "rollout.explorers=0"]
    words += ["environment.tasks.items=[{id: a, prompt: p}]"]
    launcher = launch(2, train_words(tmp_path / "run", *words))
    output, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 1
    assert len(re.findall("^error: ", output, re.MULTILINE)) == 1, output
