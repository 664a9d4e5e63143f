"""Output mapping: turn an environment's payloads into the role-tagged text that the policy reads.

Every character comes from a rule's value or label, or is a newline between two pieces; fields without a rule never
enter the text. The environment's characters are env_output, context or warning, never action.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from echo_cli.config.environment import EnvironmentConfig, InvalidConfig, ObservationRule
from echo_cli.environments.faults import SessionLost
from echo_cli.environments.protocol import JsonObject, Payload, TextPiece
from echo_cli.errors import EchoError
from echo_cli.trajectory import VOLATILE, Role

_STEP = re.compile(r"(?:^|(?<=.)\.)([^.\[\]]+)|\[([0-9]{1,9}|\*)\]", re.DOTALL)
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_SAFE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000)), 0xFFFD),
}
_ECHO = r"\s*{action}[ \t]*(?:\n|\Z)"

# Kind of a character: the rule's own role, volatile, or boilerplate.
_OWN, _VOLATILE, _BOILERPLATE = range(3)
_RUN = re.compile(rb"\x00+|\x01+|\x02+")


class ObservationMapping:
    """The mapping of one episode. It keeps the previous texts of the rules with `delta`.

    Raises:
        EchoError: a path or a `drop_echo` pattern is malformed.
    """

    def __init__(self, config: EnvironmentConfig) -> None:
        self._rules = config.observation
        self._volatile = config.volatile
        self._chars = config.max_observation_chars
        self._seen: dict[str, list[str]] = {}
        ours = (path for rule in self._rules for path in (rule.path, rule.channel_path))
        for path in (*ours, config.exit_code, config.invalid and config.invalid.path):
            if path is not None:
                _steps(path)
        for rule in self._rules:
            _check_echo(rule.drop_echo)

    def opening(self, payload: Payload) -> tuple[TextPiece, ...]:
        """Return the pieces for the payload of a reset: context and warnings.

        Raises:
            SessionLost: a value is nested too deep to be shown.
        """
        return self._pieces(payload, None)

    def reply(self, payload: Payload, action: str) -> tuple[TextPiece, ...]:
        """Return the pieces for the environment's answer to `action`, the policy's own text.

        Raises:
            SessionLost: a value is nested too deep to be shown.
        """
        return self._pieces(payload, safe(action))

    def _pieces(self, payload: Payload, action: str | None) -> tuple[TextPiece, ...]:
        now = ("both", "reset" if action is None else "step")
        pieces: list[TextPiece] = []
        latest: dict[str, list[str]] = {}
        root = payload.root
        for rule in (_named(rule, root) for rule in self._rules):
            if rule.on not in now and not rule.delta:
                continue
            values = values_at(root, rule.path)
            texts = [_text(value, rule.path) for value in values]
            if rule.delta:
                latest[rule.path] = texts
                texts = _new(texts, self._seen.get(rule.path, []))
            if rule.on in now:
                kept = [text for value, text in zip(values, texts, strict=True) if text and not _omits(rule, value)]
                self._show(rule, kept, action, pieces)
        self._seen.update(latest)
        return merge(pieces)

    def _show(self, rule: ObservationRule, texts: Sequence[str], action: str | None, pieces: list[TextPiece]) -> None:
        """Append the texts of one rule, cut to `max_observation_chars` characters in total before any pattern runs."""
        harness = Role.CONTEXT if action is None else Role.WARNING
        before, _, after = rule.label.partition("{text}")
        left, last = self._chars, -1
        for text in texts:
            # `safe` merges at most two characters into one, so this slice shows whether the limit is exceeded.
            whole = safe(text[: 2 * left + 2])
            if shown := _without(rule.drop, whole[:left]):
                _add(pieces, TextPiece(harness, line_end(pieces) + before, rule.channel))
                first = len(pieces)
                pieces.extend(self._spans(rule, shown, action))
                of_world = [at for at in range(first, len(pieces)) if pieces[at].role is not Role.WARNING]
                last = max(of_world, default=len(pieces) - 1 if last < 0 else last)
                _add(pieces, TextPiece(harness, after, rule.channel))
            if len(whole) > left:
                if last < 0:  # everything before the cut was dropped
                    last = len(pieces)
                    pieces.append(TextPiece(harness, line_end(pieces) or "\n", rule.channel))
                pieces[last] = replace(pieces[last], cut=True)
                return
            left -= len(whole)

    def _spans(self, rule: ObservationRule, text: str, action: str | None) -> Iterator[TextPiece]:
        """Yield a value's text in pieces: the echo of the action, then runs of boilerplate, volatile and other text."""
        own = Role[rule.role.upper()]
        if action is None and own is not Role.WARNING:
            own = Role.CONTEXT
        start = 0 if action is None else _echo_end(rule, text, action)
        if start:
            yield TextPiece(Role.WARNING, text[:start], "echo")
        text = text[start:]
        kinds = bytearray(len(text))
        if own is Role.ENV_OUTPUT:
            _paint(kinds, text, self._volatile, _VOLATILE)
        _paint(kinds, text, rule.split, _BOILERPLATE)
        styles = ((own, rule.channel), (Role.CONTEXT, VOLATILE), (Role.WARNING, "boilerplate"))
        for run in _RUN.finditer(kinds):
            role, channel = styles[kinds[run.start()]]
            yield TextPiece(role, text[run.start() : run.end()], channel)


