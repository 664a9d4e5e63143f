"""The protocol of environments: in text with roles, as a rollout plays it, and in payloads, as OpenEnv speaks it.

An environment turns the policy's text into role-tagged text. It decides the roles, because only it knows which
bytes came from the world and which are the harness's own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from echo_cli.environments.faults import FaultCounts
from echo_cli.environments.tasks import Task, TaskSplits
from echo_cli.trajectory import Parse, Role

JsonObject = Mapping[str, Any]


@dataclass(frozen=True)
class TextPiece:
    """Text of one role. `channel` names where it came from (stdout, stderr, exit_status).

    `cut` says that text after it was left out, which the transcript then tells.
    """

    role: Role
    text: str
    channel: str | None = None
    cut: bool = False


@dataclass(frozen=True)
class StepResult:
    """An environment's answer to one action; `exit_code` is None where the action ran no command."""

    pieces: tuple[TextPiece, ...]
    done: bool = False
    exit_code: int | None = None
    valid_action: bool = True
    """The environment could run the action."""
    parse: Parse = "valid"
    """Whether the text was an action."""
    capped: bool = False
    """The episode is done because its turns are used up."""
    penalty: float = 0.0
    """What training takes off the episode's reward for this action."""
    reward: float | None = None
    """What the environment gave for this action; None where it gave none. `verify` has the episode's."""

    @property
    def clean_parse(self) -> bool:
        """The text was an action."""
        return self.parse == "valid"


class Environment(Protocol):
    """One episode. The text of an action is what the policy wrote, without its stop token.

    Every method but `close` raises SessionLost where the episode cannot go on, and EchoError (exit code 1) where no
    episode will ever begin.
    """

    async def reset(self, task: Task) -> tuple[TextPiece, ...]:
        """Start the episode of `task` and return its opening context."""

    async def step(self, action: str, problem: str | None = None) -> StepResult:
        """Let the world answer `action`; one with a `problem` is none, and is refused for that reason."""

    async def verify(self) -> float | None:
        """Call the verifier: the reward of the episode as it stands; None where there is none."""

    async def close(self) -> None:
        """Release what the episode holds."""


@dataclass(frozen=True)
class HostLimits:
    """How many episodes are played at once, how often one is begun again, and the counts of their faults."""

    sessions: int | None = None
    """Episodes at a time; None for any number."""
    batch_wait_s: float = 2.0
    """How long a batch waits for the environments that have not answered, before it samples without them.

    While all answer within it, which rollout is in which batch does not depend on the clock.
    """
    attempts: int = 3
    """How often an episode whose session is lost is begun in all."""
    faults: FaultCounts = field(default_factory=FaultCounts)


class TaskSuite(Protocol):
    """What a run needs of its environment: episodes, tasks and scripted actors."""

    tasks: TaskSplits
    hosting: HostLimits
    description: Description
    replayable: bool
    """Every task has an expert, and the same actions give the same answers: a pool can be played again at any time."""

    def environment(self) -> Environment:
        """A new environment for one episode."""

    def expert(self, task: Task) -> list[str] | None:
        """The actions that solve `task`, where they are known."""

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        """`count` exploring actions in the world of `task`, none of which solves a validation or held-out task."""

    def out_of_distribution(self) -> TaskSuite:
        """The same kind of tasks where training has never been."""


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

    async def step(self, action: JsonObject) -> Payload:
        """Let the environment answer one action."""

    async def close(self) -> None:
        """Give the session back, whatever its state. Raises nothing; may be called twice."""


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

    def client(self) -> Client:
        """A client for one episode; it opens its session at `reset`."""

    def ended(self) -> str | None:
        """Why no session will ever be had again, where that is known: the server that we started has ended."""
