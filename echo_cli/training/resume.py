"""Continue a run: what may differ from its config, and bringing its state back."""

from __future__ import annotations

from typing import Any

from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config, flat_config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.errors import EchoError
from echo_cli.files import read_json, write_atomic
from echo_cli.models.policy import TorchPolicy
from echo_cli.runs.directory import RunDirectory
from echo_cli.runs.summary import best_step
from echo_cli.text import escape_unprintable
from echo_cli.traces.corpus import TraceCorpus

# What may differ between a run and its continuation: how far to go, where it lies, what it runs on, where it is shown,
# and what a collapse does, so that a run which it stopped can go on.
_FREE_ON_RESUME = {"steps", "output_dir", "run_name", "device", "threads", "track", "checkpoint", "collapse"}

# What is exchanged for memory, so that a run which ran out of it can go on.
_FREE_MEMORY = {"optim.token_budget", "model.gradient_checkpointing", "sampler.prefill_tokens"}

# Where the environment is and how it is reached may change as well; what it is may not.
_FREE_ENVIRONMENT = tuple(
    f"environment.{key}"
    for key in (
        *("object", "url", "provider", "client", "headers", "sessions", "batch_wait_s", "attempts"),
        *("connect_timeout_s", "step_timeout_s", "retry_s", "max_message_mb"),
    )
)

# The trace files may lie elsewhere; their bytes may not change.
_FREE_TRACES = ("traces.path",)

# Likewise an endpoint that samples: it is given the policy's weights again.
_FREE_ENDPOINT = tuple(f"sampler.{key}" for key in ("url", "headers", "model", "weights", "concurrency", "timeout_s"))


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
    """Raise an EchoError that names the first key in which `config` departs from the run's, unless it may."""
    before = flat_config(load_config(run.config_path).model_dump(mode="json"))
    now = flat_config(config.model_dump(mode="json"))
    for key in sorted(before.keys() | now.keys()):
        named = key.split(".")[0] in _FREE_ON_RESUME or key in _FREE_MEMORY
        free = named or key.startswith(_FREE_ENVIRONMENT + _FREE_ENDPOINT + _FREE_TRACES)
        if not free and before.get(key) != now.get(key):
            raise EchoError(
                f"cannot resume {run.path} with another config: {key} was {before.get(key)}, now {now.get(key)}",
                "drop the change to resume, or start another run with --run-name",
            )


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
