"""Runs of mini-swe-agent: `.traj.json` files of versions 1 and 2, and data sets of their messages.

Source: mini-swe-agent's page on output files, its agents and the observation templates of its configs, versions
1.5 to 2.4. Text runs show an observation as a user message, runs with tool calls as a tool's answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder
from echo_cli.traces.formats.chats.messages import Messages, Observation
from echo_cli.traces.formats.chats.responses import add_item
from echo_cli.traces.framed_text import NOTICE, framed
from echo_cli.traces.json_records import (
    listed,
    member,
    messages_in,
    messages_of,
    parts_of,
    read_json,
    reward_of,
    task_of,
)
from echo_cli.traces.recognition import Sample
from echo_cli.trajectory import TOOL_RESULT, Role

ROLES = """\
input       {"messages": […], "trajectory_format": "mini-swe-agent-…"} or messages that show <returncode>: one, an array
            of them, or JSONL; optionally info, instance_id, reward or score. Responses and outputs of OpenAI's
            Responses API are read as in responses
context     system and user messages, each followed by a newline; the frame of an observation (channel wrapper):
            <returncode>, <output>, <output_head> and <output_tail> tags, the JSON around "output", "Observation: ";
            <tool_response> wrappers; the newline after an observation in a user message
action      each assistant message: its text, a newline, then each tool call as <tool_call> JSON </tool_call>, whose
            arguments keep their bytes. Neighbouring assistant messages are one action; one without text is none
env_output  the command's output in a user or tool message, byte for byte as the model read it, JSON's escapes included;
            of an output that was cut, its head and its tail. A tool's answer without a known frame, as a whole
warning     in the frame: <warning>, <exception>, <elided_chars> and <IMPORTANT> blocks, "warning" and "exception_info",
            the notice of a command that timed out; complaints about the format of a response; the last message, which
            no model reads (role exit; in version 1, the user message with the submission). Matches of --warning in an
            output
