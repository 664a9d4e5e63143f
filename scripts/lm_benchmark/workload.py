"""Workload: episodes with recorded observations and a fixed number of tokens per action.

Every contender takes the same number of turns, reads the same observations and samples the same number of tokens. Sizes
are typical of a chat model at a terminal: a task, one-line commands, observations from a word to a screen, and the
template around them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.models.sampler import Sample
from echo_cli.trajectory import Role, Segment, Trajectory

# Denominators of TRL's `loss_type="grpo"`, and of the paper's env term.
SETTINGS = ObjectiveSettings(rl_normalization="sequence_mean", env_normalization="observation_tokens")
COEFF = 0.05

# ChatML tokens that close an action and open the observation, and that close it and open the next action.
_BEFORE, _AFTER = 8, 8


@dataclass(frozen=True)
class Workload:
    """Sizes of a step; the first four are counts, the others tokens."""

    tasks: int = 3
    group: int = 4
    sessions: int = 12
    """Number of concurrent episodes."""
    turns: tuple[int, int] = (3, 8)
    """Minimum and maximum number of turns per episode."""
    opening: tuple[int, int] = (128, 224)
    """Minimum and maximum length of the system and task messages together."""
    action: int = 16
    observation_median: float = 40.0
    observation_most: int = 256

    @property
    def episodes(self) -> int:
        return self.tasks * self.group


SMOKE = Workload(2, 2, 3, (2, 3), (8, 12), 3, 5.0, 12)


@dataclass(frozen=True)
class Reply:
    """Tokens that follow an action."""

    before: tuple[int, ...]
    observation: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.before + self.observation + self.after


@dataclass(frozen=True)
class Script:
    """The environment's part of an episode: an opening, and a reply to each action."""

    task: str
    opening: tuple[int, ...]
    replies: tuple[Reply, ...]

    def follows(self, turn: int) -> tuple[int, ...]:
        """Return the tokens that the policy reads before action `turn`, 0-based."""
        return self.replies[turn - 1].token_ids if turn else self.opening


def scripts(workload: Workload, vocab: int, seed: int) -> list[Script]:
    """Generate the step's episodes; the rollouts of a task share their opening. Observation lengths are log-normal."""
    draw = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocab) for _ in range(count))

    def reply() -> Reply:
        length = int(workload.observation_median * draw.lognormvariate(0, 0.8))
        return Reply(tokens(_BEFORE), tokens(min(max(length, 1), workload.observation_most)), tokens(_AFTER))

    found = []
    for task in range(workload.tasks):
        opening = tokens(draw.randint(*workload.opening))
        for _ in range(workload.group):
            found.append(Script(f"t{task}", opening, tuple(reply() for _ in range(draw.randint(*workload.turns)))))
    return found


def trajectories(played: Sequence[Script], samples: Sequence[Sequence[Sample]], seed: int) -> list[Trajectory]:
    """Return the rollouts, with rewards 0, 1, 0, 1, ... so that no group's advantages are zero.

    Behaviour logprobs are shifted by noise of 0.2 nats, as if the policy had been updated since: ratios differ from 1
    and some are clipped, so that equal losses show agreement on ratios and clipping too.
    """
    draw = random.Random(seed)
    found = []
    for number, (script, actions) in enumerate(zip(played, samples, strict=True)):
        segments = [Segment(Role.CONTEXT, "", script.opening)]
        for (token_ids, logprobs), reply in zip(actions, script.replies, strict=True):
            moved = tuple(logprob + draw.gauss(0, 0.2) for logprob in logprobs)
            segments.append(Segment(Role.ACTION, "", tuple(token_ids), moved))
            segments.append(Segment(Role.CONTEXT, "", reply.before))
            segments.append(Segment(Role.ENV_OUTPUT, "", reply.observation))
            segments.append(Segment(Role.CONTEXT, "", reply.after))
        reward = float(number % 2)
        found.append(Trajectory(script.task, script.task, tuple(segments), (), reward, "turn_cap", "policy"))
    return found


def sampled_tokens(played: Sequence[Script], workload: Workload) -> int:
    """Return the total number of tokens that the policy samples."""
    return workload.action * sum(len(script.replies) for script in played)
