"""Events of OpenHands' version 0: actions with args, and observations with content and extras."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from echo_cli.trace import TraceSegment
from echo_cli.traces.builder import TraceBuilder, UnplacedError, tool_call
from echo_cli.traces.formats.harnesses.openhands_sdk import NOTICE, SUMMARY, exit_code_of, framed
from echo_cli.traces.json_records import arguments_of, listed, member, text_or_json, tools_of
from echo_cli.trajectory import TOOL_RESULT, Role

_OWN_FIELDS = {
    *("thought", "is_confirmed", "confirmation_state", "security_risk", "hidden", "blocking", "keep_prompt", "cwd"),
    *("include_extra", "kernel_init_code", "impl_source", "wait_for_response", "return_axtree", "is_static"),
    *("translated_ipython_code", "image_urls", "file_urls", "browsergym_send_msg_to_user", "llm_metrics"),
}
"""Fields of args that the agent did not write; a thought is its words."""
_SILENT_ACTIONS = ("change_agent_state", "recall", "condensation_request", "null", "loop_recovery")
_SILENT_OBSERVATIONS = ("agent_state_changed", "recall", "null", "loop_detection")
"""Actions and observations that the model is not shown as text of the log."""
_WORLD = (
    *("run", "run_ipython", "read", "write", "edit", "browse", "mcp", "delegate", "task_tracking", "download"),
    *("chat", "success"),
)
"""Observations whose content an environment or a tool wrote."""
_OWN = ("error", "user_rejected", "think")
"""Observations whose content is OpenHands' own text, or may be."""
_NOTICE = re.compile(
    r"\n\[\.\.\. (?:Command output truncated: removed \d+ characters from the middle|"
    r"Observation truncated due to length) \.\.\.\]\n"
    r"|\n\[Jupyter current working directory: [^\n]*\](?:\n\[Jupyter Python interpreter: [^\n]*\])?\Z"
)


