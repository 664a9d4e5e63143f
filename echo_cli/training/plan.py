"""Plan of a run for `--dry-run`: rollouts, tokens, evaluations and memory."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echo_cli.config.backend import SERVICE_ALPHA
from echo_cli.config.episodes.reward import RewardConfig
from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.schema import Config
from echo_cli.config.terminal import TerminalConfig
from echo_cli.environments.terminal.tasks.task_set import load_terminal_tasks
from echo_cli.errors import EchoError
from echo_cli.models.architecture import architecture_of
from echo_cli.models.memory import (
    Dtype,
    MemoryPrediction,
    longest_episode,
    longest_trace,
    predict_memory,
    trained_parameters,
)
from echo_cli.objective.schedule import GradientNorms, world_model_coeff_at
from echo_cli.traces.corpus import TraceCorpus, overlap_line
from echo_cli.training.plan_of_ranks import plan_of_ranks

if TYPE_CHECKING:
    from echo_cli.models.device import DeviceChoice, DeviceMemory


_BYTES_OF_KEPT_TOKEN = 48
"""Bytes of rollouts.jsonl per token: its id, its text twice, its logprob, and a share of the record's keys."""


def plan(config: Config, path: Path, corpus: TraceCorpus | None = None, ranks: int = 1) -> dict[str, Any]:
    """Return the plan of `--dry-run`: rollouts, traces, evaluations and memory. Token counts include context.

    Args:
        corpus: traces of the config; None without traces.
        ranks: number of ranks that train the run; memory is that of each.
    """
    evaluation = config.evaluation
    policy_rollouts, explorers = rollouts_of_step(config)
    return {
        "run directory": str(path),
        **_of_environments(config),
        **(_of_service(config) or _of_model(config)),
        "λ": first_coeff(config),
        "portable λ, estimated": portable_estimate(config),
        "policy rollouts per step": policy_rollouts,
        "explorer rollouts per step": explorers,
        **_of_traces(config, corpus),
        "tokens per step, at most": _most_tokens(config),
        "evaluations": 1 + -(-config.steps // evaluation.every),
        "rollouts per held-out task and evaluation": evaluation.heldout_rollouts,
        "steps between held-out rollouts": evaluation.pass_every,
        "steps between gradient probes, 0 for none": config.probe_every,
        **({"tracked by": ", ".join(config.track)} if config.track else {}),
        **_of_disk(config),
        **(_of_memory(config) if ranks == 1 else plan_of_ranks(config, ranks)),
    }


def _of_environments(config: Config) -> dict[str, Any]:
    """Return the part of the plan on the environment, or on each of several with its weight."""
    each = {
        name: {"environment": of.source, **_of_terminal(of.terminal), **_of_reward(of.reward)}
        for name, of in config.sections.items()
    }
    if not config.names:
        return each[""]
    weights = {entry.name: entry.weight for entry in config.environments or ()}
    for name, found in each.items():
        found["share of tasks"] = round(weights[name] / sum(weights.values()), 4)
    return {"environments": each}


def rollouts_of_step(config: Config, coeff: float | None = None) -> tuple[int, int]:
    """Return the numbers of policy rollouts and of explorer rollouts of a step at λ = `coeff`, by default its first."""
    coeff = first_coeff(config) if coeff is None else coeff
    return config.rollout.tasks_per_step * config.rollout.group_size, config.explorers_at(coeff)


def traces_of_step(config: Config, coeff: float | None = None) -> int:
    """Return the number of traces of a step at λ = `coeff`, by default its first.

    The number is 0 if the traces would contribute nothing next to the RL term.
    """
    if config.traces is None:
        return 0
    coeff = first_coeff(config) if coeff is None else coeff
    useful = coeff > 0 or config.imitation_coeff > 0 or config.rollout.tasks_per_step == 0
    return config.traces.per_step if useful else 0


def _of_reward(reward: RewardConfig) -> dict[str, Any]:
    """Return the part of the plan on the grader, if the config has one."""
    if not reward.has_grader:
        return {}
    graders = [*reward.functions, *map(shlex.join, reward.commands)]
    weights = ", ".join(f"{name} {weight:g}" for name, weight in reward.weights.items())
    return {
        "graded by": ", ".join(graders) or "patterns and exit statuses",
        **({"weights of criteria": weights} if weights else {}),
        "graded at once, at most": reward.workers,
    }


def _of_terminal(terminal: TerminalConfig | None) -> dict[str, Any]:
    """Return the part of the plan on terminal tasks: their number by split, and those that are left out by reason.

    A repository that this machine does not have yet is not fetched for a plan.
    """
    if terminal is None:
        return {}
    try:
        tasks = load_terminal_tasks(terminal)
    except EchoError:
        if terminal.git is None:
            raise
        return {"terminal tasks": "not on this machine yet; a run fetches them"}
    splits = tasks.task_list(terminal).splits.by_name
    counts = {"terminal tasks": {name: len(of) for name, of in splits.items()}}
    return {**counts, **({"terminal tasks left out": dict(tasks.left_out)} if tasks.left_out else {})}


def _of_disk(config: Config) -> dict[str, Any]:
    """Return the part of the plan on rollouts.jsonl, if the run keeps training rollouts."""
    kept = min(config.rollout.keep, sum(rollouts_of_step(config)))
    if kept == 0:
        return {}
    size = config.steps * kept * longest_episode(config) * _BYTES_OF_KEPT_TOKEN
    return {"rollouts kept per step": kept, "disk for kept rollouts, MB, at most": round(size / 1e6, 1)}


def _most_tokens(config: Config) -> int | str:
    highest = max(
        world_model_coeff_at(config.objective, step, config.steps, GradientNorms()) for step in range(config.steps)
    )
    tokens = sum(rollouts_of_step(config, highest)) * longest_episode(config)
    traces = traces_of_step(config, highest)
    if traces == 0:
        return tokens
    shape = architecture_of(config.model)
    if shape is None:
        return f"{tokens}, plus {traces} traces of the model's context length, which is unknown on this machine"
    return tokens + traces * longest_trace(shape, config)


def _of_traces(config: Config, corpus: TraceCorpus | None) -> dict[str, Any]:
    """Return the part of the plan on traces: their number per step and in total, and the overlap of held-out traces."""
    if corpus is None:
        return {}
    found = corpus.to_json()
    held = {name: found[split] for name, split in (("validation", "validation"), ("held-out", "heldout"))}
    return {
        "traces per step": traces_of_step(config),
        "traces": {"train": found["train"], **{name: overlap["traces"] for name, overlap in held.items()}},
        "traces that repeat another": found["repeated"],
        **{f"{name} traces": overlap_line(overlap) for name, overlap in held.items()},
        "epochs over the training traces": round(traces_of_step(config) * config.steps / found["train"], 2),
        "weight of imitation": config.imitation_coeff,
    }


def first_coeff(config: Config) -> float:
    """Return λ at the first step."""
    return world_model_coeff_at(config.objective, 0, config.steps, GradientNorms())


def portable_estimate(config: Config) -> str:
    """Return an estimate of `portable_lambda` before any rollout, as text.

    The exact value depends on the number of action and observation tokens of a rollout and on the rewards. The estimate
    therefore has the ratio of the token counts as a factor, gives the value with all texts at their caps, and uses the
    expected mean |advantage|.
    """
    settings, rollout = config.objective, config.rollout
    if not settings.use_rl:
        return "undefined: there is no RL term"
    rl_rollouts, explorers = rollouts_of_step(config)
    others = explorers + traces_of_step(config)
    expected = expected_advantage(settings, rollout.group_size)
    if expected == 0:
        return "undefined: a group of one rollout has no advantage"
    factor = first_coeff(config) * rl_rollouts / (rl_rollouts + others) / expected
    # If a rollout has `a` action tokens and `o` observation tokens, the weights are 1 / (rollouts · a) and
    # 1 / (rollouts · o) for every kind of mean; with fixed_length, max_length replaces `a` or `o`.
    fixed = str(settings.max_length)
    actions, most_actions = "action tokens", float(rollout.max_action_tokens)
    observations, most_observations = "observation tokens", float(rollout.max_output_tokens)
    if settings.rl_normalization == "fixed_length":
        actions, most_actions = fixed, float(fixed)
    if settings.env_normalization == "fixed_length":
        observations, most_observations = fixed, float(fixed)
    assumed = f"at mean |advantage| {expected:.2g}"
    if actions == observations:
        return f"{factor:.3g}, {assumed}"
    at_caps = factor * most_actions / most_observations
    return f"{factor:.3g} × {actions} / {observations}, which is {at_caps:.2g} at their caps, {assumed}"


def expected_advantage(settings: ObjectiveSettings, group_size: int) -> float:
    """Return the expected mean |advantage| if rewards vary in every group.

    With `group_norm`, it is √(2/π), for normally distributed rewards divided by their standard deviation. Otherwise it
    has the unit of the rewards and is 0.5 in large groups, for rewards of 0 and 1 at even odds.
    """
    if group_size == 1:
        return 0.0
    if settings.advantage == "group_norm":
        return math.sqrt(2 / math.pi)
    return 0.5 * (group_size / (group_size - 1) if settings.advantage == "rloo" else 1.0)


@dataclass(frozen=True)
class Cost:
    """Data type, device memory and predicted memory of a run."""

    dtype: Dtype
    memory: DeviceMemory | None
    """Memory of the device; None if this machine does not have the device."""
    predicted: MemoryPrediction | None
    """Predicted memory; None if the model's architecture is unknown."""

    @property
    def exceeds(self) -> bool:
        """Whether the predicted peak exceeds the usable memory."""
        usable = None if self.memory is None else self.memory.usable
        return self.predicted is not None and usable is not None and self.predicted.peak > usable

    @property
    def line(self) -> str:
        """Prediction in one line."""
        if self.predicted is None:
            return _UNKNOWN
        usable = None if self.memory is None else self.memory.usable
        there = "" if usable is None else f" of {_gb(usable)} usable"
        parts = ", ".join(f"{name} {_gb(size)}" for name, size in self.predicted.parts.items() if size > 0)
        return f"predicted peak {_gb(self.predicted.peak)} GB{there}, in the {self.predicted.phase}: {parts}"


_UNKNOWN = "unknown: the prediction needs a Llama-style decoder whose config.json is on this machine"


def cost_on(choice: DeviceChoice, config: Config, ranks: int = 1, *, split: bool = False) -> Cost:
    """Return the cost of a run with a Hugging Face model on a device, of each rank if there are several.

    Args:
        split: whether the model is split over the ranks.
    """
    from echo_cli.models.device import device_memory

    dtype: Dtype = "bfloat16" if "bfloat16" in str(choice.dtype) else "float32"
    return _cost(config, dtype, choice.device.type, device_memory(choice.device), ranks, split=split)


def _cost(
    config: Config, dtype: Dtype, device: str, memory: DeviceMemory | None, ranks: int = 1, *, split: bool = False
) -> Cost:
    shape = architecture_of(config.model)
    predicted = None if shape is None else predict_memory(shape, config, dtype, device, ranks, split=split)
    return Cost(dtype, memory, predicted)


def memory_notice(config: Config, choice: DeviceChoice, ranks: int = 1, *, split: bool = False) -> list[str]:
    """Return the lines about memory at the start of a run; none for the built-in model, which needs a few megabytes.

    Arguments as in `cost_on`.
    """
    if config.model.kind == "tiny":
        return []
    found = cost_on(choice, config, ranks, split=split)
    lines = [f"memory: {found.line}"]
    if found.exceeds:
        lines.append(
            "warning: the predicted peak exceeds the usable memory; lower optim.token_budget or rollout.group_size"
        )
    return lines


def _of_service(config: Config) -> dict[str, Any]:
    """Return the part of the plan on the Tinker service, if the config has one; nothing is asked of it."""
    if (service := config.service) is None:
        return {}
    shape, rank = architecture_of(config.model), service.rank(config.model)
    trained = "" if shape is None else f", {shape.lora_parameters(rank)} parameters"
    return {
        "Tinker service": service.url,
        "base model": service.base_model or f"{config.model.path} if the service has it, else its only model",
        "adapter": f"LoRA of rank {rank} on every linear layer but the head{trained}; alpha {SERVICE_ALPHA:g}",
        "reduction": service.reduction if service.reduction != "auto" else "measured before the first step",
        "memory": "the service's",
    }


def _of_model(config: Config) -> dict[str, Any]:
    model, shape = config.model, architecture_of(config.model)
    if shape is None:
        return {"model": f"{model.path}, of unknown size: no config.json of a Llama-style decoder on this machine"}
    trained = trained_parameters(shape, config)
    share = "all" if model.lora is None else f"{trained / shape.parameters:.2%}, a LoRA of rank {model.lora.rank}"
    return {
        "model": f"{model.path}, {shape.layers} layers of width {shape.hidden}, {shape.max_length} tokens of context",
        "parameters": shape.parameters,
        "parameters trained": f"{trained} ({share})",
    }


def _of_memory(config: Config) -> dict[str, Any]:
    """Return the part of the plan on memory, for a Hugging Face model: device, dtype, and memory of both phases."""
    if config.model.kind == "tiny" or config.service is not None:
        return {}
    from echo_cli.models.device import choose_device

    try:
        choice = choose_device(config.device, config.model.dtype)
    except EchoError as error:
        dtype: Dtype = "float32" if config.model.dtype == "float32" else "bfloat16"
        found, where = _cost(config, dtype, "cuda", None), f"{error.message}; planned for an available CUDA device"
    else:
        found, where = cost_on(choice, config), choice.reason
    planned: dict[str, Any] = {"device": where, "dtype": found.dtype}
    if found.predicted is None:
        return {**planned, "peak memory, GB, predicted": _UNKNOWN}
    if found.memory is not None:
        planned["memory of the device, GB"] = _gb(found.memory.total)
    return {
        **planned,
        "peak memory, GB, predicted": _gb(found.predicted.peak),
        **({"memory of loading, GB": _sizes(found.predicted.loading)} if found.predicted.loading else {}),
        "memory of a rollout phase, GB": _sizes(found.predicted.rollout),
        "memory of an update, GB": _sizes(found.predicted.update),
    }


def _sizes(parts: Mapping[str, int]) -> dict[str, float]:
    return {name: _gb(size) for name, size in parts.items()}


def _gb(size: int) -> float:
    return round(size / 1e9, 2)
