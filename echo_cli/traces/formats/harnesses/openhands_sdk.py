"""Events of OpenHands' software agent SDK: messages, actions and observations, each of a kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from echo_cli.trace import TraceSegment
from echo_cli.traces.builder import TraceBuilder, UnplacedError, tool_call
from echo_cli.traces.json_records import arguments_of, listed, member, parts_of, text_or_json, tools_of
from echo_cli.trajectory import TOOL_ERROR, TOOL_RESULT, Role

NOTICE, SUMMARY, EXTENSION = "notice", "summary", "extension"
"""Channels of OpenHands' own text, of a condensation's summary, and of skills added to a message."""

_SILENT = (
    "CondensationRequest",
    "ConversationErrorEvent",
    "ConversationIterationLimitEvent",
    "ConversationStateUpdateEvent",
    "HookExecutionEvent",
    "LLMCompletionLogEvent",
    "PauseEvent",
    "StreamingDeltaEvent",
    "TokenEvent",
)
"""Kinds of events that the model is not shown."""
_OWN_ANSWERS = ("ThinkObservation", "FinishObservation")
"""Kinds of observations whose text is OpenHands' own."""


def add(event: Mapping[str, Any], builder: TraceBuilder) -> None:
    """Place one event.

    Raises:
        UnplacedError: an action has no tool call, or a message no text.
    """
    kind = event["kind"]
    if kind in ("SystemPromptEvent", "SystemPromptUpdateEvent"):
        for name in ("system_prompt", "dynamic_context"):
            if isinstance(text := member(event.get(name), "text"), str):
                builder.context(f"{text}\n", "system")
        builder.tools(tools_of(event, "tools"))
    elif kind == "MessageEvent":
        _add_message(event, builder)
    elif kind == "ActionEvent":
        _omit_reasoning(event, builder)
        words, left_out = parts_of(event.get("thought") or "", builder)
        builder.say(words, [_call(event, builder)])
        builder.add_later(*left_out)
    elif kind in ("ObservationEvent", "AgentErrorEvent", "UserRejectObservation"):
        _answer(event, builder)
    elif kind in ("Condensation", "CondensationSummaryEvent"):
        if event.get("summary"):
            builder.context(f"{event['summary']}\n", SUMMARY)
    elif kind in _SILENT:
        builder.omit("events that the model is not shown")
    else:
        builder.add(builder.leave_out(f"an event of unknown kind: {kind!r}"))


def _add_message(event: Mapping[str, Any], builder: TraceBuilder) -> None:
    message = event.get("llm_message")
    role = member(message, "role")
    text, left_out = parts_of(member(message, "content") or "", builder)
    _omit_reasoning(message if isinstance(message, dict) else {}, builder)
    added, more = parts_of(event.get("extended_content") or "", builder)
    if role == "assistant":
        builder.say(text)
        builder.add_later(*left_out)
    elif role in ("user", "system"):
        builder.context(f"{text}\n", role)
        builder.add(*left_out)
    else:
        builder.add(builder.leave_out(f"a message of unknown role: {role!r}", text))
    if added:
        builder.context(f"{added}\n", EXTENSION)
    builder.add(*more)


def _omit_reasoning(event: Mapping[str, Any], builder: TraceBuilder) -> None:
    if isinstance(event.get("reasoning_content"), str):
        builder.omit("reasoning", event["reasoning_content"])
    for block in listed(event.get("thinking_blocks")):
        builder.omit("reasoning", text_or_json(member(block, "thinking")))


def _call(event: Mapping[str, Any], builder: TraceBuilder) -> str:
    call = event.get("tool_call")
    function = member(call, "function") or call
    call_id, name = event.get("tool_call_id") or member(call, "id"), member(function, "name") or event.get("tool_name")
    if not isinstance(call_id, str) or not isinstance(name, str):
        raise UnplacedError("an action without a tool call's id or name")
    arguments = arguments_of(member(function, "arguments"), builder)
    builder.calls.call(call_id)
    return tool_call(name, arguments)


def _answer(event: Mapping[str, Any], builder: TraceBuilder) -> None:
    """Place what an action was answered: a tool's observation, or OpenHands' own text."""
    if event["kind"] != "ObservationEvent":
        told = text_or_json(event.get("error" if event["kind"] == "AgentErrorEvent" else "rejection_reason"))
        own = [TraceSegment(Role.WARNING, told, NOTICE)] if told else []
        if event.get("tool_call_id") not in builder.calls.open:
            builder.add(*own)
            return
        builder.calls.answer(event["tool_call_id"])
        builder.answer(own)
        return
    observation = event.get("observation")
    content = next((value for name in ("content", "output") if (value := member(observation, name)) is not None), "")
    text, left_out = parts_of(content, builder)
    if event.get("tool_call_id") not in builder.calls.open:
        builder.add(builder.leave_out("an observation of no action", text), *left_out)
        return
    builder.calls.answer(event["tool_call_id"])
    metadata = member(observation, "metadata")
    if member(observation, "kind") in _OWN_ANSWERS:
        segments = [TraceSegment(Role.WARNING, text, NOTICE)] if text else []
    else:
        channel = TOOL_ERROR if member(observation, "is_error") is True else TOOL_RESULT
        segments = framed(metadata, builder.observed(text, channel))
    added, more = parts_of(event.get("extended_content") or "", builder)
    extension = [TraceSegment(Role.CONTEXT, added, EXTENSION)] if added else []
    code = exit_code_of(member(metadata, "exit_code"), member(observation, "exit_code"))
    builder.answer([*segments, *left_out, *extension, *more], code)


def framed(metadata: Any, segments: list[TraceSegment]) -> list[TraceSegment]:
    """Put the segments of a command's output between OpenHands' own prefix and suffix."""
    before, after = (
        [TraceSegment(Role.WARNING, text, NOTICE)] if isinstance(text := member(metadata, name), str) and text else []
        for name in ("prefix", "suffix")
    )
    return [*before, *segments, *after]


def exit_code_of(*codes: Any) -> int | None:
    """Return the first exit code that was recorded; -1 says that the command had not ended."""
    known = (code for code in codes if isinstance(code, int) and not isinstance(code, bool) and code != -1)
    return next(known, None)
