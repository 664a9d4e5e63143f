"""In-process environments: payloads equal to a server's, threads that end, and four kinds of error."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import OpenEnvServer, environment
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State
from openenv_samples import Heard, Later, Say, Talk
from websockets.sync.client import connect

from echo_cli.cli.main import main
from echo_cli.concurrency import WorkerThread
from echo_cli.environments.faults import BadAction, EnvironmentFault, SessionLost, Unavailable
from echo_cli.environments.openenv.in_process_client import ObjectClient, ObjectSource
from echo_cli.environments.openenv.in_process_session import EnvironmentClass, ObjectSession
from echo_cli.environments.protocol import Payload
from echo_cli.errors import EchoError

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def server(openenv_server: OpenEnvServer) -> str:
    return openenv_server.url


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = {thread for thread in set(threading.enumerate()) - before if not thread.name.startswith("asyncio")}
    deadline = time.monotonic() + 10
    while any(thread.is_alive() for thread in left) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [thread.name for thread in left if thread.is_alive()]


def _source(name: str, **options: Any) -> ObjectSource:
    return ObjectSource(f"openenv_samples:{name}", options)


def _reset(**data: Any) -> dict[str, Any]:
    return {"type": "reset", "data": data}


def _step(**data: Any) -> dict[str, Any]:
    return {"type": "step", "data": data}


def _say(text: Any, **more: Any) -> dict[str, Any]:
    return _step(text=text, **more)


def _call(tool: str, **arguments: Any) -> dict[str, Any]:
    return _step(type="call_tool", tool_name=tool, arguments=arguments)


TALK = [
    _reset(seed=3, topic="Wärme ☀ 🜁", unknown=1, episode_id="e"),
    _say("plain"),
    _say("äöü ☃ 🎉 \u2028 \x00 \x1b[0m \\ \" 'quotes'", times=2),
    _say("nan"),
    _say("raise"),
    _say("after an error it goes on"),
    _say("own mistake"),
    _say("surrogate"),
    _say("object"),
    _step(),
    _step(txt="x", text=1),
    _say("x", times="many", metadata={"a": 1}),
    _say("true"),
    _say("after done"),
    _reset(topic="none"),
    _reset(seed="not a number"),
]
LATER = [_reset(seed=1, other=[None, "ü"]), _say("async"), _say("raise"), _say("goes on")]
TOOLS = [
    _reset(seed=5),
    _call("add", a=2, b=40),
    _call("add", a="two", b=1),
    _call("subtract"),
    _step(type="list_tools"),
    _step(type="call_tool"),
    _step(text="no tool"),
]


@pytest.mark.parametrize(("name", "place", "requests"), [("Talk", "talk", TALK), ("Later", "later", LATER)])
def test_the_replies_are_those_of_a_server_byte_for_byte(
    server: str, name: str, place: str, requests: list[dict[str, Any]]
) -> None:
    assert _replies(name, requests) == _served(server, place, requests)


def test_the_replies_of_mcp_tools_are_those_of_a_server(server: str) -> None:
    replies = _replies("Tools", TOOLS)
    assert json.loads(replies[1])["data"]["observation"]["result"]["structured_content"] == {"result": 42}
    # A server created with CallToolAction publishes that schema. Replies equal those with the environment's own Action,
    # except for errors of actions that are not tool calls.
    assert replies[:5] == _served(server, "tools", TOOLS[:5])
    assert [json.loads(reply)["data"]["code"] for reply in replies[5:]] == ["VALIDATION_ERROR"] * 2


def _replies(name: str, requests: list[dict[str, Any]]) -> list[str]:
    async def play() -> list[str]:
        thread = WorkerThread("played")
        session = ObjectSession(EnvironmentClass(f"openenv_samples:{name}", {}), thread)
        await session.open()
        replies = [await session.reply(json.dumps(request)) for request in requests]
        await session.close_mcp()
        session.close_environment()
        thread.end()
        return replies

    return asyncio.run(play())


def _served(server: str, place: str, requests: list[dict[str, Any]]) -> list[str]:
    replies = []
    with connect(f"{server.replace('http', 'ws')}/{place}/ws", proxy=None) as socket:
        for request in requests:
            socket.send(json.dumps(request))
            replies.append(str(socket.recv()))
    return replies


def test_an_error_that_is_no_json_costs_the_session_as_on_a_server(server: str) -> None:
    """pydantic lists a validator's ValueError among its errors, and OpenEnv cannot serialise it."""
    served = json.loads(_served(server, "talk", [_say("x", times=10)])[0])["data"]
    assert served["code"] == "SESSION_ERROR"

    async def play() -> None:
        client = _source("Talk").client()
        await client.reset({})
        with pytest.raises(SessionLost) as lost:
            await client.step({"text": "x", "times": 10})
        assert f"{served['message']} (SESSION_ERROR)" in str(lost.value)
        with pytest.raises(SessionLost):
            await client.step({"text": "x"})
        await client.close()

    asyncio.run(play())


