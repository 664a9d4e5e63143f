"""Rollouts of verifiers environments: `results.jsonl` of an evaluation, and data sets that are saved from it.

Source: verifiers 0.1 to 0.3, `state_to_output` of its save_utils and `MultiTurnEnv`, which asks the environment for the
messages that answer the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError
from echo_cli.traces.formats.chats.messages import ANSWERS, Messages, Observation
from echo_cli.traces.framed_text import OBSERVATION
from echo_cli.traces.json_records import first_id, listed, member, read_json, reward_of, tools_in, unquoted
from echo_cli.traces.recognition import Sample

ROLES = """\
input       rollouts with prompt and completion, lists of messages: one, an array of them, or JSONL; optionally
            reward, example_id, tool_defs or info.oai_tools
context     the messages of the prompt, each followed by a newline, whoever is said to speak (channel copied for
            assistant and tool messages); tools; <tool_response> wrappers; the newline after an observation that answers
            no tool call
action      each assistant message of the completion: its text, a newline, then each tool call as <tool_call> JSON
            </tool_call>, whose arguments keep their bytes. Neighbours are one action; one without text is none
env_output  all other messages of the completion, byte for byte: tool messages, and the messages with which the
            environment answers, mostly the user's (channel observation)
warning     matches of --warning in an observation
omitted     reasoning (reasoning_content), answer, metrics, names and ids
left out    images, audio, calls that are not function calls, tools that are not a list of objects
refused     an answer without an open call"""

_MARKS = ("example_id", "reward", "answer", "info", "task", "metrics")
"""Fields of a rollout, of which one is enough: other tools have prompts and completions, too."""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of a rollout's prompt and completion, or None."""
    lists = [listed(member(sample.first, name)) for name in ("prompt", "completion")]
    if not all(messages and all("role" in each for each in messages if isinstance(each, dict)) for messages in lists):
        return None
    mark = next((name for name in _MARKS if name in sample.first), None)
    return None if mark is None else f"its records have a prompt and a completion of messages, and {mark}"


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the rollouts of a file."""
    return read_json(path, partial(_trace, options=options), cursor=options.cursor)


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    prompt, completion = (listed(member(record, name)) for name in ("prompt", "completion"))
    if not prompt or not completion:
        raise UnplacedError("no prompt and completion of messages")
    builder = TraceBuilder(options)

    def observe(message: Mapping[str, Any], text: str) -> Observation | None:
        if message.get("role") in ANSWERS:
            return None
        return Observation(builder.observed(text, OBSERVATION))

    tools = record.get("tool_defs") or member(unquoted(record.get("info")), "oai_tools")
    Messages(builder).add_all(prompt, "prompt", tools_in({"tools": tools}, builder))
    builder.quote()
    Messages(builder, observe).add_all(completion, "completion")
    task = first_id((record.get(name) for name in ("task_id", "instance_id", "example_id", "id")), where)
    return builder.trace(task, reward=reward_of(record, "reward", builder=builder))
