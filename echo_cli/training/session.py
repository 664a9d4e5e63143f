"""Everything a training run holds: its directory, policy, worlds, pools, and where it starts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.worlds import open_worlds
from echo_cli.evaluation.evaluator import Evaluator, play_pools
from echo_cli.evaluation.loaded_run import build_policy, frozen_pools
from echo_cli.models.device import DeviceChoice
from echo_cli.models.policy import TorchPolicy
from echo_cli.objective.schedule import GradientNorms
from echo_cli.runs.directory import RunDirectory, check_writable, create_run, open_run
from echo_cli.runs.pools import ObservationLog, pairs_of
from echo_cli.runs.provenance import environment_record
from echo_cli.traces.corpus import TraceCorpus, check_trainable, index_traces
from echo_cli.traces.training_data import Traces, held_out, pool_splits, traces_record
from echo_cli.training.resume import _check_same_environment, _continue, check_same_config, check_same_traces


@dataclass(frozen=True)
class Session:
    """A run that is ready to train from `start_step` optimizer steps on."""

    config: Config
    run: RunDirectory
    policy: TorchPolicy
    worlds: TaskSuite
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


def _open_corpus(config: Config) -> TraceCorpus:
    assert config.traces is not None
    corpus = index_traces(config.traces)
    check_trainable(corpus, config.traces, config.objective)
    return corpus


def _traces(config: Config, corpus: TraceCorpus, policy: TorchPolicy) -> Traces:
    assert config.traces is not None
    context = policy.model.max_length
    return Traces(corpus, config.traces, min(config.traces.max_tokens or context, context))
