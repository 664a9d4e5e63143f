"""The corpus of trajectory files: positions of traces, splits, and the overlap of held-out splits with training."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_files import episode, store, trace_file, turn

from echo_cli.config.episodes.traces import TracesConfig, TraceSplitConfig
from echo_cli.config.objective import ObjectiveSettings
from echo_cli.environments.tasks import Split
from echo_cli.errors import EchoError
from echo_cli.seeds import epoch_sample
from echo_cli.trace import Trace, TraceSegment, read_traces
from echo_cli.traces.corpus import TraceCorpus, check_trainable, index_traces, observations, overlap_line, split_of
from echo_cli.trajectory import Role

SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")


def config(*paths: Path, **keys: object) -> TracesConfig:
    return TracesConfig.model_validate_json(json.dumps({"path": [str(path) for path in paths], **keys}))


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def texts(corpus: TraceCorpus, split: Split) -> list[str]:
    return ["".join(segment.text for segment in trace.segments) for trace in corpus.read(corpus.of(split))]


def test_every_trace_is_found_again_by_its_place(tmp_path: Path) -> None:
    first, second = trace_file(tmp_path, store()[:9], "a.jsonl"), trace_file(tmp_path, store()[9:], "b.jsonl")
    corpus = index_traces(config(first, second))
    whole = [trace for path in (first, second) for trace in read_traces(path)]
    assert list(corpus.read(corpus.entries)) == whole
    backwards = list(corpus.read(corpus.entries[::-1]))
    assert backwards == whole[::-1]
    assert [(entry.file, entry.line) for entry in corpus.entries][8:10] == [(0, 9), (1, 1)]
    assert corpus.sha256 == tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second))


def test_the_split_is_of_what_traces_say_and_of_nothing_else(tmp_path: Path) -> None:
    before = index_traces(config(trace_file(tmp_path, store(), "a.jsonl")))
    renamed = [Trace(f"t{n}", t.segments, t.turns, meta={"step": n}) for n, t in enumerate(store())]
    random.Random(0).shuffle(renamed)
    halves = [trace_file(tmp_path, renamed[::2], "b.jsonl"), trace_file(tmp_path, renamed[1::2], "c.jsonl")]
    after = index_traces(config(*halves))
    for split in SPLITS:
        assert sorted(texts(before, split)) == sorted(texts(after, split)) != []


contents = st.sets(st.binary(min_size=32, max_size=32), min_size=3, max_size=40)


@given(contents, contents)
def test_more_traces_move_none_between_splits_that_had_some(some: set[bytes], more: set[bytes]) -> None:
    shares = TraceSplitConfig(validation=0.3, heldout=0.3)
    before, after = split_of(some, shares), split_of(some | more, shares)

    def of_range(content: bytes) -> str:
        place = int.from_bytes(content[:8], "big") / 2**64
        return "validation" if place < 0.3 else "heldout" if place < 0.6 else "train"

    assert set(before.values()) == set(after.values()) == set(SPLITS)
    if {of_range(content) for content in some} == set(SPLITS):
        assert all(before[content] == after[content] == of_range(content) for content in some)


def test_shares_are_of_the_traces_and_none_is_asked_for_with_zero() -> None:
    many = {hashlib.sha256(str(number).encode()).digest() for number in range(4000)}
    found = list(split_of(many, TraceSplitConfig()).values())
    assert found.count("validation") == pytest.approx(400, abs=60)
    assert found.count("heldout") == pytest.approx(800, abs=80)
    assert set(split_of(many, TraceSplitConfig(validation=0.0, heldout=0.0)).values()) == {"train"}


def test_observations_are_what_answers_a_turn_whatever_segments_it_came_in() -> None:
    segments = [
        TraceSegment(Role.ENV_OUTPUT, "hello\n"),
        TraceSegment(Role.ACTION, "ls"),
        TraceSegment(Role.ENV_OUTPUT, "a\n", "stdout"),
        TraceSegment(Role.WARNING, "[exit 1]\n"),
        TraceSegment(Role.ENV_OUTPUT, "no b\n", "stderr"),
        TraceSegment(Role.ACTION, "pwd"),
        TraceSegment(Role.ACTION, "ls"),
        TraceSegment(Role.ENV_OUTPUT, "a\n"),
    ]
    turns = tuple(episode((command, ""), opening="").turns[0] for command in ("ls", "pwd", "ls"))
    texts = [(-1, ["hello\n"]), (0, ["a\nno b\n", "a\n", "no b\n"]), (2, ["a\n"])]
    assert observations(Trace("t", tuple(segments), turns)) == [(turn, tuple(map(sha256, of))) for turn, of in texts]


def test_what_training_sees_of_held_out_traces_is_counted(tmp_path: Path) -> None:
    traces = [*store(), episode(("pwd", "/srv/store\n"), ("pwd", "/srv/store\n"), opening="# ")]
    corpus = index_traces(config(trace_file(tmp_path, traces), split={"validation": 0.3, "heldout": 0.3}))
    for split in ("validation", "heldout"):
        held = list(corpus.read(corpus.of(split)))  # type: ignore[arg-type]
        repeated = sum(turn.output == "/srv/store\n" for trace in held for turn in trace.turns)
        found = corpus.overlap(split)  # type: ignore[arg-type]
        assert (found.traces, found.observations, found.seen) == (len(held), 2 * len(held), repeated)
        assert found.emptied == sum(trace.turns[0].command == "pwd" for trace in held)
        assert found.to_json()["seen_share"] == repeated / (2 * len(held))


def _listing(number: int, changed: str = "") -> Trace:
    rng = random.Random(number)
    lines = [f"{rng.random():.9f} {rng.random():.9f} file{line}\n" for line in range(40)]
    return episode((f"ls {number}", "".join(lines) + changed))


def test_held_out_traces_that_nearly_repeat_a_training_trace_are_not_measured(tmp_path: Path) -> None:
    traces = [trace for number in range(30) for trace in (_listing(number), _listing(number, "total 40\n"))]
    path, split = trace_file(tmp_path, [*traces, _listing(99)]), {"validation": 0.3, "heldout": 0.3}
    corpus = index_traces(config(path, split=split))
    names = [trace.turns[0].command for trace in corpus.read(corpus.entries)]
    train = {name for name, entry in zip(names, corpus.entries, strict=True) if entry.split == "train"}
    for name, entry in zip(names, corpus.entries, strict=True):
        assert entry.near_copy == (entry.split != "train" and name in train)
    found = corpus.overlap("heldout")
    assert found.seen == 0 and 0 < found.near_copies == found.emptied < found.traces
    record = corpus.to_json()["heldout"]
    assert f"; {found.near_copies} of {found.traces} traces nearly repeat a training trace; " in overlap_line(record)
    earlier = {name: value for name, value in record.items() if name != "near_copies"}
    assert "nearly" not in overlap_line(earlier)
    off = index_traces(config(path, split={**split, "near_duplicates": None}))
    assert off.overlap("heldout").near_copies == 0
    assert [entry.split for entry in off.entries] == [entry.split for entry in corpus.entries]
    least = index_traces(config(path, split={**split, "near_duplicates": 1.0}))
    assert least.overlap("heldout").near_copies < found.near_copies


def test_what_training_sees_before_an_action_counts_and_is_not_measured(tmp_path: Path) -> None:
    greeting = TraceSegment(Role.ENV_OUTPUT, "/srv/store\n")
    traces = [Trace("t", (greeting, *trace.segments[:3]), trace.turns[:1]) for trace in store()]
    corpus = index_traces(config(trace_file(tmp_path, traces)))
    found = corpus.overlap("heldout")
    assert found.seen == 0 and found.observations == found.traces > 0
    assert hashlib.sha256(b"/srv/store\n").digest() in corpus.seen


@pytest.mark.parametrize("apart_in_training", [True, False])
def test_what_several_tools_answer_is_seen_in_parts_too(tmp_path: Path, apart_in_training: bool) -> None:
    def asked(task: str, *answers: str) -> Trace:
        opening = [TraceSegment(Role.CONTEXT, task), TraceSegment(Role.ACTION, "f\n")]
        segments = (*opening, *(TraceSegment(Role.ENV_OUTPUT, text, "tool_result") for text in answers))
        return Trace("t", segments, (turn("f", "".join(answers)),))

    apart = [asked(f"{n}", text) for n in range(40) for text in ("a\n", "b\n")]
    together = [asked(f"{n}", "a\n", "b\n") for n in range(40)]
    names = [trace_file(tmp_path, traces, f"{len(traces)}.jsonl") for traces in (apart, together)]
    shares = {"validation": 0.0, "heldout": 0.4}
    train, held = (index_traces(config(name, split=shares)) for name in (names if apart_in_training else names[::-1]))
    assert replace(held, seen=train.seen).overlap("heldout").seen == len(held.of("heldout"))
    assert replace(held, seen=frozenset([sha256("b\n")])).overlap("heldout").seen < len(held.of("heldout"))


def test_a_trace_that_occurs_twice_is_of_one_split(tmp_path: Path) -> None:
    corpus = index_traces(config(trace_file(tmp_path, [*store(), *store()])))
    assert corpus.to_json()["repeated"] == 16
    for split in SPLITS:
        found = texts(corpus, split)
        assert len(found) == 2 * len(set(found)) > 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{}\n", "a.jsonl:1: not a trace: "),
        ("GOOD\nno json\n", "a.jsonl:2: not a trace: "),
        ("GOOD\n\nGOOD\n", "a.jsonl:2: not a trace: "),
        ("", "no trace in "),
    ],
)
def test_a_file_that_is_none_is_refused_with_file_and_line(lines: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines.replace("GOOD", json.dumps(store()[0].to_json())))
    with pytest.raises(EchoError, match=message) as caught:
        index_traces(config(path))
    assert caught.value.exit_code == 2 and caught.value.tip


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EchoError, match=r"cannot read .*nothing\.jsonl: No such file"):
        index_traces(config(tmp_path / "nothing.jsonl"))
    with pytest.raises(EchoError, match="is a folder") as caught:
        index_traces(config(tmp_path))
    assert "trajectories.jsonl" in (caught.value.tip or "")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EchoError, match="not a file that can be read twice"):
        index_traces(config(tmp_path / "pipe"))


def test_too_few_traces_are_refused(tmp_path: Path) -> None:
    path = trace_file(tmp_path, store(2))
    needs = "2 distinct; validation, heldout and train need one each, so at least 3"
    with pytest.raises(EchoError, match=f"too few traces to split: {needs}"):
        index_traces(config(path))
    assert len(index_traces(config(path, split={"validation": 0.0})).of("train")) == 1


def test_a_compressed_file_is_named_as_such(tmp_path: Path) -> None:
    path = trace_file(tmp_path, store())
    path.write_bytes(gzip.compress(path.read_bytes()))
    for read in (lambda: index_traces(config(path)), lambda: list(read_traces(path))):
        with pytest.raises(EchoError, match="is gzip, not a trajectory file as text") as refused:
            read()
        assert refused.value.tip == "decompress it: gzip -dk FILE"


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    path = trace_file(tmp_path, store())
    corpus = index_traces(config(path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(EchoError, match=r"traces.jsonl:1 has changed since it was indexed") as caught:
        list(corpus.read(corpus.entries))
    assert caught.value.exit_code == 1
    path.unlink()
    with pytest.raises(EchoError, match="has changed since it was indexed"):
        list(corpus.read(corpus.entries))


@pytest.mark.parametrize(
    ("traces", "keys", "objective", "message"),
    [
        ([episode(("ls", ""), opening=f"{n} ") for n in range(9)], {}, {}, "no training trace has an observation"),
        ([episode(opening=f"{n} ") for n in range(9)], {"imitation_coeff": 1.0}, {}, "has an action"),
        ([episode(opening=f"{n} ") for n in range(9)], {"imitation_coeff": 0.0}, {}, "has an observation"),
        (
            [Trace("t", (TraceSegment(Role.ENV_OUTPUT, f"{n}\n"),), ()) for n in range(9)],
            {},
            {"min_valid_action_fraction": 0.5},
            r"min_valid_action_fraction needs turns, but .*traces.jsonl:\d has none",
        ),
        (
            [episode(("ls", f"{n}\n"), reward=None) for n in range(9)],
            {},
            {"min_correct_fraction": 0.5},
            r"min_correct_fraction needs a reward, but .*traces.jsonl:\d has none",
        ),
        (
            [episode(("ls", f"{n}\n"), reward=None) for n in range(9)],
            {},
            {"max_correct_fraction": 0.5},
            r"max_correct_fraction needs a reward, but .*traces.jsonl:\d has none",
        ),
    ],
)
def test_traces_that_nothing_can_be_learned_from_are_refused(
    traces: list[Trace], keys: dict[str, object], objective: dict[str, float], message: str, tmp_path: Path
) -> None:
    settings = config(trace_file(tmp_path, traces), **keys)
    with pytest.raises(EchoError, match=message):
        check_trainable(index_traces(settings), settings, ObjectiveSettings(use_rl=False, **objective))  # type: ignore[arg-type]


@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 30))
def test_what_is_drawn_comes_up_equally_often(number: int, count: int, steps: int) -> None:
    items = list(range(number))
    sequence = [item for step in range(steps) for item in epoch_sample(items, count, 3, "traces", step)]
    assert len(sequence) == count * steps
    for start in range(0, len(sequence) - number + 1, number):
        assert sorted(sequence[start : start + number]) == items
