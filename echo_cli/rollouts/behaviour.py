"""Behaviour signals of the policy, computed from the text of a step's rollouts, without held-out data.

Signals are computed on-policy, excluding scripted rollouts. They are therefore comparable across λ, which determines
whether explorers are played. Without on-policy rollouts (verifier-free training on scripts) every signal is None.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

from echo_cli.config.episodes.rollout import RolloutConfig
from echo_cli.rollouts.environment_findings import Finding
from echo_cli.trajectory import Role, Trajectory, Turn, split_at_actions

BEHAVIOUR_KEYS = (
    "action_length valid_action_fraction malformed_fraction no_action_fraction capped_fraction commands_per_task "
    "command_compression observations_per_task observation_compression role_confusion"
).split()


def behaviour_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float | None]:
    """Return the signals of a step by the names in `BEHAVIOUR_KEYS`; the keys are always the same.

    - `action_length`: mean number of tokens the policy wrote per turn, including the stop token.
    - `valid_action_fraction`: fraction of turns whose action is an answer or could be run by the environment.
    - `malformed_fraction`, `no_action_fraction`: fractions of turns with a malformed action and with no action; see
      `Turn.parse`.
    - `capped_fraction`: fraction of rollouts that ended at a cap: a truncated action, the turn cap or the length cap.
    - `commands_per_task`, `observations_per_task`: number of distinct actions, and of distinct non-empty outputs,
      divided by the number of groups of the step. This is Distinct-n with the whole line as the n-gram, divided by
      tasks instead of turns: in a healthy run the rollouts of one task converge, while different tasks need different
      commands.
    - `command_compression`, `observation_compression`: bytes divided by zlib-compressed bytes of all actions, one per
      line, and of all outputs. A high ratio means repetition (Shaib et al. 2024, arXiv 2403.00553); None without text.
    - `role_confusion`: fraction of turns in which the policy imitates the environment; see `_confused`.
    """
    rollouts = [trajectory for trajectory in trajectories if is_on_policy(trajectory)]
    turns = [turn for rollout in rollouts for turn in rollout.turns]
    if not turns:
        return dict.fromkeys(BEHAVIOUR_KEYS)
    commands = [" ".join(turn.command.split()) for turn in turns]
    outputs = [turn.output for turn in turns if turn.output]
    tasks = len({rollout.group_id for rollout in rollouts})
    return {
        "action_length": sum(rollout.count(Role.ACTION) for rollout in rollouts) / len(turns),
        "valid_action_fraction": sum(turn.valid_action for turn in turns) / len(turns),
        "malformed_fraction": sum(turn.parse == "malformed" for turn in turns) / len(turns),
        "no_action_fraction": sum(turn.parse == "none" for turn in turns) / len(turns),
        "capped_fraction": sum(_is_capped(rollout) for rollout in rollouts) / len(rollouts),
        "commands_per_task": len(set(commands)) / tasks,
        "command_compression": _compression_ratio("\n".join(commands)),
        "observations_per_task": len(set(outputs)) / tasks,
        "observation_compression": _compression_ratio("".join(outputs)),
        "role_confusion": sum(_confused(rollouts)) / len(turns),
    }


def refused_fraction(trajectories: Sequence[Trajectory]) -> float | None:
    """Return the fraction of turns whose action the environment could not run; None without turns."""
    turns = [turn for rollout in trajectories for turn in rollout.turns]
    return sum(not turn.valid_action for turn in turns) / len(turns) if turns else None


_MOST = 0.5
"""Share of actions or rollouts from which on a flaw is an obstacle."""


def find_obstacles(signals: Mapping[str, float | None], rollout: RolloutConfig) -> list[Finding]:
    """Return the causes that leave rollouts of the policy with little or nothing to learn from, most severe first.

    Args:
        signals: signals by the names in `BEHAVIOUR_KEYS`, and `zero_advantage_fraction`, the fraction of the rollouts
            without reward contrast; None or absent if there is none.
    """

    def share(name: str) -> float:
        return signals.get(name) or 0.0

    found = []
    malformed, none, capped = map(share, ("malformed_fraction", "no_action_fraction", "capped_fraction"))
    refused = 1 - share("valid_action_fraction")
    if malformed >= _MOST and capped >= _MOST and share("action_length") >= _MOST * rollout.max_action_tokens:
        message = f"{malformed:.0%} of actions are malformed, most of them cut at their cap"
        tip = f"raise rollout.max_action_tokens ({rollout.max_action_tokens}), or ask for one line in "
        found.append(Finding("cut_actions", message, f"{tip}conversation.system"))
    elif malformed >= _MOST:
        tip = "state the form of an action in conversation.system, or set environment.action.extract"
        found.append(Finding("malformed_actions", f"{malformed:.0%} of actions are malformed", tip))
    elif none >= _MOST:
        tip = "state the form of an action in conversation.system"
        found.append(Finding("no_actions", f"{none:.0%} of turns contain no action", tip))
    elif refused >= _MOST and signals.get("valid_action_fraction") is not None:
        tip = "name the environment's commands in conversation.system"
        found.append(Finding("refused_actions", f"the environment cannot run {refused:.0%} of actions", tip))
    if capped >= _MOST and malformed < _MOST:
        tip = f"raise rollout.max_action_tokens ({rollout.max_action_tokens}), max_turns or rollout.max_episode_tokens"
        found.append(Finding("capped", f"{capped:.0%} of rollouts end at a cap of action, turns or length", tip))
    if signals.get("observations_per_task") == 0:
        tip = "set rollout.explorers above 0: the outputs of scripted actions are learned whatever the policy writes"
        if rollout.explorers:
            tip = f"until that changes, the env term learns from the {rollout.explorers} explorers of a step alone"
        found.append(Finding("no_observations", "no action is answered with text", tip))
    if share("zero_advantage_fraction") == 1:
        tip = "raise rollout.group_size, or choose easier tasks; the env term (λ above 0) needs no reward"
        found.append(Finding("no_contrast", "all rewards of a group are equal, in every group", tip))
    return found


def is_on_policy(trajectory: Trajectory) -> bool:
    """Return whether the policy played the trajectory and learns from its actions."""
    return trajectory.source == "policy" and not trajectory.world_model_only


def _is_capped(rollout: Trajectory) -> bool:
    return rollout.stop_reason in ("turn_cap", "length_cap")


def _compression_ratio(text: str) -> float | None:
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else None


def _confused(rollouts: Sequence[Trajectory]) -> Iterable[bool]:
    """Yield for each turn whether its action looks like output of the environment.

    This is the case if the environment could not run the action (a valid command or an answer is never confusion) and
    the action, stripped of whitespace, is not empty and
    - equals a line that the environment printed in these rollouts (if truncated at its cap: is a prefix of one), or
    - begins with the prompt, which is the last line of the context before the action, or
    - begins with a harness line (an exit status, a notice) of these rollouts, ignoring the values of numbers.
    """
    printed = _lines(rollouts, Role.ENV_OUTPUT)
    notices = tuple(_without_numbers(line) for line in _lines(rollouts, Role.WARNING))
    for rollout in rollouts:
        for turn, prompt in zip(rollout.turns, _prompts(rollout), strict=True):
            line = turn.command.strip()
            if turn.valid_action or not line:
                yield False
            elif (line + " ").startswith(prompt) or _without_numbers(line).startswith(notices):
                yield True
            else:
                yield line in printed or (_is_cut(rollout, turn) and any(whole.startswith(line) for whole in printed))


def _is_cut(rollout: Trajectory, turn: Turn) -> bool:
    """Return whether the action was truncated at its cap, which ends the rollout."""
    return not turn.clean_parse and rollout.stop_reason == "length_cap" and turn is rollout.turns[-1]


def _prompts(rollout: Trajectory) -> Iterable[str]:
    """Yield the prompt of each action: the text before it on its line.

    For an action without a prompt, yield a line break, with which no action begins.
    """
    for *_, last in split_at_actions(rollout.segments)[:-1]:
        prompt = last.text.rpartition("\n")[2].lstrip() if last.role is Role.CONTEXT else ""
        yield prompt or "\n"


def _lines(rollouts: Sequence[Trajectory], role: Role) -> set[str]:
    """Return the non-empty lines, stripped of whitespace, of the segments with a role.

    Echoes are excluded, because their text is the policy's own.
    """
    segments = (segment for rollout in rollouts for segment in rollout.segments if segment.role is role)
    said = (segment for segment in segments if (segment.role, segment.channel) != (Role.WARNING, "echo"))
    return {line.strip() for segment in said for line in segment.text.splitlines()} - {""}


def _without_numbers(line: str) -> str:
    return re.sub(r"\d+", "0", line)
