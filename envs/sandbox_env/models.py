"""Types of the sandbox in OpenEnv's terms: action, observation, state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SandboxAction:
    """One line for bash, or `answer X`, which ends the episode."""

    command: str


@dataclass(frozen=True)
class SandboxObservation:
    """Output of a line. After `reset`, `instruction` contains the task's question.

    `notice` is text of the sandbox itself: the line was stopped, or its output was cut. `reward` is None until an
    answer.
    """

    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    notice: str = ""
    instruction: str | None = None
    done: bool = False
    reward: float | None = None


@dataclass(frozen=True)
class SandboxState:
    """State of an episode."""

    episode_id: str
    step_count: int
    seed: int
