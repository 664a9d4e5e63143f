"""The sandbox as a class of `openenv`: pydantic types around `sandbox_env.environment`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from openenv.core.env_server import Action, Environment, Observation, State
from openenv.core.env_server.types import EnvironmentMetadata

from echo_cli.processes import hide_memory
from sandbox_env.environment import SandboxEnvironment
from sandbox_env.isolation import Wanted
from sandbox_env.models import SandboxAction


class Command(Action):  # type: ignore[misc]  # openenv has no types
    """`SandboxAction` on the wire."""

    command: str


class Output(Observation):  # type: ignore[misc]
    """`SandboxObservation` on the wire; `done` and `reward` are OpenEnv's own fields."""

    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    notice: str = ""
    instruction: str | None = None


class Sandbox(Environment[Command, Output, State]):  # type: ignore[misc]
    """One session; the server creates one per connection, so several may run at once."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, timeout_s: float = 5.0, max_output: int = 4000, isolation: Wanted = "auto") -> None:
        super().__init__()
        hide_memory()  # a command must not read the server's variables
        self._sandbox = SandboxEnvironment(timeout_s, max_output, isolation)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Output:
        """Start an episode in a new folder with the files of `seed`, 0 by default."""
        return Output(**asdict(self._sandbox.reset(seed or 0, episode_id)))

    def step(self, action: Command, timeout_s: float | None = None, **kwargs: Any) -> Output:
        """Run one line; `timeout_s` is ignored. Raises RuntimeError before `reset` and after the episode's end."""
        return Output(**asdict(self._sandbox.step(SandboxAction(action.command))))

    @property
    def state(self) -> State:
        """State of the episode. Raises RuntimeError before `reset`."""
        return State(**asdict(self._sandbox.state))

    def get_metadata(self) -> EnvironmentMetadata:
        """Return the response to `/metadata`, whose description says how the commands are isolated."""
        return EnvironmentMetadata(
            name=type(self).__name__, description=f"real bash; {self._sandbox.isolation.notice}", version="1.0.0"
        )

    def close(self) -> None:
        """Remove the session's folder."""
        self._sandbox.close()
