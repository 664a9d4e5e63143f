"""Problems of an environment for training, found in a few episodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.environments.faults import FINAL_FAILED
from echo_cli.environments.grading.grade import fault_in
from echo_cli.environments.protocol import Description, TaskSuite
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.watched_episode import Play
from echo_cli.text import counted
from echo_cli.trajectory import CUT_OUTPUT, Role, text_of

_TOKENS = re.compile(r"\d+|\w+|\W")
_WORD_CHARACTER = re.compile(r"\w")
_SHOWN_CHARS = 80


@dataclass(frozen=True)
class Finding:
    """A problem for training: a machine-readable name, a one-line message, and a tip."""

    name: str
    message: str
    tip: str


def find_problems(
    first: Play,
    second: Play,
    elsewhere: Play | None,
    worlds: TaskSuite,
    settings: EnvironmentConfig,
    limits: EpisodeLimits,
    reasons: Sequence[str] = (),
) -> tuple[Finding, ...]:
    """Return the problems found, most severe first.

    Args:
        second: episode with the same actions on the same task as `first`.
        elsewhere: episode with the same actions on another task; None if there is no other task.
        reasons: lines on the faults of all episodes.
    """
    failed = next((reason for reason in reasons if reason.startswith(FINAL_FAILED)), None)
    return (
        *_about_text(first, worlds, settings),
        *_about_actions(first, limits),
        *_about_the_end(first, failed),
        *_about_repetition(first, second),
        *_about_tasks(first, elsewhere, worlds),
        *_about_pools(first, elsewhere, worlds, settings),
    )


def _about_text(play: Play, worlds: TaskSuite, settings: EnvironmentConfig) -> Iterator[Finding]:
    named = ", ".join(_fields(worlds.description)) or "no fields in its schema"
    replies = [piece for reply in play.replies for piece in reply.pieces]
    shown = "".join(piece.text for piece in replies).replace(settings.prompt, "").strip()
    if not shown and settings.toy_worlds is None and not settings.observation:
        tip = f"list the observation's fields under environment.observation; it has {named}"
        yield Finding("no_text", "no text is mapped: the policy sees no output of the environment", tip)
    elif not any(play.outputs):
        yield Finding(
            "no_env_output",
            "no text has the role env_output: the env term has no targets",
            f"add a rule with role env_output for the environment's own text; the observation has {named}",
        )
    if not text_of(play.opening, Role.CONTEXT).replace(settings.prompt, "").strip():
        yield Finding(
            "no_opening",
            "reset shows no text: the policy is not told its task",
            "add a rule with on: reset or on: both",
        )
    segments = play.trajectory.segments
    if any(piece.cut for piece in replies) or any(segment.text == CUT_OUTPUT for segment in segments):
        yield Finding(
            "cut",
            "an observation was truncated at its cap",
            "raise rollout.max_output_tokens (and environment.max_observation_chars for very long text), or map less "
            "text",
        )


def _about_actions(play: Play, limits: EpisodeLimits) -> Iterator[Finding]:
    turns = play.trajectory.turns
    if turns and not any(turn.clean_parse and turn.valid_action for turn in turns):
        warning = next((text_of(reply.pieces, Role.WARNING).strip() for reply in play.replies), "")
        yield Finding(
            "refused",
            f"every action was rejected: {warning}" if warning else "every action was rejected",
            "compare environment.action with the action schema; list meaningful actions in environment.explorer",
        )
    actions = [len(segment.token_ids) for segment in play.trajectory.segments if segment.role is Role.ACTION]
    if actions and max(actions) > limits.action_tokens:
        yield Finding(
            "long_action",
            f"an action has {max(actions)} tokens, but the policy can write at most {limits.action_tokens}",
            "raise rollout.max_action_tokens",
        )


def _about_the_end(play: Play, failed: str | None) -> Iterator[Finding]:
    trajectory = play.trajectory
    if trajectory.stop_reason == "length_cap":
        yield Finding(
            "length_cap",
            f"the episode ended at its length cap, after {len(trajectory)} tokens",
            "raise rollout.max_episode_tokens, or map less text",
        )
    elif not any(reply.done and not reply.capped for reply in play.replies):
        ending = "the episode ended at the turn cap" if trajectory.stop_reason == "turn_cap" else "the script ended"
        yield Finding(
            "never_done",
            f"the environment did not report done in {counted(len(play.replies), 'action')}: {ending}",
            "ignore this if some action ends an episode; otherwise environment.max_turns sets the length of episodes",
        )
    if (fault := fault_in(trajectory.meta)) is not None:
        yield Finding(
            "grader_fault",
            f"the grader failed: {fault}",
            "run it by hand on a line of a trajectory file; environment.reward.on_error says what a run does then",
        )
    elif failed is not None:
        yield Finding(
            "final_failed",
            failed,
            "repair what gives the reward, such as a task's tests/test.sh; an episode without a reward is left out",
        )
    elif trajectory.reward is None:
        yield Finding(
            "no_reward",
            "no reward: every reward was null, so the RL term has nothing to learn from",
            "set environment.reward: final actions that trigger scoring, a grader of your own, or none: zero",
        )
    elif trajectory.source == "expert" and trajectory.reward <= 0:
        yield Finding(
            "unsolved",
            f"the actions that should solve task {trajectory.task_id} earned reward {trajectory.reward:g}",
            "fix the task's actions or environment.reward",
        )


def _about_repetition(first: Play, second: Play) -> Iterator[Finding]:
    same_opening = text_of(first.opening, Role.CONTEXT) == text_of(second.opening, Role.CONTEXT)
    if not same_opening:
        yield Finding(
            "other_opening",
            f"task {first.task.task_id} opened with different text the second time",
            "pass all arguments that determine the episode, such as a seed, to reset: the rollouts of a group must "
            "share one task",
        )
    different = _first_difference(first.outputs, second.outputs)
    if different is not None:
        turn, one, other = different
        patterns = volatile_patterns(one, other) if same_opening else []
        if hides_too_much(patterns, first.outputs, second.outputs):
            patterns = []
        listed = ", ".join("'{}'".format(pattern.replace("'", "''")) for pattern in patterns)
        yield Finding(
            "nondeterministic",
            f"the same actions returned different text the second time, at action {turn}: {_shown(one)}, then "
            f"{_shown(other)}",
            f"exclude unpredictable text from the loss: environment.volatile: [{listed}]"
            if patterns
            else "pass what determines the episode, such as a seed, to reset; add a pattern to environment.volatile "
            "only for text that no model could predict, such as a process id or a time",
        )


def _first_difference(first: Sequence[str], second: Sequence[str]) -> tuple[int, str, str] | None:
    """Return the 1-based number of the first differing reply, and its first differing line in both; None if equal."""
    for turn in range(max(len(first), len(second))):
        one, other = (texts[turn].split("\n") if turn < len(texts) else [] for texts in (first, second))
        for number in range(max(len(one), len(other))):
            lines = [of[number] if number < len(of) else "" for of in (one, other)]
            if lines[0] != lines[1]:
                return turn + 1, lines[0], lines[1]
    return None


def volatile_patterns(first: str, second: str) -> list[str]:
    """Return patterns whose matches cover all differences of two lines; empty if there are no simple patterns."""
    one, other = _TOKENS.findall(first), _TOKENS.findall(second)
    if len(one) != len(other):
        return []
    patterns: list[str] = []
    for number, (left, right) in enumerate(zip(one, other, strict=True)):
        if left != right:
            if not re.fullmatch(r"\w+", left + right):
                return []
            kind = r"\d+" if (left + right).isdecimal() else r"\w+"
            before = "".join(_shared_end(one[:number], other[:number]))
            patterns.append(f"(?<={re.escape(before)}){kind}" if before else rf"\b{kind}")
    masked = re.compile("|".join(patterns))
    return patterns if masked.sub("", first) == masked.sub("", second) else []


def hides_too_much(patterns: Sequence[str], first: Sequence[str], second: Sequence[str]) -> bool:
    """Return whether `patterns` would mask what is to be learned, given the outputs of two plays of the same actions.

    They do if they match more than half of the letters and digits of the lines that differ between the plays, as in a
    game with random results, or if more of their matches are in lines that are equal: such text can be predicted.
    """
    if not patterns:
        return False
    masked = re.compile("|".join(patterns))
    texts = (text.split("\n") for pair in zip_longest(first, second, fillvalue="") for text in pair)
    lines = [pair for one, other in zip(texts, texts, strict=True) for pair in zip_longest(one, other, fillvalue="")]
    changing = "\n".join(line for pair in lines if pair[0] != pair[1] for line in pair)
    equal = "\n".join(line for pair in lines if pair[0] == pair[1] for line in pair)
    total, left = (len(_WORD_CHARACTER.findall(text)) for text in (changing, masked.sub("", changing)))
    return 2 * (total - left) > total or len(masked.findall(equal)) > len(masked.findall(changing))


def _shared_end(first: Sequence[str], second: Sequence[str]) -> Sequence[str]:
    """Return the shared suffix of two token lists, at most two tokens."""
    count = next((number for number in (0, 1) if first[-number - 1 :] != second[-number - 1 :]), 2)
    return first[len(first) - min(count, len(first)) :]


def _about_tasks(play: Play, elsewhere: Play | None, worlds: TaskSuite) -> Iterator[Finding]:
    if worlds.hosting.sessions == 1:
        yield Finding(
            "one_session",
            "one session at a time: rollouts are played sequentially",
            "raise the server's max_concurrent_envs; if the server does not report it, set environment.sessions",
        )
    tip = "list more tasks, or set the split of some tasks"
    if not worlds.tasks.validation:
        yield Finding("no_validation", "there is no validation task: no best step can be selected", tip)
    if not worlds.tasks.heldout:
        yield Finding("no_heldout", "there is no held-out task: the run cannot be evaluated", tip)
    for name, count in worlds.tasks.small.items():
        if count:
            yield Finding("small_split", f"the {name} split has {count} task: its figures rest on this task alone", tip)
    if elsewhere is not None and (play.opening, play.outputs) == (elsewhere.opening, elsewhere.outputs):
        yield Finding(
            "same_tasks",
            f"tasks {play.task.task_id} and {elsewhere.task.task_id} have the same opening and the same outputs",
            "check the names of the reset arguments: OpenEnv drops arguments that the environment does not accept",
        )


def _about_pools(
    play: Play, elsewhere: Play | None, worlds: TaskSuite, settings: EnvironmentConfig
) -> Iterator[Finding]:
    tasks = (*worlds.tasks.train, *worlds.tasks.validation, *worlds.tasks.heldout)
    tip = "list valid actions in environment.explorer, or the `actions` of tasks"
    if not settings.explorer and all(worlds.expert(task) is None for task in tasks):
        yield Finding(
            "no_script",
            "no action is known: if the initial policy writes no valid action, the validation and held-out pools are "
            "empty and env-CE is not measured",
            tip,
        )
    elif elsewhere is not None and any(play.outputs) and not any(elsewhere.outputs):
        yield Finding(
            "empty_pool",
            f"the actions show nothing on task {elsewhere.task.task_id}: the pool with this task may be empty",
            tip,
        )


def leak(task_id: str, reward: float) -> Finding:
    """Return the finding that an episode without any action was rewarded on a task that had been solved before."""
    return Finding(
        "leak",
        f"an episode without any action earned reward {reward:g} on task {task_id}, which was solved before: state "
        "leaks between episodes",
        "let each reset remove what earlier episodes left (files, processes, rows), or start a fresh environment for "
        "each episode",
    )


def idle_reward(task_id: str, reward: float) -> Finding:
    """Return the finding that the run's grader rewards an episode without any action."""
    return Finding(
        "idle_reward",
        f"an episode without any action earned reward {reward:g} on task {task_id}: the grader rewards doing nothing",
        "let a criterion count what the policy did: a pattern searched in the transcript also finds the task's text",
    )


def _fields(description: Description) -> list[str]:
    """Return the names of the environment's own observation fields."""
    fields = description.observation_schema.get("properties")
    return [name for name in fields if name not in ("done", "reward", "metadata")] if isinstance(fields, dict) else []


def _shown(line: str) -> str:
    return repr(line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}…")
