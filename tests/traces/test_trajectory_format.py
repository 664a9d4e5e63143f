"""docs/trajectory-format.md, docs/trace-formats.md and the JSON Schema agree with the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import echo_cli
from echo_cli.cli.main import main
from echo_cli.trace import Trace, TraceSegment, parse_trace, read_traces, trace_line, trace_schema
from echo_cli.traces.recognition import FORMATS, format_named
from echo_cli.trajectory import Role, Turn

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(echo_cli.__file__).parent
DOCS = (ROOT / "docs" / "trajectory-format.md").read_text(encoding="utf-8")
FORMATS_PAGE = (ROOT / "docs" / "trace-formats.md").read_text(encoding="utf-8")
TRACES = PACKAGE / "traces"
SCHEMA = TRACES / "schemas" / "trajectory.schema.json"
MODULES = [path for path in (TRACES / "formats").rglob("*.py") if "\nROLES = " in path.read_text()]
IMPORTERS = sorted(path.stem.replace("_", "-") for path in MODULES)
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))

# Reads and writes `count` traces of 100 segments each, imports a tenth as many, and prints its peak memory in MB.
MEASURE = """
import resource, sys
from pathlib import Path
from echo_cli.traces.builder import ImportOptions
from echo_cli.traces.importing import import_traces
from echo_cli.trace import Trace, TraceSegment, read_traces, trace_line, write_traces
from echo_cli.trajectory import Role, Turn

def lines(path, count):
    said = [TraceSegment(Role.ACTION, "cat a\\n"), *[TraceSegment(Role.ENV_OUTPUT, "größe\\n", "stdout")] * 9]
    line = trace_line(Trace("t", tuple(said * 10), (Turn("cat a", "größe\\n" * 9, 0, True, True),) * 10))
    with path.open("wb") as file:
        file.writelines(line for _ in range(count))
    return path

count = int(sys.argv[1])
whole, copy = lines(Path("whole.jsonl"), count), Path("copy.jsonl")
write_traces(copy, read_traces(whole))
assert whole.stat().st_size == copy.stat().st_size
few = lines(Path("few.jsonl"), count // 10)
assert import_traces("echo", [few], Path("imported.jsonl"), ImportOptions()).segments == 10 * count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def line() -> dict[str, Any]:
    turn = Turn("ls", "a\n", 0, valid_action=True, clean_parse=True)
    segments = (
        TraceSegment(Role.CONTEXT, "$ "),
        TraceSegment(Role.ACTION, "ls\n", token_ids=(1, 2), logprobs=(-0.5, -1.0), transient=1),
        TraceSegment(Role.ENV_OUTPUT, "a\n", "stdout"),
    )
    return Trace("t", segments, (turn,), reward=1.0, meta={"step": 3}).to_json()


def test_the_schema_in_the_package_is_that_of_the_type(capsys: pytest.CaptureFixture[str]) -> None:
    tip = "echo-cli traces schema > echo_cli/traces/schemas/trajectory.schema.json"
    assert json.loads(SCHEMA.read_text()) == trace_schema(), tip
    assert main(["traces", "schema"]) == 0
    assert capsys.readouterr().out == SCHEMA.read_text()


def test_lines_of_this_version_and_of_earlier_ones_fit_the_schema() -> None:
    VALIDATOR.validate(line())
    VALIDATOR.validate({key: value for key, value in line().items() if key != "format"})


@pytest.mark.parametrize(
    "change",
    [
        {"format": "echo-cli trajectory 2"},
        {"segments": []},
        {"segments": [{"role": "pad", "text": ""}]},
        {"segments": [{"role": "action"}]},
        {"segments": [{"role": "action", "text": "a", "token_ids": ["1"]}]},
        {"segments": [{"role": "action", "text": "a", "transient": -1}]},
        {"turns": [{"command": "ls"}]},
        {"reward": "high"},
        {"surplus": 1},
        {"task_id": None},
    ],
)
def test_what_does_not_fit_the_schema_is_no_line_either(change: dict[str, Any]) -> None:
    broken = {**line(), **change}
    assert not VALIDATOR.is_valid(broken)
    with pytest.raises(ValueError):
        parse_trace(json.dumps(broken).encode())


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        ({"role": "action", "text": "a", "token_ids": [1], "logprobs": [-1.0, -2.0]}, "2 logprobs for 1 action tokens"),
        (
            {"role": "action", "text": "a", "token_ids": [1], "transient": 2},
            "2 transient tokens in a segment of 1 action tokens",
        ),
        ({"role": "context", "text": "a", "token_ids": [1], "logprobs": [-1.0]}, "only action segments carry logprobs"),
    ],
)
def test_the_reader_holds_what_the_schema_cannot_say(segment: dict[str, Any], reason: str) -> None:
    turns = line()["turns"] if segment["role"] == "action" else []
    with pytest.raises(ValueError, match=reason):
        parse_trace(json.dumps({**line(), "segments": [segment], "turns": turns}).encode())


