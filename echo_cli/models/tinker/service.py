"""Requests to a Tinker service: its SDK, the address and key, waiting, retries, and what a failure means.

The SDK repeats every request for minutes, also those that change the weights: a service that lost its answer would
then add a gradient twice. Here each request is sent once, and only those without effect are repeated (`call`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any, TypeVar

from echo_cli.concurrency import WorkerThread
from echo_cli.config.backend import BackendConfig
from echo_cli.environments.openenv.address import wire_address
from echo_cli.errors import EchoError, first_line, missing_package

T = TypeVar("T")

_SDK = "tinker"
_SDK_SERIES = "0.24."
"""Series of the SDK whose wire format is JSON, and whose clients are as used here."""
_NO_KEY = "tml-none"
"""Key for services that ask for none; the SDK refuses to start without one."""
_KEY_STARTS = ("tml-", "eyJ")
"""Beginnings of the keys that the SDK takes."""

_WATCH_S = 2.0
"""Time between two looks at whether the service still answers, seconds."""
_LOST_S = 20.0
"""Time after which a service that does not answer is lost, seconds."""
_RETRY_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_OVERLOADED = {408, 425, 429, 500, 502, 503, 504}


class ServiceLost(EchoError):
    """The service or its session is gone: nothing of the policy can be saved any more."""


@dataclass
class Clock:
    """Time that this process has waited for the service."""

    seconds: float = 0.0


class Service:
    """A session at the service of `backend`.

    Raises:
        EchoError: the SDK is missing or another version, the URL or the key is invalid, or the service does not answer
            or does not speak the SDK's protocol.
    """

    def __init__(self, backend: BackendConfig) -> None:
        assert backend.url is not None
        self.sdk = _load_sdk()
        self.sdk_version = version(_SDK)
        name = backend.api_key_env
        headers = {} if name is None else {"X-API-Key": f"${{{name}}}"}
        plain_http = backend.grants.plain_http
        address = wire_address(
            backend.url, headers, "backend", headers_key="backend.api_key_env", plain_http=plain_http
        )
        key = dict(address.headers).get("X-API-Key", _NO_KEY)
        if not key.startswith(_KEY_STARTS):
            raise EchoError(
                f"backend.api_key_env: the SDK takes no key that begins otherwise than {' or '.join(_KEY_STARTS)}",
                f"check the variable {name}",
            )
        self.url, self._line, self._timeout_s = address.http, address.line, backend.timeout_s
        self.clock, self.is_lost = Clock(), False
        self._watch = _watcher(self.url, loopback=address.loopback)
        self._await_start()
        # The SDK would send the variable TINKER_API_KEY to any address, whatever the config names.
        only_key = {"X-API-Key": key}
        self._client = self.call(
            "open a session",
            lambda: _open(self.sdk, base_url=self.url, api_key=key, default_headers=only_key, max_retries=0),
        )

    def _await_start(self) -> None:
        """Wait for a service that is just starting.

        Raises:
            EchoError: it does not answer in time (exit code 1).
        """
        deadline = time.monotonic() + min(_LOST_S, self._timeout_s)
        while not self._watch():
            if time.monotonic() > deadline:
                message = f"the Tinker service at {self.url} does not answer"
                raise ServiceLost(message, "start it, or correct backend.url: see docs/scale.md", exit_code=1)
            time.sleep(_FIRST_PAUSE_S)

    def models(self) -> dict[str, int | None]:
        """Return the names of the service's base models, and their context lengths in tokens, if it tells them."""
        found = self.call("list its models", lambda: self._client.get_server_capabilities())
        return {model.model_name: model.max_context_length for model in found.supported_models if model.model_name}

    def new_adapter(self, base_model: str, rank: int, seed: int) -> Any:
        """Create a LoRA adapter on every linear layer but the head, and return the SDK's training client."""
        where = {"train_attn": True, "train_mlp": True, "train_unembed": False}
        return self.call(
            "create an adapter",
            lambda: self._client.create_lora_training_client(base_model=base_model, rank=rank, seed=seed, **where),
        )

    def unload(self, adapter: Any) -> None:
        """Remove an adapter from the service's memory, and wait until it is gone."""
        holder, types = adapter.holder, self.sdk.types

        pool = self.importable("tinker.lib.client_connection_pool_type").ClientConnectionPoolType.TRAIN
        future = self.importable("tinker.lib.api_future_impl")._APIFuture

        async def unload() -> Any:
            with holder.aclient(pool) as client:
                return await client.models.unload(request=types.UnloadModelRequest(model_id=adapter.model_id))

        def run() -> Any:
            asked = holder.run_coroutine_threadsafe(unload()).result()
            started = time.time()
            return future(types.UnloadModelResponse, holder, asked, started, "UnloadModel").result()

        self.call("unload an adapter", run)

    def archive_url(self, path: str) -> str:
        """Return the URL of the archive of a sampler's weights."""
        run, _, checkpoint = path.removeprefix("tinker://").partition("/")
        rest = self.call("find an archive", self._client.create_rest_client)
        found = self.call("find an archive", lambda: rest.get_checkpoint_archive_url(run, checkpoint).result())
        return str(found.url)

    def importable(self, name: str) -> Any:
        """Return a module of the SDK that the package does not import by itself."""
        return import_module(name)

    def close(self) -> None:
        """End the session's heartbeat, so that the service can end the session."""
        self._client.holder.close()

    def accepts(self, what: str, request: Callable[[], object]) -> bool:
        """Return whether the service takes a request as valid.

        Raises:
            ServiceLost: as in `call`, for any other failure.
        """
        refusals = self.sdk.BadRequestError, self.sdk.UnprocessableEntityError
        try:
            self.call(what, request)
        except ServiceLost as error:
            if isinstance(error.__cause__, refusals):
                self.is_lost = False
                return False
            raise
        return True

    def call(self, what: str, request: Callable[[], T], *, repeats: bool = True) -> T:
        """Send a request and wait for its result.

        Args:
            what: the request for a message, a verb first.
            request: sends and waits; runs in a thread, which is left behind if the service is lost.
            repeats: whether the request may be sent again after a failure to connect or an overload.

        Raises:
            ServiceLost: the service does not answer, or refuses the request (exit code 1).
        """
        started, pause = time.monotonic(), _FIRST_PAUSE_S
        try:
            while True:
                try:
                    return self._result(what, WorkerThread("tinker").start(request))
                except ServiceLost:
                    raise
                except Exception as error:
                    waited = time.monotonic() - started
                    if not (repeats and self.is_passing(error) and waited + pause < min(_RETRY_S, self._timeout_s)):
                        raise self.failure(what, error) from error
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        finally:
            self.clock.seconds += time.monotonic() - started

    def wait(self, what: str, futures: Sequence[Future[Any]], count: int, grace_s: float) -> None:
        """Wait until `count` of the futures are done, and `grace_s` seconds more for those that finish with them.

        Raises:
            ServiceLost: as in `call`.
        """
        started = time.monotonic()
        try:
            silent_since: float | None = None
            while sum(future.done() for future in futures) < count:
                waiting = [future for future in futures if not future.done()]
                if not wait(waiting, _WATCH_S, FIRST_COMPLETED).done:
                    silent_since = self._look(what, silent_since)
                    self._check_time(what, started)
            wait(futures, grace_s)
        finally:
            self.clock.seconds += time.monotonic() - started

    def _result(self, what: str, future: Future[T]) -> T:
        started, silent_since = time.monotonic(), None
        while not wait([future], _WATCH_S).done:
            silent_since = self._look(what, silent_since)
            self._check_time(what, started)
        return future.result()

    def _look(self, what: str, silent_since: float | None) -> float | None:
        """Return since when the service does not answer; None if it does.

        Raises:
            ServiceLost: it has not answered for `_LOST_S`.
        """
        if self._watch():
            return None
        now = time.monotonic()
        if silent_since is not None and now - silent_since > _LOST_S:
            raise self._lost(what, "it no longer answers")
        return silent_since or now

    def _check_time(self, what: str, started: float) -> None:
        if time.monotonic() - started > self._timeout_s:
            reason = f"no result within backend.timeout_s, {self._timeout_s:g} s"
            raise self._lost(what, reason, "check its log, or raise backend.timeout_s")

    def is_passing(self, error: Exception) -> bool:
        """Return whether a request may succeed if it is sent again: no connection, or too much load."""
        if isinstance(error, self.sdk.APIStatusError):
            return error.status_code in _OVERLOADED
        return isinstance(error, self.sdk.APIConnectionError)

    def failure(self, what: str, error: Exception) -> ServiceLost:
        """Return the error for a request that has failed for good."""
        if isinstance(error, self.sdk.APIStatusError) and error.status_code in (401, 403):
            return self._lost(what, first_line(error), "check the key in the variable that backend.api_key_env names")
        if isinstance(error, (self.sdk.UnprocessableEntityError, self.sdk.APIResponseValidationError)):
            tip = f"the SDK here is tinker {self.sdk_version}: use a service that speaks its wire format"
            return self._lost(what, f"it does not understand the request: {first_line(error)}", tip)
        return self._lost(what, first_line(error))

    def _lost(self, what: str, why: str, tip: str = "check its log") -> ServiceLost:
        self.is_lost = True
        return ServiceLost(self._line(f"the Tinker service at {self.url} did not {what}: {why}"), tip, exit_code=1)


