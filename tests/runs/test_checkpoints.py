"""Checkpoints: a run killed at any moment stays usable, and damage is detected and named."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from echo_cli.errors import EchoError
from echo_cli.runs.checkpoints import Checkpoints


def _writer(content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(content)
        (folder / "optimizer").mkdir()
        (folder / "optimizer" / "state.pt").write_bytes(content[::-1])

    return write


def _saved(path: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(path / "checkpoints")
    for step in steps:
        checkpoints.save(step, _writer(f"weights {step}".encode()), {"step": step, "loss": float("nan")})
    return checkpoints


def _names(checkpoints: Checkpoints) -> list[str]:
    return sorted(entry.name for entry in checkpoints.path.iterdir())


def test_a_checkpoint_comes_back_verified(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path, 20, 40)
    folder, meta = checkpoints.load()
    assert folder == tmp_path / "checkpoints" / "step_000040"
    assert meta == {"step": 40, "loss": None}
    assert (folder / "optimizer" / "state.pt").read_bytes() == b"04 sthgiew"
    assert checkpoints.load(20)[1]["step"] == 20
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_000040\n"


def test_best_and_prune(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path, 10, 20, 30, 40)
    checkpoints.mark_best(10)
    checkpoints.prune(2)
    assert checkpoints.steps() == [10, 30, 40]
    assert checkpoints.load("best")[1]["step"] == 10
    checkpoints.mark_best(40)
    checkpoints.prune(1)
    assert _names(checkpoints) == ["best", "latest", "step_000040"]
    with pytest.raises(ValueError, match="at least 1"):
        checkpoints.prune(0)
    with pytest.raises(ValueError, match="no checkpoint of step 10"):
        checkpoints.mark_best(10)


def test_dropping_later_checkpoints_drops_a_later_best(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path, 10, 20, 30)
    checkpoints.mark_best(30)
    checkpoints.drop_after(20)
    assert _names(checkpoints) == ["latest", "step_000010", "step_000020"]
    assert checkpoints.load()[1]["step"] == 20
    assert checkpoints.best_step() is None


def test_the_run_may_be_copied(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    _saved(tmp_path / "a", 10).mark_best(10)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    assert Checkpoints(tmp_path / "b" / "checkpoints").load("best")[1]["step"] == 10


def _cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weig")


def _flip(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights 4O")


def _remove(folder: Path) -> None:
    (folder / "optimizer" / "state.pt").unlink()


def _no_meta(folder: Path) -> None:
    (folder / "meta.json").unlink()


def _cut_meta(folder: Path) -> None:
    (folder / "meta.json").write_text('{"format": "echo')


def _edit(**change: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        record = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**record, **change}))

    return damage


DAMAGE = [
    (_cut, "model.safetensors does not have its saved size"),
    (_flip, "model.safetensors does not have its saved content"),
    (_remove, "optimizer/state.pt is missing"),
    (_no_meta, "no meta.json"),
    (_cut_meta, "not a JSON object"),
    (_edit(format="echo-cli checkpoint 99\n"), "its format is"),
    (_edit(format=None), "its format is"),
    (_edit(step=20), "does not match this checkpoint"),
    (_edit(files=[1]), "does not match this checkpoint"),
    (_edit(files={"model.safetensors": 3}), "does not have its saved size"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE)
def test_damage_is_named_and_the_way_on_is_given(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    checkpoints = _saved(tmp_path, 20, 40)
    folder = tmp_path / "checkpoints" / "step_000040"
    damage(folder)
    with pytest.raises(EchoError, match=reason) as caught:
        checkpoints.load()
    assert str(folder) in caught.value.message
    assert caught.value.tip == f"the checkpoint of step 20 is intact: delete {folder} and run the command again"
    assert caught.value.exit_code == 1
    assert "\n" not in f"{caught.value.message}{caught.value.tip}"
    with pytest.raises(EchoError, match=reason) as caught:
        checkpoints.load(40)
    assert caught.value.tip == "the checkpoint of step 20 is intact"
    shutil.rmtree(folder)
    assert checkpoints.load()[1]["step"] == 20


def test_the_tip_skips_damaged_ones_and_says_when_none_is_left(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path, 20, 40, 60)
    for step in (40, 60):
        _cut(tmp_path / "checkpoints" / f"step_{step:06d}")
    with pytest.raises(EchoError) as caught:
        checkpoints.load()
    assert caught.value.tip is not None and "the checkpoint of step 20 is intact" in caught.value.tip
    _cut(tmp_path / "checkpoints" / "step_000020")
    with pytest.raises(EchoError) as caught:
        checkpoints.load()
    assert caught.value.tip is not None and "--overwrite" in caught.value.tip


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EchoError, match="has no checkpoint"):
        Checkpoints(tmp_path / "checkpoints").load()
    checkpoints = _saved(tmp_path, 20)
    with pytest.raises(EchoError, match="no best checkpoint"):
        checkpoints.load("best")
    with pytest.raises(EchoError, match="no checkpoint of step 7") as caught:
        checkpoints.load(7)
    assert caught.value.tip == "steps with checkpoints: 20"


def test_a_failing_writer_leaves_what_was_there(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path, 20)
    before = _names(checkpoints)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        checkpoints.save(40, fail, {})
    assert _names(checkpoints) == before


CRASH_EVERYWHERE = """
import os, shutil, signal, sys
from pathlib import Path
from echo_cli.runs.checkpoints import Checkpoints

