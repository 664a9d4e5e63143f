"""MCP servers as environments: what the policy sees, what is sent, and every kind of fault, against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from loopback import ROOT, environment, free_port

from echo_cli.config.loader import load_config
from echo_cli.config.mcp import McpConfig
from echo_cli.environments.faults import SessionLost
from echo_cli.environments.mcp.task_setup import check_setups
from echo_cli.environments.mcp.tools import Tool, Toolbox
from echo_cli.environments.protocol import StepResult, TaskSuite
from echo_cli.environments.tasks import Task
from echo_cli.environments.worlds import open_worlds
from echo_cli.errors import EchoError
from echo_cli.trajectory import Role

T = TypeVar("T")

C, E, W = Role.CONTEXT, Role.ENV_OUTPUT, Role.WARNING
SAMPLES = ["python", str(ROOT / "tests" / "mcp_samples.py")]


def config(**keys: Any) -> Any:
    """Return a config's environment section: the sample server, whose keys `mcp` overrides, and three tasks."""
    mcp = {"command": SAMPLES, **keys.pop("mcp", {})}
    if "url" in mcp:
        del mcp["command"]
    items = [{"reset": {"n": n}, "question": "which colour?"} for n in range(3)]
    return {"mcp": mcp, "tasks": {"items": items, "validation": 0, "heldout": 0}, "prompt": "", "retry_s": 0, **keys}


@contextmanager
def opened(folder: Path, **keys: Any) -> Iterator[TaskSuite]:
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump({"environment": config(**keys), "rollout": {"explorers": 0}}))
    with open_worlds(load_config(file)) as worlds:
        yield worlds


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


async def play(worlds: TaskSuite, *actions: str, task: Task | None = None) -> list[list[tuple[Any, ...]]]:
    """Play an episode, and return the pieces of its opening and of its replies."""
    env = worlds.environment()
    try:
        pieces = [await env.reset(task or worlds.tasks.train[0])]
        pieces += [(await env.step(action)).pieces for action in actions]
    finally:
        await env.close()
    return [[(piece.role, piece.text, piece.channel) for piece in each] for each in pieces]


