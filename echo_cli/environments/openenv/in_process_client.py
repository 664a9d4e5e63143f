"""OpenEnv environments in this process, with the same payloads as over a websocket."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from echo_cli.concurrency import WorkerThread, wait_at_most
from echo_cli.environments.faults import Fault, fault_line
from echo_cli.environments.openenv.package import require_openenv
from echo_cli.environments.openenv.server_info import about_line
from echo_cli.environments.openenv.session import CANCELLED, SessionState
from echo_cli.environments.openenv.websocket import decode, encode
from echo_cli.environments.protocol import Description, JsonObject, Payload
from echo_cli.errors import EchoError

if TYPE_CHECKING:
    from echo_cli.environments.openenv.in_process_session import EnvironmentClass, ObjectSession

_LEAVE_SECONDS = 2.0


class ObjectClient:
    """A `protocol.Client` for one episode of one environment object.

    The session is lost if a call takes longer than `step_timeout_s` seconds. The call's thread cannot be killed and
    remains as a daemon. If the call ever returns, the thread closes the environment and ends.

    Args:
        shared: the thread of all sessions if the environment requires a single thread; None if each session has its
            own thread.
    """

    def __init__(
        self, environment_class: EnvironmentClass, step_timeout_s: float, shared: WorkerThread | None = None
    ) -> None:
        self._class = environment_class
        self._step_timeout_s = step_timeout_s
        self._shared = shared
        self._thread: WorkerThread | None = None
        self._session: ObjectSession | None = None
        self._state = SessionState(environment_class.import_path)
        self._hung = False
        """Whether a call may still run in the thread."""

    async def reset(self, arguments: JsonObject) -> Payload:
        payload = await self._ask("reset", arguments)
        self._state.begun = True
        return payload

    async def step(self, action: JsonObject) -> Payload:
        return await self._ask("step", action)

    async def close(self) -> None:
        self._state.end("the session is closed")
        # A close during a request means that the run is stopping: it does not wait for the full timeout.
        patience_s = min(self._step_timeout_s, _LEAVE_SECONDS) if self._state.lock.locked() else self._step_timeout_s
        session, thread, self._session, self._thread = self._session, self._thread, None, None
        if session is None or thread is None:
            return
        try:
            await wait_at_most(patience_s, session.close_mcp())
        except Exception:  # as on a server, a session that fails to close is released all the same
            pass
        finally:
            closed = session.close_environment()
            if self._shared is None:
                thread.end()
        if self._hung:
            return
        try:
            result = await wait_at_most(patience_s, asyncio.wrap_future(closed))
            if inspect.isawaitable(result):
                await wait_at_most(patience_s, result)
        except asyncio.TimeoutError:
            return
        except Exception:  # as above
            pass
        if self._shared is None:
            thread.join(patience_s)

    async def _ask(self, kind: str, data: JsonObject) -> Payload:
        request = encode({"type": kind, "data": data})
        async with self._state.lock:
            self._state.check()
            try:
                if self._session is None:
                    await self._open()
                assert self._session is not None
                reply = await wait_at_most(self._step_timeout_s, self._session.reply(request))
            except asyncio.TimeoutError:
                self._hung = True
                raise self._state.broken(f"no answer within {self._step_timeout_s:g} s") from None
            except asyncio.CancelledError:
                self._hung = True
                self._state.lose(CANCELLED)
                raise
            except Fault:
                raise
            except Exception as error:  # a server would end the session
                raise self._state.broken(f"{error} (SESSION_ERROR)") from error
        try:
            kind, data = decode(reply)
        except ValueError as error:  # nested too deep
            raise self._state.nonsense(f"it sent a malformed observation: {error}") from None
        if kind == "error":
            raise self._state.fault(data)
        return self._state.payload(data)

    async def _open(self) -> None:
        from echo_cli.environments.openenv.in_process_session import ObjectSession

        self._thread = self._shared or WorkerThread(self._class.import_path)
        self._session = ObjectSession(self._class, self._thread)
        failure: list[Exception | SystemExit] = []

        async def open_session(session: ObjectSession) -> None:
            try:  # the environment's own TimeoutError must not be taken for ours
                await session.open()
            except (Exception, SystemExit) as error:
                failure.append(error)

        await wait_at_most(self._step_timeout_s, open_session(self._session))
        if failure:
            raise self._state.broken(f"cannot be created: {type(failure[0]).__name__}: {failure[0]}") from failure[0]


class ObjectSource:
    """A `protocol.EnvironmentSource` of the environments of a class.

    Each session runs in its own thread. If the class sets REQUIRES_SINGLE_THREAD_EXECUTOR, all sessions share one
    thread, which runs until the process ends.

    Args:
        import_path: `pkg.module:Class`, an OpenEnv `Environment`.
        options: arguments of its constructor.
        step_timeout_s: limit for the creation, the reset and each step, in seconds.
        sessions_wanted: number of parallel sessions to offer if the class sets SUPPORTS_CONCURRENT_SESSIONS.

    Raises:
        EchoError: openenv is not installed, the class does not exist or does not accept the options, or its action type
            is not declared.
    """

    def __init__(
        self, import_path: str, options: Mapping[str, Any], *, step_timeout_s: float = 60.0, sessions_wanted: int = 1
    ) -> None:
        require_openenv("environment.object")
        from echo_cli.environments.openenv.in_process_session import EnvironmentClass

        self._class = EnvironmentClass(import_path, options)
        self._step_timeout_s = step_timeout_s
        self._sessions_wanted = sessions_wanted
        self._shared = WorkerThread(import_path) if self._class.one_thread else None

    def describe(self) -> Description:
        """Create one environment, read its metadata, and close it.

        Raises:
            EchoError: the environment cannot be created, or its metadata cannot be read.
        """
        thread = self._shared or WorkerThread(self._class.import_path)
        asked = thread.start(self._metadata)
        if self._shared is None:
            thread.end()
        try:
            name, about = asked.result(self._step_timeout_s)
        except FutureTimeout:
            message = f"'{self._class.import_path}' was not created within {self._step_timeout_s:g} s"
            raise EchoError(message, "raise environment.step_timeout_s", exit_code=1) from None
        except Exception as error:
            raise EchoError(
                f"'{self._class.import_path}' cannot be created: {type(error).__name__}: {fault_line(str(error))}",
                "check environment.object_options, the arguments of its constructor",
            ) from error
        return Description(
            name=fault_line(name) or self._class.import_path,
            action_schema=self._class.action.model_json_schema(),
            observation_schema=self._class.observation.model_json_schema(),
            sessions=self._sessions_wanted if self._class.concurrent else 1,
            about=fault_line(about),
        )

    def client(self) -> ObjectClient:
        return ObjectClient(self._class, self._step_timeout_s, self._shared)

    def ended(self) -> str | None:
        return None  # an environment in this process never ends before the process

    def _metadata(self) -> tuple[str, str]:
        """Create an environment and return its name and its description."""
        environment = self._class.make()
        try:
            metadata = environment.get_metadata()
            name = str(metadata.name)
            return name, about_line(name, metadata.description)
        finally:
            with suppress(Exception):  # as at the end of an episode
                result = environment.close()
                if inspect.iscoroutine(result):
                    asyncio.run(result)
