"""Session logs of Claude Code: `~/.claude/projects/*/*.jsonl`, and what `claude -p --output-format stream-json` prints.

The format has no documentation; these rules follow public parsers and logs of versions 1.0 to 2.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Record, Refusal, TraceBuilder, tool_call
from echo_cli.traces.formats.sessions.order import Step, answers_first
from echo_cli.traces.json_records import arguments_of, listed, member, parts_of, read_json, sessions_of
from echo_cli.traces.recognition import Sample
from echo_cli.trajectory import TOOL_ERROR, TOOL_RESULT, WRAPPER, Role

SUBAGENT, COMPACTION, HOOK, HARNESS = "subagent", "compaction", "hook", "harness"
"""Channels of a subagent's answer, the mark of a compaction, a hook's text, and Claude Code's own text."""

ROLES = """\
input       lines of type user, assistant, system, attachment, …, of one or more sessions, whose lines may alternate
            (of up to 16 at a time). The lines of a subagent (isSidechain, agent-*.jsonl; parent_tool_use_id in
            stream-json) are a trace of their own. Lines of one message id are one reply, and a line that repeats a uuid
            is read once. Prompts that were taken back, and their replies, stay. A session without a reply is no episode
context     the text of user messages, each followed by a newline: prompts, commands and their output, skills (isMeta),
            the summary after a compaction (isCompactSummary); queued prompts (attachment queued_command); the line of a
            compaction (system, compact_boundary), in the channel compaction. What arrives while a tool runs follows the
            tool's answer. <tool_response> wrappers; <tool_use_error> tags; "Exit code N" of a failed command; the lines
            around the preview of an output that was too large (<persisted-output>)
action      each reply: its text blocks, each followed by a newline, then each tool_use as <tool_call> JSON
            </tool_call>. Neighbouring replies are one action; one without text is none
env_output  tool_result blocks, byte for byte, without what is context or warning (channel tool_error with is_error,
            subagent for the answer of Task or Agent); the text blocks of a result are joined without a separator
warning     in a tool_result: <system-reminder> blocks with the newlines around them; the notices that the user rejected
            or interrupted the call, that it lacks a permission, that the command timed out or runs in the background,
            that there was no output, or that an old result was cleared; the line on how to resume a subagent, with its
            usage (channel harness); matches of --warning. The text that hooks add (attachment hook_…), in the channel
            hook
exit code   "Exit code N" at the start of a failed command's result
omitted     thinking; replies that Claude Code wrote itself (model <synthetic>), such as API errors; repeated calls;
            system lines, other attachments, and all lines without a message, such as snapshots, titles and progress
left out    images, documents, server-side tools, messages of other roles, a result whose call is not in the log"""

_NOTICES = (
    "The user doesn't want to proceed with this tool use.",
    "The user doesn't want to take this action right now.",
    "[Request interrupted by user",
    "[Old tool result content cleared]",
    "Tool ran without output",
    "(Bash completed with no output)",
)
_DENIALS = ("Claude requested permissions to ", "Permission to use ")
"""Beginnings of Claude Code's own text, where a result is an error."""
_ERROR = re.compile(r"(<tool_use_error>)(.*)(</tool_use_error>)", re.DOTALL)
_EXIT_CODE = re.compile(r"(?:Error: )?Exit code (\d+)(?:\n|\Z)")
_TIMED_OUT = r"Command timed out after \d[\d.]*[dhms](?: \d[\d.]*[dhms])*"
_TIMEOUT = re.compile(rf"{_TIMED_OUT}(?:\n+{_TIMED_OUT})*(?:[ \n]|\Z)")
"""Notice of a command that was ended, which some versions repeat; the command's output so far follows."""
_BACKGROUND = re.compile(
    r"Command (?:running in background with ID: "
    r"|did not complete within its [^\n]{1,40} and was moved to the background)"
)
_PREVIEW = re.compile(
    r"(<persisted-output>\n(?:[^\n]*\n){1,3}Preview[^\n]*:\n)(.*?)((?:\n\.\.\.)?\n</persisted-output>)", re.DOTALL
)
_RESUMPTION = re.compile(r"\n?agentId: [\w-]+ \(for resuming [^\n]*\)(?:\n<usage>[^<]*</usage>)?\s*\Z")
_REMINDER, _END_REMINDER = "<system-reminder>", "</system-reminder>"
_SUBAGENT_TOOLS = ("Task", "Agent")
_LINE_TYPES = ("user", "assistant")

_Line = tuple[str, Any, list[Any]]
"""Place of a line, the line, and the blocks of its message."""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of lines of Claude Code among the first records, or None."""
    for record in sample.records:
        kind = member(record, "type")
        if kind in _LINE_TYPES and member(member(record, "message"), "role") == kind:
            return f"it has lines of type {kind} with a message, as Claude Code writes them"
        if (kind == "summary" and member(record, "leafUuid")) or kind == "file-history-snapshot":
            return f"it has a line of type {kind}, as Claude Code writes it"
    return None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the sessions of a file, each followed by its subagents."""
    return read_json(path, partial(_trace, options=options), _threads)


