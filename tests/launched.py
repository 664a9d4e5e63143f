"""Processes as torchrun starts them, with their variables, but without its agent: real ranks that meet over gloo.

They are kept for the next test, because a process takes seconds to import torch and transformers.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Collection
from contextlib import redirect_stderr
from io import StringIO
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from echo_cli.cli.main import main

OnRanks = Callable[..., None]
"""`RankPool.run`, as the fixture `on_ranks` gives it."""


class RankPool:
    """Processes that are the ranks of one run after another."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._members: list[tuple[SpawnProcess, Connection]] = []

    def run(self, size: int, work: Callable[..., object], *arguments: Any, killed: Collection[int] = ()) -> None:
        """Call `work(*arguments)` in `size` processes, which have the variables of torchrun, at the same time.

        Args:
            killed: ranks whose process ends during the call.

        Raises:
            AssertionError: the call raises in a rank; the others are ended.
        """
        while len(self._members) < size:
            self._start()
        # As torchrun's, the store outlives every rank.
        store, members = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), self._members[:size]
        for rank, (_, pipe) in enumerate(members):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": store.port}
            own = {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
            own["TORCHELASTIC_USE_AGENT_STORE"] = "True"
            pipe.send((work, arguments, {**os.environ, **own}))
        answers = self._answers(members)
        if any(answers.values()):
            self.stop()
        raised = {rank: answer for rank, answer in answers.items() if answer and rank not in killed}
        assert not raised, "\n".join(f"rank {rank}: {answer}" for rank, answer in raised.items())

    def stop(self) -> None:
        """End all processes."""
        for process, pipe in self._members:
            process.kill()
            process.join()
            pipe.close()
        self._members.clear()

    def _start(self) -> None:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, Path.cwd()), daemon=True)
        process.start()
        there.close()
        self._members.append((process, here))

    def _answers(self, members: list[tuple[SpawnProcess, Connection]]) -> dict[int, str]:
        """Return what each rank raised, empty for nothing, until all have answered or the first has raised."""
        answers: dict[int, str] = {}
        while len(answers) < len(members) and not any(answer.startswith("Traceback") for answer in answers.values()):
            waiting = {pipe: rank for rank, (_, pipe) in enumerate(members) if rank not in answers}
            for pipe in multiprocessing.connection.wait(list(waiting)):
                assert isinstance(pipe, Connection)
                try:
                    answers[waiting[pipe]] = pipe.recv()
                except EOFError:
                    answers[waiting[pipe]] = "its process has ended"
        return answers


def say(words: list[str], folder: str) -> None:
    """Run a command in a rank, and keep its exit code and what it says on stderr in `folder`, as `saidRANK`."""
    with redirect_stderr(StringIO()) as said:
        try:
            code: object = main(words)
        except SystemExit as end:
            code = end.code
    Path(folder, f"said{os.environ['RANK']}").write_text(f"{code} {said.getvalue()}")


def _serve(pipe: Connection, folder: Path) -> None:
    """Do what comes through the pipe, and answer each time with what was raised, empty for nothing."""
    import torch

    while True:
        work, arguments, environment = pipe.recv()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(1)
        try:
            work(*arguments)
        except BaseException:
            pipe.send(traceback.format_exc())
        else:
            pipe.send("")
