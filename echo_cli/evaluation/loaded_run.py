"""A run under evaluation: the pools and tasks it is measured on, where it started, and its checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.worlds import open_worlds
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import expert_pools, rollout_tasks
from echo_cli.evaluation.pass_at_k import TaskOutcome, outcomes_of
from echo_cli.evaluation.records import HELDOUT, OOD
from echo_cli.files import (
    read_json,
)
from echo_cli.models.device import DeviceChoice
from echo_cli.models.loading import open_policy
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.limits import limits_for, limits_of
from echo_cli.rollouts.rollout import without_fragments
from echo_cli.runs.directory import RunDirectory, open_run
from echo_cli.runs.pool_folder import read_pool
from echo_cli.runs.pools import Pair, Pool, pool_of
from echo_cli.seeds import derive_seed
from echo_cli.text import escape_unprintable
from echo_cli.traces.retokenize import retokenize, truncated
from echo_cli.traces.training_data import POOL, pool_splits, trace_notices
from echo_cli.trajectory import read_trajectories


@dataclass(frozen=True)
class LoadedRun:
    """A run, opened for measuring. Pools come in the order of the table's columns."""

    run: RunDirectory
    config: Config
    initial: TorchPolicy
    """The policy that training started from."""
    worlds: Mapping[str, TaskSuite]
    """By pool, the worlds whose held-out tasks the pool is of; pools from files have none."""
    pools: Mapping[str, Pool]
    validation: Pool
    notes: Sequence[str] = ()
    """What to know of its traces."""

    @property
    def name(self) -> str:
        return self.run.path.resolve().name


@contextmanager
def open_subject(path: Path, pool_folders: Sequence[Path], device: str | None) -> Iterator[LoadedRun]:
    """Open the run at `path`, with its environment, for a `with` block, and load the pools in `pool_folders`.

    Raises:
        EchoError: no such run, its model cannot be loaded, a pool cannot, or two columns would have one name.
    """
    run = open_run(path)
    config = load_config(run.config_path, [f"device={device}"] if device else [])
    initial, _ = build_policy(config)
    with open_worlds(config) as worlds:
        pools = frozen_pools(run, config, worlds, initial)
        columns = {HELDOUT: pools["heldout"]}
        by_pool: dict[str, TaskSuite] = {HELDOUT: worlds}
        if OOD in pools and pools[OOD].trajectories:
            columns[OOD], by_pool[OOD] = pools[OOD], worlds.out_of_distribution()
        if POOL in pools:
            columns[POOL] = pools[POOL]
        for name, folder in pool_columns(pool_folders, columns).items():
            cut = config.model.kind == "hf"
            columns[name] = load_pool(folder, initial.renderer, initial.model.max_length, cut=cut)
        yield LoadedRun(run, config, initial, by_pool, columns, pools["validation"], run_notices(run, config))


def checkpoint_steps(run: RunDirectory, wanted: Sequence[str | int]) -> list[int]:
    """The steps that `best`, `latest`, `all` and step numbers stand for, ascending and each once.

    Raises:
        EchoError: there is no such checkpoint, or it is damaged.
    """
    steps: set[int] = set()
    for which in wanted:
        if which == "all":
            steps |= set(run.checkpoints.steps())
        if which != "all" or not steps:
            steps.add(int(run.load_checkpoint("latest" if which == "all" else which)[1]["step"]))
    return sorted(steps)


def load_step(subject: LoadedRun, policy: TorchPolicy, step: int) -> None:
    """Bring `policy` to the run's checkpoint of `step`.

    Raises:
        EchoError: the checkpoint is damaged or of another architecture.
    """
    folder, _ = subject.run.load_checkpoint(step)
    policy.load(folder)


def executed_by(subject: LoadedRun, step: int) -> list[Pair]:
    """The pairs that training had executed by `step`, in the order of their first occurrence.

    Raises:
        EchoError: the run did not record them, or the record is damaged.
    """
    rows = subject.run.read_observations(step)
    return list(dict.fromkeys((row["command"], row["output"]) for row in rows))


def play_tasks(subject: LoadedRun, policy: TorchPolicy, rollouts: int) -> dict[str, list[TaskOutcome]]:
    """By pool, the outcomes of its held-out tasks; empty without rollouts.

    The sampling seed is the same for every run and checkpoint: first rollouts can be paired.

    Raises:
        EchoError: the environment lost the session of a rollout again and again (exit code 1).
    """
    played: dict[str, list[TaskOutcome]] = {}
    for name, worlds in subject.worlds.items():
        tasks = worlds.tasks.heldout
        if rollouts and tasks:
            seed = derive_seed(0, f"eval-heldout/{name}")
            trajectories = rollout_tasks(policy, worlds, tasks, rollouts, subject.config, seed)
            whole = without_fragments(trajectories, rollouts * len(tasks), worlds.hosting)
            played[name] = outcomes_of(tasks, whole)
    return played


def load_pool(folder: Path, renderer: Renderer, max_tokens: int | None = None, *, cut: bool = False) -> Pool:
    """The pool `folder` as `renderer` writes it, whatever it was played with (see `retokenize`).

    Args:
        max_tokens: the longest trajectory that the policy to be measured can take; None for any.
        cut: cut a longer trajectory there (`truncated`).

    Raises:
        EchoError: as `read_pool`; a trajectory is longer than `max_tokens`, or with `cut` nothing is left to measure.
    """
    _, played = read_pool(folder)
    trajectories = [retokenize(trajectory, renderer) for trajectory in played]
    pool = pool_of(trajectories)
    longest = max(map(len, pool.trajectories), default=0)
    if max_tokens is None or longest <= max_tokens:
        return pool
    if not cut:
        message = f"a trajectory of {escape_unprintable(folder)} has {longest} tokens, the model takes {max_tokens}"
        raise EchoError(message, "build the pool with a lower rollout.max_episode_tokens")
    fitting = [truncated(trajectory, renderer.tokenizer, max_tokens) for trajectory in trajectories]
    left = pool_of(trajectory for trajectory in fitting if trajectory is not None)
    if not left.trajectories:
        message = f"{escape_unprintable(folder)} shows no output within the {max_tokens} tokens that the model takes"
        raise EchoError(message, "choose a model with a longer context, or build the pool with shorter episodes")
    return replace(left, cut=sum(len(trajectory) > max_tokens for trajectory in trajectories))


def pool_columns(folders: Sequence[Path], taken: Collection[str] = ()) -> dict[str, Path]:
    """The folders of pools by the names of their columns, which are the folders' own.

    Raises:
        EchoError: two have one name, or a name is `taken`.
    """
    columns: dict[str, Path] = {}
    for folder in folders:
        name = escape_unprintable(folder.resolve().name)
        if name in columns or name in taken:
            raise EchoError(f"two pools are named {name}", "rename one of the folders; a column has the folder's name")
        columns[name] = folder
    return columns


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


def frozen_pools(run: RunDirectory, config: Config, worlds: TaskSuite, policy: TorchPolicy) -> dict[str, Pool]:
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
        raise EchoError(
            f"{escape_unprintable(run.path)} has lost its pool of held-out traces", "train it again, with --overwrite"
        )
    return {**pools, POOL: pool_of(read_trajectories(traces))}


def run_notices(run: RunDirectory, config: Config) -> list[str]:
    """What to know of a run's traces, line by line: how many there are, and what of them is not measured."""
    if config.traces is None:
        return []
    record = read_json(run.path / "environment.json")["traces"]
    return trace_notices(record, pool_splits(alone=bool(config.environment.none)))
