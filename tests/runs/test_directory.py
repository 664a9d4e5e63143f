"""The run directory: refused if used, overwritten only if it is a run, and resumed byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from echo_cli.errors import EchoError
from echo_cli.runs.directory import RunDirectory, create_run, open_run
from echo_cli.runs.provenance import environment_record


def _create(path: Path, *, overwrite: bool = False) -> RunDirectory:
    return create_run(path, config_yaml="seed: 0\n", environment={"seed": 0}, overwrite=overwrite)


def _refused(path: Path, *, overwrite: bool = False) -> EchoError:
    with pytest.raises(EchoError) as caught:
        _create(path, overwrite=overwrite)
    assert "\n" not in f"{caught.value.message}{caught.value.tip}"
    return caught.value


def _write(folder: Path) -> None:
    (folder / "w").write_text("w")


def _observation(step: int) -> dict[str, object]:
    return {"step": step, "command": f"cat {step}", "output": "日\r\n🚀\u2028", "exit_code": 0}


def _fill(run: RunDirectory, first: int, last: int, save_every: int = 2) -> None:
    for step in range(first, last + 1):
        run.append_observations([_observation(step)] if step else [])
        run.append_metrics({"step": step, "train/env_ce": 1 / (step + 1)})
        run.append_trajectories([{"task_id": "t", "meta": {"step": step}}])
        if step % save_every == 0:
            run.save_checkpoint(step, _write, {"seen": 1})


def _logs(run: RunDirectory) -> list[bytes]:
    return [path.read_bytes() for path in (run.metrics_path, run.observations_path, run.trajectories_path)]


def test_a_new_run_has_its_config_and_environment(tmp_path: Path) -> None:
    run = _create(tmp_path / "outputs" / "a")
    assert run.config_path.read_text() == "seed: 0\n"
    assert json.loads((run.path / "environment.json").read_text()) == {"format": "echo-cli run 1", "seed": 0}
    assert run.read_metrics() == []
    assert run.read_summary() is None
    assert open_run(run.path) == run


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    assert _create(tmp_path).read_metrics() == []


def test_a_used_run_is_refused_with_the_three_ways_on(tmp_path: Path) -> None:
    run = _create(tmp_path / "a")
    run.append_metrics({"step": 0})
    error = _refused(run.path)
    assert error.exit_code == 2
    assert error.tip is not None and all(option in error.tip for option in ("--resume", "--overwrite", "--run-name"))
    assert len(run.read_metrics()) == 1


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    run = _create(tmp_path / "a")
    _fill(run, 0, 4)
    run.write_summary({"steps": 4})
    (run.path / "heldout_env_ce.png").write_bytes(b"png")
    (run.path / "notes.md").write_text("mine")
    _create(run.path, overwrite=True)
    names = sorted(entry.name for entry in run.path.iterdir())
    made = ["config.yaml", "environment.json", "metrics.jsonl", "observations.jsonl", "origin"]
    assert names == sorted([".lock", "notes.md", *made])
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert run.read_metrics() == run.read_observations() == []


def test_overwrite_follows_no_link(tmp_path: Path) -> None:
    run = _create(tmp_path / "a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("kept")
    run.checkpoints.path.symlink_to(tmp_path / "elsewhere")
    _create(run.path, overwrite=True)
    assert (tmp_path / "elsewhere" / "precious").read_text() == "kept"


@pytest.mark.parametrize("names", [["thesis.tex"], ["config.yaml"], ["config.yaml", "metrics.jsonl"]])
def test_overwrite_refuses_what_is_not_a_run(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("seed: 0")
    error = _refused(tmp_path, overwrite=True)
    assert "not a run" in error.message
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names


def test_overwrite_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert "not a folder" in _refused(tmp_path / "a", overwrite=True).message
    assert (tmp_path / "a").read_text() == "x"


@pytest.mark.parametrize("place", ["file/run", "/proc/run", "n" * 300])
def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    error = _refused(tmp_path / place)
    assert error.exit_code == 2
    assert error.message.startswith("cannot write ")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_a_read_only_folder_is_a_usage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in _refused(tmp_path / "run").message


def test_a_run_killed_while_it_was_made_can_be_overwritten(tmp_path: Path) -> None:
    run = _create(tmp_path / "a")
    run.config_path.unlink()
    with pytest.raises(EchoError, match="is not a run"):
        open_run(run.path)
    assert _create(run.path, overwrite=True).config_path.exists()


def test_a_wrong_name_gets_a_suggestion(tmp_path: Path) -> None:
    _create(tmp_path / "toy-lambda")
    with pytest.raises(EchoError, match="does not exist") as caught:
        open_run(tmp_path / "toy-lamda")
    assert caught.value.tip == f"did you mean {tmp_path / 'toy-lambda'}?"
    with pytest.raises(EchoError, match="does not exist") as caught:
        open_run(tmp_path / "no" / "such" / "folder")
    assert caught.value.tip == "give a run directory created by `train`"
    with pytest.raises(EchoError, match="is not a run"):
        open_run(tmp_path)


def test_resuming_writes_what_an_uninterrupted_run_writes(tmp_path: Path) -> None:
    whole, cut = _create(tmp_path / "whole"), _create(tmp_path / "cut")
    _fill(whole, 0, 9)
    _fill(cut, 0, 5)
    cut.write_summary({"status": "stopped"})
    for log in (cut.metrics_path, cut.observations_path, cut.trajectories_path):
        with log.open("ab") as file:
            file.write(b'{"step": 6, "tra')
    _, meta = cut.load_checkpoint()
    assert meta == {"seen": 1, "step": 4}
    cut.rewind(meta["step"])
    assert cut.read_summary() is None
    _fill(cut, 5, 9)
    assert _logs(cut) == _logs(whole)
    assert cut.checkpoints.steps() == whole.checkpoints.steps()


def test_rewinding_to_an_earlier_checkpoint_drops_what_came_after(tmp_path: Path) -> None:
    run = _create(tmp_path / "a")
    _fill(run, 0, 8)
    run.rewind(run.load_checkpoint(4)[1]["step"])
    assert run.load_checkpoint()[1]["step"] == 4
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2, 3, 4]
    assert run.read_observations() == [_observation(step) for step in (1, 2, 3, 4)]
    run.rewind(-1)
    assert run.read_observations() == []


def test_observations_are_read_up_to_a_step(tmp_path: Path) -> None:
    run = _create(tmp_path / "a")
    _fill(run, 0, 4)
    assert run.read_observations(2) == [_observation(1), _observation(2)]
    assert run.read_observations(0) == []


def test_a_run_of_an_earlier_version_has_no_observations(tmp_path: Path) -> None:
    run = _create(tmp_path / "a")
    run.observations_path.unlink()
    with pytest.raises(EchoError, match=r"has no observations\.jsonl: an earlier version") as caught:
        run.read_observations()
    assert caught.value.exit_code == 2 and caught.value.tip


@pytest.mark.parametrize("change", [{"output": 3}, {"step": "1"}, {"exit_code": "0"}, {"command": None}])
def test_a_row_that_is_no_observation_is_named(change: dict[str, object], tmp_path: Path) -> None:
    run = _create(tmp_path / "a")
    run.append_observations([_observation(1), {**_observation(2), **change}])
    with pytest.raises(EchoError, match=r"observations\.jsonl:2: not an observation"):
        run.read_observations()


def test_two_processes_cannot_train_into_one_run(tmp_path: Path) -> None:
    run = _create(tmp_path / "a")
    script = (
        "import sys, time; from pathlib import Path; from echo_cli.runs.directory import open_run\n"
        "with open_run(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(run.path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(EchoError, match="locked by another process"), run.lock():
            pass
        assert "locked by another process" in _refused(run.path, overwrite=True).message
        process.kill()
    with run.lock():
        pass


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(EchoError, match=r"is not a run: it lacks config\.yaml or metrics\.jsonl"):
        RunDirectory(tmp_path).read_metrics()


def test_the_summary_comes_back_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    run = _create(tmp_path)
    run.write_summary({"status": "finished", "lambda": 0.05, "heldout": {"best": {"step": 40, "env_ce": float("nan")}}})
    assert run.read_summary() == {
        "status": "finished",
        "lambda": 0.05,
        "heldout": {"best": {"step": 40, "env_ce": None}},
    }
    run.summary_path.write_text("{")
    with pytest.raises(EchoError, match=r"summary\.json: not JSON"):
        run.read_summary()


def test_the_environment_record_names_no_place_and_no_person() -> None:
    argv = [
        "/home/ann/.venv/bin/echo-cli",
        "train",
        "--config=/home/ann/c.yaml",
        "~/d.yaml",
        "a.b=1",
        "--lambda",
        "0.05",
    ]
    record = environment_record(3, [*argv, "model.path=/home/ann/m", "outputs/x"], "cpu", 2)
    assert record["argv"] == [
        *("echo-cli", "train", "--config=c.yaml", "d.yaml", "a.b=1", "--lambda", "0.05"),
        *("model.path=m", "outputs/x"),
    ]
    assert (record["seed"], record["device"], record["threads"]) == (3, "cpu", 2)
    assert all(record["versions"][package] for package in ("torch", "transformers", "peft"))
    assert set(record) >= {"python", "platform", "git_commit"}
    assert "/home" not in json.dumps(record)


def test_reading_and_writing_runs_imports_no_torch() -> None:
    modules = "echo_cli.runs.directory, echo_cli.reports.run_figure"
    script = f"import sys, {modules}; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"step": None},
        {"step": "2"},
        {"seconds": "long"},
        {"seconds": 1e300},
        {"gradient_norms": [1.0]},
        {"gradient_norms": {"rl": None, "env": 1.0}},
        {"gradient_norms": {"other": 1.0}},
        {"unrecorded": [1]},
    ],
)
def test_the_record_of_a_checkpoint_with_other_types_is_one_line(changes: dict[str, Any], tmp_path: Path) -> None:
    run = _create(tmp_path / "run")
    with run.lock():
        folder = run.save_checkpoint(2, lambda _: None, {"seconds": 1.5, "gradient_norms": {"rl": 1.0, "env": 2.0}})
    assert run.load_checkpoint(2)[1]["step"] == 2
    record = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**record, "meta": {**record["meta"], **changes}}))
    with pytest.raises(EchoError, match="is not the record of a run") as caught:
        run.load_checkpoint(2)
    assert caught.value.exit_code == 1 and caught.value.tip


@pytest.mark.parametrize("name", ["../metrics.jsonl", "/etc/passwd"])
def test_a_checkpoint_lists_no_file_outside_its_folder(name: str, tmp_path: Path) -> None:
    run = _create(tmp_path / "run")
    with run.lock():
        folder = run.save_checkpoint(2, lambda _: None, {})
    record = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**record, "files": {name: {"bytes": 1, "sha256": "0"}}}))
    with pytest.raises(EchoError, match="lists a file outside the checkpoint"):
        run.load_checkpoint(2)
