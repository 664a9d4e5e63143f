"""Where a server is and what it is sent along: checked URLs, and headers whose values stay secret."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from echo_cli.environments.faults import fault_line
from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class WireAddress:
    """A server's base URL, without a slash at its end, in the two schemes that OpenEnv speaks."""

    http: str
    websocket: str
    """Of its `/ws`."""
    host: str
    loopback: bool
    """It is this machine, which no proxy stands before."""
    headers: Mapping[str, str] = field(repr=False)
    secrets: Mapping[str, str] = field(repr=False)
    """What the headers took from the environment, and the `${NAME}` that is shown in its place."""

    def line(self, text: str) -> str:
        """A server's text as one short line: no control characters, and none of the headers' secrets."""
        return fault_line(text, self.secrets)


def wire_address(url: str, headers: Mapping[str, str], section: str = "environment") -> WireAddress:
    """The address of a base `url` (http, https, ws, wss), with `${NAME}` in `headers` filled from the environment.

    Args:
        section: of the config, for the messages.

    Raises:
        EchoError: the URL is none or holds a password or a query; a variable is not set; a header cannot be sent.
            Names the header and the variable, never a value.
    """
    parts = _parts(url, section)
    secrets: dict[str, str] = {}
    sent = {name: _header(name, template, secrets, section) for name, template in headers.items()}
    secure = parts.scheme in ("https", "wss")
    rest = f"{parts.netloc}{parts.path.rstrip('/')}"
    host = parts.hostname or ""
    return WireAddress(
        http=f"{'https' if secure else 'http'}://{rest}",
        websocket=f"{'wss' if secure else 'ws'}://{rest}/ws",
        host=host,
        loopback=_is_loopback(host),
        headers=sent,
        secrets=secrets,
    )


def _parts(url: str, section: str) -> SplitResult:
    tip = f"write {section}.url like http://127.0.0.1:8000"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https", "ws", "wss") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # no such port, brackets without an address, a label of 64 letters
        valid = None
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise EchoError(f"{section}.url is no address of a server", tip)
    if parts.username is not None or parts.password is not None:
        raise EchoError(f"{section}.url holds a user name", f"send credentials as {section}.headers, with ${{NAME}}")
    if parts.query or parts.fragment:
        raise EchoError(f"{section}.url has a query or a fragment", f"it is the server's base URL: {tip}")
    return parts


def _header(name: str, template: str, secrets: dict[str, str], section: str) -> str:
    """The value of a header; what it takes from the environment is added to `secrets`."""
    if not _HEADER_NAME.fullmatch(name):
        raise EchoError(
            f"{section}.headers: '{escape_unprintable(name)}' is no name of a header", "for example Authorization"
        )
    value, taken = expand_env(template, f"{section}.headers.{name}", empty=False)
    secrets |= taken
    if not (value.isascii() and value.isprintable()):
        raise EchoError(
            f"{section}.headers.{name} has a character that no header can carry",
            "look for a line break at the end of its environment variable",
        )
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def expand_env(template: str, key: str, *, empty: bool) -> tuple[str, dict[str, str]]:
    """`template` with every `${NAME}` replaced by the variable's value, and by value the `${NAME}` to show for it.

    Args:
        key: of the config, for the message.
        empty: whether a variable may be set to nothing.

    Raises:
        EchoError: a variable is not set. Names the key and the variable, never a value.
    """
    secrets: dict[str, str] = {}

    def value_of(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value is None or not (value or empty):
            raise EchoError(f"{key}: the environment variable {match[1]} is not set", f"export {match[1]}=…")
        secrets[value] = match[0]
        return value

    return _VARIABLE.sub(value_of, template), secrets
