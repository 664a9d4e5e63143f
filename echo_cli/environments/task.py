"""What to solve: a task, and the three disjoint splits that every experiment keeps apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "validation", "heldout"]


@dataclass(frozen=True)
class Task:
    """One problem: `reset_arguments` start its episode in the environment."""

    task_id: str
    split: Split
    family: str
    reset_arguments: Mapping[str, Any]


@dataclass(frozen=True)
class TaskSplits:
    """The tasks of a run. Training sees `train`, choices are made on `validation`, figures come from `heldout`."""

    train: Sequence[Task]
    validation: Sequence[Task]
    heldout: Sequence[Task]

    def __post_init__(self) -> None:
        for name, tasks in (("train", self.train), ("validation", self.validation), ("heldout", self.heldout)):
            if any(task.split != name for task in tasks):
                raise ValueError(f"a task of another split is among the {name} tasks")
        ids = [task.task_id for task in (*self.train, *self.validation, *self.heldout)]
        if len(set(ids)) != len(ids):
            raise ValueError("task ids must be unique over the splits")
