"""Write a config per preset of an MCP server, with eight tasks each, for `env check --judge 8`.

.venv/bin/python scripts/mcp_servers/judged_tasks.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = "pen cup lamp desk fork vase coat boot".split()
ZONES = "Asia/Tokyo Asia/Kolkata Asia/Dubai Asia/Seoul Africa/Cairo Africa/Lagos America/Lima Australia/Perth".split()
HOURS = (9.0, 5.5, 4.0, 9.0, 2.0, 1.0, -5.0, 8.0)
"""Differences of `ZONES` to UTC in January, hours."""
SPLITS = ["train"] * 4 + ["validation"] * 2 + ["heldout"] * 2


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def tasks_of(preset: str) -> Iterator[dict[str, Any]]:
    """Yield the tasks of a preset: a question, its answer, and the calls and words of an expert."""
    for n, (word, split) in enumerate(zip(WORDS, SPLITS, strict=True)):
        setup, question, answer, calls = _task(preset, n, word)
        yield {
            "reset": {"n": n, **({"setup": setup} if setup else {})},
            "question": question,
            "answer": answer,
            "split": split,
            "actions": [*calls, f"It is {answer}."],
        }


def _task(preset: str, n: int, word: str) -> tuple[dict[str, Any], str, str, list[dict[str, Any]]]:
    price = 7 * n + 3
    cost = f"What does the {word} cost?"
    if preset == "mcp_sqlite":
        rows = f"('{word}', {price}), ('{WORDS[n - 3]}', {5 * n + 4})"
        made = [
            call("create_table", query="CREATE TABLE items (name TEXT, price INTEGER)"),
            call("write_query", query=f"INSERT INTO items VALUES {rows}"),
        ]
        found = call("read_query", query=f"SELECT price FROM items WHERE name = '{word}'")
        return {"calls": made}, cost, str(price), [call("list_tables"), found]
    if preset == "mcp_git":
        files = {"notes.txt": f"{word}\n", f"{word}.txt": f"the {word} costs {price}\n"}
        shown = call("git_show", repo_path="/workdir", revision="HEAD:notes.txt")
        return {"files": files}, "What is in notes.txt?", word, [call("git_log", repo_path="."), shown]
    if preset == "mcp_filesystem":
        files = {f"{word}.txt": f"the {word} costs {price}\n", "list/a.txt": f"{word}\n"}
        read = call("read_text_file", path=f"/workdir/{word}.txt")
        return {"files": files}, cost, str(price), [call("list_directory", path="/workdir"), read]
    if preset == "mcp_time":
        minutes = int(60 * (10 + n / 4 + HOURS[n]))
        asked, answer = f"{10 + n // 4}:{n % 4 * 15:02}", f"{minutes // 60:02}:{minutes % 60:02}"
        converted = call("convert_time", source_timezone="UTC", time=asked, target_timezone=ZONES[n])
        return {}, f"What is {asked} UTC in {ZONES[n]}?", answer, [converted]
    a, b = 11 * n, n + 5
    return {}, f"What is {a} + {b}?", str(a + b), [call("echo", message=word), call("get-sum", a=a, b=b)]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for preset in ("mcp_sqlite", "mcp_git", "mcp_time", "mcp_filesystem", "mcp_everything"):
        rubric = [{"name": "correct", "weight": 1, "pattern": "{answer}"}]
        environment = {
            "preset": preset,
            "max_turns": 3,
            "tasks": {"items": list(tasks_of(preset))},
            "reward": {"rubric": rubric},
        }
        config = {"environment": environment, "model": {"path": "tiny-base"}, "threads": 1}
        (folder / f"{preset}.yaml").write_text(json.dumps(config))  # JSON is YAML


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
