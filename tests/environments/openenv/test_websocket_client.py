"""The wire protocol, against real servers on loopback: one connection is one episode, however it ends."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from loopback import OpenEnvServer, free_port
from loopback_server import CONNECT, Behaviour, Incident, LoopbackServer, Refused, loopback_server, observation

from echo_cli.environments.faults import BadAction, EnvironmentFault, Fault, SessionLost, Unavailable
from echo_cli.environments.openenv.address import wire_address
from echo_cli.environments.openenv.session import SessionLimits
from echo_cli.environments.openenv.websocket import MAX_REQUEST_BYTES
from echo_cli.environments.openenv.websocket_client import WireClient, WireSource
from echo_cli.environments.protocol import Payload
from echo_cli.errors import EchoError

T = TypeVar("T")

LS = {"command": "ls"}
SECRET = "s3cret-token"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def source(server: LoopbackServer, **settings: Any) -> WireSource:
    limits = {name: settings.pop(name) for name in ("step_timeout_s", "max_message_mb") if name in settings}
    return WireSource(server.url, settings.pop("headers", {}), SessionLimits(**limits), **settings)


async def fault_of(coroutine: Coroutine[Any, Any, Any]) -> Fault:
    with pytest.raises(Fault) as caught:
        await coroutine
    return caught.value


def patience(fault: str) -> float:
    """Return the seconds to wait for an answer: few if `fault` is that none comes, many if a busy machine is late."""
    return 0.5 if "no answer" in fault else 20.0


def message(reward: str = "null", output: str = "x", **others: str) -> str:
    data = {"reward": reward, "done": "false", **others}
    fields = "".join(f', "{name}": {value}' for name, value in data.items())
    return f'{{"type": "observation", "data": {{"observation": {{"output": "{output}"}}{fields}}}}}'


@pytest.fixture(scope="module")
def well() -> Iterator[LoopbackServer]:
    """Provide a faultless server."""
    with loopback_server() as server:
        yield server


def test_an_episode_is_one_connection_and_gives_the_servers_payloads(well: LoopbackServer) -> None:
    async def play() -> list[Payload]:
        client = source(well).client()
        payloads = [await client.reset({"seed": 7, "steps": 2}), await client.step(LS), await client.step(LS)]
        await client.close()
        await client.close()
        return payloads

    before = well.connections
    assert run(play()) == [
        Payload({"output": "count\n"}, None, False, {}),
        Payload({"output": "1: ls\n"}, None, False, {}),
        Payload({"output": "2: ls\n"}, 1.0, True, {}),
    ]
    assert well.connections == before + 1
    assert well.events("reset")[-1]["data"] == {"seed": 7, "steps": 2}
    assert well.events("close")[-1]["connection"] == before


def test_sixteen_clients_at_once_get_their_own_answers(well: LoopbackServer) -> None:
    async def play(number: int) -> list[str]:
        client = source(well).client()
        await client.reset({"steps": 9})
        outputs = [(await client.step({"command": f"{number}.{turn}"})).observation["output"] for turn in range(5)]
        await client.close()
        return outputs

    async def play_all() -> list[list[str]]:
        return await asyncio.gather(*(play(number) for number in range(16)))

    before = well.connections
    assert run(play_all()) == [[f"{turn + 1}: {number}.{turn}\n" for turn in range(5)] for number in range(16)]
    assert well.connections == before + 16


def test_two_calls_at_once_do_not_shift_the_answers(well: LoopbackServer) -> None:
    async def play() -> list[str]:
        client = source(well).client()
        await client.reset({"steps": 99})
        payloads = await asyncio.gather(*(client.step({"command": str(number)}) for number in range(20)))
        await client.close()
        return [payload.observation["output"] for payload in payloads]

    assert run(play()) == [f"{number + 1}: {number}\n" for number in range(20)]


def test_what_the_environment_refuses_or_raises_leaves_the_session_alive(well: LoopbackServer) -> None:
    async def play() -> None:
        client = source(well).client()
        await client.reset({})
        fault = await fault_of(client.step({"command": 3}))
        assert isinstance(fault, BadAction) and str(fault) == "command: Field required"
        assert (await client.step(LS)).observation["output"] == "1: ls\n"
        await client.close()

    run(play())


def test_error_messages_are_one_line_of_safe_text() -> None:
    errors = [{"loc": ["a", n], "msg": "bad\x1b[31m\n" + "y" * 10, "input": "hidden"} for n in range(5)]
    incidents = (
        Incident("error", 1, {"code": "EXECUTION_ERROR", "message": "fell\n\x1b]0;over\x07" + "x" * 900}),
        Incident("error", 2, {"code": "VALIDATION_ERROR", "message": "Invalid message", "errors": errors}),
        Incident("error", 3, {"code": "VALIDATION_ERROR", "message": "only this", "errors": "none"}),
        Incident("error", 4, {"code": "EXECUTION_ERROR"}),
    )

    async def play(server: LoopbackServer) -> None:
        client = source(server).client()
        await client.reset({"steps": 9})
        raised, refused, plain, silent = [await fault_of(client.step(LS)) for _ in range(4)]
        assert isinstance(raised, EnvironmentFault) and str(raised).startswith("fell \\x1b]0;over\\x07xxx")
        assert len(str(raised)) < 350
        one = "bad\\x1b[31m yyyyyyyyyy"
        assert isinstance(refused, BadAction)
        assert str(refused) == f"a.0: {one}; a.1: {one}; a.2: {one}; and 2 more"
        assert isinstance(plain, BadAction) and str(plain) == "only this"
        assert isinstance(silent, EnvironmentFault) and str(silent) == "it does not say why"
        await client.close()

    with loopback_server(Behaviour(incidents)) as server:
        run(play(server))


class Choosy:
    """A custom environment that the server's process imports from this module."""

    def __init__(self, liked: str) -> None:
        self._liked = liked

    def reset(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"observation": {}}

    def step(self, action: dict[str, Any]) -> dict[str, Any]:
        if "command" not in action:
            raise Refused([{"loc": [], "msg": "say something"}])
        if action["command"] != self._liked:
            raise RuntimeError("not this")
        return {"observation": {"output": "yes"}, "reward": 1, "done": True}


