"""Tasksets: the rows of a dataset as entries of a list of tasks (OpenEnv RFC 006).

JSONL and CSV files are read with the standard library, whatever is installed, so that a file means the same everywhere.
Parquet, folders and datasets of a hub are read with `datasets`, from files on this machine alone.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from echo_cli.config.episodes.tasks import TABLES, TaskColumns, TasksConfig, is_on_hub
from echo_cli.errors import EchoError, first_line, missing_package
from echo_cli.files import read_text
from echo_cli.text import escape_unprintable, suggest

_DATA_FILES = [f"*{suffix}" for suffix in (*TABLES, ".json", ".jsonl.gz", ".csv.gz", ".arrow", ".md", ".yaml")]
"""Files of a dataset repository that are fetched: data and its description, never code."""

_TIP = "environment.tasks.dataset is relative to the working directory, or a hub id"
_SHOWN_CHARS = 300
_CARD = "---\n"
"""Line around the YAML at the start of a dataset's card."""
_NUMBERS = frozenset("-0123456789")


@dataclass(frozen=True)
class Row:
    """A row of a dataset, its place for messages, and the split of the run that the config gives it, if any."""

    place: str
    split: str | None
    values: Mapping[str, Any]


def task_entries(config: TasksConfig, *, fetch: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each row of the config's dataset as an entry of a task list with `reset`, and its place.

    Args:
        fetch: whether a dataset of a hub that is not on this machine may be fetched.

    Raises:
        EchoError: the dataset does not exist, cannot be read, is empty, or lacks a column or a split.
    """
    columns = config.columns
    assert config.dataset is not None and columns is not None
    name, empty = escape_unprintable(config.dataset), True
    for row in _rows(config, columns, fetch):
        empty = False
        if (missing := next((column for column in columns.named if column not in row.values), None)) is not None:
            tip = suggest(missing, list(map(str, row.values)), "columns")
            raise EchoError(f"the dataset {name} has no column '{escape_unprintable(missing)}' ({row.place})", tip)
        yield _entry(row, columns), row.place
    if empty:
        raise EchoError(f"the dataset {name} has no rows", "name another split or file in environment.tasks")


def _entry(row: Row, columns: TaskColumns) -> dict[str, Any]:
    values = row.values
    entry: dict[str, Any] = {"reset": _reset(row, columns)}
    for key in ("question", "answer", "id", "family", "split"):
        if (column := getattr(columns, key)) is not None and (value := values[column]) is not None:
            entry[key] = str(value) if key in ("id", "family") or isinstance(value, _Cell) else value
    if columns.actions is not None and (actions := values[columns.actions]) is not None:
        entry["actions"] = actions.split("\n") if isinstance(actions, str) else actions
    if row.split is not None:
        entry["split"] = row.split
    return entry


def _reset(row: Row, columns: TaskColumns) -> Any:
    """Return the reset arguments of a row, without nulls."""
    wanted = columns.reset
    if isinstance(wanted, str):
        whole = row.values[wanted]
        if isinstance(whole, str):
            with suppress(ValueError, RecursionError):  # the task list says that other text is no mapping
                whole = json.loads(whole)
        return _without_nulls(whole) if isinstance(whole, dict) else whole
    pairs = wanted.items() if isinstance(wanted, dict) else zip(wanted, wanted, strict=True)
    found = {name: row.values[column] for name, column in pairs}
    return {name: _number(value) for name, value in _without_nulls(found).items()}


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _number(value: Any) -> Any:
    """Return a cell of a CSV file as the number or truth value that it spells as JSON, and any other value as it is."""
    if not isinstance(value, _Cell):
        return value
    if value in ("true", "false") or value[:1] in _NUMBERS:
        with suppress(ValueError):
            return json.loads(value)
    return str(value)


class _Cell(str):
    """Text of a cell of a CSV file, which has no types."""


def _rows(config: TasksConfig, columns: TaskColumns, fetch: bool) -> Iterator[Row]:
    assert config.dataset is not None
    splits: Mapping[str | None, str]
    splits = {None: config.split} if isinstance(config.split, str) else {ours: of for ours, of in config.split.items()}
    if is_on_hub(config.dataset):
        folder = _snapshot(config.dataset, config.revision, fetch)
        yield from _read_with_datasets(config, folder, splits, columns)
        return
    path = Path(config.dataset)
    if path.is_dir() or path.suffix == ".parquet":
        yield from _read_with_datasets(config, path, splits, columns)
        return
    read = {".jsonl": _read_rows, ".csv": _read_csv}.get(path.suffix)
    if read is None and path.exists():
        raise EchoError(
            f"unsupported dataset '{escape_unprintable(path)}'", f"name a file with {', '.join(TABLES)}, or a folder"
        )
    if dict(splits) != {None: "train"} or config.subset is not None:
        key = "subset" if config.subset is not None else "split"
        tip = "name the column that has each row's split in columns.split, or omit it"
        raise EchoError(f"environment.tasks.{key} has no effect: {escape_unprintable(path)} is a single file", tip)
    for line, values in (read or _read_rows)(path):
        yield Row(f"{escape_unprintable(path)}:{line}", None, values)


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, value in read_jsonl(path, "dataset", _TIP):
        if not isinstance(value, dict):
            place = f"{escape_unprintable(path)}:{number}"
            raise EchoError(f"a row is not a mapping of columns ({place})", "write one JSON object per line")
        yield number, value


def read_jsonl(path: Path, what: str, tip: str) -> Iterator[tuple[int, Any]]:
    """Yield the value of each line that is not blank, with its number.

    Raises:
        EchoError: the file cannot be read, with `tip`, or a line is not JSON; `what` names the content.
    """
    for number, line in enumerate(read_text(path, what, tip).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_once, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            place = f"{escape_unprintable(path)}:{number}"
            raise EchoError(f"not JSON: {error} ({place})", "write one JSON object per line") from None
        yield number, value


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"key '{twice}' is given twice")
    return dict(pairs)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a CSV file with a header; an empty cell is null."""
    reader = csv.reader(io.StringIO(read_text(path, "dataset", _TIP), newline=""), strict=True)
    try:
        header = next(reader, [])
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                place = f"{escape_unprintable(path)}:{reader.line_num}"
                tip = "quote cells that contain commas or newlines"
                raise EchoError(f"a row has {len(cells)} cells, the header {len(header)} ({place})", tip)
            yield (
                reader.line_num,
                {name: _Cell(cell) if cell else None for name, cell in zip(header, cells, strict=True)},
            )
    except csv.Error as error:
        place = f"{escape_unprintable(path)}:{reader.line_num}"
        raise EchoError(f"not CSV: {error} ({place})", "write commas between cells, and quotes around text") from None


def _read_with_datasets(
    config: TasksConfig, path: Path, splits: Mapping[str | None, str], columns: TaskColumns
) -> Iterator[Row]:
    """Yield the rows of splits of a Parquet file or a folder."""
    if importlib.util.find_spec("datasets") is None:
        raise missing_package("environment.tasks.dataset", "datasets", "datasets")
    name = escape_unprintable(str(config.dataset))
    if not path.exists():
        raise EchoError(f"the dataset {name} does not exist", "name a file, a folder, or a dataset of the hub")
    if path.is_dir():
        _check_card(path, name)
    for ours, theirs in splits.items():
        try:
            for number, values in enumerate(_streamed(path, config.subset, theirs, columns)):
                yield Row(f"{name} {theirs}, row {number}", ours, values)
        except Exception as error:  # the readers of the formats raise errors of many kinds
            said = escape_unprintable(first_line(error))[:_SHOWN_CHARS]
            tip = "check environment.tasks: dataset, subset and split"
            raise EchoError(f"cannot read the dataset {name}: {said}", tip) from None


def _check_card(folder: Path, name: str) -> None:
    """Raise an EchoError if the card of a dataset, its README.md, has data files outside its folder, or cannot be read.

    `datasets` would fetch or read them.
    """
    card = folder / "README.md"
    text = read_text(card, "dataset's card", "repair README.md in the dataset's folder") if card.is_file() else ""
    if not text.startswith(_CARD):
        return
    try:
        header = yaml.safe_load(text.removeprefix(_CARD).partition(f"\n{_CARD}")[0])
    except yaml.YAMLError:
        raise EchoError(f"the card of the dataset {name} is not valid YAML", "repair README.md in its folder") from None
    configs = header.get("configs", []) if isinstance(header, dict) else []
    outside = next((text for text in _texts(configs) if "://" in text or text.startswith("/") or ".." in text), None)
    if outside is not None:
        tip = "name the data files themselves in environment.tasks.dataset"
        raise EchoError(f"the dataset {name} has files elsewhere: {escape_unprintable(outside)[:_SHOWN_CHARS]}", tip)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _streamed(path: Path, subset: str | None, split: str, columns: TaskColumns) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split without a copy of them; columns that no task needs are not decoded."""
    import datasets

    whole: dict[str, Any] = {"path": str(path), "name": subset}
    if path.is_file():
        whole = {"path": "parquet", "data_files": str(path)}
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as locks:  # in the place of a cache, in which nothing would remain but locks
        table = datasets.load_dataset(**whole, split=split, streaming=True, cache_dir=locks)
        there = table.column_names
        if there is not None and set(columns.named) <= set(there):
            table = table.select_columns(list(columns.named))
        yield from table


def _snapshot(dataset: str, revision: str | None, fetch: bool) -> Path:
    """Return the folder of a hub's dataset on this machine; one that is not there is fetched if `fetch` allows it."""
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise missing_package("environment.tasks.dataset", "datasets", "datasets") from None
    name = escape_unprintable(dataset)
    wanted: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "allow_patterns": _DATA_FILES}
    try:
        return Path(snapshot_download(dataset, **wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    if not fetch or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        tip = f"hf download --repo-type dataset {name}, or --fetch-model; for a file, write its path"
        raise EchoError(f"the dataset {name} is not on this machine", tip)
    constants.HF_HUB_OFFLINE = False
    try:
        return Path(snapshot_download(dataset, **wanted))
    except Exception as error:  # the HTTP client's errors share no base class, and the server may not be a hub
        tip = "check its name, the network and HF_ENDPOINT; for a private dataset, log in: hf auth login"
        raise EchoError(f"cannot fetch the dataset {name}: {escape_unprintable(first_line(error))}", tip) from error
    finally:
        constants.HF_HUB_OFFLINE = True