def _load_sdk() -> ModuleType:
    """Import the SDK, which the `tinker` extra installs, only when it is needed."""
    # It would send the service exceptions with their stacks and local paths.
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    try:
        import tinker
    except ModuleNotFoundError as error:
        if error.name != _SDK:
            raise
        raise missing_package("backend.kind: tinker", _SDK, "tinker") from None
    if not version(_SDK).startswith(_SDK_SERIES):
        raise EchoError(
            f"backend.kind: tinker needs the package tinker {_SDK_SERIES}x, and {version(_SDK)} is installed",
            f"pip install 'tinker=={_SDK_SERIES}*'",
        )
    logging.getLogger(_SDK).setLevel(logging.CRITICAL)  # failures are told here, in one line
    holder = import_module("tinker.lib.internal_client_holder").InternalClientHolder
    # At the end of the process, it would fail with a traceback on stderr; the heartbeats' thread ends by itself.
    holder.__del__ = _leave
    # Of the class, because a client sends its first requests while it is made.
    holder.execute_with_retries = staticmethod(_once)
    module: ModuleType = tinker
    return module


def _open(sdk: ModuleType, **options: Any) -> Any:
    """Return the SDK's client of a new session."""
    client = sdk.ServiceClient(**options)
    assert client.holder  # the client opens its session when it is first asked for this
    return client


def _leave(_: object) -> None:
    """Leave a session to its service, which ends it for want of heartbeats."""


async def _once(request: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Send a request of the SDK once."""
    return await request(*args, **options)


def _watcher(url: str, *, loopback: bool) -> Callable[[], bool]:
    """Return a function that says whether the service answers at all, whatever it answers."""
    import httpx

    def watch() -> bool:
        try:
            httpx.get(f"{url}/api/v1/healthz", timeout=_WATCH_S * 2, trust_env=not loopback)
        except httpx.HTTPError:
            return False
        return True

    return watch
