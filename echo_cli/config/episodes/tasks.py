"""The `tasks` section of an environment: where the tasks of a run come from."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from echo_cli.config.section import AbsolutePath, Fraction, Positive, Section
from echo_cli.config.toy_terminal import ToyTerminalConfig
from echo_cli.errors import EchoError

TASK_SOURCES = ("file", "items", "seeds", "toy_terminal")


class TasksConfig(Section):
    """Tasks, each with its reset arguments: from a YAML or JSONL `file`, `items`, `seeds` 0 to N - 1, or toy worlds.

    An entry is a mapping of reset arguments, or holds them under `reset`, next to `id`, `split`, `family` and `actions`
    (a script that solves the task). An entry without `split` is assigned to a split by a hash of its reset arguments.
    """

    file: AbsolutePath | None = None
    items: tuple[dict[str, Any], ...] = ()
    seeds: Positive | None = None
    toy_terminal: ToyTerminalConfig | None = None
    validation: Fraction = 0.15
    heldout: Fraction = 0.25

    @model_validator(mode="after")
    def _one(self) -> TasksConfig:
        given = [name for name in TASK_SOURCES if getattr(self, name) not in (None, ())]
        if len(given) != 1:
            tip = "set exactly one of file, items, seeds"
            raise EchoError(f"environment.tasks sets {' and '.join(given) or 'no source of tasks'}", tip)
        if self.validation + self.heldout >= 1:
            raise EchoError("environment.tasks: no task remains for training", "lower validation or heldout")
        return self
