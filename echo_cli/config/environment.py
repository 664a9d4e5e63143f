"""The `environment` section of a config: where environments come from, and how their payloads become text."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from echo_cli.config.section import (
    Fraction,
    FreeOnResume,
    Headers,
    NonNegativeFloat,
    NonNegativeSeconds,
    PathText,
    Positive,
    PositiveFloat,
    Seconds,
    Section,
    Seed,
)
from echo_cli.errors import EchoError
from echo_cli.text import suggest
from toy_terminal_env.tasks import FAMILIES


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise EchoError(f"not a regular expression: {pattern!r}: {error}", "Python's syntax, module re") from None
    return pattern


def _is_import_path(text: str) -> str:
    module, colon, name = text.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise EchoError(f"'{text}' names no class", "write pkg.module:Class")
    return text


Pattern = Annotated[str, AfterValidator(_compiles)]
ImportPath = Annotated[str, AfterValidator(_is_import_path)]


class ToyTerminalConfig(Section):
    """The toy worlds to train in (`world_seeds`) and those that only the out-of-distribution pool sees.

    `families` restricts the tasks of every split to these kinds; empty means all of them.
    """

    world_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    ood_world_seeds: tuple[Seed, ...] = (101, 102)
    max_turns: Positive = 5
    families: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known_families(self) -> ToyTerminalConfig:
        for family in self.families:
            if family not in FAMILIES:
                raise EchoError(f"unknown task family '{family}'", suggest(family, FAMILIES, "families"))
        return self

    @model_validator(mode="after")
    def _disjoint(self) -> ToyTerminalConfig:
        seeds = (*self.world_seeds, *self.ood_world_seeds)
        if len(set(seeds)) < len(seeds):
            raise EchoError(
                f"a world occurs twice in world_seeds {list(self.world_seeds)} and ood_world_seeds "
                f"{list(self.ood_world_seeds)}",
                "name every world once, in one of the two",
            )
        return self


class ProviderConfig(Section):
    """A server that we start, once a run, on 127.0.0.1.

    `kind` is `docker` (with `image`), `uv` (with `project_path` and `app`), `process` (with `command`, in which
    `{port}` is replaced) or a provider class, `pkg.module:Class`.
    `env` are environment variables of the server; a value may name one of ours as `${NAME}`.
    """

    kind: str
    image: str | None = None
    command: tuple[str, ...] = ()
    project_path: PathText | None = None
    app: str = "server.app:app"
    port: Positive | None = None
    env: dict[str, str] = Field(default={})
    options: dict[str, Any] = Field(default={})
    """Further arguments of the provider's constructor."""
    start_timeout_s: Seconds = 60.0


TASK_SOURCES = ("file", "items", "seeds", "toy_terminal")


class TasksConfig(Section):
    """Reset arguments, one set a task: of a YAML or JSONL `file`, `items`, `seeds` 0 to N - 1, or of toy worlds.

    An entry is a mapping of reset arguments, or has them under `reset` beside `id`, `split`, `family` and `actions` (a
    script that solves the task). What names no split is put into one by a hash of its reset arguments.
    """

    file: PathText | None = None
    items: tuple[dict[str, Any], ...] = ()
    seeds: Positive | None = None
    toy_terminal: ToyTerminalConfig | None = None
    validation: Fraction = 0.15
    heldout: Fraction = 0.25

    @model_validator(mode="after")
    def _one(self) -> TasksConfig:
        given = [name for name in TASK_SOURCES if getattr(self, name) not in (None, ())]
        if len(given) != 1:
            tip = "environment.tasks has exactly one of file, items, seeds"
            raise EchoError(f"tasks come from {' and '.join(given) or 'nowhere'}", tip)
        if self.validation + self.heldout >= 1:
            raise EchoError("environment.tasks: no task is left to train on", "lower validation or heldout")
        return self


class ActionConfig(Section):
    """How a line of the policy becomes an action; what does not parse is never sent.

    - `template`: a JSON object in which `{text}` is replaced, and `{text:int}` (float, bool, json) alone gives a value.
    - `json`: the text is the action's JSON object.
    - `tool_call`: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, sent as OpenEnv's MCP `call_tool`. The tags
      may be left out where the object is all there is, and `arguments` may be `parameters`, as Llama 3 writes it.

    `extract` is searched in the text first; its first group, or the whole match, goes on.
    """

    kind: Literal["template", "json", "tool_call"] = "template"
    template: dict[str, Any] | None = None
    extract: Pattern | None = None
    penalty: NonNegativeFloat = 0.0


class ObservationRule(Section):
    """One piece of text of a payload.

    - `path` is dotted, with `[0]` and `[*]` for lists, from the observation's fields, `reward`, `done` and `metadata`.
    - `label` is the harness's text before it, or around it with `{text}`: a warning.
    - `omit` lists values that are not shown; null and empty text never are.
    - `delta` keeps what is new in a text that grows.
    - `drop_echo` makes a warning of the action at the text's start, or of a match there of a pattern in which
      `{action}` stands for it.
    - Matches of `split` are warnings.

    What a reset shows is context, warnings apart.
    """

    path: str
    role: Literal["env_output", "context", "warning"] = "env_output"
    on: Literal["reset", "step", "both"] = "both"
    channel: str | None = None
    label: str = ""
    omit: tuple[str | int | float | bool | None, ...] = ()
    delta: bool = False
    drop_echo: bool | str = False
    split: tuple[Pattern, ...] = ()


class InvalidConfig(Section):
    """Where a payload says that the action was none: the text at `path` matches `pattern`."""

    path: str
    pattern: Pattern


