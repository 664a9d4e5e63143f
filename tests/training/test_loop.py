"""A tiny run through the command: its files, its reproducibility, and how it ends on failures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import error_of, rows, train, train_words, weights

from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.environments.text_environment import TextEnvironment
from echo_cli.models.architecture import model_folder
from echo_cli.runs.directory import open_run
from echo_cli.training.session import Session
from echo_cli.training.step_data import StepData, collect_step
from echo_cli.trajectory import Role, Trajectory, read_trajectories

FILES = (
    "config.yaml environment.json metrics.jsonl observations.jsonl trajectories.jsonl rollouts.jsonl summary.json "
    "heldout_env_ce.png heldout_env_ce.csv"
)


def _fails(capsys: pytest.CaptureFixture[str], run: Path, *words: str, code: int) -> tuple[str, str]:
    capsys.readouterr()
    assert train(run, *words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    return error_of(captured.err)


def test_a_run_leaves_what_the_design_says(finished: Path) -> None:
    assert {*FILES.split(), "checkpoints"} <= {entry.name for entry in finished.iterdir()}
    assert open_run(finished).checkpoints.steps() == [0, 1, 2, 3, 4]
    assert load_config(finished / "config.yaml").steps == 4


def test_every_row_has_the_same_keys_in_strict_json(finished: Path) -> None:
    metrics = rows(finished)
    assert [row["step"] for row in metrics] == [0, 1, 2, 3, 4]
    assert len({tuple(row) for row in metrics}) == 1
    evaluated = [row["step"] for row in metrics if row["heldout/env_ce"] is not None]
    assert evaluated == [0, 2, 4]


def test_rows_and_summary_have_more_than_pass_at_1(played: Path) -> None:
    metrics, summary = rows(played), json.loads((played / "summary.json").read_text())
    assert len({tuple(row) for row in metrics}) == 1
    for row in metrics:
        values = [row[f"heldout/{name}"] for name in ("pass_at_1", "pass_at_2", "refused_fraction")]
        if row["step"] in (0, 4):
            assert 0 <= values[0] <= values[1] <= 1 and 0 <= values[2] <= 1
        else:
            assert values == [None] * 3
        if row["step"]:
            shares = row["train/groups_all_failed"], row["train/groups_all_solved"]
            assert all(share in (0, 0.5, 1) for share in shares), "two tasks per step"
            assert sum(shares) == row["train/zero_advantage_fraction"]
    first, last = metrics[0]["heldout/pass_at_1"], metrics[-1]["heldout/pass_at_1"]
    assert summary["pass_at_1_mean"] == pytest.approx((first + last) / 2)
    assert summary["heldout"]["last"]["pass_at_2"] == metrics[-1]["heldout/pass_at_2"]


def test_what_training_observed_is_logged_once_where_it_first_came_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = []

    def recorded(session: Session, step: int, coeff: float) -> StepData:
        data = collect_step(session, step, coeff)
        played.extend((step + 1, trajectory) for trajectory in data.rollouts)
        return data

    monkeypatch.setattr("echo_cli.training.loop.collect_step", recorded)
    assert train(tmp_path / "run") == 0
    expected: dict[tuple[str, str, int], int] = {}
    for step, trajectory in played:
        for turn in trajectory.turns:
            if turn.exit_code is not None:
                expected.setdefault((" ".join(turn.command.split()), turn.output, turn.exit_code), step)
    found = [
        (row["command"], row["output"], row["exit_code"], row["step"])
        for row in open_run(tmp_path / "run").read_observations()
    ]
    assert found == [(*observation, step) for observation, step in expected.items()]
    assert {trajectory.source for _, trajectory in played} == {"policy", "explorer"} and len(found) > 2
    _, meta = open_run(tmp_path / "run").load_checkpoint()
    assert set(meta) == {"step", "seconds", "gradient_norms"}


@pytest.mark.parametrize("resumed", [False, True])
def test_a_heldout_pair_that_training_executes_is_novel_no_more(
    resumed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed = []

    def heldout(session: Session, step: int, coeff: float) -> StepData:
        data = collect_step(session, step, coeff)
        pool = session.evaluator.pools["heldout"]
        executed.append(pool.pairs)
        return replace(data, rollouts=[*data.rollouts, replace(pool.trajectories[0], world_model_only=True)])

    monkeypatch.setattr("echo_cli.training.loop.collect_step", heldout)
    run = tmp_path / "run"
    assert train(run, "evaluation.every=1", "--steps", "1") == 0
    if resumed:
        assert train(run, "evaluation.every=1", "--steps", "2", "--resume") == 0
    before, *after = (row["heldout/novel_pairs"] for row in rows(run))
    observed = {(row["command"], row["output"]) for row in open_run(run).read_observations()}
    assert before == len(executed[0])
    assert after[-1] == len(executed[0] - observed) < before
    assert rows(run)[-1]["heldout/env_ce_seen"] is not None


def test_explorers_play_only_where_the_env_term_has_a_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []

    def recorded(session: Session, step: int, coeff: float) -> StepData:
        data = collect_step(session, step, coeff)
        sources.append([trajectory.source for trajectory in data.rollouts])
        return data

    monkeypatch.setattr("echo_cli.training.loop.collect_step", recorded)
    words = ["objective.schedule=step", "objective.schedule_steps=[1]", "objective.schedule_values=[0,1]"]
    assert train(tmp_path / "run", *words) == 0
    assert sources == [["policy"] * 2, [*["policy"] * 2, *["explorer"] * 2]]


def test_a_placebos_explorers_play_another_world_and_wrong_targets_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds, shown = [], []

    def recorded(session: Session, step: int, coeff: float) -> StepData:
        data = collect_step(session, step, coeff)
        worlds.append([(rollout.source, rollout.task_id.partition("-")[0]) for rollout in data.rollouts])
        shown.append(sum(each.count(Role.ENV_OUTPUT) for each in data.rollouts if each.source == "explorer"))
        return data

    monkeypatch.setattr("echo_cli.training.loop.collect_step", recorded)
    placebos = {kind: f"objective.env_targets={kind}" for kind in ("true", "other_world", "shuffled", "random")}
    for kind, word in placebos.items():
        assert train(tmp_path / kind, word, "--steps", "1", "evaluation.every=1") == 0
    found = {kind: rows(tmp_path / kind) for kind in placebos}
    sources = [source for source, _ in worlds[0]]
    assert all([source for source, _ in each] == sources for each in worlds)
    assert len({world for source, world in worlds[0]}) == 1
    assert {world for source, world in worlds[1] if source == "explorer"}.isdisjoint(world for _, world in worlds[0])
    assert worlds[2] == worlds[3] == worlds[0], "the rollouts are those of the true targets"
    start = {kind: each[0]["heldout/env_ce"] for kind, each in found.items()}
    assert len(set(start.values())) == 1, "held-out env-CE is over the true targets"
    assert len({weights(tmp_path / kind, 1) for kind in placebos}) == len(placebos)
    first = {kind: each[1] for kind, each in found.items()}
    assert first["true"]["train/misplaced_fraction"] == first["other_world"]["train/misplaced_fraction"] == 0
    for kind in ("shuffled", "random"):
        assert first[kind]["train/misplaced_fraction"] > 0.7
        assert first[kind]["train/env_tokens"] == first["true"]["train/env_tokens"]
        assert first[kind]["train/env_ce"] > first["true"]["train/env_ce"]
    assert first["other_world"]["train/env_tokens"] == shown[1] > 0
    assert first["true"]["train/env_tokens"] > shown[0]


def test_selected_observations_are_trained_on_and_a_name_that_matches_none_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {
        "plain": (),
        "sure": ("objective.env_min_action_entropy=50",),
        "weighed": ("objective.env_weights={stdout: 0.5, stderr: 0, std_err: 0}",),
    }
    once = ("--steps", "1", "evaluation.every=9", "rollout.group_size=6", "rollout.keep=8")
    said = {}
    for name, words in arms.items():
        assert train(tmp_path / name, *words, *once) == 0
        said[name] = capsys.readouterr().err
    assert "warning: no observation in the env term is named std_err, as in objective.env_weights" in said["weighed"]
    assert "stderr, stdout" in said["weighed"] and "is named" not in said["plain"] + said["sure"]

    plain, sure, weighed = (rows(tmp_path / name)[1] for name in arms)
    assert plain["train/env_unselected_fraction"] == plain["train/env_dropped_max_correct"] == 0
    assert len({weights(tmp_path / name, 1) for name in arms}) == 3
    for row in (sure, weighed):
        assert row["train/env_ce"] == plain["train/env_ce"], "over all outputs, as played"
        assert row["train/action_tokens"] == plain["train/action_tokens"]
        selected = plain["train/env_tokens"] * (1 - row["train/env_unselected_fraction"])
        assert row["train/env_tokens"] == pytest.approx(selected) and 0 < selected < plain["train/env_tokens"]
    # No action of the policy is that uncertain: only the two explorers are left.
    explored = [each for each in read_trajectories(tmp_path / "sure" / "rollouts.jsonl") if each.source == "explorer"]
    assert sure["train/env_tokens"] == sum(each.count(Role.ENV_OUTPUT) for each in explored) and len(explored) == 2


def test_a_step_without_reward_contrast_leaves_the_gradient_ratios_lambda_as_it_is(tmp_path: Path) -> None:
    # Groups of one have no contrast. From step 2 on, the RL term's gradient is that of the KL penalty alone.
    words = ["rollout.group_size=1", "objective.schedule=gradient_ratio", "objective.gradient_ratio_every=1"]
    assert train(tmp_path / "run", *words, "objective.kl_coeff=0.5", "--steps", "3") == 0
    assert [row["train/lambda"] for row in rows(tmp_path / "run")[1:]] == [1.0] * 3


def test_the_first_rollouts_of_each_step_are_kept_as_they_were_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: dict[int, list[Trajectory]] = {}

    def recorded(session: Session, step: int, coeff: float) -> StepData:
        data = collect_step(session, step, coeff)
        played[step + 1] = list(data.rollouts)
        return data

    monkeypatch.setattr("echo_cli.training.loop.collect_step", recorded)
    run = tmp_path / "run"
    assert train(run) == 0
    kept = list(read_trajectories(run / "rollouts.jsonl"))
    assert kept == [
        replace(rollout, meta={"step": step}) for step, rollouts in played.items() for rollout in rollouts[:3]
    ]
    assert [rollout.source for rollout in kept] == 2 * ["policy", "policy", "explorer"]
    # Kept or not, the run is the same; without the key there is no file.
    assert train(tmp_path / "none", "rollout.keep=0") == 0
    assert rows(tmp_path / "none") == rows(run) and weights(tmp_path / "none", 2) == weights(run, 2)
    assert not (tmp_path / "none" / "rollouts.jsonl").exists()


def test_a_finished_run_is_left_as_it_is(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert train(finished, "--steps", "4", "--resume") == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_the_summary_is_the_one_object_on_stdout(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(finished, "--steps", "4", "--resume", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((finished / "summary.json").read_text())
    assert (printed["status"], printed["steps"], printed["seed"], printed["lambda"]) == ("finished", 4, 0, 1.0)
    assert printed["checkpoint"].startswith("checkpoints/step_")


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "again", "--steps", "4") == 0
    assert rows(tmp_path / "again") == rows(finished)
    assert weights(tmp_path / "again", 4) == weights(finished, 4)
    assert train(tmp_path / "other", "--seed", "1") == 0
    assert rows(tmp_path / "other")[1] != rows(finished)[1]


def test_lambda_decides_what_is_learned(finished: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "grpo", "--lambda", "0", "objective.advantage=group_mean") == 0
    plain, echo = rows(tmp_path / "grpo"), rows(finished)
    assert plain[0]["heldout/env_ce"] == echo[0]["heldout/env_ce"]
    assert plain[2]["heldout/env_ce"] != echo[2]["heldout/env_ce"]
    assert (plain[1]["train/lambda"], echo[1]["train/lambda"]) == (0.0, 1.0)


def test_without_rl_the_verifier_is_never_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def called(self: TextEnvironment) -> float:
        raise AssertionError("the verifier was called")

    monkeypatch.setattr(TextEnvironment, "verify", called)
    assert train(tmp_path / "world-model", "objective.use_rl=false") == 0
    metrics = rows(tmp_path / "world-model")
    assert all(row["train/reward"] is None and row["train/rl_loss"] in (None, 0.0) for row in metrics)
    assert metrics[2]["heldout/env_ce"] != metrics[0]["heldout/env_ce"]


def test_a_used_run_directory_is_refused_and_left_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    message, tip = _fails(capsys, finished, code=2)
    assert "finished already contains a run" in message
    assert all(way in tip for way in ("--resume", "--overwrite", "--run-name"))
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_overwrite_replaces_a_run(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "notes.txt").write_text("mine")
    assert train(run, "--overwrite", "--steps", "1") == 0
    assert [row["step"] for row in rows(run)] == [0, 1]
    assert (run / "notes.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    message, tip = _fails(capsys, tmp_path / "file" / "run", code=2)
    assert "file" in message and "--output-dir" in tip


def test_cuda_where_there_is_none_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message, tip = _fails(capsys, tmp_path / "run", "--device", "cuda", code=2)
    assert "cuda" in message and "--device cpu" in tip
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no model folder" in _fails(capsys, tmp_path / "run", "model.path=/nowhere", code=2)[0]
    assert "does not fit" in _fails(capsys, tmp_path / "run", "rollout.max_action_tokens=9999", code=2)[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["optim.lr=1e30", "--steps", "3"], ["optim.lr=1e39", "--steps", "3"]], ids=" ".join)
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_good_checkpoint(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    _, tip = _fails(capsys, run, *words, "objective.advantage=group_mean", "checkpoint.every=9", code=3)
    assert "the last checkpoint is intact" in tip
    assert json.loads((run / "summary.json").read_text())["status"] == "diverged"
    folder, meta = open_run(run).load_checkpoint("best")
    assert meta["step"] == 0
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(folder / "model.safetensors").values())


def test_weights_that_are_not_finite_end_the_run_before_any_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(model_folder("tiny-base"), tmp_path / "model")
    tensors = {
        name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(model / "model.safetensors").items()
    }
    save_file(tensors, model / "model.safetensors")
    for words in ([], ["evaluation.validation_rollouts=1"]):
        run = tmp_path / f"run{len(words)}"
        assert "nan" in " ".join(_fails(capsys, run, f"model.path={model}", *words, code=3)) or words
        assert open_run(run).checkpoints.steps() == []
        assert json.loads((run / "summary.json").read_text())["status"] == "diverged"


_LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
from echo_cli.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(run)
    done = subprocess.run([sys.executable, "-c", _LIMITED, *words], capture_output=True, text=True)
    assert done.returncode == 1
    message, tip = error_of(done.stderr)
    assert "cannot write" in message or "full" in message, message
    assert tip
    assert main([*words, "--resume"]) == 0
    assert [row["step"] for row in rows(run)] == [0, 1, 2]


def test_an_env_term_without_a_token_stops_at_the_first_step_at_which_lambda_is_above_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = ["objective.schedule=step", "objective.schedule_steps=[1]", "objective.schedule_values=[0, 0.5]"]
    nothing = ["rollout.explorers=0", "objective.min_correct_fraction=2"]
    assert train(tmp_path / "run", *late, *nothing) == 1
    message, tip = error_of(capsys.readouterr().err)
    assert "no token at step 1, with λ = 0.5" in message and "min_*_fraction" in message and "env check" in tip
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1]
