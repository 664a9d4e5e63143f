"""A server's address: validated URLs, and headers whose values are kept secret."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import SplitResult, urlsplit

from echo_cli.config.section import VARIABLE
from echo_cli.environments.faults import fault_line
from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable
from toy_terminal_env.server.access import TOKEN_VARIABLE

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class WireAddress:
    """A server's base URL, without a trailing slash, for the two protocols of OpenEnv."""

    http: str
    websocket: str
    """URL of the server's `/ws`."""
    host: str
    loopback: bool
    """Whether the server is on this machine, so that no proxy is used."""
    headers: Mapping[str, str] = field(repr=False)
    secrets: Mapping[str, str] = field(repr=False)
    """Environment variables' values that the server knows, mapped to the `${NAME}` that messages show instead."""

    def line(self, text: str) -> str:
        """Return a server's text as one short line without control characters or secrets."""
        return fault_line(text, self.secrets)


def wire_address(
    url: str,
    headers: Mapping[str, str],
    section: str = "environment",
    *,
    headers_key: str = "",
    plain_http: bool = False,
    token: str = "",
    known: Mapping[str, str] = MappingProxyType({}),
) -> WireAddress:
    """Return the address of a base `url` (http, https, ws, wss); fill `${NAME}` in `headers` from the environment.

    Args:
        section: config section that the messages name.
        headers_key: config key from which the headers are, if it is not `headers` of the section.
        plain_http: whether values of variables may go to another machine without TLS.
        token: secret of a server that this run started; sent unless `headers` contain an Authorization.
        known: secrets that the server was started with, mapped to their replacements.

    Raises:
        EchoError: the URL is invalid or contains credentials or a query; a variable is not set; a header cannot be
            sent, or only without TLS. The message names the header and the variable, never a value.
    """
    parts = _parts(url, section)
    secrets: dict[str, str] = {}
    sent = {
        name: _header(name, template, secrets, headers_key or f"{section}.headers.{name}")
        for name, template in headers.items()
    }
    secure = parts.scheme in ("https", "wss")
    rest = f"{parts.netloc}{parts.path.rstrip('/')}"
    host = parts.hostname or ""
    stays = _is_loopback(host) and not host.endswith(".localhost")  # a name that a DNS server may answer
    if secrets and not (secure or plain_http or stays):
        raise EchoError(
            f"{headers_key or f'{section}.headers'} would send {', '.join(secrets.values())} to {host} over plain "
            f"{parts.scheme}, which anyone on the way can read",
            f"use {parts.scheme}s, or allow it with --allow-plain-http",
        )
    if token and "authorization" not in map(str.lower, sent):
        sent["Authorization"] = f"Bearer {token}"
        secrets[token] = f"${{{TOKEN_VARIABLE}}}"
    return WireAddress(
        http=f"{'https' if secure else 'http'}://{rest}",
        websocket=f"{'wss' if secure else 'ws'}://{rest}/ws",
        host=host,
        loopback=_is_loopback(host),
        headers=sent,
        secrets={**known, **secrets},
    )


def _parts(url: str, section: str) -> SplitResult:
    tip = f"write {section}.url like http://127.0.0.1:8000"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https", "ws", "wss") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # invalid port, brackets without an address, or a label of 64 characters
        valid = None
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise EchoError(f"{section}.url is not a server address", tip)
    if parts.username is not None or parts.password is not None:
        raise EchoError(f"{section}.url contains credentials", f"send them in {section}.headers, with ${{NAME}}")
    if parts.query or parts.fragment:
        raise EchoError(f"{section}.url has a query or a fragment", f"omit it: {tip}")
    return parts


def _header(name: str, template: str, secrets: dict[str, str], key: str) -> str:
    """Return the value of a header; add the values of its environment variables to `secrets`."""
    if not _HEADER_NAME.fullmatch(name):
        raise EchoError(
            f"{escape_unprintable(key)}: '{escape_unprintable(name)}' is not a header name",
            "use a name such as Authorization",
        )
    value, taken = expand_env(template, key, empty=False)
    secrets |= taken
    if not (value.isascii() and value.isprintable()):
        raise EchoError(
            f"{key} contains a character that a header cannot carry",
            "check its environment variable for a trailing line break",
        )
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def expand_env(template: str, key: str, *, empty: bool) -> tuple[str, dict[str, str]]:
    """Replace every `${NAME}` in `template` by the variable's value; return the text and a map of values to `${NAME}`.

    Args:
        key: config key that the message names.
        empty: whether a variable may be empty.

    Raises:
        EchoError: a variable is not set. The message names the key and the variable, never a value.
    """
    secrets: dict[str, str] = {}

    def value_of(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value is None or not (value or empty):
            raise EchoError(f"{key}: the environment variable {match[1]} is not set", f"export {match[1]}=…")
        secrets[value] = match[0]
        return value

    return VARIABLE.sub(value_of, template), secrets


def expand_all(value: Any, key: str, *, empty: bool) -> tuple[Any, dict[str, str]]:
    """Expand every text in a JSON value as `expand_env` does; return the value and a map of secrets to `${NAME}`."""
    secrets: dict[str, str] = {}

    def expand(inner: Any) -> Any:
        if isinstance(inner, str):
            text, taken = expand_env(inner, key, empty=empty)
            secrets.update(taken)
            return text
        if isinstance(inner, dict):
            return {name: expand(each) for name, each in inner.items()}
        return [expand(each) for each in inner] if isinstance(inner, list | tuple) else inner

    return expand(value), secrets
