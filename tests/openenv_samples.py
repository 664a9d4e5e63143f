"""OpenEnv environments for tests, in this process or, with `python openenv_samples.py PORT`, behind a socket."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any, Generic, TypeVar

from openenv.core.client_types import StepResult
from openenv.core.env_client import EnvClient
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from openenv.core.env_server.types import Action, Observation, State
from pydantic import Field, field_validator


class Say(Action):
    text: str
    times: int = 1

    @field_validator("times")
    @classmethod
    def _not_too_often(cls, times: int) -> int:
        if times > 9:
            raise ValueError("nine at most")
        return times


class Heard(Observation):
    text: str
    nested: dict[str, Any] = Field(default_factory=dict)


class Talk(Environment[Say, Heard, State]):
    """A synchronous environment that echoes its input, with special behaviour on a few words."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, greeting: str = "hello") -> None:
        super().__init__()
        self._greeting = greeting
        self._state = State(episode_id=None, step_count=0)
        self._made_in = threading.get_ident()

    def reset(self, seed: int | None = None, episode_id: str | None = None, topic: str = "") -> Heard:
        if topic == "none":
            raise LookupError("no such topic")
        self._state = State(episode_id=f"{os.getpid()}-{time.monotonic_ns()}", step_count=0)
        return Heard(text=f"{self._greeting} {topic} {seed}", metadata={"topic": topic})

    def step(self, action: Say, timeout_s: float | None = None, **_: Any) -> Heard:
        self._state.step_count += 1
        count = self._state.step_count
        match action.text:
            case "nan":
                return Heard(text="not a number", reward=float("nan"), nested={"inf": float("inf")})
            case "true":
                return Heard(text="a reward of true", reward=True, done=True)
            case "raise":
                raise RuntimeError("it broke\n\x1b[31m  on line 2")
            case "own mistake":
                return Heard.model_validate({"texts": 1})
            case "surrogate":
                return Heard(text="half", metadata={"half": "\ud800"})
            case "object":
                return Heard(text="", metadata={"object": object()})
            case "sleep":
                time.sleep(0.6)
            case "thread":
                return Heard(text=str(threading.get_ident() == self._made_in))
            case "stop":
                raise StopIteration
        return Heard(text=action.text * action.times, reward=count / 4, nested={"count": [count, None, 1e-7]})

    @property
    def state(self) -> State:
        return self._state


class Later(Environment):
    """Asynchronous overrides without type parameters: the annotation of `step` gives the action type."""

    def reset(self, **arguments: Any) -> Heard:
        raise AssertionError("the asynchronous one is there")

    async def reset_async(self, seed: int | None = None, **arguments: Any) -> Heard:  # type: ignore[override]
        return Heard(text="later", nested={"seed": seed, **arguments})

    def step(self, action: Say, **_: Any) -> Heard:
        raise AssertionError("the asynchronous one is there")

    async def step_async(self, action: Say, **_: Any) -> Heard:  # type: ignore[override]
        if action.text == "raise":
            raise TimeoutError("its own")
        return Heard(text=action.text)

    @property
    def state(self) -> State:
        return State()


class Tools(MCPEnvironment):
    """One tool over MCP."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        from fastmcp import FastMCP

        server = FastMCP("tools")

        @server.tool
        def add(a: int, b: int) -> int:
            """The sum."""
            return a + b

        super().__init__(server)
        self._state = State(episode_id=None, step_count=0)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Observation:
        self._state = State(episode_id=f"{os.getpid()}-{time.monotonic_ns()}", step_count=0)
        return Observation(metadata={"seed": seed})

    def _step_impl(self, action: Action, timeout_s: float | None = None, **_: Any) -> Observation:
        raise ValueError(f"{type(action).__name__} is no tool")

    @property
    def state(self) -> State:
        return self._state


class Nameless(Talk):
    """An environment whose server never reports its episode."""

    @property
    def state(self) -> State:
        return State(step_count=1)


T = TypeVar("T")


class AnyTalkClient(EnvClient[T, Heard, State], Generic[T]):
    def _step_payload(self, action: Any) -> dict[str, Any]:
        return {"text": action.text, "times": action.times}

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[Heard]:
        observation = Heard(**payload["observation"], reward=payload["reward"], done=payload["done"])
        return StepResult(observation=observation, reward=payload["reward"], done=payload["done"])

    def _parse_state(self, payload: dict[str, Any]) -> State:
        return State(**payload)


class TalkClient(AnyTalkClient[Say]):
    """A typed client as written by users, whose action class is found through its base class."""


PLACES: dict[str, tuple[Any, type[Action], type[Observation]]] = {
    "talk": (Talk, Say, Heard),
    "few": (Talk, Say, Heard),
    "later": (Later, Say, Heard),
    "tools": (Tools, CallToolAction, CallToolObservation),
    "nameless": (Nameless, Say, Heard),
}


def serve(port: int) -> None:
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()
    for place, (environment, action, observation) in PLACES.items():
        concurrent = {"few": 3}.get(place, 8) if environment.SUPPORTS_CONCURRENT_SESSIONS else 1
        app.mount(f"/{place}", create_app(environment, action, observation, max_concurrent_envs=concurrent))
    app.get("/health")(lambda: {"status": "healthy"})
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def main(port: int) -> None:
    """Kill the server and start a new one at each line of stdin; kill it at the end of stdin.

    The server is a fork of this process, so a restart does not import openenv again.
    """
    server = 0
    for _ in iter(sys.stdin.readline, ""):
        if server:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
        server = os.fork()
        if server == 0:
            serve(port)
        print(server, flush=True)
    if server:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