def test_a_world_of_the_tests_own() -> None:
    async def play(server: LoopbackServer) -> None:
        client = source(server).client()
        assert await client.reset({}) == Payload({})
        assert str(await fault_of(client.step({}))) == "say something"
        assert str(await fault_of(client.step(LS))) == "not this"
        assert await client.step({"command": "ps"}) == Payload({"output": "yes"}, 1.0, True)
        await client.close()

    with loopback_server(Behaviour(world=Choosy, options={"liked": "ps"})) as server:
        assert source(server).describe().name == "Choosy"
        run(play(server))


@pytest.mark.parametrize("code", ["EXECUTION_ERROR", "VALIDATION_ERROR"])
def test_a_reset_that_is_refused_is_the_environments_fault(code: str) -> None:
    async def play(server: LoopbackServer) -> Fault:
        client = source(server).client()
        fault = await fault_of(client.reset({}))
        await client.close()
        return fault

    with loopback_server(Behaviour((Incident("error", 0, {"code": code, "message": "no such task"}),))) as server:
        fault = run(play(server))
    assert type(fault) is {"EXECUTION_ERROR": EnvironmentFault, "VALIDATION_ERROR": BadAction}[code]
    assert str(fault) == "no such task"


# Incidents that end a session in the middle, and the message of the fault.
LOSSES: dict[str, tuple[Incident, str]] = {
    "closed 1000": (Incident("close", value=1000), "closed the connection with code 1000"),
    "closed 1011": (Incident("close", value=1011), "closed the connection with code 1011"),
    "dropped": (Incident("drop"), "the connection was lost"),
    "hangs": (Incident("hang"), "no answer within 0.5 s"),
    "slow": (Incident("slow", value=1.0), "no answer within 0.5 s"),
    "not JSON": (Incident("text", value="<html>"), "not JSON"),
    "brackets": (Incident("text", value="[" * 100_000), "not JSON"),
    "no object": (Incident("text", value="[]"), "not an OpenEnv message"),
    "no data": (Incident("text", value='{"type": "observation"}'), "not an OpenEnv message"),
    "wrong type": (Incident("text", value='{"type": "state", "data": {}}'), 'type "state" instead of observation'),
    "binary": (Incident("binary", value=message()), "binary"),
    "not UTF-8": (Incident("bytes", value="\xff\xfe"), "not UTF-8"),
    "no observation": (Incident("text", value='{"type": "observation", "data": {}}'), "no observation object"),
    "done is text": (Incident("text", value=message(done='"no"')), "done is str"),
    "reward is text": (Incident("text", value=message(reward='"much"')), "the reward is str"),
    "endless reward": (Incident("text", value=message(reward="1" + "0" * 400)), "too large"),
    "too long": (Incident("flood", value=2_000_000), "longer message than environment.max_message_mb"),
    "INVALID_JSON": (Incident("error", value={"code": "INVALID_JSON", "message": "what?"}), "what?"),
    "UNKNOWN_TYPE": (Incident("error", value={"code": "UNKNOWN_TYPE", "message": "what?"}), "what?"),
    "SESSION_ERROR": (Incident("error", value={"code": "SESSION_ERROR", "message": "gone"}), "gone"),
    "no code": (Incident("error", value={"message": "odd"}), "odd"),
}


