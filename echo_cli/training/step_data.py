"""Data of a step: rollouts played in the environment, and traces drawn from files."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.several import SeveralWorlds, shares, up_in
from echo_cli.environments.tasks import Task
from echo_cli.errors import EchoError
from echo_cli.models.backend import Policy
from echo_cli.rollouts.limits import limits_for
from echo_cli.rollouts.several import play_policy, play_scripts
from echo_cli.seeds import derive_seed, epoch_sample, epoch_slice, generator
from echo_cli.text import counted
from echo_cli.traces.training_data import FIT_TIP, RenderedTraces, traces_of_step
from echo_cli.training.curriculum import Curriculum
from echo_cli.training.session import Session
from echo_cli.trajectory import Role, Trajectory


@dataclass(frozen=True)
class StepData:
    """Trajectories of an optimizer step."""

    rollouts: Sequence[Trajectory]
    traces: RenderedTraces
    seconds: float
    """Wall-clock time to collect the trajectories, seconds."""

    @property
    def trajectories(self) -> list[Trajectory]:
        """Rollouts, then traces."""
        return [*self.rollouts, *self.traces.trajectories]

    @property
    def trace_indices(self) -> range:
        """Indices of the traces in `trajectories`."""
        return range(len(self.rollouts), len(self.rollouts) + len(self.traces.trajectories))


def collect_step(session: Session, step: int, coeff: float) -> StepData:
    """Play the rollouts and draw the traces of the 0-based `step`, given λ (`coeff`).

    Raises:
        EchoError: the environment is unavailable or lost the session of every rollout; a trace file is missing or was
            changed; the step has no rollouts and none of its traces fits (exit code 1).
    """
    started = time.perf_counter()
    rollouts = _roll_out(session, step, coeff)
    traces = _draw_traces(session, step, coeff, alone=not rollouts)
    return StepData(rollouts, traces, time.perf_counter() - started)


def play_tasks(
    config: Config,
    policy: Policy,
    worlds: TaskSuite,
    step: int,
    curriculum: Curriculum | None = None,
    drawn: dict[str, int] | None = None,
) -> list[Trajectory]:
    """Play the on-policy rollouts of the 0-based `step`, one group per task.

    Tasks are drawn by the `curriculum`, or else in shuffled epochs, so that every task is played equally often.

    Args:
        drawn: number of tasks drawn so far, by name of several environments; it is updated.
    """
    settings = config.rollout
    if isinstance(worlds, SeveralWorlds):
        tasks = draw_tasks(config, worlds, step, curriculum, {} if drawn is None else drawn)
    elif curriculum is None:
        tasks = epoch_sample(worlds.tasks.train, settings.tasks_per_step, config.seed, "tasks", step)
    else:
        tasks = curriculum.draw(worlds.tasks.train, settings.tasks_per_step, config.seed, step)
    wanted = [
        (task, f"{step}/{number}/{task.task_id}")
        for number, task in enumerate(tasks)
        for _ in range(settings.group_size)
    ]
    sampler = policy.sampler(settings.temperature, derive_seed(config.seed, "rollout", step))
    limits = limits_for(config, policy, worlds)
    verify, ranks = config.objective.use_rl, policy.ranks
    return play_policy(sampler, policy.renderer, worlds, wanted, limits, verify=verify, training=True, ranks=ranks)


def draw_tasks(
    config: Config, worlds: SeveralWorlds, step: int, curriculum: Curriculum | None, drawn: dict[str, int]
) -> list[Task]:
    """Return the tasks of the 0-based `step`: each environment's share by its weight, from its own shuffled epochs.

    An environment that is left out has no share. A curriculum draws among the tasks of each environment.
    """
    weights = {name: worlds.weights[name] for name in worlds.up}
    tasks: list[Task] = []
    for name, count in shares(weights, config.rollout.tasks_per_step, config.seed, "environments", step).items():
        own = worlds.tasks_in(name, worlds.tasks.train) if count else []
        if count and curriculum is not None:
            tasks += curriculum.draw(own, count, config.seed, step, f"curriculum/{name}")
        elif count:
            tasks += epoch_slice(own, drawn.get(name, 0), count, config.seed, f"tasks/{name}")
        drawn[name] = drawn.get(name, 0) + count
    return tasks


def play_explorers(config: Config, policy: Policy, worlds: TaskSuite, step: int, explorers: int) -> list[Trajectory]:
    """Play the scripted rollouts of the 0-based `step`, which contribute to the env term only.

    With `objective.env_targets: other_world`, they play another world than the tasks of the run.
    """
    if config.objective.env_targets == "other_world":
        other = worlds.other_world()
        assert other is not None, "open_worlds has refused worlds without another"
        worlds = other
    rng = generator(config.seed, "explorer", step)
    scripts = []
    for task in _explored(config, worlds, step, explorers, rng):
        scripts.append((task, worlds.explorer(task, config.rollout.explorer_commands, rng)))
    limits = limits_for(config, policy, worlds)
    return play_scripts(policy.renderer, worlds, scripts, limits, "explorer", world_model_only=True, ranks=policy.ranks)


def _explored(config: Config, worlds: TaskSuite, step: int, explorers: int, rng: random.Random) -> Iterator[Task]:
    """Draw a training task for each explorer; of several environments, by the weights of those that have lines.

    The caller draws the explorer's lines from the same generator before the next task.
    """
    if not isinstance(worlds, SeveralWorlds):
        for _ in range(explorers):
            yield rng.choice(worlds.tasks.train)
        return
    able = {name: worlds.weights[name] for name in worlds.up if config.sections[name].can_explore}
    if any(able.values()):
        for name, count in shares(able, explorers, config.seed, "environments/explorer", step).items():
            own = worlds.tasks_in(name, worlds.tasks.train) if count else []
            for _ in range(count):
                yield rng.choice(own)


def _roll_out(session: Session, step: int, coeff: float) -> list[Trajectory]:
    """Play the groups of on-policy rollouts, then the scripted explorers."""
    config, policy, worlds = session.config, session.policy, session.worlds
    tasks = config.rollout.tasks_per_step
    explorers = config.explorers_at(coeff)
    played, lost = list[Trajectory](), True
    while lost and not played:  # a step whose only environment was just left out is drawn among the others
        up = up_in(worlds)
        played = play_tasks(config, policy, worlds, step, session.curriculum, session.drawn) if tasks else []
        played += play_explorers(config, policy, worlds, step, explorers) if explorers else []
        lost = up_in(worlds) != up
    if not played and tasks + explorers > 0:
        tip = "check the server's log, then continue with --resume"
        raise EchoError(f"the environment lost every session of step {step + 1}", tip, exit_code=1)
    return played


def _draw_traces(session: Session, step: int, coeff: float, *, alone: bool) -> RenderedTraces:
    """Draw the traces of the step; none if they would contribute nothing next to the RL term.

    Args:
        alone: whether the step has no rollouts.
    """
    traces, rollout = session.traces, session.config.rollout
    if traces is None or not (coeff > 0 or traces.settings.imitation_coeff > 0 or rollout.tasks_per_step == 0):
        return RenderedTraces((), 0)
    policy = session.policy
    found = traces_of_step(traces, policy.renderer, session.config.seed, step, policy.ranks)
    if alone and not found.trajectories:
        message = f"no trace of step {step + 1} fits in {traces.max_tokens} tokens: the first segment alone is longer"
        raise EchoError(message, FIT_TIP, exit_code=1)
    needed = coeff > 0 and traces.settings.imitation_coeff == 0 and step == session.start_step
    if alone and needed and found.cut and not any(each.count(Role.ENV_OUTPUT) for each in found.trajectories):
        drawn = counted(len(found.trajectories), "trace")
        message = f"the {drawn} of step {step + 1} have no observation within {traces.max_tokens} tokens"
        raise EchoError(message, FIT_TIP, exit_code=1)
    return found
