"""What every source of environments is to us: clients of one episode each, and a server that makes them.

A payload is what OpenEnv sends over its socket, so an environment in this process, one behind a URL and one that we
started give the same payloads, and with the same mapping the same text. `text_environment.py` makes text of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

JsonObject = Mapping[str, Any]


@dataclass(frozen=True)
class Payload:
    """One answer of an environment: the `data` of OpenEnv's observation message.

    `reward` is None where there is none: null is not zero, and NaN and infinity arrive as null.
    """

    observation: JsonObject
    reward: float | None = None
    done: bool = False
    metadata: JsonObject | None = None

    @staticmethod
    def from_data(data: Any) -> Payload:
        """The payload of a decoded `data` object.

        Raises:
            ValueError: it has not the form of one; says which part.
        """
        if not isinstance(data, dict) or not isinstance(data.get("observation"), dict):
            raise ValueError("no observation object")
        reward, done, metadata = data.get("reward"), data.get("done", False), data.get("metadata")
        if not (reward is None or isinstance(reward, bool | int | float)):
            raise ValueError(f"the reward is {type(reward).__name__}")
        if not isinstance(done, bool):
            raise ValueError(f"done is {type(done).__name__}")
        if not (metadata is None or isinstance(metadata, dict)):
            raise ValueError(f"metadata is {type(metadata).__name__}")
        try:
            number = math.nan if reward is None else float(reward)
        except OverflowError:
            raise ValueError("the reward is too large a number") from None
        return Payload(data["observation"], number if math.isfinite(number) else None, done, metadata)

    @property
    def root(self) -> JsonObject:
        """What the paths of observation rules start from: the observation's fields, and reward, done, metadata."""
        return {"metadata": self.metadata or {}, "reward": self.reward, "done": self.done, **self.observation}


class Client(Protocol):
    """One episode's owner of one session: one request at a time, and never a second session in its place.

    Errors of every method but `close`:
        Unavailable: (`reset` alone) there is no session to be had; nothing has begun.
        BadAction: the environment refused the action's form.
        EnvironmentFault: it raised while it ran; the session lives on.
        SessionLost: the episode cannot go on. Every later call raises it again.
    """

    async def reset(self, arguments: JsonObject) -> Payload:
        """Open the session and start the episode. Called once."""
        ...

    async def step(self, action: JsonObject) -> Payload:
        """Let the environment answer one action."""
        ...

    async def close(self) -> None:
        """Give the session back, whatever its state. Raises nothing; may be called twice."""
        ...


@dataclass(frozen=True)
class Description:
    """What a source says of itself. Schemas are JSON schemas of OpenEnv's `/schema`."""

    name: str
    action_schema: JsonObject
    observation_schema: JsonObject
    sessions: int | None = None
    """Parallel sessions it takes; None where it does not say."""


class EnvironmentSource(Protocol):
    """Where environments come from. Made once a run; clients are made for every episode."""

    def describe(self) -> Description:
        """Ask the source who it is.

        Raises:
            EchoError: it cannot be reached, or does not speak OpenEnv.
        """
        ...

    def client(self) -> Client:
        """A client for one episode; it opens its session at `reset`."""
        ...

    def ended(self) -> str | None:
        """Why no session will ever be had again, where that is known: the server that we started has ended."""
        ...
