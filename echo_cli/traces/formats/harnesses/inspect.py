"""Logs of Inspect AI: `.eval`, a zip archive with a file per sample, and `.json`, one document.

Source: inspect_ai's `log/_log.py` (EvalLog, EvalSample), `log/_recorders/eval.py`, `model/_chat_message.py`,
`model/_call_tools.py` (tool errors, truncated output) and `scorer/_metric.py` (values of a score).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Record, Refusal, TraceBuilder, UnplacedError, json_text, tool_call
from echo_cli.traces.containers.archive import is_archive, member_bytes, names_of, open_archive
from echo_cli.traces.input_file import STDIN, first_bytes
from echo_cli.traces.json_records import (
    arguments_of,
    listed,
    member,
    parts_of,
    read_json,
    read_records,
    reward_of,
    text_or_json,
)
from echo_cli.traces.recognition import Sample
from echo_cli.traces.strict_json import json_value
from echo_cli.trajectory import TOOL_ERROR, TOOL_RESULT, Role

ROLES = """\
input       a log of Inspect AI: .eval, or .json. Each sample of each epoch is a trace; its task is named by the log's
            task and the sample's id. The reward is the value of the first scorer: a number; C is 1, P is 0.5, I and N
            are 0
context     system and user messages, each followed by a newline; the tools of the first model event;
            <tool_response> wrappers
action      each assistant message: its text, a newline, then each tool call as <tool_call> JSON </tool_call>.
            Neighbouring assistant messages are one action; one without text is none
env_output  tool messages, byte for byte; for a failed call the error's message (channel tool_error), which the model is
            shown in place of the output
warning     in a tool message, Inspect's own text: the frame around output that was too long, and errors of parsing,
            approval, limits, timeouts and cancellation; matches of --warning
omitted     reasoning, the output of a failed call, ids
left out    images, audio, video, documents, server-side tools, attachments that the log lacks, messages of other roles,
            a score that is not such a value
refused     a sample without messages; an answer without an open call"""

_REWARDS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_OWN_ERRORS = (
    "parsing",
    "timeout",
    "unicode_decode",
    "limit",
    "output_limit",
    "approval",
    "cancelled",
    "sandbox_unavailable",
)
"""Types of the errors whose message is Inspect's own text."""
_TOO_LONG = re.compile(
    r"(\nThe output of your call to [^\n]* was too long to be displayed\.\nHere is a truncated version:\n"
    r"<START_TOOL_OUTPUT>\n)(.*)(\n<END_TOOL_OUTPUT>\n)",
    re.DOTALL,
)
_HEADERS = ("header.json", "_journal/start.json")
"""Members with the evaluation's task and model: of a complete log, and of one that was not completed."""
_REFERENCE = re.compile(r"(?:attachment|tc)://([0-9a-f]{32})")


def recognise(sample: Sample) -> str | None:
    """Return the evidence of a log of Inspect AI, or None."""
    if is_archive(sample.start):
        names = names_of(sample.path)
        found = next((name for name in _HEADERS if name in names), None)
        if found is not None:
            return f"it is a zip archive with {found}"
        return "its name ends in .eval" if not names and sample.path.suffix == ".eval" else None
    is_log = isinstance(member(sample.first, "eval"), dict) and {"version", "status"} <= set(sample.first)
    return "it has eval, version and status" if is_log else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the samples of a log.

    Raises:
        EchoError: the archive is damaged, or its compression needs a package that is not installed.
    """
    place = partial(_trace, options=options)
    if path != STDIN and is_archive(first_bytes(path)):
        return read_records(_archived(path), place)
    return read_json(path, place, expand=_samples)


def _archived(path: Path) -> Iterator[Record | Refusal]:
    """Yield the samples of an archive, each with the log's header."""
    with open_archive(path) as archive:
        names = archive.namelist()
        header = next((name for name in _HEADERS if name in names), None)
        if header is None:
            yield Refusal(str(path), f"not a log of Inspect AI: it has no {_HEADERS[0]}")
            return
        log = json_value(member_bytes(archive, header), f"{path}: {header}")
        if isinstance(log, Refusal):
            yield log
            return
        for name in names:
            if name.startswith("samples/") and name.endswith(".json"):
                where = f"{path}: {name}"
                sample = json_value(member_bytes(archive, name), where)
                yield sample if isinstance(sample, Refusal) else (where, (log[0], sample[0]))


def _samples(records: Iterable[Record | Refusal]) -> Iterator[Record | Refusal]:
    """Yield the samples of documents, each with its document."""
    for entry in records:
        if isinstance(entry, Refusal):
            yield entry
            continue
        where, log = entry
        samples = member(log, "samples")
        if not isinstance(samples, list):
            yield Refusal(where, "a log without samples")
        else:
            yield from ((f"{where}: samples[{number}]", (log, sample)) for number, sample in enumerate(samples))


