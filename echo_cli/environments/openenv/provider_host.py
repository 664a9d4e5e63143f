"""The process between the trainer and the server that `provider.py` starts.

Only a process that outlives a killed trainer can stop its server. This process reads the provider's config, a folder
from which its class may be imported, and the values that the config refers to from stdin, and writes JSON lines to
stdout: `{"url": …}` when the server is ready, `{"ended": exit code}` when it has ended, or `{"error": …}`. When the
server has ended or exceeds its limits, or stdin ends (also because the trainer was killed), the process stops the
server and every process below it. The end of the server's output goes to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

from echo_cli.config.environment import ProviderConfig, ProviderLimits
from echo_cli.environments.faults import fault_line
from echo_cli.environments.openenv.package import import_from
from echo_cli.environments.openenv.provider_kinds import Server, make_server
from echo_cli.environments.openenv.provider_limits import (
    BoundedLog,
    adopt_orphans,
    kill_processes_below,
    limit_each_process,
    wait_until_exceeded,
)
from echo_cli.errors import EchoError
from echo_cli.processes import say, take_pipes

_DRAIN_SECONDS = 0.5

_Message = dict[str, Any]
"""Report to the trainer: `url`, `ended` or `error`."""

_Messages = SimpleQueue[_Message | None]
"""Queue of reports; None means that the trainer no longer needs the server."""


def main() -> None:
    """Run a server until the trainer no longer needs it. Never returns: the last call kills the whole process group."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    orders, report = take_pipes()
    log = BoundedLog()
    adopt_orphans()
    messages: _Messages = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: messages.put(None))
    order = json.loads(orders.readline())
    config = ProviderConfig.model_validate_json(json.dumps(order["provider"]), strict=True)
    config = config.model_copy(update=json.loads(orders.readline()))
    if order["import_from"] is not None:
        import_from(order["import_from"])
        found = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([order["import_from"], *([found] if found else [])])
    _in_thread(_read_to_end, orders, messages)
    server: Server | None = None
    try:
        if config.kind != "docker":
            limit_each_process(config.limits)
        server = make_server(config)
        _in_thread(_start, server, config, messages)
        if (last := _watch(server, config.start_timeout_s, messages, report)) is not None:
            server.log_tail()
            log.close(_DRAIN_SECONDS)
            say(report, last)
    except EchoError as error:
        say(report, _failed(error))
    finally:
        os.killpg(0, signal.SIGTERM)  # includes this process, whose handler only queues None
        try:
            if server is not None:
                server.stop()
        finally:
            kill_processes_below(os.getpid())
            os.killpg(0, signal.SIGKILL)  # includes this process


def _watch(server: Server, timeout_s: float, messages: _Messages, report: BinaryIO) -> _Message | None:
    """Report when the server is ready; return the report of its end, or None when it is no longer needed."""
    try:
        message = messages.get(timeout=timeout_s)
    except Empty:
        message = _failed(_not_ready(timeout_s))
    if message is not None and "url" in message:
        say(report, message)
        message = messages.get()
    return message


def _start(server: Server, config: ProviderConfig, messages: _Messages) -> None:
    try:
        url = server.start()
        _in_thread(_wait, server, messages)
        if config.kind != "docker":
            _in_thread(_stop_if_exceeded, server, config.limits, messages)
        server.wait_ready(url, config.start_timeout_s)
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


def _stop_if_exceeded(server: Server, limits: ProviderLimits, messages: _Messages) -> None:
    messages.put({"ended": None, "limit": wait_until_exceeded(limits, server.process_id())})
    kill_processes_below(os.getpid())


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
