"""The process between the trainer and the server that `provider.py` starts.

Only a process that outlives a killed trainer can stop its server. This process reads the provider's config, and a
folder from which its class may be imported, from the first line of stdin and writes JSON lines to stdout: `{"url": …}`
when the server is ready, `{"ended": exit code}` when it has ended, or `{"error": …}`. When the server has ended, or
stdin ends (also because the trainer was killed), the process stops the server and everything in its own process group.
The server's output goes to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

from echo_cli.concurrency import say, take_pipes
from echo_cli.config.environment import ProviderConfig
from echo_cli.environments.faults import fault_line
from echo_cli.environments.openenv.package import import_from
from echo_cli.environments.openenv.provider_kinds import Server, make_server
from echo_cli.errors import EchoError

_Message = dict[str, Any]
"""Report to the trainer: `url`, `ended` or `error`."""

_Messages = SimpleQueue[_Message | None]
"""Queue of reports; None means that the trainer no longer needs the server."""


def main() -> None:
    """Run a server until the trainer no longer needs it. Never returns: the last call kills the whole process group."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    orders, report = take_pipes()
    messages: _Messages = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: messages.put(None))
    order = json.loads(orders.readline())
    config = ProviderConfig.model_validate_json(json.dumps(order["provider"]), strict=True)
    if order["import_from"] is not None:
        import_from(order["import_from"])
    _in_thread(_read_to_end, orders, messages)
    server: Server | None = None
    try:
        server = make_server(config)
        _in_thread(_start, server, config.start_timeout_s, messages)
        _watch(server, config.start_timeout_s, messages, report)
    except EchoError as error:
        say(report, _failed(error))
    finally:
        os.killpg(0, signal.SIGTERM)  # includes this process, whose handler only queues None
        try:
            if server is not None:
                server.stop()
        finally:
            os.killpg(0, signal.SIGKILL)  # the server's remaining processes, and this process


def _watch(server: Server, timeout_s: float, messages: _Messages, report: BinaryIO) -> None:
    """Report when the server is ready and when it has ended; return after its end or when it is no longer needed."""
    try:
        message = messages.get(timeout=timeout_s)
    except Empty:
        message = _failed(_not_ready(timeout_s))
    if message is not None and "url" in message:
        say(report, message)
        message = messages.get()
    if message is not None:
        server.log_tail()
        say(report, message)


def _start(server: Server, timeout_s: float, messages: _Messages) -> None:
    try:
        url = server.start()
        _in_thread(_wait, server, messages)
        server.wait_ready(url, timeout_s)
    except EchoError as error:
        messages.put(_failed(error))
    except TimeoutError:
        pass  # `_watch` has its own timeout
    except Exception as error:  # raised by the provider's own code
        text = f"the provider failed: {type(error).__name__}: {fault_line(str(error))}"
        messages.put(_failed(EchoError(text, "check environment.provider", exit_code=1)))
    else:
        messages.put({"url": url})


def _wait(server: Server, messages: _Messages) -> None:
    messages.put({"ended": server.wait()})


def _read_to_end(orders: BinaryIO, messages: _Messages) -> None:
    while orders.read(4096):
        pass
    messages.put(None)


def _failed(error: EchoError) -> _Message:
    return {"error": error.message, "tip": error.tip, "exit_code": error.exit_code}


def _not_ready(timeout_s: float) -> EchoError:
    return EchoError(
        f"the server was not ready within {timeout_s:g} s",
        "its /health must answer 200; raise environment.provider.start_timeout_s if it needs longer",
        exit_code=1,
    )


def _in_thread(function: Any, *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main()
