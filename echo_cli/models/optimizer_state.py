"""State of AdamW: its file beside the weights, and a step that leaves no trace in the state or the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import unwrap
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from echo_cli.errors import EchoError, first_line
from echo_cli.models.distributed.ranks import Ranks, is_split
from echo_cli.models.distributed.shards import read_shards, shard_shapes, write_shards
from echo_cli.models.distributed.split import split_like
from echo_cli.models.weight_files import SHARDED_WEIGHTS
from echo_cli.text import escape_unprintable

TRAINER_FILE = "trainer.pt"
SHARDED_STATE = "trainer"
"""Folder, in a checkpoint of a split model, with the state in parts (`distributed.shards`)."""


class AdamW(torch.optim.AdamW):
    """AdamW that does not import torch.compile, over a second: torch's methods do so to exclude themselves from it."""

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    load_state_dict, state_dict = unwrap(torch.optim.AdamW.load_state_dict), unwrap(torch.optim.AdamW.state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)


def parameters_of(optimizer: AdamW) -> list[Tensor]:
    """Return the parameters of an optimizer with one group of them."""
    return list(optimizer.param_groups[0]["params"])


def save_optimizer(optimizer: AdamW, names: Sequence[str], folder: Path, ranks: Ranks) -> None:
    """Write the state into `folder` on the first rank; of a split model, by all ranks, which call this together.

    Args:
        names: names of the parameters.

    Raises:
        OSError: a file cannot be written.
        EchoError: a rank has ended (exit code 1).
    """
    if any(map(is_split, parameters_of(optimizer))):
        if moments := _by_name(optimizer, names):
            write_shards(moments, folder / SHARDED_STATE, ranks)
    elif ranks.is_first:
        with (folder / TRAINER_FILE).open("wb") as file:
            writer = _Writer(file)
            torch.save(optimizer.state_dict(), cast(IO[bytes], writer))
        if writer.error is not None:
            raise writer.error


def load_optimizer(optimizer: AdamW, names: Sequence[str], folder: Path, device: torch.device) -> None:
    """Load the moments that `save_optimizer` wrote into `folder`; settings of the optimizer do not change.

    Raises:
        EchoError: a file is damaged or belongs to other parameters.
    """
    sharded = (folder / SHARDED_WEIGHTS).is_dir()
    path = folder / (SHARDED_STATE if sharded else TRAINER_FILE)
    try:
        if sharded:
            moments = _moments_in_shards(path, names, parameters_of(optimizer)) if path.is_dir() else {}
        else:
            # Mapped, so that what does not fit is refused before it is read.
            saved = torch.load(path, map_location=device, weights_only=True, mmap=True)
            moments = _moments_in(saved, parameters_of(optimizer))
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    except Exception as error:  # the file may hold anything, and torch raises a dozen types
        raise EchoError(
            f"{escape_unprintable(path)} is not a trainer state of this run: "
            f"{escape_unprintable(first_line(error))[:200]}",
            "resume from another checkpoint",
        ) from error


@contextmanager
def scratch_step(optimizer: AdamW, gradients: Sequence[Tensor], grad_clip: float, lr: float) -> Iterator[None]:
    """Move the weights by an AdamW step on `gradients` alone for the duration of the block.

    The gradients are clipped in place. The step uses the second moments of `optimizer`, and no first moments or weight
    decay: earlier gradients decide its scale and not its direction. Afterwards weights, accumulated gradients and the
    state of `optimizer` are bitwise as before, even if the block raises.
    """
    parameters, settings = parameters_of(optimizer), optimizer.param_groups[0]
    weights = [parameter.detach().clone() for parameter in parameters]
    accumulated = [parameter.grad for parameter in parameters]
    scratch = AdamW(parameters, lr, settings["betas"], settings["eps"], weight_decay=0.0, fused=True)
    for parameter in parameters:
        if state := optimizer.state.get(parameter):
            squares = state["exp_avg_sq"].clone()
            scratch.state[parameter] = {
                "step": state["step"].clone(),
                "exp_avg": torch.zeros_like(squares),
                "exp_avg_sq": squares,
            }
    try:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
        scratch.step()
        torch.autograd.graph.increment_version(parameters)  # as in TorchPolicy.optim_step
        yield
    finally:
        with torch.no_grad():
            for parameter, weight, earlier in zip(parameters, weights, accumulated, strict=True):
                parameter.copy_(weight)
                parameter.grad = earlier


class _Writer:
    """A file for `torch.save`, which would report a failed write without its errno.

    Serializing into memory first would add twice the size of the trained weights to the peak.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        pass


def _moments_in(saved: Any, parameters: Sequence[Tensor]) -> dict[int, dict[str, Tensor]]:
    """Return the moments, by index of the parameter, of a saved state.

    Raises:
        ValueError: they are not those of `parameters`.
    """
    moments = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(moments, dict) or not moments.keys() <= set(range(len(parameters))):
        raise ValueError("it has other parameters")
    for index, state in moments.items():
        shape = parameters[index].shape
        wanted = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
        there = isinstance(state, dict) and {name: _dense_shape(value) for name, value in state.items()}
        if there != wanted:
            raise ValueError(f"its moments of parameter {index} do not fit the model")
    return {
        index: {
            name: value.clone() if name == "step" else split_like(value.clone(), parameters[index])
            for name, value in state.items()
        }
        for index, state in moments.items()
    }


def _by_name(optimizer: AdamW, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the moments and step counts under names such as `NAME.exp_avg`; parameters that never moved have none."""
    return {
        f"{name}.{kind}": value
        for name, parameter in zip(names, parameters_of(optimizer), strict=True)
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _moments_in_shards(
    folder: Path, names: Sequence[str], parameters: Sequence[Tensor]
) -> dict[int, dict[str, Tensor]]:
    """Read the moments in a folder of shards, by index of the parameter: whole ones, or those of this rank's parts.

    Raises:
        EchoError: they are not those of `parameters`.
    """
    there = shard_shapes(folder)
    moments = {
        index: {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter, dtype=torch.float32),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=torch.float32),
        }
        for index, (name, parameter) in enumerate(zip(names, parameters, strict=True))
        if f"{name}.step" in there
    }
    read_shards(
        {f"{names[index]}.{kind}": value for index, of in moments.items() for kind, value in of.items()}, folder
    )
    return moments


def _dense_shape(value: Any) -> torch.Size | None:
    """Return the shape of a dense float32 tensor; None for anything else."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided and value.dtype is torch.float32
    return value.shape if dense else None
