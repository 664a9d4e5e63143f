"""State of a training run: its directory, policy, worlds, pools, and start step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.several import LEFT_OUT, describe_members
from echo_cli.environments.worlds import open_worlds
from echo_cli.evaluation.evaluator import Evaluator, play_pools
from echo_cli.evaluation.loaded_run import build_policy
from echo_cli.evaluation.pools.frozen import frozen_pools
from echo_cli.files import Row
from echo_cli.models.backend import Policy
from echo_cli.models.device import DeviceChoice
from echo_cli.models.distributed.launch import launched
from echo_cli.models.distributed.ranks import ALONE, Ranks
from echo_cli.models.loading import close_policy
from echo_cli.objective.schedule import GradientNorms
from echo_cli.runs.directory import RunDirectory, check_writable, create_run, open_run
from echo_cli.runs.origin import unmarked_line
from echo_cli.runs.pools import ObservationLog, pairs_of
from echo_cli.runs.provenance import environment_record
from echo_cli.runs.shared import open_shared
from echo_cli.traces.corpus import TraceCorpus, check_trainable, index_traces
from echo_cli.traces.training_data import Traces, held_out, pool_splits, traces_record
from echo_cli.training.curriculum import Curriculum
from echo_cli.training.resume import (
    check_same_config,
    check_same_environment,
    check_same_traces,
    keep_threads,
    restore_run,
    worlds_record,
)


@dataclass(frozen=True)
class Session:
    """A run that is ready to train from `start_step`, the number of optimizer steps already taken."""

    config: Config
    run: RunDirectory
    policy: Policy
    worlds: TaskSuite
    evaluator: Evaluator
    observed: ObservationLog
    traces: Traces | None
    """Traces to train on; None if the config has none."""
    curriculum: Curriculum | None
    """Contrast of each task's groups; None if tasks are drawn uniformly."""
    drawn: dict[str, int] | None
    """Number of tasks drawn from each of several environments; None for a run in one."""
    device: DeviceChoice
    start_step: int
    gradient_norms: GradientNorms
    """State of the `gradient_ratio` schedule at `start_step`."""
    unrecorded: dict[str, Any] | None
    """Row of `start_step` without its evaluation, if the environment was lost during the evaluation; else None."""
    clock_start: float
    """`time.perf_counter()` at the start of the run, shifted as if it had not been interrupted, seconds."""
    announce: Callable[[str], object]
    """Callback for a line for the user."""
    notices: Sequence[str] = ()
    """Lines for the user about how the run is resumed."""

    @property
    def ranks(self) -> Ranks:
        """Processes that train the run together."""
        return self.policy.ranks

    def take_faults(self) -> dict[str, int]:
        """Return the counts of the environment's faults on all ranks since the last call, and reset them."""
        counts = self.ranks.gather(self.worlds.hosting.faults.take())
        # All ranks leave an environment out together.
        return {
            key: counts[0][key] if key.rpartition("/")[2] == LEFT_OUT else sum(count[key] for count in counts)
            for key in counts[0]
        }

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run, seconds, including earlier sessions up to their last checkpoint."""
        return time.perf_counter() - self.clock_start


@contextmanager
def open_session(
    path: Path,
    config: Config,
    *,
    resume: bool,
    overwrite: bool,
    argv: Sequence[str],
    announce: Callable[[str], object] = lambda _: None,
    ranks: Ranks = ALONE,
) -> Iterator[Session]:
    """Create the run directory at `path`, or resume the run in it; the directory is locked until the block ends.

    A line about the environment is announced before anything is played in it. The first rank writes the directory.

    Raises:
        EchoError: the directory is not empty (without `resume`), is not a run or has a different config (with
            `resume`), is past `config.steps`, is locked, or its checkpoint is damaged; the traces cannot be read,
            contribute nothing to the loss, or differ from the run's; the environment cannot be opened or is another.
    """
    clock_start = time.perf_counter()
    ranks.first(lambda: check_writable(path, resume=resume, overwrite=overwrite))
    notices: list[str] = []
    if resume:
        check_same_config(open_run(path), config)
        config, notices = keep_threads(open_run(path), config)
    corpus = ranks.each(lambda: _open_corpus(config, open_run(path) if resume else None))
    policy, device = build_policy(config, ranks, trains=True)
    traces = _training_traces(config, corpus, policy)
    with ExitStack() as opened:
        opened.callback(close_policy, policy)
        worlds = ranks.each(lambda: opened.enter_context(open_worlds(config)))
        if about := worlds.description.about:
            announce(f"the environment's description: {about}")
        if resume:
            ranks.each(lambda: check_same_environment(open_run(path), worlds))
        else:
            _create(path, config, policy, worlds, traces, argv, overwrite=overwrite)
        run = open_shared(path, ranks)
        evaluator = _evaluator(run, config, worlds, policy)
        opened.enter_context(run.lock())
        start_step, meta = restore_run(run, config, policy) if resume else (0, {})
        _remember(evaluator, config, executed := run.read_observations())
        yield Session(
            config=config,
            run=run,
            policy=policy,
            worlds=worlds,
            evaluator=evaluator,
            observed=ObservationLog(executed),
            traces=traces,
            curriculum=_curriculum(config, meta.get("curriculum", {})),
            drawn=dict(meta.get("drawn", {})) if config.names else None,
            device=device,
            start_step=start_step,
            gradient_norms=GradientNorms(**meta.get("gradient_norms", {})),
            unrecorded=meta.get("unrecorded"),
            clock_start=clock_start - float(meta.get("seconds", 0.0)),
            announce=announce,
            notices=[*notices, *filter(None, [unmarked_line(path)])],
        )


def _evaluator(run: RunDirectory, config: Config, worlds: TaskSuite, policy: Policy) -> Evaluator:
    """Return the evaluator of a run, which knows the initial policy's scores."""
    evaluator = Evaluator(config, worlds, frozen_pools(run, config, worlds, policy))
    evaluator.remember_start(policy)
    return evaluator


