"""A tiny OpenEnv server, the real `create_app` under uvicorn, in a process of its own: `python openenv_server.py 2`.

It takes as many sessions as its argument says, prints its port, and ends with its standard input.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_app


class Word(Action):
    text: str


class Heard(Observation):
    output: str = ""
    seed: int | None = None


class Echoing(Environment[Word, Heard, State]):
    """Says what it hears; `raise` raises, `nan` is worth NaN, `bye` ends the episode with reward 1."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state = State()

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Heard:
        self._state = State(episode_id=episode_id, step_count=0)
        return Heard(output="hello\n", seed=seed)

    def step(self, action: Word, timeout_s: float | None = None, **_: Any) -> Heard:
        if action.text == "raise":
            raise RuntimeError("it\nfell \x1b[31mover")
        self._state.step_count += 1
        reward = {"nan": float("nan"), "bye": 1.0}.get(action.text)
        return Heard(output=f"{action.text}\n", reward=reward, done=action.text == "bye")

    @property
    def state(self) -> State:
        return self._state


def main() -> None:
    """Serve until standard input ends."""
    app = create_app(Echoing, Word, Heard, env_name="echoing", max_concurrent_envs=int(sys.argv[1]))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()

    def watch() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
