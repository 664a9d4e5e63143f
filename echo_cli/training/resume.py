"""Resume a run: reject a different config, traces or environment, and restore the run's state."""

from __future__ import annotations

from typing import Any

from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config, flat_config, free_keys
from echo_cli.environments.protocol import TaskSuite
from echo_cli.errors import EchoError
from echo_cli.files import read_json, write_atomic
from echo_cli.models.policy import TorchPolicy
from echo_cli.runs.directory import RunDirectory
from echo_cli.runs.summary import best_step
from echo_cli.text import escape_unprintable
from echo_cli.traces.corpus import TraceCorpus


def restore_run(run: RunDirectory, config: Config, policy: TorchPolicy) -> tuple[int, dict[str, Any]]:
    """Restore policy and run directory to the latest checkpoint, and return its step and its meta."""
    step = max(run.checkpoints.steps(), default=0)
    if step > config.steps:
        raise EchoError(f"{run.path} is already at step {step}, past steps={config.steps}", f"set --steps above {step}")
    meta: dict[str, Any] = {}
    if step > 0:
        folder, meta = run.load_checkpoint("latest")
        run.read_observations(step)  # raises on a damaged log, before the run is changed
        policy.load(folder)
    # A run stopped before its first step starts again, with the evaluation before training.
    run.rewind(step if step > 0 else -1)
    best = best_step(run.read_metrics(), config.evaluation.select_by)
    if best in run.checkpoints.steps():  # the mark is outdated if the run was killed between saving and marking
        run.checkpoints.mark_best(best)
    write_atomic(run.config_path, config.to_yaml().encode())
    return step, meta


def check_same_config(run: RunDirectory, config: Config) -> None:
    """Reject a config that differs from the run's config in a key that is not free.

    Raises:
        EchoError: there is such a key; the message names the first.
    """
    before = load_config(run.config_path)
    free = free_keys()
    if (before.environment.object is None) != (config.environment.object is None):
        free |= {"environment.object_options"}  # the environment moved into this process or out of it
    was, now = (flat_config(of.model_dump(mode="json")) for of in (before, config))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key) and free.isdisjoint(_upwards(key)):
            raise EchoError(
                f"cannot resume {run.path} with a different config: {key} was {was.get(key)}, now {now.get(key)}",
                "revert the change, or start another run with --run-name",
            )


def _upwards(key: str) -> list[str]:
    """Return a key path and the sections that contain it."""
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def check_same_traces(run: RunDirectory, corpus: TraceCorpus) -> None:
    """Reject trace files whose bytes differ from the files that the run was trained on; their paths may differ."""
    record = read_json(run.path / "environment.json").get("traces")
    before = [file.get("sha256") for file in record["files"]] if isinstance(record, dict) else []
    for number, (path, now) in enumerate(zip(corpus.paths, corpus.sha256, strict=True)):
        if number >= len(before) or now != before[number]:
            raise EchoError(
                f"{escape_unprintable(path)} is not the file that {escape_unprintable(run.path)} was trained on: "
                f"its SHA-256 is {now[:12]}…",
                "restore the file, or start another run with --run-name",
            )
    if len(before) > len(corpus.paths):
        tip = "list all of them in traces.path, or start another run with --run-name"
        raise EchoError(
            f"{escape_unprintable(run.path)} was trained on {len(before)} trace files, not {len(corpus.paths)}", tip
        )


def check_same_environment(run: RunDirectory, worlds: TaskSuite) -> None:
    """Reject an environment whose reported name differs from the name that the run recorded."""
    record = read_json(run.path / "environment.json").get("environment")  # None in runs of earlier versions
    before = record.get("name") if isinstance(record, dict) else None
    now = worlds.description.name
    if before is not None and before != now:
        raise EchoError(
            f"{escape_unprintable(run.path)} was trained in {escape_unprintable(before)}, but this environment "
            f"is {escape_unprintable(now)}",
            f"use the address of {escape_unprintable(before)}, or start another run with --run-name",
        )
