"""`traces import` without a format: what a file is recognised as, why, and what it says where nothing is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from echo_cli.cli.main import main
from echo_cli.errors import EchoError
from echo_cli.trace import read_traces
from echo_cli.traces import input_file
from echo_cli.traces.input_file import STDIN
from echo_cli.traces.recognition import format_of, recognise

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
SHARED = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def written(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_each_file_has_the_format_of_its_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [written(tmp_path / "a.jsonl", CHAT, CHAT), written(tmp_path / "b.jsonl", SHARED)]
    for words in (["traces", "import"], ["traces", "import", "auto"]):
        out = tmp_path / f"{len(words)}.jsonl"
        assert main([*words, *map(str, files), "-o", str(out), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [(each["format"], each["why"]) for each in found["files"]] == [
            ("openai", "its records are messages, each with a role"),
            ("sharegpt", found["files"][1]["why"]),
        ]
        assert len(list(read_traces(out))) == 3
    assert main(["traces", "import", *map(str, [*files, files[0]]), "-o", str(tmp_path / "all.jsonl")]) == 0
    first, second, total = capsys.readouterr().out.splitlines()  # a line per format, not per file
    assert first.startswith(f"{files[0]} and 1 more: openai, because") and second.startswith(f"{files[1]}: sharegpt, ")
    assert total.startswith(f"{tmp_path}/all.jsonl: traces: 5, ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"hello\n", ":1: no known format, and not JSON: Expecting value"),
        (b'{"messages": [{"role": "user", "content": "\xc3("}]}\n', ":1: no known format, and not UTF-8"),
        (b'{"lines": 3}\n', ": no known format: its first record has lines"),
        (b"[1, 2]\n", ": no known format: its first record is not a JSON object"),
        (b"\n \n", " has no records"),
    ],
)
def test_a_file_of_no_known_format_says_what_it_begins_with(content: bytes, problem: str, tmp_path: Path) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(EchoError) as raised:
        recognise(path)
    assert raised.value.message == f"{path}{problem}"
    assert main(["traces", "import", str(path), "-o", str(out)]) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_formats_mixed_in_one_file_are_told_apart(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", CHAT, {"note": 1}, SHARED)
    with pytest.raises(EchoError, match="record 1 looks like openai, record 3 like sharegpt"):
        recognise(path)
    line = {"type": "assistant", "sessionId": "s", "message": {"role": "assistant", "content": "a"}}
    for records, told in (
        ((CHAT, line), "openai, record 2 like claude"),
        ((line, CHAT), "claude-code, record 2 like o"),
    ):
        with pytest.raises(EchoError, match=f"record 1 looks like {told}"):
            recognise(written(path, *records))
    assert (format_of(CHAT), format_of(SHARED), format_of({"note": 1})) == ("openai", "sharegpt", None)


def test_standard_input_needs_a_format() -> None:
    with pytest.raises(EchoError, match="standard input"):
        recognise(STDIN)


def test_a_line_that_is_too_long_is_refused_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(input_file, "LONGEST_LINE", 2000)
    long = {"messages": [{"role": "user", "content": "x" * 5000}, CHAT["messages"][1]]}
    path, out = written(tmp_path / "a.jsonl", CHAT, long, CHAT), tmp_path / "out.jsonl"
    assert main(["traces", "import", str(path), "-o", str(out)]) == 2
    assert f"{path}:2: a line longer than" in capsys.readouterr().err and not out.exists()
    assert main(["traces", "import", str(path), "-o", str(out), "--skip-bad"]) == 0
    assert len(list(read_traces(out))) == 2


def test_a_picture_is_left_out_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {"role": "user", "content": [{"type": "text", "text": "Look."}, PICTURE]}
    path, out = written(tmp_path / "a.jsonl", {"messages": [told, CHAT["messages"][1]]}), tmp_path / "out.jsonl"
    assert main(["traces", "import", str(path), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {
        "a part that is not text: 'image_url'": {"parts": 1, "bytes": 0}
    }
    (trace,) = read_traces(out)
    assert [(of.role.name, of.channel, of.text) for of in trace.segments[:2]] == [
        ("CONTEXT", "user", "Look.\n"),
        ("WARNING", "left_out", "[left out: a part that is not text: 'image_url']\n"),
    ]
    assert main(["traces", "import", str(path), "-o", str(out), "--overwrite", "--strict"]) == 2
    assert "messages[0]: a part that is not text: 'image_url'" in capsys.readouterr().err


def test_explain_shows_each_part_with_its_role_and_the_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "a.jsonl", CHAT)
    assert main(["traces", "import", "--explain", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: openai, because its records are messages, each with a role"
    assert any(line.startswith("  action      each assistant message") for line in lines)
    assert [line.split() for line in lines[-2:]] == [
        ["messages[0]", "context", "user", "q\\n"],
        ["messages[1]", "action", "-", "a\\n"],
    ]
    assert main(["traces", "import", "openai", "--explain", str(path), "--json"]) == 0
    assert [part["role"] for part in json.loads(capsys.readouterr().out)["segments"]] == ["context", "action"]
    assert main(["traces", "import", "--explain", str(path), "-o", str(tmp_path / "b.jsonl")]) == 2
    assert main(["traces", "import", "--explain", str(path), str(path)]) == 2


def test_a_pipe_needs_a_format_and_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EchoError, match=r"the format of .*pipe is not recognised"):
        recognise(tmp_path / "pipe")


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
def test_an_input_is_never_overwritten(
    link: Callable[[Path, Path], None] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = output = written(tmp_path / "a.jsonl", CHAT)
    if link is not None:
        link(path, output := tmp_path / "b.jsonl")
    before = path.read_bytes()
    assert main(["traces", "import", str(path), "-o", str(output), "--overwrite"]) == 2
    assert "which is to be imported" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {path.name, output.name}


def test_the_system_text_beside_messages_is_context(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"system": "Be kind.", **CHAT})
    assert main(["traces", "import", str(path), "-o", str(tmp_path / "out.jsonl")]) == 0
    (trace,) = read_traces(tmp_path / "out.jsonl")
    assert [segment.text for segment in trace.segments] == ["Be kind.\n", "q\n", "a\n"]


def test_a_number_of_too_many_digits_is_a_number_too_large(tmp_path: Path) -> None:
    (path := tmp_path / "a.jsonl").write_text(f'{{"reward": {"9" * 5000}}}')
    with pytest.raises(EchoError, match=r"a number is too large$"):
        recognise(path)
