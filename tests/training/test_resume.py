"""Stopped, killed and damaged runs: a run continues bit for bit as if uninterrupted, or says why it cannot."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from canned_worlds import CannedWorlds
from tiny_run import error_of, observations, rows, start, train, train_words, weights

from echo_cli.cli.interrupt import interruptible
from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config
from echo_cli.environments.protocol import Description
from echo_cli.errors import EchoError
from echo_cli.files import TEMPORARY, write_atomic
from echo_cli.runs.directory import RunDirectory, create_run, is_run, open_run
from echo_cli.training.resume import check_same_config, check_same_environment, keep_threads, worlds_record


def _wait_for(stream: IO[str] | None, text: str) -> str:
    assert stream is not None
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"the process ended without {text!r}")


def _interrupted_copy(finished: Path, target: Path, step: int) -> Path:
    """Copy `finished` as if it had been killed some time after `step`: rows, checkpoints and partial lines remain."""
    run = shutil.copytree(finished, target)
    (run / "summary.json").unlink()
    for later in open_run(run).checkpoints.steps():
        if later > step:
            shutil.rmtree(run / "checkpoints" / f"step_{later:06d}")
    for log in (run / "metrics.jsonl", run / "observations.jsonl", run / "rollouts.jsonl"):
        log.write_bytes(log.read_bytes()[:-50])
    return run


@pytest.mark.parametrize("step", [0, 1, 3])
def test_resuming_equals_never_having_stopped(step: int, finished: Path, tmp_path: Path) -> None:
    run = _interrupted_copy(finished, tmp_path / "run", step)
    assert train(run, "--steps", "4", "--resume") == 0
    assert rows(run) == rows(finished)
    assert observations(run) == observations(finished)
    assert (run / "rollouts.jsonl").read_bytes() == (finished / "rollouts.jsonl").read_bytes()
    assert weights(run, 4) == weights(finished, 4)
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_of_an_earlier_version_is_refused_and_left_alone(
    step: int, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _interrupted_copy(finished, tmp_path / "run", step)
    (run / "observations.jsonl").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert train(run, "--steps", "4", "--resume") == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "has no observations.jsonl" in message and "--overwrite" in tip
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() if path in before} == before


def test_a_run_of_an_earlier_version_that_trained_nothing_starts_again(finished: Path, tmp_path: Path) -> None:
    run = _interrupted_copy(finished, tmp_path / "run", 0)
    (run / "observations.jsonl").unlink()
    assert train(run, "--steps", "4", "--resume") == 0
    assert observations(run) == observations(finished)


def test_the_gradient_ratio_is_held_and_its_state_resumes(tmp_path: Path) -> None:
    # Eight tasks: at least one is solved by some of its rollouts and not by others.
    words = [
        "--steps",
        "5",
        "rollout.tasks_per_step=8",
        "rollout.group_size=4",
        "evaluation.every=5",
        "--lambda",
        "0.3",
    ]
    words += ["objective.schedule=gradient_ratio", "objective.gradient_ratio_target=0.2"]
    words += ["objective.gradient_ratio_every=2", "objective.gradient_ratio_smoothing=0.6", "probe_every=3"]
    run, cut = tmp_path / "run", tmp_path / "cut"
    assert train(run, *words) == 0
    metrics = rows(run)
    # Measured at the 0-based steps 0, 2 and 4; the probe at step 3 is for the metrics only.
    assert [row["step"] for row in metrics if row["train/probe_ratio"] is not None] == [1, 3, 4, 5]
    timed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timed if row["time/probe_s"] is not None] == [1, 3, 4, 5]
    coeffs = {row["step"]: row["train/lambda"] for row in metrics[1:]}
    assert coeffs[1] * metrics[1]["train/probe_ratio"] == pytest.approx(0.2)
    assert coeffs[1] == coeffs[2] != coeffs[3] == coeffs[4] != coeffs[5]
    state = open_run(run).load_checkpoint(3)[1]["gradient_norms"]
    assert coeffs[3] == pytest.approx(0.2 * state["rl"] / state["env"])

    shutil.copytree(run, cut)
    (cut / "summary.json").unlink()
    for step in (4, 5):
        shutil.rmtree(cut / "checkpoints" / f"step_{step:06d}")
    assert train(cut, *words, "--resume") == 0
    assert rows(cut) == metrics
    assert weights(cut, 5) == weights(run, 5)


def test_a_run_without_a_checkpoint_starts_again(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    assert train(run, "--steps", "4", "--resume") == 0
    assert rows(run) == rows(finished)


def _kill_while_made(path: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave `path` as after a kill just before `create_run` writes the file `at`."""

    class Killed(BaseException):
        pass

    def write(file: Path, data: bytes) -> None:
        if file.name == at:
            (path / f"{TEMPORARY}killed").write_bytes(data[:3])
            raise Killed
        write_atomic(file, data)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("echo_cli.runs.directory.write_atomic", write)
        patch.setattr("echo_cli.runs.origin.write_atomic", write)
        patch.setattr("echo_cli.files.write_atomic", write)
        create_run(path, config_yaml="seed: 0\n", environment={"seed": 0})


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step."""
    run = tmp_path_factory.mktemp("outputs") / "short"
    assert train(run, "--steps", "1") == 0
    return run


@pytest.mark.parametrize("at", ["environment.json", "observations.jsonl", "metrics.jsonl", "origin", "config.yaml"])
@pytest.mark.parametrize("words", [[], ["--resume"]], ids=["train", "resume"])
def test_a_run_killed_while_it_was_made_starts(
    at: str, words: list[str], short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    _kill_while_made(run, at, monkeypatch)
    assert train(run, "--config", "toy-files", "--steps", "1", *words) == 0
    assert rows(run) == rows(short)
    assert not list(run.glob(f"{TEMPORARY}*"))


@pytest.mark.parametrize("words", [[], ["--resume"]], ids=["train", "resume"])
def test_a_run_whose_config_is_gone_is_not_taken_for_a_half_made_one(
    words: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "config.yaml").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert train(run, *words) == 2
    assert "run" in error_of(capsys.readouterr().err)[0]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_seconds_of_a_resumed_run_are_those_of_all_its_sessions(finished: Path, tmp_path: Path) -> None:
    run = _interrupted_copy(finished, tmp_path / "run", 3)
    saved, meta = open_run(finished).load_checkpoint(3)

    def write(folder: Path) -> None:
        for file in saved.iterdir():
            if file.name != "meta.json":
                shutil.copy(file, folder)

    open_run(run).checkpoints.save(3, write, {**meta, "seconds": 1000.0})
    assert train(run, "--steps", "4", "--resume") == 0
    assert 1000 < json.loads((run / "summary.json").read_text())["seconds"] < 2000


def test_more_steps_continue_a_run_whose_schedules_do_not_depend_on_them(tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    for run, steps in ((short, "1"), (long, "2")):
        assert train(run, "--steps", steps, "optim.lr_schedule=constant") == 0
    assert train(short, "--steps", "2", "--resume", "optim.lr_schedule=constant") == 0
    assert [row["step"] for row in rows(short)] == [0, 1, 2]
    assert weights(short, 2) == weights(long, 2)
    # The config on disk has the new value, so that a later --resume needs no --steps.
    assert "steps: 2" in (short / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "schedule"),
    [
        (["optim.warmup_steps=0"], r"optim.lr_schedule: linear"),
        (["optim.lr_schedule=cosine", "optim.warmup_steps=1"], r"optim.lr_schedule: cosine"),
        (
            ["objective.schedule=linear", "objective.world_model_coeff_end=0.1", "optim.lr_schedule=constant"],
            r"objective.schedule: linear",
        ),
    ],
)
def test_more_steps_are_refused_where_a_schedule_has_ended(
    words: list[str], schedule: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "config.yaml").write_text(load_config(run / "config.yaml", words).to_yaml())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert train(run, "--steps", "8", "--resume", *words) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert f"its {schedule} was stretched over 4 steps, 4 of which are trained" in message
    assert "--run-name" in tip and "checkpoints/step_000004" in tip
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_resumed_run_keeps_its_threads_unless_told_otherwise(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _interrupted_copy(finished, tmp_path / "run", 3)
    torch.set_num_threads(2)
    try:
        assert train(run, "--steps", "4", "--resume", "threads=0") == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
    assert "train: 1 CPU thread, as the run began, instead of 2; threads=N" in capsys.readouterr().err
    assert rows(run) == rows(finished) and weights(run, 4) == weights(finished, 4)
    assert "\nthreads: 1\n" in (run / "config.yaml").read_text()
    kept, said = keep_threads(open_run(run), load_config(run / "config.yaml", ["threads=2"]))
    assert kept.threads == 2 and "the run began with 1" in said[0]


def test_resuming_a_finished_run_changes_nothing(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert train(finished, "--steps", "4", "--resume") == 0
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "7"], "seed was 0, now 7"),
        (["optim.lr=0.5"], "optim.lr was"),
        (["--lambda", "0.5"], "objective.world_model_coeff was"),
        (["--config", "toy-world-model", "objective.use_rl=false"], "cannot resume"),
        (["--steps", "3"], "is already at step 4, past steps=3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_changed_config_is_refused_and_the_run_left_alone(
    words: list[str], message: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    steps = [] if "--steps" in words else ["--steps", "4"]
    assert train(finished, "--resume", *steps, *words) == 2
    found, tip = error_of(capsys.readouterr().err)
    assert message in found and tip
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


_OBJECT = "environment: {object: 'a.b:C', object_options: {level: 3}, tasks: {seeds: 9}, explorer: [look]}"


def _in_an_object(folder: Path, *words: str) -> tuple[RunDirectory, Config]:
    """A run in an OpenEnv class with options, and the config to resume it with."""
    source = folder / "object.yaml"
    source.write_text(_OBJECT)
    run = create_run(folder / "run", config_yaml=load_config(source).to_yaml(), environment={"seed": 0})
    return run, load_config(source, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["environment.object_options.level=4"], "environment.object_options.level was 3, now 4"),
        (["environment.object_options.size=2"], "environment.object_options.size was None, now 2"),
        (["environment.object_options={}"], "environment.object_options.level was 3, now None"),
        (["environment.object=a.b:D", "environment.object_options={}"], "environment.object_options.level was 3"),
        (["environment.prompt='# '"], "environment.prompt was > , now # "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_options_of_an_environments_class_do_not_change_on_resume(
    words: list[str], message: str, tmp_path: Path
) -> None:
    run, config = _in_an_object(tmp_path, *words)
    with pytest.raises(EchoError) as caught:
        check_same_config(run, config)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["environment.object=a.b:D"],
        ["environment.url=http://127.0.0.1:8000", "environment.headers.Key=${KEY}"],
        ["environment.provider={kind: docker, image: world}"],
        ["environment.sessions=2", "environment.attempts=1", "environment.retry_s=0", "steps=9", "collapse.window=2"],
    ],
    ids=" ".join,
)
def test_where_an_environment_is_and_how_it_is_reached_may_change_on_resume(words: list[str], tmp_path: Path) -> None:
    check_same_config(*_in_an_object(tmp_path, *words))


def test_what_is_not_a_run_cannot_be_resumed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for run, message in (
        (tmp_path / "photos", "photos is not a run"),
        (tmp_path / "nowhere", "nowhere does not exist"),
        (finished.parent / "finishd", "finishd does not exist"),
    ):
        assert train(run, "--resume") == 2
        found, tip = error_of(capsys.readouterr().err)
        assert message in found and tip
    assert "did you mean" in tip and "finished" in tip


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_works(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _interrupted_copy(finished, tmp_path / "run", 3)
    newest = run / "checkpoints" / "step_000003"
    whole = (newest / "model.safetensors").read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        (newest / "model.safetensors").write_bytes(damage)
        logs = (run / "metrics.jsonl").read_bytes()
        assert train(run, "--resume", "--steps", "4") == 1
        message, tip = error_of(capsys.readouterr().err)
        assert "step_000003 is damaged: model.safetensors" in message
        assert "the checkpoint of step 2 is intact" in tip
        assert (run / "metrics.jsonl").read_bytes() == logs
    shutil.rmtree(newest)
    assert train(run, "--resume", "--steps", "4") == 0
    assert rows(run) == rows(finished)


def test_a_foreign_checkpoint_is_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _interrupted_copy(finished, tmp_path / "run", 2)
    (run / "checkpoints" / "step_000004").mkdir()
    (run / "checkpoints" / "step_000004" / "model.safetensors").write_bytes(b"other")
    assert train(run, "--resume", "--steps", "4") == 1
    message, tip = error_of(capsys.readouterr().err)
    assert "step_000004 is damaged: it has no meta.json" in message
    assert "step 2 is intact" in tip


def test_a_run_that_is_being_trained_is_not_touched(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _interrupted_copy(finished, tmp_path / "run", 2)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with open_run(run).lock():
        assert train(run, "--resume", "--steps", "4") == 2
        assert "locked by another process" in error_of(capsys.readouterr().err)[0]
        assert train(run, "--overwrite") == 2
        assert "locked by another process" in error_of(capsys.readouterr().err)[0]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() if path in before} == before


def test_the_first_signal_asks_and_the_second_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as interrupt:
        assert not interrupt()
        signal.raise_signal(signal.SIGTERM)
        assert interrupt() and interrupt.exit_code == 143
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGINT)
    assert caught.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_a_closing_terminal_asks_once_however_often_it_signals() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stderr = os.dup(2)
    os.dup2(writer, 2)  # nobody reads it any more
    try:
        with interruptible() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            assert interrupt.exit_code == 129
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(writer)


def test_nohup_is_heeded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupt()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_printed_command_continues(
    number: signal.Signals,
    code: int,
    finished: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def signal_after_step_2(row: dict[str, Any], total: int, label: str) -> None:
        if row["step"] == 2:
            signal.raise_signal(number)

    run = tmp_path / "a run"
    with monkeypatch.context() as patch:
        patch.setattr("echo_cli.cli.display.progress.print_plain", signal_after_step_2)
        assert train(run, "--steps", "4", "--json") == code
    captured = capfd.readouterr()
    assert json.loads(captured.out)["status"] == "stopped"
    assert "stopping after this step" in captured.err
    assert open_run(run).checkpoints.steps() == [0, 1, 2, 3]
    program, *words = shlex.split(captured.err.splitlines()[-1].removeprefix("stopped and saved; to continue: "))
    assert program == "echo-cli"
    assert main(words) == 0
    assert rows(run) == rows(finished)
    assert weights(run, 4) == weights(finished, 4)


@pytest.mark.slow
def test_a_real_process_stops_on_sigterm(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(*train_words(run, "--steps", "400", "checkpoint.every=400"))
    _wait_for(process.stderr, "step 2/400")
    process.terminate()
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in rest and "stopped and saved" in rest
    stopped = open_run(run).checkpoints.steps()[-1]
    assert [row["step"] for row in rows(run)] == list(range(stopped + 1))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_run_outlives_the_readers_of_its_output(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    process = start(*train_words(run, "--steps", "400", "checkpoint.every=400"), stderr=subprocess.STDOUT)
    assert process.stdout is not None
    _wait_for(process.stdout, "step 0/400")
    process.stdout.close()  # as of a pipe into head, or into a tee that the same Ctrl-C ended
    while (run / "metrics.jsonl").read_text().count("\n") < 14:  # a line of progress is due every second step
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    stopped = open_run(run).checkpoints.steps()[-1]
    assert [row["step"] for row in rows(run)] == list(range(stopped + 1))
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"


@pytest.mark.slow
def test_a_second_signal_stops_now_and_the_run_still_resumes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Too many rollouts for this step to end soon.
    words = train_words(run, "--steps", "2", "rollout.explorers=4000")
    process = start(*words)
    _wait_for(process.stderr, "step 0/2")
    process.send_signal(signal.SIGINT)
    _wait_for(process.stderr, "stopping after this step")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert [row["step"] for row in rows(run)] == [0]
    assert open_run(run).checkpoints.steps() == [0]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_resumes_to_the_same_end(finished: Path, tmp_path: Path) -> None:
    run, rng = tmp_path / "run", random.Random(0)
    for _ in range(3):
        process = start(*train_words(run, "--steps", "4", *(["--resume"] if is_run(run) else ["--overwrite"])))
        assert process.stderr is not None
        process.stderr.readline()  # it has begun or already finished
        time.sleep(rng.uniform(0.0, 1.0))
        process.kill()
        process.communicate()
    assert train(run, "--steps", "4", "--resume") == 0
    assert rows(run) == rows(finished)
    assert observations(run) == observations(finished)
    assert weights(run, 4) == weights(finished, 4)
    assert not list(run.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("tools", "problem"),
    [({}, "'add' has vanished"), ({"add": "two"}, "'add' has changed"), ({"add": "one", "look": ""}, "'look' is new")],
)
def test_a_run_resumes_with_the_tools_that_it_began_with(tools: dict[str, str], problem: str, tmp_path: Path) -> None:
    def worlds(described: dict[str, str]) -> CannedWorlds:
        made = CannedWorlds()
        listed = tuple({"function": {"name": name, "description": text}} for name, text in described.items())
        made.description = Description("shop", {}, {}, tools=listed)
        return made

    run = tmp_path / "run"
    create_run(run, config_yaml="", environment={"environment": worlds_record(worlds({"add": "one"}))}, pools={})
    check_same_environment(open_run(run), worlds({"add": "one"}))
    with pytest.raises(EchoError, match=f"the tools of .* have changed since its start: {problem}"):
        check_same_environment(open_run(run), worlds(tools))
