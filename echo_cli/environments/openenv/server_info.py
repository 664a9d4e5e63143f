"""Read an OpenEnv server's description over HTTP: its schemas, its name and, where published, its capacity."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any

from echo_cli.concurrency import WorkerThread
from echo_cli.environments.faults import without_secrets
from echo_cli.environments.openenv.address import WireAddress
from echo_cli.environments.protocol import Description, JsonObject
from echo_cli.errors import EchoError

_UNNAMED = "unnamed"
"""Name of a server without a name; not its address, because a run directory must not contain host names."""

_MAX_BYTES = 64 * 2**20
_MAX_DETAIL_BYTES = 2**12
_START_TIP = "start the server, or check environment.url"
_HEADERS_TIP = "add the credentials to environment.headers, with ${NAME} for an environment variable"
_CAPACITY_KEYS = ("max_concurrent_envs", "max_sessions")


def ask_server(address: WireAddress, timeout_s: float) -> Description:
    """GET `/schema`, `/metadata` and `/health`, the last two of which are optional.

    Raises:
        EchoError: the server cannot be reached or refuses to answer (exit code 1), or does not speak OpenEnv.
    """
    opener = _opener(address)
    schema = _schema(opener, address, timeout_s)
    metadata = _object(opener, address, "/metadata", timeout_s)
    health = _object(opener, address, "/health", timeout_s)
    name = metadata.get("name")
    return Description(
        name=address.line(name) if isinstance(name, str) and name.strip() else _UNNAMED,
        action_schema=schema["action"],
        observation_schema=schema["observation"],
        sessions=_capacity(metadata) or _capacity(health),
        about=address.line(about_line(name, metadata.get("description"))),
    )


def about_line(name: object, description: object) -> str:
    """Return an environment's description; empty if it is missing, or is OpenEnv's default, which repeats the name."""
    return description if isinstance(description, str) and description != f"{name} environment" else ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A handler that follows no redirect: the headers are only meant for the server that the config names."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(address: WireAddress) -> urllib.request.OpenerDirector:
    proxies = urllib.request.ProxyHandler({} if address.loopback else None)
    opener = urllib.request.build_opener(proxies, _NoRedirect)
    opener.addheaders = list(address.headers.items())
    return opener


def _schema(opener: urllib.request.OpenerDirector, address: WireAddress, timeout_s: float) -> JsonObject:
    try:
        schema = without_secrets(_get(opener, f"{address.http}/schema", timeout_s), address.secrets)
    except urllib.error.HTTPError as error:
        raise _refusal(address, error) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise EchoError(f"cannot reach {address.http}: {address.line(text)}", _START_TIP, exit_code=1) from None
    except (http.client.HTTPException, ValueError, RecursionError):
        raise _not_openenv(address, "its /schema is not JSON") from None
    if not (isinstance(schema, dict) and all(isinstance(schema.get(key), dict) for key in ("action", "observation"))):
        raise _not_openenv(address, "its /schema has no action and observation")
    return schema


def _refusal(address: WireAddress, error: urllib.error.HTTPError) -> EchoError:
    with error:
        location = error.headers.get("Location")
        detail = _detail(error) if error.code in (401, 403) else ""
    answer = f"{address.http} answers HTTP {error.code}{address.line(detail)}"
    if error.code in (401, 403, 407):
        return EchoError(answer, _HEADERS_TIP, exit_code=1)
    if 300 <= error.code < 400 and location:
        base = address.line(location.partition("?")[0].removesuffix("/schema"))
        return EchoError(
            f"{answer}, a redirect to {base}", "redirects are not followed: set environment.url to that address"
        )
    if error.code >= 500 or error.code in (408, 429):
        return EchoError(answer, _START_TIP, exit_code=1)
    return _not_openenv(address, f"its /schema answers HTTP {error.code}")


def _detail(error: urllib.error.HTTPError) -> str:
    """Return the reason in the body of a refusal, worded to follow its code; empty if there is none."""
    try:
        body = json.loads(error.read(_MAX_DETAIL_BYTES))
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return ""
    detail = body.get("detail") if isinstance(body, dict) else None
    return f": {detail}" if isinstance(detail, str) and detail else ""


def _not_openenv(address: WireAddress, why: str) -> EchoError:
    return EchoError(f"{address.http} does not speak OpenEnv: {why}", "set environment.url to the server's base URL")


def _object(opener: urllib.request.OpenerDirector, address: WireAddress, path: str, timeout_s: float) -> JsonObject:
    """Return the JSON object at `path`; empty if there is none, because its fields are optional."""
    try:
        value = _get(opener, f"{address.http}{path}", timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        return {}
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _get(opener: urllib.request.OpenerDirector, url: str, timeout_s: float) -> Any:
    thread = WorkerThread(f"GET {url}")  # a socket's timeout bounds each read, not the whole answer
    body_of = thread.start(partial(_body, opener, url, timeout_s))
    thread.end()
    try:
        body = body_of.result(timeout_s)
    except FutureTimeout:
        raise TimeoutError("timed out") from None
    if len(body) > _MAX_BYTES:
        raise ValueError("too long")
    return json.loads(body)


def _body(opener: urllib.request.OpenerDirector, url: str, timeout_s: float) -> bytes:
    with opener.open(url, timeout=timeout_s) as response:
        body: bytes = response.read(_MAX_BYTES + 1)
    return body


def _capacity(published: JsonObject) -> int | None:
    """Return the published number of sessions; None if it is not positive or, as for OpenEnv's servers, missing."""
    for key in _CAPACITY_KEYS:
        value = published.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
