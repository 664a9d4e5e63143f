"""The types of `models.py` as OpenEnv's pydantic models: what the server and the client put on the wire."""

from __future__ import annotations

from openenv.core.env_server import Action, Observation, State
from pydantic import Field


class ToyTerminalWireAction(Action):
    """One line typed at the prompt: a command, or `answer: X`, which ends the episode."""

    command: str = Field(description="A command line, or `answer: X`, which ends the episode")


class ToyTerminalWireObservation(Observation):
    """What the terminal printed. After a reset it carries the task's question in `instruction`."""

    stdout: str = Field(default="", description="What the command printed")
    stderr: str = Field(default="", description="What the command printed as errors, after stdout")
    exit_code: int | None = Field(default=None, description="The command's exit status; null for an answer or a reset")
    instruction: str | None = Field(default=None, description="The question, after a reset")
    reward: float | None = Field(default=None, description="Null until the end; 1.0 for the right answer, else 0.0")


class ToyTerminalWireState(State):
    """Where an episode stands; before the first reset there is none, and all but `step_count` is null."""

    world_seed: int | None = Field(default=None, description="The seed that the file system is generated from")
    task_id: str | None = Field(default=None, description="The task whose question was asked")
