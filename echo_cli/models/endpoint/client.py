"""Client of an inference endpoint: requests, token sampling through /v1/completions by ids, and checks of the answers.

Requests and answers are the same for vLLM and SGLang, as of their 2026 sources: a prompt of ids, `logprobs: 0` for the
chosen token only, `return_token_ids`. Every setting that affects the distribution is sent, because a server takes
missing settings from the model's generation_config.json. Both servers return a stop token as the last id.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from echo_cli.concurrency import EventLoop
from echo_cli.environments.openenv.address import wire_address
from echo_cli.errors import EchoError, missing_package
from echo_cli.models.sampler import Sample
from echo_cli.seeds import derive_seed

T = TypeVar("T")

_OVERLOADED = {429, 502, 503, 504}
_RETRY_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_NEWER = "use a newer version of vLLM or SGLang: see docs/endpoint.md"


class Endpoint:
    """Requests to the server at `url`, which may end in /v1.

    Args:
        headers: values by name; `${NAME}` in a value is replaced by the environment variable.
        concurrency: maximum number of concurrent requests; further requests wait.
        timeout_s: maximum wait for a response, seconds. A request that is rejected for load or cannot connect is
            retried for the same time, at most 60 s.
        plain_http: as in `wire_address`.

    Raises:
        EchoError: as in `wire_address`, or httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        concurrency: int,
        timeout_s: float,
        plain_http: bool = False,
    ) -> None:
        httpx = _httpx()
        address = wire_address(url, headers, "sampler", plain_http=plain_http)
        self.url = address.http.removesuffix("/v1")
        self.line = address.line
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            headers=dict(address.headers),
            timeout=httpx.Timeout(timeout_s, pool=None),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            trust_env=not address.loopback,  # no proxy for this machine itself
        )
        self._open = ExitStack()
        self._loop: EventLoop | None = None

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `coroutine` in the background; return a future of its result. Cancelling it ends its requests."""
        if self._loop is None:  # on a daemon thread: a failing process does not wait for its pending requests
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
        """Send `body` as JSON to `path` and return the response text.

        Args:
            missing_ok: whether to accept a 404 response.

        Raises:
            EchoError: the request is refused, or there is no response in time (exit code 1).
        """
        httpx = _httpx()
        pause, deadline = _FIRST_PAUSE_S, None
        while True:
            try:
                response = await self._client.post(self.url + path, json=body)
            except httpx.ReadTimeout:
                raise EchoError(
                    f"the endpoint at {self.url} did not answer {path} within {self._timeout_s:g} s",
                    "check its log or raise sampler.timeout_s, then continue with --resume",
                    exit_code=1,
                ) from None
            except httpx.RequestError as error:
                problem = self.line(f"{type(error).__name__}: {error}")
            else:
                if response.is_success or (missing_ok and response.status_code == 404):
                    return str(response.text)
                problem = self.line(f"HTTP {response.status_code}: {_reason(response.text)}")
                if response.status_code not in _OVERLOADED:
                    tip = "check its log; see docs/endpoint.md for how to start it"
                    raise EchoError(f"the endpoint at {self.url} refuses {path}: {problem}", tip, exit_code=1)
            now = time.monotonic()
            deadline = deadline or now + min(_RETRY_S, self._timeout_s)
            if now + pause > deadline:
                tip = "start it or check its log, then continue with --resume"
                raise EchoError(f"the endpoint at {self.url} is not available: {problem}", tip, exit_code=1)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


@dataclass(frozen=True)
class Completions:
    """A model at an endpoint with its sampling settings.

    `version` is the weights' name at the endpoint, checked if the endpoint reports one. With `ignore_eos`, only
    `stop_ids` end a sample; for vLLM only, because SGLang would also ignore `stop_ids`.
    """

    endpoint: Endpoint
    model: str
    version: str
    temperature: float
    stop_ids: frozenset[int]
    vocab_size: int
    ignore_eos: bool

    async def sample(self, prompt_ids: Sequence[int], max_tokens: int, seed: int) -> Sample:
        """Sample token ids after `prompt_ids`, up to and including a stop token, or `max_tokens`, with their logprobs.

        Raises:
            EchoError: the endpoint is not available, or its answer is not an exact record of a sample (exit code 1).
        """
        token_ids: list[int] = []
        logprobs: list[float] = []
        while True:
            left = max_tokens - len(token_ids)
            body = self._body([*prompt_ids, *token_ids], left, derive_seed(seed, "request", len(token_ids)))
            choice = self._choice(await self.endpoint.post("/v1/completions", body))
            ids, values = self._ids(choice, left), self._logprobs(choice)
            if len(ids) != len(values):
                tip = "training needs one logprob per token: check its log"
                self._refuse(f"returns {len(ids)} token ids and {len(values)} logprobs", tip)
            token_ids += ids
            logprobs += values
            if ids[-1] in self.stop_ids or len(ids) == left:
                return token_ids, logprobs
            # The server stopped at a token that does not end an action, such as a second end-of-text token: continue.
            self._check_stopped_early(choice, ids[-1])

    def _body(self, prompt_ids: Sequence[int], max_tokens: int, seed: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": list(prompt_ids),
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": 1,
            "top_k": -1,
            "min_p": 0,
            "repetition_penalty": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "seed": seed >> 32,  # 31 bits, which every server accepts
            "stop_token_ids": sorted(self.stop_ids),
            "ignore_eos": self.ignore_eos,
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _choice(self, text: str) -> dict[str, Any]:
        try:
            answer = json.loads(text)
            choice, metadata = answer["choices"][0], answer.get("metadata")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            choice = metadata = None
        if not isinstance(choice, dict):
            self._refuse(f"does not answer with a completion: {text}", "set sampler.url to a vLLM or SGLang server")
        version = metadata.get("weight_version", self.version) if isinstance(metadata, dict) else self.version
        if version != self.version:
            self._refuse(
                f"sampled with the weights '{version}', not with the policy's: the rollout would be off-policy",
                "use the endpoint for one run at a time; continue with --resume",
            )
        return choice

    def _ids(self, choice: dict[str, Any], most: int) -> list[int]:
        ids = choice.get("token_ids")
        if not isinstance(ids, list):
            self._refuse("returns no token ids, and text does not determine the sampled tokens", _NEWER)
        if not 1 <= len(ids) <= most:
            self._refuse(f"returns {len(ids)} tokens instead of 1 to {most}", "check its log")
        if not all(isinstance(token, int) and 0 <= token < self.vocab_size for token in ids):
            self._refuse(
                f"returns ids outside the policy's {self.vocab_size} tokens", "serve model.path at the endpoint"
            )
        if not self.stop_ids.isdisjoint(ids[:-1]):
            self._refuse("samples past a stop token", "the server must support stop_token_ids: " + _NEWER)
        return ids

    def _logprobs(self, choice: dict[str, Any]) -> list[float]:
        logprobs = choice.get("logprobs")
        values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(values, list):
            self._refuse("returns no logprobs of the sampled tokens", _NEWER)
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            self._refuse("returns logprobs that are not finite numbers", "check its log")
        return [float(value) for value in values]

    def _check_stopped_early(self, choice: dict[str, Any], last: int) -> None:
        """Raise an EchoError unless the endpoint reports that it stopped at the returned token `last`."""
        reason = choice.get("finish_reason")
        if reason == "length":
            tip = "start it with a larger --max-model-len (vLLM) or --context-length (SGLang)"
            self._refuse("cuts an action short: an episode does not fit its context", tip)
        if reason != "stop":
            self._refuse(f"ends an action with finish_reason {json.dumps(reason)}", "check its log")
        if choice.get("stop_reason", choice.get("matched_stop")) != last:  # vLLM's key, SGLang's key
            self._refuse(
                "stops without returning the token it stopped at, which is part of the action",
                "configure it to return stop tokens and to use no stop strings of its own",
            )

    def _refuse(self, what: str, tip: str) -> NoReturn:
        line = self.endpoint.line(f"the endpoint at {self.endpoint.url} {what}")
        raise EchoError(line, tip, exit_code=1)


def _reason(text: str) -> str:
    """Return the message of an error response; vLLM, SGLang and FastAPI use different keys."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for key in ("error", "message", "detail"):
        if isinstance(answer, dict) and key in answer:
            answer = answer[key]
    return answer if isinstance(answer, str) else json.dumps(answer)


def _httpx() -> ModuleType:
    """Import `httpx`, which the `hf` extra installs, only when it is needed."""
    try:
        import httpx
    except ModuleNotFoundError:
        raise missing_package("sampler.kind: openai", "httpx", "hf") from None
    return httpx
