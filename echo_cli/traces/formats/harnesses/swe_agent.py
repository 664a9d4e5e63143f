"""Runs of SWE-agent: `.traj` files of versions 0.5 to 1.1, and data sets of their messages.

Source: SWE-agent's page on trajectories, `sweagent/types.py`, its agents and the templates of its configs; the
cards of SWE-bench/SWE-smith-trajectories and nebius/SWE-agent-trajectories.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError
from echo_cli.traces.formats.chats.messages import Messages, Observation
from echo_cli.traces.framed_text import framed, groups_of
from echo_cli.traces.json_records import listed, member, messages_in, read_json, reward_of, task_of
from echo_cli.traces.recognition import Sample

ROLES = """\
input       a run with history, with trajectory (steps, or messages with role and text), or with messages: one, an array
            of them, or JSONL; optionally instance_id, resolved, target, reward or score
context     system messages; user messages before the first action; demonstrations (is_demo; channel copied for the
            assistant's and for answers); each followed by a newline; the frame of an observation (channel wrapper):
            "OBSERVATION:", <observation>, "(Open file: …)", "(Current directory: …)", "bash-$"; <tool_response>
            wrappers; the newline after an observation in a user message
action      each assistant message (role ai): its text, a newline, then each tool call as <tool_call> JSON </tool_call>,
            whose arguments keep their bytes. Neighbours are one action; one without text is none
env_output  user and tool messages after the first action, byte for byte, without their frame: what the step's
            observation in trajectory repeats, or else what the known templates leave. In a record of messages alone,
            which does not say who wrote it, a user message without a known frame is context
warning     in the frame: that a command had no output, was cancelled, or that its output was cut. Matches of --warning
            in an observation
omitted     thought and action, which repeat the text; reasoning; the steps of trajectory, where there is a history
left out    images, calls that are not function calls, messages of other roles
refused     an answer without an open call"""

Placed = tuple[str, dict[str, Any]]
"""Place in the record of a message, and the message in the shape of OpenAI's; `seen` is what its step observed."""

_STATE = r"\n?\(Open file: [^\n]*\)\n(?:\(Interactive session: [^\n]*\)\n)?\(Current directory: [^\n]*\)\nbash-\$\s*"
_WARNING = r"<warning>(?:(?!<warning>).)*?</warning>"
_CLIPPED = r"<response clipped><NOTE>(?:(?!<NOTE>).)*?</NOTE>"
_ELIDED = r"<elided_chars>(?:(?!<elided_chars>).)*?</elided_chars>"
_NOTHING = r"Your (?:last )?command ran successfully and did not produce any output\."
_CANCELLED = (
    r"The command '(?:(?!' was cancelled |The command ').)*' was cancelled because it took more than "
    r"[^\n]{0,40}? seconds\b.*"
)

_ENDS_IN_STATE = re.compile(rf"{_STATE}\Z")
_SILENT = re.compile(
    rf"(?:OBSERVATION:\n|Observation: |<warning>\s*)?(?:{_NOTHING}|{_CANCELLED})(?:\s*</warning>)?\s*(?:{_STATE})?",
    re.DOTALL,
)
"""Templates of an observation in which the environment wrote nothing."""
_FRAMES = tuple(
    re.compile(frame, re.DOTALL)
    for frame in (
        rf"(?:{_WARNING}\s*)?<observation_head>\n(.*)\n</observation_head>\s*{_ELIDED}\s*"
        r"<observation_tail>\n(.*)\n</observation_tail>\s*",
        r"<observation>\n(.*)\n</observation>",
        rf"(?:OBSERVATION:\n|Observation: )(.*?)(?:{_CLIPPED})?(?:{_STATE})?",
        rf"(.*?){_STATE}",
    )
)
"""Templates of other observations; the groups are what the environment wrote."""
_NOTICES = re.compile("|".join((_WARNING, _ELIDED, _CLIPPED, _NOTHING, _CANCELLED)), re.DOTALL)


def recognise(sample: Sample) -> str | None:
    """Return the evidence of SWE-agent's fields or of its observations; None if there is neither."""
    history, steps = (_first_of(member(sample.first, name)) for name in ("history", "trajectory"))
    if "role" in history and ("agent" in history or steps):
        return "its history has messages of an agent"
    if {"action", "observation", "response"} <= steps.keys():
        return "its trajectory has steps with response, action and observation"
    if {"role", "text"} <= steps.keys():
        return "its trajectory has messages with role and text"
    messages = [each for each in messages_in(sample.first) if isinstance(each, dict)]
    if any({"agent", "message_type"} <= each.keys() for each in messages):
        return "its messages have an agent and a message_type"
    texts = [each.get("content") for each in messages if each.get("role") in ("user", "tool")]
    shown = any(
        isinstance(text, str) and (text.startswith("OBSERVATION:\n") or _ENDS_IN_STATE.search(text)) for text in texts
    )
    return "its messages show observations as SWE-agent does" if shown else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the runs of a file."""
    return read_json(path, partial(_trace, options=options), cursor=options.cursor)


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    messages = _messages(record)
    if not messages:
        raise UnplacedError("no history, trajectory or messages")
    whole = record if isinstance(record, dict) else {}
    named = "trajectory" in whole or "history" in whole or any("message_type" in message for _, message in messages)
    builder = TraceBuilder(options)

    def observe(message: Mapping[str, Any], text: str) -> Observation | None:
        if not builder.commands or message["role"] == "system":
            return None
        return _observation(text, message["seen"], options, named=named or message["role"] == "tool")

    placed = Messages(builder, observe)
    for place, message in messages:
        with builder.at(place):
            placed.add(message)
            if message.get("is_demo") is True:
                builder.quote()
    told = next((value for name in ("resolved", "target") if isinstance(value := whole.get(name), bool)), None)
    reward = reward_of(whole, "reward", "score", builder=builder) if told is None else float(told)
    status = member(whole.get("info"), "exit_status") or whole.get("exit_status")
    meta = {"exit_status": status} if isinstance(status, str) else {}
    return builder.trace(task_of(whole, where), reward=reward, meta=meta)


def _observation(text: str, seen: str | None, options: ImportOptions, *, named: bool) -> Observation | None:
    """Return the observation in a message after an action; None if the message may be anyone's.

    Args:
        seen: what the step observed, if the record has its steps.
        named: whether the record says that such a message is an observation.
    """
    match = next((found for frame in _FRAMES if (found := frame.fullmatch(text))), None)
    if _SILENT.fullmatch(text) or (seen is not None and not seen.strip()):
        spans = []
    elif seen and text.count(seen) == 1:
        spans = [(text.index(seen), text.index(seen) + len(seen))]
    elif match is not None:
        spans = groups_of(match)
    elif named:
        spans = [(0, len(text))]
    else:
        return None
    return Observation(framed(text, spans, options, notices=_NOTICES))


def _messages(record: Any) -> list[Placed]:
    """Return the messages of a run: of its history, or of its trajectory, or its messages."""
    history, steps = (listed(member(record, name)) for name in ("history", "trajectory"))
    if history:
        return _with_steps([(f"history[{number}]", _message(item)) for number, item in enumerate(history)], steps)
    if not steps:
        return [(f"messages[{number}]", _message(item)) for number, item in enumerate(messages_in(record))]
    if "role" in _first_of(steps):
        return [(f"trajectory[{number}]", _message(item)) for number, item in enumerate(steps)]
    asked = member(steps[0], "query")
    found = [(f"trajectory[0].query[{number}]", _message(item)) for number, item in enumerate(listed(asked))]
    for number, step in enumerate(steps):
        seen = member(step, "observation") or ""
        words = member(step, "response") or member(step, "action") or ""
        found.append((f"trajectory[{number}].response", {"role": "assistant", "content": words}))
        found.append((f"trajectory[{number}].observation", {"role": "user", "content": seen, "seen": seen}))
    return found


def _message(item: Any) -> dict[str, Any]:
    """Return a message in the shape of OpenAI's chat completions.

    An answer keeps no id: a step has one call, and in edited demonstrations the ids disagree.
    """
    content = next(
        (text for name in ("content", "text", "system_prompt") if (text := member(item, name)) is not None), None
    )
    role = member(item, "role")
    kept = {
        name: item[name]
        for name in ("is_demo", "tool_calls", "action", "message_type")
        if member(item, name) is not None
    }
    thinking = [
        text for block in listed(member(item, "thinking_blocks")) if isinstance(text := member(block, "thinking"), str)
    ]
    told = {"thinking": "".join(thinking)} if thinking else {}
    return {"role": "assistant" if role == "ai" else role, "content": content, "seen": None, **kept, **told}


def _with_steps(messages: Sequence[Placed], steps: Sequence[Any]) -> list[Placed]:
    """Return the messages of a history, with what was observed in the steps of the same actions.

    The steps have further ones, such as responses that were rejected: each action is looked for from the last one on.
    """
    found, next_step, seen = list[Placed](), 0, None
    for place, message in messages:
        if message["role"] == "assistant" and not message.get("is_demo"):
            same = (
                number
                for number in range(next_step, len(steps))
                if member(steps[number], "response") == message["content"]
                or (message.get("action") and member(steps[number], "action") == message["action"])
            )
            number = next(same, None)
            seen = None if number is None else member(steps[number], "observation")
            next_step = next_step if number is None else number + 1
            found.append((place, message))
        else:
            found.append((place, {**message, "seen": seen if isinstance(seen, str) else None}))
            seen = None
    return found


def _first_of(value: Any) -> Mapping[str, Any]:
    """Return the first item of a list of objects; empty for any other value."""
    first = listed(value)[:1]
    return first[0] if first and isinstance(first[0], dict) else {}