def _threads(entries: Iterator[Record | Refusal]) -> Iterator[Record | Refusal]:
    """Yield the threads of the sessions: the conversation with the user, and each subagent's; those with a reply."""
    for entry in sessions_of(entries, _session_of):
        if isinstance(entry, Refusal):
            yield entry
            continue
        threads: dict[str, list[Record]] = {"": []}
        owners = dict[str, str]()
        seen = set[str]()
        for place, line in entry[1]:
            uuid = member(line, "uuid")
            if isinstance(uuid, str) and uuid in seen:
                continue
            agent = _agent_of(line, owners)
            threads.setdefault(agent, []).append((place, line))
            if isinstance(uuid, str):
                seen.add(uuid)
                owners[uuid] = agent
        for agent, lines in threads.items():
            if any(_has_reply(line) for _, line in lines):
                yield entry[0], (agent, lines)


def _session_of(line: Any, ids: tuple[str, ...]) -> tuple[str, ...]:
    found = member(line, "sessionId") or member(line, "session_id")
    return (found,) if isinstance(found, str) else ids


def _agent_of(line: Any, owners: Mapping[str, str]) -> str:
    """Return the name of the subagent that a line belongs to; empty for the session's own lines.

    Early versions give no agentId: a subagent's first line then has no parent in the log, and names the thread.
    """
    caller = member(line, "parent_tool_use_id")
    if isinstance(caller, str):
        return caller
    if member(line, "isSidechain") is not True:
        return ""
    agent, parent = member(line, "agentId"), member(line, "parentUuid")
    if isinstance(agent, str):
        return f"agent-{agent}"
    return (isinstance(parent, str) and owners.get(parent)) or f"sidechain-{member(line, 'uuid')}"


def _has_reply(line: Any) -> bool:
    kinds = {member(block, "type") for block in _blocks(member(member(line, "message"), "content"))}
    return member(line, "type") == "assistant" and not _is_synthetic(line) and bool(kinds & {"text", "tool_use"})


def _is_synthetic(line: Any) -> bool:
    return member(line, "isApiErrorMessage") is True or member(member(line, "message"), "model") == "<synthetic>"


def _trace(value: Any, where: str, options: ImportOptions) -> Trace:
    agent, lines = value
    builder = TraceBuilder(options)
    for place, line, blocks in answers_first(_merged(lines), _step_of):
        with builder.at(place):
            _add(line, blocks, builder)
    session = next(filter(None, (_session_of(line, ()) for _, line in lines)), (Path(where).name,))[0]
    return builder.trace(f"{session}/{agent}" if agent else session)


def _merged(lines: Iterable[Record]) -> list[_Line]:
    """Return the lines with the blocks of their messages; later lines of a reply are merged into its first line."""
    found, replies = list[_Line](), dict[str, list[Any]]()
    for place, line in lines:
        message = member(line, "message")
        blocks, name = _blocks(member(message, "content")), member(message, "id")
        if member(line, "type") == "assistant" and isinstance(name, str):
            if name in replies:
                replies[name] += blocks
                continue
            replies[name] = blocks
        found.append((place, line, blocks))
    return found


def _step_of(line: _Line) -> Step:
    of = {name: frozenset(str(member(block, name)) for block in line[2]) for name in ("id", "tool_use_id")}
    calls, answers = (ids - {"None"} for ids in of.values())
    return Step(member(line[1], "type") == "assistant", calls, answers)


def _add(line: Any, blocks: Sequence[Any], builder: TraceBuilder) -> None:
    """Place one line."""
    kind, message, content = member(line, "type"), member(line, "message"), _plain(member(line, "content"))
    if kind == "user" and member(message, "role") == "user":
        _add_user(blocks, builder)
    elif kind == "assistant" and member(message, "role") == "assistant":
        if _is_synthetic(line):
            builder.omit("replies that Claude Code wrote itself", _text_of(blocks))
        else:
            _add_assistant(blocks, builder)
    elif isinstance(message, dict):
        builder.add(builder.leave_out(f"a message of unknown role: {message.get('role')!r}", _text_of(blocks)))
    elif kind == "attachment":
        _add_attachment(member(line, "attachment"), builder)
    elif "compact_boundary" in (kind, member(line, "subtype")) and content:
        builder.context(f"{content}\n", COMPACTION)
    else:
        builder.omit("lines without a message", content)


def _add_user(blocks: Iterable[Any], builder: TraceBuilder) -> None:
    for block in blocks:
        kind = member(block, "type")
        if kind == "text":
            text, left_out = parts_of([block], builder)
            builder.context(f"{text}\n", "user")
            builder.add(*left_out)
        elif kind == "tool_result":
            _answer(block, builder)
        else:
            builder.add(builder.leave_out(f"a block that is neither text nor a tool_result: {kind!r}"))