def _trace(record: tuple[Any, Any], where: str, options: ImportOptions) -> Trace:
    log, sample = record
    messages = member(sample, "messages")
    if not isinstance(messages, list) or not messages:
        raise UnplacedError("a sample without messages")
    attachments = member(sample, "attachments")
    builder, tools = TraceBuilder(options), _tools(sample)
    for number, message in enumerate(messages):
        if member(message, "role") != "system":
            builder.tools(tools)
            tools = []
        with builder.at(f"messages[{number}]"):
            _add(_attached(message, attachments if isinstance(attachments, dict) else {}), builder)
    evaluation = member(log, "eval")
    task, model = member(evaluation, "task"), member(evaluation, "model")
    named = [str(part) for part in (task, sample.get("id")) if isinstance(part, (str, int))]
    known = {"sample_id": sample.get("id"), "epoch": sample.get("epoch"), "task": task, "model": model}
    meta = {name: value for name, value in known.items() if value is not None}
    return builder.trace(":".join(named) or where, reward=_reward(sample, builder), meta=meta)


def _reward(sample: Mapping[str, Any], builder: TraceBuilder) -> float | None:
    """Return the value of the first scorer; a log of version 1 has one score without its scorer."""
    scores = sample.get("scores") or {"score": sample.get("score")}
    scorer, score = next(iter(scores.items())) if isinstance(scores, dict) else ("score", None)
    value = member(score, "value")
    return reward_of({scorer: _REWARDS.get(value, value) if isinstance(value, str) else value}, scorer, builder=builder)


def _tools(sample: Mapping[str, Any]) -> list[str]:
    """Return the tools that were offered in the first model event, each as JSON."""
    calls = (event for event in listed(sample.get("events")) if member(event, "event") == "model")
    return [json_text(tool) for tool in listed(member(next(calls, None), "tools"))]


def _attached(value: Any, attachments: Mapping[str, Any]) -> Any:
    """Return a JSON value with the texts that are stored as attachments; a part of the type "attachment" if one is
    missing."""
    if isinstance(value, dict):
        return {name: _attached(each, attachments) for name, each in value.items()}
    if isinstance(value, list):
        return [_attached(each, attachments) for each in value]
    reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return value if reference is None else attachments.get(reference[1], [{"type": "attachment"}])


def _add(message: Any, builder: TraceBuilder) -> None:
    """Place one message."""
    role = member(message, "role")
    if role in ("system", "user"):
        text, left_out = _text(message, builder)
        builder.context(f"{text}\n", role)
        builder.add(*left_out)
    elif role == "assistant":
        text, left_out = _text(message, builder)
        if isinstance(message.get("reasoning"), str):
            builder.omit("reasoning", message["reasoning"])
        builder.say(text, [_call(call, builder) for call in listed(message.get("tool_calls"))])
        builder.add_later(*left_out)
    elif role == "tool":
        builder.calls.answer(message.get("tool_call_id"))
        builder.answer(_answer(message, builder))
    else:
        content = text_or_json(member(message, "content"))
        builder.add(builder.leave_out(f"a message of unknown role: {role!r}", content))


def _text(message: Mapping[str, Any], builder: TraceBuilder) -> tuple[str, list[TraceSegment]]:
    """Return a message's text and warnings for what is left out of it, without its reasoning."""
    content = message.get("content")
    parts = listed(content)
    reasoning = [part for part in parts if member(part, "type") == "reasoning"]
    for part in reasoning:
        builder.omit("reasoning", text_or_json(part.get("reasoning")))
    return parts_of([part for part in parts if part not in reasoning] if reasoning else content, builder)


def _call(call: Any, builder: TraceBuilder) -> str:
    call_id, name = member(call, "id"), member(call, "function")
    if not isinstance(call_id, str) or not isinstance(name, str):
        raise UnplacedError("a tool call without an id or a function")
    arguments = arguments_of(call.get("arguments"), builder)
    builder.calls.call(call_id)
    return tool_call(name, arguments)


def _answer(message: Mapping[str, Any], builder: TraceBuilder) -> list[TraceSegment]:
    """Return the segments of a tool message: what the model was shown."""
    error = message.get("error") or message.get("tool_error")
    told = error if isinstance(error, str) else member(error, "message")
    if told is not None:
        if message.get("content"):
            builder.omit("output of a failed call", text_or_json(message["content"]))
        if member(error, "type") in _OWN_ERRORS:
            return [TraceSegment(Role.WARNING, text_or_json(told), TOOL_ERROR)]
        return builder.observed(text_or_json(told), TOOL_ERROR)
    text, left_out = _text(message, builder)
    cut = _TOO_LONG.fullmatch(text)
    if cut is None:
        return [*builder.observed(text, TOOL_RESULT), *left_out]
    before, after = (TraceSegment(Role.WARNING, cut[frame], "truncation") for frame in (1, 3))
    return [before, *builder.observed(cut[2], TOOL_RESULT), after, *left_out]
