"""The one of several environments that a command line chooses."""

from __future__ import annotations

from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable, suggest


def alone_in(config: Config, name: str | None) -> Config:
    """Return the config of a run in the environment `name` alone; without a name, that of a run in one.

    Raises:
        EchoError: there is no such environment, or there are several and none is named.
    """
    names = list(config.names)
    if name is None and names:
        tip = f"choose one with --environment: {', '.join(names)}"
        raise EchoError(f"there are {len(names)} environments, and this command takes one", tip)
    if name is None:
        return config
    if name not in names:
        tip = suggest(name, names, "environments") if names else "omit --environment: there is one, without a name"
        raise EchoError(f"no environment is named '{escape_unprintable(name)}'", tip)
    return config.of_each[name]