exit code   the returncode that was recorded or shown
omitted     reasoning (reasoning_content), extra
left out    images, calls that are not function calls, messages of other roles
refused     an answer without an open call"""

EXIT = "exit"
"""Role, and channel, of the message that ends a run."""

_TEXT = r'[^"\\]*(?:\\.[^"\\]*)*'
_CODE = r"(?P<code>-?\d+)"
_FRAMES = (
    re.compile(
        rf"(?:<exception>.*?</exception>\n)?<returncode>{_CODE}</returncode>\s*<output>\n(?P<output>.*)</output>"
        r"(?:\s*<IMPORTANT>.*)?\s*",
        re.DOTALL,
    ),
    re.compile(
        rf"(?:<exception>.*?</exception>\n)?<returncode>{_CODE}</returncode>\s*(?:<warning>.*?</warning>\s*)?"
        r"<output_head>\n(?P<head>.*)\n</output_head>\s*<elided_chars>\s*\d+ characters elided\s*</elided_chars>\s*"
        r"<output_tail>\n(?P<tail>.*)\n</output_tail>(?:\s*<IMPORTANT>.*)?\s*",
        re.DOTALL,
    ),
    re.compile(
        rf'\{{\s*"returncode": {_CODE},\s*(?:"output": "(?P<output>{_TEXT})"|"output_head": "(?P<head>{_TEXT})",\s*'
        rf'"output_tail": "(?P<tail>{_TEXT})",\s*"elided_chars": \d+,\s*"warning": "{_TEXT}")'
        rf'(?:,\s*"exception_info": "{_TEXT}")?\s*\}}\s*',
        re.DOTALL,
    ),
)
"""Observation templates: of text and tool calls, the same for an output that was cut, and of JSON."""
_TIMEOUT = re.compile(
    r"\AThe last command <command>(?:(?!</command> timed).)*</command> timed out and has been killed\.\n"
    r"The output of the command was:\n ?"
    r"<output>\n(?P<output>.*)\n</output>\n.*",
    re.DOTALL,
)
_PLAIN = re.compile(r"Observation: (?P<output>.*)", re.DOTALL)
_NOTICES = re.compile(
    rf'<(warning|exception|elided_chars|IMPORTANT)>(?:(?!<\1>).)*?</\1>|"(?:warning|exception_info)": "{_TEXT}"|'
    r"The last command <command>.*|(?<=\n)</output>\n.*",
    re.DOTALL,
)
_COMPLAINTS = (
    "Please always provide EXACTLY ONE action",
    "Format error:\n",
    "Tool call error:\n",
    "Your previous response reached the output token limit",
)


def recognise(sample: Sample) -> str | None:
    """Return the evidence of mini-swe-agent's name for its format, or of its observations; None if there is neither."""
    known = member(sample.first, "trajectory_format")
    if isinstance(known, str) and known.startswith("mini-swe-agent"):
        return f"its trajectory_format is {known}"
    texts = [member(each, "content") for each in messages_in(sample.first) if member(each, "role") in ("user", "tool")]
    shown = any(isinstance(text, str) and any(frame.fullmatch(text) for frame in _FRAMES) for text in texts)
    return "its messages show <returncode> and <output>" if shown else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the runs of a file."""
    return read_json(path, partial(_trace, options=options), cursor=options.cursor)


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    whole, messages = messages_of(record)
    builder = TraceBuilder(options)
    placed = Messages(builder, partial(_observe, builder=builder, named="trajectory_format" in whole))
    for number, message in enumerate(messages):
        with builder.at(f"messages[{number}]"):
            if _ends(message, whole, last=number == len(messages) - 1):
                text, left_out = parts_of(message.get("content") or "", builder)
                builder.add(*([TraceSegment(Role.WARNING, text, EXIT)] if text else []), *left_out)
            elif member(message, "object") == "response":
                for item in listed(message.get("output")):
                    add_item(item, builder)
            elif member(message, "type") == "function_call_output":
                add_item(message, builder, partial(_output, message=message))
            else:
                placed.add(_chat_message(message))
    status = member(whole.get("info"), "exit_status")
    meta = {"exit_status": status} if isinstance(status, str) and status else {}
    return builder.trace(task_of(whole, where), reward=reward_of(whole, "reward", "score", builder=builder), meta=meta)


def _observe(message: Mapping[str, Any], text: str, *, builder: TraceBuilder, named: bool) -> Observation | None:
    """Return the observation that a message shows.

    Args:
        named: whether the record says that mini-swe-agent wrote it.
    """
    extra = message.get("extra")
    if member(extra, "interrupt_type") == "FormatError" or text.startswith(_COMPLAINTS):
        return Observation([TraceSegment(Role.WARNING, text, NOTICE)])
    if not builder.commands:
        return None
    frames = (*_FRAMES, _TIMEOUT, *([_PLAIN] if named else []))
    match = next((found for frame in frames if (found := frame.fullmatch(text))), None)
    if match is None:
        return None
    groups = match.groupdict()
    spans = [match.span(name) for name in ("output", "head", "tail") if groups.get(name) is not None]
    code = member(extra, "returncode")
    if not isinstance(code, int) and groups.get("code") is not None:
        code = int(groups["code"])
    return Observation(framed(text, spans, builder.options, notices=_NOTICES), code if isinstance(code, int) else None)


def _output(text: str, builder: TraceBuilder, message: Mapping[str, Any]) -> tuple[list[TraceSegment], int | None]:
    """Return the segments and the exit code of an output item of the Responses API, which models of that API get."""
    seen = _observe(message, text, builder=builder, named=False)
    return (builder.observed(text, TOOL_RESULT), None) if seen is None else ([*seen.segments], seen.exit_code)


def _chat_message(message: Any) -> Any:
    """Return a message with the parts of chat completions, also if its parts are those of the Responses API."""
    parts = member(message, "content")
    if not isinstance(parts, list):
        return message
    told = [{**part, "type": "text"} if member(part, "type") == "input_text" else part for part in parts]
    return {**message, "content": told}


def _ends(message: Any, whole: Mapping[str, Any], *, last: bool) -> bool:
    """Return whether a message ends a run: of the role exit or, in version 1, the user's with the submission."""
    if member(message, "role") != "user":
        return bool(member(message, "role") == EXIT)
    if member(message.get("extra"), "exit_status") is not None:
        return True
    info = whole.get("info")
    submitted = member(info, "exit_status") and message.get("content") == (member(info, "submission") or "")
    return last and bool(submitted)
