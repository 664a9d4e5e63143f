"""The processes that train one run together: how they deal work, add tensors, and agree.

Each rank plays its share of a step's rollouts and back-propagates its share of their tokens; in between, every rank
learns all rollouts. So weights, denominators, filters, alarms and the pairs that training has executed are computed
from the same data everywhere, as in one process, and only sums of gradients and of metrics cross the ranks.

Gradients are added explicitly after the backward pass, not by DistributedDataParallel: that wrapper divides by the
number of ranks, expects as many backward passes on every rank, while a rank here may have no rollout at all, and does
not see the gradients that a probe takes apart. The price is that the sum does not overlap with the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from echo_cli.errors import EchoError
from echo_cli.models.device import is_out_of_memory
from echo_cli.models.distributed.peers import Peers

T = TypeVar("T")
R = TypeVar("R")

_BUCKET = 25_000_000
"""Number of elements that are added over ranks at a time: large enough for the network, small beside a model."""


class Ranks:
    """The processes of a run, seen from the one with number `rank`; `ALONE` is a run of one process.

    Except `share` and `is_first`, every method is a collective: all ranks call it, in the same order. An error that one
    rank raises in `collect`, `each`, `map` or `first` is raised on all of them.
    """

    def __init__(self, rank: int = 0, size: int = 1, peers: Peers | None = None) -> None:
        self.rank = rank
        self.size = size
        self._peers = peers

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and talks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's share of `items`: each `size`-th one, so that shares differ by one item at most."""
        return items[self.rank :: self.size]

    def gather(self, value: T) -> list[T]:
        """Return the `value` of every rank, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        with self.together():
            dist.all_gather_object(values, value)
        return values

    def collect(self, work: Callable[[], T]) -> list[T]:
        """Do `work` on every rank and return the results of all, in order of rank.

        Raises:
            EchoError: the first error of a rank.
        """
        if self.size == 1:
            return [work()]
        found: T | EchoError
        try:
            found = work()
        except EchoError as error:
            found = error
        results = []
        for result in self.gather(found):
            if isinstance(result, EchoError):
                raise result
            results.append(result)
        return results

    def each(self, work: Callable[[], T]) -> T:
        """Do `work` on every rank, and return this rank's own result, which stays here. Errors as in `collect`."""
        mine: list[T] = []
        self.collect(lambda: mine.append(work()))
        return mine[0]

    def map(self, work: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R]:
        """Return the results of `work`, one for each of `items`; each rank does its share. Errors as in `collect`."""
        parts = self.collect(lambda: work(self.share(items)))
        return [parts[place % self.size][place // self.size] for place in range(len(items))]

    def first(self, work: Callable[[], T]) -> T:
        """Do `work` on the first rank alone, and return its result on all. Errors as in `collect`."""
        results = self.collect(lambda: work() if self.is_first else None)
        return results[0]  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any rank."""
        return any(self.gather(flag))

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add each of `tensors` over all ranks, in place. All have the same dtype and device.

        On a CUDA device, the ranks first meet on the CPU: a rank that has ended is noticed there, while a kernel that
        waits for it would not return.
        """
        if self.size == 1 or not tensors:
            return
        if tensors[0].device.type != "cpu":
            self.gather(None)
        with self.together():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                dist.all_reduce(flat)
                for tensor, total in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                    tensor.copy_(total.view_as(tensor))

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add the gradients of `parameters` over all ranks; a rank without a gradient adds zeros.

        Where no rank has any gradient, none is made: the optimizer leaves such a step out. The gradients of split
        parameters are added already.
        """
        parameters = [parameter for parameter in parameters if not is_split(parameter)]
        if (
            self.size == 1
            or not parameters
            or not self.any(any(parameter.grad is not None for parameter in parameters))
        ):
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum([parameter.grad for parameter in parameters if parameter.grad is not None])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Name the ranks that have ended if a collective in the block fails.

        Raises:
            EchoError: a rank has ended or does not answer (exit code 1).
        """
        try:
            yield
        except RuntimeError as error:  # every backend of torch.distributed raises subclasses of it
            if self._peers is None or is_out_of_memory(error):
                raise
            raise self._peers.lost(error) from error


ALONE = Ranks()


def is_split(tensor: Tensor) -> bool:
    """Return whether a tensor is a part of one that is split over the ranks, a DTensor (`split`)."""
    return hasattr(tensor, "full_tensor")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Split `tensors`, in order, into lists of at most `_BUCKET` elements; a larger tensor is alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    yield bucket
