"""Attempts to leave the sandbox of a terminal task, each by real commands in a real shell under bubblewrap.

The same commands succeed as a plain process, which shows that they would notice a hole.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal_sites import opened, outputs, play, settings_of, skip_without_bubblewrap, write_task

SECRET = "hf-s3cret-0031"
LIMITS = [f"environment.terminal.limits.{limit}" for limit in ("processes=24", "memory_mb=96", "disk_mb=8")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_task(tmp_path / "task", {"environment/notes": "keep\n"})


@pytest.fixture
def trainer() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user with a secret in its environment, as a trainer has."""
    process = subprocess.Popen(["sleep", "1000.0032"], env={"HF_TOKEN": SECRET})
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("runtime", ["bwrap", "process"])
def test_only_a_plain_process_reaches_files_processes_secrets_and_servers(
    runtime: str, folder: Path, tmp_path: Path, trainer: subprocess.Popen[bytes]
) -> None:
    private = tmp_path / "private"
    private.write_text("private text\n")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        opened(settings_of(folder, runtime=runtime)) as (source, _),
    ):
        port = listener.getsockname()[1]
        read, environ, kill, network, write = outputs(
            source,
            "task",
            [
                f"cat {private}",
                f"cat /proc/[0-9]*/environ 2> /dev/null | grep -ao {SECRET}",
                f"kill {trainer.pid} && echo killed",
                f"(exec 3<>/dev/tcp/127.0.0.1/{port}) && echo connected",
                f"echo written > {tmp_path}/written && echo done",
            ],
        )
    is_open = runtime == "process"
    assert (read == "private text\n") == is_open
    assert (SECRET in environ) == is_open
    assert ("killed" in kill.splitlines()) == is_open
    time.sleep(0.05)
    assert (trainer.poll() is not None) == is_open
    assert ("connected" in network) == is_open
    assert (tmp_path / "written").exists() == ("done" in write.splitlines()) == is_open


def test_a_shell_gets_no_variable_of_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for runtime in ("bwrap", "process"):
        with opened(settings_of(folder, runtime=runtime)) as (source, _):
            (text,) = outputs(source, "task", ["env"])
        names = {line.partition("=")[0] for line in text.splitlines()}
        assert names == {*"PATH HOME TERM LC_ALL TZ PAGER GIT_PAGER PWD OLDPWD SHLVL _".split()} - (
            set() if "OLDPWD" in names else {"OLDPWD"}
        )


def test_only_the_tasks_folders_are_writable(folder: Path) -> None:
    paths = ("/x", "/usr/x", "/usr/local/x", "/etc/x", "/dev/x", "/proc/sys/kernel/hostname", "/sys/x", "/logs/x")
    with opened(settings_of(folder)) as (source, _):
        texts = outputs(
            source, "task", [f"echo x > {path}" for path in paths] + ["echo x > x; echo x > ~/x; cat x ~/x"]
        )
    assert texts.pop() == "x\nx\n"
    assert all(any(word in text for word in ("Read-only", "denied", "No such file")) for text in texts), texts


def test_a_link_out_of_the_folder_leads_nowhere_and_removes_nothing(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept\n")
    with opened(settings_of(folder)) as (source, _):
        (_, text) = outputs(source, "task", [f"ln -s {tmp_path} out; ln -s / root", "cat out/kept; chmod 000 ."])
    assert "kept\n" not in text.replace("out/kept", "")
    assert kept.read_text() == "kept\n"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("f() { f | f & }; f; sleep 60", "processes, over limits.processes 24"),
        ("for i in $(seq 60); do head -c 1000000 /dev/zero > $i; done; sleep 60", "MiB, over limits.disk_mb 8"),
    ],
)
def test_a_bomb_ends_the_episode_and_only_the_episode(line: str, why: str, folder: Path) -> None:
    with opened(settings_of(folder, *[f"{limit}" for limit in LIMITS])) as (source, _):
        answers, reward = play(source, "task", ["echo 42 > answer.txt", line, "echo not reached"])
        assert len(answers) == 2 and answers[-1].done
        assert why in answers[-1].observation["notice"]
        assert reward == 1.0  # what was done before counts
        assert outputs(source, "task", ["cat notes"]) == ["keep\n"]
    assert _processes_of("f | f") == 0


def test_memory_and_large_files_are_refused_by_the_kernel(folder: Path) -> None:
    with opened(settings_of(folder, *LIMITS)) as (source, _):
        one, file, tmp, after = outputs(
            source,
            "task",
            [
                "python3 -c \"x = 'x' * 500_000_000; print('allocated')\"",
                "head -c 20000000 /dev/zero > big; stat -c %s big; rm big",
                "for i in 1 2 3 4; do head -c 4000000 /dev/zero > /tmp/$i || break; done",
                "rm -f /tmp/*; echo on",
            ],
        )
    assert "allocated" not in one and "MemoryError" in one
    assert file.splitlines()[-1] == str(8 * 2**20)
    assert "No space left on device" in tmp
    assert after == "on\n"


def test_many_small_memories_together_exceed_the_limit(folder: Path) -> None:
    line = "for i in 1 2 3 4; do python3 -c \"x = 'x' * 50_000_000; import time; time.sleep(60)\" & done; wait"
    with opened(settings_of(folder, *LIMITS)) as (source, _):
        answers, _ = play(source, "task", [line])
    assert "over limits.memory_mb 96" in answers[-1].observation["notice"] and answers[-1].done


def test_what_a_shell_left_running_does_not_reach_the_tests(folder: Path) -> None:
    """A process that would write the answer during the tests dies with the shell; a reward of its own is not read."""
    write_task(folder, {"tests/test.sh": "sleep 0.5; test -e answer.txt\n"})
    lines = [
        "(setsid bash -c 'sleep 0.3; echo 42 > answer.txt' &)",
        "mkdir -p ~/logs; echo 1 > reward.txt; echo 1 > ~/reward.txt",
        "exit",
    ]
    with opened(settings_of(folder)) as (source, _):
        assert play(source, "task", lines)[1] == 0.0


def test_the_tests_and_the_solution_are_not_visible_before_the_end(folder: Path) -> None:
    write_task(folder, {"solution/solve.sh": "echo 42 > answer.txt\n"})
    with opened(settings_of(folder)) as (source, _):
        texts = outputs(
            source, "task", ["ls /tests /solution /logs", f"ls {folder}", "find / -name test.sh 2> /dev/null"]
        )
    assert all("cannot access" in text for text in texts[:2]) and texts[2] == ""


def test_nothing_outlives_a_trainer_that_is_killed(folder: Path, tmp_path: Path) -> None:
    skip_without_bubblewrap()
    script = f"""
import asyncio, tempfile
from pathlib import Path
from terminal_sites import opened, settings_of
tempfile.tempdir = {str(tmp_path)!r}
async def play(source):
    client = source.client()
    await client.reset({{"task": "task"}})
    await client.step({{"command": "setsid sleep 1000.0033 & sleep 1000.0033 & true"}})
    print("ready", flush=True)
    await client.step({{"command": "sleep 1000.0033"}})
with opened(settings_of({str(folder)!r})) as (source, _):
    asyncio.run(play(source))
"""
    paths = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parents[3])))
    environ = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen([sys.executable, "-c", script], env=environ, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None and trainer.stdout.readline() == "ready\n"
        trainer.kill()
    assert _processes_of("1000.0033") == 0


def _processes_of(mark: str) -> int:
    deadline = time.monotonic() + 5
    while True:
        found = 0
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                found += mark in Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
        if found == 0 or time.monotonic() > deadline:
            return found
        time.sleep(0.05)
