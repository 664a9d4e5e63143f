"""The `environment` section of a config: the source of environments, and how their payloads are converted to text."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, PrivateAttr, model_validator

from echo_cli.config.episodes.reward import RewardConfig
from echo_cli.config.episodes.tasks import TasksConfig
from echo_cli.config.mcp import MCP_PRESETS, ActionLine, McpConfig
from echo_cli.config.section import (
    NO_GRANTS,
    AbsolutePath,
    FreeOnResume,
    Grants,
    Headers,
    ImportPath,
    NonNegativeFloat,
    NonNegativeSeconds,
    Pattern,
    Positive,
    PositiveFloat,
    Seconds,
    Section,
    refuse_credentials,
    refuse_secret_words,
    refuse_secrets,
)
from echo_cli.config.terminal import TerminalConfig
from echo_cli.config.toy_terminal import ToyTerminalConfig
from echo_cli.errors import EchoError


class ProviderLimits(Section):
    """Limits of a started server and every process below it; null switches a limit off.

    The server is stopped if it exceeds a limit. `cpus` limits containers only.
    """

    memory_mb: Positive | None = 8192
    """Maximum memory of all its processes together, and of each, MiB."""
    processes: Positive | None = 512
    file_mb: Positive | None = 1024
    """Maximum size of a file that it writes, MiB."""
    cpus: PositiveFloat | None = None


class ProviderConfig(Section):
    """A server that echo-cli starts once per run, on 127.0.0.1.

    `kind` is `docker` (with `image`), `uv` (with `project_path` and `app`), `process` (with `command`, in which
    `{port}` is replaced by the port) or a provider class, `pkg.module:Class`.
    `env` holds the server's environment variables. A value there and in `options` may refer to a variable of this
    process as `${NAME}`, and must do so for a secret. The server gets no other secret of this process.
    """

    kind: str
    image: str | None = None
    command: tuple[str, ...] = ()
    project_path: AbsolutePath | None = None
    app: str = "server.app:app"
    port: Positive | None = None
    env: dict[str, str] = Field(default={})
    options: dict[str, Any] = Field(default={})
    """Additional arguments of the provider's constructor."""
    start_timeout_s: Seconds = 60.0
    limits: ProviderLimits = ProviderLimits()

    @model_validator(mode="after")
    def _no_secrets(self) -> ProviderConfig:
        refuse_secrets("environment.provider.env", self.env)
        refuse_secrets("environment.provider.options", self.options)
        refuse_secret_words("environment.provider.command", self.command)
        return self


class ActionConfig(Section):
    """Parsing of the policy's text into an action. Text that does not parse is never sent.

    - `template`: a JSON object in which `{text}` is replaced by the text. A value that is exactly `{text:int}` (or
      float, bool, json) is replaced by the text converted to that type.
    - `json`: the text is the action's JSON object.
    - `tool_call`: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, sent as OpenEnv's MCP `call_tool`. The tags
      are optional if the object is the entire text. `parameters`, as Llama 3 writes it, is accepted for `arguments`.

    If `extract` is set, only the first group of its first match in the text is parsed, or the whole match if it has no
    group.
    """

    kind: Literal["template", "json", "tool_call"] = "template"
    template: dict[str, Any] | None = None
    extract: Pattern | None = None
    words_end: bool = False
    """Whether text without a tool call is the policy's answer, which ends the episode (kind `tool_call`)."""
    penalty: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _has_calls(self) -> ActionConfig:
        if self.words_end and self.kind != "tool_call":
            raise EchoError(f"action.words_end has no effect with kind {self.kind}", "omit it, or set kind: tool_call")
        return self