def test_an_episode_in_payloads_and_faults() -> None:
    async def play(client: ObjectClient) -> None:
        assert await client.reset({"seed": 1, "topic": "ice", "unknown": 2}) == Payload(
            {"text": "hello ice 1", "nested": {}, "metadata": {"topic": "ice"}}, metadata={"topic": "ice"}
        )
        assert (await client.step({"text": "ab", "times": 2})).root["text"] == "abab"
        with pytest.raises(BadAction, match=r"^text: Field required; txt: Extra inputs are not permitted$"):
            await client.step({"txt": "x"})
        with pytest.raises(BadAction, match="not finite"):
            await client.step({"text": float("nan")})
        with pytest.raises(EnvironmentFault, match=r"^it broke \\x1b\[31m on line 2$"):
            await client.step({"text": "raise"})
        with pytest.raises(EnvironmentFault, match="StopIteration"):
            await client.step({"text": "stop"})
        assert (await client.step({"text": "nan"})).reward is None
        assert (await client.step({"text": "true"})).reward == 1.0
        await client.close()
        await client.close()
        with pytest.raises(SessionLost, match="closed"):
            await client.step({"text": "x"})

    asyncio.run(play(_source("Talk").client()))


def test_a_client_that_never_began_closes() -> None:
    asyncio.run(_source("Talk").client().close())


def test_what_it_is_asked_for_at_the_start() -> None:
    talk, later, tools = (_source(name).describe() for name in ("Talk", "Later", "Tools"))
    assert (talk.name, talk.sessions) == ("Talk", 1)
    assert ObjectSource("openenv_samples:Talk", {}, sessions_wanted=8).describe().sessions == 8
    assert (later.name, later.sessions) == ("Later", 1)
    assert talk.action_schema == Say.model_json_schema()
    assert talk.observation_schema == later.observation_schema == Heard.model_json_schema()
    assert later.action_schema == Say.model_json_schema()
    assert tools.action_schema == Action.model_json_schema()
    assert _source("Talk").ended() is None


def test_options_reach_the_constructor() -> None:
    async def play() -> Payload:
        client = _source("Talk", greeting="salut").client()
        try:
            return await client.reset({"topic": "a"})
        finally:
            await client.close()

    assert asyncio.run(play()).observation["text"] == "salut a None"


class Broken(Talk):
    def __init__(self, secret: str = "") -> None:
        raise OSError("no\ndisk")


class Abstract(Environment[Say, Heard, State]):
    pass


class Silent(Talk):
    """An environment whose `step` does not annotate its action."""

    def step(self, action, **_):  # type: ignore[no-untyped-def, override]
        return super().step(action)


class Mute(Environment):
    def reset(self, **_: Any) -> Observation:
        return Observation()

    def step(self, action, **_):  # type: ignore[no-untyped-def]
        return Observation()

    @property
    def state(self) -> State:
        return State()


