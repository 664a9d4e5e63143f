"""Access to a server: for programs that know its token, under a host name that was allowed, and for no web page.

A page in any browser can send requests to 127.0.0.1, and DNS rebinding lets it read the answers under a host name of
its own. A browser adds an Origin or a Sec-Fetch header to such requests, and the Host that the page named. The token
keeps other users of this machine out as well. `sandbox_env` uses this module too; it imports the standard library only.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import re
import secrets
import shlex
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

TOKEN_VARIABLE = "ECHO_SERVER_TOKEN"
"""Environment variable with the token; the trainer sets it for a server that it starts."""
HOSTS_VARIABLE = "ECHO_SERVER_HOSTS"
"""Environment variable with allowed host names, separated by commas, for servers without a command line."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z_.-]+)(?::[0-9]{1,5})?", re.ASCII)
_HEALTH = "/health"
_BEARER = {"WWW-Authenticate": "Bearer"}

_Scope = MutableMapping[str, Any]
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_Application = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


@dataclass(frozen=True)
class Refusal:
    """Answer to a request that may not reach the environment."""

    status: int
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)


_WEB_PAGE = Refusal(403, "a web page may not use this server, and a browser cannot be told from one")
_HOST_NAME = Refusal(403, "the Host header must name this machine's loopback, or a host of --allow-host")
_TOKEN = Refusal(401, f"the Authorization header must be 'Bearer' and the server's {TOKEN_VARIABLE}", _BEARER)


@dataclass(frozen=True)
class Access:
    """Condition for requests of every kind, HTTP and WebSocket.

    - The request has no Origin and no Sec-Fetch header: no web page sent it.
    - It has one Host header, with a loopback address, `localhost` or a name in `hosts`, and any port.
    - It has one Authorization header, `Bearer TOKEN`. Only GET `/health`, which tells nothing, needs none: those who
      start containers poll it.
    """

    token: str = field(repr=False)
    hosts: frozenset[str] = frozenset()
    """Allowed names in addition to loopback, as `host_name` returns them."""

    def refusal(self, scope: Mapping[str, Any]) -> Refusal | None:
        """Return the refusal of a request with ASGI's `scope`, or None."""
        headers = [(name.decode("latin-1").lower(), value) for name, value in scope["headers"]]
        if any(name == "origin" or name.startswith("sec-fetch-") for name, _ in headers):
            return _WEB_PAGE
        named = [host_name(value.decode("latin-1")) for name, value in headers if name == "host"]
        if len(named) != 1 or named[0] is None or not (is_loopback(named[0]) or named[0] in self.hosts):
            return _HOST_NAME
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == _HEALTH:
            return None
        sent = [value for name, value in headers if name == "authorization"]
        return None if len(sent) == 1 and self._has_token(sent[0]) else _TOKEN

    def _has_token(self, authorization: bytes) -> bool:
        scheme, _, sent = authorization.partition(b" ")
        return hmac.compare_digest(sent.strip(), self.token.encode()) and scheme.lower() == b"bearer"


def new_access(hosts: Iterable[str] = ()) -> Access:
    """Return the access of one start: with the token of `ECHO_SERVER_TOKEN`, else with a new random one.

    Raises:
        ValueError: the variable is not one word of printable ASCII, or an allowed host is not a host name.
    """
    token = os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(32)
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(f"{TOKEN_VARIABLE} must be one word of printable ASCII characters")
    named = [name for name in os.environ.get(HOSTS_VARIABLE, "").split(",") if name.strip()]
    return Access(token, frozenset(allowed_host(name) for name in (*named, *hosts)))


def allowed_host(text: str) -> str:
    """Return a host name or address, as a user writes it, in the form of `host_name`.

    Raises:
        ValueError: it is neither.
    """
    name = url_host(text.strip())
    found = None if ":" in name and not name.endswith("]") else host_name(name)
    if found is None:
        raise ValueError(f"{text!r} is not a host name or an address")
    return found


def url_host(host: str) -> str:
    """Return a host as it is written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


def connection_line(url: str, access: Access, *, remote: bool = False) -> str:
    """Return how to connect to a server that was started by hand. A token that the user exported is not repeated.

    Args:
        remote: whether `url` leads over a network, where echo-cli sends the token over plain http only if told to.
    """
    export = "" if os.environ.get(TOKEN_VARIABLE) else f"export {TOKEN_VARIABLE}={access.token}; "
    allow = "--allow-plain-http " if remote else ""
    address = shlex.quote(f"environment.url={url}")  # the brackets of an IPv6 address are a pattern in zsh
    header = f"environment.headers.Authorization='Bearer ${{{TOKEN_VARIABLE}}}'"
    return f"connect: {export}echo-cli train {allow}{address} {header}"


def host_name(header: str) -> str | None:
    """Return the name in a Host header: lower case, without port and final dot; None if it is malformed.

    An IPv6 address is in brackets, in its shortest form.
    """
    match = _HOST.fullmatch(header.lower())
    if match is None:
        return None
    name = match[1].removesuffix(".")
    if not name.startswith("["):
        return name or None
    try:
        return f"[{ipaddress.IPv6Address(name[1:-1])}]"
    except ValueError:
        return None


def is_loopback(name: str) -> bool:
    """Return whether a name from `host_name` is `localhost`, 127.0.0.0/8 or ::1; no resolver is asked."""
    if name in ("localhost", "[::1]"):
        return True
    try:
        return ipaddress.IPv4Address(name).is_loopback  # four decimal numbers: not 127.1, not 2130706433
    except ValueError:
        return False


class Guard:
    """ASGI middleware that answers a refused request itself, so that no route or mounted application sees it."""

    def __init__(self, app: _Application, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan" or (refusal := self._access.refusal(scope)) is None:
            await self._app(scope, receive, send)
            return
        kind = "http"
        if scope["type"] == "websocket":
            await receive()  # the handshake
            if "websocket.http.response" not in scope.get("extensions", {}):
                await send({"type": "websocket.close", "code": 1008})
                return
            kind = "websocket.http"
        body = json.dumps({"detail": refusal.detail}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
        sent = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": f"{kind}.response.start", "status": refusal.status, "headers": sent})
        await send({"type": f"{kind}.response.body", "body": body})
