"""Traces: the lines of trajectory files, and their encoding in a policy's tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import echo_cli
from echo_cli.errors import EchoError
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.trace import Trace, TraceSegment, read_traces, trace_of, write_traces
from echo_cli.traces.retokenize import render_trace
from echo_cli.trajectory import Role, Segment, Trajectory, Turn, write_trajectories

RENDERER = PlainRenderer(Tokenizer.load(Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json"))


def turn(command: str, output: str) -> Turn:
    return Turn(command, output, 0, valid_action=True, clean_parse=True)


def trace(*segments: tuple[Role, str], turns: tuple[Turn, ...] = (), **fields: object) -> Trace:
    return Trace("t", tuple(TraceSegment(role, text) for role, text in segments), turns, **fields)  # type: ignore[arg-type]


def played() -> Trajectory:
    def segment(role: Role, text: str, start: tuple[int, ...] = ()) -> Segment:
        return Segment(role, text, (*start, *RENDERER.tokenizer.encode(text)))

    return Trajectory(
        task_id="t",
        group_id="g",
        segments=(
            segment(Role.CONTEXT, "$ ", RENDERER.start_ids),
            segment(Role.ACTION, "wc -l a\n"),
            segment(Role.ENV_OUTPUT, "3\n"),
            segment(Role.WARNING, "[exit 1]\n"),
        ),
        turns=(turn("wc -l a", "3\n"),),
        reward=0.5,
        stop_reason="turn_cap",
        source="expert",
        meta={"step": 3},
    )


def test_a_trajectory_is_a_trace_with_tokens() -> None:
    made = trace_of(played())
    assert [segment.token_ids for segment in made.segments] == [s.token_ids for s in played().segments]
    assert (made.reward, made.stop_reason, made.meta) == (0.5, "turn_cap", {"step": 3})


def test_files_of_trajectories_and_of_traces_are_one_format(tmp_path: Path) -> None:
    write_trajectories(tmp_path / "a.jsonl", [played()])
    write_traces(tmp_path / "b.jsonl", [trace_of(played())])
    assert list(read_traces(tmp_path / "a.jsonl")) == list(read_traces(tmp_path / "b.jsonl")) == [trace_of(played())]


def test_lines_of_earlier_versions_say_no_format(tmp_path: Path) -> None:
    record = {key: value for key, value in trace_of(played()).to_json().items() if key != "format"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert list(read_traces(tmp_path / "a.jsonl")) == [trace_of(played())]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "echo-cli trajectory 2"}, "format"),
        ({"segments": []}, "at least one segment"),
        ({"turns": []}, "1 action segments and 0 turns"),
        ({"segments": [{"role": "pad", "text": ""}]}, "a role is one of context, action, env_output, warning"),
        ({"surplus": 1}, "surplus"),
        ({"reward": "high"}, "reward"),
    ],
)
def test_a_line_that_is_no_trace_is_named(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    path = tmp_path / "a.jsonl"
    lines = [trace_of(played()).to_json(), {**trace_of(played()).to_json(), **change}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(EchoError, match=f"a.jsonl:2: not a trace: .*{reason}"):
        list(read_traces(path))


def test_a_trace_in_the_tokens_of_its_own_player_is_what_was_played() -> None:
    again = render_trace(trace_of(played()), RENDERER)
    assert again.token_ids == played().token_ids and again.roles == played().roles
    assert again.world_model_only and again.turns == played().turns


def test_a_trace_without_context_begins_with_the_token_that_begins_a_text() -> None:
    made = render_trace(trace((Role.ENV_OUTPUT, "hello\n")), RENDERER)
    assert made.roles[: len(RENDERER.start_ids) + 1] == [*[Role.CONTEXT] * len(RENDERER.start_ids), Role.ENV_OUTPUT]


def test_a_trace_that_begins_with_an_action_has_that_token_before_it() -> None:
    made = render_trace(trace((Role.ACTION, "ls"), (Role.CONTEXT, "$ "), turns=(turn("ls", ""),)), RENDERER)
    assert made.segments[0].token_ids == RENDERER.start_ids
    assert [segment.text for segment in made.segments] == ["", "ls", "$ "]
    assert not set(RENDERER.start_ids) & {token for segment in made.segments[1:] for token in segment.token_ids}


def test_an_action_of_several_lines_keeps_its_text() -> None:
    text = "<tool_call>\n{}\n</tool_call>\n"
    made = render_trace(
        trace((Role.CONTEXT, "go\n"), (Role.ACTION, text), turns=(turn(text.removesuffix("\n"), ""),)), RENDERER
    )
    assert made.segments[1].text == text
