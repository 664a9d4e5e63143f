"""The environment protocols: role-tagged text, for rollouts, and payloads, for OpenEnv.

An environment answers the policy's text with role-tagged text. It assigns the roles, because only it knows which
bytes came from the world and which are the harness's own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from echo_cli.environments.faults import FaultCounts
from echo_cli.environments.grading.grade import Grade
from echo_cli.environments.tasks import Task, TaskSplits
from echo_cli.trajectory import Parse, Role

JsonObject = Mapping[str, Any]


@dataclass(frozen=True)
class TextPiece:
    """Text of one role. `channel` names its origin (stdout, stderr, exit_status).

    `cut` is True if the text after it was omitted; the transcript then shows a notice.
    """

    role: Role
    text: str
    channel: str | None = None
    cut: bool = False


@dataclass(frozen=True)
class StepResult:
    """An environment's answer to one action; `exit_code` is None if the action ran no command."""

    pieces: tuple[TextPiece, ...]
    done: bool = False
    exit_code: int | None = None
    valid_action: bool = True
    """Whether the environment could run the action."""
    parse: Parse = "valid"
    """Whether the text was an action, a failed attempt at an action, or neither."""
    capped: bool = False
    """Whether the episode ended at its turn cap."""
    penalty: float = 0.0
    """Amount that training subtracts from the episode's reward for this action."""
    reward: float | None = None
    """Reward of this action; None if the environment gave none. `verify` returns the episode's reward."""

    @property
    def clean_parse(self) -> bool:
        """Whether the text was an action."""
        return self.parse == "valid"


class Grader(Protocol):
    """A grader of the user's own, whose reward replaces the environment's."""

    async def grade(self, episode: JsonObject) -> Grade:
        """Return the grade of a finished episode: a trace as JSON, with the task under `meta.task`.

        Raises:
            EchoError: the grader failed, and the config says that the run ends then (exit code 1).
        """


class Environment(Protocol):
    """One episode. The text of an action is the policy's text without its stop token.

    Every method but `close` raises SessionLost if the episode cannot continue, and EchoError (exit code 1) if no
    episode can ever begin.
    """

    @property
    def grader(self) -> Grader | None:
        """Grader of the finished episode; None if `verify` gives the reward."""

    async def reset(self, task: Task) -> tuple[TextPiece, ...]:
        """Start the episode of `task` and return its opening context."""

    async def step(self, action: str, problem: str | None = None) -> StepResult:
        """Return the world's answer to `action`; an action with a `problem` is refused for that reason."""

    async def verify(self) -> float | None:
        """Call the verifier and return the episode's reward so far; None if it has none."""

    async def close(self) -> None:
        """Release the episode's resources."""


class SessionCount:
    """Number of a run's open sessions, and the number at once that a refusal has shown to be the maximum."""

    def __init__(self) -> None:
        self.open = 0
        self.opening = 0
        """Number of sessions whose reset has no answer yet."""
        self.granted: int | None = None
        """Maximum number of concurrent sessions; None while no session was refused."""
        self.abandoned = False
        """Whether a session was lost. The environment may still hold it, so that a refusal says nothing."""
        self._said: int | None = None

    def learn(self) -> bool:
        """Learn from a refused session; return False if the refusal does not show how many sessions are granted."""
        if self.open == 0 or self.abandoned:
            return False
        self.granted = self.open + self.opening
        return True

    def take_granted(self) -> int | None:
        """Return `granted` if it has changed since the last call, else None."""
        said, self._said = self._said, self.granted
        return self.granted if self.granted != said else None