def _named(rule: ObservationRule, root: JsonObject) -> ObservationRule:
    """Return `rule` with the channel that the payload names, if the rule has a path to the name."""
    names = [] if rule.channel_path is None else values_at(root, rule.channel_path)
    if len(names) != 1 or not isinstance(names[0], str):
        return rule
    return rule.model_copy(update={"channel": safe(names[0])})


def line_end(pieces: Sequence[TextPiece]) -> str:
    """Return the newline that `pieces` need before other text follows, or "".

    No newline is needed after a cut, because the notice of the cut is a line of its own.
    """
    return "\n" if pieces and not pieces[-1].cut and not pieces[-1].text.endswith("\n") else ""


def merge(pieces: Iterable[TextPiece]) -> tuple[TextPiece, ...]:
    """Merge neighbouring pieces of equal role and channel; nothing is appended to a piece that was cut."""
    groups: list[list[TextPiece]] = []
    for piece in pieces:
        if not piece.text:
            continue
        last = groups[-1][-1] if groups else None
        if last and not last.cut and (last.role, last.channel) == (piece.role, piece.channel):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return tuple(replace(group[-1], text="".join(piece.text for piece in group)) for group in groups)


def values_at(root: Any, path: str) -> list[Any]:
    """Return the values at a dotted path, `a.b[0].c[*].d`: none if a part is missing, any number for `[*]`.

    Raises:
        EchoError: the path is malformed.
    """
    values = [root]
    for step in _steps(path):
        if step is None:
            values = [item for value in values if isinstance(value, list) for item in value]
        elif isinstance(step, int):
            values = [value[step] for value in values if isinstance(value, list) and step < len(value)]
        else:
            values = [value[step] for value in values if isinstance(value, Mapping) and step in value]
    return values


def exit_code_of(payload: Payload, path: str | None) -> int | None:
    """Return the integer at `path`; None if there is none, or if `path` is None."""
    values = values_at(payload.root, path) if path is not None else []
    return values[0] if len(values) == 1 and type(values[0]) is int else None


def is_invalid(payload: Payload, invalid: InvalidConfig, most_chars: int | None = None) -> bool:
    """Return whether a text at the path of `invalid` matches its pattern, that is, the line was not an action.

    Args:
        most_chars: number of characters of each text that the pattern sees; None for all.
    """
    values = values_at(payload.root, invalid.path)
    return any(re.search(invalid.pattern, _text(value, invalid.path)[:most_chars]) for value in values)


def safe(text: str) -> str:
    """Return `text` without terminal control characters and lone surrogates.

    C0 control characters and DEL become their pictures (U+2400 to U+2421), C1 control characters and lone surrogates
    become U+FFFD. Newlines and tabs are kept, and CR LF becomes a newline.
    """
    text = text.replace("\r\n", "\n")
    return text.translate(_SAFE) if _UNSAFE.search(text) else text


@cache
def _steps(path: str) -> tuple[str | int | None, ...]:
    """Return a path's parts: names, indices, and None for `[*]`."""
    steps: list[str | int | None] = []
    end = 0
    while end < len(path) or not steps:
        match = _STEP.match(path, end)
        if match is None or (not steps and match.group(1) is None):
            raise EchoError(f"'{path}' is not an observation path", "write a.b, a[0].b or a[*].b")
        name, index = match.groups()
        steps.append(name if name is not None else None if index == "*" else int(index))
        end = match.end()
    return tuple(steps)


def _text(value: Any, path: str) -> str:
    """Return a value as text: strings unchanged, null as "", other values as compact JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise SessionLost(f"the observation is nested too deep at '{path}'") from None


def _omits(rule: ObservationRule, value: Any) -> bool:
    return any(type(value) is type(omitted) and value == omitted for omitted in rule.omit)


def _new(texts: Sequence[str], old: Sequence[str]) -> list[str]:
    """Return the part of each text that follows its previous text; the whole text if it does not start with it."""
    grown = zip(texts, old, strict=False)
    suffixes = [text[len(before) :] if text.startswith(before) else text for text, before in grown]
    return [*suffixes, *texts[len(old) :]]


def _check_echo(drop_echo: bool | str) -> None:
    if isinstance(drop_echo, str):
        try:
            re.compile(drop_echo.replace("{action}", "action"))
        except re.error as error:
            tip = "use the syntax of Python's re module; {action} is replaced by the action"
            raise EchoError(f"drop_echo is not a regular expression: {drop_echo!r}: {error}", tip) from None


def _echo_end(rule: ObservationRule, text: str, action: str) -> int:
    """Return the length in characters of the echo of `action` at the start of `text`; 0 if there is none."""
    if rule.drop_echo is False or (rule.drop_echo is True and not action.strip()):
        return 0
    matches = []
    for said in (action, _without(rule.echo_omits, action)):
        pattern, said = (_ECHO, said.strip()) if rule.drop_echo is True else (str(rule.drop_echo), said)
        matches.append(re.match(pattern.replace("{action}", re.escape(said)), text))
    return max(match.end() if match else 0 for match in matches)


def _without(patterns: Sequence[str], text: str) -> str:
    """Return `text`, as it would be shown, without the matches of `patterns`."""
    if patterns:
        text = safe(text)
    for pattern in patterns:
        text = re.sub(pattern, "", text)
    return text


def _add(pieces: list[TextPiece], piece: TextPiece) -> None:
    if piece.text:
        pieces.append(piece)


def _paint(kinds: bytearray, text: str, patterns: Iterable[str], kind: int) -> None:
    for pattern in patterns:
        for match in re.finditer(pattern, text):
            kinds[match.start() : match.end()] = bytes([kind]) * (match.end() - match.start())
