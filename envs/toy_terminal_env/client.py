"""OpenEnv client of the toy terminal, for any trainer that speaks OpenEnv. Needs the `openenv` package."""

from __future__ import annotations

from typing import Any

from openenv.core import EnvClient
from openenv.core.client_types import StepResult

from toy_terminal_env.wire import ToyTerminalWireAction, ToyTerminalWireObservation, ToyTerminalWireState


class ToyTerminalEnv(EnvClient[ToyTerminalWireAction, ToyTerminalWireObservation, ToyTerminalWireState]):
    """One session on a server.

    `reset` takes the arguments of `ToyTerminalEnvironment.reset`. A refusal by the server raises a RuntimeError that
    ends with OpenEnv's code; the session stays open.
    """

    def _step_payload(self, action: ToyTerminalWireAction) -> dict[str, Any]:
        payload: dict[str, Any] = action.model_dump(exclude_defaults=True)
        return payload

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[ToyTerminalWireObservation]:
        reward, done = payload["reward"], payload["done"]
        observation = ToyTerminalWireObservation(**payload["observation"], reward=reward, done=done)
        return StepResult(observation=observation, reward=reward, done=done, metadata=payload.get("metadata"))

    def _parse_state(self, payload: dict[str, Any]) -> ToyTerminalWireState:
        return ToyTerminalWireState(**payload)
