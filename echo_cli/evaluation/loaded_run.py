"""A run under evaluation: the pools and tasks it is measured on, where it started, and its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config
from echo_cli.environments.protocol import Worlds
from echo_cli.environments.worlds import open_worlds
from echo_cli.evaluation.evaluator import rollout_tasks
from echo_cli.evaluation.pass_at_k import Outcome, outcomes_of
from echo_cli.evaluation.records import HELDOUT, OOD
from echo_cli.models.policy import TorchPolicy
from echo_cli.rollouts.rollout import without_fragments
from echo_cli.runs.directory import RunDirectory, open_run
from echo_cli.runs.pool_folder import load_pool, pool_columns
from echo_cli.runs.pools import Pair, Pool
from echo_cli.seeds import derive_seed
from echo_cli.traces.training_data import POOL
from echo_cli.training.session import build_policy, frozen_pools, run_notices


@dataclass(frozen=True)
class Subject:
    """A run, opened for measuring. Pools come in the order of the table's columns."""

    run: RunDirectory
    config: Config
    initial: TorchPolicy
    """The policy that training started from."""
    worlds: Mapping[str, Worlds]
    """By pool, the worlds whose held-out tasks the pool is of; pools from files have none."""
    pools: Mapping[str, Pool]
    validation: Pool
    notes: Sequence[str] = ()
    """What to know of its traces."""

    @property
    def name(self) -> str:
        return self.run.path.resolve().name


@contextmanager
def open_subject(path: Path, pool_folders: Sequence[Path], device: str | None) -> Iterator[Subject]:
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
        by_pool: dict[str, Worlds] = {HELDOUT: worlds}
        if OOD in pools and pools[OOD].trajectories:
            columns[OOD], by_pool[OOD] = pools[OOD], worlds.out_of_distribution()
        if POOL in pools:
            columns[POOL] = pools[POOL]
        for name, folder in pool_columns(pool_folders, columns).items():
            cut = config.model.kind == "hf"
            columns[name] = load_pool(folder, initial.renderer, initial.model.max_length, cut=cut)
        yield Subject(run, config, initial, by_pool, columns, pools["validation"], run_notices(run, config))


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


def load_step(subject: Subject, policy: TorchPolicy, step: int) -> None:
    """Bring `policy` to the run's checkpoint of `step`.

    Raises:
        EchoError: the checkpoint is damaged or of another architecture.
    """
    folder, _ = subject.run.load_checkpoint(step)
    policy.load(folder)


def executed_by(subject: Subject, step: int) -> list[Pair]:
    """The pairs that training had executed by `step`, in the order of their first occurrence.

    Raises:
        EchoError: the run did not record them, or the record is damaged.
    """
    rows = subject.run.read_observations(step)
    return list(dict.fromkeys((row["command"], row["output"]) for row in rows))


def play_tasks(subject: Subject, policy: TorchPolicy, rollouts: int) -> dict[str, list[Outcome]]:
    """By pool, the outcomes of its held-out tasks; empty without rollouts.

    The sampling seed is the same for every run and checkpoint: first rollouts can be paired.

    Raises:
        EchoError: the environment lost the session of a rollout again and again (exit code 1).
    """
    played: dict[str, list[Outcome]] = {}
    for name, worlds in subject.worlds.items():
        tasks = worlds.tasks.heldout
        if rollouts and tasks:
            seed = derive_seed(0, f"eval-heldout/{name}")
            trajectories = rollout_tasks(policy, worlds, tasks, rollouts, subject.config, seed)
            whole = without_fragments(trajectories, rollouts * len(tasks), worlds.hosting)
            played[name] = outcomes_of(tasks, whole)
    return played