def write(content):
    def fill(folder):
        (folder / "a").write_bytes(content)
        (folder / "b").write_bytes(content)
    return fill

def build(path):
    checkpoints = Checkpoints(path)
    checkpoints.save(20, write(b"twenty"), {"step": 20})
    checkpoints.save(40, write(b"forty"), {"step": 40})
    checkpoints.mark_best(20)

def act(path):
    checkpoints = Checkpoints(path)
    checkpoints.save(40, write(b"forty again"), {"step": 40})
    checkpoints.save(60, write(b"sixty"), {"step": 60})
    checkpoints.mark_best(60)
    checkpoints.prune(1)
    checkpoints.save(80, write(b"eighty"), {"step": 80})
    checkpoints.drop_after(60)

def crash_at(count):
    left = count
    def hook(event, arguments):
        nonlocal left
        if event.startswith(("os.", "shutil.", "open")):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

root = Path(sys.argv[1])
build(root / "start")
count = 0
while True:
    count += 3  # every third operation reaches all parts of the code, in a third of the time
    path = root / str(count)
    shutil.copytree(root / "start", path)
    child = os.fork()
    if child == 0:
        crash_at(count)
        act(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    checkpoints = Checkpoints(path)
    checkpoints.recover()
    for step in checkpoints.steps():
        folder, meta = checkpoints.load(step)  # a checkpoint with its final name is intact
        assert meta == {"step": step}
    assert checkpoints.load()[1]["step"] >= 40
    best = checkpoints.best_step()
    assert best in (20, 60), best
    checkpoints.load("best")
    checkpoints.save(100, write(b"goes on"), {"step": 100})
    assert not [entry for entry in path.iterdir() if entry.name.startswith((".tmp", ".old"))]
    shutil.rmtree(path)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        print(count)
        break
"""


def test_killed_between_file_operations_every_named_checkpoint_is_intact(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CRASH_EVERYWHERE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


SAVE_FOREVER = """
import sys
from pathlib import Path
from echo_cli.runs.directory import open_run

run = open_run(Path(sys.argv[1]))
with run.lock():
    step = 0
    if run.checkpoints.steps():
        folder, meta = run.load_checkpoint()
        step = meta["step"]
        run.rewind(step)
    while True:
        step += 1
        run.append_metrics({"step": step, "train/env_ce": 1 / step})
        def write(folder):
            for name in "abc":
                (folder / name).write_bytes(f"{step} {name}".encode() * 20000)
        run.save_checkpoint(step, write, {})
        run.checkpoints.prune(2)
        print(step, flush=True)
"""


def test_kill_minus_9_while_saving_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    from echo_cli.runs.directory import create_run

    run = create_run(tmp_path / "run", config_yaml="seed: 0\n", environment={})
    delays = random.Random(0)
    said = 0
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(run.path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = int(process.stdout.readline())
            assert first > said
            time.sleep(delays.uniform(0.0, 0.1))
            process.send_signal(signal.SIGKILL)
            said = max([first, *(int(line) for line in process.stdout.read().split(b"\n")[:-1])])
        folder, meta = run.load_checkpoint()
        assert meta["step"] in (said, said + 1)
        assert (folder / "a").read_bytes().startswith(f"{meta['step']} a".encode())
        steps = [row["step"] for row in run.read_metrics()]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) >= meta["step"]


FILL_THE_DISK = """
import sys
from pathlib import Path
from echo_cli.errors import EchoError
from echo_cli.runs.directory import create_run

run = create_run(Path(sys.argv[1]) / "run", config_yaml="seed: 0", environment={})
run.append_metrics({"step": 1})
run.save_checkpoint(1, lambda folder: (folder / "w").write_bytes(b"w" * 10000) and None, {})

def fill(folder):
    try:
        (folder / "w").write_bytes(b"w" * 10_000_000)
    except OSError:
        raise RuntimeError("unexpected pos 576 vs 534") from None  # torch.save's error

for write in (fill, lambda folder: (folder / "w").write_bytes(b"w" * 10_000_000) and None):
    try:
        run.save_checkpoint(2, write, {})
    except EchoError as error:
        print(error.exit_code, error.message)
step = 1
try:
    while True:
        step += 1
        run.append_metrics({"step": step, "filler": "x" * 3000})
except EchoError as error:
    print(error.exit_code, error.message)
assert [row["step"] for row in run.read_metrics()] == list(range(1, step))
assert run.load_checkpoint()[1]["step"] == 1
"""


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_there(tmp_path: Path) -> None:
    shell = textwrap.dedent('mount -t tmpfs -o size=512k tmpfs "$1" 2>/dev/null || exit 77; exec "$2" -c "$3" "$1"')
    command = ["unshare", "-r", "-m", "sh", "-c", shell, "sh", str(tmp_path), sys.executable, FILL_THE_DISK]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no private mounts here")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("1 the disk is full: cannot write ") for line in lines)