def texts(pieces: list[list[tuple[Any, ...]]]) -> list[str]:
    return ["".join(text for _, text, _ in each) for each in pieces[1:]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskSuite]:
    """The sample server, shared by the episodes of several tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMPLE_KEY", "a-long-secret")
        env = {"SAMPLE_KEY": "${SAMPLE_KEY}"}
        mcp = {"shared": True, "env": env, "deny": ["write"]}
        folder = tmp_path_factory.mktemp("shared")
        with opened(folder, mcp=mcp, max_turns=20, step_timeout_s=2, max_message_mb=1) as worlds:
            yield worlds


def test_text_is_output_in_the_channel_of_its_tool_and_all_else_is_a_warning(shared: TaskSuite) -> None:
    actions = (call("colour", fruit="lime"), call("colour", fruit="nut"), call("picture"), call("nothing"))
    opening, told, failed, drawn, empty = run(play(shared, *actions))
    assert opening == [(C, "which colour?\n", "question")]
    assert told == [(E, "green", "colour")]
    assert failed == [(E, "Error executing tool colour: no fruit nut", "tool_error")]
    assert drawn == [
        (E, "a dot", "picture"),
        (
            W,
            "\n[left out: image image/png, 8 characters of base64]\n[left out: resource note://one, 6 characters]\n",
            "left_out",
        ),
    ]
    assert empty == []


@pytest.mark.parametrize(
    ("action", "notice"),
    [
        (call("add", a="one"), "[not an action: add: arguments.a: 'one' is not of type 'integer']\n"),
        (call("add", b=2), "[not an action: add: arguments: 'a' is a required property]\n"),
        (call("write", path="a", text="b"), "[not an action: no tool 'write'; the tools are "),
        ("<tool_call>{}", "[not an action: the tool call does not end]\n"),
    ],
)
def test_a_call_that_does_not_fit_is_a_warning_and_is_not_sent(shared: TaskSuite, action: str, notice: str) -> None:
    shared.hosting.faults.take()
    _, before, refused, after = run(play(shared, call("count"), action, call("count")))
    assert [(role, channel) for role, _, channel in refused] == [(W, "notice")]
    assert refused[0][1].startswith(notice)
    assert int(after[0][1]) == int(before[0][1]) + 1
    assert shared.hosting.faults.take()["bad_actions"] == 1


def test_words_without_a_call_end_the_episode(shared: TaskSuite) -> None:
    async def answered() -> StepResult:
        env = shared.environment()
        await env.reset(shared.tasks.train[0])
        reply = await env.step("The answer is green.")
        await env.close()
        return reply

    assert run(answered()) == StepResult((), done=True)


def test_the_server_gets_the_listed_variables_alone_and_no_answer_shows_their_values(shared: TaskSuite) -> None:
    asked = [call("variable", name=name) for name in ("SAMPLE_KEY", "PYTEST_CURRENT_TEST")]
    assert texts(run(play(shared, *asked))) == ["${SAMPLE_KEY}", "unset"]


def test_a_shared_server_keeps_its_state_and_is_started_again_when_it_has_ended(shared: TaskSuite) -> None:
    run(play(shared, call("count")))
    assert int(texts(run(play(shared, call("count"))))[0]) > 1
    with pytest.raises(SessionLost, match="ended, with exit code 3; its last output: no more"):
        run(play(shared, call("die", words="no more")))
    assert texts(run(play(shared, call("count")))) == ["1"]


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (call("hang"), "no answer within 2 s"),
        (call("flood", megabytes=2), "it sent more than 1 MiB"),
    ],
)
def test_a_server_that_hangs_or_floods_loses_the_session(shared: TaskSuite, action: str, reason: str) -> None:
    with pytest.raises(SessionLost, match=reason):
        run(play(shared, action))


def test_the_tools_are_described_as_templates_take_them(shared: TaskSuite) -> None:
    tools = {tool["function"]["name"]: tool["function"] for tool in shared.description.tools}
    assert "write" not in tools and {"add", "colour"} <= set(tools)
    assert tools["add"]["parameters"]["required"] == ["a"]
    assert shared.description.name == "samples"


def test_every_episode_has_a_server_of_its_own_in_a_new_folder_with_the_files_of_its_task(tmp_path: Path) -> None:
    setup = {"files": {"sub/a.txt": "first"}, "calls": [{"name": "write", "arguments": {"path": "b", "text": "two"}}]}
    tasks = {"items": [{"question": "read", "setup": setup}], "validation": 0, "heldout": 0}
    read = [call("read", path="/workdir/sub/a.txt"), call("read", path="b"), call("count"), call("child")]
    with opened(tmp_path, tasks=tasks, mcp={"allow": ["read", "count", "child"]}) as worlds:

        async def twice() -> list[list[str]]:
            return [texts(await play(worlds, *read)) for _ in range(2)]

        first, second = run(twice())
    assert first[:3] == second[:3] == ["/workdir/sub/a.txt: first", "/workdir/b: two", "1"]
    assert not any(_alive(int(pid)) for pid in (first[3], second[3]))  # whatever their session


def test_a_setup_that_fails_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    setup = {"calls": [{"name": "colour", "arguments": {"fruit": "nut"}}]}
    tasks = {"items": [{"question": "x", "setup": setup}], "validation": 0, "heldout": 0}
    with opened(tmp_path, tasks=tasks, attempts=1) as worlds, pytest.raises(EchoError) as error:
        run(play(worlds))
    assert "the setup's call of colour failed: Error executing tool colour: no fruit nut" in error.value.message
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("setup", "problem"),
    [
        ({"calls": [{"name": "paint"}]}, "no tool 'paint'"),
        ({"calls": [{"name": "add", "arguments": {"a": "x"}}]}, "'x' is not of type 'integer'"),
        ({"calls": [{"tool": "add"}]}, r"setup.calls\[0\] is not a call"),
        ({"files": {"../a": "x"}}, "'../a' is not a path below the episode's folder"),
        ({"files": {"a": "x"}}, "setup.files, but episodes share one server"),
        ({"folder": "x"}, "unknown key 'folder'"),
        ([], "setup is not a mapping"),
    ],
)
def test_a_setup_that_does_not_fit_is_refused_before_the_first_episode(setup: Any, problem: str) -> None:
    add = Tool("add", "", {"type": "object", "properties": {"a": {"type": "integer"}}})
    toolbox = Toolbox({"add": add}, ("add",))
    task = Task("t", "train", "f", {"setup": setup})
    with pytest.raises(EchoError, match=problem):
        check_setups([task], McpConfig(command=("x",), shared=True), toolbox)


@pytest.mark.parametrize(
    ("names", "mcp", "problem"),
    [
        ("", {}, "the MCP server has no tools"),
        ("look", {"deny": ["look"]}, "environment.mcp.deny names every tool"),
        ("look", {"deny": ["lok"]}, "environment.mcp.deny: the server has no tool 'lok'"),
    ],
)
def test_a_server_must_offer_a_tool(names: str, mcp: Any, problem: str) -> None:
    tools = [Tool(name, "", {"type": "object"}) for name in names.split()]
    with pytest.raises(EchoError, match=problem):
        Toolbox.of(tools, McpConfig(command=("x",), **{key: tuple(value) for key, value in mcp.items()}))


NO_TOOLS = """
import asyncio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