def _remember(evaluator: Evaluator, config: Config, executed: Sequence[Row]) -> None:
    """Mark as seen what the run's training has executed, in each of several environments."""
    for name in config.names or ("",):
        evaluator.observe(pairs_of(executed, name), name)


def _curriculum(config: Config, state: Mapping[str, Any]) -> Curriculum | None:
    """Return the curriculum of the config with the state of a checkpoint's meta."""
    learnable = config.rollout.curriculum == "learnable"
    return Curriculum(config.evaluation.solved_at, **state) if learnable else None


def _create(
    path: Path,
    config: Config,
    policy: Policy,
    worlds: TaskSuite,
    traces: Traces | None,
    argv: Sequence[str],
    *,
    overwrite: bool,
) -> None:
    """Create the run directory with the record of its environment and the pools that cannot be played again."""
    played = {} if worlds.replayable or config.environment.none else play_pools(config, worlds, policy)

    def write() -> None:
        record = environment_record(config.seed, argv, str(policy.device), torch.get_num_threads())
        record["environment"] = describe_members(worlds, worlds_record)
        if (launch := launched()) is not None:
            record |= {"ranks": launch.size, "launch": launch.id}
        pools = dict(played)
        if traces is not None:
            splits = pool_splits(alone=bool(config.environment.none))
            held = {name: held_out(traces, policy.renderer, split) for name, split in splits.items()}
            pools |= {name: list(pool.trajectories) for name, pool in held.items()}
            record["traces"] = traces_record(traces, held)
        create_run(
            path,
            config_yaml=config.to_yaml(),
            environment=record,
            pools={name: [trajectory.to_json() for trajectory in pool] for name, pool in pools.items()},
            overwrite=overwrite,
        )

    policy.ranks.first(write)


def _open_corpus(config: Config, resumed: RunDirectory | None) -> TraceCorpus | None:
    """Index the trace files of the config, if any, and check that they contribute to the loss and are the run's."""
    if config.traces is None:
        return None
    corpus = index_traces(config.traces)
    check_trainable(corpus, config.traces, config.objective)
    if resumed is not None:
        check_same_traces(resumed, corpus)
    return corpus


def _training_traces(config: Config, corpus: TraceCorpus | None, policy: Policy) -> Traces | None:
    """Return the traces to train on, with a maximum length that fits the policy's context."""
    if config.traces is None or corpus is None:
        return None
    context = policy.model.max_length
    return Traces(corpus, config.traces, min(config.traces.max_tokens or context, context))
