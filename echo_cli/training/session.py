"""Everything a training run holds: its directory, policy, worlds, pools, and where it starts."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config, flat_config
from echo_cli.environments.protocol import Worlds
from echo_cli.environments.worlds import open_worlds
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import Evaluator, expert_pools, limits_for, limits_of, play_pools
from echo_cli.files import read_json, shown, write_atomic
from echo_cli.models.device import DeviceChoice, choose_device
from echo_cli.models.policy import TorchPolicy, load_policy
from echo_cli.objective.schedule import GradientNorms
from echo_cli.runs.directory import RunDirectory, check_writable, create_run, environment_record, open_run
from echo_cli.runs.observation import ObservationLog, pairs_of
from echo_cli.runs.pools import Pool, pool_of
from echo_cli.runs.summary import best_step
from echo_cli.traces.corpus import TraceCorpus, check_trainable, index_traces
from echo_cli.traces.training_data import POOL, Traces, held_out, pool_splits, trace_notices, traces_record
from echo_cli.trajectory import read_trajectories

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


@dataclass(frozen=True)
class Session:
    """A run that is ready to train from `start_step` optimizer steps on."""

    config: Config
    run: RunDirectory
    policy: TorchPolicy
    worlds: Worlds
    evaluator: Evaluator
    observed: ObservationLog
    traces: Traces | None
    """What is trained on beside rollouts; None where the config has no traces."""
    device: DeviceChoice
    start_step: int
    gradient_norms: GradientNorms
    """What the `gradient_ratio` schedule has measured up to there."""
    unrecorded: dict[str, Any] | None
    """The metrics of `start_step`, where the environment was gone before they were evaluated."""
    clock_start: float
    """`time.perf_counter()` when the run would have begun, had it never been interrupted."""

    @property
    def seconds(self) -> float:
        """Wall clock that went into the run up to now, earlier sessions up to their last checkpoint included."""
        return time.perf_counter() - self.clock_start


def open_policy(config: Config) -> tuple[TorchPolicy, DeviceChoice]:
    """The config's model, to be measured or trained, on its device, with its number of CPU threads.

    Raises:
        EchoError: the device is not there or lacks the dtype, or the model cannot be loaded.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    choice = choose_device(config.device, config.model.dtype if config.model.kind == "hf" else "float32")
    return load_policy(config, choice.device, choice.dtype), choice


def build_policy(config: Config, *, quiet: bool = False) -> tuple[TorchPolicy, DeviceChoice]:
    """The policy at the start of a run.

    Where episodes may outgrow a model of kind hf, `limits_for` brings them down; unless `quiet`, a line on stderr
    says so.

    Raises:
        EchoError: as `open_policy`; episodes may outgrow the built-in model, or not even one turn fits one of kind hf.
    """
    policy, choice = open_policy(config)
    if config.objective.kl_coeff > 0:
        policy.keep_reference()
    if config.environment.none:  # no episode is played
        return policy, choice
    context, limits = policy.model.max_length, limits_of(config)
    longest = limits.longest(policy.renderer.overhead)
    if longest > context and config.model.kind == "tiny":
        raise EchoError(
            f"an episode of {longest} tokens does not fit the model's {context}",
            "lower rollout.max_episode_tokens or rollout.max_output_tokens",
        )
    fitting = limits_for(config, policy)
    if fitting != limits and not quiet:
        print(
            f"warning: an episode of {longest} tokens does not fit the model's {context}: max_episode_tokens is "
            f"{fitting.episode_tokens}, max_output_tokens {fitting.output_tokens}",
            file=sys.stderr,
            flush=True,
        )
    return policy, choice


