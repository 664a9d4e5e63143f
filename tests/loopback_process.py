"""The process of `loopback_server.py`: prints its port, and ends on SIGTERM or at the end of stdin."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http
import importlib
import json
import os
import signal
import sys
from typing import IO, Any

from loopback_server import CONNECT, HOST, Behaviour, Incident, Refused, observation
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


class Served:
    """Server of connections and plain GETs, with the given `behaviour`; events are appended to `log`."""

    def __init__(self, behaviour: Behaviour, log: IO[str]) -> None:
        self.behaviour = behaviour
        self._log = log
        self._active = 0
        log.seek(0)
        self._connected = sum('"event": "connect"' in line for line in log)
        module, _, name = str(behaviour.world).partition(":")
        self._world = getattr(importlib.import_module(module), name)

    def record(self, event: str, **details: Any) -> None:
        self._log.write(json.dumps({"event": event, **details}) + "\n")
        self._log.flush()

    def answer_http(self, connection: Any, request: Any) -> Any:
        """Return the answer to a plain GET; None if a websocket is to be opened."""
        behaviour = self.behaviour
        path = request.path.removeprefix(behaviour.prefix)
        self.record("http", path=request.path, headers=sorted({name.lower() for name in request.headers}))
        if behaviour.header is not None and request.headers.get(behaviour.header[0]) != behaviour.header[1]:
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "no")
        if path in behaviour.http:
            status, body = behaviour.http[path]
            response = connection.respond(http.HTTPStatus(status), body)
            if 300 <= status < 400:
                response.headers["Location"] = body
            return response
        if path == "/ws" and request.path.startswith(behaviour.prefix):
            return None
        observation = {"type": "object", "properties": {"output": {"type": "string"}}}
        action = getattr(self._world, "ACTION", {"type": "object"})
        bodies = {
            "/schema": {"action": action, "observation": observation, "state": {}},
            "/metadata": {"name": self._world.__name__, "description": ""},
            "/health": {"status": "healthy"},
        }
        if path not in bodies or not request.path.startswith(behaviour.prefix):
            return connection.respond(http.HTTPStatus.NOT_FOUND, "not found")
        return connection.respond(http.HTTPStatus.OK, json.dumps(bodies[path]))

    async def serve(self, websocket: Any) -> None:
        """Serve one connection."""
        number, self._connected = self._connected, self._connected + 1
        self.record("connect", connection=number)
        self._active += 1
        try:
            if self.behaviour.capacity is not None and self._active > self.behaviour.capacity:
                counts = {"active_sessions": self._active - 1, "max_sessions": self.behaviour.capacity}
                await _send_error(websocket, code="CAPACITY_REACHED", message="Server at capacity", **counts)
                return
            if incident := self._incident(number, CONNECT):
                await self._befall(websocket, incident)
                if incident.kind != "slow":
                    return
            await self._episode(websocket, number)
        except ConnectionClosed:
            pass
        finally:
            self._active -= 1
            self.record("disconnect", connection=number)

    async def _episode(self, websocket: Any, number: int) -> None:
        world, steps = self._world(**self.behaviour.options), 0
        try:
            async for text in websocket:
                message = json.loads(text)
                kind, data = message["type"], message.get("data", {})
                self.record(kind, connection=number, data=data)
                if kind == "close":
                    return
                steps = {"reset": 0, "step": steps + 1}.get(kind, steps)
                incident = self._incident(number, steps) if kind != "state" else None
                if incident is not None:
                    await self._befall(websocket, incident)
                    if incident.kind != "slow":
                        continue
                await self._answer(websocket, world, kind, data)
        finally:
            getattr(world, "close", lambda: None)()

    async def _answer(self, websocket: Any, world: Any, kind: str, data: dict[str, Any]) -> None:
        try:
            if kind in ("reset", "step"):
                reply = {"type": "observation", "data": getattr(world, kind)(data)}
            elif kind == "state":
                reply = {"type": "state", "data": {"episode_id": None, "step_count": 0}}
            else:
                return await _send_error(websocket, code="UNKNOWN_TYPE", message=f"Unknown message type: {kind}")
        except Refused as error:
            return await _send_error(websocket, code="VALIDATION_ERROR", message=str(error), errors=error.errors)
        except Exception as error:
            return await _send_error(websocket, code="EXECUTION_ERROR", message=str(error))
        await websocket.send(json.dumps(reply))

    def _incident(self, number: int, at: int) -> Incident | None:
        for incident in self.behaviour.incidents:
            if incident.at == at and (incident.connections is None or number in incident.connections):
                return incident
        return None

    async def _befall(self, websocket: Any, incident: Incident) -> None:
        kind, value = incident.kind, incident.value
        if kind == "close":
            await websocket.close(value)
        elif kind == "drop":
            websocket.transport.abort()
        elif kind == "hang":
            await websocket.wait_closed()
        elif kind == "slow":
            await asyncio.sleep(value)
        elif kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "text":
            await websocket.send(value)
        elif kind == "bytes":
            await websocket.send(value.encode("latin-1"), text=True)
        elif kind == "binary":
            await websocket.send(value.encode())
        elif kind == "flood":
            await websocket.send(json.dumps({"type": "observation", "data": observation("x" * value, None, False)}))
        elif kind == "error":
            await _send_error(websocket, **value)
        else:
            raise ValueError(f"no incident of kind {kind}")


async def _send_error(websocket: Any, **data: Any) -> None:
    await websocket.send(json.dumps({"type": "error", "data": data}))


async def _run(behaviour: Behaviour, port: int, log: IO[str]) -> None:
    served, stop, loop = Served(behaviour, log), asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # Stdin ends with the parent process, even if the parent is killed.
    loop.add_reader(sys.stdin, stop.set)
    options: dict[str, Any] = {"compression": None, "ping_interval": None, "max_size": None, "close_timeout": 1}
    async with serve(served.serve, HOST, port, process_request=served.answer_http, **options) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await stop.wait()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--behaviour", type=json.loads, required=True)
    arguments = parser.parse_args()
    setting = arguments.behaviour
    incidents = tuple(Incident(**incident) for incident in setting.pop("incidents"))
    with open(arguments.log, "a+", encoding="utf-8") as log, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(Behaviour(**{**setting, "incidents": incidents}), arguments.port, log))


if __name__ == "__main__":
    _main()
