"""Recorded signals of healthy runs in a world of files and on machines, combined and of GRPO: `data/healthy_runs.json`.

To record them again, from the root of the checkout:

    grpo="objective.world_model_coeff=0 objective.kl_coeff=0 rollout.group_size=8"
    grpo="$grpo optim.lr=5e-4 optim.lr_schedule=constant optim.warmup_steps=0"
    for seed in 0 1 2 3 4; do
      echo-cli train --config toy-files --run-name toy-files-seed$seed --seed $seed threads=1
      echo-cli train --config toy-files --run-name toy-files-grpo-seed$seed --seed $seed threads=1 $grpo
    done
    for config in toy toy-own toy-grpo; do
      for machine in 120 121 122; do
        machine_key="environment.toy_terminal.world_seeds=[$machine]"
        echo-cli train --config $config --run-name $config-m$machine threads=1 $machine_key
      done
    done
    machines="outputs/toy-m120 outputs/toy-m121 outputs/toy-own-m120 outputs/toy-own-m121"
    machines="$machines outputs/toy-grpo-m121 outputs/toy-grpo-m122"
    python tests/healthy_runs.py outputs/toy-files-seed? outputs/toy-files-grpo-seed? $machines
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from echo_cli.rollouts.behaviour import BEHAVIOUR_KEYS

FILE = Path(__file__).parent / "data" / "healthy_runs.json"

# Columns that the detector reads.
SIGNALS = [name for name in BEHAVIOUR_KEYS if name not in ("malformed_fraction", "no_action_fraction")]
STEP_KEYS = [f"train/{name}" for name in ("entropy", "reward", "policy_env_ce", *SIGNALS)]
EVALUATION_KEYS = [f"{pool}/{name}" for pool in ("heldout", "ood") for name in ("env_ce", "env_ce_start")]


def healthy_runs() -> dict[str, list[dict[str, Any]]]:
    """Return the rows by name of run, from the evaluation before training onwards."""
    runs = {}
    for name, columns in json.loads(FILE.read_text()).items():
        measured = zip(*(columns[key] for key in EVALUATION_KEYS), strict=True)
        evaluated = dict(zip(columns["evaluated"], measured, strict=True))
        values = zip(*(columns[key] for key in STEP_KEYS), strict=True)
        runs[name] = [
            {"step": step}
            | dict(zip(STEP_KEYS, step_values, strict=True))
            | dict(zip(EVALUATION_KEYS, evaluated.get(step, [None] * len(EVALUATION_KEYS)), strict=True))
            for step, step_values in enumerate([[None] * len(STEP_KEYS), *values])
        ]
    return runs


def record(folders: list[Path]) -> None:
    """Write the columns that the detector reads, to three digits."""
    runs = {}
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        evaluations = [row for row in rows if row["heldout/env_ce"] is not None]
        runs[folder.name] = (
            {"evaluated": [row["step"] for row in evaluations]}
            | {key: [_short(row[key]) for row in evaluations] for key in EVALUATION_KEYS}
            | {key: [_short(row[key]) for row in rows[1:]] for key in STEP_KEYS}
        )
    lines = (f"{json.dumps(name)}: {json.dumps(columns, separators=(',', ':'))}" for name, columns in runs.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


if __name__ == "__main__":
    record([Path(word) for word in sys.argv[1:]])