@pytest.mark.parametrize(
    ("name", "options", "message", "tip"),
    [
        (
            "openenv_samples:Talk",
            {"greetings": 1},
            "does not accept environment.object_options: got an unexpected",
            "Talk(",
        ),
        ("openenv_samples:Say", {}, "is not an OpenEnv Environment", "inherits from Environment"),
        (f"{__name__}:Abstract", {}, "is abstract: it lacks reset, state, step", "all of them"),
        (f"{__name__}:Mute", {}, "does not declare the type of its actions", "annotate the action of its step"),
    ],
)
def test_what_is_no_environment_is_refused_at_once(name: str, options: dict[str, Any], message: str, tip: str) -> None:
    with pytest.raises(EchoError) as error:
        ObjectSource(name, options)
    assert message in error.value.message and tip in str(error.value.tip) and error.value.exit_code == 2


def test_the_type_parameters_say_what_the_hints_do_not() -> None:
    assert ObjectSource(f"{__name__}:Silent", {}).describe().action_schema == Say.model_json_schema()


class Annotated(Later):
    """`step` has no annotations: those of `step_async` give the types."""

    def step(self, action, **_):  # type: ignore[no-untyped-def]
        raise AssertionError("the asynchronous one is there")


class Coroutines(Talk):
    """`reset`, `step` and `close` are `async def`, which OpenEnv's server would not await."""

    closed: list[str] = []  # noqa: RUF012

    async def reset(self, seed: int | None = None, **arguments: Any) -> Heard:  # type: ignore[override]
        await asyncio.sleep(0)
        return Heard(text="begun", nested={"seed": seed})

    async def step(self, action: Say, **_: Any) -> Heard:  # type: ignore[override]
        await asyncio.sleep(0)
        return Heard(text=action.text.upper())

    async def close(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.closed.append("closed")


def test_the_annotations_of_step_async_give_the_types() -> None:
    described = ObjectSource(f"{__name__}:Annotated", {}).describe()
    assert described.action_schema == Say.model_json_schema()
    assert described.observation_schema == Heard.model_json_schema()


@pytest.mark.filterwarnings("error")
def test_methods_that_are_coroutines_are_awaited() -> None:
    source = ObjectSource(f"{__name__}:Coroutines", {})
    assert source.describe().action_schema == Say.model_json_schema()

    async def play() -> list[Payload]:
        client = source.client()
        payloads = [await client.reset({"seed": 3}), await client.step({"text": "hello"})]
        await client.close()
        return payloads

    begun, heard = asyncio.run(play())
    assert (begun.observation["text"], begun.observation["nested"]) == ("begun", {"seed": 3})
    assert heard.observation["text"] == "HELLO"
    assert Coroutines.closed == ["closed"] * 2  # after the description, and after the episode


def test_an_environment_that_cannot_be_made() -> None:
    source = ObjectSource(f"{__name__}:Broken", {"secret": "s3cret"})
    with pytest.raises(EchoError, match="cannot be created: OSError: no disk") as error:
        source.describe()
    assert "s3cret" not in f"{error.value.message}{error.value.tip}"

    async def play() -> None:
        client = source.client()
        with pytest.raises(Unavailable, match="cannot be created: OSError: no disk"):
            await client.reset({})
        await client.close()

    asyncio.run(play())


def test_a_step_that_takes_too_long_costs_the_session_and_its_thread_ends_when_it_returns() -> None:
    async def play() -> None:
        client = ObjectSource("openenv_samples:Talk", {}, step_timeout_s=0.2).client()
        await client.reset({})
        with pytest.raises(SessionLost, match=r"no answer within 0\.2 s"):
            await client.step({"text": "sleep"})
        with pytest.raises(SessionLost, match=r"no answer within 0\.2 s"):
            await client.step({"text": "x"})
        await client.close()

    asyncio.run(play())


def test_python_does_not_wait_for_a_thread_that_hangs() -> None:
    code = """
import threading
from echo_cli.concurrency import WorkerThread
WorkerThread("hangs").start(threading.Event().wait)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_the_environment_is_made_stepped_and_closed_in_one_thread() -> None:
    async def play() -> str:
        client = ObjectSource(f"{__name__}:Bound", {}).client()
        await client.reset({})
        text = (await client.step({"text": "thread"})).observation["text"]
        await client.close()
        return str(text)

    assert asyncio.run(play()) == "True"
    assert Bound.closed_in == [True]


class Bound(Talk):
    closed_in: list[bool] = []  # noqa: RUF012

    def close(self) -> None:
        self.closed_in.append(threading.get_ident() == self._made_in)


class Meeting(Talk):
    """A step returns only when both sessions are in a step."""

    both = threading.Barrier(2, timeout=20)

    def step(self, action: Say, **_: Any) -> Heard:  # type: ignore[override]
        self.both.wait()
        return Heard(text="met")


def test_sessions_run_in_parallel() -> None:
    async def play() -> list[str]:
        source = ObjectSource(f"{__name__}:Meeting", {})
        clients = [source.client(), source.client()]
        for client in clients:
            await client.reset({})
        payloads = await asyncio.gather(*(client.step({"text": "x"}) for client in clients))
        for client in clients:
            await client.close()
        return [payload.observation["text"] for payload in payloads]

    assert asyncio.run(play()) == ["met", "met"]


def test_a_cancelled_call_costs_the_session() -> None:
    async def play() -> None:
        client = _source("Talk").client()
        await client.reset({})
        step = asyncio.ensure_future(client.step({"text": "sleep"}))
        await asyncio.sleep(0.05)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        with pytest.raises(SessionLost, match="cancelled"):
            await client.step({"text": "x"})
        await client.close()

    asyncio.run(play())


class Stuck(Talk):
    began, free = threading.Event(), threading.Event()

    def step(self, action: Say, **_: Any) -> Heard:  # type: ignore[override]
        self.began.set()
        self.free.wait()
        return Heard(text="at last")


def test_who_closes_in_the_middle_of_a_request_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echo_cli.environments.openenv.in_process_client._LEAVE_SECONDS", 0.05)

    async def play() -> None:
        client = ObjectSource(f"{__name__}:Stuck", {}, step_timeout_s=1000).client()
        await client.reset({})
        step = asyncio.ensure_future(client.step({"text": "x"}))
        while not Stuck.began.is_set():
            await asyncio.sleep(0.01)
        await client.close()
        assert not step.done()
        Stuck.free.set()
        await asyncio.wait({step})

    try:
        asyncio.run(play())
    finally:
        Stuck.free.set()


class Rude(Talk):
    """An environment that prints, and cannot be closed."""

    def step(self, action: Say, **_: Any) -> Heard:  # type: ignore[override]
        print("I print")
        return Heard(text="said", reward=1.0, done=True)

    def close(self) -> None:
        raise OSError("stays open")


def test_what_an_environment_prints_is_no_part_of_our_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "rude.yaml"
    config.write_text(
        f"environment: {{object: '{__name__}:Rude', tasks: {{seeds: 8}}, explorer: [a], "
        "action: {template: {text: '{text}'}}, observation: [{path: text}]}"
    )
    assert main(["env", "check", str(config), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["reward"] == 1.0 and "I print" in printed.err


class OneThread(Talk):
    REQUIRES_SINGLE_THREAD_EXECUTOR = True
    threads: set[int] = set()  # noqa: RUF012

    def step(self, action: Say, **_: Any) -> Heard:  # type: ignore[override]
        self.threads.add(threading.get_ident())
        return Heard(text="")


def test_where_it_demands_one_thread_all_sessions_have_it() -> None:
    async def play(source: ObjectSource) -> None:
        clients = [source.client(), source.client()]
        for client in clients:
            await client.reset({})
            await client.step({"text": "x"})
        for client in clients:
            await client.close()

    source = ObjectSource(f"{__name__}:OneThread", {})
    asyncio.run(play(source))
    assert len(OneThread.threads) == 1
    assert source._shared is not None
    source._shared.end()
