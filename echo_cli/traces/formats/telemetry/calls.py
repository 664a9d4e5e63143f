"""Calls of a model as conversations: of the calls that continue each other, the last holds the whole conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, TraceBuilder, json_text
from echo_cli.traces.formats.telemetry.messages import Message, add_message, same_message, text_of_parts


@dataclass(frozen=True)
class ModelCall:
    """One call of a model, as it was recorded."""

    conversation: str
    """Id of the conversation, or of the trace of the whole run."""
    order: Any
    """Start of the call, comparable among the calls of a file."""
    history: Sequence[Message]
    """Messages that the model was sent."""
    reply: Sequence[Message]
    """Messages that the model returned: none or one."""
    tools: Sequence[Any] = ()
    """Tools that were offered, as JSON values."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    reward: float | None = None


@dataclass
class Chain:
    """Calls that continue each other."""

    last: ModelCall
    """Last call, which holds the whole conversation."""
    keys: list[str]
    """Keys of the messages of its history."""
    replaced: list[str] = field(default_factory=list)
    """Texts of replies that a later call's history does not hold."""

    @property
    def reply_keys(self) -> list[str]:
        return [same_message(message) for message in self.last.reply]

    def precedes(self, call: ModelCall, keys: list[str]) -> bool:
        """Return whether a call continues this chain: its history is longer, and a reply of the model follows here."""
        length = len(self.keys)
        if not length < len(keys) or keys[:length] != self.keys:
            return False
        return not self.last.reply or call.history[length]["role"] == "assistant"

    def is_followed_by_reply(self, keys: list[str]) -> bool:
        """Return whether a call's history holds the chain's reply where it follows."""
        length, reply = len(self.keys), self.reply_keys
        return keys[length : length + len(reply)] == reply


def chains_of(calls: Iterable[ModelCall]) -> list[Chain]:
    """Return the conversations among calls, in the order of their first calls.

    A call continues another if its history begins with the other's, and a reply follows there. A call that another one
    repeats is no conversation of its own.
    """
    found: dict[str, list[Chain]] = {}
    for call in sorted(calls, key=lambda each: each.order):
        keys = [same_message(message) for message in call.history]
        chains = found.setdefault(call.conversation, [])
        reply = [same_message(message) for message in call.reply]
        if any([*chain.keys, *chain.reply_keys][: len(keys) + len(reply)] == keys + reply for chain in chains):
            continue
        earlier = [chain for chain in chains if chain.precedes(call, keys)]
        if not earlier:
            chains.append(Chain(call, keys))
            continue
        chain = max(earlier, key=lambda each: (each.is_followed_by_reply(keys), len(each.keys)))
        if not chain.is_followed_by_reply(keys):
            chain.replaced += [text_of_parts(message) for message in chain.last.reply]
        chain.last, chain.keys = call, keys
    return [chain for chains in found.values() for chain in chains]


def trace_of_chain(chain: Chain, where: str, options: ImportOptions) -> Trace:
    """Return the conversation of a chain as a trace.

    Raises:
        UnplacedError: a message cannot be placed, or there is neither an action nor an observation.
    """
    builder, call = TraceBuilder(options), chain.last
    tools = [json_text(tool) for tool in call.tools]
    for number, message in enumerate([*call.history, *call.reply]):
        if message["role"] not in ("system", "developer"):
            builder.tools(tools)
            tools = []
        with builder.at(f"messages[{number}]"):
            add_message(message, builder)
    for text in chain.replaced:
        builder.omit("replies that the conversation does not continue", text)
    meta = {name: value for name, value in call.meta.items() if value is not None}
    return builder.trace(call.conversation or where, reward=call.reward, meta=meta)
