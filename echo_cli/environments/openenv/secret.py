"""Texts of a config that name environment variables as `${NAME}`, whose values are shown nowhere."""

from __future__ import annotations

import os
import re

from echo_cli.errors import EchoError

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def filled(template: str, key: str, *, empty: bool) -> tuple[str, dict[str, str]]:
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