async def main():
    server = Server("none")
    async with stdio_server() as (received, sent):
        await server.run(received, sent, server.create_initialization_options())

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("mcp", "message"),
    [
        ({"command": ["python", "-c", NO_TOOLS]}, "it does not list its tools: Method not found"),
        ({"allow": ["colours"]}, r"environment.mcp.allow: the server has no tool 'colours'"),
        ({"command": ["nonesuch"]}, "no MCP server at 'nonesuch': it cannot be started: No such file"),
        ({"command": ["cat"]}, "no MCP server at 'cat': "),
        ({"command": ["echo", "hello"]}, "ended, with exit code 0; its last output: hello"),
        ({"command": ["sleep", "9"], "start_timeout_s": 0.3}, r"it did not list its tools within 0.3 s"),
        ({"command": ["sh", "-c", "yes | tr -d '\\n'"]}, "it sent more than 1 MiB"),
        ({"env": {"A": "${NOT_SET_ANYWHERE}"}}, "the environment variable NOT_SET_ANYWHERE is not set"),
        (
            {"url": "http://127.0.0.1:1/mcp"},
            "no MCP server at 'http://127.0.0.1:1/mcp': All connection attempts failed",
        ),
    ],
)
def test_what_is_no_server_or_lacks_a_tool_is_one_line_with_a_tip(
    tmp_path: Path, mcp: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EchoError, match=message) as error, opened(tmp_path, mcp=mcp, max_message_mb=1):
        pass
    assert error.value.tip and "\n" not in error.value.message
    assert error.value.exit_code == 2
    assert not [record for record in caplog.records if record.name in ("root", "mcp")]


def test_a_tool_that_vanishes_ends_the_run(tmp_path: Path) -> None:
    ledger = tmp_path / "starts"
    forgets = f'echo >> {ledger}; [ "$(wc -l < {ledger})" -lt 2 ] || export SAMPLES_WITHOUT=add; exec "$@"'
    command = ["sh", "-c", forgets, "sh", sys.executable, SAMPLES[1]]
    with opened(tmp_path, mcp={"command": command}) as worlds, pytest.raises(EchoError, match="'add' has vanished"):
        run(play(worlds))


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from echo_cli.config.loader import load_config
from echo_cli.environments.worlds import open_worlds

async def main(worlds):
    env = worlds.environment()
    await env.reset(worlds.tasks.train[0])
    reply = await env.step('<tool_call>{"name": "read", "arguments": {"path": "/proc/self/stat"}}</tool_call>')
    print(reply.pieces[0].text.split()[1], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

with open_worlds(load_config(Path(sys.argv[1]))) as worlds:
    asyncio.run(main(worlds))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_server_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    ignores_the_end = ["sh", "-c", '"$@"; sleep 1000', "sh", sys.executable]
    mcp = {"command": [*ignores_the_end, SAMPLES[1]]}
    file.write_text(yaml.safe_dump({"environment": config(mcp=mcp), "rollout": {"explorers": 0}}))
    command = [sys.executable, "-c", KILLED, str(file)]
    variables = {**environment(), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    group = int(done.stdout.split()[-1])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (_alive(group) or list(tmp_path.glob("echo-mcp-*"))):
        time.sleep(0.05)
    assert not _alive(group)
    assert not list(tmp_path.glob("echo-mcp-*"))


def _alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class HttpServer:
    """The sample server over streamable HTTP."""

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/mcp"
        self.process = subprocess.Popen([sys.executable, SAMPLES[1], str(port)], env=environment())
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            time.sleep(0.05)
        raise AssertionError("the server did not start")


def test_streamable_http_plays_the_same_and_its_end_is_a_lost_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMPLE_TOKEN", "a-long-token")
    server = HttpServer()
    headers = {"X-Token": "Bearer ${SAMPLE_TOKEN}"}
    try:
        keys: Mapping[str, Any] = {"mcp": {"url": server.url, "headers": headers}, "step_timeout_s": 5}
        with opened(tmp_path, **keys, max_message_mb=1, attempts=1) as worlds:
            told, header = texts(run(play(worlds, call("colour", fruit="plum"), call("header", name="x-token"))))
            assert (told, header) == ("blue", "Bearer ${SAMPLE_TOKEN}")
            with pytest.raises(SessionLost, match="it sent more than 1 MiB"):
                run(play(worlds, call("flood", megabytes=2)))

            async def killed() -> None:
                env = worlds.environment()
                await env.reset(worlds.tasks.train[0])
                server.process.kill()
                server.process.wait()
                try:
                    await env.step(call("count"))
                finally:
                    await env.close()

            with pytest.raises(SessionLost):
                run(killed())
            with pytest.raises(EchoError, match="the environment is not available") as error:
                run(play(worlds))
            assert error.value.exit_code == 1
    finally:
        server.process.kill()
        server.process.wait()
