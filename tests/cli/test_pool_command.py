"""`pool build` and `pool show`: every kind of actor, reproducible pools, and text printed as data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import error_of

from echo_cli.cli.main import main
from echo_cli.config.loader import find_config, load_config
from echo_cli.environments.text_environment import TextEnvironment
from echo_cli.environments.toy import ToyWorlds
from echo_cli.evaluation.evaluator import expert_pools
from echo_cli.evaluation.loaded_run import build_policy, load_pool
from echo_cli.evaluation.measures import predict, tokens_of
from echo_cli.files import sha256_of
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import PlainRenderer
from echo_cli.rollouts.limits import limits_of
from echo_cli.rollouts.rollout import play_scripts
from echo_cli.runs.directory import open_run
from echo_cli.runs.pool_folder import read_pool, write_pool
from echo_cli.trajectory import Role, Segment, Trajectory, Turn

FILES = ("--config", "toy-files")
HOSTILE = "a\x1b[2J\r\u202eb\x9b31m[bold]c[/bold]\x00\naction | rm\n"


def _build(capsys: pytest.CaptureFixture[str], out: Path, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["pool", "build", str(out), "threads=1", "--json", *words]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed["pool"] == str(out)
    manifest: dict[str, Any] = printed["manifest"]
    return manifest


def _fails(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["pool", *words]) == code
    captured = capsys.readouterr()
    # A mistake is found before the first episode, and before the line that announces it.
    assert captured.out == "" and (code == 1 or not captured.err.startswith("pool: "))
    return error_of(captured.err)


def _policy(config: str) -> TorchPolicy:
    return build_policy(load_config(find_config(config), ["threads=1", "device=cpu"]))[0]


# --- Scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config_name", "words", "name"),
    [
        ("toy", [], "heldout"),  # the default config
        ("toy-files", [*FILES], "heldout"),
        ("toy-files", [*FILES, "--split", "validation"], "validation"),
        ("toy-files", [*FILES, "--ood"], "ood"),
    ],
)
def test_an_expert_pool_is_the_pool_that_a_run_is_measured_on(
    config_name: str, words: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = _build(capsys, tmp_path / "pool", *words)
    config, policy = load_config(find_config(config_name)), _policy(config_name)
    kind, turns = ("machine", 2) if config_name == "toy" else ("files", 5)
    elsewhere = config.environment.toy_terminal.ood_world_seeds
    worlds = ToyWorlds((0,), elsewhere, turns, kind=kind)
    in_run = expert_pools(config, worlds, policy)[name]
    loaded = load_pool(tmp_path / "pool", policy.renderer)
    assert loaded.spans == in_run.spans
    found = [predict(policy, pool, tokens_of(pool, (), policy.tokenizer)) for pool in (loaded, in_run)]
    assert found[0].nats.tolist() == found[1].nats.tolist() and found[0].correct.tolist() == found[1].correct.tolist()
    assert manifest["contents"]["pairs"] == len(in_run.pairs)
    made = manifest["provenance"]
    assert made["world_seeds"] == (list(elsewhere) if name == "ood" else [0])
    assert (made["actor"]["kind"], made["temperature"], made["seed"]) == ("expert", None, None)
    assert made["environment"] == config.environment.model_dump(mode="json")


def test_explorers_draw_from_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*FILES, "--actor", "explorer", "--rollouts", "2", "--split", "validation"]
    one, again = (_build(capsys, tmp_path / name, *words) for name in ("one", "again"))
    other = _build(capsys, tmp_path / "other", *words, "--seed", "1")
    assert one["sha256"] == again["sha256"] != other["sha256"]
    assert (one["provenance"]["seed"], other["provenance"]["seed"]) == (0, 1)
    config = load_config(find_config("toy-files"))
    tasks = ToyWorlds((0,), (), 5).tasks.validation
    _, played = read_pool(tmp_path / "one")
    assert [trajectory.task_id for trajectory in played] == [task.task_id for task in tasks for _ in range(2)]
    assert {trajectory.source for trajectory in played} == {"explorer"}
    assert {len(trajectory.turns) for trajectory in played} == {config.rollout.explorer_commands}


# --- A checkpoint ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_plays_the_same_pool_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--actor", str(finished), "--checkpoint", "2", "--split", "validation"]
    one, again = (_build(capsys, tmp_path / name, *words) for name in ("one", "again"))
    more = _build(capsys, tmp_path / "more", *words, "--rollouts", "2", "--temperature", "0.6")
    assert (tmp_path / "one" / "trajectories.jsonl").read_bytes() == (
        tmp_path / "again" / "trajectories.jsonl"
    ).read_bytes()
    assert one["sha256"] == again["sha256"]
    _, played = read_pool(tmp_path / "one")
    assert {trajectory.source for trajectory in played} == {"policy"}
    assert {trajectory.reward for trajectory in played} <= {0.0, 1.0}
    assert read_pool(tmp_path / "more")[1][::2] == played
    weights = finished / "checkpoints" / "step_000002" / "model.safetensors"
    actor = {"kind": "checkpoint", "run": "finished", "step": 2, "model_sha256": sha256_of(weights)}
    assert more["provenance"]["actor"] == actor
    assert (more["provenance"]["temperature"], more["provenance"]["rollouts_per_task"]) == (0.6, 2)
    # The run's own config is used, not the default one.
    assert more["provenance"]["environment"]["toy_terminal"]["kind"] == "files"
    assert more["provenance"]["environment"]["toy_terminal"]["ood_world_seeds"] == []
    tokenizer = build_policy(load_config(find_config("toy-files")))[0].tokenizer
    assert load_pool(tmp_path / "more", PlainRenderer(tokenizer)).trajectories[0].segments[1].logprobs is None
    for manifest in (one, more):
        assert "/" not in json.dumps(manifest) and str(tmp_path) not in json.dumps(manifest)


def test_only_solved_rollouts_are_kept_and_other_worlds_can_be_played(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*FILES, "--ood", "--actor", str(finished), "environment.toy_terminal.ood_world_seeds=[7]"]
    manifest = _build(capsys, tmp_path / "solved", *words, "--checkpoint", "latest", "--only-solved")
    _, played = read_pool(tmp_path / "solved")
    assert {trajectory.reward for trajectory in played} == {1.0}
    assert {trajectory.task_id.split("-")[0] for trajectory in played} == {"w7"}
    assert manifest["provenance"]["only_solved"] and manifest["provenance"]["world_seeds"] == [7]


def test_a_damaged_checkpoint_plays_nothing(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "checkpoints" / "step_000004" / "model.safetensors").write_bytes(b"")
    words = ["build", str(tmp_path / "pool"), "--actor", str(run), "--checkpoint", "latest"]
    assert "step_000004 is damaged" in _fails(capsys, *words, code=1)[0]
    assert not (tmp_path / "pool").exists()


def test_no_solved_rollout_is_a_failure(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unsolved(self: TextEnvironment) -> float:
        return 0.0

    monkeypatch.setattr(TextEnvironment, "verify", unsolved)
    words = ["--actor", str(finished), "--only-solved", "--split", "validation", "threads=1"]
    assert "no task was solved in 26 rollouts" in _fails(capsys, "build", str(tmp_path / "pool"), *words, code=1)[0]
    assert not (tmp_path / "pool").exists()


# --- Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test"], "no split 'test'"),
        (["--actor", "experts"], "no actor 'experts'"),
        (["--actor", "./nowhere"], "nowhere does not exist"),
        (["--actor", "."], "is not a run"),
        (["--temperature", "0.5"], "--temperature has no effect with --actor expert"),
        (["--actor", "explorer", "--checkpoint", "best"], "--checkpoint has no effect with --actor explorer"),
        (["--only-solved"], "--only-solved has no effect"),
        (["--allow-environment"], "--allow-environment has no effect with --actor expert"),
        (["--device", "cpu"], "--device has no effect"),
        (["--seed", "1"], "--seed has no effect with --actor expert"),
        (["--rollouts", "2"], "--rollouts has no effect with --actor expert"),
        (["--rollouts", "0"], "Invalid value"),
        (["--actor", "RUN", "--temperature", "0"], "--temperature is 0"),
        (["--actor", "RUN", "--temperature", "nan"], "--temperature is nan"),
        (["--actor", "RUN", "--checkpoint", "newest"], "no checkpoint 'newest'"),
        (["--actor", "RUN", "--checkpoint", "9"], "has no checkpoint of step 9"),
        (["--actor", "RUN", "--ood"], "no out-of-distribution world"),
        (["--actor", "RUN", "--seed", "x"], "'seed' is"),
        (["--config", "toi"], "toi"),
        (["optim.lrr=1"], "optim.lrr"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str],
    message: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = [str(finished) if word == "RUN" else word for word in words]
    found, tip = _fails(capsys, "build", "pool", *run)
    assert message in found and tip
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_before_anything_is_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _build(capsys, tmp_path / "pool")
    with monkeypatch.context() as patch:
        patch.setattr("echo_cli.evaluation.pools.building._scripts", lambda *_: pytest.fail("played"))
        message, tip = _fails(capsys, "build", str(tmp_path / "pool"))
    assert "already contains a pool" in message and "--overwrite" in tip
    _build(capsys, tmp_path / "pool", "--overwrite", "--split", "validation")
    assert read_pool(tmp_path / "pool")[0].provenance.split == "validation"


def test_no_command_prints_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("Usage: echo-cli pool ")


# --- Showing ---------------------------------------------------------------------------------------------------------


def _hostile_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Write a pool with hostile text in outputs, channels and task id."""
    _build(capsys, tmp_path / "plain", *FILES)
    manifest, _ = read_pool(tmp_path / "plain")
    segments = (
        Segment(Role.CONTEXT, "task: x\n$ ", (1, 2)),
        Segment(Role.ACTION, "cat a\n", (3,)),
        Segment(Role.ENV_OUTPUT, HOSTILE, (4,), channel="std\x1b[2J\nout"),
        Segment(Role.WARNING, "[output cut]\n", (5,), channel="notice"),
    )
    turn = Turn("cat a", HOSTILE, 0, valid_action=True, clean_parse=True)
    played = Trajectory("\x1b]0;t\x07\nt", "g", segments, (turn,), None, "script_end", "expert")
    config = load_config(find_config("toy-files"))
    tokenizer = build_policy(config)[0].tokenizer
    write_pool(tmp_path / "hostile", [played], tokenizer, manifest.provenance)
    return tmp_path / "hostile"


