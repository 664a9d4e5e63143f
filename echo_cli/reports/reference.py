"""GRPO's held-out pass@1 on the default task: a measured curve that ships with the package, to compare a run with.

`scripts/grpo-reference` trains the config `toy-grpo` and writes the file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from echo_cli.config.schema import Config, flat_config, free_keys
from echo_cli.errors import EchoError
from echo_cli.files import read_json
from echo_cli.runs.curves import Points
from echo_cli.runs.directory import RunDirectory

REFERENCE_PATH = Path(__file__).with_name("grpo_reference.json")
METRIC = "heldout/pass_at_1"


def fingerprint(config: Config) -> str:
    """Return the SHA-256 of all settings that decide a run's figures: the keys that `--resume` holds, and `steps`.

    A key that is null, false or an empty section is off and left out: a new key that is off changes no figure.
    """
    free = free_keys() - {"steps"}
    values = flat_config(config.model_dump(mode="json"))
    kept = {key: value for key, value in values.items() if key not in free and value is not None and value is not False}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def reference_of(run: RunDirectory) -> Points:
    """Return GRPO's points (step, held-out pass@1) beside a run of exactly the settings they were measured for.

    Every other run has none; nor has one whose config cannot be read, since a picture needs only the metrics.
    """
    try:
        config = run.read_config()
    except EchoError:
        return []
    measured = read_json(REFERENCE_PATH)
    if fingerprint(config) != measured["beside"]:
        return []
    return [(int(step), float(value)) for step, value in measured["points"]]
