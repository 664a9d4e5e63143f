"""Terminal tasks in containers: what Docker's client is asked, and real shells in the containers of a stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from terminal_sites import opened, play, settings_of, skip_without_bubblewrap, write_task

from echo_cli.environments.faults import EnvironmentFault
from echo_cli.environments.terminal.client import TerminalSource
from echo_cli.errors import EchoError

STAND_IN = Path(__file__).parents[2] / "stand_in_containers.py"
DOCKERFILE = "FROM debian:12-slim\nRUN make everything\nWORKDIR /app\nCOPY files/ .\n"
REWARD = 'grep -q 42 answer.txt && echo 0.5 > "/logs/verifier/reward.txt"\n'


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a stand-in for docker, which comes first on the PATH."""
    skip_without_bubblewrap()
    folder = tmp_path / "docker"
    folder.mkdir()
    program = folder / "docker"
    script = folder / "stand_in.py"
    script.write_text(STAND_IN.read_text())
    # Not as the interpreter of a script: the path of this Python may have a space.
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-IS", str(script)])} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def asked(docker: Path, verb: str) -> list[list[str]]:
    return [words for words in map(json.loads, (docker / "asked").read_text().splitlines()) if words[0] == verb]


def test_a_task_plays_in_a_container_of_its_own_image(docker: Path, tmp_path: Path) -> None:
    files = {"environment/Dockerfile": DOCKERFILE, "environment/files/notes": "keep\n", "tests/test.sh": REWARD}
    toml = '[environment]\ncpus = 2\nmemory_mb = 512\n[environment.env]\nNAME = "value"\n[verifier.env]\nLEVEL = "3"\n'
    folder = write_task(tmp_path / "task", {**files, "task.toml": toml})
    with opened(settings_of(folder, runtime="docker")) as (source, _):
        lines = ["cat notes; echo $NAME; x=5", "echo $x 42 > answer.txt; (exit 3)", "ls /tests /logs", "exit"]
        answers, reward = play(source, "task", lines)
    shown = [(answer.observation["output"], answer.observation["exit_code"]) for answer in answers]
    assert shown[:2] == [("keep\nvalue\n", 0), ("", 3)]
    assert "cannot access" in shown[2][0] and answers[-1].done
    assert reward == 0.5
    (run,) = asked(docker, "run")
    assert run[run.index("--network") + 1] == "none"
    assert run[run.index("--memory") + 1] == "512m" and run[run.index("--cpus") + 1] == "2"
    assert {"--rm", "--init", "--pids-limit", "no-new-privileges"} <= set(run)
    name = run[run.index("--name") + 1]
    assert float(run[-1]) == 600 + 600 + 3600  # a container that nobody removes ends itself
    assert asked(docker, "rm") == [["rm", "--force", name]]
    tests = asked(docker, "exec")[2]
    assert tests[-3:] == [name, "bash", "/tests/test.sh"] and "LEVEL=3" in tests


def test_an_image_is_built_once_and_a_prebuilt_one_is_pulled(docker: Path, tmp_path: Path) -> None:
    write_task(tmp_path / "tasks" / "built", {"environment/Dockerfile": DOCKERFILE, "environment/files/a": "a\n"})
    prebuilt = {"task.toml": '[environment]\ndocker_image = "someone/task:1"\n', "environment/notes": "beside\n"}
    write_task(tmp_path / "tasks" / "pulled", prebuilt)
    missing = {"task.toml": '[environment]\ndocker_image = "missing:1"\n'}
    write_task(tmp_path / "tasks" / "gone", missing)
    write_task(tmp_path / "tasks" / "broken", {"environment/Dockerfile": "FROM debian\nRUN BROKEN\n"})
    with opened(settings_of(tmp_path / "tasks", runtime="docker")) as (source, tasks):
        assert [task.task_id for task in tasks.splits.train] == ["built", "pulled"]
        assert source.describe().notices == (
            "warning: 2 terminal tasks of 4 left out",
            "left out: broken: its Dockerfile cannot be made: ERROR: exit code: 127",
            "left out: gone: its image missing:1 cannot be made: "
            "Error response from daemon: manifest for missing:1 not found",
        )
        assert play(source, "pulled", ["cat notes"])[0][0].observation["output"] == "beside\n"
    with opened(settings_of(tmp_path / "tasks", runtime="docker")):
        assert [words[-1] for words in asked(docker, "pull")] == ["missing:1", "someone/task:1", "missing:1"]
        assert len(asked(docker, "build")) == 3  # of the two, the one that fails again


def test_the_network_is_open_only_where_the_config_and_the_task_allow_it(docker: Path, tmp_path: Path) -> None:
    folder = {"environment/Dockerfile": DOCKERFILE, "environment/files/a": "a\n"}
    write_task(tmp_path / "tasks" / "open", folder)
    write_task(tmp_path / "tasks" / "shut", {**folder, "task.toml": "[environment]\nallow_internet = false\n"})
    settings = settings_of(tmp_path / "tasks", "environment.terminal.network=true", runtime="docker")
    with opened(settings) as (source, _):
        for name in ("open", "shut"):
            asyncio.run(_begun(source, name))
    assert ["--network" in words for words in asked(docker, "run")] == [False, True]


async def _begun(source: TerminalSource, name: str) -> None:
    client = source.client()
    await client.reset({"task": name})
    await client.close()


def test_tests_in_a_container_that_hang_or_write_nonsense_are_faults(docker: Path, tmp_path: Path) -> None:
    folder = {"environment/Dockerfile": DOCKERFILE, "environment/files/a": "a\n"}
    slow = {"task.toml": "[verifier]\ntimeout_sec = 0.3\n", "tests/test.sh": "sleep 100\n"}
    write_task(tmp_path / "tasks" / "slow", {**folder, **slow})
    write_task(tmp_path / "tasks" / "nonsense", {**folder, "tests/test.sh": "echo well > /logs/verifier/reward.txt\n"})
    write_task(tmp_path / "tasks" / "planted", {**folder, "tests/test.sh": "exit 1\n"})
    with opened(settings_of(tmp_path / "tasks", runtime="docker")) as (source, _):
        with pytest.raises(EnvironmentFault, match=r"the tests of slow took longer than 0\.3 s"):
            play(source, "slow", ["exit"])
        with pytest.raises(EnvironmentFault, match=r"wrote no number to reward\.txt: well"):
            play(source, "nonsense", ["exit"])
        plant = ["mkdir -p /logs/verifier /tests; echo 1 > /logs/verifier/reward.txt; echo exit 0 > /tests/test.sh"]
        assert play(source, "planted", plant)[1] == 0.0


def test_docker_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    folder: Any = write_task(tmp_path / "task", {"environment/Dockerfile": DOCKERFILE})
    with pytest.raises(EchoError, match="Docker does not answer"), opened(settings_of(folder, runtime="docker")):
        pytest.fail("it answers")
