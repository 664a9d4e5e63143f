"""Conversations of OpenHands: events of version 0 (actions and observations) and of the software agent SDK.

Source: All-Hands-AI/OpenHands, `openhands/events/serialization`, `openhands/memory/conversation_memory.py`;
OpenHands/software-agent-sdk, `openhands-sdk/openhands/sdk/event`; OpenHands/benchmarks, `benchmarks/utils/models.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Record, Refusal, TraceBuilder, UnplacedError
from echo_cli.traces.formats.harnesses import openhands_actions, openhands_sdk
from echo_cli.traces.json_records import first_id, listed, member, read_json, records
from echo_cli.traces.recognition import Sample

ROLES = """\
input       a list of OpenHands' events, or JSONL, is one trace: trajectory.json, or under history (output.jsonl of an
            evaluation, a trace per line), trajectory or events. Name base_state.json for a conversation of the SDK: the
            events are read from the folder events beside it. The reward is resolved of report or test_result
context     system prompts, tools, people's messages and commands, skills added to them, summaries of a condensation,
            each followed by a newline; <tool_response> wrappers
action      the agent's messages and actions: its words, a newline, then each tool call as <tool_call> JSON
            </tool_call>: the call of the model's response, which keeps its bytes, or else the action's name and its
            args without OpenHands' own fields. The actions of one response are one action
env_output  the content of an observation, byte for byte (channel tool_error with is_error)
warning     OpenHands' own text: prefix and suffix of a command's output, notices of truncation, lines about Jupyter,
            rejections, errors (the log does not say whether a tool or OpenHands wrote them), answers of the tools think
            and finish; matches of --warning
exit code   of a command, unless it is -1
omitted     reasoning, hidden events, changes of state, recalls, screenshots; the lines about folder, interpreter and
            exit code that OpenHands adds for the model, which are not in the log
left out    images, events of other kinds, observations of no action
refused     an action without a tool call's id and name; one event file alone"""

_LISTS = ("history", "trajectory", "events")
"""Fields that hold a list of events."""
_STATE = "base_state.json"
"""File of a conversation of the SDK, beside its events."""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of OpenHands' events, or None."""
    if _event_files(sample.path):
        return "it stands beside a folder events with OpenHands' events"
    if _is_event(sample.first):
        return f"its records are events with {_marks(sample.first)}"
    found = next((name for name in _LISTS if _is_event(_first_event(member(sample.first, name)))), None)
    if found is None:
        return None
    return f"its {found} has events with {_marks(_first_event(sample.first[found]))}"


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the conversations of a file."""
    return read_json(path, partial(_trace, options=options), expand=partial(_conversations, path=path))


def _conversations(entries: Iterator[Record | Refusal], path: Path) -> Iterator[Record | Refusal]:
    """Yield a record with `history` for each conversation; events of their own are one conversation."""
    events: list[Any] = []
    state: Any = None
    for entry in entries:
        if isinstance(entry, Refusal):
            yield entry
        elif _is_event(entry[1]):
            events.append(entry[1])
        elif files := _event_files(path):
            state = entry[1]
            found = [each for file in files for each in records(file)]
            yield from (each for each in found if isinstance(each, Refusal))
            events += [each[1] for each in found if not isinstance(each, Refusal)]
        else:
            yield entry
    if events:
        yield str(path), {"history": events, "id": member(state, "id")}


def _event_files(path: Path) -> list[Path]:
    """Return the event files of the conversation whose state `path` is, in order; none if it is no such file."""
    return sorted((path.parent / "events").glob("event-*.json")) if path.name == _STATE else []


def _is_event(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    played = isinstance(value.get("action"), str) and isinstance(value.get("args"), dict)
    seen = isinstance(value.get("observation"), str) and isinstance(value.get("extras"), dict)
    return played or seen or (isinstance(value.get("kind"), str) and isinstance(value.get("source"), str))


def _marks(event: Mapping[str, Any]) -> str:
    """Return the fields by which an event was recognised."""
    pairs = (("kind", "source"), ("action", "args"), ("observation", "extras"))
    return " and ".join(next(pair for pair in pairs if set(pair) <= event.keys()))


def _first_event(values: Any) -> Any:
    """Return the first event of a list of events, or of pairs of an action and its observation."""
    first = next(iter(listed(values)), None)
    return next(iter(first), None) if isinstance(first, list) else first


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    held = next((value for name in _LISTS if isinstance(value := member(record, name), list) and value), None)
    if held is None:
        raise UnplacedError("a record without events")
    events = [event for each in held for event in (each if isinstance(each, list) else [each])]
    if len(events) == 1 and Path(where).name.startswith("event-"):
        raise UnplacedError(f"one event of a conversation: name the conversation's {_STATE}")
    builder = TraceBuilder(options)
    actions = openhands_actions.Reader(builder)
    for number, event in enumerate(events):
        with builder.at(f"events[{number}]"):
            if isinstance(member(event, "kind"), str):
                openhands_sdk.add(event, builder)
            else:
                actions.add(event)
    task = first_id((record.get(name) for name in ("instance_id", "task_id", "id")), where)
    return builder.trace(task, reward=_reward(record))


def _reward(record: Mapping[str, Any]) -> float | None:
    """Return whether the task was resolved, as an evaluation reports it."""
    result = record.get("test_result")
    for holder in (member(result, "report"), result, record.get("report"), record):
        if isinstance(found := member(holder, "resolved"), bool):
            return float(found)
    return None
