"""The process that holds the server we started: `python -m echo_cli.sources.provider_host`, for `provider.py`.

It stands between the trainer and the server, because only a process that outlives a killed trainer can stop its
server. It reads the provider's config from the first line of stdin and writes JSON lines to stdout: `{"url": …}` when
the server is ready, `{"ended": exit code}` when it has ended, or `{"error": …}`. At the end of stdin, which also comes
when the trainer is killed, or after the server's end, it stops the server and everything in its own process group.
The output of the server goes to stderr.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

from echo_cli.concurrency import say, take_pipes
from echo_cli.config.environment import ProviderConfig
from echo_cli.environments.faults import fault_line
from echo_cli.environments.openenv.provider_kinds import Server, make_server
from echo_cli.errors import EchoError


@dataclass(frozen=True)
class _Ready:
    url: str


@dataclass(frozen=True)
class _Failed:
    error: EchoError


@dataclass(frozen=True)
class _Ended:
    exit_code: int | None


@dataclass(frozen=True)
class _Stop:
    """Nobody needs the server any more."""


_Event = _Ready | _Failed | _Ended | _Stop


def main() -> None:
    """Hold a server until nobody needs it. Never returns: the last act ends the whole process group."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    orders, report = take_pipes()
    events: SimpleQueue[_Event] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: events.put(_Stop()))
    config = ProviderConfig.model_validate_json(orders.readline(), strict=True)
    _in_thread(_read_to_end, orders, events)
    server: Server | None = None
    try:
        server = make_server(config)
        _in_thread(_start, server, config.start_timeout_s, events)
        _watch(server, config, events, report)
    except EchoError as error:
        say(report, _as_message(error))
    finally:
        os.killpg(0, signal.SIGTERM)  # ourselves too, where it means what has begun already
        try:
            if server is not None:
                server.stop()
        finally:
            os.killpg(0, signal.SIGKILL)  # whatever the server has left behind, and ourselves


def _watch(server: Server, config: ProviderConfig, events: SimpleQueue[_Event], report: BinaryIO) -> None:
    deadline: float | None = time.monotonic() + config.start_timeout_s
    while True:
        try:
            event = events.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except Empty:
            event = _Failed(_not_ready(config))
        match event:
            case _Ready(url):
                deadline = None
                say(report, {"url": url})
            case _Failed(error):
                server.log_tail()
                raise error
            case _Ended(exit_code):
                server.log_tail()
                say(report, {"ended": exit_code})
                return
            case _Stop():
                return


def _start(server: Server, timeout_s: float, events: SimpleQueue[_Event]) -> None:
    try:
        url = server.start()
        _in_thread(_wait, server, events)
        server.wait_ready(url, timeout_s)
    except EchoError as error:
        events.put(_Failed(error))
    except TimeoutError:
        pass  # which the watch has noticed itself
    except Exception as error:  # of a provider's own code
        text = f"the provider failed: {type(error).__name__}: {fault_line(str(error))}"
        events.put(_Failed(EchoError(text, "look at environment.provider", exit_code=1)))
    else:
        events.put(_Ready(url))


def _wait(server: Server, events: SimpleQueue[_Event]) -> None:
    events.put(_Ended(server.wait()))


def _read_to_end(orders: BinaryIO, events: SimpleQueue[_Event]) -> None:
    while orders.read(4096):
        pass
    events.put(_Stop())


def _as_message(error: EchoError) -> dict[str, Any]:
    return {"error": error.message, "tip": error.tip, "exit_code": error.exit_code}


def _not_ready(config: ProviderConfig) -> EchoError:
    return EchoError(
        f"the server was not ready within {config.start_timeout_s:g} s",
        "its /health must answer 200; raise environment.provider.start_timeout_s where it needs longer",
        exit_code=1,
    )


def _in_thread(function: Any, *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main()
