"""Episodes of Agent World Model, as recorded by OpenEnv's agent_world_model_env: tool calls and their results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError, json_text, tool_call
from echo_cli.traces.json_records import listed, member, read_json, reward_of
from echo_cli.traces.recognition import Sample
from echo_cli.trajectory import TOOL_RESULT, WRAPPER, Role

ROLES = """\
input       one episode, an array of them, or JSONL: task and steps; optionally scenario, task_idx, tools, reward
context     a system line that names the scenario; the task; the names of the tools; <tool_response> wrappers
action      each step's action, as <tool_call> JSON </tool_call>
env_output  tool_result: text byte for byte, any other value as JSON with sorted keys; if it is null, a JSON object with
            sorted keys: of verify_result and reward_type, or else of error
warning     an observation's warning, and matches of --warning
refused     a step without a tool name; a step without an observation, unless it is the last"""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of an episode of Agent World Model, or None."""
    steps = listed(member(sample.first, "steps"))
    tool = member(member(steps[0], "action"), "tool_name") if steps else None
    named = isinstance(member(sample.first, "task"), str) and isinstance(tool, str)
    return "its records have a task, and steps whose actions have a tool_name" if named else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the episodes of a file."""
    return read_json(path, partial(_trace, options=options))


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
        builder.tools(_tools(tools))
    for number, step in enumerate(steps):
        with builder.at(f"steps[{number}]"):
            _add(step, builder, last=number + 1 == len(steps))
    task = ":".join(str(part) for part in (scenario, record.get("task_idx")) if isinstance(part, (str, int)))
    return builder.trace(task or Path(where).name, reward=reward_of(record, "reward", builder=builder))


def _tools(tools: Any) -> list[str]:
    if not isinstance(tools, list):
        raise UnplacedError("tools is not a list", "tools")
    return [tool if isinstance(tool, str) else json_text(tool) for tool in tools]


def _add(step: Any, builder: TraceBuilder, *, last: bool) -> None:
    """Place one step."""
    if not isinstance(step, dict):
        raise UnplacedError("not a step")
    action, observation = step.get("action"), step.get("observation")
    name = member(action, "tool_name")
    if not isinstance(name, str):
        raise UnplacedError("an action without a tool_name")
    builder.act(tool_call(name, json_text(member(action, "arguments") or {})))
    if observation is not None:
        builder.answer(_observation(observation, builder))
    elif not last:
        raise UnplacedError("a step without an observation")


def _observation(observation: Any, builder: TraceBuilder) -> list[TraceSegment]:
    if not isinstance(observation, dict):
        raise UnplacedError("an observation that is not a JSON object")
    segments = builder.observed(_text(observation), TOOL_RESULT)
    warning = observation.get("warning")
    if warning is None or warning == "":
        return segments
    if not isinstance(warning, str):
        raise UnplacedError("a warning that is not text")
    return [*segments, TraceSegment(Role.CONTEXT, "\n", WRAPPER), TraceSegment(Role.WARNING, warning, "warning")]


def _text(observation: Mapping[str, Any]) -> str:
    result = observation.get("tool_result")
    if isinstance(result, str):
        return result
    if result is not None:
        return json.dumps(result, sort_keys=True)
    for told in (("reward_type", "verify_result"), ("error",)):
        if observation.get(told[-1]) is not None:
            return json.dumps({name: observation[name] for name in told if name in observation}, sort_keys=True)
    raise UnplacedError("an observation with neither tool_result, verify_result nor error")