@pytest.fixture(scope="module")
def failing() -> Iterator[LoopbackServer]:
    """Provide a server whose nth connection suffers the nth of LOSSES at its first step."""
    incidents = (
        Incident(incident.kind, incident.at, incident.value, connections=(number,))
        for number, (incident, _) in enumerate(LOSSES.values())
    )
    with loopback_server(Behaviour(tuple(incidents))) as server:
        yield server


def test_a_session_lost_in_the_middle_is_never_connected_again(failing: LoopbackServer) -> None:
    async def lose(client: WireClient, expected: str) -> None:
        await client.reset({})
        first = await fault_of(client.step(LS))
        again = [await fault_of(call) for call in (client.step(LS), client.state(), client.step({"command": "\x00"}))]
        assert all(type(fault) is SessionLost for fault in (first, *again))
        assert {str(fault) for fault in again} == {str(first)}
        assert expected in str(first) and str(first).isprintable()
        await client.close()

    async def lose_all() -> None:
        for _, expected in LOSSES.values():
            await lose(source(failing, step_timeout_s=patience(expected), max_message_mb=1).client(), expected)

    run(lose_all())
    failing.wait_for("disconnect", len(LOSSES))
    assert failing.connections == failing.episodes == failing.steps == len(LOSSES)


# Incidents that prevent an episode from starting.
REFUSALS: dict[str, tuple[Incident, type[Fault], str]] = {
    "closed": (Incident("close", CONNECT, 1000), Unavailable, "code 1000"),
    "dropped": (Incident("drop", CONNECT), Unavailable, "was lost"),
    "closed at reset": (Incident("close", 0, 1011), Unavailable, "code 1011"),
    "hangs at reset": (Incident("hang", 0), Unavailable, "no answer within 0.5 s"),
    "factory": (Incident("error", CONNECT, {"code": "FACTORY_ERROR", "message": "no GPU"}), Unavailable, "no GPU"),
    "session": (Incident("error", 0, {"code": "SESSION_ERROR", "message": "odd"}), Unavailable, "odd (SESSION_ERROR)"),
    "garbage": (Incident("text", 0, "<html>"), SessionLost, "not JSON"),
}


def test_a_session_that_never_began_is_unavailable() -> None:
    incidents = (
        Incident(incident.kind, incident.at, incident.value, connections=(number,))
        for number, (incident, _, _) in enumerate(REFUSALS.values())
    )

    async def play(server: LoopbackServer) -> None:
        for _, kind, expected in REFUSALS.values():
            client = source(server, step_timeout_s=patience(expected)).client()
            fault = await fault_of(client.reset({}))
            assert type(fault) is kind and expected in str(fault)
            lost = await fault_of(client.step(LS))
            assert type(lost) is SessionLost and str(lost) == str(fault)
            await client.close()
        client = source(server).client()
        assert not (await client.reset({})).done
        await client.close()

    with loopback_server(Behaviour(tuple(incidents))) as server:
        run(play(server))
        assert server.connections == len(REFUSALS) + 1


