"""A contender in a separate process, which executes one order at a time. Imports no echo_cli.

Orders and answers are JSON objects, one per line. `load` loads a model; the answer has its loss, gradient norm and
number of parameters. `time` runs a `rollout` or an `update`; the answer has its seconds, and on CUDA the peak of
allocated bytes. `peak` runs the same; the answer has its peak of resident bytes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from lm_benchmark.resident import peak_over_now

SCRIPTS = Path(__file__).resolve().parents[1]


class Contender(Protocol):
    """Contender whose update is timed."""

    def forward_backward(self) -> float: ...
    def optim_step(self) -> float: ...
    def parameters(self) -> int: ...


@runtime_checkable
class Player(Contender, Protocol):
    """Contender whose rollout is timed as well."""

    def rollout(self) -> None: ...


def serve(make: Callable[[str], Contender]) -> None:
    """Answer orders on standard output until standard input ends. Output of libraries goes to standard error.

    Args:
        make: creates the contender with the model in a folder.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender: Contender | None = None
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "load":
            contender = None  # frees the previous contender's memory first
            contender = make(order["model"])
            loss, norm = contender.forward_backward(), contender.optim_step()
            answer = {"loss": loss, "gradient_norm": norm, "parameters": float(contender.parameters())}
        else:
            assert contender is not None
            answer = _answer(contender, order)
        print(json.dumps(answer), file=answers, flush=True)


def _answer(contender: Contender, order: Mapping[str, Any]) -> dict[str, float]:
    def update() -> None:
        contender.forward_backward()
        contender.optim_step()

    work = update
    if order["work"] == "rollout":
        assert isinstance(contender, Player)
        work = contender.rollout
    if order["do"] == "peak":
        return {"bytes": peak_over_now(work)}
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started = _now()
    work()
    return {"seconds": _now() - started, "allocated": float(torch.cuda.max_memory_allocated() if cuda else 0)}


def _now() -> float:
    """Return the time once the device has finished its work, seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Worker:
    """Client of a contender's process, started with its spec."""

    def __init__(self, python: str, module: str, spec: Path, environment: Mapping[str, str]) -> None:
        self.name = module
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that nobody reads fills up
        path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [python, "-m", module, str(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            # From Python 3.11 on, -m then imports nothing from the current folder; TRL's Python may be an older one.
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **environment},
        )

    def ask(self, do: str, timeout_s: float = threading.TIMEOUT_MAX, **order: str) -> dict[str, float]:
        """Send one order and return the answer.

        Raises:
            RuntimeError: the process ended (the message has the last line that it wrote), or was killed after
                `timeout_s`.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        killer = threading.Timer(timeout_s, self._process.kill)
        killer.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            killer.cancel()
        if not line:
            status = self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip().splitlines() or [f"status {status}"]
            if status == -signal.SIGKILL:
                said = ["it was killed: too little time or memory"]
            raise RuntimeError(f"{self.name} ended: {said[-1]}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()
