"""Building of pool folders: an expert script, explorer scripts or a checkpoint plays the tasks of a split.

With a checkpoint as the actor, the pool is off-policy for all other policies measured on it (ECHO, Figure 3).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.tasks import Split, Task
from echo_cli.environments.worlds import list_tasks, open_worlds
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import expert_scripts
from echo_cli.evaluation.loaded_run import build_policy, load_run
from echo_cli.files import sha256_of
from echo_cli.models.backend import Policy
from echo_cli.models.loading import load_renderer
from echo_cli.models.weight_files import SHARDED_WEIGHTS
from echo_cli.rollouts.limits import EpisodeLimits, limits_for, limits_of
from echo_cli.rollouts.rollout import without_fragments
from echo_cli.rollouts.several import play_policy, play_scripts
from echo_cli.runs.pool_folder import Actor, Manifest, Provenance, check_free, write_pool
from echo_cli.runs.provenance import git_commit
from echo_cli.seeds import derive_seed, generator
from echo_cli.text import counted, escape_unprintable
from echo_cli.trajectory import Source, Trajectory


@dataclass(frozen=True)
class CheckpointActor:
    """A checkpoint of the run at `run` ("best", "latest" or a step), sampled at `temperature`."""

    run: Path
    which: str | int = "best"
    temperature: float = 0.6
    """Sampling temperature; the default is the paper's evaluation setting."""
    overrides: Sequence[str] = ()
    """Overrides of the run's config, for loading its model."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a pool to build.

    Raises:
        ValueError: `only_solved` with a script, or several rollouts per task with the expert.
    """

    config: Config
    """Source of the worlds, the caps of an episode, and the seed."""
    actor: CheckpointActor | str = "expert"
    """A checkpoint, or a script: "expert" or "explorer"."""
    split: Split = "heldout"
    out_of_distribution: bool = False
    rollouts: int = 1
    """Number of rollouts per task."""
    only_solved: bool = False

    def __post_init__(self) -> None:
        if self.only_solved and isinstance(self.actor, str):
            raise ValueError("scripts are played without a verifier, so only_solved has no effect")
        if self.rollouts > 1 and self.actor == "expert":
            raise ValueError("the expert plays each task in one way, so one rollout per task is enough")


def build_pool(
    folder: Path, recipe: Recipe, *, overwrite: bool = False, on_start: Callable[[], object] = lambda: None
) -> Manifest:
    """Play the pool of `recipe` and write it to `folder`. Equal recipes give equal trajectories.

    Args:
        on_start: called once before the first episode.

    Raises:
        EchoError: the folder is not empty; the worlds or tasks do not exist; the run or its checkpoint does not exist
            or is damaged; no rollout solved its task (exit code 1); or the trajectories have no output to predict.
    """
    check_free(folder, overwrite)
    config = recipe.config
    tasks = _tasks(recipe)
    loaded = _load(recipe.actor, config) if isinstance(recipe.actor, CheckpointActor) else None
    with open_worlds(config) as here:
        worlds = here.out_of_distribution() if recipe.out_of_distribution else here
        if loaded is not None and isinstance(recipe.actor, CheckpointActor):
            on_start()
            policy, actor = loaded
            renderer, temperature = policy.renderer, recipe.actor.temperature
            limits = limits_for(config, policy, worlds)
            trajectories = _sample(policy, worlds, tasks, recipe, limits, temperature)
        else:
            renderer, limits = load_renderer(config), limits_of(config)
            actor, temperature = Actor(kind="expert" if recipe.actor == "expert" else "explorer"), None
            scripts = _scripts(worlds, tasks, recipe)
            on_start()
            explored = recipe.actor == "explorer"
            trajectories = [
                trajectory
                for source, of_source in scripts.items()
                for trajectory in play_scripts(renderer, worlds, of_source, limits, source, world_model_only=explored)
            ]
    solved_at = config.evaluation.solved_at
    if recipe.only_solved:
        trajectories = [trajectory for trajectory in trajectories if (trajectory.reward or 0.0) >= solved_at]
        if not trajectories:
            tip = "increase --rollouts, or change --checkpoint or --temperature"
            raise EchoError(
                f"no task was solved in {counted(recipe.rollouts * len(tasks), 'rollout')}", tip, exit_code=1
            )
    provenance = Provenance(
        actor=actor,
        split=recipe.split,
        out_of_distribution=recipe.out_of_distribution,
        world_seeds=_world_seeds(config, recipe.out_of_distribution),
        rollouts_per_task=recipe.rollouts,
        only_solved=recipe.only_solved,
        temperature=temperature,
        seed=None if actor.kind == "expert" else config.seed,
        limits=limits,
        environment={**config.environment.model_dump(mode="json"), "url": None},
        echo_cli=importlib.metadata.version("echo-cli"),
        git_commit=git_commit(),
    )
    return write_pool(folder, trajectories, renderer.tokenizer, provenance, overwrite=overwrite)


