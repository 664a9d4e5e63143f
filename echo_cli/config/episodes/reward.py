"""The `reward` section of an environment: what an episode is worth, by its environment or by a grader of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from echo_cli.config.section import (
    FreeOnResume,
    ImportPath,
    Pattern,
    Positive,
    Seconds,
    Section,
    absolute,
    refuse_secret_words,
    refuse_secrets,
)
from echo_cli.errors import EchoError

ANSWER = "{answer}"
"""In a criterion's pattern, stands for the task's `answer`, taken literally."""


def _program(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command whose program, if it is a path, is absolute: a run is resumed from any folder."""
    return (absolute(command[0]), *command[1:]) if command and "/" in command[0] else command


Command = Annotated[tuple[str, ...], AfterValidator(_program)]
"""A program and its arguments, run without a shell."""

CriterionName = Annotated[str, Field(pattern=r"^[A-Za-z]\w{0,39}$")]


class FinalAction(Section):
    """An action that the harness sends when an episode ends; the transcript omits it."""

    action: dict[str, Any]
    counts: bool = True
    """Whether the action's reward is part of the episode's reward."""
    unless_done: bool = True
    """Whether to skip the action if the environment has ended the episode."""


class Criterion(Section):
    """A criterion of a rubric, by exactly one of four kinds. Its value is a number, usually between 0 and 1.

    - `pattern`: 1 if the regular expression matches somewhere in the `search`ed text, else 0. `{answer}` in it stands
      for the task's answer.
    - `exit_status`: 1 if the last command of the episode that has an exit status has this one, else 0. With `command`:
      1 if the command ends with this status, else 0.
    - `function`: the number that `pkg.mod:function` returns for the episode.
    - `command`: the number that the command prints for the episode on its standard input.

    A criterion of weight 0 is a metric and no part of the reward.
    """

    name: CriterionName
    weight: float = 1.0
    pattern: Pattern | None = None
    search: Literal["answer", "transcript"] = "answer"
    """Text that `pattern` is searched in: the policy's last action, or the whole episode."""
    exit_status: int | None = None
    function: ImportPath | None = None
    command: Command = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Criterion:
        kinds = [kind for kind in ("pattern", "function", "command") if getattr(self, kind) not in (None, ())]
        if self.exit_status is not None and kinds != ["command"]:
            kinds.append("exit_status")
        if len(kinds) != 1:
            raise EchoError(
                f"the criterion {self.name} sets {' and '.join(kinds) or 'no kind'}",
                "set exactly one of pattern, exit_status, function, command; exit_status may stand beside command",
            )
        if self.pattern is None and self.search != "answer":
            raise EchoError(f"search of the criterion {self.name} has no effect without pattern", "omit it")
        return self


class RewardConfig(Section):
    """Episode reward: the environment's own, or that of a grader.

    The environment's own is the sum of the step rewards, the last step reward, or the reward of the `final` actions
    (`mode`). `none: skip` ignores null rewards and excludes an episode with only null rewards from the RL term;
    `none: zero` counts a null reward as 0.

    A grader is called once with each finished episode: a `function`, a `command`, or a `rubric` of criteria. Its reward
    replaces the environment's own, which it finds in the episode.
    """

    mode: Literal["sum", "last", "final"] = "sum"
    none: Literal["skip", "zero"] = "skip"
    final: tuple[FinalAction, ...] = ()

    function: ImportPath | None = None
    """Function of the finished episode that returns a number, or a value for each of `criteria`."""
    command: Annotated[Command, Field(min_length=1)] | None = None
    """Command that prints a number, or a JSON object with a value for each of `criteria`; the episode is its stdin."""
    criteria: dict[CriterionName, float] = Field(default={})
    """Weights of the criteria that `function` or `command` gives values for; empty if it gives one number."""
    rubric: Annotated[tuple[Criterion, ...], Field(min_length=1)] | None = None
    on_error: FreeOnResume[Literal["skip", "zero", "stop"]] = "skip"
    """Consequence of a grader that fails: the episode has no reward, the reward 0, or the run ends."""
    timeout_s: FreeOnResume[Seconds] = 60.0
    """Maximum duration of one call of a function, command or pattern, seconds."""
    workers: FreeOnResume[Positive] = 4
    """Maximum number of episodes that are graded at once, each in a process of its own."""
    env: FreeOnResume[dict[str, str]] = Field(default={})
    """Environment variables of the grader, besides those of an allow-list; a secret is written as `${NAME}`."""

    @model_validator(mode="after")
    def _has_final(self) -> RewardConfig:
        if self.mode == "final" and not any(final.counts for final in self.final):
            raise EchoError(
                "reward.mode is final and reward.final has no action with counts: true", "add one to reward.final"
            )
        return self

    @model_validator(mode="after")
    def _one_grader(self) -> RewardConfig:
        given = [name for name in ("function", "command", "rubric") if getattr(self, name)]
        if len(given) > 1:
            raise EchoError(f"environment.reward sets {' and '.join(given)}", "set one of them; a rubric can hold both")
        if not given:
            for name in ("criteria", "on_error", "timeout_s", "workers", "env"):
                if getattr(self, name) != type(self).model_fields[name].get_default():
                    tip = "set function, command or rubric, or omit it"
                    raise EchoError(f"environment.reward.{name} has no effect without a grader", tip)
        if self.criteria and self.rubric:
            tip = "write the weights in the rubric"
            raise EchoError("environment.reward.criteria has no effect with a rubric", tip)
        names = [criterion.name for criterion in self.rubric or ()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise EchoError(f"two criteria of environment.reward.rubric are named {twice}", "rename one")
        if self.weights and max(self.weights.values()) <= 0:
            zero = all(weight == 0 for weight in self.weights.values())
            problem = "all weights are 0" if zero else "no weight is above 0"
            raise EchoError(f"environment.reward: {problem}", "give at least one criterion a weight above 0")
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> RewardConfig:
        refuse_secrets("environment.reward.env", self.env)
        for command in (self.command or (), *(criterion.command for criterion in self.rubric or ())):
            refuse_secret_words("environment.reward.command", command)
        return self

    @property
    def has_grader(self) -> bool:
        """Whether a grader gives the reward."""
        return self.function is not None or bool(self.command or self.rubric)

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of the named criteria, in order; empty if the grader gives one number."""
        return {criterion.name: criterion.weight for criterion in self.rubric or ()} or self.criteria

    @property
    def functions(self) -> tuple[str, ...]:
        """Functions that grade, as import paths."""
        named = (self.function, *(criterion.function for criterion in self.rubric or ()))
        return tuple(dict.fromkeys(name for name in named if name is not None))

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """Commands that grade."""
        named = (self.command or (), *(criterion.command for criterion in self.rubric or ()))
        return tuple(dict.fromkeys(command for command in named if command))