@settings(deadline=None)
@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_a_line_holds_any_text(text: str, meta: dict[str, Any]) -> None:
    trace = Trace(text, (TraceSegment(Role.ENV_OUTPUT, text, text),), (), meta=meta)
    written = trace_line(trace)
    assert written.count(b"\n") == 1 and parse_trace(written) == trace


@pytest.mark.parametrize("place", ["text", "channel", "task_id", "command", "meta"])
def test_half_a_character_is_no_text(place: str) -> None:
    half = "\ud83d"
    parts = {name: half if name == place else "a" for name in ("text", "channel", "task_id", "command", "meta")}
    segment = TraceSegment(Role.ACTION, parts["text"], parts["channel"])
    turn = Turn(parts["command"], "", None, valid_action=True, clean_parse=True)
    with pytest.raises(ValueError, match=rf"{place}.* is not Unicode: .* lone surrogate"):
        Trace(parts["task_id"], (segment,), (turn,), meta={"deep": [{"key": parts["meta"]}]})
    with pytest.raises(ValueError):
        parse_trace(json.dumps({**line(), "task_id": half}).encode())


@pytest.mark.slow
def test_a_million_segments_are_written_and_read_in_the_memory_of_a_few(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        words, folder = [sys.executable, "-c", MEASURE, str(count)], tmp_path / str(count)
        folder.mkdir()
        return int(subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout)

    assert peak(10_000) - peak(100) < 20  # MB; a list of a tenth of the traces takes more


def test_every_format_has_its_importer() -> None:
    assert sorted(FORMATS) == IMPORTERS


@pytest.mark.parametrize("name", IMPORTERS)
def test_the_role_rules_are_in_the_docs_and_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rules = format_named(name).ROLES.strip()
    assert f"### {name}\n\n```text\n{rules}\n```\n" in FORMATS_PAGE
    assert main(["traces", "formats", name]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert all(f"  {rule}" in printed for rule in rules.splitlines())
    assert main(["traces", "formats", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["formats"][name].strip() == rules


def test_the_table_of_the_docs_lists_every_format() -> None:
    table = FORMATS_PAGE.partition("## Options and files")[0]
    assert set(re.findall(r"\[([\w-]+)\]\(#\1\)", table)) == set(FORMATS)


def test_the_tables_of_the_docs_list_every_field() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", DOCS, flags=re.MULTILINE))
    for properties in (trace_schema(), *trace_schema()["$defs"].values()):
        assert set(properties["properties"]) <= documented


def test_the_example_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = {name: json.loads(text) for name, text in re.findall(r"`([\w.]+)`[^\n]*\n\n```json\n(.*?)```", DOCS, re.S)}
    commands = re.findall(r"^echo-cli (traces .*)$", "".join(re.findall(r"```sh\n(.*?)```", DOCS, re.S)), re.M)
    assert set(blocks) == {"chat.jsonl", "traces.jsonl"} and len(commands) == 3
    Path("chat.jsonl").write_text(json.dumps(blocks["chat.jsonl"]) + "\n")
    for command in commands:
        assert main(command.split()) == 0
    assert list(read_traces(Path("traces.jsonl"))) == [parse_trace(json.dumps(blocks["traces.jsonl"]).encode())]
    chat = {key: value for key, value in blocks["chat.jsonl"].items() if key != "task_id"}
    assert json.loads(Path("messages.jsonl").read_text()) == chat
    masks = json.loads(Path("masks.jsonl").read_text())
    assert set(masks) <= set(re.findall(r"`(\w+)`", DOCS))
