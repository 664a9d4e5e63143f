"""Observations of Harbor's terminus agents (terminus-2 and variants): terminal text separated from the agent's notices.

These agents return an observation as one text: notices about the model's last response, a headline, and the text of the
terminal. They add text only before the terminal's text, after it, or where they cut it. Source: Harbor's
`agents/terminus_2/terminus_2.py`, `tmux_session.py` and `templates/timeout.txt`.
"""

from __future__ import annotations

import re

from echo_cli.trace import TraceSegment
from echo_cli.traces.builder import ImportOptions, observed
from echo_cli.trajectory import Role

TERMINAL, NOTICE = "terminal", "notice"
"""Channels of the terminal's text, and of the agent program's notices."""

_HEADLINE = r"(?:New Terminal Output:|Current Terminal Screen:)\n"
_SHOWN = rf"(?:{_HEADLINE}|Current terminal state:\n|Previous command:\n)"
_COMPLAINT = re.compile(rf"Previous response had (?:parsing errors|warnings):\n(?:.*?\n)??(?={_SHOWN})", re.DOTALL)
_ERRORS_ALONE = re.compile(r"Previous response had parsing errors:\n.*", re.DOTALL)
_WARNINGS_ALONE = re.compile(r"Previous response had warnings:\n.*?(?:\n\n|\Z)", re.DOTALL)
_TOO_LONG = "ERROR!! NONE of the actions you just requested were performed because you exceeded "
_TIMEOUT = re.compile(
    # The first such line decides, by a lookahead that is not retried: trying each would take quadratic time.
    r"Previous command:\n(?=(.*?\n\nThe previous command timed out after [^\n]* seconds?\n))\1.*?"
    r"Here is the current state of the terminal:\n\n",
    re.DOTALL,
)
_STATE = re.compile(r"Current terminal state:\n")
_FIRST = re.compile(_HEADLINE)
_CONFIRM = "\n\nAre you sure you want to mark the task as complete?"
_CUT = re.compile(r"\n\[\.\.\. output limited to \d+ bytes; \d+ interior bytes omitted \.\.\.\]\n")


def is_terminus(agent: str) -> bool:
    """Return whether an agent of this name is a terminus agent."""
    return agent.lower().startswith("terminus")


def terminal_text(text: str, options: ImportOptions) -> list[TraceSegment]:
    """Split an observation of a terminus agent into segments, which joined equal `text`.

    Segments with role warning are: the complaint about the last response; the notice that a command timed out, or that
    nothing ran because the response was too long; the headlines; the question whether the task is complete; and the
    line that marks where output was cut, with the newlines around it. The rest is terminal text.
    """
    start, asks = _head(text)
    end = text.rfind(_CONFIRM, start) if asks else -1
    end = len(text) if end < 0 else end
    segments = [_notice(text[:start])]
    for cut in _CUT.finditer(text, start, end):
        segments += [*observed(text[start : cut.start()], TERMINAL, options), _notice(cut.group())]
        start = cut.end()
    segments += [*observed(text[start:end], TERMINAL, options), _notice(text[end:])]
    return [segment for segment in segments if segment.text]


def _head(text: str) -> tuple[int, bool]:
    """Return the start of the terminal's text, and whether the question about the task's completion may follow it."""
    if text.startswith(_TOO_LONG):
        return len(text), False
    position = 0
    if complaint := _COMPLAINT.match(text) or _ERRORS_ALONE.match(text) or _WARNINGS_ALONE.match(text):
        position = complaint.end()
    state = _STATE.match(text, position)
    position = state.end() if state else position
    timeout = _TIMEOUT.match(text, position)
    position = timeout.end() if timeout else position
    headline = _FIRST.match(text, position)
    return headline.end() if headline else position, state is not None


def _notice(text: str) -> TraceSegment:
    return TraceSegment(Role.WARNING, text, NOTICE)
