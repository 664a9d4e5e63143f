"""The section `environment.mcp`: what it refuses, what it starts and sends, and tool calls in scripts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from echo_cli.config.effects import effects_of
from echo_cli.config.loader import load_config
from echo_cli.config.mcp import MCP_PRESETS, McpConfig
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.training.plan import plan

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mcp.md"
CALL = '<tool_call>{"name": "look", "arguments": {"at": "é"}}</tool_call>'


def config(folder: Path, mcp: Any, **environment: Any) -> Config:
    keys = {"mcp": mcp, "tasks": {"seeds": 9}, **environment}
    file = folder / "c.yaml"
    file.write_text(json.dumps({"environment": keys, "rollout": {"explorers": 0}}))  # JSON is YAML
    return load_config(file)


@pytest.mark.parametrize(
    ("mcp", "message"),
    [
        ({}, "environment.mcp sets neither command nor url"),
        ({"command": ["x"], "url": "http://127.0.0.1:1"}, "environment.mcp sets both command and url"),
        ({"command": ["x"], "headers": {"A": "${B}"}}, "environment.mcp.headers has no effect without url"),
        ({"url": "http://127.0.0.1:1", "env": {"A": "b"}}, "environment.mcp.env has no effect without command"),
        ({"url": "http://127.0.0.1:1", "folder": "/a"}, "environment.mcp.folder has no effect without command"),
        ({"command": ["x"], "allow": ["a", "b"], "deny": ["b"]}, "environment.mcp allows and denies b"),
        ({"command": ["x", "--token", "abcdefgh"]}, "environment.mcp.command holds a secret"),
        ({"command": ["x"], "env": {"API_TOKEN": "abcdefgh"}}, "environment.mcp.env.API_TOKEN is a secret"),
        ({"url": "http://a:abcdefgh@127.0.0.1:1"}, "environment.mcp.url contains credentials"),
        ({"url": "http://127.0.0.1:1", "headers": {"A": "b"}}, "'environment.mcp.headers.A' does not refer to an env"),
        ({"url": "ftp://127.0.0.1:1"}, "'environment.mcp.url' is"),
    ],
)
def test_a_wrong_section_is_one_line_without_a_secret(mcp: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(EchoError) as error:
        config(tmp_path, mcp)
    assert message in error.value.message and error.value.tip
    assert "abcdefgh" not in error.value.message + error.value.tip


def test_a_config_says_what_it_starts_contacts_and_sends(tmp_path: Path) -> None:
    started = config(tmp_path, {"command": ["srv", "{workdir}/a b"], "env": {"A": "${B_KEY}"}})
    assert str(effects_of(started)) == "starts srv '{workdir}/a b' with A set; sends B_KEY"
    assert plan(started, tmp_path)["environment"] == "mcp srv '{workdir}/a b'"
    remote = config(tmp_path, {"url": "https://host/mcp", "headers": {"X": "Bearer ${B_KEY}"}})
    assert str(effects_of(remote)) == "contacts https://host/mcp; sends B_KEY"


def test_headers_go_over_plain_http_to_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from echo_cli.environments.worlds import open_worlds

    monkeypatch.setenv("B_KEY", "abcdefgh")
    remote = config(tmp_path, {"url": "http://example.org/mcp", "headers": {"X": "${B_KEY}"}})
    with (
        pytest.raises(
            EchoError, match=r"environment.mcp.headers would send \$\{B_KEY\} to example.org over plain http"
        ),
        open_worlds(remote),
    ):
        pass


def test_a_call_in_a_script_is_written_as_a_line(tmp_path: Path) -> None:
    call = {"name": "look", "arguments": {"at": "é"}}
    tasks = [{"reset": {"n": n}, "actions": [call, "look"], "split": "train"} for n in range(2)]
    loaded = config(tmp_path, {"command": ["x"]}, tasks={"items": tasks}, explorer=[call, {"name": "now"}, "ls"])
    assert loaded.environment.explorer == (CALL, '<tool_call>{"name": "now", "arguments": {}}</tool_call>', "ls")
    again = tmp_path / "again.yaml"
    again.write_text(loaded.to_yaml())
    assert load_config(again) == loaded
    from echo_cli.environments.tasks import load_tasks

    assert loaded.environment.tasks is not None
    assert load_tasks(loaded.environment.tasks).actions["n=0"] == (CALL, "look")
    wrong = {"name": "look", "args": {}}
    with pytest.raises(EchoError, match=r"'environment\.explorer\.0' is"):
        config(tmp_path, {"command": ["x"]}, explorer=[wrong])
    tasks[0]["actions"] = [wrong]
    refused = config(tmp_path, {"command": ["x"]}, tasks={"items": tasks})
    assert refused.environment.tasks is not None
    with pytest.raises(EchoError, match="actions is not a list of lines"):
        load_tasks(refused.environment.tasks)


@pytest.mark.parametrize(
    "text", re.findall(r"^```yaml\n((?:steps|environment):.*?)^```", PAGE.read_text(), re.DOTALL | re.M)
)
def test_a_documented_config_is_one(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert load_config(file).environment.mcp is not None


def test_the_page_names_every_key_and_preset() -> None:
    text = PAGE.read_text()
    assert {key for key in McpConfig.model_fields if f"`{key}`" not in text} == set()
    assert {preset for preset in MCP_PRESETS if f"`{preset}`" not in text} == set()
