"""Text of the environment inside a harness's message: what the environment wrote, and the frame around it.

A harness shows an observation to a model in a frame of its own: tags, exit codes, notices that the output was cut.
Where the frame is known, it is context or a warning, and only the text inside is env_output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from echo_cli.trace import TraceSegment
from echo_cli.traces.builder import ImportOptions, observed
from echo_cli.trajectory import TOOL_RESULT, WRAPPER, Role

NOTICE, OBSERVATION = "notice", "observation"
"""Channels of a harness's notices, and of the observations that `--observation` names."""

Span = tuple[int, int]
"""Start and end of a part of a text, characters."""

_ROLE = re.compile(r"[\w-]+")


def framed(
    text: str,
    spans: Iterable[Span],
    options: ImportOptions,
    *,
    channel: str = TOOL_RESULT,
    notices: re.Pattern[str] | None = None,
) -> list[TraceSegment]:
    """Split a message into the environment's text and its frame; joined, the segments equal `text`.

    Args:
        spans: the environment's text, in order.
        notices: matches in the frame are warnings; the rest of the frame is context, in the channel `wrapper`.
    """
    segments, end = list[TraceSegment](), 0
    for start, stop in spans:
        segments += [*_frame(text[end:start], notices), *observed(text[start:stop], channel, options)]
        end = stop
    return [*segments, *_frame(text[end:], notices)]


def groups_of(match: re.Match[str]) -> list[Span]:
    """Return the spans of a match's groups that took part in it, in order; without groups, the whole text.

    A group inside another one is part of it.
    """
    if not match.re.groups:
        return [(0, len(match.string))]
    found = (match.span(group) for group in range(1, match.re.groups + 1) if match.start(group) >= 0)
    outermost = list[Span]()
    for start, end in sorted(found, key=lambda span: (span[0], -span[1])):
        if not outermost or start >= outermost[-1][1]:
            outermost.append((start, end))
    return outermost


def told_observation(
    text: str, role: str, options: ImportOptions, *, user: str = "user", acted: bool
) -> list[TraceSegment] | None:
    """Return the segments of a message that `options.observation` says is the environment's; None for any other.

    The option is a role, whose messages are the environment's, or a regular expression that is searched in the messages
    of the user. The groups of the expression are the environment's text; without groups, the whole message is.

    Args:
        role: role of the message, as its format names it.
        user: the format's name for the user.
        acted: whether the agent acted before. What a user says first is a task, not an observation.
    """
    told = options.observation
    if told is None:
        return None
    if _ROLE.fullmatch(told):
        named = role == told and (acted or role != user)
        return observed(text, OBSERVATION, options) if named else None
    match = re.search(told, text) if role == user else None
    return None if match is None else framed(text, groups_of(match), options, channel=OBSERVATION)


def _frame(text: str, notices: re.Pattern[str] | None) -> list[TraceSegment]:
    segments, end = list[TraceSegment](), 0
    for match in () if notices is None else notices.finditer(text):
        segments.append(TraceSegment(Role.CONTEXT, text[end : match.start()], WRAPPER))
        segments.append(TraceSegment(Role.WARNING, match.group(), NOTICE))
        end = match.end()
    segments.append(TraceSegment(Role.CONTEXT, text[end:], WRAPPER))
    return [segment for segment in segments if segment.text]
