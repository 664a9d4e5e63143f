"""The training loop, top to bottom: play, weigh, back-propagate, step, evaluate, save. It draws nothing itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.tasks import Task
from echo_cli.errors import EchoError
from echo_cli.files import Row
from echo_cli.metrics import reduce_metrics
from echo_cli.models.policy import TorchPolicy
from echo_cli.objective.advantages import step_advantages
from echo_cli.objective.batch import count_rollouts
from echo_cli.objective.diagnostics import check_first_step, portable_lambda
from echo_cli.objective.filters import filter_env_rollouts
from echo_cli.objective.loss import step_totals, step_weights
from echo_cli.objective.schedule import GradientNorms, learning_rate_at, measures_gradients, world_model_coeff_at
from echo_cli.rollouts.behaviour import behaviour_metrics
from echo_cli.rollouts.episode import cut_pieces
from echo_cli.rollouts.limits import limits_for
from echo_cli.rollouts.rollout import play_policy, play_scripts
from echo_cli.runs.pools import pairs_of
from echo_cli.runs.summary import best_step, warnings_of
from echo_cli.seeds import derive_seed, epoch_sample, generator
from echo_cli.traces.training_data import RenderedTraces, traces_of_step
from echo_cli.training.collapse import lambda_factor, new_alarms, stop_if_collapsed
from echo_cli.training.rows import _faults, _mean, _probe_row, _trace_row, row_keys
from echo_cli.training.session import Session
from echo_cli.trajectory import Trajectory

_DIVERGED_TIP = "the last checkpoint is intact; try a lower optim.lr or objective.world_model_coeff"


def train(session: Session, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Row]:
    """Train to `config.steps`, yielding the metrics of each step once they are on disk; row 0 is before training.

    After `should_stop()` the step is finished, a checkpoint written, and the generator ends.

    Raises:
        EchoError: the loss, the gradient or a held-out measure is not finite (exit code 3; no checkpoint of it), the
            env term does nothing at step 0, or the run directory cannot be written.
        CollapseError: the run collapses, or has before, and `collapse.action` is `stop` (exit code 3; with a
            checkpoint).
    """
    config, policy, evaluator = session.config, session.policy, session.evaluator
    settings = config.objective
    norms, rows = session.gradient_norms, session.run.read_metrics()
    stop_if_collapsed(rows, config.collapse)
    if session.start_step == 0:
        with _kept(session, 0, norms):
            rows.append(_record(session, rows, {"step": 0}, evaluate=True))
        _save(session, 0, norms, best=best_step(rows, config.evaluation.select_by) == 0)
        yield rows[-1]
        if should_stop():
            return
    elif session.unrecorded is not None and rows[-1]["step"] < session.start_step:
        rows.append(_record(session, rows, session.unrecorded, evaluate=True))
        if best_step(rows, config.evaluation.select_by) == session.start_step:
            session.run.checkpoints.mark_best(session.start_step)
        yield rows[-1]
        stop_if_collapsed(rows[-1:], config.collapse)

    for step in range(session.start_step, config.steps):
        started = time.perf_counter()
        lowered = lambda_factor(rows, config.collapse)
        coeff = lowered * world_model_coeff_at(settings, step, config.steps, norms)
        # Explorers get the env term only: at λ = 0 they would be played for nothing, unless there is nothing else.
        useful = coeff > 0 or (config.rollout.tasks_per_step == 0 and config.traces is None)
        with _kept(session, step, norms):
            rollouts = roll_out(session, step, explorers=config.rollout.explorers if useful else 0)
            traces = draw_traces(session, step, coeff, alone=not rollouts)
        trajectories = [*rollouts, *traces.trajectories]
        played = time.perf_counter()

        advantages_B = step_advantages(trajectories, settings.advantage) if settings.use_rl else None
        filtered = filter_env_rollouts(trajectories, settings)
        imitated = range(len(rollouts), len(trajectories)) if config.imitation_coeff > 0 else ()
        counts = count_rollouts(
            trajectories, settings.selected_roles, use_rl=settings.use_rl, kept=filtered.kept, imitated=imitated
        )
        weights = step_weights(counts, step_totals(counts), settings)
        temperature = config.rollout.temperature
        weighed, probe = time.perf_counter(), _probe_row(None, 0.0)
        measuring = measures_gradients(settings, step)
        if measuring or (config.probe_every and step % config.probe_every == 0):
            compared = policy.probe(trajectories, advantages_B, weights, settings, temperature)
            probe = _probe_row(compared, time.perf_counter() - weighed)
            # Without reward contrast what is left of the RL gradient, a KL penalty, says nothing about its size.
            if measuring and advantages_B is not None and advantages_B.any():
                norms = norms.updated(compared.rl_norm, compared.env_norm, settings.gradient_ratio_smoothing)
                coeff = lowered * world_model_coeff_at(settings, step, config.steps, norms)

        metrics = policy.forward_backward(
            trajectories,
            advantages_B,
            weights,
            settings,
            coeff,
            temperature,
            None if config.traces is None else config.imitation_coeff,
        )
        values = reduce_metrics([metrics])
        if step == 0:
            check_first_step(coeff, values["env_loss"] or 0.0, values["env_tokens"] or 0.0)
        lr = learning_rate_at(config.optim, step, config.steps)
        grad_norm = policy.optim_step(lr)
        if not (math.isfinite(values["loss"] or 0.0) and math.isfinite(grad_norm)):
            raise EchoError(
                f"step {step + 1}: the loss is {values['loss']} and the gradient norm {grad_norm}",
                _DIVERGED_TIP,
                exit_code=3,
            )
        new = session.observed.add(trajectories, step + 1)
        session.run.append_observations(new)
        evaluator.observe(pairs_of(new))

        row: Row = {
            "step": step + 1,
            **{f"train/{name}": value for name, value in values.items()},
            **probe,
            "train/reward": _mean([t.reward for t in rollouts if t.reward is not None]),
            **{f"train/{name}": value for name, value in behaviour_metrics(rollouts).items()},
            "train/cut_pieces": cut_pieces(rollouts),
            "train/grad_norm": grad_norm,
            "train/lambda": coeff,
            "train/portable_lambda": portable_lambda(coeff, counts, weights, advantages_B),
            "train/lr": lr,
            **{f"train/env_dropped_{name}": dropped for name, dropped in filtered.dropped.items()},
            **_trace_row(config, traces),
            **_faults(session),
            "time/rollout_s": played - started,
            "time/update_s": time.perf_counter() - played - (probe["time/probe_s"] or 0.0),
        }
        last = step + 1 == config.steps
        evaluating = last or (step + 1) % config.evaluation.every == 0
        with _kept(session, step + 1, norms, row):
            rows.append(_record(session, rows, row, evaluate=evaluating))
        best = evaluating and best_step(rows, config.evaluation.select_by) == step + 1
        stopping = should_stop()
        collapsed = bool(rows[-1]["warnings"]) and config.collapse.action == "stop"
        if last or best or stopping or collapsed or (step + 1) % config.checkpoint.every == 0:
            _save(session, step + 1, norms, best=best)
        yield rows[-1]
        stop_if_collapsed(rows[-1:], config.collapse)
        if stopping:
            return


@contextmanager
def _kept(session: Session, step: int, norms: GradientNorms, row: Row | None = None) -> Iterator[None]:
    """Keep what `step` optimizer steps have learned where the environment ends the run (exit code 1).

    With `row`, that of the step which the evaluation is missing from: the continuation evaluates and writes it.
    """
    try:
        yield
    except EchoError as error:
        if error.exit_code == 1 and step not in session.run.checkpoints.steps():
            _save(session, step, norms, best=False, unrecorded=row)
        raise


def _save(session: Session, step: int, norms: GradientNorms, *, best: bool, unrecorded: Row | None = None) -> None:
    meta = {"seconds": session.seconds, "gradient_norms": asdict(norms)}
    if unrecorded is not None:
        meta["unrecorded"] = unrecorded
    session.run.save_checkpoint(step, session.policy.save, meta)
    if best:
        session.run.checkpoints.mark_best(step)
    session.run.checkpoints.prune(session.config.checkpoint.keep)


def roll_out(session: Session, step: int, explorers: int) -> list[Trajectory]:
    """The rollouts of the 0-based `step`: groups of on-policy episodes, then scripted `explorers`.

    Raises:
        EchoError: the environment is gone, or has lost the session of every rollout (exit code 1).
    """
    config, policy, worlds = session.config, session.policy, session.worlds
    tasks = config.rollout.tasks_per_step
    played = play_tasks(config, policy, worlds, step) if tasks else []
    played += play_explorers(config, policy, worlds, step, explorers) if explorers else []
    if not played and tasks + explorers > 0:
        tip = "look at the server's own log, then continue with --resume"
        raise EchoError(f"the environment lost every session of step {step + 1}", tip, exit_code=1)
    return played


def draw_traces(session: Session, step: int, coeff: float, *, alone: bool) -> RenderedTraces:
    """The traces of the 0-based `step`; none where nothing would be learned from them beside the RL term.

    Args:
        alone: the step has no rollouts.

    Raises:
        EchoError: a file is gone or was changed, or the traces are alone and none of them fits (exit code 1).
    """
    traces, rollout = session.traces, session.config.rollout
    if traces is None or not (coeff > 0 or traces.settings.imitation_coeff > 0 or rollout.tasks_per_step == 0):
        return RenderedTraces((), 0)
    found = traces_of_step(traces, session.policy.renderer, session.config.seed, step)
    if alone and not found.trajectories:
        message = f"no trace of step {step + 1} fits {traces.max_tokens} tokens: the first segment alone is longer"
        raise EchoError(message, "give more traces.per_step, or choose a model with a longer context", exit_code=1)
    return found


def play_tasks(config: Config, policy: TorchPolicy, worlds: TaskSuite, step: int) -> list[Trajectory]:
    """The on-policy rollouts of the 0-based `step`, a group for each of its tasks."""
    settings = config.rollout
    wanted = [
        (task, f"{step}/{number}/{task.task_id}")
        for number, task in enumerate(tasks_of_step(config, worlds.tasks.train, step))
        for _ in range(settings.group_size)
    ]
    sampler = policy.sampler(settings.temperature, derive_seed(config.seed, "rollout", step))
    limits = limits_for(config, policy)
    return play_policy(sampler, policy.renderer, worlds, wanted, limits, verify=config.objective.use_rl, penalize=True)


def play_explorers(
    config: Config, policy: TorchPolicy, worlds: TaskSuite, step: int, explorers: int
) -> list[Trajectory]:
    """The scripted rollouts of the 0-based `step`, which get the env term only."""
    rng = generator(config.seed, "explorer", step)
    scripts = []
    for _ in range(explorers):
        task = rng.choice(worlds.tasks.train)
        scripts.append((task, worlds.explorer(task, config.rollout.explorer_commands, rng)))
    limits = limits_for(config, policy)
    return play_scripts(policy.renderer, worlds, scripts, limits, "explorer", world_model_only=True)


def tasks_of_step(config: Config, tasks: Any, step: int) -> list[Task]:
    """The training tasks of the 0-based `step`: shuffled epochs, so that every task comes up equally often."""
    return epoch_sample(tasks, config.rollout.tasks_per_step, config.seed, "tasks", step)


def _record(session: Session, rows: Sequence[Row], row: Row, *, evaluate: bool) -> Row:
    """Evaluate if it is time, look for alarms, and write the row that follows `rows`, the same keys on every step."""
    started = time.perf_counter()
    config, step, measured = session.config, row["step"], {}
    if evaluate:
        play = step % config.evaluation.pass_every == 0 or step == config.steps
        evaluation = session.evaluator.evaluate(session.policy, step, play=play)
        measured = dict(evaluation.metrics)
        records = [trajectory.to_json() for trajectory in evaluation.trajectories]
        session.run.append_trajectories([{**record, "meta": {"step": step}} for record in records])
    full = {
        "step": step,
        **dict.fromkeys(row_keys(config)),
        **row,
        **measured,
        **{key: row.get(key, 0) + count for key, count in _faults(session).items()},
        "time/eval_s": time.perf_counter() - started,
    }
    raised = {warning["signal"] for warning in warnings_of(rows)}
    alarms = new_alarms([*rows, full], config.collapse, config.rollout, raised)
    full["warnings"] = [alarm.to_json() for alarm in alarms]
    session.run.append_metrics(full)
    broken = [name for name, value in measured.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken:
        raise EchoError(f"step {step}: {broken[0]} is {measured[broken[0]]}", _DIVERGED_TIP, exit_code=3)
    return full
