"""Statistics of traces: counts, copies and near-copies, compression of one half by the other."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tiny_run import error_of
from trace_files import episode, store, trace_file

from echo_cli.cli.main import main
from echo_cli.evaluation.data import trace_statistics as module
from echo_cli.evaluation.data.trace_statistics import trace_statistics
from echo_cli.trace import Trace


def listing(number: int, *more: str) -> Trace:
    rng = random.Random(number)
    lines = [f"{rng.random():.9f} file{line}\n" for line in range(60)]
    return episode((f"ls {number}", "".join([*lines, *more])))


def test_copies_and_near_copies_are_counted_apart() -> None:
    traces = [listing(number) for number in range(8)]
    found = trace_statistics([*traces, listing(0), listing(0), listing(1, "total 60\n"), listing(1, "total 60\n")])
    assert found is not None
    assert (found.traces, found.turns, found.equal.copies, found.near_copies) == (12, 12, 3, 1)
    assert found.near_copies_share == pytest.approx(1 / 12)
    assert found.pairs.copies == 3


def test_amounts_are_those_of_the_roles_and_the_longest_trace_is_named() -> None:
    traces = [*store(4), listing(7)]
    found = trace_statistics(traces)
    assert found is not None
    text = "".join(segment.text for trace in traces for segment in trace.segments)
    assert found.account.total.bytes == len(text.encode())
    assert found.account.roles["env_output"].bytes == sum(len(turn.output) for trace in traces for turn in trace.turns)
    assert (found.longest.number, found.longest.turns, found.longest.tokens) == (5, 1, None)
    counted = trace_statistics(traces, lambda segment: len(segment.text))
    assert counted is not None and counted.account.total.tokens == len(text)
    assert counted.longest.tokens == counted.longest.bytes


def test_the_information_of_one_half_is_measured_with_the_other() -> None:
    same = [episode((f"cat {number}", "every line is the same line\n" * 20)) for number in range(40)]
    noise = [listing(number) for number in range(40)]
    repeated, random_digits = trace_statistics(same), trace_statistics(noise)
    assert repeated is not None and random_digits is not None
    low, high = repeated.compression, random_digits.compression
    assert low is not None and high is not None
    assert low.fitted_traces + low.scored_traces == 40
    assert low.scored_bytes == 560 * low.scored_traces
    assert low.ngram_bits_per_byte < 0.1 < 1.5 < high.ngram_bits_per_byte
    assert low.gzip_bits_per_byte < 1 < high.gzip_bits_per_byte
    alone = trace_statistics([listing(0)])
    assert alone is not None and alone.compression is None


def test_of_many_traces_a_sample_is_compressed_that_no_order_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = [listing(number) for number in range(40)]
    monkeypatch.setattr(module, "MOST_BYTES", 5000)
    forwards, backwards = trace_statistics(traces), trace_statistics([*traces[::-1], traces[3]])
    assert forwards is not None and backwards is not None
    assert forwards.compression == backwards.compression
    assert forwards.compression is not None and 0 < forwards.compression.scored_bytes <= 5000


def test_the_command_prints_one_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trace_file(tmp_path, [*store(), *(listing(number) for number in range(6)), listing(0)])
    assert main(["traces", "stats", str(path), str(path)]) == 0
    printed = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert rows[" traces"][1] == "46" and rows[" turns"][1] == "78"
    assert "(no tool): shell" in printed and "tokens" not in printed and "stdout" in printed
    assert all(len(line.rstrip()) <= 80 for line in printed.splitlines())
    assert main(["traces", "stats", str(path), "--json", "--config", "toy-files"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == "config toy-files" and found["account"]["total"]["tokens"] > 0
    assert found["equal"]["copies"] == 1 and found["tools"] == [
        {"name": "(no tool)", "calls": 39, "languages": {"shell": 39}}
    ]


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "chats.jsonl").write_text('{"messages": []}\n')
    for words, message in (
        (["missing.jsonl"], "missing.jsonl"),
        ([str(tmp_path / "empty.jsonl")], "empty.jsonl"),
        ([str(tmp_path / "chats.jsonl")], "chats.jsonl:1"),
        ([str(tmp_path / "empty.jsonl"), "--trust-remote-code"], "--trust-remote-code has no effect"),
    ):
        assert main(["traces", "stats", *words]) == 2
        assert message in error_of(capsys.readouterr().err)[0]
