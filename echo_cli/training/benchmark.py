"""Benchmark of the env term's cost: updates with and without it, compared on the same rollouts.

Each repeat plays new on-policy rollouts, then times the update of every variant on them in random order, so that
drifts in the machine's speed affect all variants equally. An update consists of advantages, weights, forward and
backward passes, and the optimizer step. The learning rate is 0: the optimizer does its full work but does not change
the weights, so every variant and every repeat uses the same policy.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median as middle
from typing import Any

import torch

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.schema import Config
from echo_cli.config.section import Grants
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.worlds import open_worlds
from echo_cli.errors import EchoError
from echo_cli.evaluation.loaded_run import build_policy
from echo_cli.models.backend import Policy
from echo_cli.objective.schedule import world_model_coeff_at
from echo_cli.objective.step import weigh_step
from echo_cli.processes import ChildProcess, say, take_pipes
from echo_cli.seeds import generator
from echo_cli.statistics import median
from echo_cli.text import counted
from echo_cli.training.step_data import play_explorers, play_tasks
from echo_cli.trajectory import Role, Trajectory

Result = dict[str, Any]

BASELINE = "lambda_zero"

# The paper's λ, used if λ is 0 in the config. The value of λ does not affect the cost.
_SOME_COEFF = 0.05

# The variant sets λ, and a schedule that follows the RL gradient does not apply to the env term alone.
_NO_SCHEDULE: Mapping[str, Any] = {
    field.name: field.default
    for field in fields(ObjectiveSettings)
    if field.name.startswith(("schedule", "gradient_ratio_", "world_model_coeff_end", "env_every"))
}

_CUDA_MEMORY = "peak of torch's CUDA allocator during the update, the largest of all repeats"
_CPU_MEMORY = "peak resident set of a separate process per variant, which plays a step's rollouts and updates twice"


@dataclass(frozen=True)
class Variant:
    """A method to compute the update."""

    name: str
    label: str
    coeff: float
    scores_observations: bool = True
    """Whether the LM head is applied to observation targets. If False, there is no env-CE to log."""
    second_pass: bool = False
    """Whether the env term has its own forward and backward pass."""
    explorers: int = 0
    """Number of scripted rollouts in addition to the on-policy rollouts."""


@dataclass(frozen=True)
class Timing:
    """Timing of an update and of the rollouts before it."""

    rollout_s: float
    update_s: float
    rollouts: int
    tokens: int
    """Number of tokens of the batch, including context, each counted once."""
    peak_bytes: int | None = None
    """Peak of allocated CUDA memory, bytes; None on CPU."""

    @property
    def step_s(self) -> float:
        return self.rollout_s + self.update_s


def env_coeff(config: Config) -> tuple[float, bool]:
    """Return λ of the variants with an env term, and whether it is the config's λ at step 0 (used if above 0)."""
    coeff = world_model_coeff_at(config.objective, 0, config.steps)
    return (coeff, True) if coeff > 0 else (_SOME_COEFF, False)


def variants(config: Config) -> list[Variant]:
    """Return the variants to compare.

    Raises:
        EchoError: the config has no RL term.
    """
    if not config.objective.use_rl:
        tip = "add objective.use_rl=true, or choose another --config"
        raise EchoError(
            "objective.use_rl is false: bench compares with plain GRPO, which needs the RL term",
            "choose a --config with an environment" if config.environment.none else tip,
        )
    coeff, explorers = env_coeff(config)[0], config.rollout.explorers
    found = [
        Variant("actions_only", "λ = 0, observations not scored", 0.0, scores_observations=False),
        Variant(BASELINE, "λ = 0, observations scored for the log", 0.0),
        Variant("one_pass", f"λ = {coeff:g}, the same forward pass", coeff),
        Variant("second_pass", f"λ = {coeff:g}, a second pass for the env term", coeff, second_pass=True),
    ]
    if explorers:
        found.append(
            Variant("explorers", f"λ = {coeff:g} and {counted(explorers, 'explorer')}", coeff, explorers=explorers)
        )
    return found


