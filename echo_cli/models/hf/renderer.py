"""The renderer of a Hugging Face model: its chat template's family, checked against the template itself.

Needs the extra `hf`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from echo_cli.config.model import ConversationConfig, ModelConfig
from echo_cli.errors import EchoError, first_line
from echo_cli.models.chat_renderer import EMPTY_THINKING, LLAMA3, ChatFamily, ChatRenderer, family_of
from echo_cli.models.hf.chat_template import TASK, ChatTemplate, ConversationWriter
from echo_cli.models.hf.tokenizer import load_hf_tokenizer
from echo_cli.models.renderer import PlainRenderer, Renderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.text import escape_unprintable
from echo_cli.trace import THINK

_EXCHANGES = (("ls -la", "total 0"), ("cat notes.txt", "nothing in it"))


def load_hf_renderer(folder: Path, model: ModelConfig, conversation: ConversationConfig) -> Renderer:
    """Load the renderer of a model folder: a chat renderer of its template's family, or a plain renderer.

    Raises:
        EchoError: the tokenizer is not usable; there is no chat template or its family is unknown; or the rendered
            conversation differs from the template's.
    """
    theirs, tokenizer = load_hf_tokenizer(folder, model)
    if conversation.renderer == "plain":
        return PlainRenderer(tokenizer)
    if theirs.chat_template is None:
        raise EchoError(
            f"the tokenizer of {escape_unprintable(folder)} has no chat template",
            "set model.chat_template=FILE, or conversation.renderer=plain, which needs none",
        )
    try:
        source: str = theirs.get_chat_template()
    except ValueError as error:  # several templates, none of them the default
        raise EchoError(
            f"{escape_unprintable(folder)}: {escape_unprintable(first_line(error))}",
            "select one of them with model.chat_template=FILE",
        ) from error
    template = ChatTemplate(theirs, source, conversation.system, conversation.thinking)
    family = family_of(conversation.renderer, source)
    reply_as = conversation.reply_as
    if reply_as == "auto":
        # Llama 3 writes a tool's text as JSON; ChatML without Qwen's marks has no form for it.
        reply_as = "tool" if family is not LLAMA3 and "<tool_response>" in source else "user"
    before, written = _opening(template, family)
    primer = _without_thinking(template, written) if conversation.thinking == "forbid" else written
    # Recorded messages keep their roles: only a configured role of the answers changes a tool's.
    writer = ConversationWriter(template, family, primer, "user" if conversation.reply_as == "user" else "tool")
    renderer = ChatRenderer(tokenizer, family, before, primer, reply_as, conversation.thinking, writer)
    bare = ChatRenderer(tokenizer, family, before, "", reply_as, "keep", writer)
    # Most templates omit the primer of earlier turns; an append-only transcript keeps it.
    candidates = (_written(renderer), [*_written(bare), *tokenizer.encode_scaffold(primer)])
    expected = template.ids(_probe(template, family, reply_as).removesuffix(written) + primer)
    if expected not in candidates:
        raise _difference(renderer, expected, candidates)
    if conversation.thinking == "forbid" and THINK not in source:
        renderer.notices = (
            "conversation.thinking=forbid: the chat template knows no thinking, so no empty block precedes the actions",
        )
    return renderer


def _opening(template: ChatTemplate, family: ChatFamily) -> tuple[str, str]:
    """Return the template's text before the task, and its text after the header of the assistant's turn.

    Raises:
        EchoError: the template changes the task's text, or does not continue in the family's form.
    """
    before, task, after = template.text([("user", TASK)]).partition(TASK)
    prompt = family.turn_end + family.separator + family.turn("assistant")
    tip = "set conversation.renderer=plain (no turns), or replace the template with model.chat_template=FILE"
    if not task or TASK in after:
        raise EchoError("the chat template does not write the user's text exactly once and unchanged", tip)
    if not after.startswith(prompt):
        raise EchoError(
            f"the chat template does not have the form {family.name}: after the user's text it writes "
            f"'{escape_unprintable(after[:80])}', not '{escape_unprintable(prompt)}'",
            tip,
        )
    return before, after.removeprefix(prompt)


def _without_thinking(template: ChatTemplate, primer: str) -> str:
    """Return `primer` with an empty thinking block if the template knows thinking.

    A template with `enable_thinking` has to write the block itself.

    Raises:
        EchoError: the template has `enable_thinking` but does not write the block.
    """
    if re.fullmatch(r"<think>\s*</think>\s*", primer):
        return primer
    if "enable_thinking" in template.source:
        raise EchoError(
            "conversation.thinking=forbid: the chat template does not open a turn with an empty block when "
            f"enable_thinking is false, but writes '{escape_unprintable(primer)}'",
            "set conversation.thinking to keep or drop, or replace the template with model.chat_template=FILE",
        )
    return primer.rstrip().removesuffix(THINK) + EMPTY_THINKING if THINK in template.source else primer


def _probe(template: ChatTemplate, family: ChatFamily, reply_as: str) -> str:
    """Render the probe conversation with the template."""
    role = "user" if reply_as == "user" else "ipython" if family is LLAMA3 else "tool"
    turns = [turn for action, answer in _EXCHANGES for turn in (("assistant", action), (role, answer))]
    text = template.text([("user", TASK), *turns])
    if role == "ipython":
        for _, answer in _EXCHANGES:  # the template writes JSON; our renderer writes the environment's text
            text = text.replace(json.dumps(answer), answer)
    return text


def _difference(renderer: ChatRenderer, expected: list[int], candidates: Sequence[list[int]]) -> EchoError:
    """Return the error for a rejected template: where it first differs from the nearest candidate."""
    ours = max(candidates, key=lambda ids: _common(ids, expected))
    at = _common(ours, expected)
    theirs_text, ours_text = (_around(renderer.tokenizer, ids, at) for ids in (expected, ours))
    return EchoError(
        f"a conversation in the form {renderer.family.name} differs from the chat template's: from token {at} on the "
        f"template has '{theirs_text}', echo-cli '{ours_text}'",
        "try conversation.reply_as=user or tool, replace the template with model.chat_template=FILE, or set "
        "conversation.renderer=plain (no turns)",
    )


def _written(renderer: ChatRenderer) -> list[int]:
    """Render the probe conversation as an episode would."""
    frame, text, ids = renderer.opening(), TASK, list[int]()
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
    """Count the tokens of the common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(first), len(second)))


def _around(tokenizer: Tokenizer, ids: list[int], at: int) -> str:
    return escape_unprintable(tokenizer.decode(ids[max(at - 4, 0) : at + 8]))
