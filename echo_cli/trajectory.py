"""A trajectory: an episode in the tokens of one policy, in role-tagged segments, with its reward and its ending.

Roles are OpenEnv RFC 010's. A segment's role is decided where its text is produced and never derived again
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
from echo_cli.text import escape_unprintable


class Role(IntEnum):
    """Who a token belongs to. PAD exists only in tensors."""

    PAD = 0
    CONTEXT = 1
    ACTION = 2
    ENV_OUTPUT = 3
    WARNING = 4


_ROLES: dict[str, Role] = {role.name.lower(): role for role in Role if role is not Role.PAD}
_NAMES: dict[Role, str] = {role: name for name, role in _ROLES.items()}


def _role(name: Any) -> Role:
    if not isinstance(name, str) or name not in _ROLES:
        raise ValueError(f"a role is one of {', '.join(_ROLES)}")
    return _ROLES[name]


NamedRole = Annotated[
    Role,
    BeforeValidator(_role),
    PlainSerializer(_NAMES.__getitem__, return_type=str),
    WithJsonSchema({"enum": list(_ROLES), "type": "string"}),
]
"""A role that stands in JSON by its name."""

FORMAT: Literal["echo-cli trajectory 1"] = "echo-cli trajectory 1"
"""Value of `format` in a line of a trajectory file; a line without it is of an earlier version, and the same."""

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Source = Literal["policy", "explorer", "expert", "trace"]
"""Who acted: the policy in training, a script, or whoever acted in an imported trace."""
StopReason = Literal["answered", "turn_cap", "length_cap", "script_end", "aborted", "unknown"]
Parse = Literal["valid", "malformed", "none"]
"""What a policy wrote is an action, tried to be one and failed, or does not try to be one."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one role. `logprobs` are the behaviour logprobs of sampled actions, one a token.

    `transient` counts the leading tokens that nothing after the segment has seen: thinking that later turns drop. See
    `context_views` for how such a trajectory is scored.
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
            raise ValueError(f"{self.transient} transient tokens in {len(self.token_ids)} of {self.role.name.lower()}")


