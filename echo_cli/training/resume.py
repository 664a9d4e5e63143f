"""Continue a run: refuse another config, other traces or another environment, and bring its state back."""

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


def _continue(run: RunDirectory, config: Config, policy: TorchPolicy) -> tuple[int, dict[str, Any]]:
    """Bring policy and run directory to the latest checkpoint: its step and its meta."""
    step = max(run.checkpoints.steps(), default=0)
    if step > config.steps:
        raise EchoError(f"{run.path} is at step {step} already, past {config.steps}", "give more --steps")
    meta: dict[str, Any] = {}
    if step > 0:
        folder, meta = run.load_checkpoint("latest")
        run.read_observations(step)  # before anything of the run is changed: a damaged log ends it here
        policy.load(folder)
    # Stopped before its first step, it starts again, with the evaluation before training.
    run.rewind(step if step > 0 else -1)
    best = best_step(run.read_metrics(), config.evaluation.select_by)
    if best in run.checkpoints.steps():  # a kill between saving and marking left the mark behind
        run.checkpoints.mark_best(best)
    write_atomic(run.config_path, config.to_yaml().encode())
    return step, meta


def check_same_config(run: RunDirectory, config: Config) -> None:
    """Refuse to continue with another config, free keys apart.

    Raises:
        EchoError: names the first key that differs and may not.
    """
    before = load_config(run.config_path)
    free = free_keys()
    if (before.environment.object is None) != (config.environment.object is None):
        free |= {"environment.object_options"}  # the environment has moved into this process or out of it
    was, now = (flat_config(of.model_dump(mode="json")) for of in (before, config))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key) and free.isdisjoint(_upwards(key)):
            raise EchoError(
                f"cannot resume {run.path} with another config: {key} was {was.get(key)}, now {now.get(key)}",
                "drop the change to resume, or start another run with --run-name",
            )


def _upwards(key: str) -> list[str]:
    """Return a key path and the sections that it lies in."""
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def check_same_traces(run: RunDirectory, corpus: TraceCorpus) -> None:
    """Refuse to continue on other traces, by the bytes of their files, wherever these lie."""
    record = read_json(run.path / "environment.json").get("traces")
    before = [file.get("sha256") for file in record["files"]] if isinstance(record, dict) else []
    for number, (path, now) in enumerate(zip(corpus.paths, corpus.sha256, strict=True)):
        if number >= len(before) or now != before[number]:
            raise EchoError(
                f"{escape_unprintable(path)} is not the file that {escape_unprintable(run.path)} was trained on: "
                f"its SHA-256 is {now[:12]}…",
                "put the file back, or start another run with --run-name",
            )
    if len(before) > len(corpus.paths):
        tip = "name all of them in traces.path, or start another run with --run-name"
        raise EchoError(
            f"{escape_unprintable(run.path)} was trained on {len(before)} trace files, not {len(corpus.paths)}", tip
        )


def _check_same_environment(run: RunDirectory, worlds: TaskSuite) -> None:
    """Refuse to continue in another environment, by the names that the two give themselves."""
    record = read_json(run.path / "environment.json").get("environment")  # runs of earlier versions have none
    before = record.get("name") if isinstance(record, dict) else None
    now = worlds.description.name
    if before is not None and before != now:
        raise EchoError(
            f"{escape_unprintable(run.path)} was trained in {escape_unprintable(before)}, and this environment "
            f"is {escape_unprintable(now)}",
            "give the address of the former, or start another run with --run-name",
        )
