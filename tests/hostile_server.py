"""An OpenEnv server on loopback that attacks its clients: each path of `MODES` is the base URL of another attack.

`hostile_server.py PORT MODE` serves one attack in a process of its own, at the base URL without a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http
import json
import os
import sys
import threading
from typing import Any

from hostile_texts import ESCAPES, HTML
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

MODES = {
    "escapes": "escapes and markup in every text",
    "redirect": "redirects requests to another host",
    "redirect-websocket": "redirects the websocket to another host",
    "elsewhere": "tells the client to connect to another host",
    "references": "schemas that refer to another host, to files and to themselves, with a slow pattern",
    "huge-frame": "announces a message of 2^62 bytes",
    "endless-body": "a body without an end",
    "endless-message": "one message in fragments, without an end",
    "many-messages": "twenty thousand messages that nobody asked for",
    "silent": "accepts requests and never answers",
    "silent-websocket": "never answers on the websocket",
    "not-json": "text that is not JSON",
    "deep": "brackets nested 200,000 deep, over HTTP",
    "deep-websocket": "brackets nested 200,000 deep, on the websocket",
    "bomb": "a compressed body that inflates to 1 GiB",
    "bomb-websocket": "a compressed message although compression was not agreed on",
    "types": "fields of other types",
    "echo": "returns the headers and variables that it was sent, and escapes, in every text",
    "errors": "errors whose texts are hostile",
    "close": "closes with a hostile reason",
}
"""What the server does at each path."""

_DEEP = 200_000


class HostileServer:
    """The server, in a thread of this process.

    Args:
        elsewhere: URL to which it tries to lead its clients.
        port: port; 0 for a free one.
        mode: the only attack, at every path; by default, the first part of a path names the attack.
    """

    def __init__(self, elsewhere: str, port: int = 0, mode: str | None = None) -> None:
        self._elsewhere = elsewhere
        self._mode = mode
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self.port = port
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        self._started.wait(10)

    def url(self, mode: str) -> str:
        assert mode in MODES
        return f"http://127.0.0.1:{self.port}/{mode}"

    def join(self) -> None:
        """Wait for the end of the server, which only `stop` brings."""
        self._thread.join()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        options: dict[str, Any] = {"compression": None, "ping_interval": None, "max_size": None, "close_timeout": 0.1}
        server = await serve(self._websocket, "127.0.0.1", self.port, process_request=self._request, **options)
        self.port = next(iter(server.sockets)).getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()  # without waiting for connections that never end

    async def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        mode, _, path = self._path(request).partition("/")
        if mode == "silent":
            await connection.wait_closed()
        if mode == "redirect" or (mode == "redirect-websocket" and path == "ws"):
            return _response(302, b"", Location=f"{self._elsewhere}/{path}")
        if path == "ws":
            return None
        if mode == "endless-body":
            await _endless_body(connection)
        if mode == "not-json":
            return _response(200, f"{HTML}{ESCAPES}".encode())
        if mode == "deep":
            return _response(200, b"[" * _DEEP + b"]" * _DEEP)
        if mode == "bomb":
            return _response(200, gzip.compress(b"[" * 2**24) * 64, **{"Content-Encoding": "gzip"})
        return _response(200, json.dumps(self._description(mode, path, request)).encode())

    def _path(self, request: Request) -> str:
        """Return the mode of a request, a slash and the rest of its path."""
        return request.path[1:] if self._mode is None else f"{self._mode}{request.path}"

    def _description(self, mode: str, path: str, request: Request) -> dict[str, Any]:
        text = self._text(mode, request)
        action: dict[str, Any] = {"type": "object", "properties": {"command": {"type": "string", "title": text}}}
        if mode == "references":
            action["properties"]["command"] = {"$ref": f"{self._elsewhere}/schema.json"}
            action |= {"$ref": "file:///etc/passwd", "pattern": "(a+)+$", "allOf": [{"$ref": "#"}]}
        observation = {"type": "object", "properties": {"output": {"type": "string", "description": text}}}
        others = {"url": self._elsewhere, "server_url": self._elsewhere, "websocket_url": f"{self._elsewhere}/ws"}
        return {
            "schema": {"action": action, "observation": observation, "state": {}, **others},
            "metadata": {"name": text, "description": text, "version": text, **others},
            "health": {"status": "healthy", **others},
        }.get(path, {"detail": text})

    def _text(self, mode: str, request: Request | None) -> str:
        if mode == "echo" and request is not None:
            given = [*([*os.environ.items()][::-1] if self._mode else ()), *request.headers.raw_items()]
            return " ".join([*(f"{name}={value}" for name, value in given), HTML, ESCAPES])
        return f"{HTML}{ESCAPES}" if mode != "elsewhere" else f"connect to {self._elsewhere}"

    async def _websocket(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        mode = self._path(connection.request).partition("/")[0]
        with contextlib.suppress(ConnectionClosed, ConnectionError):
            if mode == "close":
                await connection.close(1011, ESCAPES[:20])
            async for message in connection:
                request = json.loads(message)
                if request["type"] == "close":
                    return
                await self._answer(connection, mode)

    async def _answer(self, connection: ServerConnection, mode: str) -> None:
        text = self._text(mode, connection.request)
        if mode == "silent-websocket":
            await connection.wait_closed()
        elif mode == "huge-frame":
            await _raw(connection, b"\x81\x7f" + (2**62).to_bytes(8, "big") + b"x" * 100)
        elif mode == "bomb-websocket":
            await _raw(connection, b"\xc1\x05hello")
        elif mode == "endless-message":
            await connection.send("x" * 2**16 for _ in iter(int, 1))  # type: ignore[arg-type]
        elif mode == "deep-websocket":
            await connection.send('{"type": "observation", "data": ' + "[" * _DEEP + "]" * _DEEP + "}")
        elif mode == "errors":
            data = {
                "code": text,
                "message": text,
                "errors": [{"loc": [text], "msg": text, "type": text, "input": {text: text}}],
            }
            await connection.send(json.dumps({"type": "error", "data": data}))
        elif mode == "many-messages":
            for _ in range(20_000):
                await connection.send(json.dumps(_observation(text)))
            await connection.close()
        else:
            answer = _observation(text)
            if mode == "types":
                answer["data"] = {
                    "observation": {"output": {text: [text, 1e308, None]}},
                    "reward": {text: text},
                    "done": text,
                }
            if mode == "elsewhere":
                answer |= {"url": self._elsewhere, "reconnect": self._elsewhere}
                answer["data"]["metadata"] = {"url": self._elsewhere, "session_url": self._elsewhere}
            await connection.send(json.dumps(answer))
            if mode == "elsewhere":
                await connection.close(1012, f"reconnect to {self._elsewhere}")


def _observation(text: str) -> dict[str, Any]:
    data = {"observation": {"output": f"{text}\n", text: text}, "reward": 1.0, "done": False, "metadata": {text: text}}
    return {"type": "observation", "data": data}


async def _raw(connection: ServerConnection, data: bytes) -> None:
    connection.transport.write(data)
    await connection.wait_closed()


async def _endless_body(connection: ServerConnection) -> None:
    connection.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[")
    while not connection.transport.is_closing():
        if connection.transport.get_write_buffer_size() < 2**20:  # type: ignore[attr-defined]
            connection.transport.write(b"0," * 2**12)
        await asyncio.sleep(0.001)


def _response(status: int, body: bytes, **headers: str) -> Response:
    found = Headers(
        {"Content-Length": str(len(body)), "Content-Type": "application/json", "Connection": "close", **headers}
    )
    return Response(status, http.HTTPStatus(status).phrase, found, body)


if __name__ == "__main__":
    HostileServer("http://127.0.0.1:1", int(sys.argv[1]), sys.argv[2]).join()
