"""The types of `models.py` as OpenEnv's pydantic models, which server and client exchange."""

from __future__ import annotations

from openenv.core.env_server import Action, Observation, State
from pydantic import Field


class ToyTerminalWireAction(Action):
    """One line typed at the prompt: a command, or `answer: X`, which ends the episode."""

    command: str = Field(description="A command line, or `answer: X`, which ends the episode")


class ToyTerminalWireObservation(Observation):
    """Output of the terminal. After a reset, `instruction` contains the task's question."""

    stdout: str = Field(default="", description="Standard output of the command")
    stderr: str = Field(default="", description="Standard error of the command, printed after stdout")
    exit_code: int | None = Field(default=None, description="The command's exit status; null for an answer or a reset")
    instruction: str | None = Field(default=None, description="The question, after a reset")
    reward: float | None = Field(default=None, description="Null until the end; 1.0 for the right answer, else 0.0")


class ToyTerminalWireState(State):
    """State of an episode; before the first reset, every field but `step_count` is null."""

    world_seed: int | None = Field(default=None, description="The seed that the file system is generated from")
    task_id: str | None = Field(default=None, description="The task whose question was asked")
