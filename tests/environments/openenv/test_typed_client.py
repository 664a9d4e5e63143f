"""Typed clients of OpenEnv: their payloads, four kinds of error, and episodes that are never joined."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from loopback import OpenEnvServer
from openenv.core.client_types import StepResult
from openenv.core.env_client import EnvClient
from openenv_samples import AnyTalkClient, Say, TalkClient

from echo_cli.environments.faults import BadAction, EnvironmentFault, SessionLost, Unavailable
from echo_cli.environments.openenv.session import SessionLimits
from echo_cli.environments.openenv.typed_client import TypedSource
from echo_cli.environments.protocol import Client, Description, Payload
from echo_cli.errors import EchoError

pytestmark = pytest.mark.timeout(60)


class Base:
    """The description of a server, without its typed client."""

    def describe(self) -> Description:
        return Description("talk", {"title": "Say"}, {})

    def client(self) -> Client:
        raise AssertionError("the typed client plays")

    def ended(self) -> str | None:
        return "exit code 3"


def _source(
    url: str, client: str = "openenv_samples:TalkClient", limits: SessionLimits | None = None, **settings: Any
) -> TypedSource:
    return TypedSource(client, url, Base(), limits or SessionLimits(), **settings)


def test_an_episode_in_payloads_and_faults(openenv_server: OpenEnvServer) -> None:
    async def play() -> None:
        client = _source(f"{openenv_server.url}/talk").client()
        first = await client.reset({"seed": 1, "topic": "ice"})
        assert first == Payload(
            {"text": "hello ice 1", "nested": {}, "metadata": {"topic": "ice"}}, metadata={"topic": "ice"}
        )
        said = await client.step({"text": "äb", "times": 2})
        assert said == Payload({"text": "äbäb", "nested": {"count": [1, None, 1e-7]}, "metadata": {}}, reward=0.25)
        with pytest.raises(BadAction, match=r"^text: Field required; txt: Extra inputs are not permitted$"):
            await client.step({"txt": "x"})
        with pytest.raises(EnvironmentFault, match=r"^it broke \\x1b\[31m on line 2$"):
            await client.step({"text": "raise"})
        assert (await client.step({"text": "nan"})).reward is None
        assert await client.step({"text": "true"}) == Payload(
            {"text": "a reward of true", "nested": {}, "metadata": {}}, reward=1.0, done=True
        )
        await client.close()
        await client.close()
        with pytest.raises(SessionLost, match="closed"):
            await client.step({"text": "x"})

    asyncio.run(play())


def test_the_server_describes_itself_without_the_client(openenv_server: OpenEnvServer) -> None:
    source = _source(f"{openenv_server.url}/talk")
    assert source.describe() == Description("talk", {"title": "Say"}, {})
    assert source.ended() == "exit code 3"


def test_a_restarted_server_loses_the_session_where_the_bare_client_joins_two_episodes(
    openenv_server: OpenEnvServer,
) -> None:
    url = f"{openenv_server.url}/talk"

    async def play() -> None:
        bare, guarded = TalkClient(base_url=url), _source(url).client()
        await bare.reset(topic="ice")
        await guarded.reset({"topic": "ice"})
        for _ in range(2):
            assert (await bare.step(Say(text="x"))).observation.text == "x"
            await guarded.step({"text": "x"})

        await asyncio.get_running_loop().run_in_executor(None, openenv_server.restart)

        joined = await bare.step(Say(text="x"))
        assert joined.observation.nested["count"][0] == 1  # the first step of an environment that was never reset
        with pytest.raises(SessionLost, match="it reconnected to an environment in another episode"):
            await guarded.step({"text": "x"})
        with pytest.raises(SessionLost, match="it reconnected to an environment in another episode"):
            await guarded.step({"text": "x"})
        await bare.close()
        await guarded.close()

    asyncio.run(play())


def test_an_error_of_another_environment_loses_the_session_too(openenv_server: OpenEnvServer) -> None:
    async def play() -> None:
        client = _source(f"{openenv_server.url}/talk").client()
        await client.reset({})
        await asyncio.get_running_loop().run_in_executor(None, openenv_server.restart)
        with pytest.raises(SessionLost, match="it reconnected to an environment in another episode"):
            await client.step({"text": "raise"})
        await client.close()

    asyncio.run(play())


def test_a_step_that_takes_too_long_loses_the_session(openenv_server: OpenEnvServer) -> None:
    async def play() -> None:
        client = _source(f"{openenv_server.url}/talk", limits=SessionLimits(step_timeout_s=0.3)).client()
        await client.reset({})
        with pytest.raises(SessionLost, match=r"no answer within 0\.3 s"):
            await client.step({"text": "sleep"})
        with pytest.raises(SessionLost, match=r"no answer within 0\.3 s"):
            await client.step({"text": "x"})
        await client.close()

    asyncio.run(play())


def test_an_environment_that_names_no_episode_is_refused(openenv_server: OpenEnvServer) -> None:
    async def play() -> None:
        client = _source(f"{openenv_server.url}/nameless").client()
        with pytest.raises(EchoError, match="its state has no episode_id; without an episode_id, a silent") as error:
            await client.reset({})
        assert error.value.exit_code == 1 and "omit environment.client" in str(error.value.tip)
        await client.close()

    asyncio.run(play())


def test_no_session_is_unavailable(openenv_server: OpenEnvServer) -> None:
    async def play() -> None:
        nobody = _source("http://127.0.0.1:9").client()
        with pytest.raises(Unavailable, match="Failed to connect"):
            await nobody.reset({})
        await nobody.close()

        source = _source(f"{openenv_server.url}/later")  # a server with one session
        first, second = source.client(), source.client()
        with pytest.raises(EchoError, match="no episode_id"):
            await first.reset({})
        with pytest.raises(Unavailable, match="CAPACITY_REACHED"):
            await second.reset({})
        await first.close()
        await second.close()

    asyncio.run(play())


def test_mcp_tools_through_the_client_of_openenv(openenv_server: OpenEnvServer) -> None:
    async def play() -> None:
        client = _source(f"{openenv_server.url}/tools", "openenv.core.mcp_client:MCPToolClient").client()
        await client.reset({"seed": 5})
        answer = await client.step({"type": "call_tool", "tool_name": "add", "arguments": {"a": 2, "b": 40}})
        assert answer.observation["result"]["content"][0]["text"] == "42"
        with pytest.raises(BadAction, match="tool_name: Field required"):
            await client.step({"type": "call_tool"})
        await client.close()

    asyncio.run(play())


@dataclasses.dataclass
class PlainSay:
    text: str
    times: int = 1


@dataclasses.dataclass
class PlainHeard:
    text: str
    reward: float | None = None
    score: float = float("inf")


class PlainClient(EnvClient[PlainSay, PlainHeard, dict[str, Any]]):
    """A client with dataclasses and plain mappings, and fewer arguments than OpenEnv's own."""

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url=base_url)

    def _step_payload(self, action: PlainSay) -> dict[str, Any]:
        return dataclasses.asdict(action)

    def _parse_result(self, payload: Mapping[str, Any]) -> StepResult[PlainHeard]:
        heard = PlainHeard(payload["observation"]["text"], payload["reward"])
        return StepResult(observation=heard, reward=payload["reward"], done=payload["done"])

    def _parse_state(self, payload: dict[str, Any]) -> dict[str, Any]:
        return payload


