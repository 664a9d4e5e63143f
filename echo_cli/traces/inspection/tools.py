"""Tools that agents called, and the languages in which the calls are written.

A call has one language, by the first rule that applies:

1. An argument is the name of a file and another is text: the language of files of that name (Pygments), such as
   Python for `a.py`.
2. The name of the tool or of an argument has a word of `WORDS`, such as `bash`, `command` or `sql`: that language.
3. Otherwise the call is JSON.

An action without a call is its own text: shell, or no language if the trace is a conversation.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from echo_cli.trace import Trace, without_thinking
from echo_cli.traces.conversation import calls_of, is_conversation
from echo_cli.trajectory import Role

WORDS = {
    "shell": ("bash", "shell", "sh", "zsh", "terminal", "command", "commands", "cmd", "keystrokes"),
    "Python": ("python", "ipython", "jupyter", "py"),
    "SQL": ("sql", "sqlite", "postgres", "mysql"),
    "JavaScript": ("javascript", "js", "node"),
}
"""Words in the names of tools and arguments by the language that they tell."""
_FILES = ("path", "file_path", "filename", "file", "target_file", "notebook_path")
"""Names of arguments that name a file."""
_LANGUAGES = {word: language for language, words in WORDS.items() for word in words}
_SAME = {"Bash": "shell", "Transact-SQL": "SQL"}
"""Languages of Pygments that have another name here."""
_NO_TOOL = "(no tool)"


@dataclass(frozen=True)
class ToolUse:
    """Calls of a tool."""

    name: str
    calls: int
    languages: Mapping[str, int]
    """Number of calls by language, the most frequent first."""


class ToolCount:
    """Counter of tool calls among many episodes."""

    def __init__(self) -> None:
        self._calls: Counter[tuple[str, str]] = Counter()

    def add(self, trace: Trace) -> None:
        """Count the calls in the actions of an episode."""
        chat: bool | None = None
        for segment in trace.segments:
            if segment.role is not Role.ACTION:
                continue
            words, calls = calls_of(segment.text)
            for call in calls:
                self._calls[call.name, language_of(call.name, call.arguments)] += 1
            if not calls and without_thinking(words).strip():
                chat = is_conversation(trace) if chat is None else chat
                self._calls[_NO_TOOL, "none" if chat else "shell"] += 1

    def result(self) -> tuple[ToolUse, ...]:
        """Return the tools, those with the most calls first."""
        totals = Counter[str]()
        for (name, _), count in self._calls.items():
            totals[name] += count
        return tuple(
            ToolUse(name, calls, {language: count for (of, language), count in self._calls.most_common() if of == name})
            for name, calls in sorted(totals.items(), key=lambda item: (-item[1], item[0]))
        )


def language_of(name: str, arguments: str) -> str:
    """Return the language of a tool call.

    Args:
        arguments: the arguments as JSON.
    """
    value: Any = json.loads(arguments)
    given = value if isinstance(value, dict) else {}
    texts = {key: text for key, text in given.items() if isinstance(text, str)}
    file = next((texts[key] for key in _FILES if key in texts), None)
    if file is not None and len(texts) > 1 and (language := _language_of_file(file.rpartition("/")[2])) is not None:
        return language
    words = (word for named in (name, *texts) for word in re.findall("[a-z]+", named.lower()))
    return next((_LANGUAGES[word] for word in words if word in _LANGUAGES), "JSON")


@lru_cache(maxsize=1024)
def _language_of_file(name: str) -> str | None:
    from pygments.lexers import find_lexer_class_for_filename

    lexer = find_lexer_class_for_filename(name)
    return None if lexer is None else _SAME.get(lexer.name, str(lexer.name))
