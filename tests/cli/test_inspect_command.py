"""`echo-cli inspect`: runs, pools and files; an episode with the nats of its tokens; colours; text printed as data."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.color import ColorSystem
from tiny_run import COMMAND, error_of

import echo_cli
from echo_cli.cli.display.token_strip import BLOCKS, DIGITS, legend, level, rows_of
from echo_cli.cli.display.transcript import heat_transcript, transcript
from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.environments.worlds import open_worlds
from echo_cli.evaluation.evaluator import rollout_tasks
from echo_cli.evaluation.token_losses import TokenLosses
from echo_cli.models.loading import open_policy
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.runs.directory import open_run
from echo_cli.trace import Trace, TraceSegment, read_traces, write_traces
from echo_cli.trajectory import NAMED_ROLES, Role, Segment, Turn, read_trajectories

TOKENIZER = Tokenizer.load(Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json")
HOSTILE = "a\x1b[31mred\r\nrtl \u202e\tx\naction | rm -rf /\n[bold]c[/bold]\n" + "x" * 300 + "\x00日本\n"
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has kept two rollouts of each of three tasks, before training and after step 4."""
    opened = open_run(shutil.copytree(finished, tmp_path_factory.mktemp("inspected") / "run"))
    config = load_config(opened.config_path, ["evaluation.validation_rollouts=2"])
    opened.config_path.write_text(config.to_yaml())
    policy, _ = open_policy(config)
    with open_worlds(config) as worlds:
        for step in (0, 4):
            if step:
                policy.load(opened.load_checkpoint(step)[0])
            played = rollout_tasks(policy, worlds, worlds.tasks.validation[:3], 2, config, seed=step)
            opened.append_trajectories([{**each.to_json(), "meta": {"step": step}} for each in played])
    return opened.path


def trace(output: str = "a\n", *, group: str = "", reward: float | None = None, **fields: Any) -> Trace:
    segments = (
        TraceSegment(Role.CONTEXT, "$ "),
        TraceSegment(Role.ACTION, "cat a\n"),
        TraceSegment(Role.ENV_OUTPUT, output, "stdout"),
    )
    turn = Turn("cat a", output, 0, valid_action=True, clean_parse=True)
    return Trace("t", segments, (turn,), group, reward, **fields)


def written(path: Path, *traces: Trace) -> Path:
    write_traces(path, traces)
    return path


