"""The form of an environment's reply in a transcript: its end and its exit status.

A reply is the text between an action and the prompt for the next one: output, exit status and notices, of any role. A
generated text has no roles, so a generated reply ends at the text that follows replies in the same transcripts:

- With scaffold (chat models): at the first scaffold token that tokenized text never contains. This token is
  `</tool_response>` if the vocabulary has it, else the end of the turn. Scaffold text before that token and the
  environment's prompt are stripped.
- Without scaffold: at a line that begins with the environment's prompt. A line of output that begins like the prompt
  also ends a generated reply, because a plain transcript does not distinguish the two.
- If the policy learns the ends of outputs (`objective.end_of_output`) and there is a prompt, with or without scaffold:
  at a line that begins with the first token of the prompt, the only one that the policy learns.
- Without scaffold and prompt: nothing marks the end (see `ReplyForm.marked`), and a reply ends only at a cap or at the
  end-of-text token.

A prompt begins on a new line. In a transcript with prompts, replies with and without a final newline are therefore
indistinguishable, and a final newline is added to both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.models.renderer import Renderer, end_count
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.trajectory import SCAFFOLD, Role, Segment

_MASK = "\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Generated:
    """A reply written by a policy."""

    text: str
    token_ids: tuple[int, ...]
    """Token ids, including those of the reply's end."""
    ended: bool
    """Whether the reply ended by itself; False if a cap truncated it."""


@dataclass(frozen=True)
class StatusForm:
    """The form in which a transcript states the exit status."""

    pattern: re.Pattern[str]
    """Pattern of the line that states the exit status; its first group is the number."""
    silent: int | None
    """Exit status that is not stated."""


@dataclass(frozen=True)
class ReplyForm:
    """The form of replies in the transcripts of one renderer and one environment."""

    tokenizer: Tokenizer
    prompt: str
    end: str
    """Text at the start of a line that ends a reply: the prompt, or its learned beginning; "" if only tokens end it."""
    learned: bool
    """Whether the policy learns the ends of outputs, so that a reply needs no length."""
    mark_id: int | None
    """Id of the scaffold token that ends a reply."""
    closing: str
    """Scaffold text before the `mark_id` token."""
    end_ids: frozenset[int]
    """Ids of tokens that end a reply at any position."""
    stop_ids: tuple[int, ...]
    """Ids of tokens after which a reply may have ended; sampling stops there to check."""
    status: StatusForm | None
    volatile: tuple[str, ...]
    longest_end: int
    """Approximate maximum length of an exit status and an end, tokens."""

    @property
    def marked(self) -> bool:
        """Whether transcripts mark the end of a reply."""
        return self.mark_id is not None or bool(self.prompt)

    def read(self, token_ids: Sequence[int]) -> Generated:
        """Parse generated tokens as a reply, possibly an unfinished one."""
        ids = list(token_ids)
        ended = bool(ids) and ids[-1] in self.end_ids
        text = self.tokenizer.decode(ids[:-1] if ended else ids)
        if ended and ids[-1] == self.mark_id:
            text = text.removesuffix(self.closing)
        if self.prompt and self.mark_id is not None:
            text = re.sub(rf"(?:\A|(?<=\n)){re.escape(self.prompt)}\Z", "", text)
        if self.end and (match := re.search(rf"(?:\A|(?<=\n)){re.escape(self.end)}", text)):
            text, ended = text[: match.start()], True
        return Generated(self._line_ended(text) if ended else text, tuple(ids), ended)

    def cut(self, reply: Generated, tokens: int) -> Generated:
        """Truncate a generated reply to `tokens` tokens, the true length without the end, and mark it as ended."""
        found = self.read(reply.token_ids[:tokens])
        return replace(found, text=self._line_ended(found.text), ended=True)

    def segments(self, answer: Sequence[Segment]) -> list[Segment]:
        """Return the reply's segments, without scaffold and prompt.

        Args:
            answer: all segments between two actions, or after the last one.
        """
        said = [segment for segment in answer if segment.channel != SCAFFOLD]
        if said and said[-1].role is Role.CONTEXT and said[-1].text.removeprefix("\n") == self.prompt:
            return said[:-1]
        return said

    def text(self, said: Sequence[Segment]) -> str:
        """Return the text of a reply's segments."""
        return self._line_ended("".join(segment.text for segment in said))

    def exit_status(self, text: str, *, ended: bool = True) -> tuple[str, int | None]:
        """Return `text` without the line that states the exit status, and the exit status.

        The status is None if the environment's replies state none, or if an unfinished reply has stated none so far.
        """
        if self.status is None:
            return text, None
        found = list(self.status.pattern.finditer(text))
        if not found:
            return text, self.status.silent if ended else None
        last = found[-1]
        return text[: last.start()] + text[last.end() :], int(last.group(1))

    def masked(self, text: str) -> str:
        """Return `text` with each match of the config's volatile patterns replaced by one placeholder character."""
        for pattern in self.volatile:
            text = re.sub(pattern, _MASK, text)
        return text

    def _line_ended(self, text: str) -> str:
        return f"{text}\n" if self.prompt and text and not text.endswith("\n") else text


def reply_form(renderer: Renderer, settings: EnvironmentConfig, *, learned: bool = False) -> ReplyForm:
    """Return the form of an environment's replies in the transcripts of `renderer`.

    Args:
        settings: settings of the environment's text, as returned by `worlds.text_settings`.
        learned: whether the policy learns the ends of outputs, `objective.end_of_output`.
    """
    tokenizer, prompt = renderer.tokenizer, settings.prompt
    after = [token for segment in renderer.reply(()).after for token in segment.token_ids]
    place = next((place for place, token in enumerate(after) if token in tokenizer.added_ids), None)
    prompt_ids = tokenizer.encode(prompt)
    ending = end_count(tokenizer.pieces(prompt, prompt_ids)) if learned else len(prompt_ids)
    end = tokenizer.decode(prompt_ids[:ending]) if learned or place is None else ""
    if place is not None:
        mark_id, closing = after[place], tokenizer.decode(after[:place])
        end_ids = frozenset((mark_id, *renderer.stop_ids))
    else:
        mark_id, closing = None, ""
        end_ids = frozenset(tokenizer.eos_ids)
    # Check after each line, and where the prompt may be complete.
    stop_ids = tuple(sorted({*end_ids, *((*tokenizer.newline_ids, prompt_ids[ending - 1]) if end else ())}))
    status = _status_form(settings)
    longest_line = 0 if status is None else len(tokenizer.encode(status.pattern.pattern))
    longest_end = longest_line + 1 + len(prompt_ids) + len(after)
    volatile = settings.volatile
    return ReplyForm(
        tokenizer, prompt, end, learned, mark_id, closing, end_ids, stop_ids, status, volatile, longest_end
    )


def _status_form(settings: EnvironmentConfig) -> StatusForm | None:
    """Return the form of the exit status; None if no rule shows it, or if the rule shows nothing but the number."""
    rules = [rule for rule in settings.observation if rule.path == settings.exit_code and rule.on != "reset"]
    if settings.exit_code is None or not rules:
        return None
    before, _, after = rules[0].label.partition("{text}")
    if not (before + after).strip():
        return None
    silent = [status for status in rules[0].omit if type(status) is int]
    line = rf"^{re.escape(before)}(-?\d+){re.escape(after.removesuffix(chr(10)))}(?:\n|\Z)"
    return StatusForm(re.compile(line, re.MULTILINE), silent[0] if len(silent) == 1 else None)
