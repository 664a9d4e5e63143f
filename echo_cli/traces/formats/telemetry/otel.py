"""Spans and events of OpenTelemetry's GenAI conventions, exported as OTLP JSON.

Source: open-telemetry/semantic-conventions-genai, `docs/gen-ai` (spans, events, JSON schemas of messages); the events
`gen_ai.*.message` of earlier versions; opentelemetry-proto's JSON encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Record, Refusal
from echo_cli.traces.formats.telemetry.calls import ModelCall, chains_of, trace_of_chain
from echo_cli.traces.formats.telemetry.messages import Message, message_of
from echo_cli.traces.json_records import listed, member, read_json
from echo_cli.traces.recognition import Sample
from echo_cli.traces.strict_json import parse_json

ROLES = """\
input       OTLP JSON of traces or logs, one export or JSONL, as the Collector's file exporter writes it, or spans as
            the Python SDK prints them. The calls of one gen_ai.conversation.id, or else of one traceId, that continue
            each other are a trace; the last of them holds it. Calls of subagents are traces of their own
context     gen_ai.system_instructions; system, developer and user messages, each followed by a newline;
            gen_ai.tool.definitions; <tool_response> wrappers
action      each assistant message of gen_ai.input.messages, and gen_ai.output.messages: its text, a newline, then each
            tool_call as <tool_call> JSON </tool_call>. Neighbouring assistant messages are one action
env_output  tool_call_response parts, byte for byte; a response that is not text is JSON
warning     matches of --warning in a tool's answer
omitted     reasoning, choices after the first, replies that the next call does not hold, ids, spans without messages
            (execute_tool; invoke_agent, if there are calls of a model)
left out    files, images and parts of other types, server-side tools, messages of other roles, an answer without its
            call
refused     a file without messages: the instrumentation must capture content

Earlier versions: events gen_ai.system.message, .user.message, .assistant.message, .tool.message and gen_ai.choice, of a
span or of a log."""

_RESOURCES = (("resourceSpans", "scopeSpans", "spans"), ("resourceLogs", "scopeLogs", "logRecords"))
_INPUT, _OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
_SYSTEM = ("gen_ai.system_instructions", "gen_ai.system.instructions")
_TOOLS = "gen_ai.tool.definitions"
_WHOLE_RUNS = ("invoke_agent", "invoke_workflow", "create_agent")
"""Operations that summarise several calls of a model."""
_MESSAGE_ROLES = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
_CHOICE = "gen_ai.choice"
_VALUES = ("stringValue", "intValue", "doubleValue", "boolValue", "bytesValue")


def recognise(sample: Sample) -> str | None:
    """Return the evidence of an OTLP export, or of a span that the Python SDK prints, or None."""
    for resources, _, _ in _RESOURCES:
        if isinstance(member(sample.first, resources), list):
            return f"it has {resources}"
    is_span = isinstance(member(member(sample.first, "context"), "trace_id"), str)
    return "its records are spans with context and trace_id" if is_span and "attributes" in sample.first else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the conversations of a file, which is read whole."""
    place = partial(_trace, options=options)
    return read_json(path, place, expand=partial(_conversations, path=path))


def _trace(chain: Any, where: str, options: ImportOptions) -> Trace:
    return trace_of_chain(chain, where, options)


def _conversations(entries: Iterator[Record | Refusal], path: Path) -> Iterator[Record | Refusal]:
    found: list[_Span] = []
    for entry in entries:
        if isinstance(entry, Refusal):
            yield entry
        else:
            found += _spans(entry[1])
    calls = _calls(found)
    if found and not calls:
        yield Refusal(str(path), f"no {_INPUT} in {len(found)} spans: let the instrumentation capture message content")
    for chain in chains_of(calls):
        yield f"{path}: {chain.last.conversation}", chain


class _Span:
    """A span or a log record: its ids, its attributes, and the events of messages in it."""

    def __init__(self, recorded: Mapping[str, Any]) -> None:
        context = recorded.get("context") or {}
        self.trace = str(recorded.get("traceId") or member(context, "trace_id") or "")
        self.span = str(recorded.get("spanId") or member(context, "span_id") or "")
        self.attributes = _attributes(recorded.get("attributes"))
        start = recorded.get("startTimeUnixNano") or recorded.get("timeUnixNano") or recorded.get("start_time") or ""
        self.order = (len(str(start)), str(start))
        own = {"name": recorded.get("eventName") or self.attributes.get("event.name"), "body": recorded.get("body")}
        self.events = [_event({**own, "attributes": recorded.get("attributes")})] if own["name"] else []
        self.events += [_event(event) for event in listed(recorded.get("events")) if isinstance(event, dict)]


