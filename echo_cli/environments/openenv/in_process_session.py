"""An OpenEnv `Environment` in this process that exchanges the same JSON text as OpenEnv's server.

The module processes a message with the same functions as `websocket_endpoint` in
`openenv.core.env_server.http_server`, so that the text is the same. It imports openenv, which takes seconds: import
this module only where it is needed.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any, get_type_hints

from openenv.core.env_server._utils import overrides_method
from openenv.core.env_server.http_server import HTTPEnvServer
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.serialization import deserialize_action, serialize_observation
from openenv.core.env_server.types import (
    Action,
    Observation,
    WSErrorCode,
    WSErrorResponse,
    WSObservationResponse,
    WSResetMessage,
    WSStepMessage,
)
from pydantic import ValidationError

from echo_cli.concurrency import WorkerThread
from echo_cli.environments.openenv.package import generic_arguments, load_class
from echo_cli.errors import EchoError


class EnvironmentClass:
    """An environment's class, constructor arguments and models.

    Raises:
        EchoError: the class does not exist or does not accept the arguments, or its action type is not declared.
    """

    def __init__(self, import_path: str, options: Mapping[str, Any]) -> None:
        found = load_class(import_path, Environment)
        try:
            inspect.signature(found).bind(**options)
        except TypeError as error:
            raise EchoError(
                f"'{import_path}' does not accept environment.object_options: {error}",
                f"its constructor is {found.__name__}{inspect.signature(found)}",
            ) from None
        self.import_path = import_path
        constructor: Callable[..., Any] = found
        self.make = partial(constructor, **options)
        self.action, self.observation = _models(found, import_path)
        self.concurrent = bool(found.SUPPORTS_CONCURRENT_SESSIONS)
        self.server = HTTPEnvServer(self.make, self.action, self.observation)
        """Server that is never started; it tells how OpenEnv would treat this class."""
        self.one_thread = bool(self.server._requires_single_thread_executor)


class ObjectSession:
    """One environment that is created, called and closed in `thread`.

    Asynchronous methods run in the caller's event loop, as on a server. So do `reset`, `step` and `close` if they are
    `async def`, which a server would not await.
    """

    def __init__(self, environment_class: EnvironmentClass, thread: WorkerThread) -> None:
        self._class = environment_class
        self._thread = thread
        self._made: Future[Any] = thread.start(environment_class.make)
        self._environment: Any = None
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        """Wait until the environment is created and its MCP session, if any, is open; raise their exceptions."""
        self._environment = await self._thread.run(self._made.result)
        mcp_session = getattr(self._environment, "mcp_session", None)
        if callable(mcp_session):
            await self._stack.enter_async_context(mcp_session())

    async def reply(self, request: str) -> str:
        """Return the text that a server would send for `request`.

        Raises:
            PydanticSerializationError: not even the error can be written as JSON; a server would end the session.
        """
        try:
            message = json.loads(request)
            observation = await (self._reset(message) if message["type"] == "reset" else self._step(message))
            return _text(WSObservationResponse(data=serialize_observation(observation)))
        except ValidationError as error:
            refused = {"message": "Invalid message", "code": WSErrorCode.VALIDATION_ERROR, "errors": error.errors()}
            return _text(WSErrorResponse(data=refused))
        except (Exception, SystemExit) as error:
            return _text(WSErrorResponse(data={"message": str(error), "code": WSErrorCode.EXECUTION_ERROR}))

    async def close_mcp(self) -> None:
        """Close the MCP session; raise its exceptions."""
        await self._stack.aclose()

    def close_environment(self) -> Future[Any]:
        """Close the environment in its thread after pending calls; the future fails if no environment was created.

        The future's result is a coroutine if `close` is `async def`.
        """
        return self._thread.start(lambda: self._made.result().close())

    async def _reset(self, message: Mapping[str, Any]) -> Any:
        environment, arguments = self._environment, WSResetMessage(**message).data
        filtered = self._class.server._get_valid_kwargs
        if overrides_method(environment.reset_async, Environment.reset_async):
            return await environment.reset_async(**filtered(inspect.signature(environment.reset_async), arguments))
        taken = filtered(inspect.signature(environment.reset), arguments)
        return await _awaited(await self._thread.run(partial(environment.reset, **taken)))

    async def _step(self, message: Mapping[str, Any]) -> Any:
        environment = self._environment
        action = deserialize_action(WSStepMessage(**message).data, self._class.action)
        if overrides_method(environment.step_async, Environment.step_async):
            return await environment.step_async(action)
        return await _awaited(await self._thread.run(partial(environment.step, action)))


async def _awaited(result: Any) -> Any:
    """Return the result of a method, which is a coroutine if the method is `async def`."""
    return await result if inspect.isawaitable(result) else result


def _text(response: Any) -> str:
    text: str = response.model_dump_json()
    return text


def _models(found: type[Any], import_path: str) -> tuple[type[Any], type[Any]]:
    """Return the action and observation classes.

    They come from the type hints of an own `step_async`, from those of `step`, or from `Environment[Act, Obs, State]`.
    A subclass takes precedence over the base class, for example if `step` is annotated only with `Action`.
    """
    steps = [found.step_async] if overrides_method(found.step_async, Environment.step_async) else []
    steps.append(found.step)
    action, observation, *_ = (*generic_arguments(found, Environment), None, None)
    action_class = _most_special((*map(_action_hint, steps), action), Action)
    if action_class is None:
        raise EchoError(
            f"'{import_path}' does not declare the type of its actions",
            "annotate the action of its step, or inherit from Environment[YourAction, YourObservation, YourState]",
        )
    answers = [_hint(step, inspect.signature(step).return_annotation) for step in steps]
    return action_class, _most_special((*answers, observation), Observation) or Observation


def _action_hint(step: Any) -> Any:
    """Return the type hint of the action in a method `step(self, action, …)`, or None."""
    parameters = list(inspect.signature(step).parameters.values())
    return _hint(step, parameters[1].annotation) if len(parameters) > 1 else None


def _hint(function: Any, annotation: Any) -> Any:
    """Return an annotation, evaluated if it is a string; None if its names cannot be resolved."""
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), globalns=names)["it"]
    except (NameError, AttributeError, TypeError, SyntaxError):  # imported only for type checkers
        return None


def _most_special(candidates: tuple[Any, ...], base: type) -> type[Any] | None:
    classes = [each for each in candidates if isinstance(each, type) and issubclass(each, base)]
    return next((each for each in classes if each is not base), classes[0] if classes else None)