@dataclass
class Reader:
    """Importer of events of version 0, one by one."""

    builder: TraceBuilder
    _responses: set[str] = field(default_factory=set)
    """Ids of the model's responses that are in the trace."""

    def add(self, event: Any) -> None:
        """Place one event.

        Raises:
            UnplacedError: the event is of no known shape.
        """
        args, extras = member(event, "args"), member(event, "extras")
        if member(args, "hidden") is True or member(extras, "hidden") is True:
            self.builder.omit("hidden events", text_or_json(member(event, "content")))
        elif isinstance(member(event, "action"), str) and isinstance(args, dict):
            self._act(event, event["action"], args)
        elif isinstance(member(event, "observation"), str):
            self._observe(event, event["observation"])
        else:
            raise UnplacedError("neither an action nor an observation of OpenHands")

    def _act(self, event: Mapping[str, Any], action: str, args: Mapping[str, Any]) -> None:
        builder = self.builder
        if action == "system":
            builder.context(f"{text_or_json(args.get('content'))}\n", "system")
            builder.tools(tools_of(args, "tools"))
        elif action == "condensation":
            if args.get("summary"):
                builder.context(f"{args['summary']}\n", SUMMARY)
        elif action in _SILENT_ACTIONS:
            builder.omit("events that the model is not shown")
        elif event.get("source") is None:
            raise UnplacedError("an action without its source")
        elif event["source"] != "agent":
            told = args.get("content") if action == "message" else args.get("command")
            builder.context(f"{text_or_json(args if told is None else told)}\n", "user")
            builder.add(*self._images(args))
        elif action == "message":
            builder.say(text_or_json(args.get("content")))
            builder.add_later(*self._images(args))
        else:
            self._call(event, action, args)

    def _images(self, args: Mapping[str, Any]) -> list[TraceSegment]:
        return [self.builder.leave_out("an image") for _ in listed(args.get("image_urls"))]

    def _call(self, event: Mapping[str, Any], action: str, args: Mapping[str, Any]) -> None:
        """Place an agent's action: the model's response with all its calls, or the action alone."""
        metadata = event.get("tool_call_metadata")
        response = member(metadata, "model_response")
        message = member(next(iter(listed(member(response, "choices"))), None), "message")
        made = listed(member(message, "tool_calls"))
        if made and member(metadata, "tool_call_id") in [member(call, "id") for call in made]:
            if (response_id := str(member(response, "id"))) not in self._responses:
                self._responses.add(response_id)
                for name in ("reasoning_content", "reasoning"):
                    if isinstance(member(message, name), str):
                        self.builder.omit("reasoning", message[name])
                words = text_or_json(member(message, "content"))
                self.builder.say(words, [self._made(call) for call in made])
            return
        thought = args.get("thought")
        if isinstance(thought, dict):
            self.builder.omit("reasoning", text_or_json(thought.get("reasoning_content")))
            thought = thought.get("text")
        own = {name: value for name, value in args.items() if name not in _OWN_FIELDS and value is not None}
        words, own = ("", {"thought": thought}) if action == "think" else (text_or_json(thought), own)
        name = member(metadata, "function_name")
        self.builder.calls.call(_call_id(event, event.get("id")))
        self.builder.say(words, [tool_call(name if isinstance(name, str) else action, own)])

    def _made(self, call: Any) -> str:
        """Return a call of the model's response."""
        call_id, function = member(call, "id"), member(call, "function")
        name = member(function, "name")
        if not isinstance(call_id, str) or not isinstance(name, str):
            raise UnplacedError("a tool call without an id or a function name")
        arguments = arguments_of(function.get("arguments"), self.builder)
        self.builder.calls.call(call_id)
        return tool_call(name, arguments)

    def _observe(self, event: Mapping[str, Any], observation: str) -> None:
        builder, text = self.builder, text_or_json(event.get("content"))
        if observation in _SILENT_OBSERVATIONS:
            builder.omit("events that the model is not shown", text)
        elif observation == "condense":
            builder.context(f"{text}\n", SUMMARY)
        elif observation not in _WORLD and observation not in _OWN:
            self._close(event)
            builder.add(builder.leave_out(f"an observation of unknown kind: {observation!r}", text))
        elif observation in _OWN:
            own = [TraceSegment(Role.WARNING, text, NOTICE)] if text else []
            (builder.answer if self._close(event) else builder.observe)(own)
        else:
            metadata = member(event.get("extras"), "metadata")
            code = exit_code_of(member(metadata, "exit_code"), member(event.get("extras"), "exit_code"))
            segments = framed(metadata, self._split(text))
            if self._close(event) or self._of_person():
                builder.answer(segments, code)
            else:
                builder.add(builder.leave_out("an observation of no action", text))

    def _of_person(self) -> bool:
        """Return whether the last segment is a person's text: what they ran is answered, without a call."""
        segments = self.builder.segments
        return bool(segments) and segments[-1].channel == "user"

    def _close(self, event: Mapping[str, Any]) -> bool:
        """Close the call that an observation belongs to, and return whether there is one."""
        open_calls = self.builder.calls.open
        known = (_call_id(event, event.get("cause")), f"event-{event.get('cause')}")
        call = next((name for name in known if name in open_calls), None)
        if call is None and event.get("cause") is None and event.get("tool_call_metadata") is None:
            call = next(iter(open_calls)) if len(open_calls) == 1 else None
        if call is None:
            return False
        self.builder.calls.answer(call)
        return True

    def _split(self, text: str) -> list[TraceSegment]:
        """Split an observation into env_output and OpenHands' own notices, which joined equal `text`."""
        segments, end = [], 0
        for notice in _NOTICE.finditer(text):
            segments += self.builder.observed(text[end : notice.start()], TOOL_RESULT)
            segments += [TraceSegment(Role.WARNING, notice.group(), NOTICE)]
            end = notice.end()
        return [*segments, *self.builder.observed(text[end:], TOOL_RESULT)]


def _call_id(event: Mapping[str, Any], number: Any) -> str:
    """Return the id of the model's tool call, or else one made of an event's number."""
    call_id = member(event.get("tool_call_metadata"), "tool_call_id")
    return call_id if isinstance(call_id, str) else f"event-{number}"
