"""The frozen pools of a run, replayed or read from its files; those of several environments have a pool of each.

A pool's name is `heldout`, `validation`, `ood` or `traces`; the part of an environment is `heldout/NAME`. A pair is
novel in an environment if training has not executed it there: an equal pair of another environment is another fact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.several import environment_of
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import expert_pools
from echo_cli.models.backend import Policy
from echo_cli.models.renderer import Renderer
from echo_cli.runs.directory import RunDirectory
from echo_cli.runs.parts import base_of
from echo_cli.runs.pools import Pool, pool_of
from echo_cli.text import escape_unprintable
from echo_cli.traces.training_data import POOL
from echo_cli.trajectory import Trajectory, read_trajectories


def frozen_pools(
    run: RunDirectory, config: Config, worlds: TaskSuite | None, policy: Policy, environment: str = ""
) -> dict[str, Pool]:
    """Return the frozen pools of a run, replayed by its worlds' experts or read from its files; the traces' pool last.

    Args:
        worlds: the run's worlds, which replay the pools if the run has not kept them; None if they need not.
        environment: the only one of several whose pools are returned, as those of a run in it alone.

    Raises:
        EchoError: a stored pool is damaged or missing.
    """
    paths = run.pool_paths
    traces = paths.pop(POOL, None)
    pools: dict[str, Pool] = {}
    if environment:
        pools = {name: kept_pool(path, policy.renderer, environment) for name, path in paths.items()}
    elif not paths and worlds is not None and replays_pools(config):
        pools = expert_pools(config, worlds, policy)
    else:
        for name, path in paths.items():
            pools |= pools_in(name, _read(path, policy.renderer), config.names)
    if config.traces is None or config.environment.none:
        return pools
    if traces is None:
        raise EchoError(
            f"{escape_unprintable(run.path)} lacks its pool of held-out traces", "repeat the training with --overwrite"
        )
    return {**pools, POOL: kept_pool(traces, policy.renderer)}


def replays_pools(config: Config) -> bool:
    """Return whether a run may have its pools replayed by experts; in several environments they are always kept."""
    return not config.names and config.environment.toy_worlds is not None


def pools_in(name: str, trajectories: Sequence[Trajectory], environments: Sequence[str]) -> dict[str, Pool]:
    """Return the pool `name` of `trajectories`, or its parts if there are several environments."""
    if not environments:
        return {name: pool_of(trajectories)}
    found = {}
    for environment in environments:
        own = [trajectory for trajectory in trajectories if environment_of(trajectory) == environment]
        found[f"{name}/{environment}"] = pool_of(own)
    return found


def union_of(pools: Sequence[Pool]) -> Pool:
    """Return the trajectories of several pools as one, which has a pair once for each pool that has it."""
    trajectories, spans = ([getattr(pool, name) for pool in pools] for name in ("trajectories", "spans"))
    return Pool(tuple(chain(*trajectories)), tuple(chain(*spans)), sum(pool.cut for pool in pools))


def part_of(pools: Mapping[str, Pool], name: str) -> Pool | None:
    """Return the pool `name`, or the union of its parts; None if there is neither."""
    if name in pools:
        return pools[name]
    parts = [pool for part, pool in pools.items() if base_of(part) == name]
    return union_of(parts) if parts else None


def kept_pool(path: Path, renderer: Renderer | None, environment: str = "") -> Pool:
    """Return a frozen pool that a run has kept, or the part of one of its several environments.

    Raises:
        EchoError: the file is damaged, or is not in the renderer's tokens.
    """
    return pool_of(one for one in _read(path, renderer) if not environment or environment_of(one) == environment)


def _read(path: Path, renderer: Renderer | None) -> list[Trajectory]:
    try:
        trajectories = list(read_trajectories(path))
        ids = {token for one in trajectories for segment in one.segments for token in segment.token_ids}
        if renderer is not None and not ids <= set(range(renderer.tokenizer.vocab_size)):
            raise ValueError("it has tokens of another tokenizer")
        for trajectory in trajectories:
            trajectory.exchanges()  # an action without a turn is found here, where the file is known
        return trajectories
    except ValueError as error:
        message = f"{escape_unprintable(path)} is damaged: {escape_unprintable(str(error))}"
        raise EchoError(message, "restore the file, or train the run again with --overwrite") from error