def bench(config: Config, repeats: int, on_progress: Callable[[str], None] = lambda _: None) -> Result:
    """Measure every variant `repeats` times after a warm-up.

    Args:
        on_progress: called with progress messages.

    Raises:
        EchoError: the config has no RL term, the policy cannot be built, or a gradient is not finite.
    """
    compared = variants(config)
    if config.service is not None:
        raise EchoError("a Tinker service's updates are not compared here", "set backend=null to measure this machine")
    policy, choice = build_policy(config)
    on_progress(f"{len(compared)} variants on {choice.reason}")
    timings: list[dict[str, Timing]] = []
    with open_worlds(config) as worlds:
        for number in range(repeats + 1):  # the first is the warm-up
            played = _play(config, policy, worlds, max(variant.explorers for variant in compared), number)
            order = generator(config.seed, "bench", number).sample(compared, len(compared))
            timings.append({variant.name: _update(config, policy, played, variant) for variant in order})
            if number and (number % 5 == 0 or number == repeats):
                on_progress(f"repeat {number}/{repeats}")
    coeff, configured = env_coeff(config)
    result: Result = {
        "device": choice.reason,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "lambda": coeff,
        "lambda_from_config": configured,
        "traces_left_out": config.traces is not None,
        "variants": summarize(compared, timings[1:]),
    }
    cuda = choice.device.type == "cuda"
    if not cuda:
        on_progress("peak memory, one process per variant")
        for row, variant in zip(result["variants"], compared, strict=True):
            row["peak_memory_bytes"] = _peak_of_own_process(config, variant)
    return result | {"memory": _CUDA_MEMORY if cuda else _CPU_MEMORY, "sentence": sentence(result)}


def summarize(compared: Sequence[Variant], repeats: Sequence[Mapping[str, Timing]]) -> list[Result]:
    """Return a row per variant: medians and ranges over the repeats, and ratios to λ = 0 paired within each repeat."""
    rows = []
    for variant in compared:
        own, base = ([repeat[name] for repeat in repeats] for name in (variant.name, BASELINE))
        pairs = list(zip(own, base, strict=True))
        rows.append(
            {
                "name": variant.name,
                "label": variant.label,
                "lambda": variant.coeff,
                "rollouts": own[0].rollouts,
                "tokens": middle(timing.tokens for timing in own),
                "rollout_seconds": _range([timing.rollout_s for timing in own]),
                "update_seconds": _range([timing.update_s for timing in own]),
                "step_seconds": _range([timing.step_s for timing in own]),
                "update_tokens_per_second": middle(timing.tokens / timing.update_s for timing in own),
                "step_tokens_per_second": middle(timing.tokens / timing.step_s for timing in own),
                "update_ratio": _ratio([timing.update_s / zero.update_s for timing, zero in pairs]),
                "step_ratio": _ratio([timing.step_s / zero.step_s for timing, zero in pairs]),
                "peak_memory_bytes": max(timing.peak_bytes or 0 for timing in own) or None,
            }
        )
    return rows


def sentence(result: Result) -> str:
    """Return the cost of λ > 0 in one sentence."""
    rows = {row["name"]: row for row in result["variants"]}
    one, second = rows["one_pass"], rows["second_pass"]
    low, high = one["update_ratio"]["low"], one["update_ratio"]["high"]
    interval = "" if low is None else f" (95 % interval {_percent(low)} to {_percent(high)})"
    return (
        f"λ = {result['lambda']:g} costs {_percent(one['update_ratio']['median'])} over λ = 0 in an update{interval} "
        f"and {_percent(one['step_ratio']['median'])} in a whole step; a second pass would cost "
        f"{_percent(second['update_ratio']['median'])} and {_percent(second['step_ratio']['median'])}."
    )


def accumulate(
    policy: Policy,
    trajectories: Sequence[Trajectory],
    settings: ObjectiveSettings,
    variant: Variant,
    temperature: float,
) -> None:
    """Weigh the rollouts and add the gradient of the variant's loss to the policy's gradient.

    With a second pass, the first pass scores only action targets and the second only observation targets, so nothing
    is scored twice. Both use the weights of the whole batch, so their gradients add up to the gradient of one pass.
    """
    step = weigh_step(trajectories, settings, variant.coeff, temperature, mark_ends=policy.mark_ends)
    if not variant.second_pass and variant.scores_observations:
        policy.forward_backward(step)
        return
    blind = [_without_observations(trajectory, settings) for trajectory in step.trajectories]
    policy.forward_backward(replace(step, trajectories=blind, coeff=0.0))
    if variant.second_pass:
        env_only = replace(settings, use_rl=False, kl_coeff=0.0, **_NO_SCHEDULE)
        policy.forward_backward(replace(step, settings=env_only, advantages_B=None))


