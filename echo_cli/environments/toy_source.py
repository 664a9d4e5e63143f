"""The toy terminal in this process, as a source of environments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from echo_cli.environments.client import Client, Description, JsonObject, Payload
from toy_terminal_env.environment import ToyTerminalEnvironment
from toy_terminal_env.models import ToyTerminalAction, ToyTerminalObservation

_TEXT: Mapping[str, str] = {"type": "string"}


class ToySource:
    """Toy terminals that live and die with their episodes."""

    def describe(self) -> Description:
        action = {"type": "object", "properties": {"command": _TEXT}, "required": ["command"]}
        fields: dict[str, Any] = {name: {} for name in ToyTerminalObservation.__dataclass_fields__}
        return Description("toy_terminal_env", action, {"type": "object", "properties": fields})

    def client(self) -> Client:
        return _ToyClient()

    def ended(self) -> str | None:
        return None


class _ToyClient:
    def __init__(self) -> None:
        self._environment = ToyTerminalEnvironment()

    async def reset(self, arguments: JsonObject) -> Payload:
        return _payload(self._environment.reset(**arguments))

    async def step(self, action: JsonObject) -> Payload:
        return _payload(self._environment.step(ToyTerminalAction(**action)))

    async def close(self) -> None:
        self._environment.close()


def _payload(observation: ToyTerminalObservation) -> Payload:
    fields: dict[str, Any] = asdict(observation)
    return Payload(fields, fields.pop("reward"), fields.pop("done"))
