"""How a Hugging Face model's conversations are written: its chat template's family, checked against the template.

Needs the extra `hf`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from echo_cli.config.model import ConversationConfig, ModelConfig
from echo_cli.errors import EchoError, first_line
from echo_cli.models.chat_renderer import EMPTY_THINKING, LLAMA3, THINK, ChatFamily, ChatRenderer, family_of
from echo_cli.models.hf.tokenizer import load_hf_tokenizer
from echo_cli.models.renderer import PlainRenderer, Renderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.text import escape_unprintable

_TASK = "List the files of this folder."
_EXCHANGES = (("ls -la", "total 0"), ("cat notes.txt", "nothing in it"))

# Templates of Llama 3 write today's date. A run that resumes tomorrow must read as it did; this is their own fallback.
_DATE = "26 Jul 2024"


@dataclass(frozen=True)
class ChatTemplate:
    """A model's own template, as `transformers` applies it."""

    theirs: Any
    source: str
    system: str | None
    thinking: Literal["keep", "drop", "forbid"]

    def text(self, messages: Sequence[tuple[str, str]]) -> str:
        """Messages of (role, content) after the system message, and the prompt for an assistant's turn.

        Raises:
            EchoError: the template fails.
        """
        system = [] if self.system is None else [("system", self.system)]
        chat = [{"role": role, "content": content} for role, content in (*system, *messages)]
        mode = {"enable_thinking": False} if self.thinking == "forbid" else {}
        try:
            text: str = self.theirs.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, date_string=_DATE, **mode
            )
        except Exception as error:  # a template is a program of its own
            raise EchoError(
                f"the chat template fails on a conversation of {', '.join(message['role'] for message in chat)}: "
                f"{escape_unprintable(first_line(error))}",
                "try conversation.system=null or conversation.reply_as=user; model.chat_template=FILE replaces it",
            ) from error
        return text

    def ids(self, text: str) -> list[int]:
        """What the model's tokenizer makes of a rendered text."""
        ids: list[int] = self.theirs(text, add_special_tokens=False)["input_ids"]
        return ids


def load_hf_renderer(folder: Path, model: ModelConfig, conversation: ConversationConfig) -> Renderer:
    """The renderer of a model folder: of its template's family, or a plain one.

    Raises:
        EchoError: the tokenizer is not usable; there is no chat template, or of no known family; or the conversation
            that would be written differs from the template's.
    """
    theirs, tokenizer = load_hf_tokenizer(folder, model)
    if conversation.renderer == "plain":
        return PlainRenderer(tokenizer)
    if theirs.chat_template is None:
        raise EchoError(
            f"the tokenizer of {escape_unprintable(folder)} has no chat template",
            "model.chat_template=FILE names one; conversation.renderer=plain needs none",
        )
    try:
        source: str = theirs.get_chat_template()
    except ValueError as error:  # several, and none of them is the default
        raise EchoError(
            f"{escape_unprintable(folder)}: {escape_unprintable(first_line(error))}",
            "model.chat_template=FILE names one of them",
        ) from error
    template = ChatTemplate(theirs, source, conversation.system, conversation.thinking)
    family = family_of(conversation.renderer, source)
    reply_as = conversation.reply_as
    if reply_as == "auto":
        # Llama 3 writes a tool's text as JSON; ChatML without the marks of Qwen has no form for it.
        reply_as = "tool" if family is not LLAMA3 and "<tool_response>" in source else "user"
    before, written = _opening(template, family)
    primer = _without_thinking(template, written) if conversation.thinking == "forbid" else written
    renderer = ChatRenderer(tokenizer, family, before, primer, reply_as, conversation.thinking)
    bare = ChatRenderer(tokenizer, family, before, "", reply_as, "keep")
    # Most templates leave the primer of earlier turns out; a transcript that only grows keeps it.
    candidates = (_written(renderer), [*_written(bare), *tokenizer.encode_scaffold(primer)])
    expected = template.ids(_probe(template, family, reply_as).removesuffix(written) + primer)
    if expected not in candidates:
        raise _difference(renderer, expected, candidates)
    return renderer


def _opening(template: ChatTemplate, family: ChatFamily) -> tuple[str, str]:
    """What the template writes before the task, and after the header of the assistant's turn.

    Raises:
        EchoError: it does not write the task as it is, or goes on in another form than the family's.
    """
    before, task, after = template.text([("user", _TASK)]).partition(_TASK)
    prompt = family.turn_end + family.separator + family.turn("assistant")
    tip = "conversation.renderer=plain writes no turns; model.chat_template=FILE replaces the template"
    if not task or _TASK in after:
        raise EchoError("the chat template does not write the user's text once, as it is", tip)
    if not after.startswith(prompt):
        raise EchoError(
            f"the chat template is not of the form {family.name}: after the user's text it writes "
            f"'{escape_unprintable(after[:80])}', not '{escape_unprintable(prompt)}'",
            tip,
        )
    return before, after.removeprefix(prompt)


def _without_thinking(template: ChatTemplate, primer: str) -> str:
    """The `primer` with an empty thinking block, which the template has to write itself where it knows how.

    Raises:
        EchoError: it does not.
    """
    if re.fullmatch(r"<think>\s*</think>\s*", primer):
        return primer
    if "enable_thinking" in template.source:
        raise EchoError(
            "conversation.thinking is forbid, and the chat template does not open a turn with an empty block when its "
            f"enable_thinking is false: it writes '{escape_unprintable(primer)}'",
            "conversation.thinking=keep, or drop; model.chat_template=FILE replaces the template",
        )
    return primer.rstrip().removesuffix(THINK) + EMPTY_THINKING


def _probe(template: ChatTemplate, family: ChatFamily, reply_as: str) -> str:
    """What the template writes of the probe conversation."""
    role = "user" if reply_as == "user" else "ipython" if family is LLAMA3 else "tool"
    turns = [turn for action, answer in _EXCHANGES for turn in (("assistant", action), (role, answer))]
    text = template.text([("user", _TASK), *turns])
    if role == "ipython":
        for _, answer in _EXCHANGES:  # the template writes it as JSON; we write what the environment wrote
            text = text.replace(json.dumps(answer), answer)
    return text


def _difference(renderer: ChatRenderer, expected: list[int], candidates: Sequence[list[int]]) -> EchoError:
    """The refusal of a template: where it and the nearest candidate part."""
    ours = max(candidates, key=lambda ids: _common(ids, expected))
    at = _common(ours, expected)
    theirs_text, ours_text = (_around(renderer.tokenizer, ids, at) for ids in (expected, ours))
    return EchoError(
        f"a conversation written as {renderer.family.name} is not the chat template's: from token {at} on the template "
        f"has '{theirs_text}', and we '{ours_text}'",
        "try conversation.reply_as=user, or tool; model.chat_template=FILE replaces the template, and "
        "conversation.renderer=plain writes no turns",
    )


def _written(renderer: ChatRenderer) -> list[int]:
    """The probe conversation, as an episode grows."""
    frame, text, ids = renderer.opening(), _TASK, list[int]()
    for action, answer in (*_EXCHANGES, ("", "")):
        ids += [token for segment in frame.before for token in segment.token_ids]
        ids += renderer.tokenizer.encode(text)
        ids += [token for segment in frame.after for token in segment.token_ids]
        if action:
            action_ids = renderer.script(action)
            ids += action_ids
            frame, text = renderer.reply(action_ids), answer
    return ids


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens the two have in common from the start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(first), len(second)))


def _around(tokenizer: Tokenizer, ids: list[int], at: int) -> str:
    return escape_unprintable(tokenizer.decode(ids[max(at - 4, 0) : at + 8]))
