"""Joining the ranks that torchrun has started: one per process, with a device each."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]  # public, and missing in __all__

from echo_cli.config.schema import Config, flat_config
from echo_cli.errors import EchoError
from echo_cli.models.distributed.peers import LostRank, Peers, started_at
from echo_cli.models.distributed.ranks import ALONE, Ranks

_TIMEOUT_S = 24 * 3600
"""Seconds that a rank waits for the others: a rank whose episodes take longer holds them up, and is not lost."""


@dataclass(frozen=True)
class Launch:
    """This process as torchrun has started it."""

    rank: int
    size: int
    local_rank: int
    restarts: int
    """Number of times that torchrun has started all ranks again, after one of them had failed."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def id(self) -> str:
        """12 hexadecimal digits that are equal after a restart, and different for another torchrun."""
        run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        agent = f"{socket.gethostname()} {os.getppid()} {started_at(os.getppid())}"
        return hashlib.sha256((agent if run == "none" else run).encode()).hexdigest()[:12]


def launched() -> Launch | None:
    """Return how torchrun has started this process; None if it has not."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not {*names, "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return None
    rank, size, local_rank = (int(os.environ[name]) for name in names)
    return Launch(rank, size, local_rank, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))


@contextmanager
def joined(config: Config, launch: Launch | None, same: Callable[[], Sequence[str]] = list) -> Iterator[Ranks]:
    """Yield the ranks of this run: those of `launch`, or `ALONE` if torchrun has not started it.

    An error in the block ends the process with its exit code, and only one of the ranks that have it tells the user.

    Args:
        same: returns what else has to be equal on all ranks, such as the version of the code.

    Raises:
        EchoError: a rank has no device, or ranks have different configs or different `same`.
    """
    if launch is None or launch.size == 1:
        yield ALONE
        return
    uses_cuda = config.device != "cpu" and torch.cuda.is_available()
    store, peers = _meet(launch)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if uses_cuda else "gloo",
        store=PrefixStore("torch/", store),
        rank=launch.rank,
        world_size=launch.size,
        timeout=timedelta(seconds=_TIMEOUT_S),
    )
    ranks = Ranks(launch.rank, launch.size, peers)
    try:
        if uses_cuda:
            ranks.collect(lambda: _take_device(launch))
        _check_same(ranks, config, same())
        yield ranks
    except EchoError as error:
        speaks = peers.speaks(error.message)
        # A thread of the group that still runs when the process ends would abort it. NCCL may wait for a lost rank.
        if not (uses_cuda and isinstance(error, LostRank)):
            dist.destroy_process_group()
        if speaks:
            raise
        raise SystemExit(error.exit_code) from error
    dist.destroy_process_group()


def speaks(message: str) -> bool:
    """Return whether this process tells the user of an error that it has before it joins the other ranks.

    Of ranks that have the same error, such as a config that none can load, only one does.
    """
    launch = launched()
    return launch is None or launch.size == 1 or _meet(launch)[1].speaks(message)


def _meet(launch: Launch) -> tuple[PrefixStore, Peers]:
    """Return a store that all ranks share, and what it is used for besides torch's own matters."""
    store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=_TIMEOUT_S)))
    # torchrun's store outlives a restart, with the addresses of the ranks that ended.
    store = PrefixStore(f"attempt-{launch.restarts}/", store)
    peers = Peers(rank, size, PrefixStore("echo-cli/", store))
    peers.register()
    return store, peers


def _take_device(launch: Launch) -> None:
    """Make this rank's CUDA device the one that `cuda` names.

    Raises:
        EchoError: this machine has fewer devices than ranks.
    """
    count = torch.cuda.device_count()
    if launch.local_rank >= count:
        message = f"rank {launch.rank} is the process {launch.local_rank + 1} of its machine, which has {count} GPUs"
        raise EchoError(message, f"start {count} a machine: torchrun --nproc-per-node {count}; or set device=cpu")
    torch.cuda.set_device(launch.local_rank)


def _check_same(ranks: Ranks, config: Config, same: Sequence[str]) -> None:
    """Refuse ranks with different configs or different `same`, and name the first that differs from rank 0.

    Raises:
        EchoError: there is such a rank.
    """
    mine: dict[str, Any] = flat_config(json.loads(config.model_dump_json()))
    everyone = ranks.gather((list(same), mine))
    for rank, (words, values) in enumerate(everyone):
        for was, now in zip(everyone[0][0], words, strict=True):
            if was != now:
                raise EchoError(f"rank 0 has {was}, rank {rank} {now}", "start all ranks from the same code")
        for key in sorted(everyone[0][1].keys() | values.keys()):
            if (first := everyone[0][1].get(key)) != (other := values.get(key)):
                message = f"the ranks have different configs: {key} is {first} on rank 0 and {other} on rank {rank}"
                raise EchoError(message, "start all ranks with the same command line and the same files")
