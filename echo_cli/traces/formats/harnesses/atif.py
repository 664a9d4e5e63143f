"""Documents in Harbor's ATIF, the Agent Trajectory Interchange Format: `agent/trajectory.json` of a trial.

Source: Harbor's RFC 0001 (rfcs/0001-trajectory-format.md), versions 1.0 to 1.8, and the rules of its validator. A later
version 1.x is read by what is known of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import (
    COPIED,
    ImportOptions,
    Record,
    Refusal,
    TraceBuilder,
    UnplacedError,
    json_text,
    said,
    tool_call,
)
from echo_cli.traces.formats.harnesses.terminus import is_terminus, terminal_text
from echo_cli.traces.json_records import (
    arguments_of,
    listed,
    member,
    parts_of,
    read_json,
    reward_of,
    text_or_json,
    tools_of,
)
from echo_cli.traces.recognition import Sample
from echo_cli.traces.strict_json import parse_json
from echo_cli.trajectory import TOOL_RESULT, WRAPPER

DISPATCHED, SYSTEM_EVENT = "dispatched", "system_event"
"""Channels of context: agent steps without a model call, observations of the system."""

ROLES = """\
input       ATIF-v1.x: one trajectory, an array of them, or JSONL; each embedded subagent trajectory is a separate
            trace. A version later than 1.8 is read by what is known of 1.8. Reward and task come from extra (reward,
            verifier_result; task_id, task_name) or final_metrics.extra, or else from the trial's result.json, one
            folder above agent/
context     system and user messages, each followed by a newline; tool_definitions; <tool_response> wrappers; the
            newline after an observation without a tool call; steps copied from an earlier trajectory
            (is_copied_context); the text of agent steps without a model call (llm_call_count 0); observations of system
            steps without a tool call
action      each agent step: its message, a newline, then each tool call as <tool_call> JSON </tool_call>. Neighbouring
            agent steps are one action; one without text is none
env_output  the contents of observation results, byte for byte; text parts are joined without a separator. Results of a
            step with tool calls are enclosed in <tool_response> wrappers
warning     for agents named terminus…: "Previous response had …" and its list, "Current terminal state:", "New Terminal
            Output:", "Current Terminal Screen:", the notices of a command that timed out and of a response that was too
            long, the line where output was cut, the question whether the task is complete. The echo of typed input is
            part of the terminal's text: env_output. For any agent: matches of --warning in an observation
omitted     reasoning_content; token ids and logprobs: they cover whole completions, including reasoning, the model's
            own tool call format and its stop token, so they are not the tokens of the action's text
left out    images, audio and other parts that are not text; steps of an unknown source; a tool call without a name,
            with its result; a result that has only a subagent's trajectory, which does not say what the agent read; a
            user step's result without a tool call
refused     another major version; an agent without a name; steps that are not numbered 1, 2, …; a result of an unknown
            tool call"""

_VERSION = re.compile(r"ATIF-v1\.(\d{1,4})")
_NEWEST = 8
"""Newest minor version whose rules are known."""
_KEPT = ("schema_version", "session_id", "trajectory_id", "continued_trajectory_ref")
"""Fields of a document that are copied to the trace's meta."""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of ATIF's version, or None."""
    version = member(sample.first, "schema_version")
    return f"its schema_version is {version}" if isinstance(version, str) and version.startswith("ATIF") else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the traces of a file's documents, embedded ones included."""
    return read_json(path, partial(_trace, path=path, options=options), expand=_documents, cursor=options.cursor)


def _documents(records: Iterable[Record | Refusal]) -> Iterator[Record | Refusal]:
    """Yield `records`, each followed by the subagent documents embedded in it."""
    for entry in records:
        waiting = [entry]
        while waiting:
            document = waiting.pop()
            yield document
            if not isinstance(document, Refusal):
                waiting += reversed(_embedded(*document))


def _embedded(where: str, record: Any) -> list[Record | Refusal]:
    embedded, where = member(record, "subagent_trajectories"), f"{where}: subagent_trajectories"
    if embedded is None:
        return []
    if not isinstance(embedded, list):
        return [Refusal(where, "not a list of trajectories")]
    return [(f"{where}[{number}]", document) for number, document in enumerate(embedded)]


