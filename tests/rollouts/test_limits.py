"""Contexts that are too short: episodes are capped, pools are truncated with a notice, and both are reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pool_samples import AWKWARD, LIMITS, ORIGIN, PLAIN, TOKENIZER, printed
from tiny_run import TINY, error_of, rows, train_words

from echo_cli.cli.main import main
from echo_cli.config.loader import find_config, load_config
from echo_cli.config.schema import Config
from echo_cli.environments.toy import ToyWorlds
from echo_cli.errors import EchoError
from echo_cli.evaluation.loaded_run import build_policy, load_pool
from echo_cli.models.architecture import model_folder
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.tiny import TinyConfig, TinyModel, load_model
from echo_cli.rollouts.episode import cut_pieces
from echo_cli.rollouts.limits import limits_for, limits_of
from echo_cli.runs.pool_folder import read_pool, write_pool
from echo_cli.traces.retokenize import truncated
from echo_cli.training.step_data import play_explorers, play_tasks
from echo_cli.trajectory import CUT_OUTPUT, Role, Segment, Trajectory, Turn

torch.set_num_threads(1)

WHOLE = printed(*AWKWARD)
NOTICE = len(TOKENIZER.encode(CUT_OUTPUT))


# --- Trajectories ----------------------------------------------------------------------------------------------------


@given(st.integers(1, len(WHOLE) + 5))
def test_what_is_cut_is_the_beginning_and_a_notice(room: int) -> None:
    cut = truncated(WHOLE, TOKENIZER, room)
    if cut is None:
        assert room < len(WHOLE.segments[0].token_ids) + NOTICE
        return
    if room >= len(WHOLE):
        assert cut is WHOLE
        return
    *kept, notice = cut.segments
    assert len(cut) <= room and cut.stop_reason == "length_cap" and cut_pieces([cut]) == 1
    assert (notice.role, notice.text) == (Role.WARNING, CUT_OUTPUT)
    ids = [token for segment in kept for token in segment.token_ids]
    assert ids == WHOLE.token_ids[: len(ids)]
    assert kept[:-1] == list(WHOLE.segments[: len(kept) - 1])
    for segment in kept[1:]:
        assert TOKENIZER.decode(list(segment.token_ids)) == segment.text
    assert cut.turns == WHOLE.turns[: sum(segment.role is Role.ACTION for segment in kept)]


def test_an_output_is_cut_inside_and_another_segment_before_it() -> None:
    texts = [(Role.CONTEXT, "task\n"), (Role.ACTION, "ls\n"), (Role.ENV_OUTPUT, "0123456789"), (Role.CONTEXT, "$ next")]
    segments = tuple(Segment(role, text, tuple(TOKENIZER.encode(text))) for role, text in texts)
    turn = Turn("ls", "0123456789", 0, True, True)
    whole = Trajectory("t", "t", segments, (turn,), None, "answered", "expert")
    sizes = [len(segment.token_ids) for segment in segments]
    inside = truncated(whole, TOKENIZER, sum(sizes[:2]) + 4 + NOTICE)
    assert inside is not None and [s.text for s in inside.segments][2:] == ["0123", CUT_OUTPUT]
    assert inside.turns == (turn,)  # the turn keeps the full output, which identifies the pair
    wide = replace(whole, segments=(*segments[:3], replace(segments[3], token_ids=segments[3].token_ids * 9)))
    before = truncated(wide, TOKENIZER, sum(sizes[:3]) + NOTICE + 2)
    assert before is not None and [s.text for s in before.segments][2:] == ["0123456789", CUT_OUTPUT]


# --- Pools -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    write_pool(tmp_path / "long", [WHOLE, printed("short\n")], TOKENIZER, ORIGIN)
    return tmp_path / "long"


def test_a_pool_is_cut_at_the_context_and_says_how_much_of_it(pool: Path) -> None:
    context = len(WHOLE) - 20
    whole, cut = load_pool(pool, PLAIN, len(WHOLE), cut=True), load_pool(pool, PLAIN, context, cut=True)
    assert (whole, whole.cut) == (load_pool(pool, PLAIN), 0)
    assert cut.cut == 1 and max(map(len, cut.trajectories)) <= context
    assert cut.pairs < whole.pairs
    # The truncated output is a shorter span of the same pair.
    assert sum(s.count for spans in cut.spans for s in spans) == sum(t.count(Role.ENV_OUTPUT) for t in cut.trajectories)
    assert read_pool(pool)[1][0] == WHOLE
    with pytest.raises(EchoError, match=r"long has no output within the model's context of 15 tokens"):
        load_pool(pool, PLAIN, 15, cut=True)


# --- Episodes and runs -----------------------------------------------------------------------------------------------


def shortened(context: int) -> TorchPolicy:
    """Return a policy of the built-in model with a context of `context` tokens."""
    model, _ = load_model(model_folder("tiny-base"))
    short = TinyModel(TinyConfig(**{**model.config.to_json(), "max_length": context}))
    short.load_state_dict(model.state_dict())
    return TorchPolicy(short, PLAIN, Config().optim, torch.device("cpu"))


def config(kind: str, *words: str) -> Config:
    of_kind = ["model.kind=hf", "model.path=random-qwen3"] if kind == "hf" else []
    return load_config(find_config("toy-files"), [*TINY, *of_kind, *words])


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("echo_cli.models.loading.load_policy", lambda *_: shortened(300))
    return 300


@pytest.mark.parametrize("kind", ["tiny", "hf"])
def test_episodes_are_brought_down_to_the_context(kind: str, context: int, capsys: pytest.CaptureFixture[str]) -> None:
    of = config(kind, "rollout.max_output_tokens=1000")
    policy, _ = build_policy(of)
    worlds = ToyWorlds((0,), (), 5)
    limits = limits_for(of, policy, worlds)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: an episode of {limits_of(of).longest(PLAIN.overhead)} tokens does not fit the model's context of "
        f"300: max_episode_tokens is set to {limits.episode_tokens}, max_output_tokens to {limits.output_tokens}"
    )
    build_policy(of, quiet=True)
    assert capsys.readouterr().err == ""
    played = [*play_tasks(of, policy, worlds, 0), *play_explorers(of, policy, worlds, 0, 20)]
    assert max(map(len, played)) <= 300
    longest = printed(*["0123456789" * 60] * 9, limits=limits)
    assert 150 < len(longest) <= 300 and cut_pieces([longest]) > 0


@pytest.mark.parametrize("kind", ["tiny", "hf"])
def test_what_cannot_fit_is_refused(kind: str, context: int) -> None:
    with pytest.raises(
        EchoError,
        match=r"one turn does not fit in the model's context of 300 tokens: it needs .* 250 of them for the action",
    ):
        build_policy(config(kind, "rollout.max_action_tokens=250"))


def test_the_check_of_an_environment_has_the_caps_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "rollout.max_episode_tokens=4000"
    assert main(["env", "check", "toy", "--json", long]) == 0
    report = json.loads(capsys.readouterr().out)
    of = load_config("toy", [long])
    policy, _ = build_policy(of)
    assert report["limits"] == vars(limits_for(of, policy, ToyWorlds((0,), (), 5))) != vars(limits_of(of))
    (line,) = capsys.readouterr().err.splitlines()
    assert [warning["message"] for warning in report["warnings"] if warning["name"] == "context"] == [
        line.removeprefix("warning: ")
    ]
    assert main(["env", "check", "toy", "rollout.max_action_tokens=2040"]) == 2
    refusal = capsys.readouterr().err
    assert main(["train", "--output-dir", str(tmp_path), "rollout.max_action_tokens=2040"]) == 2
    assert capsys.readouterr().err == refusal != ""


@pytest.fixture
def longer(tmp_path: Path) -> Path:
    """Write a pool of one trajectory that has more than `context` tokens."""
    write_pool(tmp_path / "longer", [printed(*(f"{number} 23456789" * 9 for number in range(5)))], TOKENIZER, ORIGIN)
    return tmp_path / "longer"


def test_a_model_without_a_run_is_measured_on_what_it_takes(
    context: int, longer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval-heldout", "--model", "random-qwen3", "--pool", str(longer), "--json", "threads=1"]) == 0
    note = "random-qwen3: longer: trajectories truncated to the model's context of 300 tokens: 1"
    assert note in json.loads(capsys.readouterr().out)["notes"]


@pytest.mark.slow
def test_a_run_counts_what_was_cut_and_its_evaluation_notes_it(
    context: int, longer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["model.kind=hf", "model.path=random-qwen3", "rollout.max_output_tokens=20", "rollout.explorers=9"]
    assert main(train_words(run, *words, "environment.toy_terminal.families=[cell]", "--steps", "1")) == 0
    counts = [row["train/cut_pieces"] for row in rows(run)]
    assert counts[0] is None and sum(counts[1:]) > 0
    assert all(isinstance(count, int) for count in counts[1:])
    capsys.readouterr()

    evaluate = ["eval-heldout", str(run), "--rollouts", "0", "--json", "--pool", str(longer)]
    assert main(evaluate) == 0
    printed_out = capsys.readouterr()
    found: dict[str, Any] = json.loads(printed_out.out)
    assert "longer: trajectories truncated to the model's context of 300 tokens: 1" in found["notes"]
    assert len([line for line in printed_out.err.splitlines() if line.startswith("warning: ")]) == 1


def test_a_pool_that_does_not_fit_the_built_in_model_is_refused(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = replace(LIMITS, output_tokens=3000)
    write_pool(tmp_path / "longer", [printed("0123456789" * 210, limits=limits)], TOKENIZER, ORIGIN)
    assert main(["eval-heldout", str(finished), "--rollouts", "0", "--pool", str(tmp_path / "longer")]) == 2
    message, _ = error_of(capsys.readouterr().err)
    assert "the model's context is 2048" in message