class ObservationRule(Section):
    """A rule that extracts one piece of text from a payload.

    - `path`: dotted path, with `[0]` and `[*]` for lists, into the observation's fields, `reward`, `done` and
      `metadata`.
    - `channel`: name of the text's origin in reports; `channel_path` takes the name from a path in the payload.
    - `label`: harness text before the piece, or around it with `{text}`; its role is warning.
    - `omit`: values to hide. Null and empty text are always hidden.
    - `delta`: show only the new part of a text that grows.
    - `drop`: patterns whose matches are removed: neither the policy nor the loss sees them.
    - `drop_echo`: mark an echo of the action at the start of the text as warning. The echo is the action itself, or the
      match of a pattern in which `{action}` is replaced by the action.
    - `echo_omits`: patterns of text that the environment removes from an action before it repeats it.
    - `split`: patterns whose matches are marked as warning.

    Text shown on reset is context, except warnings.
    """

    path: str
    role: Literal["env_output", "context", "warning"] = "env_output"
    on: Literal["reset", "step", "both"] = "both"
    channel: str | None = None
    channel_path: str | None = None
    label: str = ""
    omit: tuple[str | int | float | bool | None, ...] = ()
    delta: bool = False
    drop: tuple[Pattern, ...] = ()
    drop_echo: bool | str = False
    echo_omits: tuple[Pattern, ...] = ()
    split: tuple[Pattern, ...] = ()


class InvalidConfig(Section):
    """Condition for an invalid action: the text at `path` in the payload matches `pattern`."""

    path: str
    pattern: Pattern


SOURCES = ("toy_terminal", "object", "url", "provider", "terminal", "mcp", "none")
SOURCE_KEYS = {"object_options": ("object",), "client": ("url", "provider"), "headers": ("url", "provider")}
"""Keys that have an effect only with the listed sources."""

OF_ANY_SOURCE = ("toy_terminal", "sessions", "batch_wait_s", "attempts")
"""Keys that have an effect with the toy terminal too."""

PRESETS = (
    *("toy_terminal", "tbench2", "coding", "repl", "textarena", "echo", "agent_world_model", "maze", "terminal"),
    *MCP_PRESETS,
)


AnyEnvironment = TypeVar("AnyEnvironment", bound="EnvironmentConfig")