@contextmanager
def open_session(
    path: Path, config: Config, *, resume: bool, overwrite: bool, argv: Sequence[str]
) -> Iterator[Session]:
    """Create the run directory at `path`, or continue the run in it; held for writing until the block ends.

    Raises:
        EchoError: the directory is used (without `resume`), is not a run or has another config (with it), is further
            than `config.steps`, is held by another process, or its checkpoint is damaged; its traces cannot be read,
            nothing can be learned from them, or they are not those that it was begun with.
    """
    clock_start = time.perf_counter()
    check_writable(path, resume=resume, overwrite=overwrite)
    if resume:
        check_same_config(open_run(path), config)
    corpus = None if config.traces is None else _open_corpus(config)
    if resume and corpus is not None:
        check_same_traces(open_run(path), corpus)
    policy, choice = build_policy(config)
    traces = None if corpus is None else _traces(config, corpus, policy)
    with open_worlds(config) as worlds:
        if resume:
            _check_same_environment(open_run(path), worlds)
        else:
            played = {} if worlds.replayable or config.environment.none else play_pools(config, worlds, policy)
            record = environment_record(config.seed, argv, str(choice.device), torch.get_num_threads())
            answers = {"name": worlds.description.name, "sessions": worlds.hosting.sessions}
            record["environment"] = answers
            if traces is not None:
                splits = pool_splits(alone=bool(config.environment.none))
                held = {name: held_out(traces, policy.renderer, split) for name, split in splits.items()}
                played |= {name: list(pool.trajectories) for name, pool in held.items()}
                record["traces"] = traces_record(traces, held)
            create_run(
                path,
                config_yaml=config.to_yaml(),
                environment=record,
                pools={name: [trajectory.to_json() for trajectory in of] for name, of in played.items()},
                overwrite=overwrite,
            )
        run = open_run(path)
        evaluator = Evaluator(config, worlds, frozen_pools(run, config, worlds, policy))
        evaluator.remember_start(policy)
        with run.lock():
            start, meta = _continue(run, config, policy) if resume else (0, {})
            executed = run.read_observations()
            evaluator.observe(pairs_of(executed))
            norms = GradientNorms(**meta.get("gradient_norms", {}))
            clock_start -= float(meta.get("seconds", 0.0))
            observed = ObservationLog(executed)
            unrecorded = meta.get("unrecorded")
            yield Session(
                config, run, policy, worlds, evaluator, observed, traces, choice, start, norms, unrecorded, clock_start
            )


def frozen_pools(run: RunDirectory, config: Config, worlds: Worlds, policy: TorchPolicy) -> dict[str, Pool]:
    """The frozen pools of a run: those it has kept, or those that its worlds' experts play again; its traces' last.

    Raises:
        EchoError: a kept pool is damaged.
    """
    paths = run.pool_paths
    traces = paths.pop(POOL, None)
    if worlds.replayable:
        pools = expert_pools(config, worlds, policy)
    else:
        pools = {name: pool_of(read_trajectories(path)) for name, path in paths.items()}
    if config.traces is None or config.environment.none:
        return pools
    if traces is None:
        raise EchoError(f"{shown(run.path)} has lost its pool of held-out traces", "train it again, with --overwrite")
    return {**pools, POOL: pool_of(read_trajectories(traces))}


def run_notices(run: RunDirectory, config: Config) -> list[str]:
    """What to know of a run's traces, line by line: how many there are, and what of them is not measured."""
    if config.traces is None:
        return []
    record = read_json(run.path / "environment.json")["traces"]
    return trace_notices(record, pool_splits(alone=bool(config.environment.none)))


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


def _open_corpus(config: Config) -> TraceCorpus:
    assert config.traces is not None
    corpus = index_traces(config.traces)
    check_trainable(corpus, config.traces, config.objective)
    return corpus


def _traces(config: Config, corpus: TraceCorpus, policy: TorchPolicy) -> Traces:
    assert config.traces is not None
    context = policy.model.max_length
    return Traces(corpus, config.traces, min(config.traces.max_tokens or context, context))


def check_same_traces(run: RunDirectory, corpus: TraceCorpus) -> None:
    """Refuse to continue on other traces, by the bytes of their files, wherever these lie."""
    record = read_json(run.path / "environment.json").get("traces")
    before = [file.get("sha256") for file in record["files"]] if isinstance(record, dict) else []
    for number, (path, now) in enumerate(zip(corpus.paths, corpus.sha256, strict=True)):
        if number >= len(before) or now != before[number]:
            raise EchoError(
                f"{shown(path)} is not the file that {shown(run.path)} was trained on: its SHA-256 is {now[:12]}…",
                "put the file back, or start another run with --run-name",
            )
    if len(before) > len(corpus.paths):
        tip = "name all of them in traces.path, or start another run with --run-name"
        raise EchoError(f"{shown(run.path)} was trained on {len(before)} trace files, not {len(corpus.paths)}", tip)


def _check_same_environment(run: RunDirectory, worlds: Worlds) -> None:
    """Refuse to continue in another environment, by the names that the two give themselves."""
    record = read_json(run.path / "environment.json").get("environment")  # runs of earlier versions have none
    before = record.get("name") if isinstance(record, dict) else None
    now = worlds.description.name
    if before is not None and before != now:
        raise EchoError(
            f"{shown(run.path)} was trained in {shown(before)}, and this environment is {shown(now)}",
            "give the address of the former, or start another run with --run-name",
        )
