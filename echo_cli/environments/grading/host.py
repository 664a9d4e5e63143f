"""A process that applies criteria to episodes, one at a time, for `grader.py`.

A grader's code runs here and not in the trainer: it cannot read the trainer's memory or variables, and the trainer can
end it when it hangs, whatever it is doing. A regular expression can hang too.

The process reads JSON lines from stdin: first what to prepare, then a criterion and an episode per line. It writes one
line to stdout for each. When stdin ends, also because the trainer was killed, the process and all that it started end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, BinaryIO, cast

from echo_cli.environments.faults import fault_line
from echo_cli.environments.grading.grade import GraderFault, parse_output
from echo_cli.environments.openenv.package import import_from, load_function
from echo_cli.errors import EchoError
from echo_cli.processes import inherited, say, take_pipes, without_current_folder

_MOST_BYTES = 2**20
"""Maximum size of what a command prints."""

_Order = Mapping[str, Any]


def main() -> None:
    """Apply criteria until stdin ends."""
    before = dict(os.environ)
    orders, report = take_pipes()
    given = {name: value for name, value in os.environ.items() if before.get(name) != value}
    received: SimpleQueue[bytes] = SimpleQueue()
    reader = BufferedReader(cast(Any, orders), 2**16)
    threading.Thread(target=_read, args=(reader, received), daemon=True).start()
    try:
        functions = _prepared(json.loads(received.get()))
    except EchoError as error:
        say(report, {"error": error.message, "tip": error.tip})
        return
    say(report, {"ready": True})
    while True:
        _answer(json.loads(received.get()), functions, given, report)


def _read(orders: BinaryIO, received: SimpleQueue[bytes]) -> None:
    while line := orders.readline():
        received.put(line)
    os.killpg(0, signal.SIGKILL)  # includes this process, which leads its group


def _prepared(order: _Order) -> dict[str, Callable[[Any], Any]]:
    """Import the functions that the config names."""
    if order["import_from"] is not None:
        import_from(order["import_from"])
    return {name: load_function(name) for name in order["functions"]}


def _answer(
    order: _Order, functions: Mapping[str, Callable[[Any], Any]], given: Mapping[str, str], report: BinaryIO
) -> None:
    try:
        answer = apply_criterion(order["criterion"], order["episode"], functions, given)
        line = {"answer": _plain(answer)}
        json.dumps(line)
    except GraderFault as fault:
        line = {"fault": str(fault)}
    except BaseException as error:  # raised by the grader's own code; SystemExit is no way to give a reward
        line = {"fault": f"raised {type(error).__name__}: {error}"}
    say(report, line)


def apply_criterion(
    criterion: _Order, episode: _Order, functions: Mapping[str, Callable[[Any], Any]], given: Mapping[str, str]
) -> Any:
    """Return a criterion's answer about an episode: a number, or what its function or command gives.

    Args:
        criterion: the fields of `Criterion` that are set.
        episode: a trace as JSON, with the task under `meta.task`.
        functions: loaded functions by import path.
        given: environment variables of a command, besides the inherited ones.

    Raises:
        GraderFault: a command fails or prints no number.
    """
    if (pattern := criterion.get("pattern")) is not None:
        return float(re.search(_with_answer(pattern, episode), _searched(criterion, episode)) is not None)
    if (function := criterion.get("function")) is not None:
        return functions[function](episode)
    if command := criterion.get("command"):
        return _run(command, criterion.get("exit_status"), episode, given)
    return float(_last_exit_status(episode) == criterion["exit_status"])


def _with_answer(pattern: str, episode: _Order) -> str:
    if "{answer}" not in pattern:
        return pattern
    answer = episode["meta"]["task"]["answer"]
    if answer is None:
        raise GraderFault("has {answer} in its pattern, and the task has no answer")
    return pattern.replace("{answer}", re.escape(answer if isinstance(answer, str) else json.dumps(answer)))


def _searched(criterion: _Order, episode: _Order) -> str:
    if criterion.get("search") == "transcript":
        return "".join(segment["text"] for segment in episode["segments"])
    return str(episode["turns"][-1]["command"]) if episode["turns"] else ""


def _last_exit_status(episode: _Order) -> int | None:
    codes = [turn["exit_code"] for turn in episode["turns"] if turn["exit_code"] is not None]
    return codes[-1] if codes else None


def _run(command: Sequence[str], wanted: int | None, episode: _Order, given: Mapping[str, str]) -> Any:
    """Run a command with the episode as its stdin; return what it prints, or whether it ends with status `wanted`."""
    words = list(command)
    if words[0] == "python":
        words = without_current_folder([sys.executable, *words[1:]])
    env = {**inherited(os.environ), **given}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH") or os.defpath])
    with tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(episode).encode())
        stdin.seek(0)
        try:
            process = subprocess.Popen(words, env=env, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            raise GraderFault(f"cannot be started: {error.strerror}") from None
        assert process.stdout is not None and process.stderr is not None
        errors = bytearray()
        drain = threading.Thread(target=_keep_end, args=(process.stderr, errors), daemon=True)
        drain.start()
        printed = process.stdout.read(_MOST_BYTES + 1)
        while process.stdout.read(_MOST_BYTES):
            pass  # a pipe that nobody reads would stop the command
        status = process.wait()
        drain.join()
    return _judged(status, wanted, printed, errors.decode(errors="replace"))


def _judged(status: int, wanted: int | None, printed: bytes, errors: str) -> Any:
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
    said = f": {fault_line(last)}" if last else ""
    if status < 0:
        raise GraderFault(f"was killed by {signal.Signals(-status).name}{said}")
    if wanted is not None:
        return float(status == wanted)
    if status != 0:
        raise GraderFault(f"ended with exit code {status}{said}")
    if len(printed) > _MOST_BYTES:
        raise GraderFault("printed more than 1 MiB")
    return parse_output(printed.decode(errors="replace"))


def _keep_end(stream: IO[bytes], kept: bytearray) -> None:
    while part := stream.read1(2**16):  # type: ignore[attr-defined]
        kept += part
        del kept[:-4096]


def _plain(value: Any) -> Any:
    """Return a function's result as JSON; numbers of other libraries become floats.

    Raises:
        GraderFault: it is neither a number nor a mapping of names to numbers.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if hasattr(value, "__float__"):
        return float(value)
    raise GraderFault(f"returned {type(value).__name__} in place of a number")


if __name__ == "__main__":
    main()