def test_nobody_there_and_nobody_answering_are_unavailable() -> None:
    async def reset(url: str) -> Fault:
        return await fault_of(WireSource(url, {}, SessionLimits(connect_timeout_s=0.1)).client().reset({}))

    refused = run(reset(f"http://127.0.0.1:{free_port()}"))
    assert isinstance(refused, Unavailable) and "refused" in str(refused).lower()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        timeout = run(reset(f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert isinstance(timeout, Unavailable) and str(timeout).endswith("no connection within 0.1 s")


def test_at_capacity_a_session_is_unavailable_until_one_is_given_back() -> None:
    async def play(server: LoopbackServer) -> None:
        first, second, third = (source(server).client() for _ in range(3))
        await first.reset({})
        fault = await fault_of(second.reset({}))
        assert isinstance(fault, Unavailable) and "(CAPACITY_REACHED)" in str(fault)
        await second.close()
        assert (await first.step(LS)).observation["output"] == "1: ls\n"
        await first.close()
        assert not (await third.reset({})).done  # `close` returns once the server has freed the session
        await third.close()

    with loopback_server(Behaviour(capacity=1)) as server:
        run(play(server))


@pytest.mark.parametrize(
    ("capacity", "wanted", "sessions", "connections"), [(1, 64, 1, 2), (5, 64, 5, 8), (None, 6, 6, 6), (4, 4, 4, 4)]
)
def test_the_capacity_is_learnt_by_opening_sessions_and_all_are_given_back(
    capacity: int | None, wanted: int, sessions: int, connections: int
) -> None:
    with loopback_server(Behaviour(capacity=capacity)) as server:
        assert source(server, sessions_wanted=wanted).describe().sessions == sessions
        server.wait_for("disconnect", connections)
        assert server.connections == connections


def test_a_published_capacity_is_believed_and_a_full_server_leaves_it_unknown() -> None:
    health = json.dumps({"status": "healthy", "max_concurrent_envs": 12})
    with loopback_server(Behaviour(capacity=0, http={"/health": (200, health)})) as server:
        assert source(server, sessions_wanted=64).describe().sessions == 12
        assert server.connections == 0
        server.restart(Behaviour(capacity=0))
        assert source(server, sessions_wanted=64).describe().sessions is None
        assert source(server).describe().sessions is None


def test_a_killed_server_loses_its_sessions_and_a_restarted_one_gives_new_ones() -> None:
    async def play(server: LoopbackServer) -> None:
        client = source(server).client()
        await client.reset({})
        server.kill()
        lost = await fault_of(client.step(LS))
        assert isinstance(lost, SessionLost) and "was lost" in str(lost)
        refused = await fault_of(source(server).client().reset({}))
        assert isinstance(refused, Unavailable)
        server.restart()
        assert str(await fault_of(client.step(LS))) == str(lost)
        await client.close()
        new = source(server).client()
        await new.reset({})
        assert (await new.step(LS)).observation["output"] == "1: ls\n"
        await asyncio.to_thread(server.stop)
        assert "code 1001" in str(await fault_of(new.step(LS)))
        await new.close()

    with loopback_server() as server:
        run(play(server))
        assert (server.connections, server.episodes, server.steps) == (2, 2, 1)


def test_a_server_that_dies_or_hangs_while_it_answers_loses_the_session() -> None:
    async def play(server: LoopbackServer) -> None:
        client = source(server).client()
        await client.reset({})
        assert isinstance(await fault_of(client.step(LS)), SessionLost)
        server.wait_until_ended()
        server.restart()
        hung = source(server, step_timeout_s=0.2).client()
        await hung.reset({})
        server.pause()
        assert "no answer" in str(await fault_of(hung.step(LS)))
        await hung.close()
        server.resume()

    with loopback_server(Behaviour((Incident("die", 1, connections=(0,)),))) as server:
        run(play(server))


def test_a_cancelled_call_costs_the_session_so_that_its_late_answer_is_nobodys() -> None:
    async def play(server: LoopbackServer) -> None:
        client = source(server).client()
        await client.reset({})
        step = asyncio.create_task(client.step(LS))
        await asyncio.to_thread(server.wait_for, "step", 1)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        assert isinstance(await fault_of(client.step(LS)), SessionLost)
        await client.close()

    with loopback_server(Behaviour((Incident("slow", 1, 0.2),))) as server:
        run(play(server))
        assert server.steps == 1


def test_closing_tells_whoever_waits() -> None:
    async def play(server: LoopbackServer) -> None:
        client = source(server).client()
        await client.reset({})
        step = asyncio.create_task(fault_of(client.step(LS)))
        await asyncio.to_thread(server.wait_for, "step", 1)
        await client.close()
        assert isinstance(await step, SessionLost)

    with loopback_server(Behaviour((Incident("hang"),))) as server:
        run(play(server))


def test_odd_but_lawful_payloads_pass() -> None:
    texts = [
        message(reward="NaN"),
        message(reward="true"),
        message(reward="1e999"),
        message(output="\\ud800 \\udfff"),
        message(done="true", metadata="null"),
    ]
    incidents = [Incident("text", at, text) for at, text in enumerate(texts, start=1)]
    incidents.append(Incident("flood", 6, 20_000_000))

    async def play(server: LoopbackServer) -> list[Payload]:
        client = source(server).client()
        await client.reset({})
        payloads = [await client.step({"command": "\ud800 é \x00"}) for _ in range(6)]
        await client.close()
        return payloads

    with loopback_server(Behaviour(tuple(incidents))) as server:
        nan, true, infinite, halves, done, flood = run(play(server))
        assert server.events("step")[0]["data"] == {"command": "\ud800 é \x00"}
    assert (nan.reward, true.reward, infinite.reward) == (None, 1.0, None)
    assert halves.observation == {"output": "\ud800 \udfff"}
    assert done.done
    assert len(flood.observation["output"]) == 20_000_000


def test_an_action_that_no_server_takes_is_refused_and_not_sent(well: LoopbackServer) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}

    async def play() -> None:
        client = source(well).client()
        await client.reset({})
        before = well.steps
        for action in ({"command": "x" * MAX_REQUEST_BYTES}, {"command": float("nan")}, deep):
            assert isinstance(await fault_of(client.step(action)), BadAction)
        assert (await client.step(LS)).observation["output"] == "1: ls\n"
        assert well.steps == before + 1
        await client.close()

    run(play())


def test_headers_open_the_door_and_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    told = {"code": "EXECUTION_ERROR", "message": f"bad Bearer {SECRET}"}
    behaviour = Behaviour((Incident("error", 1, told),), header=("Authorization", f"Bearer {SECRET}"))

    async def play(wire: WireSource) -> None:
        client = wire.client()
        await client.reset({})
        assert str(await fault_of(client.step(LS))) == "bad Bearer ${TOKEN}"
        await client.close()

    async def refused(wire: WireSource) -> Fault:
        return await fault_of(wire.client().reset({}))

    with loopback_server(behaviour) as server:
        wire = source(server, headers={"Authorization": "Bearer ${TOKEN}"})
        assert wire.describe().name == "Counting"
        run(play(wire))
        assert SECRET not in repr(vars(wire)) + repr(vars(wire.client()))

        other = source(server, headers={"Authorization": "Basic ${TOKEN}"})
        fault = run(refused(other))
        assert isinstance(fault, Unavailable) and "HTTP 401" in str(fault) and SECRET not in str(fault)
        with pytest.raises(EchoError, match="HTTP 401") as error:
            other.describe()
        assert error.value.exit_code == 1 and SECRET not in f"{error.value.message}{error.value.tip}"


class Repeating:
    """A world that repeats the header that it was sent, in every kind of place."""

    def reset(self, data: Any) -> dict[str, Any]:
        return observation(f"{SECRET}{SECRET}", None, False) | {"metadata": {SECRET: ['"', SECRET, 0.1]}}

    def step(self, action: Any) -> dict[str, Any]:
        return observation("stage", 0.1, True)


@pytest.mark.parametrize("started", [False, True])
def test_a_server_that_repeats_what_it_was_given_puts_no_secret_into_an_observation(
    started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    monkeypatch.setenv("STAGE", "stage")  # too short to be told from a word

    async def play(wire: WireSource) -> list[Payload]:
        client = wire.client()
        payloads = [await client.reset({}), await client.step(LS)]
        await client.close()
        return payloads

    schemas = {"action": {"title": SECRET}, "observation": {}, "state": {}}
    with loopback_server(Behaviour(world=Repeating, http={"/schema": (200, json.dumps(schemas))})) as server:
        headers = {"X-Stage": "${STAGE}"} if started else {"Authorization": "Bearer ${TOKEN}", "X-Stage": "${STAGE}"}
        wire = source(server, headers=headers, known={SECRET: "${TOKEN}"} if started else {})
        assert wire.describe().action_schema == {"title": "${TOKEN}"}
        first, second = run(play(wire))
    assert first.observation == {"output": "${TOKEN}${TOKEN}"} and first.metadata == {
        "${TOKEN}": ['"', "${TOKEN}", 0.1]
    }
    assert second.observation == {"output": "stage"} and second.reward == 0.1


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Authorization": "Bearer ${MISSING}"}, "the environment variable MISSING is not set"),
        ({"Authorization": "${TOKEN}${MISSING}"}, "the environment variable MISSING is not set"),
        ({"X-Key": "${TORN}"}, "X-Key contains a character that a header cannot carry"),
        ({"X Key": "${TOKEN}"}, "'X Key' is not a header name"),
    ],
)
def test_a_header_that_cannot_be_sent_is_named_without_its_value(
    headers: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    monkeypatch.setenv("TORN", f"{SECRET}\n")
    monkeypatch.delenv("MISSING", raising=False)
    with pytest.raises(EchoError) as error:
        WireSource("http://127.0.0.1:1", headers, SessionLimits())
    assert said in error.value.message and SECRET not in f"{error.value.message}{error.value.tip}"


@pytest.mark.parametrize(
    ("url", "goes"),
    [
        *(("http://127.0.0.1:8", True), ("ws://[::1]:8", True), ("http://localhost", True), ("https://host", True)),
        *(("http://host", False), ("ws://10.0.0.1", False), ("http://127.0.0.1.host", False)),
        *(("http://host.localhost", False), ("http://0.0.0.0:8", False)),
    ],
)
def test_a_variable_goes_without_tls_to_this_machine_alone(
    url: str, goes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    headers = {"Authorization": "Bearer ${TOKEN}"}
    assert wire_address(url, headers, plain_http=True).headers == {"Authorization": f"Bearer {SECRET}"}
    if goes:
        assert wire_address(url, headers).headers == {"Authorization": f"Bearer {SECRET}"}
        return
    with pytest.raises(EchoError, match=r"^sampler.headers would send \$\{TOKEN\} to ") as error:
        wire_address(url, headers, "sampler")
    assert "--allow-plain-http" in str(error.value.tip) and SECRET not in f"{error.value.message}{error.value.tip}"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "http://",
        "http://host:99999",
        "http://host:x",
        "http://[::1",
        f"http://user:{SECRET}@host",
        "http://host/?token=1",
        "http://ho st",
        "http://höst",
        f"http://{'a' * 64}.com",
    ],
)
def test_a_url_that_is_no_base_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(EchoError) as error:
        WireSource(url, {}, SessionLimits())
    assert error.value.message.startswith("environment.url") and SECRET not in error.value.message


