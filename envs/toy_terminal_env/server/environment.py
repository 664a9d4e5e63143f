"""The toy terminal for OpenEnv's server: one environment per session, pydantic types in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openenv.core.env_server import Environment
from openenv.core.env_server.types import EnvironmentMetadata
from pydantic import ConfigDict, validate_call

import toy_terminal_env
from toy_terminal_env.environment import EpisodeError, ToyTerminalEnvironment
from toy_terminal_env.models import ToyTerminalAction
from toy_terminal_env.wire import ToyTerminalWireAction, ToyTerminalWireObservation, ToyTerminalWireState
from toy_terminal_env.world import Kind

README = Path(toy_terminal_env.__file__).parent / "README.md"


class OpenEnvToyTerminal(Environment[ToyTerminalWireAction, ToyTerminalWireObservation, ToyTerminalWireState]):
    """`ToyTerminalEnvironment` behind OpenEnv's interface.

    Nothing here blocks, so the asynchronous methods run in the server's own thread: handing a step to another thread
    would take longer than the step.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, max_turns: int = 5) -> None:
        super().__init__()
        self._terminal = ToyTerminalEnvironment(max_turns)

    @validate_call(config=ConfigDict(strict=True))
    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        *,
        task_id: str | None = None,
        max_turns: int | None = None,
        kind: Kind = "files",
    ) -> ToyTerminalWireObservation:
        """Start an episode as `ToyTerminalEnvironment.reset` does; the default seed is 0.

        Raises:
            ValueError: no world of this kind has the seed, the world has no such task, or `max_turns` is below 1; the
                previous episode continues.
            ValidationError: an argument has the wrong type.
        """
        observation = self._terminal.reset(seed or 0, episode_id, task_id=task_id, max_turns=max_turns, kind=kind)
        return ToyTerminalWireObservation(**vars(observation))

    def step(
        self, action: ToyTerminalWireAction, timeout_s: float | None = None, **_: Any
    ) -> ToyTerminalWireObservation:
        """Run one line; `timeout_s` is ignored. Raises EpisodeError before `reset` and after the episode's end."""
        return ToyTerminalWireObservation(**vars(self._terminal.step(ToyTerminalAction(action.command))))

    async def reset_async(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        *,
        task_id: str | None = None,
        max_turns: int | None = None,
        kind: Kind = "files",
    ) -> ToyTerminalWireObservation:
        """Call `reset`. OpenEnv passes only parameters in the signature, so they are spelled out."""
        return self.reset(seed, episode_id, task_id=task_id, max_turns=max_turns, kind=kind)

    async def step_async(
        self, action: ToyTerminalWireAction, timeout_s: float | None = None, **_: Any
    ) -> ToyTerminalWireObservation:
        """Call `step`."""
        return self.step(action)

    @property
    def state(self) -> ToyTerminalWireState:
        """State of the episode; OpenEnv's empty state if there is none."""
        try:
            return ToyTerminalWireState(**vars(self._terminal.state))
        except EpisodeError:
            return ToyTerminalWireState()

    def get_metadata(self) -> EnvironmentMetadata:
        """Return the response to `/metadata`."""
        return EnvironmentMetadata(
            name=toy_terminal_env.__name__,
            description="A deterministic, read-only terminal over a small generated file system, with questions that "
            "have a checkable answer",
            version=toy_terminal_env.__version__,
            readme_content=README.read_text(encoding="utf-8"),
        )