def _answer(block: Mapping[str, Any], builder: TraceBuilder) -> None:
    """Place a tool's result between its wrappers."""
    call, content = block.get("tool_use_id"), block.get("content")
    text, left_out = ("", []) if content is None else parts_of(content, builder)
    if call not in builder.calls.open:
        builder.add(builder.leave_out("a tool result whose call is not in the log", text))
        return
    name, failed = builder.calls.answer(call), block.get("is_error") is True
    channel = TOOL_ERROR if failed else SUBAGENT if name in _SUBAGENT_TOOLS else TOOL_RESULT
    segments, exit_code = _result(text, channel, builder)
    builder.answer([*segments, *left_out], exit_code)


def _result(text: str, channel: str, builder: TraceBuilder) -> tuple[list[TraceSegment], int | None]:
    """Return the segments of a result, which joined equal `text`, and the exit code if it has one."""
    is_notice = text.startswith((*_NOTICES, *_DENIALS) if channel == TOOL_ERROR else _NOTICES)
    if is_notice or _TIMEOUT.fullmatch(text) or _BACKGROUND.match(text):
        return [TraceSegment(Role.WARNING, text, HARNESS)], None
    if channel == TOOL_ERROR and (match := _EXIT_CODE.match(text)):
        head = TraceSegment(Role.CONTEXT, match.group(), WRAPPER)
        return [head, *_without_timeout(text[match.end() :], channel, builder)], int(match.group(1))
    if channel == TOOL_ERROR and _TIMEOUT.match(text):
        return _without_timeout(text, channel, builder), None
    if match := _ERROR.fullmatch(text) or _PREVIEW.fullmatch(text):
        start, inner, end = match.groups()
        body = _without_reminders(inner, channel, builder)
        return [TraceSegment(Role.CONTEXT, start, WRAPPER), *body, TraceSegment(Role.CONTEXT, end, WRAPPER)], None
    if channel == SUBAGENT and (match := _RESUMPTION.search(text)):
        notice = TraceSegment(Role.WARNING, match.group(), HARNESS)
        return [*_without_reminders(text[: match.start()], channel, builder), notice], None
    return _without_reminders(text, channel, builder), None


def _without_timeout(text: str, channel: str, builder: TraceBuilder) -> list[TraceSegment]:
    """Split a failed command's output after the notice that it timed out, if it begins with one."""
    match = _TIMEOUT.match(text)
    end = match.end() if match else 0
    notice = [TraceSegment(Role.WARNING, text[:end], HARNESS)] if end else []
    return [*notice, *_without_reminders(text[end:], channel, builder)]


def _without_reminders(text: str, channel: str, builder: TraceBuilder) -> list[TraceSegment]:
    """Split a result at the reminders that Claude Code adds to it, each at the start of a line."""
    segments, begin, search = list[TraceSegment](), 0, 0
    while (start := text.find(_REMINDER, search)) >= 0 and (end := text.find(_END_REMINDER, start)) >= 0:
        search = end + len(_END_REMINDER)
        if start and text[start - 1] != "\n":
            continue
        before = text[begin:start].rstrip("\n")
        while text.startswith("\n", search):
            search += 1
        segments += builder.observed(before, channel)
        segments.append(TraceSegment(Role.WARNING, text[begin + len(before) : search], HARNESS))
        begin = search
    return segments + builder.observed(text[begin:], channel)


def _add_assistant(blocks: Iterable[Any], builder: TraceBuilder) -> None:
    words, calls, left_out = list[str](), list[str](), list[TraceSegment]()
    for block in blocks:
        kind = member(block, "type")
        if kind in ("thinking", "redacted_thinking"):
            builder.omit("reasoning", str(block.get("thinking") or ""))
        elif kind == "text":
            text, without = parts_of([block], builder)
            words.append(text)
            left_out += without
        elif kind == "tool_use" and isinstance(block.get("name"), str) and isinstance(block.get("id"), str):
            if block["id"] in builder.calls.calls:
                builder.omit("repeated tool calls")
                continue
            builder.calls.call(block["id"], block["name"])
            calls.append(tool_call(block["name"], arguments_of(block.get("input"), builder)))
        else:
            left_out.append(builder.leave_out(f"a block that is neither text nor a tool_use: {kind!r}"))
    builder.say("\n".join(words), calls)
    builder.add_later(*left_out)


def _add_attachment(attachment: Any, builder: TraceBuilder) -> None:
    kind, text = str(member(attachment, "type")), _plain(member(attachment, "content"))
    if kind == "queued_command":
        _add_user(_blocks(member(attachment, "prompt")), builder)
    elif kind.startswith("hook_") and text:
        builder.add(TraceSegment(Role.WARNING, f"{text}\n", HOOK))
    else:
        builder.omit("attachments", text)


def _blocks(content: Any) -> list[Any]:
    """Return a message's content, a text or a list of blocks, as a new list of blocks."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else [*listed(content)]


def _text_of(blocks: Iterable[Any]) -> str:
    return "".join(_plain(member(block, "text")) for block in blocks)


def _plain(content: Any) -> str:
    """Return a text, or the texts of a list, one per line; empty for anything else."""
    return content if isinstance(content, str) else "\n".join(each for each in listed(content) if isinstance(each, str))
