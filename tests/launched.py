"""Processes as torchrun starts them, with their variables, but without its agent: real ranks that meet over gloo."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch.multiprocessing as mp


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def on_ranks(size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(*arguments)` in `size` processes, which have the variables of torchrun."""
    mp.spawn(_rank, args=(size, free_port(), work, arguments), nprocs=size)  # type: ignore[attr-defined,no-untyped-call]


def _rank(rank: int, size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")
    work(*arguments)
