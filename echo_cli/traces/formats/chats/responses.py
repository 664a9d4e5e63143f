"""Items of OpenAI's Responses API: messages, reasoning, function calls and their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError, tool_call
from echo_cli.traces.conversation import CONTEXT_ROLES
from echo_cli.traces.json_records import arguments_of, listed, member, parts_of, read_json, reward_of, task_of, tools_of
from echo_cli.traces.recognition import Sample
from echo_cli.trajectory import TOOL_RESULT

ROLES = """\
input       a list of items, {"input": …, "output": […]} or {"items": […]}: one, an array of them, or JSONL; input is a
            list of items or the user's text; optionally instructions, tools, reward or score
context     instructions; system, developer and user messages, each followed by a newline; tools; <tool_response>
            wrappers
action      each assistant message: its text, a newline, then each function_call as <tool_call> JSON </tool_call>, whose
            arguments keep their bytes; a custom_tool_call has its text as {"input": …}, a local_shell_call, shell_call
            or apply_patch_call its action or operation. Neighbouring items of the assistant are one action
env_output  the output of a call, byte for byte; text parts are joined without a separator; of a shell_call, stdout and
            stderr (channels of these names)
warning     matches of --warning in an output
exit code   of a shell_call
omitted     reasoning; encrypted compactions; item references; names and ids
left out    images, audio, files; calls of server-side tools (web_search_call, mcp_call, …) with their results; items of
            other types; an output whose call is not in the record
refused     a call without a name or an id"""

_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_CALLS = {
    "function_call": "arguments",
    "custom_tool_call": "input",
    "local_shell_call": "action",
    "shell_call": "action",
    "apply_patch_call": "operation",
}
"""Fields of a call's arguments, by the type of its item."""
_NAMES = {"local_shell_call": "local_shell", "shell_call": "shell", "apply_patch_call": "apply_patch"}
"""Names of the tools whose calls have types of their own."""
_OUTPUTS = tuple(f"{kind}_output" for kind in _CALLS)
_OMITTED = ("reasoning", "compaction", "compaction_summary", "context_compaction", "item_reference", "ghost_snapshot")
_KINDS = {*_CALLS, *_OUTPUTS, *_OMITTED}

Output = Callable[[str, TraceBuilder], tuple[list[TraceSegment], int | None]]
"""Reader of an output's text: its segments, which joined equal the text, and its exit code if that is known."""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of items of the Responses API, or None."""
    items = _items_of(sample.first)
    kinds = {member(item, "type") for item in items} & _KINDS
    parts = {member(part, "type") for item in items for part in listed(member(item, "content"))}
    found = sorted(kinds | (parts & {"input_text", "output_text"}))
    return f"it has items of the types {', '.join(found)}" if found else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the conversations of a file."""
    return read_json(path, partial(_trace, options=options), cursor=options.cursor)


def _items_of(record: Any) -> list[Any]:
    if isinstance(record, list):
        return record
    given = member(record, "input")
    first = [{"role": "user", "content": given}] if isinstance(given, str) else listed(given)
    return [*first, *listed(member(record, "output")), *listed(member(record, "items"))]


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    items, whole = _items_of(record), record if isinstance(record, dict) else {}
    if not items:
        raise UnplacedError("no items")
    builder = TraceBuilder(options)
    if isinstance(instructions := whole.get("instructions"), str):
        builder.context(f"{instructions}\n", "system")
    builder.tools(tools_of(whole, "tools"))
    for number, item in enumerate(items):
        with builder.at(f"items[{number}]"):
            add_item(item, builder)
    return builder.trace(task_of(whole, where), reward=reward_of(whole, "reward", "score", builder=builder))


def plain_output(text: str, builder: TraceBuilder) -> tuple[list[TraceSegment], int | None]:
    """Return an output's text as an observation."""
    return builder.observed(text, TOOL_RESULT), None


def add_item(item: Any, builder: TraceBuilder, output: Output = plain_output) -> None:
    """Place one item.

    Raises:
        UnplacedError: a call has no name or no id; or the item cannot be placed, and the builder's options are strict.
    """
    kind, role = member(item, "type"), member(item, "role")
    if kind in _OMITTED:
        builder.omit("reasoning" if kind == "reasoning" else f"items of the type {kind}", _reasoning(item))
    elif kind in _CALLS:
        _call(item, kind, builder)
    elif kind in _OUTPUTS:
        _answer(item, builder, output)
    elif kind not in (None, "message"):
        builder.add_later(builder.leave_out(f"an item of another type: {kind!r}"))
    elif role in CONTEXT_ROLES:
        text, left_out = text_of_item(item.get("content"), builder)
        builder.context(f"{text}\n", role)
        builder.add(*left_out)
    elif role == "assistant":
        text, left_out = text_of_item(item.get("content"), builder)
        builder.say(text)
        builder.add_later(*left_out)
    else:
        builder.add(builder.leave_out(f"a message of unknown role: {role!r}"))


def _call(item: Mapping[str, Any], kind: str, builder: TraceBuilder) -> None:
    name, arguments = item.get("name", _NAMES.get(kind)), item.get(_CALLS[kind])
    call_id = item.get("call_id") or item.get("id")
    if not isinstance(name, str) or not isinstance(call_id, str):
        raise UnplacedError(f"a {kind} without a name or an id")
    builder.calls.call(call_id)
    custom = kind == "custom_tool_call" and isinstance(arguments, str)
    builder.say("", [tool_call(name, {"input": arguments} if custom else arguments_of(arguments, builder))])


def _answer(item: Mapping[str, Any], builder: TraceBuilder, output: Output) -> None:
    content, call_id = item.get("output"), item.get("call_id") or item.get("id")
    segments, exit_code, left_out = list[TraceSegment](), None, list[TraceSegment]()
    chunks = [each for each in listed(content) if isinstance(member(each, "stdout"), str)]
    if chunks:
        for chunk in chunks:
            for channel in ("stdout", "stderr"):
                segments += builder.observed(str(chunk.get(channel) or ""), channel)
            exit_code = member(chunk.get("outcome"), "exit_code")
    elif content is not None:
        text, left_out = text_of_item(content, builder)
        segments, exit_code = output(text, builder)
    if call_id not in builder.calls.open:
        text = "".join(segment.text for segment in segments)
        builder.add(builder.leave_out("an output whose call is not in the record", text))
        return
    builder.calls.answer(call_id)
    builder.answer([*segments, *left_out], exit_code if isinstance(exit_code, int) else None)


def text_of_item(content: Any, builder: TraceBuilder) -> tuple[str, list[TraceSegment]]:
    """Return the text of a message or an output, and warnings for its other parts."""
    if isinstance(content, dict):  # early versions of Codex wrote a failed call's output as {"content": …}
        content = content.get("content")
    if content is None:
        return "", [builder.leave_out("a message without text")]
    if isinstance(content, list):
        content = [{"type": "text", "text": part["text"]} if _is_text(part) else part for part in content]
    return parts_of(content, builder, ("text", "refusal"))


def _is_text(part: Any) -> bool:
    return member(part, "type") in _TEXTS and "text" in part


def _reasoning(item: Mapping[str, Any]) -> str:
    parts = [*listed(item.get("summary")), *listed(item.get("content"))]
    return "".join(part["text"] for part in parts if isinstance(member(part, "text"), str))
