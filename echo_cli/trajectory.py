"""Trajectories: episodes in the tokens of one policy, as role-tagged segments with a reward and a stop reason.

Roles are OpenEnv RFC 010's. A segment's role is decided where its text is produced and never re-derived
from token ids, padding or the text itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import BeforeValidator, ConfigDict, PlainSerializer, TypeAdapter, ValidationError, WithJsonSchema

from echo_cli.errors import EchoError
from echo_cli.symlinks import opener
from echo_cli.text import escape_unprintable


class Role(IntEnum):
    """Role of a token. PAD exists only in tensors, END only in trajectories to be scored (`renderer.mark_ends`)."""

    PAD = 0
    CONTEXT = 1
    ACTION = 2
    ENV_OUTPUT = 3
    WARNING = 4
    END = 5


NAMED_ROLES: dict[str, Role] = {role.name.lower(): role for role in Role if role not in (Role.PAD, Role.END)}
"""Roles of recorded text, by name."""


def _role(name: Any) -> Role:
    if not isinstance(name, str) or name not in NAMED_ROLES:
        raise ValueError(f"a role is one of {', '.join(NAMED_ROLES)}")
    return NAMED_ROLES[name]


NamedRole = Annotated[
    Role,
    BeforeValidator(_role),
    PlainSerializer(lambda role: role._name_.lower(), return_type=str),  # `name` is three times as slow
    WithJsonSchema({"enum": list(NAMED_ROLES), "type": "string"}),
]
"""A role that is written to JSON as its name."""

FORMAT: Literal["echo-cli trajectory 1"] = "echo-cli trajectory 1"
"""Value of `format` in a line of a trajectory file. Lines of earlier versions lack it and are read alike."""

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Source = Literal["policy", "explorer", "expert", "trace"]
"""Actor: the policy in training, a script (`explorer`, `expert`), or the agent of an imported trace."""
StopReason = Literal["answered", "turn_cap", "length_cap", "script_end", "aborted", "unknown"]
Parse = Literal["valid", "malformed", "none"]
"""Whether the policy's text is an action (`valid`), a failed attempt at one (`malformed`) or no attempt (`none`)."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one role. `logprobs` are the behaviour logprobs of sampled action tokens, in nats.

    `transient` is the number of leading tokens that later turns do not see: dropped thinking. `context_views` defines
    how a trajectory with such tokens is scored.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    role: NamedRole
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    channel: str | None = None
    transient: int = 0

    def __post_init__(self) -> None:
        if self.role is Role.PAD:
            raise ValueError("a segment cannot have the role PAD")
        if self.logprobs is not None:
            if self.role is not Role.ACTION:
                raise ValueError(f"only action segments carry logprobs, not {self.role.name.lower()}")
            if len(self.logprobs) != len(self.token_ids):
                raise ValueError(f"{len(self.logprobs)} logprobs for {len(self.token_ids)} action tokens")
        if self.transient and (self.role is not Role.ACTION or not 0 < self.transient <= len(self.token_ids)):
            tokens = f"{len(self.token_ids)} {self.role.name.lower()} tokens"
            raise ValueError(f"{self.transient} transient tokens in a segment of {tokens}")


@dataclass(frozen=True)
class Turn:
    """Summary of an exchange for counts and filters: the parsed command and its result."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    command: str
    output: str
    """Text of the env_output segments as the policy saw it, cut at the output cap."""
    exit_code: int | None
    valid_action: bool
    """Whether the environment could run the action, or the action was an answer."""
    clean_parse: bool
    """Whether the action parsed without a notice: it ended with its stop token and was not cut."""
    parse: Parse | None = None
    """Result of the parse; `valid` if and only if `clean_parse`. None in logs of versions that did not record it."""

    def __post_init__(self) -> None:
        if self.parse is not None and self.clean_parse is not (self.parse == "valid"):
            raise ValueError(f"a turn whose clean_parse is {self.clean_parse} cannot be {self.parse}")


class RoleText(Protocol):
    """Text with a role: a segment of a trajectory or of a trace, complete or under construction."""

    @property
    def role(self) -> Role:
        """Role of the segment."""
        ...

    @property
    def text(self) -> str:
        """Text of the segment."""
        ...


AnySegment = TypeVar("AnySegment", bound=RoleText)


@dataclass(frozen=True)
class Exchange(Generic[AnySegment]):
    """An action and everything returned before the next action."""

    turn: Turn
    segments: tuple[AnySegment, ...]
    """The action, then everything returned for it, of any role."""
    place: int
    """Index of the action among the segments of its episode, 0-based."""

    @property
    def action(self) -> AnySegment:
        """Segment of the action."""
        return self.segments[0]

    @property
    def outputs(self) -> tuple[AnySegment, ...]:
        """Segments of env_output: two if a command wrote to both stdout and stderr."""
        return tuple(segment for segment in self.segments if segment.role is Role.ENV_OUTPUT)

    @property
    def span(self) -> slice:
        """Slice of the episode's segments, or of any list with one entry per segment, that belongs to the exchange."""
        return slice(self.place, self.place + len(self.segments))


