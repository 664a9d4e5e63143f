"""What goes in and out of the sandbox, in OpenEnv's terms: action, observation, state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SandboxAction:
    """One line for bash, or `answer X`, which ends the episode."""

    command: str


@dataclass(frozen=True)
class SandboxObservation:
    """What the line printed. After `reset` it carries the task's question in `instruction`.

    `notice` is the sandbox's own word: the line was stopped, or its output was cut. `reward` is None until an answer.
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
    """Where an episode stands."""

    episode_id: str
    step_count: int
    seed: int