@dataclass
class _Steps:
    """Importer of a document's steps, one by one."""

    builder: TraceBuilder
    """Builder whose tool calls are the calls in actions; in ATIF, a call may be answered more than once."""
    terminus: bool
    """Whether the agent is a terminus agent, whose observations `terminal_text` splits."""
    known_calls: set[str] = field(default_factory=set)
    """Ids of all tool calls so far that are in the trace."""
    omitted_calls: set[str] = field(default_factory=set)
    """Ids of the tool calls that were left out; so are their results."""
    subagents: int = 0
    """Number of references to subagent documents."""
    left_out: int = 0
    """Number of steps whose token ids are omitted."""

    def add(self, step: Mapping[str, Any]) -> None:
        """Place one step."""
        source, copied = step.get("source"), step.get("is_copied_context") is True
        if source not in ("system", "user", "agent"):
            self._leave_out(step)
            return
        text, left_out = self._message(step.get("message"))
        calls, omitted = self._calls(step.get("tool_calls"), source)
        if source != "agent":
            self.builder.context(f"{text}\n", COPIED if copied else source)
        elif copied or step.get("llm_call_count") == 0:
            self.builder.context(said(text, calls.values()), COPIED if copied else DISPATCHED)
        else:
            self.builder.say(text, calls.values())
            self.builder.calls.calls += calls
            metrics = step.get("metrics")
            self.left_out += member(metrics, "completion_token_ids") is not None
        self.builder.add_later(*left_out, *omitted)
        for number, result in enumerate(_results(step.get("observation"))):
            with self.builder.at(f"observation.results[{number}]"):
                self._observe(result, source, copied, in_tools=bool(calls))

    def _leave_out(self, step: Mapping[str, Any]) -> None:
        """Leave out a step of an unknown source, with its tool calls."""
        calls = listed(step.get("tool_calls"))
        self.omitted_calls |= {call_id for call in calls if isinstance(call_id := member(call, "tool_call_id"), str)}
        told = {name: step[name] for name in ("message", "tool_calls", "observation") if step.get(name)}
        text = told["message"] if list(told) == ["message"] and isinstance(told["message"], str) else json_text(told)
        self.builder.add(self.builder.leave_out(f"a step of unknown source: {step.get('source')!r}", text))

    def _message(self, message: Any) -> tuple[str, list[TraceSegment]]:
        if message is None:
            self.builder.repair("a step without a message, read as an empty one")
            return "", []
        return parts_of(message, self.builder)

    def _calls(self, calls: Any, source: str) -> tuple[dict[str, str], list[TraceSegment]]:
        """Return the text of each tool call of a step, by id, and a warning for each that is left out."""
        if not calls:
            return {}, []
        if source != "agent" or not isinstance(calls, list):
            raise UnplacedError("tool_calls must be a list, in an agent's step")
        texts, left_out = dict[str, str](), list[TraceSegment]()
        for number, call in enumerate(calls):
            with self.builder.at(f"tool_calls[{number}]"):
                call_id, name = member(call, "tool_call_id"), member(call, "function_name")
                if not isinstance(call_id, str):
                    raise UnplacedError("a tool call without tool_call_id or function_name")
                if call_id in texts:
                    raise UnplacedError(f"two tool calls of a step have the id {call_id!r}")
                if isinstance(name, str):
                    texts[call_id] = tool_call(name, self._arguments(call.get("arguments")))
                    self.omitted_calls.discard(call_id)
                else:
                    left_out += [self.builder.leave_out("a tool call without function_name", json_text(call))]
                    self.omitted_calls.add(call_id)
        self.known_calls |= texts.keys()
        return texts, left_out

    def _arguments(self, arguments: Any) -> Any:
        if arguments and not isinstance(arguments, dict):
            self.builder.repair("the arguments of a tool call are not a JSON object")
        return arguments_of(arguments, self.builder)

    def _observe(self, result: Any, source: str, copied: bool, *, in_tools: bool) -> None:
        builder, call_id = self.builder, member(result, "source_call_id")
        content, references = member(result, "content"), listed(member(result, "subagent_trajectory_ref"))
        if isinstance(call_id, str) and call_id in self.omitted_calls:
            builder.add(builder.leave_out("a result of a tool call that is left out", text_or_json(content)))
            return
        if call_id is not None and not (isinstance(call_id, str) and call_id in self.known_calls):
            raise UnplacedError("a result of an unknown tool call")
        if call_id is None and source == "user":
            builder.add(builder.leave_out("a user's observation without a tool call", text_or_json(content)))
            return
        self.subagents += len(references)
        is_context = copied or (call_id is None and source == "system")
        text, left_out = self._result(content, is_reference=bool(references), is_context=is_context)
        if is_context:
            if content is not None:
                builder.context(f"{text}\n", COPIED if copied else SYSTEM_EVENT)
            builder.add(*left_out)
            return
        segments = terminal_text(text, builder.options) if self.terminus else builder.observed(text, TOOL_RESULT)
        segments = [*segments, *left_out]
        if in_tools or call_id is not None:
            builder.answer(segments)
            builder.calls.answers += [] if call_id is None else [call_id]
        else:
            builder.observe(segments)
            builder.context("\n", WRAPPER)

    def _result(self, content: Any, *, is_reference: bool, is_context: bool) -> tuple[str, list[TraceSegment]]:
        """Return the text of a result, and warnings for what is left out of it."""
        if content is not None:
            return parts_of(content, self.builder)
        if not is_reference:
            self.builder.repair("a result with neither content nor a subagent's trajectory, read as an empty one")
        elif not is_context:
            told = "a subagent's result without content: its own trajectory is elsewhere"
            return "", [self.builder.leave_out(told)]
        return "", []