@dataclass(frozen=True)
class Turn:
    """The summary of an exchange, for counting and filters: the parsed command and what it gave."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    command: str
    output: str
    """The text of its env_output segments: what the policy met, cut where the cap cut it."""
    exit_code: int | None
    valid_action: bool
    """The action was one the environment could run (or an answer)."""
    clean_parse: bool
    """The action parsed without notice: it ended with its stop token and was not cut."""
    parse: Parse | None = None
    """`valid` where the parse is clean. None in logs of versions that did not record it."""

    def __post_init__(self) -> None:
        if self.parse is not None and self.clean_parse is not (self.parse == "valid"):
            raise ValueError(f"a turn whose clean_parse is {self.clean_parse} cannot be {self.parse}")


class RoleText(Protocol):
    """A segment of a trajectory or of a trace, or a piece of one in the making."""

    @property
    def role(self) -> Role:
        """Whose text it is."""
        ...

    @property
    def text(self) -> str:
        """Text of the segment."""
        ...


AnySegment = TypeVar("AnySegment", bound=RoleText)


@dataclass(frozen=True)
class Exchange(Generic[AnySegment]):
    """An action and all that came back before the next one."""

    turn: Turn
    segments: tuple[AnySegment, ...]
    """The action, then what came back, whatever its roles."""
    place: int
    """Index of the action among the segments of its episode."""

    @property
    def action(self) -> AnySegment:
        """The segment of the action."""
        return self.segments[0]

    @property
    def outputs(self) -> tuple[AnySegment, ...]:
        """The env_output segments: two where a command wrote to stdout and to stderr."""
        return tuple(segment for segment in self.segments if segment.role is Role.ENV_OUTPUT)

    @property
    def span(self) -> slice:
        """Indices of the segments in their episode, and so of whatever is listed segment by segment."""
        return slice(self.place, self.place + len(self.segments))


def split_at_actions(segments: Sequence[AnySegment]) -> list[tuple[AnySegment, ...]]:
    """Split an episode before each action: first its opening, which may be empty, then a part for each action."""
    actions = [place for place, segment in enumerate(segments) if segment.role is Role.ACTION]
    return [tuple(segments[start:end]) for start, end in pairwise([0, *actions, len(segments)])]


def exchanges(segments: Sequence[AnySegment], turns: Sequence[Turn]) -> list[Exchange[AnySegment]]:
    """Return the exchanges of an episode, in order; what precedes the first action belongs to none.

    An aborted episode can have turns at its end whose actions are not in it: they have no exchange.

    Raises:
        ValueError: an action has no turn.
    """
    opening, *parts = split_at_actions(segments)
    if len(parts) > len(turns):
        raise ValueError(f"{len(parts)} actions and {len(turns)} turns")
    places = accumulate(map(len, parts), initial=len(opening))
    return [Exchange(*each) for each in zip(turns, parts, places, strict=False)]


def text_of(segments: Iterable[RoleText], role: Role) -> str:
    """Return the text of the segments of `role`."""
    return "".join(segment.text for segment in segments if segment.role is role)


@dataclass(frozen=True)
class Trajectory:
    """One episode. Rollouts of the same task in the same step share `group_id`.

    `reward` is None where no verifier was called. `world_model_only` rollouts get the env term and no RL term.
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
        """Position of the first token of each segment."""
        return [*accumulate((len(segment.token_ids) for segment in self.segments[:-1]), initial=0)]

    def __len__(self) -> int:
        return sum(len(segment.token_ids) for segment in self.segments)

    def exchanges(self) -> list[Exchange[Segment]]:
        """Return the exchanges, in order. See `exchanges`."""
        return exchanges(self.segments, self.turns)

    def count(self, role: Role) -> int:
        """Tokens of `role`."""
        return sum(len(segment.token_ids) for segment in self.segments if segment.role is role)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` is its inverse."""
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
        """The trajectory of a `to_json` object.

        Raises:
            ValueError: a field is missing, unknown, of another type (text that is not Unicode among them) or breaks an
                invariant.
        """
        if record.get("format", FORMAT) != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, this version reads {FORMAT!r}")
        record = {key: value for key, value in record.items() if key != "format"}
        try:
            return _adapter().validate_json(json.dumps(record))
        except ValidationError as error:
            raise ValueError(first_problem(error)) from error


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a record, behind the path to it."""
    details = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in details["loc"])
    return f"{where}: {details['msg']}" if where else details["msg"]


def bad_line(path: Path, number: int, error: Exception, noun: Literal["trajectory", "trace"]) -> EchoError:
    """Return the error to raise for a line of a trajectory file, numbered from 1, that is no `noun`."""
    problem = f"{escape_unprintable(path)}:{number}: not a {noun}: {escape_unprintable(str(error))}"
    return EchoError(problem, "the format is in docs/trajectory-format.md")


@cache
def _adapter() -> TypeAdapter[Trajectory]:
    return TypeAdapter(Trajectory)


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Append `trajectories` to a trajectory file."""
    with path.open("a", encoding="utf-8") as file:
        for trajectory in trajectories:
            file.write(json.dumps(trajectory.to_json(), ensure_ascii=False) + "\n")


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """Stream the trajectories of a trajectory file whose lines all have tokens.

    Raises:
        EchoError: a line is not a trajectory; names the file and the line.
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
    """`trajectory` without transient tokens: the transcript as its last turn saw it. Texts stay what they were."""
    if not any(segment.transient for segment in trajectory.segments):
        return trajectory
    return replace(trajectory, segments=tuple(map(_visible, trajectory.segments)))


def context_views(trajectory: Trajectory) -> list[Trajectory]:
    """The sequences in which the targets of `trajectory` are scored; the trajectory alone without transient tokens.

    First the visible transcript, whose targets are the observations and the actions that were seen whole. Then, for
    each action with transient tokens, what was visible before it and the action: its tokens alone are targets.
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
    """The views of a step's rollouts, and of each the index of its rollout."""

    trajectories: tuple[Trajectory, ...]
    owners: tuple[int, ...]


def expand_context_views(trajectories: Sequence[Trajectory], *, use_rl: bool) -> ContextViews:
    """The views of `trajectories`, in order.

    Those of actions are left out where actions are no targets: without RL, and of `world_model_only` rollouts.
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


SCAFFOLD = "scaffold"
"""The channel of the segments that a renderer adds; what is rendered again leaves them out."""

CUT_ACTION = "\n[action cut]\n"
CUT_OUTPUT = "[output cut]\n"
CUT_NOTICE = "notice"
"""The channel of the warnings that say so."""

WRAPPER, TOOL_RESULT, TOOL_ERROR, TOOLS = "wrapper", "tool_result", "tool_error", "tools"
"""Channels of the text around a tool's answer, of an answer, of one that reports a failure, of the list of tools."""
OPEN, CLOSE = "<tool_response>\n", "\n</tool_response>\n"