def test_show_prints_the_manifest_and_an_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / "heldout-expert"
    manifest = _build(capsys, pool, *FILES)
    assert main(["pool", "show", str(pool), "--episode", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    contents = manifest["contents"]
    share = contents["bytes"]["env_output"] / sum(contents["bytes"].values())
    for text in ("heldout-expert", manifest["sha256"], f"{share:.1%}", f"{contents['pairs']} (command, output) pairs"):
        assert text in captured.out
    _, transcript = captured.out.split("\n\nw0-")
    config = load_config(find_config("toy-files"))
    worlds = ToyWorlds((0,), (), 5)
    task = worlds.tasks.heldout[0]
    tokenizer = build_policy(config)[0].tokenizer
    (played,) = play_scripts(
        PlainRenderer(tokenizer), worlds, [(task, worlds.expert(task))], limits_of(config), "expert"
    )
    shown = [line.split(" | ", 1) for line in transcript.splitlines()[1:]]
    assert "\n".join(text for _, text in shown) == "\n".join(s.text.removesuffix("\n") for s in played.segments)
    assert [label.strip() for label, _ in shown if label.strip()] == [
        " ".join(filter(None, (segment.role.name.lower(), segment.channel))) for segment in played.segments
    ]
    assert main(["pool", "show", str(pool), "--episode", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["manifest"] == manifest
    assert Trajectory.from_json(printed["trajectory"]) == played


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = _hostile_pool(tmp_path, capsys)
    assert main(["pool", "show", str(pool), "--episode", "1"]) == 0
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\r\u202e\x9b\x00")
    assert "[bold]c[/bold]" in printed
    assert not any(line.startswith("action | rm") for line in printed.splitlines())
    assert main(["pool", "show", str(pool), "--episode", "1", "--json"]) == 0
    assert capsys.readouterr().out.isascii()


def test_show_refuses_what_is_not_there_or_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / "pool"
    _build(capsys, pool, *FILES)
    message, tip = _fails(capsys, "show", str(pool), "--episode", "52")
    assert "has no trajectory 52" in message and tip == "choose one from 1 to 51"
    assert "does not exist" in _fails(capsys, "show", str(tmp_path / "nowhere"))[0]
    file = pool / "trajectories.jsonl"
    file.write_bytes(file.read_bytes().replace(b"answer: ", b"answer:  ", 1))
    message, tip = _fails(capsys, "show", str(pool))
    assert "was changed after the pool was built" in message and "pool build" in tip


def test_a_pool_changes_nothing_in_the_run_that_played_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    _build(capsys, tmp_path / "pool", "--actor", str(finished), "--split", "validation")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    actor = read_pool(tmp_path / "pool")[0].provenance.actor
    assert actor.step == open_run(finished).checkpoints.best_step()
