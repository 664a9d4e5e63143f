"""Runs of LangSmith, exported as JSON: calls of models with LangChain's messages, or with a provider's.

Source: LangSmith's run data format (docs.langchain.com/langsmith/run-data-format); langchain-core's serialised
messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Record, Refusal
from echo_cli.traces.formats.telemetry.calls import ModelCall, chains_of, trace_of_chain
from echo_cli.traces.formats.telemetry.messages import Message, message_of, same_message
from echo_cli.traces.json_records import listed, member, read_json
from echo_cli.traces.recognition import Sample

ROLES = """\
input       runs of LangSmith: one, an array of them, {"runs": […]}, or JSONL, with or without child_runs. The llm runs
            of one thread (thread_id, session_id or conversation_id in the metadata), or else of one trace_id, that
            continue each other are a trace; the last of them holds it. Without llm runs, it is the messages of another
            run. The reward is avg of the only feedback of the root run
context     system, developer and user messages, each followed by a newline; the tools of invocation_params;
            <tool_response> wrappers
action      each assistant message: its text, a newline, then each tool call as <tool_call> JSON </tool_call>, with the
            provider's text of its arguments if it is recorded. Neighbouring assistant messages are one action
env_output  tool messages, byte for byte (channel tool_error with status error)
warning     matches of --warning in a tool's answer
omitted     reasoning, generations after the first, replies that the next call does not hold, ids, runs of tools and
            chains
left out    images and parts of other types, messages of other roles, an answer without its call
refused     a file of runs without messages"""

_THREADS = ("thread_id", "session_id", "conversation_id")
_TYPES = {"human": "user", "ai": "assistant", "function": "tool", "chat": None, "remove": None}
"""Message roles by LangChain's types; None where the message names its role."""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of LangSmith's runs, or None."""
    first = next(iter(listed(member(sample.first, "runs"))), sample.first)
    if not isinstance(member(first, "run_type"), str) or "inputs" not in first:
        return None
    return "its records are runs with run_type and inputs"


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the conversations of a file, which is read whole."""
    place = partial(_trace, options=options)
    return read_json(path, place, expand=partial(_conversations, path=path))


def _trace(chain: Any, where: str, options: ImportOptions) -> Trace:
    return trace_of_chain(chain, where, options)


def _conversations(entries: Iterator[Record | Refusal], path: Path) -> Iterator[Record | Refusal]:
    runs: list[Mapping[str, Any]] = []
    for entry in entries:
        if isinstance(entry, Refusal):
            yield entry
        else:
            runs += _runs(listed(member(entry[1], "runs")) or [entry[1]])
    roots = [run for run in runs if run.get("parent_run_id") is None]
    rewards = {run.get("trace_id") or run.get("id"): _reward(run) for run in roots}
    made = [(_call(run, rewards), run.get("run_type") == "llm") for run in runs]
    found = [(call, is_model) for call, is_model in made if call is not None]
    models = {call.conversation for call, is_model in found if is_model}
    calls = [call for call, is_model in found if is_model or call.conversation not in models]
    if runs and not calls:
        yield Refusal(str(path), f"no messages in {len(runs)} runs")
    for chain in chains_of(calls):
        yield f"{path}: {chain.last.conversation}", chain


def _runs(runs: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield runs and the runs embedded in them."""
    waiting = list(runs)[::-1]
    while waiting:
        run = waiting.pop()
        if isinstance(run, dict):
            yield run
            waiting += listed(run.get("child_runs"))[::-1]


def _call(run: Mapping[str, Any], rewards: Mapping[Any, float | None]) -> ModelCall | None:
    """Return the call that a run records; None if it has no messages."""
    inputs, outputs = run.get("inputs"), run.get("outputs")
    history = _messages(member(inputs, "messages"))
    reply = _reply(outputs)
    if not history and (run.get("run_type") == "llm" or len(reply) < 2):
        return None
    if not reply and run.get("run_type") != "llm":
        return None
    extra = run.get("extra")
    metadata = member(extra, "metadata")
    thread = next((found for name in _THREADS if (found := member(metadata, name))), None)
    conversation = str(thread or run.get("trace_id") or run.get("id") or "")
    start = [same_message(message) for message in history]
    if [same_message(message) for message in reply[: len(history)]] == start:
        reply = reply[len(history) :]  # a graph's state: its output repeats its input
    if len(reply) > 1:
        history, reply = [*history, *reply[:-1]], reply[-1:]
    order = str(run.get("start_time") or run.get("dotted_order") or "")
    meta = {"model": member(metadata, "ls_model_name"), "trace": run.get("trace_id")}
    tools = [tool for tool in listed(member(member(extra, "invocation_params"), "tools")) if isinstance(tool, dict)]
    return ModelCall(conversation, order, history, reply, tools, meta, rewards.get(run.get("trace_id")))


def _reward(run: Mapping[str, Any]) -> float | None:
    """Return the mean of a run's feedback if it has one kind of it."""
    feedback = run.get("feedback_stats")
    if not isinstance(feedback, dict) or len(feedback) != 1:
        return None
    mean = member(next(iter(feedback.values())), "avg")
    return float(mean) if isinstance(mean, (int, float)) and not isinstance(mean, bool) else None


def _reply(outputs: Any) -> list[Message]:
    """Return the messages that a run put out: its first generation or choice, its messages, or the message it is."""
    generation = next(iter(listed(member(outputs, "generations"))), None)
    generation = next(iter(generation), None) if isinstance(generation, list) else generation
    choice = next(iter(listed(member(outputs, "choices"))), None)
    for holder in (generation, choice):
        if holder is not None:
            told = member(holder, "message")
            return _messages([{"role": "assistant", "content": member(holder, "text")} if told is None else told])
    for name in ("messages", "message", "output"):
        value = member(outputs, name)
        if isinstance(value, (list, dict)):
            return _messages(value if isinstance(value, list) else [value])
    return _messages([outputs]) if member(outputs, "role") is not None else []


def _messages(values: Any) -> list[Message]:
    """Return the messages of a list; of a batch of lists, those of the first."""
    first = next(iter(listed(values)), None)
    return [_message(value) for value in (first if isinstance(first, list) else listed(values))]


def _message(value: Any) -> Message:
    """Return a message that LangChain serialised, or that of a provider."""
    told, kind = value, member(value, "type")
    names = listed(member(value, "id"))
    if isinstance(member(value, "kwargs"), dict) and names:
        told, kind = value["kwargs"], str(names[-1]).removesuffix("Chunk").removesuffix("Message").lower()
    elif isinstance(member(value, "data"), dict):
        told = value["data"]
    if not isinstance(told, dict) or (isinstance(told.get("role"), str) and told is value):
        return message_of(told)
    role = _TYPES.get(str(kind), kind) or told.get("role")
    raw = listed(member(told.get("additional_kwargs"), "tool_calls"))
    calls = raw or [*listed(told.get("tool_calls")), *listed(told.get("invalid_tool_calls"))]
    return message_of({**told, "role": role, "tool_calls": calls})
