"""How the policy behaves in a step's rollouts: signals that need no held-out data, only the text that was played.

Computed on-policy: over the policy's own rollouts, without scripted ones, so that runs compare over λ, which decides
whether explorers are played. Without such rollouts (verifier-free training on scripts) every signal is None.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence

from echo_cli.trajectory import Role, Trajectory, Turn, split_at_actions

BEHAVIOUR_KEYS = (
    "action_length valid_action_fraction malformed_fraction no_action_fraction capped_fraction commands_per_task "
    "command_compression observations_per_task observation_compression role_confusion"
).split()


def behaviour_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float | None]:
    """The signals of a step, by the names of `BEHAVIOUR_KEYS`; the keys are always the same.

    - `action_length`: tokens per turn that the policy wrote, the stop token included.
    - `valid_action_fraction`: of the turns, those whose action the environment could run, or an answer.
    - `malformed_fraction`, `no_action_fraction`: of the turns, those that tried to write an action and failed, and
      those that wrote none; see `Turn.parse`.
    - `capped_fraction`: of the rollouts, those that ended at a cap: an action cut, the turns or the length used up.
    - `commands_per_task`, `observations_per_task`: distinct actions, and distinct outputs that are not empty, over the
      step's distinct groups. Distinct-n with the whole line as the n-gram, over tasks instead of over turns: rollouts
      of one task come to agree in a healthy run, different tasks keep needing different commands.
    - `command_compression`, `observation_compression`: bytes over zlib-compressed bytes of all actions, one a line, and
      of all outputs. High is repetitive (Shaib et al. 2024, arXiv 2403.00553); None where nothing was written.
    - `role_confusion`: the share of turns in which the policy plays the environment, see `_confused`.
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


def is_on_policy(trajectory: Trajectory) -> bool:
    """Whether the present policy played it, to learn from its actions."""
    return trajectory.source == "policy" and not trajectory.world_model_only


def _is_capped(rollout: Trajectory) -> bool:
    return rollout.stop_reason in ("turn_cap", "length_cap")


def _compression_ratio(text: str) -> float | None:
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else None


def _confused(rollouts: Sequence[Trajectory]) -> Iterable[bool]:
    """For each turn: does its action look like the environment's reply?

    It does if the environment could not run it (a valid command or an answer is never confusion), and its line, white
    space around it apart,
    - equals a line that the environment printed in these rollouts (an action cut at its cap: begins such a line), or
    - begins with the prompt, which is the last line of the context before the action, or
    - begins with a line of the harness (an exit status, a notice) of these rollouts, whatever the numbers in it.
    An empty line is none of these.
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
    """Whether the action was cut at its cap, which ends the rollout; one that does not parse is whole."""
    return not turn.clean_parse and rollout.stop_reason == "length_cap" and turn is rollout.turns[-1]


def _prompts(rollout: Trajectory) -> Iterable[str]:
    """Yield the text before each action on its line; a line break, which no action begins with, where there is none."""
    for *_, last in split_at_actions(rollout.segments)[:-1]:
        prompt = last.text.rpartition("\n")[2].lstrip() if last.role is Role.CONTEXT else ""
        yield prompt or "\n"


def _lines(rollouts: Sequence[Trajectory], role: Role) -> set[str]:
    """The lines of the segments of `role`, white space around them apart, that are not empty.

    Echoes are left out: that line is the policy's own.
    """
    segments = (segment for rollout in rollouts for segment in rollout.segments if segment.role is role)
    said = (segment for segment in segments if (segment.role, segment.channel) != (Role.WARNING, "echo"))
    return {line.strip() for segment in said for line in segment.text.splitlines()} - {""}


def _without_numbers(line: str) -> str:
    return re.sub(r"\d+", "0", line)
