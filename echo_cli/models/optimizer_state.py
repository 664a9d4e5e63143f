"""State of AdamW: its file beside the weights, and a step that leaves no trace in the state or the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import unwrap
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from echo_cli.errors import EchoError, first_line
from echo_cli.models.distributed.ranks import Ranks
from echo_cli.models.distributed.split import split_like, whole_on_first
from echo_cli.text import escape_unprintable

TRAINER_FILE = "trainer.pt"


class AdamW(torch.optim.AdamW):
    """AdamW that does not import torch.compile, over a second: torch's methods do so to exclude themselves from it."""

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    load_state_dict, state_dict = unwrap(torch.optim.AdamW.load_state_dict), unwrap(torch.optim.AdamW.state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)


def parameters_of(optimizer: AdamW) -> list[Tensor]:
    """Return the parameters of an optimizer with one group of them."""
    return list(optimizer.param_groups[0]["params"])


def whole_state(optimizer: AdamW, ranks: Ranks) -> dict[str, Any]:
    """Return the state, with whole moments on the first rank; a collective if they are split over the ranks."""
    state: dict[str, Any] = optimizer.state_dict()
    if ranks.size == 1:
        return state
    moments = {
        index: {name: whole_on_first(value, ranks) for name, value in of.items()}
        for index, of in state["state"].items()
    }
    return {**state, "state": moments}


def save_optimizer(state: Mapping[str, Any], folder: Path) -> None:
    """Write a state with whole moments (`whole_state`) into `folder`.

    Raises:
        OSError: the file cannot be written.
    """
    with (folder / TRAINER_FILE).open("wb") as file:
        writer = _Writer(file)
        torch.save(state, cast(IO[bytes], writer))
    if writer.error is not None:
        raise writer.error


def load_optimizer(optimizer: AdamW, folder: Path, device: torch.device) -> None:
    """Load the moments that `save_optimizer` wrote into `folder`; settings of the optimizer do not change.

    Raises:
        EchoError: the file is damaged or belongs to other parameters.
    """
    path = folder / TRAINER_FILE
    try:
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


def _dense_shape(value: Any) -> torch.Size | None:
    """Return the shape of a dense float32 tensor; None for anything else."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided and value.dtype is torch.float32
    return value.shape if dense else None
