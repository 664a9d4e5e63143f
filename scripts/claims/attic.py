"""An attic of boxes: the environment in plain words of `scripts/reproduce-claims --model`.

Thirty-two things of four kinds, such as tools or toys, lie in four boxes of different colours, a kind in each. A
question asks for the box of one thing; a reply names a colour, and the episode is over. In the box that it names lies a
slip of paper that says where six other things are, whether or not the reply was right. One line leaves no time to look:
only who knows the attic can answer.

Training asks about two things of every kind, validation about one and held-out tasks about three. Slips mention all.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openenv.core.env_server import Action, Environment, Observation, State

from echo_cli.environments.tasks import OTHER_WORLD

COLOURS = ("red", "blue", "green", "yellow")
SPLITS = ("train", "train", "validation", "heldout", "heldout", "heldout", None, None)
"""Split of each of the eight things of a kind; None: no question asks about it."""
KINDS = {
    "clothes": "bonnet cap cape coat glove hat jacket mitten sandal scarf shawl shirt sock sweater vest".split(),
    "tools": "axe chisel drill hammer hoe mallet pliers rake saw screwdriver shovel sickle spade wrench".split(),
    "instruments": "banjo cello clarinet drum fiddle flute guitar harp horn organ piano trumpet violin".split(),
    "kitchenware": "bowl cup dish fork jug kettle knife ladle pan plate pot spoon tray".split(),
    "jewellery": "anklet bracelet brooch crown diamond earring locket necklace pearl pendant ring ruby tiara".split(),
    "toys": "ball balloon dice doll domino kite marble puppet rattle skate sled swing teddy".split(),
    "stationery": "chalk crayon diary envelope eraser folder letter notebook pen pencil ruler stamp stapler".split(),
    "boating": "anchor buoy canoe lifeboat mast net oar paddle raft rope rudder sail".split(),
}
"""Things by kind; a pretrained model knows what kind a thing is."""
SLIP_LINES = 6
_ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Attic:
    """Which box each thing is in."""

    name: str
    box_of: Mapping[str, str]

    def slip(self, asked: str, box: str) -> str:
        """Return the slip in `box` when `asked` is looked for: where other things are, none of them in that box.

        The slips of a box over the questions of training mention everything that is not in it.
        """
        others = [thing for thing, place in self.box_of.items() if place != box]
        block, position = divmod(list(self.box_of).index(asked), len(others) // SLIP_LINES)
        random.Random(f"{self.name}/{box}/{block}").shuffle(others)
        start = position * SLIP_LINES
        shown = [thing for thing in others[start:] + others[:start] if thing != asked][:SLIP_LINES]
        return "".join(f"The {thing} is in the {self.box_of[thing]} box.\n" for thing in shown)


def attic_of(seed: int, *, elsewhere: bool = False) -> Attic:
    """Return the attic of a seed, or the attic of other kinds that its placebo explores."""
    rng = random.Random(f"attic/{seed}")
    kinds = rng.sample(sorted(KINDS), len(KINDS))
    boxes = rng.sample(COLOURS, len(COLOURS))
    things = {kind: rng.sample(KINDS[kind], len(SPLITS)) for kind in kinds}
    kinds = kinds[len(COLOURS) :] if elsewhere else kinds[: len(COLOURS)]
    name = f"{seed}/{_ELSEWHERE}" if elsewhere else str(seed)
    return Attic(name, {thing: box for kind, box in zip(kinds, boxes, strict=True) for thing in things[kind]})


def tasks(seed: int) -> list[dict[str, Any]]:
    """Return the entries of `environment.tasks.items`: the questions, and those of the placebo's attic."""
    asked = [
        {"id": f"{seed}/{thing}", "split": split, "reset": {"attic": seed, "thing": thing}}
        for thing, split in zip(attic_of(seed).box_of, SPLITS * len(COLOURS), strict=True)
        if split is not None
    ]
    other = [
        {
            "id": f"{seed}/{_ELSEWHERE}/{thing}",
            "split": OTHER_WORLD,
            "reset": {"attic": seed, "thing": thing, _ELSEWHERE: True},
        }
        for thing in attic_of(seed, elsewhere=True).box_of
    ]
    return asked + other


class Reply(Action):  # type: ignore[misc]  # openenv has no types
    text: str


class Slip(Observation):  # type: ignore[misc]
    question: str | None = None
    slip: str = ""
    notice: str = ""


class AtticEnvironment(Environment[Reply, Slip, State]):  # type: ignore[misc]
    """One question; the first colour in the reply is the answer."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        attic: int = 0,
        thing: str = "",
        elsewhere: bool = False,
        **kwargs: Any,
    ) -> Slip:
        """Ask for the box of `thing`.

        Raises:
            KeyError: it is not in this attic.
        """
        self._attic, self._thing = attic_of(attic, elsewhere=elsewhere), thing
        self._place = self._attic.box_of[thing]
        self._state = State(episode_id=episode_id, step_count=0)
        boxes = f"{', '.join(COLOURS[:-1])} or {COLOURS[-1]} box"
        return Slip(question=f"Question: Is the {thing} in the {boxes}?")

    def step(self, action: Reply, timeout_s: float | None = None, **kwargs: Any) -> Slip:
        """Open the box that the reply names; the reward is 1 if the thing is in it."""
        self._state.step_count += 1
        named = re.search(rf"\b({'|'.join(COLOURS)})\b", action.text.lower())
        if named is None:
            return Slip(notice="no box has this colour", reward=0.0, done=True)
        slip = self._attic.slip(self._thing, named[0])
        return Slip(slip=slip, reward=float(named[0] == self._place), done=True)

    @property
    def state(self) -> State:
        return self._state