class FinalAction(Section):
    """An action that the harness sends when an episode ends; its text reaches no transcript."""

    action: dict[str, Any]
    counts: bool = True
    """Whether its reward is one of the episode's."""
    unless_done: bool = True
    """Left out where the environment has ended the episode itself."""


class RewardConfig(Section):
    """The episode's reward: the sum of its rewards, the last of them, or that of the `final` actions.

    A null reward is not zero: `none: skip` leaves it out, and an episode with no reward at all out of the RL term;
    `zero` counts it.
    """

    mode: Literal["sum", "last", "final"] = "sum"
    none: Literal["skip", "zero"] = "skip"
    final: tuple[FinalAction, ...] = ()

    @model_validator(mode="after")
    def _has_final(self) -> RewardConfig:
        if self.mode == "final" and not any(final.counts for final in self.final):
            raise EchoError("reward.mode is final and no final action counts", "list one under reward.final")
        return self


SOURCES = ("toy_terminal", "object", "url", "provider", "none")
SOURCE_KEYS = {"object_options": ("object",), "client": ("url", "provider"), "headers": ("url", "provider")}
"""Keys that only these sources take."""

_OF_ANY_SOURCE = ("toy_terminal", "sessions", "batch_wait_s", "attempts")
PRESETS = ("toy_terminal", "tbench2", "coding", "repl", "textarena", "echo", "agent_world_model", "maze")


class EnvironmentConfig(Section):
    """Exactly one of `toy_terminal` (the default), `object`, `url` and `provider` says where environments come from.

    Or `none: true` says that there is no environment: the run is on traces alone.
    """

    toy_terminal: ToyTerminalConfig | None = None
    object: FreeOnResume[ImportPath | None] = None
    """An OpenEnv `Environment` class, run in this process."""
    object_options: dict[str, Any] = Field(default={})
    """Arguments of its constructor."""
    url: FreeOnResume[Annotated[str, Field(pattern=r"^(http|https|ws|wss)://[^\s/]+\S*$")] | None] = None
    provider: FreeOnResume[ProviderConfig | None] = None
    none: Literal[True] | None = None
    client: FreeOnResume[ImportPath | None] = None
    """A typed OpenEnv client class to use with `url` and `provider`."""
    headers: FreeOnResume[Headers] = Field(default={})
    """HTTP headers of `url` and `provider`; values name environment variables as `${NAME}` and are stored so."""

    preset: Literal[PRESETS] | None = None  # type: ignore[valid-type]
    tasks: TasksConfig | None = None
    max_turns: Positive = 10
    prompt: str = "> "
    action: ActionConfig = ActionConfig()
    observation: tuple[ObservationRule, ...] = ()
    volatile: tuple[Pattern, ...] = ()
    """Matches in env_output that differ from run to run (pids, times): shown, never learned from."""
    exit_code: str | None = None
    invalid: InvalidConfig | None = None
    reward: RewardConfig = RewardConfig()
    explorer: tuple[str, ...] = ()
    """Actions that scripted explorers draw from."""
    max_observation_chars: Positive = 50_000

    sessions: FreeOnResume[Positive | None] = None
    batch_wait_s: FreeOnResume[NonNegativeSeconds] = 2.0
    attempts: FreeOnResume[Positive] = 3
    connect_timeout_s: FreeOnResume[Seconds] = 10.0
    step_timeout_s: FreeOnResume[Seconds] = 60.0
    retry_s: FreeOnResume[NonNegativeSeconds] = 60.0
    """How long an unavailable environment is tried again before the run gives up."""
    max_message_mb: FreeOnResume[PositiveFloat] = 100.0

    @model_validator(mode="after")
    def _one_source(self) -> EnvironmentConfig:
        given = [source for source in SOURCES if getattr(self, source) is not None]
        if len(given) != 1:
            raise EchoError(
                f"environment names {' and '.join(given) or 'no source'}", f"name exactly one of {', '.join(SOURCES)}"
            )
        if self.none:
            return self
        for key, sources in SOURCE_KEYS.items():
            if given[0] not in sources and getattr(self, key) and self.toy_terminal is None:
                tip = f"it is for {' and '.join(sources)}"
                raise EchoError(f"environment.{key} has no effect with {given[0]}", tip)
        if self.toy_terminal is None and self.tasks is None:
            raise EchoError(
                f"environment.{given[0]} has no tasks",
                "give environment.tasks: file, items or seeds; for a toy terminal's server, toy_terminal: {}",
            )
        return self

    def without_effect(self) -> str | None:
        """The first key that is set and does nothing: toy worlds have their own turns, and in this process all else.

        Without an environment, none but `none` does anything.
        """
        if self.toy_terminal is None and not self.none:
            turns = type(self).model_fields["max_turns"].default
            return "max_turns" if self.toy_worlds is not None and self.max_turns != turns else None
        for name, field in type(self).model_fields.items():
            if name not in (("none",) if self.none else _OF_ANY_SOURCE) and getattr(self, name) != field.get_default(
                call_default_factory=True
            ):
                return name
        return None

    @property
    def source(self) -> str:
        """Where environments come from, for people to read."""
        if self.provider is not None:
            return f"provider {self.provider.kind}"
        return next(
            f"{name} {value}" if isinstance(value, str) else name
            for name in SOURCES
            if (value := getattr(self, name)) is not None
        )

    @property
    def toy_worlds(self) -> ToyTerminalConfig | None:
        """The toy worlds that are played, in this process or anywhere."""
        return self.toy_terminal or (self.tasks.toy_terminal if self.tasks else None)