def split_at_actions(segments: Sequence[AnySegment]) -> list[tuple[AnySegment, ...]]:
    """Split an episode before each action: the opening, which may be empty, then one part per action."""
    actions = [place for place, segment in enumerate(segments) if segment.role is Role.ACTION]
    return [tuple(segments[start:end]) for start, end in pairwise([0, *actions, len(segments)])]


def exchanges(segments: Sequence[AnySegment], turns: Sequence[Turn]) -> list[Exchange[AnySegment]]:
    """Return the exchanges of an episode, in order. Segments before the first action belong to no exchange.

    The last turns of an aborted episode may lack an action segment; they get no exchange.

    Raises:
        ValueError: an action has no turn.
    """
    opening, *parts = split_at_actions(segments)
    if len(parts) > len(turns):
        raise ValueError(f"{len(parts)} actions and {len(turns)} turns")
    places = accumulate(map(len, parts), initial=len(opening))
    return [Exchange(*each) for each in zip(turns, parts, places, strict=False)]


def text_of(segments: Iterable[RoleText], role: Role) -> str:
    """Join the text of the segments of `role`."""
    return "".join(segment.text for segment in segments if segment.role is role)


@dataclass(frozen=True)
class Trajectory:
    """One episode. Rollouts of the same task in the same step share `group_id`.

    `reward` is None if no verifier was called. `world_model_only` rollouts get the env term and no RL term.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    task_id: str
    group_id: str
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    reward: float | None
    stop_reason: StopReason
    source: Source
    world_model_only: bool = False
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.segments:
            raise ValueError("a trajectory needs at least one segment")
        if self.segments[0].role is not Role.CONTEXT or not self.segments[0].token_ids:
            raise ValueError("a trajectory starts with context tokens: position 0 is never a target")
        learned = self.source == "policy" and not self.world_model_only
        if learned and any(s.role is Role.ACTION and s.logprobs is None for s in self.segments):
            raise ValueError("a policy rollout needs the behaviour logprobs of its action tokens")

    @property
    def token_ids(self) -> list[int]:
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def roles(self) -> list[Role]:
        return [segment.role for segment in self.segments for _ in segment.token_ids]

    @property
    def starts(self) -> list[int]:
        """Position of the first token of each segment, 0-based."""
        return [*accumulate((len(segment.token_ids) for segment in self.segments[:-1]), initial=0)]

    def __len__(self) -> int:
        return sum(len(segment.token_ids) for segment in self.segments)

    def exchanges(self) -> list[Exchange[Segment]]:
        """Return the exchanges, in order. See the function `exchanges`."""
        return exchanges(self.segments, self.turns)

    def count(self, role: Role) -> int:
        """Count the tokens of `role`."""
        return sum(len(segment.token_ids) for segment in self.segments if segment.role is role)

    def to_json(self) -> dict[str, Any]:
        """Return the trajectory as a JSON object; `from_json` is the inverse."""
        record = {"format": FORMAT, **asdict(self)}
        for segment in record["segments"]:
            segment["role"] = Role(segment["role"]).name.lower()
            if not segment["transient"]:
                del segment["transient"]
        for turn in record["turns"]:
            if turn["parse"] is None:
                del turn["parse"]
        return record

    @staticmethod
    def from_json(record: dict[str, Any]) -> Trajectory:
        """Return the trajectory of an object that `to_json` returned.

        Raises:
            ValueError: a field is missing, unknown, of the wrong type (including text that is not Unicode) or violates
                an invariant.
        """
        if record.get("format", FORMAT) != FORMAT:
            raise ValueError(f"unknown format {record['format']!r}; this version reads {FORMAT!r}")
        record = {key: value for key, value in record.items() if key != "format"}
        try:
            return _adapter().validate_json(json.dumps(record))
        except ValidationError as error:
            raise ValueError(first_problem(error)) from error


def first_problem(error: ValidationError) -> str:
    """Return the first validation error of a record, prefixed with the path of the field."""
    details = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in details["loc"])
    return f"{where}: {details['msg']}" if where else details["msg"]


def bad_line(path: Path, number: int, error: Exception, noun: Literal["trajectory", "trace"]) -> EchoError:
    """Return the error for a line of a trajectory file that is not a `noun`; `number` is 1-based."""
    problem = f"{escape_unprintable(path)}:{number}: not a {noun}: {escape_unprintable(str(error))}"
    return EchoError(problem, "see docs/trajectory-format.md for the format")


@cache
def _adapter() -> TypeAdapter[Trajectory]:
    return TypeAdapter(Trajectory)


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Append `trajectories` to a trajectory file."""
    with open(path, "a", encoding="utf-8", opener=opener) as file:
        for trajectory in trajectories:
            file.write(json.dumps(trajectory.to_json(), ensure_ascii=False) + "\n")


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """Stream the trajectories of a trajectory file whose lines all have token ids.

    Raises:
        EchoError: a line is not a trajectory; the message names file and line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not a JSON object")
                yield Trajectory.from_json(record)
            except (ValueError, RecursionError) as error:
                raise bad_line(path, number, error, "trajectory") from error


def visible(trajectory: Trajectory) -> Trajectory:
    """Return `trajectory` without transient tokens: the transcript as later turns see it. Texts do not change."""
    if not any(segment.transient for segment in trajectory.segments):
        return trajectory
    return replace(trajectory, segments=tuple(map(_visible, trajectory.segments)))


def context_views(trajectory: Trajectory) -> list[Trajectory]:
    """Return the sequences in which the targets of `trajectory` are scored.

    Without transient tokens this is `trajectory` alone. Otherwise the first sequence is the visible transcript, whose
    targets are the observations and the actions without transient tokens. One sequence follows per action with
    transient tokens: the transcript visible before it, as context, and the action, whose tokens are the only targets.
    """
    base = visible(trajectory)
    if base is trajectory:
        return [trajectory]
    context = tuple(replace(segment, role=Role.CONTEXT, logprobs=None) for segment in base.segments)
    played = trajectory.segments
    seen = tuple(context[n] if played[n].transient else segment for n, segment in enumerate(base.segments))
    actions = [(*context[:n], replace(segment, transient=0)) for n, segment in enumerate(played) if segment.transient]
    return [replace(trajectory, segments=segments) for segments in (seen, *actions)]


@dataclass(frozen=True)
class ContextViews:
    """Context views of a step's rollouts, and the index of each view's rollout."""

    trajectories: tuple[Trajectory, ...]
    owners: tuple[int, ...]


def expand_context_views(trajectories: Sequence[Trajectory], *, use_rl: bool) -> ContextViews:
    """Return the context views of `trajectories`, in order.

    Views of single actions are omitted where actions are not targets: without RL, and in `world_model_only` rollouts.
    """
    found = [
        (view, owner)
        for owner, trajectory in enumerate(trajectories)
        for view in context_views(trajectory)[: None if use_rl and not trajectory.world_model_only else 1]
    ]
    return ContextViews(tuple(view for view, _ in found), tuple(owner for _, owner in found))


def _visible(segment: Segment) -> Segment:
    first = segment.transient
    logprobs = None if segment.logprobs is None else segment.logprobs[first:]
    return replace(segment, token_ids=segment.token_ids[first:], logprobs=logprobs, transient=0)


SCAFFOLD, VOLATILE = "scaffold", "volatile"
"""Channels of the segments that a renderer adds, which rendering again drops, and of volatile text in an output."""
CUT_ACTION = "\n[action cut]\n"
CUT_OUTPUT = "[output cut]\n"
CUT_NOTICE = "notice"
"""Channel of the warnings CUT_ACTION and CUT_OUTPUT."""

WRAPPER, TOOL_RESULT, TOOL_ERROR, TOOLS = "wrapper", "tool_result", "tool_error", "tools"
"""Channels of the text around a tool's answer, the answer, an answer that reports an error, and the list of tools."""
OPEN, CLOSE = "<tool_response>\n", "\n</tool_response>\n"
