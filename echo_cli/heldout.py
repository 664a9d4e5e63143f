"""A checkpoint on the frozen pools, beside the policy it started from, over the same pairs."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_cli.config import load_config
from echo_cli.error import EchoError
from echo_cli.evaluate import Evaluator
from echo_cli.observation import pairs_of
from echo_cli.policy import TorchPolicy
from echo_cli.pool import Pair, Pool
from echo_cli.run import open_run
from echo_cli.session import build_policy, build_worlds
from echo_cli.trajectory import Role, Trajectory


def evaluate_run(
    path: Path, which: str | int, rollouts: int, command: str | None, device: str | None
) -> dict[str, Any]:
    """Evaluate a checkpoint of the run at `path`.

    Pairs that training had executed by that checkpoint are left out of the headline, for both policies.

    Args:
        which: "best", "latest" or a step.
        rollouts: per task, for pass@1.
        command: the held-out command to read out; None takes the first `grep` of the pool.

    Raises:
        EchoError: no such run or checkpoint, `command` is not in the held-out pool, or an earlier version made the run.
    """
    run = open_run(path)
    overrides = [f"evaluation.heldout_rollouts={rollouts}", f"evaluation.validation_rollouts={rollouts}"]
    config = load_config(run.config_path, [*overrides, *([f"device={device}"] if device else [])])
    folder, meta = run.load_checkpoint(which)
    initial, _ = build_policy(config)
    trained, _ = build_policy(config)
    trained.load(folder)
    evaluator = Evaluator(config, build_worlds(config), trained.tokenizer)
    evaluator.observe(pairs_of(run.read_observations(meta["step"])))
    evaluator.remember_start(initial)
    output = _find(evaluator.pools["heldout"], command, evaluator.seen)
    return {
        "run": path.resolve().name,
        "step": meta["step"],
        "before": dict(evaluator.evaluate(initial, 0).metrics),
        "after": dict(evaluator.evaluate(trained, 0).metrics),
        "readout": {
            "command": output.command,
            "actual": trained.tokenizer.decode(output.token_ids),
            "tokens": len(output.token_ids),
            "before": _read(initial, output),
            "after": _read(trained, output),
        },
    }


@dataclass(frozen=True)
class _Output:
    """One output in a pool, `start` tokens into its trajectory."""

    command: str
    trajectory: Trajectory
    start: int
    token_ids: list[int]


def _find(pool: Pool, command: str | None, seen: Collection[Pair]) -> _Output:
    """The output to read out: that of `command`, or else the first of a `grep` that training has not executed."""
    outputs = [output for trajectory in pool.trajectories for output in _outputs(trajectory)]
    executed = {words for words, _ in seen}
    wanted = [output for output in outputs if output.command == command]
    if command is None:
        novel = [output for output in outputs if output.command not in executed]
        wanted = [output for output in novel if output.command.startswith("grep ")] or novel or outputs
    if not wanted:
        known = [output.command for output in outputs]
        nearest = [*difflib.get_close_matches(command or "", known, n=1, cutoff=0.0), *known][0]
        raise EchoError(f"'{command}' is not a command of the held-out pool", f"one that is: {nearest}")
    return wanted[0]


def _outputs(trajectory: Trajectory) -> list[_Output]:
    found, turn, position = [], -1, 0
    for segment in trajectory.segments:
        turn += segment.role is Role.ACTION
        if segment.role is Role.ENV_OUTPUT and segment.token_ids:
            found.append(_Output(trajectory.turns[turn].command, trajectory, position, list(segment.token_ids)))
        position += len(segment.token_ids)
    return found


def _read(policy: TorchPolicy, output: _Output) -> dict[str, Any]:
    """The most probable token at each position of the output, given the true tokens before it."""
    predicted = policy.predict(output.trajectory)[output.start - 1 : output.start - 1 + len(output.token_ids)]
    correct = sum(guess == true for guess, true in zip(predicted, output.token_ids, strict=True))
    return {"text": policy.tokenizer.decode(predicted), "correct": correct}
