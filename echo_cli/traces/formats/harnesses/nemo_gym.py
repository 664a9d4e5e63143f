"""Rollouts of NeMo-Gym: the parameters of a response, the response with everything that was played, and a reward.

Source: NeMo-Gym's nemo_gym/base_resources_server.py, its agents and the example rollouts of its environments. Input and
output are items of OpenAI's Responses API; token ids stand in fields of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError
from echo_cli.traces.conversation import CONTEXT_ROLES
from echo_cli.traces.formats.chats.responses import add_item, text_of_item
from echo_cli.traces.framed_text import OBSERVATION
from echo_cli.traces.json_records import first_id, listed, member, read_json, reward_of, tools_in
from echo_cli.traces.recognition import Sample
from echo_cli.trajectory import WRAPPER

ROLES = """\
input       rollouts with responses_create_params (input: items or the user's text; optionally instructions, tools) and
            response (output: items): one, an array of them, or JSONL; optionally reward, task_id, _ng_task_index
context     instructions; the items of the input, each followed by a newline, whoever is said to speak (channel copied
            for the assistant's and for outputs); tools; <tool_response> wrappers; the newline after an observation that
            answers no call
action      each assistant message of the output: its text, a newline, then each function_call as <tool_call> JSON
            </tool_call>, as in responses. Neighbouring items of the assistant are one action
env_output  the output of a call, byte for byte; user, system and developer messages of the output, with which the
            environment answers (channel observation); text parts are joined without a separator
warning     matches of --warning in an observation
omitted     reasoning; token ids; names and ids
left out    as in responses; tools that are not a list of objects
refused     a call without a name or an id"""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of the parameters of a response, and of the response; None if there is neither."""
    asked, played = (member(sample.first, name) for name in ("responses_create_params", "response"))
    known = isinstance(asked, dict) and isinstance(member(played, "output"), list)
    return "its records have responses_create_params and a response" if known else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the rollouts of a file."""
    return read_json(path, partial(_trace, options=options), cursor=options.cursor)


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    asked, played = member(record, "responses_create_params"), listed(member(member(record, "response"), "output"))
    if not isinstance(asked, dict) or not played:
        raise UnplacedError("no responses_create_params with a response")
    builder = TraceBuilder(options)
    if isinstance(instructions := asked.get("instructions"), str):
        builder.context(f"{instructions}\n", "system")
    given = asked.get("input")
    tools = tools_in(asked, builder)
    for number, item in enumerate([{"role": "user", "content": given}] if isinstance(given, str) else listed(given)):
        if member(item, "role") not in ("system", "developer"):
            builder.tools(tools)
            tools = []
        with builder.at(f"responses_create_params.input[{number}]"):
            add_item(item, builder)
    builder.tools(tools)
    builder.quote()
    for number, item in enumerate(played):
        with builder.at(f"response.output[{number}]"):
            _add(item, builder)
    task = first_id((record.get(name) for name in ("task_id", "problem_id", "instance_id", "_ng_task_index")), where)
    return builder.trace(task, reward=reward_of(record, "reward", builder=builder))


def _add(item: Any, builder: TraceBuilder) -> None:
    """Place an item of the output; a message of another role than the assistant's is the environment's answer."""
    if member(item, "type") not in (None, "message") or member(item, "role") not in CONTEXT_ROLES:
        add_item(item, builder)
        return
    text, left_out = text_of_item(item.get("content"), builder)
    builder.observe([*builder.observed(text, OBSERVATION), *left_out])
    builder.context("\n", WRAPPER)