def _spans(record: Any) -> Iterator[_Span]:
    """Yield the spans and log records of an export, or the record if it is a span itself."""
    if isinstance(member(record, "context"), dict):
        yield _Span(record)
    for resources, scopes, spans in _RESOURCES:
        for resource in listed(member(record, resources)):
            for scope in listed(member(resource, scopes)):
                yield from (_Span(span) for span in listed(member(scope, spans)) if isinstance(span, dict))


def _calls(spans: Iterable[_Span]) -> list[ModelCall]:
    """Return the calls of a model among spans and log records, or those that summarise runs if there are no others."""
    by_span: dict[tuple[str, str], list[_Span]] = {}
    for number, span in enumerate(spans):
        by_span.setdefault((span.trace, span.span or f"#{number}"), []).append(span)
    found = [(call, whole) for group in by_span.values() for call, whole in _calls_of(group)]
    single = {call.conversation for call, whole in found if not whole}
    return [call for call, whole in found if not whole or call.conversation not in single]


def _calls_of(group: list[_Span]) -> Iterator[tuple[ModelCall, bool]]:
    """Yield the call recorded by a span and its log records, and whether it summarises a run."""
    attributes: dict[str, Any] = {}
    for span in group:
        for name, value in [*span.attributes.items(), *((n, v) for event in span.events for n, v in event[1].items())]:
            attributes.setdefault(name, value)
    history = [message_of(each) for each in _parsed(attributes.get(_INPUT))]
    reply = [message_of(each) for each in _parsed(attributes.get(_OUTPUT))]
    if not history and not reply:
        told = [event for span in group for event in span.events]
        history = [_message(_MESSAGE_ROLES[name], body) for name, body in told if name in _MESSAGE_ROLES]
        reply = [_message("assistant", _chosen(body)) for name, body in told if name == _CHOICE]
    if not history and not reply:
        return
    for name in _SYSTEM:
        if instructions := _parsed(attributes.get(name)):
            history.insert(0, message_of({"role": "system", "parts": instructions}))
            break
    conversation = str(attributes.get("gen_ai.conversation.id") or group[0].trace)
    names = ("gen_ai.request.model", "gen_ai.agent.name")
    meta = {"model": attributes.get(names[0]), "agent": attributes.get(names[1]), "trace": group[0].trace}
    tools = [tool for tool in _parsed(attributes.get(_TOOLS)) if isinstance(tool, dict)]
    call = ModelCall(conversation, min(span.order for span in group), history, reply[:1], tools, meta)
    yield call, attributes.get("gen_ai.operation.name") in _WHOLE_RUNS


def _message(role: str, body: Any) -> Message:
    """Return the message of an event's body, whose tool calls may be JSON text."""
    told = dict(body) if isinstance(body, dict) else {"content": body}
    return message_of({**told, "role": told.get("role") or role, "tool_calls": _parsed(told.get("tool_calls"))})


def _chosen(body: Mapping[str, Any]) -> Any:
    """Return the message of a choice, whose tool calls may stand beside it."""
    message = body.get("message")
    if not isinstance(message, dict) or "tool_calls" not in body:
        return message
    return {**message, "tool_calls": body["tool_calls"]}


def _event(event: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the name of an event, and its body: of a log record, as JSON text (Azure), or as attributes."""
    attributes = _attributes(event.get("attributes"))
    body = _value(event.get("body"))
    body = body if isinstance(body, dict) else _json(attributes.get("gen_ai.event.content"))
    told = {**attributes, **(body if isinstance(body, dict) else {})}
    return event.get("name"), {**told, "message": _json(told.get("message"))}


def _parsed(value: Any) -> list[Any]:
    """Return a list that is recorded as values or as JSON text; a text that is no list is one text part."""
    found = _json(value)
    if found is None or found == "":
        return []
    return found if isinstance(found, list) else [found]


def _json(value: Any) -> Any:
    """Return the value of a JSON text; any other value, or text, as it is."""
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _attributes(recorded: Any) -> dict[str, Any]:
    """Return attributes by name, from OTLP's list of keys and values or from an object."""
    if isinstance(recorded, dict):
        return dict(recorded)
    return {
        str(each["key"]): _value(each.get("value"))
        for each in listed(recorded)
        if isinstance(each, dict) and "key" in each
    }


def _value(value: Any) -> Any:
    """Return an OTLP AnyValue as a JSON value."""
    if not isinstance(value, dict):
        return value
    if "arrayValue" in value:
        return [_value(each) for each in listed(member(value["arrayValue"], "values"))]
    if "kvlistValue" in value:
        return _attributes(member(value["kvlistValue"], "values"))
    if isinstance(whole := value.get("intValue"), str):  # 64-bit integers are text in protobuf's JSON
        return _json(whole)
    return next((value[name] for name in _VALUES if name in value), None)