class EnvironmentConfig(Section):
    """Exactly one source of environments: `toy_terminal` (the default), `object`, `url`, `provider`,
    `terminal`, `mcp` or `none`.

    With `none: true` there is no environment, and the run trains on traces alone.
    """

    _grants: Grants = PrivateAttr(default=NO_GRANTS)
    """Permissions of this command line; see `Config.granted`."""
    toy_terminal: ToyTerminalConfig | None = None
    object: FreeOnResume[ImportPath | None] = None
    """An OpenEnv `Environment` class, run in this process."""
    object_options: dict[str, Any] = Field(default={})
    """Arguments of the constructor of `object`; the class reads a secret from its environment variables instead."""
    url: FreeOnResume[Annotated[str, Field(pattern=r"^(http|https|ws|wss)://[^\s/]+\S*$")] | None] = None
    provider: FreeOnResume[ProviderConfig | None] = None
    terminal: TerminalConfig | None = None
    mcp: McpConfig | None = None
    none: Literal[True] | None = None
    client: FreeOnResume[ImportPath | None] = None
    """A typed OpenEnv client class, for `url` and `provider`."""
    headers: FreeOnResume[Headers] = Field(default={})
    """HTTP headers for `url` and `provider`; values refer to environment variables as `${NAME}`, also when stored."""

    preset: Literal[PRESETS] | None = None  # type: ignore[valid-type]
    tasks: TasksConfig | None = None
    max_turns: Positive = 10
    prompt: str = "> "
    action: ActionConfig = ActionConfig()
    observation: tuple[ObservationRule, ...] = ()
    volatile: tuple[Pattern, ...] = ()
    """Patterns of text in env_output that differs between runs (pids, times): shown, but excluded from the loss."""
    exit_code: str | None = None
    invalid: InvalidConfig | None = None
    reward: RewardConfig = RewardConfig()
    explorer: tuple[ActionLine, ...] = ()
    """Actions from which scripted explorers draw."""
    max_observation_chars: Positive = 50_000

    sessions: FreeOnResume[Positive | None] = None
    batch_wait_s: FreeOnResume[NonNegativeSeconds] = 2.0
    attempts: FreeOnResume[Positive] = 3
    connect_timeout_s: FreeOnResume[Seconds] = 10.0
    step_timeout_s: FreeOnResume[Seconds] = 60.0
    retry_s: FreeOnResume[NonNegativeSeconds] = 60.0
    """Maximum time to retry an unavailable environment before the run fails, seconds."""
    max_message_mb: FreeOnResume[PositiveFloat] = 100.0

    @model_validator(mode="after")
    def _no_secrets(self) -> EnvironmentConfig:
        tip = "let the class read it from an environment variable"
        refuse_secrets("environment.object_options", self.object_options, tip)
        refuse_credentials("environment.url", self.url)
        return self

    @model_validator(mode="after")
    def _one_source(self) -> EnvironmentConfig:
        given = [source for source in SOURCES if getattr(self, source) is not None]
        if len(given) != 1:
            raise EchoError(
                f"environment sets {' and '.join(given) or 'no source'}", f"set exactly one of {', '.join(SOURCES)}"
            )
        if self.none:
            return self
        for key, sources in SOURCE_KEYS.items():
            if given[0] not in sources and getattr(self, key) and self.toy_terminal is None:
                tip = f"it applies only to {' and '.join(sources)}"
                raise EchoError(f"environment.{key} has no effect with {given[0]}", tip)
        if self.terminal is not None and self.tasks is not None:
            raise EchoError("environment.tasks has no effect with terminal", "omit it: the task folders are the tasks")
        if self.toy_terminal is None and self.tasks is None and self.terminal is None:
            raise EchoError(
                f"environment.{given[0]} has no tasks",
                "set file, items, seeds or dataset in environment.tasks; for a toy terminal server, toy_terminal: {}",
            )
        return self

    @model_validator(mode="after")
    def _has_exit_status(self) -> EnvironmentConfig:
        for criterion in self.reward.rubric or ():
            if criterion.exit_status is not None and not criterion.command and self.exit_code is None:
                raise EchoError(
                    f"the criterion {criterion.name} has an exit_status and environment.exit_code is null",
                    "set environment.exit_code to the path of the exit status in the environment's payload",
                )
        return self

    def without_effect(self) -> str | None:
        """Return the first key that is set and has no effect, or None.

        Toy worlds on a server have their own `max_turns`; toy worlds in this process ignore most other keys as well.
        Without an environment, every key but `none` has no effect.
        """
        if self.toy_terminal is None and not self.none:
            turns = type(self).model_fields["max_turns"].default
            return "max_turns" if self.toy_worlds is not None and self.max_turns != turns else None
        for name, field in type(self).model_fields.items():
            if name not in (("none",) if self.none else OF_ANY_SOURCE) and getattr(self, name) != field.get_default(
                call_default_factory=True
            ):
                return name
        return None

    @property
    def grants(self) -> Grants:
        return self._grants

    def granted(self: AnyEnvironment, grants: Grants) -> AnyEnvironment:
        """Return the section with permissions of this command line."""
        section = self.model_copy()
        section._grants = replace(grants, fetch=grants.fetch or self._grants.fetch)
        return section

    @property
    def source(self) -> str:
        """Source of environments, as text for people."""
        if self.provider is not None:
            return f"provider {self.provider.kind}"
        if self.terminal is not None:
            return f"terminal tasks of {self.terminal.place}, runtime {self.terminal.runtime}"
        if self.mcp is not None:
            return f"mcp {self.mcp.place}"
        return next(
            f"{name} {value}" if isinstance(value, str) else name
            for name in SOURCES
            if (value := getattr(self, name)) is not None
        )

    @property
    def can_explore(self) -> bool:
        """Whether scripted explorers have lines to type."""
        return self.toy_worlds is not None or bool(self.explorer)

    @property
    def toy_worlds(self) -> ToyTerminalConfig | None:
        """Toy worlds of the run, in this process or on a server; None if it plays other environments."""
        return self.toy_terminal or (self.tasks.toy_terminal if self.tasks else None)
