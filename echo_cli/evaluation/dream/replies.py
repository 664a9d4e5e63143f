"""How an environment's reply stands in a transcript: where it ends, and what it says of the exit status.

A reply is all that stands between an action and what asks for the next one: output, exit status and notices, whatever
their roles. A generated text has no roles, so its end is where it writes what follows a reply in these transcripts:

- Between scaffold (chat models), at the first token of the scaffold after a reply that text never turns into: the token
  `</tool_response>` where the tokenizer has it, or the end of the turn. Text that the scaffold has before that token,
  and the environment's prompt, are taken off.
- Without scaffold, where a line begins with the environment's prompt. A line of output that begins so ends a generated
  reply as well: in a plain transcript the two look alike.
- With neither, nothing marks the end (`ReplyForm.marked`): only a cap, or the token that ends a text.

A prompt stands on a line of its own, so with one a reply that lacks its last newline reads as one that has it, and both
are given it here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.models.renderer import Renderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.trajectory import SCAFFOLD, Role, Segment

_MASK = "\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Generated:
    """A reply that a policy has written."""

    text: str
    token_ids: tuple[int, ...]
    """Those of its end included."""
    ended: bool
    """It came to its end; False where a cap cut it."""


@dataclass(frozen=True)
class StatusForm:
    """How a transcript tells the exit status."""

    pattern: re.Pattern[str]
    """The line that tells it; its first group is the number."""
    silent: int | None
    """The one that is not told."""


@dataclass(frozen=True)
class ReplyForm:
    """How replies stand in the transcripts of one renderer and one environment."""

    tokenizer: Tokenizer
    prompt: str
    mark_id: int | None
    """The token of the scaffold that ends a reply."""
    closing: str
    """The scaffold's text before that token."""
    end_ids: frozenset[int]
    """Tokens that end a reply wherever they stand."""
    stop_ids: tuple[int, ...]
    """Tokens after which a reply may have ended: where sampling stops to look."""
    status: StatusForm | None
    volatile: tuple[str, ...]
    longest_end: int
    """About the most tokens that an exit status and an end have."""

    @property
    def marked(self) -> bool:
        """Whether anything in a transcript marks the end of a reply."""
        return self.mark_id is not None or bool(self.prompt)

    def read(self, token_ids: Sequence[int]) -> Generated:
        """The reply that generated tokens are, as far as they go."""
        ids = list(token_ids)
        ended = bool(ids) and ids[-1] in self.end_ids
        text = self.tokenizer.decode(ids[:-1] if ended else ids)
        if ended and ids[-1] == self.mark_id:
            text = text.removesuffix(self.closing)
        prompt = re.escape(self.prompt)
        if self.prompt and self.mark_id is not None:
            text = re.sub(rf"(?:\A|(?<=\n)){prompt}\Z", "", text)
        elif self.prompt and (match := re.search(rf"(?:\A|(?<=\n)){prompt}", text)):
            text, ended = text[: match.start()], True
        return Generated(self._line_ended(text) if ended else text, tuple(ids), ended)

    def cut(self, reply: Generated, tokens: int) -> Generated:
        """A generated reply in at most `tokens` tokens, its end not counted: what it says to one told where to stop."""
        found = self.read(reply.token_ids[:tokens])
        return replace(found, text=self._line_ended(found.text), ended=True)

    def segments(self, answer: Sequence[Segment]) -> list[Segment]:
        """The reply among the segments between two actions, or after the last: no scaffold, and no prompt."""
        said = [segment for segment in answer if segment.channel != SCAFFOLD]
        if said and said[-1].role is Role.CONTEXT and said[-1].text.removeprefix("\n") == self.prompt:
            return said[:-1]
        return said

    def text(self, said: Sequence[Segment]) -> str:
        """What a reply of these segments says."""
        return self._line_ended("".join(segment.text for segment in said))

    def exit_status(self, text: str, *, ended: bool = True) -> tuple[str, int | None]:
        """`text` without the line that tells the exit status, and that status.

        None where it tells none: no environment's form, or a reply without an end that may yet have told one.
        """
        if self.status is None:
            return text, None
        found = list(self.status.pattern.finditer(text))
        if not found:
            return text, self.status.silent if ended else None
        last = found[-1]
        return text[: last.start()] + text[last.end() :], int(last.group(1))

    def masked(self, text: str) -> str:
        """`text` with one sign for whatever in it the environment's config calls volatile."""
        for pattern in self.volatile:
            text = re.sub(pattern, _MASK, text)
        return text

    def _line_ended(self, text: str) -> str:
        return f"{text}\n" if self.prompt and text and not text.endswith("\n") else text


def reply_form(renderer: Renderer, settings: EnvironmentConfig) -> ReplyForm:
    """The form of the replies that `settings` make text of, in the transcripts of `renderer`.

    Args:
        settings: as `worlds.text_settings` has them.
    """
    tokenizer, prompt = renderer.tokenizer, settings.prompt
    after = [token for segment in renderer.reply(()).after for token in segment.token_ids]
    never_text = {tokenizer.token_id(name) for name in tokenizer.added_tokens}
    place = next((place for place, token in enumerate(after) if token in never_text), None)
    prompt_ids = tokenizer.encode(prompt)
    if place is not None:
        mark_id, closing = after[place], tokenizer.decode(after[:place])
        end_ids = frozenset((mark_id, *renderer.stop_ids))
        stop_ids = tuple(sorted(end_ids))
    else:
        mark_id, closing = None, ""
        end_ids = frozenset(tokenizer.eos_ids)
        # Line by line, and where the prompt may be complete.
        stop_ids = tuple(sorted({*end_ids, *(tokenizer.newline_ids if prompt else ()), *prompt_ids[-1:]}))
    status = _status_form(settings)
    longest_line = 0 if status is None else len(tokenizer.encode(status.pattern.pattern))
    longest_end = longest_line + 1 + len(prompt_ids) + len(after)
    return ReplyForm(tokenizer, prompt, mark_id, closing, end_ids, stop_ids, status, settings.volatile, longest_end)


def _status_form(settings: EnvironmentConfig) -> StatusForm | None:
    """By the rule that shows the exit status on a line of its own; None without a rule or without words around it."""
    rules = [rule for rule in settings.observation if rule.path == settings.exit_code and rule.on != "reset"]
    if settings.exit_code is None or not rules:
        return None
    before, _, after = rules[0].label.partition("{text}")
    if not (before + after).strip():
        return None
    silent = [status for status in rules[0].omit if type(status) is int]
    line = rf"^{re.escape(before)}(-?\d+){re.escape(after.removesuffix(chr(10)))}(?:\n|\Z)"
    return StatusForm(re.compile(line, re.MULTILINE), silent[0] if len(silent) == 1 else None)
