"""Play a pool: a scripted expert, scripted explorers or a checkpoint on the tasks of a split, written as a pool file.

A checkpoint as the actor makes an off-policy pool: other policies are measured on what it met (ECHO, Figure 3).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.tasks import Split, Task
from echo_cli.environments.worlds import open_worlds
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import expert_scripts
from echo_cli.evaluation.loaded_run import build_policy, load_run
from echo_cli.files import sha256_of
from echo_cli.models.loading import load_renderer
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.limits import EpisodeLimits, limits_for, limits_of
from echo_cli.rollouts.rollout import play_policy, play_scripts, without_fragments
from echo_cli.runs.pool_folder import Actor, Manifest, Provenance, check_free, write_pool
from echo_cli.runs.provenance import git_commit
from echo_cli.seeds import derive_seed, generator
from echo_cli.trajectory import Trajectory


@dataclass(frozen=True)
class CheckpointActor:
    """A checkpoint of the run at `run` ("best", "latest" or a step), sampled at `temperature`."""

    run: Path
    which: str | int = "best"
    temperature: float = 0.6
    """As in the paper's evaluation."""


@dataclass(frozen=True)
class Recipe:
    """What a pool is made of: `config` has the worlds, the caps of an episode and the seed.

    Raises:
        ValueError: a script is asked for solved rollouts, or the expert, who knows one way, for several.
    """

    config: Config
    actor: CheckpointActor | str = "expert"
    """A script's name, "expert" or "explorer", or a checkpoint."""
    split: Split = "heldout"
    out_of_distribution: bool = False
    rollouts: int = 1
    """Per task."""
    only_solved: bool = False

    def __post_init__(self) -> None:
        if self.only_solved and isinstance(self.actor, str):
            raise ValueError("scripts are played without a verifier")
        if self.rollouts > 1 and self.actor == "expert":
            raise ValueError("the expert plays a task one way")


def build_pool(folder: Path, recipe: Recipe, *, overwrite: bool = False) -> Manifest:
    """Play the pool of `recipe` and write it to `folder`. The same recipe gives the same trajectories.

    Raises:
        EchoError: the folder is used, there are no such worlds or tasks, the run or its checkpoint is not there or
            damaged, no rollout solved its task (exit code 1), or nothing was printed that could be predicted.
    """
    check_free(folder, overwrite)
    config = recipe.config
    with open_worlds(config) as here:
        worlds = here.out_of_distribution() if recipe.out_of_distribution else here
        tasks = _tasks(worlds, recipe)
        if isinstance(recipe.actor, CheckpointActor):
            policy, actor = _load(recipe.actor, config)
            renderer, temperature = policy.renderer, recipe.actor.temperature
            limits = limits_for(config, policy)
            trajectories = _sample(policy, worlds, tasks, recipe, limits, temperature)
        else:
            renderer, limits = load_renderer(config), limits_of(config)
            actor, temperature = Actor(kind="expert" if recipe.actor == "expert" else "explorer"), None
            trajectories = _script(renderer, worlds, tasks, recipe, limits)
    if recipe.only_solved:
        trajectories = [trajectory for trajectory in trajectories if (trajectory.reward or 0.0) >= 1.0]
        if not trajectories:
            tip = "give more --rollouts, or another --checkpoint or --temperature"
            raise EchoError(f"none of {recipe.rollouts * len(tasks)} rollouts solved its task", tip, exit_code=1)
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
    """The toy worlds that are played in; none in another environment."""
    toy = config.environment.toy_worlds
    if toy is None:
        return ()
    return toy.ood_world_seeds if out_of_distribution else toy.world_seeds


def _tasks(worlds: TaskSuite, recipe: Recipe) -> Sequence[Task]:
    tasks: Sequence[Task] = getattr(worlds.tasks, recipe.split)
    if tasks:
        return tasks
    if recipe.out_of_distribution:
        tip = "name one with environment.toy_terminal.ood_world_seeds=[101]; in a task list, `split: ood`"
        raise EchoError("the config has no out-of-distribution world", tip)
    raise EchoError(f"there is no {recipe.split} task", "name some in environment.tasks")


def _load(actor: CheckpointActor, config: Config) -> tuple[TorchPolicy, Actor]:
    """Return the policy of a checkpoint, with the checkpoint's own architecture and tokenizer, and its record."""
    run = load_run(actor.run)
    folder, step = run.checkpoint(actor.which)
    model, adapted = run.config.model, run.config.model.lora is not None
    if not adapted:
        model = model.model_copy(update={"path": str(folder), "init": "pretrained", "revision": None})
    # The seed is for the base of an adapter, which may be random weights of the run's own.
    own = {"model": model, "conversation": run.config.conversation, "seed": run.config.seed}
    policy, _ = build_policy(config.model_copy(update=own))
    if adapted:
        policy.model.load(folder)
    sha256 = _weights_sha256(folder)
    return policy, Actor(kind="checkpoint", run=run.name, step=step, model_sha256=sha256)


def _weights_sha256(folder: Path) -> str:
    """The SHA-256 of a checkpoint's weights; of several files, that of their hashes and names, one a line."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return sha256_of(files[0])
    lines = "".join(f"{sha256_of(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _sample(
    policy: TorchPolicy,
    worlds: TaskSuite,
    tasks: Sequence[Task],
    recipe: Recipe,
    limits: EpisodeLimits,
    temperature: float,
) -> list[Trajectory]:
    """Verified rollouts, task by task. Played in rounds of one a task, so that more of them keep the first ones."""
    wanted = [(task, task.task_id) for task in tasks]
    whole: list[Trajectory] = []
    for number in range(recipe.rollouts):
        sampler = policy.sampler(temperature, derive_seed(recipe.config.seed, "pool", number))
        played = play_policy(sampler, policy.renderer, worlds, wanted, limits, verify=True)
        whole += without_fragments(played, len(wanted), worlds.hosting)
    order = {task.task_id: number for number, task in enumerate(tasks)}
    return sorted(whole, key=lambda trajectory: order[trajectory.task_id])


def _script(
    renderer: Renderer, worlds: TaskSuite, tasks: Sequence[Task], recipe: Recipe, limits: EpisodeLimits
) -> list[Trajectory]:
    """Scripted rollouts, task by task; explorers draw from a generator of this pool's own.

    Raises:
        EchoError: no task has a solution that is known, or there is nothing for explorers to draw from.
    """
    count = recipe.config.rollout.explorer_commands
    if recipe.actor == "expert":
        solved = expert_scripts(worlds, tasks)
        if not solved:
            raise EchoError("no task has a known solution", "list its lines under `actions` in environment.tasks")
        return play_scripts(renderer, worlds, solved, limits, "expert")
    rng = generator(recipe.config.seed, "pool/explorer")
    scripts = [(task, worlds.explorer(task, count, rng)) for task in tasks for _ in range(recipe.rollouts)]
    return play_scripts(renderer, worlds, scripts, limits, "explorer", world_model_only=True)