def _trace(record: Any, where: str, path: Path, options: ImportOptions) -> Trace:
    version = member(record, "schema_version")
    known = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if known is None:
        raise UnplacedError(f"not a version 1.x of ATIF: {version!r}", "schema_version")
    agent, steps = member(record, "agent"), record.get("steps")
    name = member(agent, "name")
    if not isinstance(name, str):
        raise UnplacedError("no agent with a name", "agent")
    if not isinstance(steps, list) or not steps:
        raise UnplacedError("no steps", "steps")
    builder = TraceBuilder(options)
    if int(known[1]) > _NEWEST:
        with builder.at("schema_version"):
            builder.repair(f"{version} is later than ATIF-v1.{_NEWEST}, read by what is known")
    placed = _Steps(builder, is_terminus(name))
    tools = tools_of(agent, "tool_definitions", "agent.tool_definitions")
    for number, step in enumerate(steps, start=1):
        with builder.at(f"steps[{number - 1}]"):
            if member(step, "step_id") != number:
                raise UnplacedError(f"step_id is {member(step, 'step_id')!r}, expected {number}")
            if step.get("source") != "system":
                builder.tools(tools)
                tools = []
            placed.add(step)
    task, reward, rewards = _outcome(record, where, path, builder)
    kept = {key: record[key] for key in _KEPT if record.get(key) is not None}
    more = {
        "agent": name,
        "model_name": member(agent, "model_name"),
        "rewards": rewards,
        **builder.calls.meta,
        "subagent_references": placed.subagents,
        "token_ids_left_out": placed.left_out,
    }
    meta = kept | {key: value for key, value in more.items() if value}
    return builder.trace(task, reward=reward, meta=meta)


def _outcome(record: Mapping[str, Any], where: str, path: Path, builder: TraceBuilder) -> tuple[str, float | None, Any]:
    """Return the task, the reward and all rewards by name, from the document or else from its trial.

    A trial's verdict is on the whole run, so it does not apply to embedded subagent documents.
    """
    told = [record.get("extra"), member(record.get("final_metrics"), "extra")]
    told += [] if "subagent_trajectories[" in where.removeprefix(str(path)) else [_trial(path)]
    sources = [source for source in told if isinstance(source, dict)]
    tasks = (source.get(name) for source in sources for name in ("task_id", "task_name"))
    task = next((name for name in tasks if isinstance(name, str)), None) or _run(record, path)
    verdicts = [member(source, "verifier_result") for source in sources]
    rewards = next((found for verdict in verdicts if (found := member(verdict, "rewards"))), None)
    for holder in (*sources, rewards, *verdicts):
        if isinstance(holder, dict) and (reward := reward_of(holder, "reward", builder=builder)) is not None:
            return task, reward, rewards
    return task, None, rewards


def _run(record: Mapping[str, Any], path: Path) -> str:
    """Return the id of a run without a task name, or else the file's name."""
    ids = (record.get(name) for name in ("trajectory_id", "session_id"))
    return next((value for value in ids if isinstance(value, str)), path.name)


def _trial(path: Path) -> Mapping[str, Any]:
    """Return Harbor's result.json of the trial whose `agent/` folder contains `path`; empty if there is none.

    Raises:
        UnplacedError: the file is not a JSON object.
    """
    result = path.absolute().parent.parent / "result.json"
    if path.absolute().parent.name != "agent" or not result.is_file():
        return {}
    try:
        found = parse_json(result.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnplacedError(f"its trial's result.json is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UnplacedError("its trial's result.json is not a JSON object")
    return found


def _results(observation: Any) -> list[Any]:
    if observation is None:
        return []
    results = member(observation, "results")
    if not isinstance(results, list):
        raise UnplacedError("an observation without results", "observation")
    return results
