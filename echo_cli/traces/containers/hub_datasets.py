"""Data sets of Hugging Face, by name (`hf:ORG/NAME`) or in a folder that the library `datasets` saved."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from echo_cli.errors import EchoError, first_line, missing_package
from echo_cli.terminal import put
from echo_cli.text import escape_unprintable, suggest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HUB = "hf:"
"""Prefix of a data set's name among the files to import: hf:ORG/NAME, hf:ORG/NAME:WORD or hf:ORG/NAME:CONFIG:SPLIT."""

_MOST_WORDS = 2
"""Maximum number of words after a data set's name: its config and its split."""
_TIP = "name it hf:ORG/NAME, hf:ORG/NAME:SPLIT, hf:ORG/NAME:CONFIG:SPLIT, or a folder"

_MOST_WORDS = 2
"""Maximum number of words after a data set's name: its config and its split."""
_TIP = "name it hf:ORG/NAME, hf:ORG/NAME:SPLIT, hf:ORG/NAME:CONFIG:SPLIT, or a folder"

_SPLITS, _STATE = "dataset_dict.json", "state.json"
"""Files in a folder that `save_to_disk` made, of a data set with splits and of one without."""


def is_dataset(path: Path) -> bool:
    """Return whether the path is the name of a data set, or a folder that the library `datasets` saved."""
    return str(path).startswith(HUB) or _is_saved(path)


def dataset_of(path: Path) -> Dataset:
    """Return the data set, in the library's cache or its own folder; a line on stderr says what the hub is asked for.

    Raises:
        EchoError: the extra `datasets` is not installed, the data set cannot be loaded, or its name is not that of one
            split.
    """
    for package in ("datasets", "pyarrow"):
        if importlib.util.find_spec(package) is None:
            raise missing_package("a data set", package, "datasets")
    return _load(str(path))


def size_of(dataset: Dataset) -> int:
    """Return the size of a data set's rows in memory, bytes."""
    return int(dataset.data.nbytes)


@cache  # an import reads the first rows several times
def _load(name: str) -> Dataset:
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    place, *words = name.removeprefix(HUB).split(":")
    shown = escape_unprintable(name)
    if len(words) > _MOST_WORDS:
        raise EchoError(f"{shown} is not the name of a data set", _TIP)
    try:
        if _is_saved(Path(place)):
            return _split_of(datasets.load_from_disk(place), shown, *words[-1:])
        return _of_hub(place, words, shown)
    except EchoError:
        raise
    except Exception as error:  # the errors share no base class
        raise EchoError(f"cannot load {shown}: {escape_unprintable(first_line(error))}", _TIP) from error


def _of_hub(place: str, words: list[str], shown: str) -> Dataset:
    """Load a data set that is not saved; one word is a config if the data set has such a config, or else a split."""
    import datasets

    if Path(place).exists():  # its card could name files of other machines
        raise EchoError(f"{shown} is not a folder that `datasets` saved", "name its files, without hf:")
    put(f"asking the hub for the data set {place}", err=True)
    config, split = words if len(words) == _MOST_WORDS else (None, next(iter(words), None))
    if config is None and split in (datasets.get_dataset_config_names(place) if split else ()):
        config, split = split, None
    found = datasets.load_dataset(place, config, split=split)
    return found if split else _split_of(found, shown)


def _split_of(found: Dataset | DatasetDict, shown: str, split: str | None = None) -> Dataset:
    """Return the named split of a data set, or the only one."""
    if not isinstance(found, dict):
        if split is not None:
            raise EchoError(f"{shown}: this data set has no splits", "omit the split")
        return found
    if split is None and len(found) > 1:
        begin, names = shown if shown.startswith(HUB) else f"{HUB}{shown}", [escape_unprintable(name) for name in found]
        raise EchoError(f"{shown} has the splits {', '.join(names)}", f"name one: {begin}:{names[0]}")
    name = split or next(iter(found))
    if name not in found:
        raise EchoError(f"{shown}: no such split", suggest(name, found, "splits"))
    return found[name]


def _is_saved(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in (_SPLITS, _STATE))
