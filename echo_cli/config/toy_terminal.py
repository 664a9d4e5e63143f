"""The `toy_terminal` section of a config: the toy worlds of a run, and their task families."""

from __future__ import annotations

from itertools import count, islice
from typing import Annotated

from pydantic import Field, model_validator

from echo_cli.config.section import Positive, Section, Seed
from echo_cli.errors import EchoError
from echo_cli.text import suggest
from toy_terminal_env.machine import SEEDS
from toy_terminal_env.tasks import FAMILIES_OF
from toy_terminal_env.world import Kind


class ToyTerminalConfig(Section):
    """Toy worlds for training (`world_seeds`) and for the out-of-distribution pool alone (`ood_world_seeds`).

    With `objective.env_targets: other_world`, explorers play the worlds `other_world_seeds` instead; empty means as
    many as `world_seeds`, chosen by `placebo_seeds`.

    `kind` is the kind of the worlds: `files`, with configs, logs and tables, or `machine`, with services whose config
    files have equal names everywhere. `families` restricts the tasks of every split to the named task families of that
    kind; empty means all families.
    """

    kind: Kind = "files"
    world_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    ood_world_seeds: tuple[Seed, ...] = (101, 102)
    other_world_seeds: tuple[Seed, ...] = ()
    max_turns: Positive = 5
    families: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known_families(self) -> ToyTerminalConfig:
        known = FAMILIES_OF[self.kind]
        for family in self.families:
            if family not in known:
                raise EchoError(f"no task family '{family}' of kind {self.kind}", suggest(family, known, "families"))
        return self

    @model_validator(mode="after")
    def _evaluation_machines(self) -> ToyTerminalConfig:
        if self.kind == "machine":
            allowed = SEEDS["evaluation"]
            for seed in self._all_seeds:
                if seed not in allowed:
                    raise EchoError(
                        f"no machine to train on or evaluate has the seed {seed}",
                        f"seeds of kind machine are {allowed[0]} to {allowed[-1]}; others are of pretraining",
                    )
        return self

    @model_validator(mode="after")
    def _disjoint(self) -> ToyTerminalConfig:
        seeds = self._all_seeds
        if len(set(seeds)) < len(seeds):
            others = f" and other_world_seeds {list(self.other_world_seeds)}" if self.other_world_seeds else ""
            raise EchoError(
                f"duplicate seed in world_seeds {list(self.world_seeds)} and ood_world_seeds "
                f"{list(self.ood_world_seeds)}{others}",
                f"list each seed once, in one of the {'three' if others else 'two'}",
            )
        return self

    @property
    def _all_seeds(self) -> tuple[int, ...]:
        return (*self.world_seeds, *self.ood_world_seeds, *self.other_world_seeds)

    @property
    def placebo_seeds(self) -> tuple[int, ...]:
        """Seeds of the worlds of `env_targets: other_world`: evaluation, training and pretraining use none of them.

        The default is, of as many worlds as `world_seeds` has, the last free evaluation machines, or the first free
        worlds of kind `files` from seed 200. There are fewer if no more machines are free.
        """
        if self.other_world_seeds:
            return self.other_world_seeds
        candidates = reversed(SEEDS["evaluation"]) if self.kind == "machine" else count(200)
        free = (seed for seed in candidates if seed not in self._all_seeds)
        return tuple(islice(free, len(self.world_seeds)))
