"""Types of the toy terminal in OpenEnv's terms: action, observation, state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ToyTerminalAction:
    """One line typed at the prompt: a command, or `answer: X`, which ends the episode."""

    command: str


@dataclass(frozen=True)
class ToyTerminalObservation:
    """Output of the terminal. After `reset`, `instruction` contains the task's question.

    `reward` is None until the episode ends; then 1.0 for the right answer and 0.0 for any other ending.
    """

    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    instruction: str | None = None
    done: bool = False
    reward: float | None = None


@dataclass(frozen=True)
class ToyTerminalState:
    """State of an episode."""

    episode_id: str
    step_count: int
    world_seed: int
    task_id: str