@dataclass(frozen=True)
class HostLimits:
    """Limits on concurrent episodes and on attempts, the open sessions, and the counters of their faults."""

    sessions: int | None = None
    """Maximum number of concurrent episodes; None for no limit."""
    batch_wait_s: float = 2.0
    """Seconds that a batch waits for environments that have not answered, before it samples without them.

    While all environments answer in time, the assignment of rollouts to batches does not depend on the clock.
    """
    attempts: int = 3
    """Maximum number of attempts, the first included, at an episode whose session is lost."""
    faults: FaultCounts = field(default_factory=FaultCounts)
    count: SessionCount = field(default_factory=SessionCount)

    @property
    def at_once(self) -> int | None:
        """Maximum number of concurrent episodes, lowered to the sessions that the environment grants."""
        known = [limit for limit in (self.sessions, self.count.granted) if limit is not None]
        return min(known, default=None)


class TaskSuite(Protocol):
    """The episodes, tasks and scripted actors of a run."""

    tasks: TaskSplits
    hosting: HostLimits
    description: Description
    replayable: bool
    """Whether pools can be replayed: every task has an expert, and equal actions get equal answers in this process."""

    def environment(self) -> Environment:
        """Return a new environment for one episode."""

    def expert(self, task: Task) -> list[str] | None:
        """Return the actions that solve `task`; None if they are unknown."""

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        """Return `count` exploring actions for the world of `task`, or none if no actions are known.

        No action solves a validation or held-out task.
        """

    def reserved(self, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
        """Return scripts of commands that explorers never type, for the pool of `tasks`, which are of one split.

        They solve nothing: a pool that has them is larger than its tasks. Most environments have none.
        """

    def out_of_distribution(self) -> TaskSuite:
        """Return the suite of the out-of-distribution tasks, which training never sees."""

    def other_world(self) -> TaskSuite | None:
        """Return a suite whose explorers play worlds that no task of the run asks about; None if there is none."""


@dataclass(frozen=True)
class Payload:
    """One answer of an environment: the `data` of OpenEnv's observation message.

    `reward` is None for null, which is not zero; NaN and infinity count as null.
    """

    observation: JsonObject
    reward: float | None = None
    done: bool = False
    metadata: JsonObject | None = None

    @staticmethod
    def from_data(data: Any) -> Payload:
        """Return the payload of a decoded `data` object.

        Raises:
            ValueError: the object is malformed; the message names the part.
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
        """Root of the observation rules' paths: the observation's fields, and reward, done and metadata."""
        return {"metadata": self.metadata or {}, "reward": self.reward, "done": self.done, **self.observation}


class Client(Protocol):
    """The owner of one episode's session. It makes one request at a time, and never opens a second session.

    Errors of every method but `close`:
        Unavailable: (only `reset`) no session is available; nothing has begun.
        BadAction: the environment refused the action's form.
        EnvironmentFault: the environment raised while it ran; the session survives.
        SessionLost: the episode cannot continue. Every later call raises it again.
    """

    async def reset(self, arguments: JsonObject) -> Payload:
        """Open the session and start the episode. Call this once."""

    async def step(self, action: JsonObject) -> Payload:
        """Return the environment's answer to one action."""

    async def close(self) -> None:
        """Release the session, whatever its state. This raises nothing and may be called twice."""


@dataclass(frozen=True)
class Description:
    """Name, schemas and capacity of a source. The schemas are the JSON schemas of OpenEnv's `/schema`."""

    name: str
    action_schema: JsonObject
    observation_schema: JsonObject
    sessions: int | None = None
    """Number of parallel sessions that the source accepts; None if unknown."""
    about: str = ""
    """The environment's own description, one line; empty if it has none."""
    notices: tuple[str, ...] = ()
    """Notes on the source for the start of a run, one line each."""
    tools: tuple[JsonObject, ...] = ()
    """Tools that the policy may call, in the form that chat templates take; empty if actions are no tool calls."""


class EnvironmentSource(Protocol):
    """A source of environments, created once per run. It creates one client per episode."""

    def describe(self) -> Description:
        """Return the source's description.

        Raises:
            EchoError: the source cannot be reached, or does not speak OpenEnv.
        """

    def client(self) -> Client:
        """Return a client for one episode; it opens its session at `reset`."""

    def ended(self) -> str | None:
        """Return why no session can be opened again (the run's own server has ended); None if no reason is known."""