def _without_observations(trajectory: Trajectory, settings: ObjectiveSettings) -> Trajectory:
    """Return the trajectory with all targets of the env term changed to context."""
    segments = tuple(
        replace(segment, role=Role.CONTEXT) if segment.role in settings.selected_roles else segment
        for segment in trajectory.segments
    )
    return replace(trajectory, segments=segments)


@dataclass(frozen=True)
class _Rollouts:
    """Rollouts of a step, and their wall-clock time, seconds."""

    on_policy: Sequence[Trajectory]
    explorers: Sequence[Trajectory]
    on_policy_s: float
    explorers_s: float


def _play(config: Config, policy: Policy, worlds: TaskSuite, explorers: int, step: int) -> _Rollouts:
    started = _now(policy)
    on_policy = play_tasks(config, policy, worlds, step)
    played = _now(policy)
    scripted = play_explorers(config, policy, worlds, step, explorers)
    return _Rollouts(on_policy, scripted, played - started, _now(policy) - played)


def _update(config: Config, policy: Policy, played: _Rollouts, variant: Variant) -> Timing:
    exploring = variant.explorers > 0
    trajectories = [*played.on_policy, *(played.explorers if exploring else ())]
    cuda = policy.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(policy.device)
    begun = _now(policy)
    accumulate(policy, trajectories, config.objective, variant, config.rollout.temperature)
    norm = policy.optim_step(lr=0.0)
    ended = _now(policy)
    if norm is None or not math.isfinite(norm):
        raise EchoError(
            f"the gradient norm is {norm}: the step cannot be timed", "check the weights in model.path", exit_code=1
        )
    return Timing(
        rollout_s=played.on_policy_s + (played.explorers_s if exploring else 0.0),
        update_s=ended - begun,
        rollouts=len(trajectories),
        tokens=sum(map(len, trajectories)),
        peak_bytes=torch.cuda.max_memory_allocated(policy.device) if cuda else None,
    )


def _now(policy: Policy) -> float:
    """Return the clock time, seconds, once the device has finished its work."""
    if policy.device.type == "cuda":
        torch.cuda.synchronize(policy.device)
    return time.perf_counter()


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"median": middle(values), "min": min(values), "max": max(values)}


def _ratio(values: Sequence[float]) -> dict[str, float | None]:
    estimate = median(values)
    interval = {"low": estimate.low, "high": estimate.high}
    return {"median": estimate.value, **interval, "min": min(values), "max": max(values)}


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _peak_of_own_process(config: Config, variant: Variant) -> int:
    """Return the peak memory, bytes, of a new process that runs a warm-up and a step of `variant`.

    A new process is needed because memory retained by one variant would hide the peak of the next.
    """
    with tempfile.TemporaryFile() as log:
        child = ChildProcess("echo_cli.training.benchmark", os.environ, stderr=log)
        try:
            grants = asdict(config.environment.grants)
            child.send({"variant": variant.name, "config": config.model_dump_json(), "grants": grants})
            peak = child.receive()
            code = None if peak else child.exit_code()
        finally:
            child.kill()
        if peak is not None:
            return int(peak["bytes"])
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines() or [""]
    reason = f"signal {-code}" if code is not None and code < 0 else lines[-1]
    raise EchoError(
        f"the process that measures the memory of '{variant.label}' failed: {reason}",
        "if memory is insufficient, lower optim.token_budget",
        exit_code=1,
    )


def main() -> None:
    """Warm up, update once, and report this process's peak resident set, bytes, to `bench`."""
    orders, report = take_pipes()
    order = json.loads(orders.readline())
    config = Config.model_validate_json(order["config"]).granted(Grants(**order["grants"]))
    (variant,) = (variant for variant in variants(config) if variant.name == order["variant"])
    policy, _ = build_policy(config, quiet=True)
    with open_worlds(config) as worlds:
        played = _play(config, policy, worlds, variant.explorers, step=0)
    for _ in range(2):  # the first update creates the optimizer state
        _update(config, policy, played, variant)
    say(report, {"bytes": _peak_resident_bytes()})


def _peak_resident_bytes() -> int:
    if sys.platform == "linux":
        # Not ru_maxrss, which on Linux includes the peak of the process that forked this one.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status["VmHWM"].removesuffix("kB"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    main()
