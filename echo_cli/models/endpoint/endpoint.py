"""An endpoint of vLLM or SGLang over HTTP: requests wait their turn, are tried again, and fail in one line."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from types import ModuleType
from typing import Any, TypeVar

from echo_cli.environments.openenv.address import wire_address
from echo_cli.errors import EchoError
from echo_cli.event_loop import EventLoop

T = TypeVar("T")

_OVERLOADED = {429, 502, 503, 504}
_RETRY_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


class Endpoint:
    """Requests to the server at `url`, which may end in /v1.

    Args:
        headers: names to values, in which `${NAME}` is filled from the environment variables.
        concurrency: requests under way at once; more wait for their turn.
        timeout_s: seconds for an answer. One that is refused for load, or finds no connection, is tried again for as
            long, at most a minute.

    Raises:
        EchoError: the URL is none, a variable is not set, or httpx is not installed.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, concurrency: int, timeout_s: float) -> None:
        httpx = _httpx()
        address = wire_address(url, headers, "sampler")
        self.url = address.http.removesuffix("/v1")
        self.line = address.line
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            headers=dict(address.headers),
            timeout=httpx.Timeout(timeout_s, pool=None),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            trust_env=not address.loopback,  # no proxy stands before this machine
        )
        self._open = ExitStack()
        self._loop: EventLoop | None = None

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `coroutine` beside the caller; the future has its result. Cancelling it ends its requests."""
        if self._loop is None:  # a daemon's: a process that fails does not wait for what it has asked for
            self._loop = self._open.enter_context(EventLoop("endpoint"))
            self._open.callback(lambda: self.run(self._client.aclose()))
        return self._loop.start(coroutine)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` and wait for its result."""
        return self.start(coroutine).result()

    def close(self) -> None:
        """End all requests and connections."""
        self._open.close()

    async def post(self, path: str, body: Mapping[str, Any], *, missing_ok: bool = False) -> str:
        """The text that answers `body`, sent as JSON to `path`.

        Args:
            missing_ok: an answer of 404 is one like any other.

        Raises:
            EchoError: the request is refused, or there is no answer in time (exit code 1).
        """
        httpx = _httpx()
        pause, deadline = _FIRST_PAUSE_S, None
        while True:
            try:
                response = await self._client.post(self.url + path, json=body)
            except httpx.ReadTimeout:
                raise EchoError(
                    f"the endpoint at {self.url} did not answer {path} within {self._timeout_s:g} s",
                    "look at its log, raise sampler.timeout_s, then continue with --resume",
                    exit_code=1,
                ) from None
            except httpx.RequestError as error:
                problem = self.line(f"{type(error).__name__}: {error}")
            else:
                if response.is_success or (missing_ok and response.status_code == 404):
                    return str(response.text)
                problem = self.line(f"HTTP {response.status_code}: {_reason(response.text)}")
                if response.status_code not in _OVERLOADED:
                    tip = "look at its log, and at docs/endpoint.md for how it is started"
                    raise EchoError(f"the endpoint at {self.url} refuses {path}: {problem}", tip, exit_code=1)
            now = time.monotonic()
            deadline = deadline or now + min(_RETRY_S, self._timeout_s)
            if now + pause > deadline:
                tip = "start it, or look at its log, then continue with --resume"
                raise EchoError(f"the endpoint at {self.url} is not available: {problem}", tip, exit_code=1)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _reason(text: str) -> str:
    """What a refusal says: vLLM, SGLang and FastAPI each have a key for it."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for key in ("error", "message", "detail"):
        if isinstance(answer, dict) and key in answer:
            answer = answer[key]
    return answer if isinstance(answer, str) else json.dumps(answer)


def _httpx() -> ModuleType:
    """The `httpx` package, an extra that is imported only where it is needed."""
    try:
        import httpx
    except ModuleNotFoundError:
        raise EchoError("sampler.kind: openai needs httpx, which is not installed", "pip install 'echo-cli[hf]'") from (
            None
        )
    return httpx
