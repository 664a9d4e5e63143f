"""Rows of tables as records: Parquet files, and Hugging Face data sets.

A null in a row is a field that the record lacks: a table has every column, and a struct every field, in each row. A
text column that holds a JSON array of objects, such as messages or tools, becomes that array, and so does a column of
type JSON. Bytes are text if they are UTF-8, and base64 otherwise.
"""

from __future__ import annotations

import base64
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echo_cli.errors import EchoError, missing_package
from echo_cli.text import escape_unprintable
from echo_cli.traces.builder import Record, Refusal
from echo_cli.traces.containers.hub_datasets import dataset_of, is_dataset, size_of
from echo_cli.traces.cursor import Cursor
from echo_cli.traces.strict_json import parse_json

if TYPE_CHECKING:
    import pyarrow

Convert = Callable[[Any], Any]

EXTRA = "datasets"
_PARQUET = b"PAR1"
_BATCH = 64
"""Number of rows that are held at a time."""
_BUFFER = 2**20
"""Size of the parts in which a Parquet file is read, bytes."""


def is_table(path: Path) -> bool:
    """Return whether the path is a data set or, by its content, a Parquet file.

    Raises:
        OSError: the file cannot be read.
    """
    return is_dataset(path) or is_parquet(path)


def is_parquet(path: Path) -> bool:
    """Return whether the path is a Parquet file, by its content.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.is_file():  # a pipe cannot be read again
        return False
    with path.open("rb") as file:
        return file.read(len(_PARQUET)) == _PARQUET


def rows(path: Path, cursor: Cursor | None = None) -> Iterator[Record | Refusal]:
    """Yield the rows of a table as records, a few in memory at a time.

    Args:
        cursor: place to begin at, moved to each row.

    Raises:
        EchoError: the extra `datasets` is not installed, or the table cannot be read.
        OSError: the file cannot be read.
    """
    cursor = Cursor() if cursor is None else cursor
    number = cursor.number
    for batch in _dataset_batches(path, cursor) if is_dataset(path) else _parquet_batches(path, cursor):
        convert = _struct({field.name: _column(field.type) for field in batch.schema})
        for row in range(batch.num_rows):
            where, cursor.number = f"{path}[{number}]", number
            try:
                (value,) = batch.slice(row, 1).to_pylist(maps_as_pydicts="lossy")
                yield where, convert(value)
            except ValueError as error:  # among them text that is not UTF-8, which Arrow does not check
                yield Refusal(where, "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error))
            number += 1


def _dataset_batches(path: Path, cursor: Cursor) -> Iterator[pyarrow.Table]:
    dataset = dataset_of(path)
    size, total = size_of(dataset), max(1, len(dataset))
    cursor.consumed = lambda: size * cursor.number // total
    yield from dataset.select(range(cursor.number, len(dataset))).with_format("arrow").iter(_BATCH)


def _parquet_batches(path: Path, cursor: Cursor) -> Iterator[pyarrow.RecordBatch]:
    if importlib.util.find_spec("pyarrow") is None:
        raise missing_package("a Parquet file", "pyarrow", EXTRA)
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path, buffer_size=_BUFFER)
        size, total, start = path.stat().st_size, max(1, file.metadata.num_rows), cursor.number
        cursor.consumed = lambda: size * cursor.number // total
        groups, skipped = 0, 0
        while groups < file.num_row_groups and skipped + file.metadata.row_group(groups).num_rows <= start:
            skipped += file.metadata.row_group(groups).num_rows
            groups += 1
        for batch in file.iter_batches(_BATCH, row_groups=range(groups, file.num_row_groups), use_threads=False):
            if skipped + batch.num_rows > start:
                yield batch.slice(max(0, start - skipped))
            skipped += batch.num_rows
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, pyarrow.ArrowTypeError) as error:
        name, problem = escape_unprintable(path), str(error).partition("\n")[0]
        raise EchoError(f"cannot read {name}: {problem}", "copy the Parquet file again") from error


def _column(kind: pyarrow.DataType) -> Convert | None:
    """Return the conversion of a column's values; None if they stay as they are."""
    from pyarrow import types

    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return _parse_objects
    return _conversion(kind)


def _conversion(kind: pyarrow.DataType) -> Convert | None:
    """Return the conversion of an Arrow type's values into JSON values; None if they stay as they are."""
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.JsonType):
        return parse_json
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _conversion(kind.storage_type)
    if types.is_dictionary(kind):
        return _conversion(kind.value_type)
    if types.is_struct(kind):
        return _struct({field.name: _conversion(field.type) for field in kind})
    if types.is_map(kind):
        return partial(_map_values, _conversion(kind.item_type))
    if any(is_list(kind) for is_list in (types.is_list, types.is_large_list, types.is_fixed_size_list)):
        return partial(_items, _conversion(kind.value_type))
    if types.is_floating(kind):
        return _finite
    if types.is_decimal(kind):
        return float
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return _text
    unchanged = (types.is_boolean, types.is_integer, types.is_string, types.is_large_string, types.is_null)
    return None if any(is_kind(kind) for is_kind in unchanged) else str


def _struct(fields: Mapping[str, Convert | None]) -> Convert:
    def convert(value: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, of in fields.items():
            if value[name] is not None and (entry := value[name] if of is None else of(value[name])) is not None:
                found[name] = entry
        return found

    return convert


def _items(convert: Convert | None, values: list[Any]) -> list[Any]:
    return values if convert is None else [None if value is None else convert(value) for value in values]


def _map_values(convert: Convert | None, values: Mapping[Any, Any]) -> dict[str, Any]:
    return dict(zip(map(str, values), _items(convert, list(values.values())), strict=True))


def _finite(value: float) -> float | None:
    """Return a number, and None for NaN, with which tables mark a missing number.

    Raises:
        ValueError: the number is infinite.
    """
    if math.isinf(value):
        raise ValueError("a number is infinite")
    return None if math.isnan(value) else value


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def _parse_objects(text: str) -> Any:
    """Return the array of objects that a text is as JSON, or else the text."""
    if not text.lstrip().startswith("["):
        return text
    try:
        value = parse_json(text)
    except ValueError:
        return text
    return value if value and all(isinstance(item, dict) for item in value) else text
