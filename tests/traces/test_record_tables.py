"""Tables as containers: Parquet files and data sets give the same traces as JSON Lines with the same records."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from echo_cli.cli.main import main
from echo_cli.errors import EchoError
from echo_cli.trace import Trace, trace_line
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.containers import hub_datasets
from echo_cli.traces.containers.tables import rows
from echo_cli.traces.cursor import Cursor
from echo_cli.traces.json_records import records
from echo_cli.traces.recognition import format_named, recognise

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def chat(number: int) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command":  "ls"}'}}
    messages = [
        {"role": "user", "content": f"Look {number}."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "é\r\n\0"},
    ]
    return {"task_id": f"t{number}", "messages": messages, "reward": number / 2}


CHATS = [chat(number) for number in range(200)]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in CHATS))
    return path


def traces(path: Path, name: str = "openai") -> list[bytes]:
    found = list(format_named(name).read(path, ImportOptions()))
    assert all(isinstance(trace, Trace) for trace in found), found
    return [trace_line(trace) for trace in found if isinstance(trace, Trace)]


def test_a_parquet_file_gives_the_traces_of_the_same_json_lines_whatever_its_name(lines: Path, tmp_path: Path) -> None:
    path = tmp_path / "chats.bin"
    parquet.write_table(pyarrow.Table.from_pylist(CHATS), path, row_group_size=70)
    assert recognise(path).name == "openai"
    assert traces(path) == traces(lines)
    assert [entry[0] for entry in rows(path, Cursor(number=150)) if isinstance(entry, tuple)] == [
        f"{path}[{n}]" for n in range(150, 200)
    ]


@pytest.mark.parametrize("name", ["messages", "whole"])
def test_columns_of_json_text_are_read_as_what_they_hold(name: str, lines: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.parquet"
    texts = [{**record, "messages": json.dumps(record["messages"])} for record in CHATS]
    table = pyarrow.Table.from_pylist(texts)
    if name == "whole":  # a column of type JSON, as `datasets` writes messages of mixed types
        index = table.schema.get_field_index("messages")
        column = table.column("messages").combine_chunks().cast(pyarrow.json_())
        table = table.set_column(index, pyarrow.field("messages", pyarrow.json_()), column)
    parquet.write_table(table, path)
    assert traces(path) == traces(lines)


def test_text_that_is_not_an_array_of_objects_stays_text(tmp_path: Path) -> None:
    texts = ['{"a": 1}', "[1]", "[]", "[{", "plain"]
    path = tmp_path / "text.parquet"
    parquet.write_table(pyarrow.table({"system": texts}), path)
    assert [entry[1] for entry in records(path) if isinstance(entry, tuple)] == [{"system": text} for text in texts]


def test_values_without_a_json_type_become_json_values(tmp_path: Path) -> None:
    import datetime
    import decimal

    values = {
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5),
        "price": decimal.Decimal("1.50"),
        "score": float("nan"),
        "text": b"h\xc3\xa9",
        "image": b"\xff\xfe",
        "kinds": {"a": 1, "b": None},
        "list": [1.5, None],
    }
    path = tmp_path / "values.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([values]), path)
    (row,) = records(path)
    assert isinstance(row, tuple)
    assert row[1] == {
        **{"when": "2026-01-02 03:04:05", "price": 1.5, "text": "hé", "image": "//4=", "kinds": {"a": 1}},
        "list": [1.5, None],
    }
    json.dumps(row[1], allow_nan=False)


def test_a_row_that_cannot_be_read_is_refused_alone(tmp_path: Path) -> None:
    damaged = pyarrow.array([b"ok", b"\xff"]).view(pyarrow.string())
    path = tmp_path / "damaged.parquet"
    parquet.write_table(pyarrow.table({"text": damaged}), path)
    assert list(records(path)) == [(f"{path}[0]", {"text": "ok"}), Refusal(f"{path}[1]", "not UTF-8")]
    parquet.write_table(pyarrow.table({"n": [float("inf")]}), path)
    assert list(records(path)) == [Refusal(f"{path}[0]", "a number is infinite")]


def test_a_cut_parquet_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(CHATS), path)
    path.write_bytes(path.read_bytes()[:-10])
    assert main(["traces", "import", str(path), "-o", str(tmp_path / "out.jsonl")]) == 2
    message, tip = capsys.readouterr().err.strip().split("\n")
    assert message.startswith(f"error: cannot read {path}: Parquet") and "copy" in tip
    assert not (tmp_path / "out.jsonl").exists()


def test_a_format_of_text_names_a_table_as_such(tmp_path: Path) -> None:
    path = tmp_path / "chats.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(CHATS), path)
    with pytest.raises(EchoError, match="is a table, not text"):
        next(format_named("asciinema").read(path, ImportOptions()))


def test_a_trajectory_file_can_be_a_table(lines: Path, tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in traces(lines)]), path)
    assert recognise(path).name == "echo"
    assert traces(path, "echo") == traces(lines)


@pytest.fixture
def saved(lines: Path, tmp_path: Path) -> Path:
    """A folder with a saved data set of two splits, and one without splits inside it."""
    whole = datasets.load_dataset("json", data_files=str(lines), split="train", cache_dir=str(tmp_path / "cache"))
    datasets.DatasetDict(train=whole, test=whole.select(range(3))).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_data_set_gives_the_traces_of_its_records(lines: Path, saved: Path) -> None:
    assert traces(saved / "train") == traces(lines)
    assert traces(Path(f"hf:{saved}:test")) == traces(lines)[:3]
    assert recognise(Path(f"hf:{saved}:test")).name == "openai"
    assert len(list(rows(saved / "train", Cursor(number=190)))) == 10


@pytest.mark.parametrize(
    ("words", "problem", "tip"),
    [
        ("", "has the splits train, test", "name one: hf:"),
        (":tset", "no such split", "did you mean 'test'?"),
        ("/train:x", "this data set has no splits", "omit"),
        (":a:b:c", "is not the name of a data set", "hf:ORG/NAME"),
    ],
)
def test_a_name_that_is_not_one_split_is_an_error(saved: Path, words: str, problem: str, tip: str) -> None:
    with pytest.raises(EchoError, match=problem) as raised:
        next(rows(Path(f"hf:{saved}{words}")))
    assert tip in str(raised.value.tip)


def test_a_folder_that_is_not_saved_is_not_looked_for_on_the_hub(lines: Path, tmp_path: Path) -> None:
    with pytest.raises(EchoError, match="is not a folder that `datasets` saved"):
        next(rows(Path(f"hf:{tmp_path}")))


def test_a_data_set_of_the_hub_is_read_from_the_cache(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_datasets, "_load", hub_datasets._load.__wrapped__)
    (tmp_path / "plain").mkdir()
    for split, count in (("train", 5), ("test", 2)):
        part = "".join(lines.read_text().splitlines(keepends=True)[:count])
        (tmp_path / "plain" / f"{split}.jsonl").write_text(part)
    datasets.load_dataset(str(tmp_path / "plain"), cache_dir=str(cache))
    (made,) = cache.glob("plain/*/0.0.0/*/")
    there = cache / "org___name" / "default" / "0.0.0" / ("a" * 40)
    shutil.copytree(made, there)
    for file in there.glob("plain-*"):
        file.rename(there / file.name.replace("plain", "name"))
    assert traces(Path("hf:org/name:test")) == traces(lines)[:2]
    assert traces(Path("hf:org/name:default:train")) == traces(lines)[:5]
    assert "asking the hub for the data set org/name" in capsys.readouterr().err
    with pytest.raises(EchoError, match="has the splits train, test"):
        next(rows(Path("hf:org/name")))
    with pytest.raises(EchoError, match="cannot load hf:org/other"):
        next(rows(Path("hf:org/other")))


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_without_the_extra_the_error_says_how_to_install_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(CHATS), tmp_path / "a.parquet")
    find = importlib.util.find_spec
    hidden = ("pyarrow", "datasets")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name in hidden else find(name, *rest))
    name = str(tmp_path / "a.parquet") if kind == "parquet" else "hf:org/name"
    assert main(["traces", "import", name, "-o", str(tmp_path / "out.jsonl")]) == 2
    message, tip = capsys.readouterr().err.strip().split("\n")
    assert "which is not installed" in message and "datasets" in tip
