"""Episodes of Agent World Model, as recorded by OpenEnv's agent_world_model_env: tool calls and their results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError, json_text, tool_call
from echo_cli.traces.json_records import arguments_of, listed, member, read_json, reward_of
from echo_cli.traces.recognition import Sample
from echo_cli.trajectory import TOOL_RESULT, WRAPPER, Role

ROLES = """\
input       one episode, an array of them, or JSONL: task and steps; optionally scenario, task_idx, tools, reward
context     a system line that names the scenario; the task; the names of the tools; <tool_response> wrappers
action      each step's action, as <tool_call> JSON </tool_call>
env_output  tool_result: text byte for byte, any other value as JSON with sorted keys; if it is null, a JSON object with
            sorted keys: of verify_result and reward_type, or else of error
warning     an observation's warning, and matches of --warning
left out    an observation that is not an object, or has none of these; a warning that is not text; tools that are not a
            list; in place of a missing observation, unless the step is the last, a warning says so
refused     a step without a tool name"""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of an episode of Agent World Model, or None."""
    steps = listed(member(sample.first, "steps"))
    tool = member(member(steps[0], "action"), "tool_name") if steps else None
    named = isinstance(member(sample.first, "task"), str) and isinstance(tool, str)
    return "its records have a task, and steps whose actions have a tool_name" if named else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the episodes of a file."""
    return read_json(path, partial(_trace, options=options), cursor=options.cursor)


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    if not isinstance(member(record, "task"), str):
        raise UnplacedError("not an episode: it has no task")
    steps, scenario = record.get("steps"), record.get("scenario")
    if not isinstance(steps, list):
        raise UnplacedError("not an episode: it has no steps")
    builder = TraceBuilder(options)
    world = f" in {scenario}" if isinstance(scenario, str) else ""
    builder.context(f"You carry out a task{world} by calling tools.\n", "system")
    builder.context(f"{record['task']}\n", "user")
    if tools := record.get("tools"):
        with builder.at("tools"):
            _add_tools(tools, builder)
    for number, step in enumerate(steps):
        with builder.at(f"steps[{number}]"):
            _add(step, builder, last=number + 1 == len(steps))
    task = ":".join(str(part) for part in (scenario, record.get("task_idx")) if isinstance(part, (str, int)))
    return builder.trace(task or Path(where).name, reward=reward_of(record, "reward", builder=builder))


def _add_tools(tools: Any, builder: TraceBuilder) -> None:
    if isinstance(tools, list):
        builder.tools([tool if isinstance(tool, str) else json_text(tool) for tool in tools])
    else:
        builder.add(builder.leave_out("tools that are not a list", json_text(tools)))


def _add(step: Any, builder: TraceBuilder, *, last: bool) -> None:
    """Place one step."""
    if not isinstance(step, dict):
        raise UnplacedError("not a step")
    action, observation = step.get("action"), step.get("observation")
    name = member(action, "tool_name")
    if not isinstance(name, str):
        raise UnplacedError("an action without a tool_name")
    builder.act(tool_call(name, arguments_of(member(action, "arguments"), builder)))
    if observation is not None:
        builder.answer(_observation(observation, builder))
    elif not last:
        builder.add(builder.leave_out("a step without an observation"))


def _observation(observation: Any, builder: TraceBuilder) -> list[TraceSegment]:
    if not isinstance(observation, dict):
        return [builder.leave_out("an observation that is not a JSON object", json_text(observation))]
    text = _text(observation)
    if text is None:
        what = "an observation with neither tool_result, verify_result nor error"
        segments = [builder.leave_out(what, json_text(observation))]
    else:
        segments = builder.observed(text, TOOL_RESULT)
    warning = observation.get("warning")
    if warning is None or warning == "":
        return segments
    if not isinstance(warning, str):
        return [*segments, builder.leave_out("a warning that is not text", json_text(warning))]
    return [*segments, TraceSegment(Role.CONTEXT, "\n", WRAPPER), TraceSegment(Role.WARNING, warning, "warning")]


def _text(observation: Mapping[str, Any]) -> str | None:
    """Return the text of an observation; None if it has none of the fields that hold one."""
    result = observation.get("tool_result")
    if isinstance(result, str):
        return result
    if result is not None:
        return json.dumps(result, sort_keys=True)
    for told in (("reward_type", "verify_result"), ("error",)):
        if observation.get(told[-1]) is not None:
            return json.dumps({name: observation[name] for name in told if name in observation}, sort_keys=True)
    return None
