"""The `tasks` section of an environment: where the tasks of a run come from."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from echo_cli.config.model import is_hub_id
from echo_cli.config.section import AbsolutePath, Fraction, PathText, Positive, Section, absolute
from echo_cli.config.toy_terminal import ToyTerminalConfig
from echo_cli.errors import EchoError

TASK_SOURCES = ("file", "items", "seeds", "dataset", "toy_terminal")
OF_DATASET = ("subset", "revision", "split", "columns")
"""Keys that have an effect only with `dataset`."""

TABLES = (".jsonl", ".csv", ".parquet")
"""Extensions of files that are a dataset by themselves."""


def is_on_hub(dataset: str) -> bool:
    """Return whether a dataset can only be a hub id: it has the form of one, and no file or folder has its name."""
    return PurePath(dataset).suffix not in TABLES and is_hub_id(dataset)


def _place(dataset: str) -> str:
    return dataset if is_on_hub(dataset) else absolute(dataset)


class TaskColumns(Section):
    """Columns of a dataset. A task has reset arguments, a question, or both.

    - `reset`: reset arguments, as a mapping of their names to columns, as a list of columns that are called like them,
      or as one column that holds a mapping of them. A null is left out.
    - `question`: text that the policy is shown first.
    - `answer`: reference answer, for graders alone.
    - `id`, `family`, `split`, `actions`: as in a task file.
    """

    reset: dict[str, PathText] | tuple[PathText, ...] | PathText = ()
    question: PathText | None = None
    answer: PathText | None = None
    id: PathText | None = None
    family: PathText | None = None
    split: PathText | None = None
    actions: PathText | None = None

    @model_validator(mode="after")
    def _name_a_task(self) -> TaskColumns:
        if not self.reset and self.question is None:
            tip = "name the columns that make a task"
            raise EchoError("environment.tasks.columns names neither reset nor question", tip)
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """Columns that are named, in order."""
        reset = self.reset.values() if isinstance(self.reset, dict) else self.reset
        others = (self.question, self.answer, self.id, self.family, self.split, self.actions)
        named = ((reset,) if isinstance(reset, str) else tuple(reset)) + tuple(name for name in others if name)
        return tuple(dict.fromkeys(named))


class TasksConfig(Section):
    """Tasks, each with its reset arguments: from a YAML or JSONL `file`, `items`, `seeds` 0 to N - 1, a `dataset`, or
    toy worlds.

    An entry is a mapping of reset arguments, or holds them under `reset`, next to `id`, `split`, `family`, `actions`
    (a script that solves the task), `question` and `answer`. An entry without `split` is assigned to a split by a hash
    of its content.

    `dataset` is a JSONL, CSV or Parquet file, a folder of them as on the hub, or a hub id, with its `subset` and
    `revision`. `split` is the dataset's split that is read, or a mapping of splits of the run to the dataset's.
    """

    file: AbsolutePath | None = None
    items: tuple[dict[str, Any], ...] = ()
    seeds: Positive | None = None
    dataset: Annotated[PathText, AfterValidator(_place)] | None = None
    subset: PathText | None = None
    revision: PathText | None = None
    split: dict[Literal["train", "validation", "heldout", "ood"], PathText] | PathText = "train"
    columns: TaskColumns | None = None
    toy_terminal: ToyTerminalConfig | None = None
    validation: Fraction = 0.15
    heldout: Fraction = 0.25

    @model_validator(mode="after")
    def _one(self) -> TasksConfig:
        given = [name for name in TASK_SOURCES if getattr(self, name) not in (None, ())]
        if len(given) != 1:
            tip = "set exactly one of file, items, seeds, dataset"
            raise EchoError(f"environment.tasks sets {' and '.join(given) or 'no source of tasks'}", tip)
        if self.dataset is None:
            for name in OF_DATASET:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise EchoError(f"environment.tasks.{name} has no effect without dataset", "omit it")
        elif self.columns is None:
            tip = "name some: columns: {question: …, answer: …}, or columns: {reset: {seed: …}}"
            raise EchoError("environment.tasks.dataset has no columns", tip)
        elif self.revision is not None and not is_on_hub(self.dataset):
            raise EchoError("environment.tasks.revision has no effect: the dataset is on this machine", "omit it")
        if self.validation + self.heldout >= 1:
            raise EchoError("environment.tasks: no task remains for training", "lower validation or heldout")
        return self
