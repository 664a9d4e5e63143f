"""Plan of each rank of a run that several processes train, for `--dry-run --ranks N`; no process is started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.models.architecture import architecture_of
from echo_cli.models.memory import Dtype, predict_memory
from echo_cli.objective.schedule import GradientNorms, world_model_coeff_at

if TYPE_CHECKING:
    from echo_cli.models.device import DeviceChoice


def plan_of_ranks(config: Config, ranks: int) -> dict[str, Any]:
    """Return the part of the plan on `ranks` ranks: strategy, reason, and per rank rollouts, traces and memory.

    Ranks are taken to be on machines like this one, and CPU ranks all on this one. Without the config's device, the
    strategy depends on the memory of another, so both strategies' predictions are given.

    Raises:
        EchoError: the config cannot be trained with its `distributed.strategy`.
    """
    from echo_cli.models.device import device_memory
    from echo_cli.models.distributed.strategy import REQUESTED, choose_strategy

    if config.service is not None:
        raise EchoError("backend.kind is tinker, which no ranks train", "omit --ranks: the service divides the work")
    choice, is_here = _device(config)
    usable = device_memory(choice.device).usable if is_here else None
    if usable is not None and choice.device.type == "cpu":
        usable //= ranks
    strategy = choose_strategy(config, choice, ranks, usable)
    decided = is_here or strategy.reason == REQUESTED or config.model.kind == "tiny"
    line = f"{strategy.name}: {strategy.reason}"
    return {
        "ranks": ranks,
        "strategy": line if decided else "ddp where a copy fits a rank's device, else fsdp: the device is not here",
        **_of_work(config, ranks),
        **_of_memory(config, choice, ranks, strategy.name if decided else None),
    }


def _device(config: Config) -> tuple[DeviceChoice, bool]:
    """Return the config's device, and whether this machine has it."""
    import torch

    from echo_cli.models.device import DeviceChoice, choose_device

    try:
        return choose_device(config.device, config.model.dtype if config.model.kind == "hf" else "float32"), True
    except EchoError as error:
        dtype = torch.float32 if config.model.dtype == "float32" else torch.bfloat16
        reason = f"{error.message}; planned for an available CUDA device"
        return DeviceChoice(torch.device("cuda"), reason, dtype), False


def _of_work(config: Config, ranks: int) -> dict[str, Any]:
    """Return the numbers of groups, explorers and traces that each rank plays or encodes in the first step."""
    coeff = world_model_coeff_at(config.objective, 0, config.steps, GradientNorms())
    items = {
        "groups": config.rollout.tasks_per_step,
        "explorers": config.explorers_at(coeff),
        "traces": 0 if config.traces is None else config.traces.per_step,
    }
    shares = {name: [len(range(rank, count, ranks)) for rank in range(ranks)] for name, count in items.items()}
    return {f"{name} per step, by rank": _listed(share) for name, share in shares.items() if any(share)}


def _of_memory(config: Config, choice: DeviceChoice, ranks: int, strategy: str | None) -> dict[str, Any]:
    """Return the memory of a rank with `strategy`, None for both; nothing for the built-in model."""
    if config.model.kind == "tiny":
        return {}
    shape = architecture_of(config.model)
    if shape is None:
        return {"peak memory of a rank, GB, predicted": "unknown: no config.json of a Llama-style decoder is here"}
    dtype: Dtype = "bfloat16" if "bfloat16" in str(choice.dtype) else "float32"
    planned: dict[str, Any] = {"device": choice.reason}
    for name in ("ddp", "fsdp") if strategy is None else (strategy,):
        found = predict_memory(shape, config, dtype, choice.device.type, ranks, split=name == "fsdp")
        planned[f"peak memory of a rank with {name}, GB, predicted"] = _gb(found.peak)
        for phase, parts in (("a rollout phase", found.rollout), ("an update", found.update)):
            planned[f"memory of {phase} with {name}, GB"] = {part: _gb(size) for part, size in parts.items() if size}
    return planned


def _listed(numbers: Sequence[int]) -> str:
    """Return one number if all are equal, else all of them."""
    return str(numbers[0]) if len(set(numbers)) == 1 else ", ".join(map(str, numbers))


def _gb(size: int) -> float:
    return round(size / 1e9, 2)