def test_no_redirect_is_followed_and_no_header_reaches_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    with loopback_server() as other:
        led = {path: (307, f"{other.url}{path}?secret=1") for path in ("/schema", "/metadata", "/health", "/ws")}
        with loopback_server(Behaviour(http=led)) as server:
            wire = source(server, headers={"X-Key": "${TOKEN}"})
            with pytest.raises(EchoError) as error:
                wire.describe()
            fault = run(fault_of(wire.client().reset({})))
        assert error.value.message == f"{server.url} answers HTTP 307, a redirect to {other.url}"
        assert isinstance(fault, Unavailable) and "HTTP 307" in str(fault)
        assert other.events("http") == []


def test_describing_keeps_the_path_and_needs_only_the_schema() -> None:
    absent = {"/metadata": (500, "Internal Server Error"), "/health": (404, "not found")}
    with loopback_server(Behaviour(prefix="/team/env", http=absent)) as server:
        description = WireSource(f"{server.url.replace('http', 'ws')}/", {}, SessionLimits()).describe()
        assert (description.name, description.sessions) == ("unnamed", None)
        assert description.action_schema["required"] == ["command"]
        assert description.observation_schema["properties"] == {"output": {"type": "string"}}
        run(_play_one(source(server)))


async def _play_one(wire: WireSource) -> None:
    client = wire.client()
    await client.reset({})
    await client.step(LS)
    await client.close()


