"""Real MCP servers through their presets: a check, a run, its resumption, and a server that is killed in the middle.

Run by `scripts/test-mcp`, which installs the servers.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.environments.faults import SessionLost
from echo_cli.environments.openenv.provider_limits import processes_below
from echo_cli.environments.worlds import open_worlds
from echo_cli.runs.directory import open_run
from echo_cli.trajectory import Role


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


@dataclass(frozen=True)
class Server:
    """A server's preset, the setup of its tasks, a script, and texts that the script shows, by role and channel."""

    preset: str
    program: str
    script: list[dict[str, Any]]
    shows: list[tuple[str, str, str]]
    setup: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    """Further sections of the config."""


SHOP = [
    call("create_table", query="CREATE TABLE items (name TEXT, price INTEGER)"),
    call("write_query", query="INSERT INTO items VALUES ('pen', 3), ('cup', 8)"),
]
COMMITS = [
    call("git_add", repo_path=".", files=["notes.txt"]),
    call("git_commit", repo_path=".", message="second"),
]
# The policy plays too: its calls are refused, as it knows no syntax yet.
PLAYED = {
    "rollout": {"tasks_per_step": 1, "group_size": 2, "explorers": 1, "explorer_commands": 2},
    "objective": {"use_rl": True},
}
# Its chat template has a form for tools.
QWEN = {"model": {"kind": "hf", "path": "random-qwen3"}, "rollout": {"max_episode_tokens": 3000}}

SERVERS = [
    Server(
        "mcp_sqlite",
        "mcp-server-sqlite",
        [
            call("list_tables"),
            call("read_query", query="SELECT price FROM items"),
            call("read_query", query="SELECT x"),
        ],
        [
            ("env_output", "read_query", "[{'price': 3}, {'price': 8}]"),
            ("env_output", "read_query", "no such column: x"),
        ],
        {"calls": SHOP},
    ),
    Server(
        "mcp_git",
        "mcp-server-git",
        [call("git_log", repo_path="."), call("git_show", repo_path="/workdir", revision="HEAD:notes.txt")],
        [("env_output", "git_log", "Message: start"), ("env_output", "git_show", "milk")],
        {"files": {"notes.txt": "milk\n"}},
    ),
    Server(
        "mcp_time",
        "mcp-server-time",
        [
            call("convert_time", source_timezone="UTC", time="16:30", target_timezone="Asia/Tokyo"),
            call("convert_time", source_timezone="Mars", time="16:30", target_timezone="UTC"),
        ],
        [("env_output", "convert_time", "+9.0h"), ("env_output", "tool_error", "Mars")],
        {},
        QWEN,
    ),
    Server(
        "mcp_filesystem",
        "mcp-server-filesystem",
        [
            call("list_directory", path="/workdir"),
            call("read_text_file", path="/workdir/a.txt"),
            call("read_text_file", path="/etc/passwd"),
        ],
        [
            ("env_output", "list_directory", "[FILE] a.txt"),
            ("env_output", "read_text_file", "apple"),
            (
                "env_output",
                "tool_error",
                "Access denied - path outside allowed directories: /etc/passwd not in /workdir",
            ),
        ],
        {"files": {"a.txt": "apple\n"}},
        PLAYED,
    ),
    Server(
        "mcp_everything",
        "mcp-server-everything",
        [call("echo", message="hi"), call("get-sum", a=2, b=3), call("get-tiny-image")],
        [
            ("env_output", "echo", "Echo: hi"),
            ("env_output", "get-sum", "The sum of 2 and 3 is 5."),
            ("warning", "left_out", "[left out: image image/png, "),
        ],
    ),
]
EXPECTED = {"never_done", "no_reward", "small_split", "context", "length_cap", "same_tasks"}
"""Names of the check's warnings: servers give no reward and end no episode, the tasks are alike, the models small."""


def write_config(server: Server, folder: Path) -> Path:
    tasks = [
        {
            "reset": {"n": n, **({"setup": server.setup} if server.setup else {})},
            "question": f"question {n}?",
            "split": split,
            "actions": server.script,
        }
        for n, split in enumerate(("train", "train", "validation", "heldout"))
    ]
    values: dict[str, Any] = {
        "environment": {"preset": server.preset, "tasks": {"items": tasks}, "max_turns": 3},
        "rollout": {"tasks_per_step": 0, "explorers": 1, "explorer_commands": 2},
        "model": {"path": "tiny-base"},
        "threads": 1,
        "objective": {"use_rl": False, "world_model_coeff": 1.0},
        "evaluation": {"every": 10, "pass_every": 100, "validation_rollouts": 0, "heldout_rollouts": 0},
    }
    for section, keys in server.keys.items():
        values[section] = {**values.get(section, {}), **keys} if section != "model" else keys
    file = folder / "config.yaml"
    file.write_text(json.dumps(values))  # JSON is YAML
    return file


@pytest.fixture(params=SERVERS, ids=lambda server: server.preset)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.param
    if shutil.which(found.program) is None:
        pytest.skip(f"{found.program} is not installed")
    return found


def test_a_server_is_checked_trained_in_resumed_and_killed(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(server, tmp_path)
    assert main(["env", "check", str(file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    segments = [(part["role"], part["channel"], part["text"]) for part in report["trajectory"]["segments"]]
    for role, channel, text in server.shows:
        assert any((role, channel) == segment[:2] and text in segment[2] for segment in segments), (text, segments)
    assert not any(report["faults"].values())
    names = {warning["name"] for warning in report["warnings"]}
    assert not names - EXPECTED, report["warnings"]

    words = ["--config", str(file), "--output-dir", str(tmp_path), "--run-name", "run"]
    assert main(["train", *words, "--steps", "6"]) == 0
    assert main(["train", *words, "--steps", "10", "--resume"]) == 0
    rows = [row for row in open_run(tmp_path / "run").read_metrics() if row["step"]]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert all(row["train/env_tokens"] > 0 and row["environment/sessions_lost"] == 0 for row in rows)
    assert rows[-1]["train/env_ce"] < rows[0]["train/env_ce"]

    killed_in_the_middle(file, server)


def killed_in_the_middle(file: Path, server: Server) -> None:
    """Kill the server of an episode, which loses its session, and play another episode."""
    line = f"<tool_call>{json.dumps(server.script[0])}</tool_call>"
    with open_worlds(load_config(file)) as worlds:

        async def first_reply(*, kill: bool) -> set[Role]:
            environment = worlds.environment()
            await environment.reset(worlds.tasks.train[0])
            for pid in servers() if kill else ():
                os.kill(pid, signal.SIGKILL)
            try:
                reply = await environment.step(line)
            finally:
                await environment.close()
            return {piece.role for piece in reply.pieces}

        with pytest.raises(SessionLost, match="killed by SIGKILL"):
            asyncio.run(first_reply(kill=True))
        assert Role.ENV_OUTPUT in asyncio.run(first_reply(kill=False))
    assert not servers()


def servers() -> list[int]:
    """Return the ids of the processes below this one that are not echo-cli's own."""
    below = [process.pid for process in processes_below(os.getpid()) if not process.is_zombie]
    return [pid for pid in below if b"echo_cli" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
