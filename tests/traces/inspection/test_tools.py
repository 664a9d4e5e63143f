"""Tools that agents called: calls by name, and the language of each."""

from __future__ import annotations

import json

import pytest
from trace_files import episode

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import said, tool_call
from echo_cli.traces.inspection.tools import ToolCount, ToolUse, language_of
from echo_cli.trajectory import Role, Turn


@pytest.mark.parametrize(
    ("name", "arguments", "language"),
    [
        ("bash", {"command": "ls"}, "shell"),
        ("execute", {"cmd": "ls"}, "shell"),
        ("run_python", {"code": "1"}, "Python"),
        ("query", {"sql": "SELECT 1"}, "SQL"),
        ("edit", {"path": "src/a.py", "new": "x = 1"}, "Python"),
        ("edit", {"file_path": "run.sh", "content": "ls"}, "shell"),
        ("edit", {"path": "a.sql", "content": "SELECT 1"}, "SQL"),
        ("view", {"path": "a.py"}, "JSON"),
        ("edit", {"path": "a.unknown", "content": "x"}, "JSON"),
        ("shoot", {"x": 1, "y": [2]}, "JSON"),
        ("pushover", {"text": "a shell"}, "JSON"),
        ("odd", ["bash"], "JSON"),
        ("odd", "bash", "JSON"),
    ],
)
def test_a_call_has_the_language_of_the_first_rule_that_applies(name: str, arguments: object, language: str) -> None:
    assert language_of(name, json.dumps(arguments)) == language


def chat(*actions: str) -> Trace:
    segments = [TraceSegment(Role.CONTEXT, "go\n", "user"), *(TraceSegment(Role.ACTION, text) for text in actions)]
    turns = tuple(Turn(text, "", None, valid_action=True, clean_parse=True) for text in actions)
    return Trace("t", tuple(segments), turns)


def test_calls_are_counted_by_tool_the_most_frequent_first() -> None:
    count = ToolCount()
    shell, python = tool_call("run", {"command": "ls"}), tool_call("run", {"python": "1"})
    count.add(chat(said("Now.", [shell, shell]), said("", [python]), "Done.", "<think>only</think>"))
    count.add(chat(tool_call("view", {"path": "a.py"})))
    count.add(episode(("ls", "a\n"), ("pwd", "/\n"), opening="$ "))
    assert count.result() == (
        ToolUse("(no tool)", 3, {"shell": 2, "none": 1}),
        ToolUse("run", 3, {"shell": 2, "Python": 1}),
        ToolUse("view", 1, {"JSON": 1}),
    )