@pytest.mark.parametrize(
    ("answer", "said", "exit_code"),
    [
        ((404, "nothing here"), "does not speak OpenEnv", 2),
        ((200, "<html>"), "does not speak OpenEnv", 2),
        ((200, "[1]"), "does not speak OpenEnv", 2),
        ((200, '{"action": {}}'), "does not speak OpenEnv", 2),
        ((503, "starting"), "answers HTTP 503", 1),
    ],
)
def test_a_server_without_a_schema_does_not_speak_openenv(answer: tuple[int, str], said: str, exit_code: int) -> None:
    with loopback_server(Behaviour(http={"/schema": answer})) as server, pytest.raises(EchoError) as error:
        source(server).describe()
    assert said in error.value.message and error.value.exit_code == exit_code and error.value.tip


@pytest.mark.parametrize(
    ("answer", "said", "exit_code"), [(b"220 mail.example\r\n", "does not speak OpenEnv", 2), (b"", "cannot reach", 1)]
)
def test_what_does_not_speak_http_or_breaks_off_is_told_apart(answer: bytes, said: str, exit_code: int) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def mumble() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=mumble)
        thread.start()
        with pytest.raises(EchoError, match=said) as error:
            WireSource(f"http://127.0.0.1:{listening.getsockname()[1]}", {}, SessionLimits()).describe()
        thread.join()
    assert error.value.exit_code == exit_code


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{"])
def test_a_server_that_never_ends_its_answer_is_given_up(head: bytes) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        over = threading.Event()

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(head)
                while not over.wait(0.05):
                    connection.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with pytest.raises(EchoError, match=f"cannot reach {url}: timed out") as error:
                WireSource(url, {}, SessionLimits(connect_timeout_s=0.3)).describe()
        finally:
            over.set()
            thread.join()
    assert error.value.exit_code == 1


def test_a_server_that_is_not_there_cannot_be_reached() -> None:
    with pytest.raises(EchoError, match=r"cannot reach http://127\.0\.0\.1:\d+: Connection refused") as error:
        WireSource(f"http://127.0.0.1:{free_port()}", {}, SessionLimits()).describe()
    assert error.value.exit_code == 1 and error.value.tip


def test_a_proxy_does_not_stand_before_this_machine(well: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ws_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert source(well).describe().name == "Counting"
    run(_play_one(source(well)))


def test_a_source_has_ended_when_its_watcher_says_so(well: LoopbackServer) -> None:
    assert source(well).ended() is None
    assert source(well, ended=lambda: "exit code 3").ended() == "exit code 3"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openenv") is None, reason="openenv is an extra")
def test_a_real_openenv_server(openenv_server: OpenEnvServer) -> None:
    wire = WireSource(f"{openenv_server.url}/few", {}, SessionLimits(), sessions_wanted=16)
    description = wire.describe()
    assert (description.name, description.sessions) == ("Talk", 3)
    assert description.action_schema["required"] == ["text"]

    async def play() -> None:
        client = wire.client()
        opening = await client.reset({"seed": 5, "episode_id": "e1", "unknown": True})
        assert (opening.observation["text"], opening.reward) == ("hello  5", None)
        assert (await client.step({"text": "a"})).reward == 0.25
        state = await client.state()
        assert state["step_count"] == 1 and state["episode_id"]
        refused = await fault_of(client.step({"txt": "a"}))
        assert isinstance(refused, BadAction) and str(refused).startswith("text: Field required; txt: Extra inputs")
        raised = await fault_of(client.step({"text": "raise"}))
        assert isinstance(raised, EnvironmentFault) and str(raised) == "it broke \\x1b[31m on line 2"
        assert (await client.step({"text": "nan"})).reward is None
        last = await client.step({"text": "true"})
        assert (last.observation["text"], last.reward, last.done) == ("a reward of true", 1.0, True)
        held = [wire.client() for _ in range(2)]
        for other in held:
            await other.reset({})
        full = await fault_of(wire.client().reset({}))
        assert isinstance(full, Unavailable) and "3/3 sessions active" in str(full)
        for _ in range(5):  # a closed session is freed at once
            await client.close()
            client = wire.client()
            await client.reset({})
        for other in (client, *held):
            await other.close()

    asyncio.run(play())