class GarbledClient(PlainClient):
    def _parse_result(self, payload: Mapping[str, Any]) -> StepResult[PlainHeard]:
        return StepResult(observation=payload["observation"], reward="much")  # type: ignore[arg-type]


class LateClient(TalkClient):
    def _parse_result(self, payload: dict[str, Any]) -> Any:
        raise KeyError("score")


def test_clients_of_dataclasses(openenv_server: OpenEnvServer) -> None:
    async def play() -> None:
        client = _source(f"{openenv_server.url}/talk", f"{__name__}:PlainClient").client()
        assert (await client.reset({})).observation == {"text": "hello  None", "score": None}
        assert await client.step({"text": "ab"}) == Payload({"text": "ab", "score": None}, reward=0.25)
        with pytest.raises(BadAction, match="unexpected keyword argument 'txt'"):
            await client.step({"txt": "ab"})
        await client.close()

    asyncio.run(play())


@pytest.mark.parametrize(
    ("name", "message"), [("GarbledClient", "the reward is str"), ("LateClient", "KeyError: 'score'")]
)
def test_what_a_client_cannot_read_loses_the_session(openenv_server: OpenEnvServer, name: str, message: str) -> None:
    async def play() -> None:
        client = _source(f"{openenv_server.url}/talk", f"{__name__}:{name}").client()
        with pytest.raises(SessionLost, match=message):
            await client.reset({})
        await client.close()

    asyncio.run(play())


class Untyped(AnyTalkClient[Any]):
    pass


@pytest.mark.parametrize(
    ("name", "headers", "message"),
    [
        (f"{__name__}:Untyped", {}, "does not declare the type of its actions"),
        (f"{__name__}:PlainClient", {"Authorization": "Bearer s3cret"}, "does not accept headers"),
        ("openenv_samples:Talk", {}, "is not an OpenEnv EnvClient"),
        ("openenv.core.env_client:EnvClient", {}, "is abstract: it lacks _parse_result"),
    ],
)
def test_what_is_no_client_is_refused_at_once(name: str, headers: dict[str, str], message: str) -> None:
    with pytest.raises(EchoError, match=message) as error:
        _source("http://127.0.0.1:9", name, headers=headers)
    assert "s3cret" not in f"{error.value.message}{error.value.tip}" and error.value.exit_code == 2


def test_no_message_shows_a_secret(openenv_server: OpenEnvServer) -> None:
    async def play() -> None:
        client = _source(
            f"{openenv_server.url}/talk",
            f"{__name__}:TellingClient",
            headers={"X-Token": "s3cret"},
            secrets={"s3cret": "${TOKEN}"},
        ).client()
        with pytest.raises(SessionLost, match=r"KeyError: '\$\{TOKEN\}'"):
            await client.reset({})
        await client.close()

    asyncio.run(play())


class TellingClient(TalkClient):
    def _parse_result(self, payload: dict[str, Any]) -> Any:
        raise KeyError((self._headers or {})["X-Token"])
