"""Tasks, loaded from a file, the config or a range of seeds into disjoint splits."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import yaml

from echo_cli.config.episodes.tasks import TasksConfig
from echo_cli.config.mcp import action_line
from echo_cli.config.yaml_file import key_lines, read_yaml
from echo_cli.environments.taskset import read_jsonl, task_entries
from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable, suggest

Split = Literal["train", "validation", "heldout"]
OOD, OTHER_WORLD = "ood", "other_world"
_SPLITS = (*get_args(Split), OOD, OTHER_WORLD)
_KEYS = ("reset", "id", "split", "family", "actions", "question", "answer")
_LONGEST_ID = 64  # characters
_WORD = re.compile(r"(?!(?:true|false|null)$)[A-Za-z_][\w./-]*", re.ASCII)


@dataclass(frozen=True)
class Task:
    """One problem: `reset_arguments` start its episode in the environment."""

    task_id: str
    split: Split
    family: str
    reset_arguments: Mapping[str, Any]
    question: str = ""
    """Text that the policy is shown before what the environment shows; empty if the environment states the task."""
    answer: Any = None
    """Reference answer for graders, a JSON value, which the policy never sees; None if it has none."""
    max_turns: int | None = None
    """Maximum number of turns that the task itself sets; None for that of the config alone."""

    def asks_the_same_as(self, other: Task) -> bool:
        """Return whether two tasks have the same reset arguments and question."""
        return (self.reset_arguments, self.question) == (other.reset_arguments, other.question)

    def to_json(self) -> dict[str, Any]:
        """Return the task as a grader sees it."""
        return {
            "id": self.task_id,
            "split": self.split,
            "family": self.family,
            "reset": dict(self.reset_arguments),
            "question": self.question,
            "answer": self.answer,
        }


@dataclass(frozen=True)
class TaskSplits:
    """The tasks of a run: `train` for training, `validation` to choose a checkpoint, `heldout` for reported figures."""

    train: Sequence[Task]
    validation: Sequence[Task]
    heldout: Sequence[Task]
    repeated: int = field(default=0, kw_only=True)
    """Number of rows of a dataset that are left out, because another row of their split has the same content."""

    def __post_init__(self) -> None:
        for name, tasks in self.by_name.items():
            if any(task.split != name for task in tasks):
                raise ValueError(f"a task of another split is among the {name} tasks")
        ids = [task.task_id for task in (*self.train, *self.validation, *self.heldout)]
        if len(set(ids)) != len(ids):
            raise ValueError("task ids must be unique across the splits")

    @property
    def by_name(self) -> Mapping[Split, Sequence[Task]]:
        return {"train": self.train, "validation": self.validation, "heldout": self.heldout}

    @property
    def small(self) -> Mapping[Split, int]:
        """Number of tasks of each split with fewer than two tasks, whose figures are the luck of one task."""
        return {name: len(tasks) for name, tasks in self.by_name.items() if len(tasks) < 2}


@dataclass(frozen=True)
class TaskList:
    """Tasks in their splits, with the known solutions."""

    splits: TaskSplits
    actions: Mapping[str, tuple[str, ...]]
    """Lines that solve a task, per task id."""
    ood: tuple[Task, ...]
    """Out-of-distribution tasks; their `Task.split` is heldout."""
    other_world: tuple[Task, ...] = ()
    """Tasks of other worlds, which only the explorers of a placebo play; their `Task.split` is train."""

    @property
    def all(self) -> tuple[Task, ...]:
        """Every task, of whatever split."""
        splits = self.splits
        return (*splits.train, *splits.validation, *splits.heldout, *self.ood, *self.other_world)


@dataclass(frozen=True)
class _Entry:
    """A task as listed at `place`, a file and line or a config key. `split` is None if the entry has none."""

    place: str
    task_id: str
    split: str | None
    family: str
    arguments: Mapping[str, Any]
    actions: tuple[str, ...]
    question: str = ""
    answer: Any = None

    @property
    def content(self) -> str:
        """What the task asks, as text: its reset arguments and its question, whatever its id and its answer."""
        return _canonical({"reset": self.arguments, "question": self.question} if self.question else self.arguments)


def load_tasks(config: TasksConfig, *, fetch: bool = False) -> TaskList:
    """Load the tasks of `file`, `items`, `seeds` or `dataset`. A relative path is resolved from the working directory.

    Entries without a split are assigned one by the SHA-256 of their content (`splits_by_hash`), so that most tasks keep
    their split when others are added. Of rows of a dataset with the same content, the first is a task.

    Args:
        fetch: whether a dataset of a hub that is not on this machine may be fetched.

    Raises:
        EchoError: the file cannot be read, an entry is not a task, an id occurs twice, two splits have the same task,
            or no task is left to train on. The message names the file and the line.
    """
    entries = list(_entries(config, fetch))
    if not entries:
        raise EchoError(f"{escape_unprintable(config.file or 'environment.tasks')} has no tasks", "list at least one")
    without = {entry.content for entry in entries if entry.split is None}
    assigned = splits_by_hash(without, config.validation, config.heldout)
    _refuse_tasks_of_two_splits(entries, assigned)
    repeated = 0
    if config.dataset is not None:
        first = {entry.content: entry for entry in reversed(entries)}
        repeated = len(entries) - len(first)
        entries = [entry for entry in entries if first[entry.content] is entry]
    _refuse_double_ids(entries)
    found: dict[str, list[Task]] = {name: [] for name in _SPLITS}
    for entry in entries:
        name = entry.split or assigned[entry.content]
        split: Split = next(
            (known for known in get_args(Split) if known == name), "train" if name == OTHER_WORLD else "heldout"
        )
        task = Task(entry.task_id, split, entry.family, entry.arguments, entry.question, entry.answer)
        found[name].append(task)
    if not found["train"]:
        counts = ", ".join(f"{len(found[name])} {name}" for name in _SPLITS if found[name])
        raise EchoError(
            f"no task is left to train on: {len(entries)} in total, {counts}",
            "list more tasks, lower environment.tasks.validation and heldout, or set the split of some entries",
        )
    train, validation, heldout = (tuple(found[name]) for name in get_args(Split))
    splits = TaskSplits(train, validation, heldout, repeated=repeated)
    actions = {entry.task_id: entry.actions for entry in entries if entry.actions}
    return TaskList(splits, actions, tuple(found[OOD]), tuple(found[OTHER_WORLD]))


def _refuse_tasks_of_two_splits(entries: Sequence[_Entry], assigned: Mapping[str, Split]) -> None:
    """Raise an EchoError if two splits have a task of the same content."""
    split_of: dict[str, tuple[str, _Entry]] = {}
    for entry in entries:
        name = entry.split or assigned[entry.content]
        before, first = split_of.setdefault(entry.content, (name, entry))
        if before != name:
            same = "the same reset arguments and question are" if entry.question else "the same reset arguments are"
            raise EchoError(
                f"{same} in {before} ({first.place}) and in {name} ({entry.place})",
                "assign every task to one split: a training task cannot be held out",
            )


def splits_by_hash(canonicals: Collection[str], validation: float, heldout: float) -> dict[str, Split]:
    """Return the split of each of N distinct tasks: its hash, scaled to [0, 1), compared with the two fractions.

    If validation or heldout would have more or fewer tasks than its fraction by more than a twentieth of N, or by more
    than one task, it is cut at the nearest size within these bounds; train has no fewer either. A split whose fraction
    is above 0 has a task if N is at least the number of such splits. Splits do not depend on the order of the tasks.
    """
    ranked = sorted(canonicals, key=_hashed)
    below = [sum(_hashed(text) < bound for text in ranked) for bound in (validation, validation + heldout)]
    first, second = _sizes((below[0], below[1] - below[0]), (validation, heldout), len(ranked))
    names: list[tuple[Split, Sequence[str]]] = [
        ("validation", ranked[:first]),
        ("heldout", ranked[first : first + second]),
        ("train", ranked[first + second :]),
    ]
    return {text: name for name, of in names for text in of}


def _sizes(counts: Sequence[int], fractions: Sequence[float], tasks: int) -> list[int]:
    """Return the sizes of the splits beside train: `counts`, moved to the nearest that `splits_by_hash` allows."""
    every = (*fractions, 1 - sum(fractions))
    asked = [fraction > 1e-9 for fraction in every]
    least = [int(some and tasks >= sum(asked)) for some in asked]
    tolerance = max(1.0, tasks / 20)
    low = [max(math.ceil(of * tasks - tolerance), one) for of, one in zip(every, least, strict=True)]
    high = [max(math.floor(of * tasks + tolerance), one) for of, one in zip(every, least, strict=True)]
    sizes = [min(max(count, fewest), most) for count, fewest, most in zip(counts, low, high, strict=False)]

    def excess(split: int) -> float:
        return sizes[split] - fractions[split] * tasks

    splits = range(len(sizes))
    while tasks - sum(sizes) < low[-1] and (givers := [split for split in splits if sizes[split] > least[split]]):
        sizes[max(givers, key=excess)] -= 1
    return sizes


def _hashed(canonical: str) -> float:
    return int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:8], "big") / 2**64


def _entries(config: TasksConfig, fetch: bool) -> Iterator[_Entry]:
    if config.seeds is not None:
        for seed in range(config.seeds):
            yield _entry({"seed": seed}, f"environment.tasks.seeds: {seed}")
    elif config.dataset is not None:
        for value, place in task_entries(config, fetch=fetch):
            yield _entry(value, place)
    elif config.file is not None:
        path = Path(config.file)
        read = {".jsonl": _read_jsonl, ".yaml": _read_list, ".yml": _read_list}.get(path.suffix)
        if read is None:
            raise EchoError(f"unsupported task file '{escape_unprintable(path)}'", "name a .yaml or .jsonl file")
        for line, value in read(path):
            yield _entry(value, f"{escape_unprintable(path)}:{line}")
    else:
        for number, value in enumerate(config.items):
            yield _entry(value, f"environment.tasks.items.{number}")


def _read_list(path: Path) -> Iterator[tuple[int, Any]]:
    node, values = read_yaml(path, "tasks", "environment.tasks.file is relative to the working directory")
    if node is None:
        return
    if not isinstance(node, yaml.SequenceNode):
        _refuse("not a list of tasks", f"{escape_unprintable(path)}:1", "start every task with '- '")
    lines = [line for keys, line in key_lines(node, path) if len(keys) == 1]
    yield from zip(lines, values, strict=True)


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    return read_jsonl(path, "tasks", "environment.tasks.file is relative to the working directory")


def _entry(value: Any, place: str) -> _Entry:
    if not isinstance(value, dict):
        _refuse("a task is not a mapping of reset arguments", place, "write key: value pairs, such as seed: 3")
    arguments, given = (value["reset"], value) if "reset" in value else (value, {})
    unknown = next((key for key in given if key not in _KEYS), None)
    if unknown is not None:
        _refuse(f"unknown key '{unknown}' beside reset", place, suggest(str(unknown), _KEYS, "keys beside reset"))
    if not isinstance(arguments, dict):
        _refuse("reset is not a mapping", place, "write the reset arguments, such as reset: {seed: 3}")
    _check_json(arguments, place)
    question = given.get("question", "")
    if not isinstance(question, str):
        _refuse(f"question is {json.dumps(question, default=str)}, not text", place, "write text; quote a number")
    _check_json(given.get("answer"), place, "answer")
    content = {**arguments, "question": question} if question else arguments
    task_id = _text(given.get("id", default_id(content)), "id", place)
    family = _text(given.get("family", "task"), "family", place)
    split = given.get("split")
    if split is not None and split not in _SPLITS:
        _refuse(f"unknown split '{split}'", place, suggest(str(split), _SPLITS, "splits"))
    actions = given.get("actions", [])
    actions = list(map(action_line, actions)) if isinstance(actions, list) else None
    if actions is None or not all(isinstance(line, str) and "\n" not in line for line in actions):
        tip = "write one line, or one tool call {name: …, arguments: {…}}, per action: actions: [ls, cat notes]"
        _refuse("actions is not a list of lines", place, tip)
    return _Entry(place, task_id, split, family, arguments, tuple(actions), question, given.get("answer"))


def default_id(arguments: Mapping[str, Any]) -> str:
    """Return a readable name of reset arguments, such as `level=easy,seed=3`; a long name is cut and ends in a hash."""
    if not arguments:
        return "default"
    name = ",".join(f"{key}={_short(arguments[key])}" for key in sorted(arguments))
    if len(name) <= _LONGEST_ID and name.isprintable():
        return name
    digest = hashlib.sha256(_canonical(arguments).encode()).hexdigest()[:8]
    return f"{escape_unprintable(name)[: _LONGEST_ID - 9]}~{digest}"


def _short(value: Any) -> str:
    plain = isinstance(value, str) and _WORD.fullmatch(value)
    return value if plain else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _text(value: Any, key: str, place: str) -> str:
    if not isinstance(value, str) or not value or "\n" in value:
        shown = json.dumps(value, default=str)
        _refuse(f"{key} is {shown}, not a line of text", place, "write a line of text; quote a number")
    return value


def _check_json(value: Any, place: str, what: str = "reset arguments") -> None:
    """Refuse values that JSON would not preserve: NaN, infinity, dates, bytes, and keys that are not text."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                _refuse(f"the key {key} is not text", place, f"quote it: {what} are JSON")
            _check_json(entry, place, what)
    elif isinstance(value, list):
        for entry in value:
            _check_json(entry, place, what)
    elif isinstance(value, float) and not math.isfinite(value):
        _refuse(f"{value} is not a JSON number", place, f"write null or a finite number: {what} are JSON")
    elif not (value is None or isinstance(value, str | int | float)):
        _refuse(f"a value of {what} is a {type(value).__name__}, not JSON", place, "write it as text, or as a number")


def _canonical(arguments: Mapping[str, Any]) -> str:
    """Return reset arguments as one text that does not depend on the order of their keys."""
    return json.dumps(arguments, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _refuse_double_ids(entries: Sequence[_Entry]) -> None:
    first: dict[str, _Entry] = {}
    for entry in entries:
        before = first.setdefault(entry.task_id, entry)
        if before is not entry:
            message = f"the task id '{escape_unprintable(entry.task_id)}' is already used at {before.place}"
            _refuse(message, entry.place, "list every task once, or give each its own id")


def _refuse(message: str, place: str, tip: str) -> NoReturn:
    raise EchoError(f"{message} ({place})", tip)
