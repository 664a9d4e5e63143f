"""What the figures of an environment say about training in it, a line each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from echo_cli.evaluation.environment_figures import EnvironmentFigures

REPEATS, RANDOM = 0.5, 5.0
"""Bits per byte of the n-gram below which nearly all output repeats, and above which it is nearly random."""
MOSTLY_COPIED, VOLATILE, SLOW = 0.8, 0.02, 1.0
"""Copied fraction, differing fraction and seconds per step from which a verdict says so."""


@dataclass(frozen=True)
class Verdict:
    """A figure, and what it means for training."""

    name: str
    finding: str
    meaning: str


def verdicts_of(figures: EnvironmentFigures) -> Iterator[Verdict]:
    """Yield a verdict for each figure that some play shows."""
    if (bits := figures.ngram_bits_per_byte) is not None:
        meaning = (
            "nearly all of it repeats: little is left to learn"
            if bits < REPEATS
            else "nearly random: mask what no model could predict with environment.volatile"
            if bits > RANDOM
            else "between repetition and noise: there is something to learn"
        )
        yield Verdict("predictable", f"{bits:.2f} bits per byte under a 5-gram of the other tasks' output", meaning)
    if (copied := figures.copied_fraction) is not None:
        meaning = (
            "most of it is copied: env-CE falls without any knowledge of the environment"
            if copied >= MOSTLY_COPIED
            else "the rest must be known or guessed"
        )
        yield Verdict("copied", f"{copied:.0%} of the output occurs earlier in its episode", meaning)
    if (differing := figures.differing_fraction) is not None:
        meaning = (
            "the env term would learn noise: mark what differs with environment.volatile"
            if differing > VOLATILE
            else "the same actions get the same answers"
        )
        yield Verdict("repeatable", f"{differing:.1%} of the output differs between equal plays", meaning)
    yield from _about_rewards(figures)
    if (seconds := figures.step_seconds) is not None:
        meaning = "slow: raise environment.sessions, or play fewer rollouts" if seconds >= SLOW else "fast enough"
        yield Verdict(
            "time", f"{seconds * 1000:.0f} ms per step, {figures.reset_seconds * 1000:.0f} ms per reset", meaning
        )


def _about_rewards(figures: EnvironmentFigures) -> Iterator[Verdict]:
    scripted, wandering = figures.rewards["scripted"], figures.rewards["random"]
    means = [f"{kind} {found.mean:.2f}" for kind, found in figures.rewards.items() if found.mean is not None]
    if not means:
        yield Verdict(
            "reward", "no play has a reward", "the RL term has nothing to learn from; the env term needs none"
        )
    elif scripted.mean is not None and wandering.mean is not None and wandering.mean >= scripted.mean:
        meaning = "the reward does not tell solutions from random play"
        yield Verdict("reward", f"mean reward: {', '.join(means)}", meaning)
    elif wandering.high is not None and wandering.high == wandering.low:
        meaning = "random play always earns the same: exploration finds nothing to reinforce"
        yield Verdict("reward", f"mean reward: {', '.join(means)}", meaning)
    else:
        yield Verdict("reward", f"mean reward: {', '.join(means)}", "rewards tell plays apart")
    if (without := figures.no_contrast_fraction) is not None:
        meaning = (
            "GRPO starts without a gradient unless its policy does better than random play"
            if without == 1
            else "the other groups give GRPO a gradient"
        )
        yield Verdict("contrast", f"{without:.0%} of the groups of random plays have equal rewards", meaning)