def printed(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main(["inspect", *map(str, words)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(capsys, *words, "--json"))
    return found


def fails(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[str, str]:
    assert main(["inspect", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return error_of(captured.err)


# --- What is inspected -----------------------------------------------------------------------------------------------


def test_a_run_is_counted_in_its_own_tokens(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    played = list(read_trajectories(run / "trajectories.jsonl"))
    found = as_json(capsys, run)
    assert (found["tokens"], found["boundaries"], found["trajectories"]) == ("file", "tiny-base", len(played))
    for name, role in NAMED_ROLES.items():
        tokens = sum(trajectory.count(role) for trajectory in played)
        assert found["account"]["roles"][name]["tokens"] == tokens
    text = printed(capsys, run)
    assert f"{found['account']['discarded_share']:.1%}" in text and "tokens: the file's own" in text


def test_the_training_rollouts_of_a_run_can_be_looked_at(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = list(read_trajectories(run / "rollouts.jsonl"))
    assert as_json(capsys, run, "--training")["trajectories"] == len(kept) == 4 * 3
    episode = as_json(capsys, run, "--training", "--step", "2", "--episode", "1", "--checkpoint", "1")["episode"]
    assert (episode["step"], episode["trajectory"]["group_id"]) == (2, kept[3].group_id)
    # The action's tokens, as sampled, are scored by the policy that sampled them.
    (action,) = [heat for heat in episode["heat"]["step 1"] if heat["role"] == "action"][:1]
    sampled = next(segment for segment in kept[3].segments if segment.role is Role.ACTION)
    assert action["token_ids"] == list(sampled.token_ids) and len(action["nats"]) == len(sampled.logprobs or ())

    assert "steps with trajectories: 1, 2, 3, 4" in fails(capsys, run, "--training", "--step", "9")[1]
    bare = Path(shutil.copytree(run, tmp_path / "bare"))
    (bare / "rollouts.jsonl").unlink()
    config = load_config(bare / "config.yaml", ["rollout.keep=0"])
    (bare / "config.yaml").write_text(config.to_yaml())
    message, tip = fails(capsys, bare, "--training")
    assert "no training rollouts" in message and "rollout.keep" in tip
    assert "--training" in fails(capsys, run / "rollouts.jsonl", "--training")[1]


def test_one_evaluation_of_a_run_can_be_looked_at(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = [as_json(capsys, run, "--step", step)["trajectories"] for step in ("0", "4")]
    assert sum(counts) == as_json(capsys, run)["trajectories"] and all(counts)
    episode = as_json(capsys, run, "--step", "4", "--episode", "1")["episode"]
    assert (episode["number"], episode["step"]) == (1, 4)
    steps = [each.meta["step"] for each in read_trajectories(run / "trajectories.jsonl")]
    whole = as_json(capsys, run, "--episode", str(steps.index(4) + 1))["episode"]
    assert whole["trajectory"] == episode["trajectory"]
    message, tip = fails(capsys, run, "--step", "3")
    assert "no trajectories of step 3" in message and tip == "steps with trajectories: 0, 4"


def test_a_pool_is_verified_and_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / "pool"
    assert main(["pool", "build", str(pool), "--config", "toy-files", "--split", "validation", "--json"]) == 0
    contents = json.loads(capsys.readouterr().out)["manifest"]["contents"]
    found = as_json(capsys, pool)
    assert found["trajectories"] == contents["trajectories"]
    for key in ("bytes", "tokens"):
        assert {role: part[key] for role, part in found["account"]["roles"].items()} == contents[key]
    file = pool / "trajectories.jsonl"
    file.write_bytes(file.read_bytes().replace(b"answer: ", b"answer:  ", 1))
    assert "was changed after the pool was built" in fails(capsys, pool)[0]


def test_a_file_is_counted_in_the_tokens_of_a_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "a.jsonl", trace(), trace("b c\n"))
    found = as_json(capsys, file)
    assert found["tokens"] == "tiny-base"
    assert found["account"]["roles"]["env_output"]["tokens"] == sum(len(TOKENIZER.encode(t)) for t in ("a\n", "b c\n"))
    model = run / "checkpoints" / "step_000004"
    assert as_json(capsys, file, "--model", model)["tokens"] == "step_000004"
    assert as_json(capsys, run, "--model", "tiny-base")["tokens"] == "tiny-base"


def test_a_run_that_has_kept_nothing_says_why(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(finished / "metrics.jsonl", bare)
    config = (finished / "config.yaml").read_text()
    plays = config.replace("validation_rollouts: 0", "validation_rollouts: 1")
    for text, said in (
        (plays, "has not played tasks (evaluation.pass_every) yet"),
        (config, "no rollouts"),
        (plays.replace("kept_trajectories: 4", "kept_trajectories: 0"), "kept_trajectories is 0"),
    ):
        (bare / "config.yaml").write_text(text)
        message, tip = fails(capsys, bare)
        assert "has no trajectories" in message and said in tip
    (bare / "trajectories.jsonl").write_bytes(b"")
    for words in ([], ["--episode", "1"]):
        assert "has no trajectories" in fails(capsys, bare, *words)[0]


def test_a_line_that_a_kill_has_cut_is_left_out_of_a_run_and_named_in_a_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(run / name, copy)
    lines = (run / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "trajectories.jsonl").write_bytes(b"".join(lines)[:-20])
    assert as_json(capsys, copy)["trajectories"] == len(lines) - 1
    message, _ = fails(capsys, copy / "trajectories.jsonl")
    assert f"trajectories.jsonl:{len(lines)}: not a trace" in message
    (copy / "trajectories.jsonl").write_bytes(lines[0] + b'{"task_id": 1}\n' + lines[1])
    assert "trajectories.jsonl:2: not a trace" in fails(capsys, copy)[0]


# --- One episode -----------------------------------------------------------------------------------------------------


def test_the_nats_are_those_of_the_policy(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trajectories = list(read_trajectories(run / "trajectories.jsonl"))
    number = max(range(len(trajectories)), key=lambda place: trajectories[place].count(Role.ENV_OUTPUT))
    found = as_json(capsys, run, "--episode", str(number + 1), "--checkpoint", "4", "--against", "initial")
    assert list(found["episode"]["heat"]) == ["step 4", "initial"]
    opened = open_run(run)
    policy, _ = open_policy(load_config(opened.config_path))
    roles = (Role.ACTION, Role.ENV_OUTPUT, Role.WARNING)
    for name in ("initial", "step 4"):
        if name == "step 4":
            policy.load(opened.load_checkpoint(4)[0])
        (scores,) = policy.score([trajectories[number]], roles)
        heat = found["episode"]["heat"][name]
        nats = [value for part in heat for value in part["nats"] or ()]
        assert nats == pytest.approx((-scores.logprobs.double()).tolist(), abs=1e-6)
        means = found["episode"]["nats_per_token"][name]
        assert sum(mean["tokens"] * mean["nats_per_token"] for mean in means.values()) == pytest.approx(sum(nats))
        assert ["".join(part["pieces"]) for part in heat] == [each.text for each in trajectories[number].segments]
    assert found["episode"]["heat"]["initial"] != found["episode"]["heat"]["step 4"]


def test_in_a_run_that_learns_ends_they_are_a_role_of_their_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "ends")
    settings = (copy / "config.yaml").read_text()
    assert settings.count("end_of_output: false") == 1
    (copy / "config.yaml").write_text(settings.replace("end_of_output: false", "end_of_output: true"))
    trajectories = list(read_trajectories(run / "trajectories.jsonl"))
    number = max(range(len(trajectories)), key=lambda place: trajectories[place].count(Role.ENV_OUTPUT))
    words = ("--episode", str(number + 1), "--checkpoint", "4")
    plain, found = (as_json(capsys, of, *words)["episode"] for of in (run, copy))
    assert found["trajectory"] == plain["trajectory"]
    ends = [part for part in found["heat"]["step 4"] if part["role"] == "end"]
    assert ends and all(part["pieces"] == ["$"] and part["nats"] for part in ends)
    nats = found["nats_per_token"]["step 4"]
    assert nats.pop("end")["tokens"] == len(ends)
    assert {role: pytest.approx(of) for role, of in plain["nats_per_token"]["step 4"].items()} == nats
    assert any(line.startswith("end ") for line in printed(capsys, copy, *words).splitlines())


def test_the_transcript_has_a_strip_for_each_policy(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (run, "--episode", "1", "--checkpoint", "latest", "--against", "initial")
    found = as_json(capsys, *words)["episode"]
    lines = printed(capsys, *words).splitlines()
    for name in ("step 4", "initial"):
        strips = [line.split(" : ", 1)[-1] for line in lines if line.strip().startswith(f"{name} :")]
        assert strips and all(set(line) <= set(BLOCKS) for line in strips if not line.endswith(" :"))
        mean = found["nats_per_token"][name]["action"]["nats_per_token"]
        assert f"{mean:.3f}" in "\n".join(lines)
    assert any(line.startswith("action") and " | " in line for line in lines)


def test_without_a_policy_the_transcript_is_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "a.jsonl", trace(), trace("b\nc\n"))
    lines = printed(capsys, file, "--episode", "2").splitlines()
    assert lines[-4:] == [
        "context           | $ ",
        "action            | cat a",
        "env_output stdout | b",
        "                  | c",
    ]
    assert fails(capsys, file, "--episode", "3")[1] == "choose one from 1 to 2"


def test_a_model_scores_a_file_in_its_own_tokens(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "a.jsonl", trace("quota: 12\n"))
    model = run / "checkpoints" / "step_000004"
    heat = as_json(capsys, file, "--episode", "1", "--model", model)["episode"]["heat"]["step_000004"]
    assert [part["token_ids"][-1] for part in heat] == [TOKENIZER.encode(t)[-1] for t in ("$ ", "cat a\n", "1\n")]
    assert heat[0]["nats"] is None and all(value > 0 for value in heat[2]["nats"])


@pytest.mark.slow
def test_a_chat_model_scores_the_episode_in_its_own_conversation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "a.jsonl", trace())
    found = as_json(capsys, file, "--episode", "1", "--model", "random-qwen3")
    heat = found["episode"]["heat"]["random-qwen3"]
    assert heat[0]["channel"] == "scaffold" and heat[0]["nats"] is None
    action = next(part for part in heat if part["role"] == "action")
    assert action["pieces"][-1] == "<|im_end|>" and len(action["nats"]) == len(action["pieces"])
    assert found["account"]["roles"]["env_output"]["bytes"] == 2
    bare = as_json(capsys, file, "--model", "random-qwen3", "conversation.renderer=plain")
    assert bare["account"] == found["account"]


def test_what_is_beyond_the_context_is_shown_and_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "a.jsonl", trace("1" * 3000 + "\n"))
    found = as_json(capsys, file, "--episode", "1", "--model", "tiny-base")["episode"]
    heat = found["heat"]["tiny-base"]
    assert sum(len(part["token_ids"]) for part in heat if part["nats"] or part["role"] == "context") == 2048
    assert (
        "".join(piece for part in heat if part["role"] == "env_output" for piece in part["pieces"]) == "1" * 3000 + "\n"
    )
    assert heat[-1]["nats"] is None and "the model's context is 2048" in found["note"]
    assert "the model's context is 2048" in printed(capsys, file, "--episode", "1", "--model", "tiny-base")


def test_an_episode_of_context_alone_has_nothing_to_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "a.jsonl", Trace("t", (TraceSegment(Role.CONTEXT, "hello\n"),), ()))
    found = as_json(capsys, file, "--episode", "1", "--model", "tiny-base")["episode"]
    assert found["nats_per_token"] == {"tiny-base": {}}
    printed(capsys, file, "--episode", "1", "--model", "tiny-base")


# --- Rewards ---------------------------------------------------------------------------------------------------------


def group_of(capsys: pytest.CaptureFixture[str], place: Path, number: int, *words: str) -> dict[str, Any]:
    group: dict[str, Any] = as_json(capsys, place, "--episode", str(number), *words)["episode"]["group"]
    return group


def test_the_advantage_is_that_of_the_group_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def played(group: str, reward: float | None, step: int = 1, only: bool = False) -> Trace:
        return trace(group=group, reward=reward, world_model_only=only, meta={"step": step})

    file = written(
        tmp_path / "a.jsonl",
        *(played("g", 1.0), played("h", 5.0), played("g", 0.0), played("g", 0.0, step=2), played("g", 0.0)),
        *(played("g", 9.0, only=True), played("i", 1.0), played("i", None)),
    )
    first = group_of(capsys, file, 1)
    # Rewards 1, 0, 0: mean 1/3, sample standard deviation sqrt(1/3).
    assert first["rewards"] == [1.0, 0.0, 0.0] and first["kind"] == "group_norm"
    assert first["advantage"] == pytest.approx((2 / 3) / (1 / 3) ** 0.5, abs=1e-5)
    assert group_of(capsys, file, 3)["advantage"] == pytest.approx(-(1 / 3) / (1 / 3) ** 0.5, abs=1e-5)
    assert group_of(capsys, file, 2)["advantage"] == 0.0
    assert (group_of(capsys, file, 6)["advantage"], group_of(capsys, file, 8)["advantage"]) == (None, None)
    assert "env term only" in group_of(capsys, file, 6)["note"]
    assert "1 of 2 recorded rollouts have no reward" in group_of(capsys, file, 7)["note"]
    assert "rewards 1, 0, 0" in printed(capsys, file, "--episode", "1")
    assert "advantage: +1.155 (group_norm)" in printed(capsys, file, "--episode", "1")


def test_a_run_says_where_its_group_is_incomplete(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert group_of(capsys, run, 1)["note"] == ""
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    lines = (run / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "trajectories.jsonl").write_bytes(lines[0])
    note = "the group is incomplete: 1 of the 2 rollouts of an evaluation are recorded"
    assert group_of(capsys, copy, 1)["note"] == note


def test_a_group_of_training_rollouts_has_the_size_of_training(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_config(finished / "config.yaml").evaluation.group_size == 0
    assert group_of(capsys, finished, 1, "--training")["note"] == ""
    copy = shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    (copy / "rollouts.jsonl").write_bytes((finished / "rollouts.jsonl").read_bytes().splitlines(keepends=True)[0])
    note = "the group is incomplete: 1 of the 2 rollouts of a task in a step are recorded"
    assert group_of(capsys, copy, 1, "--training")["note"] == note


# --- Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--checkpoint", "best"], "--checkpoint has no effect alone"),
        (["RUN", "--episode", "1", "--against", "best"], "--against has no effect alone"),
        (
            ["RUN", "--episode", "1", "--checkpoint", "4", "--against", "latest"],
            "--against and --checkpoint name the same policy",
        ),
        (["RUN", "--episode", "1", "--checkpoint", "newest"], "no checkpoint 'newest'"),
        (
            ["RUN", "--episode", "1", "--checkpoint", "4", "--against", "newest"],
            "set --against to initial",
        ),
        (["RUN", "--episode", "1", "--checkpoint", "99"], "no checkpoint of step 99"),
        (["RUN", "--episode", "1", "--checkpoint", "4", "--model", "tiny-base"], "exclude each other"),
        (["RUN", "--episode", "0"], "Invalid value"),
        (["RUN", "--device", "cpu"], "--device has no effect alone"),
        (["RUN", "--config", "toy"], "--config has no effect alone"),
        (["RUN", "threads=1"], "'threads=1' has no effect alone"),
        (["RUN", "--model", "nowhere/at/all"], "no model nowhere/at/all"),
        (["FILE", "--episode", "1", "--checkpoint", "best"], "is not a run"),
        (["FILE", "--trust-remote-code"], "--trust-remote-code has no effect: "),
        (["RUN", "--trust-remote-code"], "model.trust_remote_code has no effect with model.kind: tiny"),
        (["FILE", "--step", "3"], "no trajectories of step 3"),
        (["EMPTY"], "contains no traces"),
        (["FOLDER"], "neither a run nor a pool"),
        (["nowhere"], "nowhere does not exist"),
        (["/dev/null"], "not a file that can be read twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_a_tip(
    words: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    places = {
        "RUN": run,
        "FILE": written(tmp_path / "a.jsonl", trace()),
        "EMPTY": tmp_path / "empty.jsonl",
        "FOLDER": tmp_path,
    }
    found, tip = fails(capsys, *(places.get(word, word) for word in words))
    assert message in f"{found}\n{tip}" and tip


def test_ids_of_another_vocabulary_are_not_scored_by_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    record = next(read_traces(run / "trajectories.jsonl")).to_json()
    record["segments"][0]["token_ids"][0] = 10**6
    (copy / "trajectories.jsonl").write_text(json.dumps(record) + "\n")
    message, tip = fails(capsys, copy, "--episode", "1", "--checkpoint", "4")
    assert "is not in the tokens of the run's policy" in message and "--model" in tip


# --- Text is data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--episode", "1"], ["--episode", "1", "--model", "tiny-base"]])
def test_hostile_text_is_shown_and_does_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = trace(HOSTILE, group="g\x1b[2J", reward=1.0, world_model_only=False, meta={"x": "\x07"})
    file = written(tmp_path / "a\x1b[1m.jsonl", hostile)
    out = printed(capsys, file, *words)
    assert not set(out) & set("\x1b\x07\r\u202e\x9b\x00")
    assert not any(line.startswith("action | rm") for line in out.splitlines())
    assert printed(capsys, file, *words, "--json").isascii()


def test_a_long_line_never_leaves_the_gutter() -> None:
    lines = transcript(trace(HOSTILE), width=40)[1:]
    assert {line[17:20] for line in lines} == {" | "}
    assert max(map(cell_len, lines)) <= 40
    assert "x" * 300 in "".join(line[20:] for line in lines)


def test_rows_hold_every_character_once_at_any_width() -> None:
    text = "a\tb\n\n日本語\x1b" + "y" * 50
    for width in (1, 7, 8, 20, 200):
        rows = list(rows_of(text, width))
        assert [cell.index for row in rows for cell in row] == list(range(len(text)))
        for row in rows:
            columns = sum(cell.width for cell in row if cell.shown)
            assert columns <= width or len([cell for cell in row if cell.shown]) == 1
    assert ["".join(cell.shown for cell in row) for row in rows_of("a\tb", 80)] == ["a       b"]
    assert list(rows_of("", 5)) == [[]] and len(list(rows_of("a\n", 5))) == 1


# --- The ramp --------------------------------------------------------------------------------------------------------


def test_each_step_of_the_ramp_is_twice_the_one_before() -> None:
    bounds = [0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    assert [level(bound) for bound in bounds] == list(range(1, 9))
    assert [level(bound * 0.999) for bound in bounds] == list(range(8))
    assert [level(value) for value in (0.0, 1e9, float("inf"), float("nan"))] == [0, 8, 8, 8]
    assert len(BLOCKS) == len(DIGITS) == 9
    assert legend(BLOCKS, None).endswith("▇ 4  █ 8")


def made_heat() -> list[TokenLosses]:
    output = Segment(Role.ENV_OUTPUT, "ab\t日\nc\n", (1, 2, 3, 4, 5, 6), channel="stdout")
    pieces = ("ab", "\t", "日", "\n", "c", "\n")
    return [
        TokenLosses(Segment(Role.CONTEXT, "$ ", (0,)), ("$ ",), None),
        TokenLosses(output, pieces, (0.0, 1.0, 9.0, 0.25, 4.0, 0.0)),
    ]


def test_a_strip_stands_under_the_characters_of_its_tokens() -> None:
    lines = heat_transcript({"p": made_heat()}, colours=None, width=80)
    assert lines == [
        "                        p |",
        "context                 - | $ ",
        "env_output stdout   2.375 | ab      日",
        "                        p :   ▅▅▅▅▅▅██▃",
        "                          | c",
        "                        p : ▇",
    ]


def test_colours_shade_the_text_and_leave_it_as_it_is() -> None:
    lines = heat_transcript({"p": made_heat(), "q": made_heat()}, colours=ColorSystem.TRUECOLOR, width=80)
    text = "\n".join(lines)
    plain = heat_transcript({"q": made_heat()}, colours=None, width=80)
    shaded = [line for line in _ESCAPE.sub("", text).split("\n") if " | " in line]
    unshaded = [line for line in plain if " | " in line]
    assert [line.split(" | ")[1].rstrip() for line in shaded] == [line.split(" | ")[1].rstrip() for line in unshaded]
    assert sum(" : " in line for line in lines) == 2  # strips of the second policy
    # 9 nats are the darkest shade, with white text; less than 1/16 none at all.
    assert "\x1b[38;2;255;255;255;48;2;157;0;34m日\x1b[0m" in text
    assert "\x1b[0m ab\x1b[" in text
    for system in (ColorSystem.STANDARD, ColorSystem.EIGHT_BIT):
        assert "日" in "".join(heat_transcript({"p": made_heat()}, colours=system, width=80))


def _on_terminal(*words: str) -> str:
    """Return the output of the command on a terminal of 60 columns."""
    ours, theirs = pty.openpty()
    unset = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "COLORTERM")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "60"}
    process = subprocess.Popen([*COMMAND, *words], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    blocks = []
    with contextlib.suppress(OSError):  # Linux's error after the other end is closed
        while block := os.read(ours, 4096):
            blocks.append(block)
    os.close(ours)
    assert process.wait() == 0, blocks
    return b"".join(blocks).decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_a_terminal_has_colours_and_rows_as_wide_as_it_is(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", trace("quota: 12\n" + "y" * 100 + "\n"))
    text = _on_terminal("inspect", str(file), "--episode", "1", "--model", "tiny-base")
    assert "\x1b[32maction" in text and ";48;5;" in text
    rows = _ESCAPE.sub("", text).split("t: trace")[1].split("nats/token")[0].splitlines()[1:]
    assert all(len(row) <= 60 for row in rows) and len(rows) > 6


def test_nobody_gets_colours_who_wants_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "a.jsonl", trace("quota: 12\n"))
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "60")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    words = (file, "--episode", "1", "--model", "tiny-base")
    assert ";48;5;" in printed(capsys, *words)
    assert "\x1b[32maction" in printed(capsys, file, "--episode", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = printed(capsys, *words)
    assert "48;5;" not in plain and "\x1b[3" not in plain and "█" in plain


def test_a_terminal_without_blocks_gets_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "a.jsonl", trace("quota: 12\n"))
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii"))
    assert main(["inspect", str(file), "--episode", "1", "--model", "tiny-base"]) == 0
    assert re.search(rb"tiny-base : [1-8]", data.getvalue()) and b"u2588" not in data.getvalue()