def _world_seeds(config: Config, out_of_distribution: bool) -> tuple[int, ...]:
    """Return the seeds of the toy worlds in which the pool is played; empty for other environments."""
    toy = config.environment.toy_worlds
    if toy is None:
        return ()
    return toy.ood_world_seeds if out_of_distribution else toy.world_seeds


def _tasks(recipe: Recipe) -> Sequence[Task]:
    here, elsewhere = list_tasks(recipe.config)
    tasks: Sequence[Task] = getattr(elsewhere if recipe.out_of_distribution else here, recipe.split)
    if tasks:
        return tasks
    if recipe.out_of_distribution:
        tip = "set environment.toy_terminal.ood_world_seeds=[101], or `split: ood` in a task list"
        raise EchoError("the config has no out-of-distribution world", tip)
    raise EchoError(f"the config has no {recipe.split} task", "add tasks to environment.tasks")


def _load(actor: CheckpointActor, config: Config) -> tuple[Policy, Actor]:
    """Return the policy of a checkpoint with its own architecture and tokenizer, and the manifest's actor record."""
    run = load_run(actor.run, overrides=actor.overrides)
    folder, step = run.checkpoint(actor.which)
    if run.config.service is not None:
        raise EchoError(
            f"{escape_unprintable(actor.run)} has its checkpoints at a Tinker service",
            "export one with --merge, and give that folder to --actor",
        )
    model, adapted = run.config.model, run.config.model.lora is not None
    if not adapted:
        model = model.model_copy(update={"path": str(folder), "init": "pretrained", "revision": None})
    # An adapter's base model may be randomly initialised from the run's seed.
    own = {"model": model, "conversation": run.config.conversation, "seed": run.config.seed}
    policy, _ = build_policy(config.model_copy(update=own))
    if adapted:
        policy.load(folder)
    sha256 = _weights_sha256(folder)
    return policy, Actor(kind="checkpoint", run=run.name, step=step, model_sha256=sha256)


def _weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's weights; for several files, the hash of their `HASH  NAME` lines."""
    files = sorted([*folder.glob("*.safetensors"), *(folder / SHARDED_WEIGHTS).glob("*.safetensors")])
    if len(files) == 1:
        return sha256_of(files[0])
    lines = "".join(f"{sha256_of(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _sample(
    policy: Policy,
    worlds: TaskSuite,
    tasks: Sequence[Task],
    recipe: Recipe,
    limits: EpisodeLimits,
    temperature: float,
) -> list[Trajectory]:
    """Play verified rollouts and return them in task order.

    Each round plays one rollout per task, so that the first rollouts do not depend on the number of rollouts.
    """
    wanted = [(task, task.task_id) for task in tasks]
    whole: list[Trajectory] = []
    for number in range(recipe.rollouts):
        sampler = policy.sampler(temperature, derive_seed(recipe.config.seed, "pool", number))
        played = play_policy(sampler, policy.renderer, worlds, wanted, limits, verify=True)
        whole += without_fragments(played, len(wanted), worlds.hosting)
    order = {task.task_id: number for number, task in enumerate(tasks)}
    return sorted(whole, key=lambda trajectory: order[trajectory.task_id])


def _scripts(worlds: TaskSuite, tasks: Sequence[Task], recipe: Recipe) -> Mapping[Source, list[tuple[Task, list[str]]]]:
    """Return the scripts of the rollouts by their source; explorers draw from a generator used only for pools.

    The expert's pool has the commands reserved for it, as the pool of a run on these tasks has (`expert_pool`).

    Raises:
        EchoError: no task has a known solution, or explorers have no actions to draw from.
    """
    if recipe.actor == "expert":
        solved = expert_scripts(worlds, tasks)
        if not solved:
            raise EchoError("no task has a known solution", "list solutions under `actions` in environment.tasks")
        return {"expert": solved, "explorer": worlds.reserved(tasks)}
    count, rng = recipe.config.rollout.explorer_commands, generator(recipe.config.seed, "pool/explorer")
    scripts = [(task, worlds.explorer(task, count, rng)) for task in tasks for _ in range(recipe.rollouts)]
    if not any(lines for _, lines in scripts):
        tip = "list actions in environment.explorer that solve no validation or held-out task"
        raise EchoError("explorers have no actions to draw from", tip)
    return {"explorer": scripts}
