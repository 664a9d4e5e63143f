"""The training loop: collect, weigh, probe, back-propagate, step, observe, evaluate, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.files import Row
from echo_cli.metrics import reduce_metrics
from echo_cli.models.backend import Policy
from echo_cli.models.tinker.service import ServiceLost
from echo_cli.objective.diagnostics import check_first_step
from echo_cli.objective.schedule import GradientNorms, learning_rate_at, measures_gradients, world_model_coeff_at
from echo_cli.objective.selection import unmatched_line
from echo_cli.objective.step import WeighedStep, weigh_step
from echo_cli.runs.pools import pairs_of
from echo_cli.runs.summary import best_step, warnings_of
from echo_cli.seeds import derive_seed
from echo_cli.training.collapse import lambda_factor, new_alarms, stop_if_collapsed
from echo_cli.training.curriculum import shares_of
from echo_cli.training.rows import Probe, full_row, step_row
from echo_cli.training.session import Session
from echo_cli.training.step_data import StepData, collect_step
from echo_cli.trajectory import Trajectory

_DIVERGED_TIP = "the last checkpoint is intact; try a lower optim.lr or objective.world_model_coeff"


def train(session: Session, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Row]:
    """Train to `config.steps` and yield the metrics of each step once they are on disk; row 0 is before training.

    If `should_stop()` is true, the generator ends after the current step and writes a checkpoint.

    Raises:
        EchoError: the loss, the gradient or a held-out measure is not finite (exit code 3; no checkpoint of this step
            is saved), the env term has no effect at the first step with λ > 0, or the run directory cannot be written.
        CollapseError: the run collapses or has collapsed, and `collapse.action` is `stop` (exit code 3; a checkpoint is
            saved).
    """
    config, policy = session.config, session.policy
    norms, rows = session.gradient_norms, session.run.read_metrics()
    stop_if_collapsed(rows, config.collapse)
    if session.start_step == 0:
        yield _record_start(session, rows)
        if should_stop():
            return
    elif session.unrecorded is not None and rows[-1]["step"] < session.start_step:
        yield _recover_row(session, rows, session.unrecorded)
        stop_if_collapsed(rows[-1:], config.collapse)

    for step in range(session.start_step, config.steps):
        started, done = time.perf_counter(), step + 1
        coeff = _coeff_at(config, step, norms, rows)
        with _checkpoint_if_environment_lost(session, step, norms):
            data = collect_step(session, step, coeff)

        weighed = _weigh(config, policy, data, step, coeff)
        lr = learning_rate_at(config.optim, step, config.steps)
        probe = _probe(policy, weighed) if _is_probe_due(config, step) else None
        if probe is not None and measures_gradients(config.objective, step):
            norms = _updated_norms(norms, weighed, probe)
            weighed = replace(weighed, coeff=_coeff_at(config, step, norms, rows))
        if probe is not None and _is_interference_due(config, step):
            probe = _with_interference(policy, weighed, probe, lr)

        values = reduce_metrics([policy.forward_backward(weighed)])
        if not any(row.get("train/lambda") for row in rows):  # λ may begin at 0
            _check_first_step(session, step, weighed, values["env_loss"] or 0.0)
        grad_norm = policy.optim_step(lr)
        values |= {"lr": lr, "grad_norm": grad_norm}
        _check_finite(done, values)
        _observe(session, data, done)

        if session.curriculum is not None:
            values |= shares_of(session.curriculum, session.worlds)
        row = step_row(done, config, data, weighed, probe, values, session.take_faults(), started)
        evaluating = done == config.steps or done % config.evaluation.every == 0
        with _checkpoint_if_environment_lost(session, done, norms, row):
            row = _record(session, rows, row, evaluate=evaluating)
        best = evaluating and best_step(rows, config.evaluation.select_by) == done
        stopping = should_stop()
        if best or stopping or _is_checkpoint_due(config, row):
            _save(session, done, norms, best=best)
        yield row
        stop_if_collapsed([row], config.collapse)
        if stopping:
            return


def _record_start(session: Session, rows: list[Row]) -> Row:
    """Evaluate and save the initial policy, and return row 0."""
    norms = session.gradient_norms
    with _checkpoint_if_environment_lost(session, 0, norms):
        row = _record(session, rows, {"step": 0}, evaluate=True)
    _save(session, 0, norms, best=best_step(rows, session.config.evaluation.select_by) == 0)
    return row


def _recover_row(session: Session, rows: list[Row], unrecorded: Row) -> Row:
    """Repeat the evaluation of the start step, during which the environment was lost, and return the step's row."""
    row = _record(session, rows, unrecorded, evaluate=True)
    if best_step(rows, session.config.evaluation.select_by) == session.start_step:
        session.run.checkpoints.mark_best(session.start_step)
    return row


def _coeff_at(config: Config, step: int, norms: GradientNorms, rows: Sequence[Row]) -> float:
    """Return λ at the 0-based `step`: the schedule's λ, lowered by the alarms in `rows`."""
    return lambda_factor(rows, config.collapse) * world_model_coeff_at(config.objective, step, config.steps, norms)


def _weigh(config: Config, policy: Policy, data: StepData, step: int, coeff: float) -> WeighedStep:
    return weigh_step(
        data.trajectories,
        config.objective,
        coeff,
        config.rollout.temperature,
        imitated=data.trace_indices,
        imitation_coeff=None if config.traces is None else config.imitation_coeff,
        mark_ends=policy.mark_ends,
        seed=derive_seed(config.seed, "env_targets", step),
    )


def _is_probe_due(config: Config, step: int) -> bool:
    return measures_gradients(config.objective, step) or _is_interference_due(config, step)


def _is_interference_due(config: Config, step: int) -> bool:
    return bool(config.probe_every and step % config.probe_every == 0)


def _probe(policy: Policy, weighed: WeighedStep) -> Probe:
    started = time.perf_counter()
    gradients = policy.probe(weighed)
    return Probe(gradients, time.perf_counter() - started)


def _with_interference(policy: Policy, weighed: WeighedStep, probe: Probe, lr: float) -> Probe:
    started = time.perf_counter()
    found = policy.interference(weighed, lr)
    return replace(probe, interference=found, seconds=probe.seconds + time.perf_counter() - started)


def _updated_norms(norms: GradientNorms, weighed: WeighedStep, probe: Probe) -> GradientNorms:
    """Return the averages of the `gradient_ratio` schedule after the measurement in `probe`."""
    # Without reward contrast the RL gradient consists of the KL penalty alone, which says nothing about its usual size.
    if not weighed.has_contrast:
        return norms
    found, smoothing = probe.gradients, weighed.settings.gradient_ratio_smoothing
    return norms.updated(found.rl_norm, found.env_norm, smoothing)


def _check_first_step(session: Session, step: int, weighed: WeighedStep, env_loss: float) -> None:
    """Check the env term at the first step with λ > 0, and tell the user of names in `env_weights` that match nothing.

    Raises:
        EchoError: as in `check_first_step`.
    """
    objective = session.config.objective
    check_first_step(step, weighed.coeff, weighed.counts, env_loss, end_of_output=objective.end_of_output)
    if weighed.coeff > 0 and (line := unmatched_line(weighed.trajectories, objective)) is not None:
        session.announce(line)


def _check_finite(step: int, values: Mapping[str, float | None]) -> None:
    if not all(math.isfinite(values[name] or 0.0) for name in ("loss", "grad_norm")):
        message = f"step {step}: the loss is {values['loss']} and the gradient norm {values['grad_norm']}"
        raise EchoError(message, _DIVERGED_TIP, exit_code=3)


def _observe(session: Session, data: StepData, step: int) -> None:
    """Record the step's first rollouts, and the (command, output) pairs executed for the first time.

    These pairs stop being novel. A curriculum learns which groups had contrast.
    """
    new = session.observed.add(data.trajectories, step)
    session.run.append_observations(new)
    if kept := data.rollouts[: session.config.rollout.keep]:
        session.run.append_rollouts(_at(step, rollout) for rollout in kept)
    for name in session.config.names or ("",):
        session.evaluator.observe(pairs_of(new, name), name)
    if session.curriculum is not None:
        session.curriculum.observe(data.rollouts)


def _record(session: Session, rows: list[Row], row: Row, *, evaluate: bool) -> Row:
    """Complete `row` with alarms and, if `evaluate`, an evaluation; append it to metrics.jsonl and `rows`; return it.

    Raises:
        EchoError: a held-out measure is not finite (exit code 3; the row is on disk).
    """
    started = time.perf_counter()
    config, step = session.config, row["step"]
    measured = _evaluate(session, step) if evaluate else {}
    full = full_row(config, row, measured, session.take_faults(), time.perf_counter() - started)
    raised = {warning["signal"] for warning in warnings_of(rows)}
    alarms = new_alarms([*rows, full], config.collapse, config.rollout, raised)
    full["warnings"] = [alarm.to_json() for alarm in alarms]
    session.run.append_metrics(full)
    rows.append(full)
    broken = [name for name, value in measured.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken:
        raise EchoError(f"step {step}: {broken[0]} is {measured[broken[0]]}", _DIVERGED_TIP, exit_code=3)
    return full


def _evaluate(session: Session, step: int) -> Row:
    """Evaluate the policy after `step` optimizer steps, and save some of the rollouts of the evaluation."""
    config = session.config
    play = step % config.evaluation.pass_every == 0 or step == config.steps
    evaluation = session.evaluator.evaluate(session.policy, play=play)
    session.run.append_trajectories([_at(step, trajectory) for trajectory in evaluation.trajectories])
    return dict(evaluation.metrics)


def _at(step: int, trajectory: Trajectory) -> Row:
    """Return the record of a rollout that was played at a step."""
    return {**trajectory.to_json(), "meta": {**trajectory.meta, "step": step}}


def _is_checkpoint_due(config: Config, row: Row) -> bool:
    """Return whether a checkpoint is due: at the last step, every nth step, and a step that ends a collapsed run."""
    collapsed = bool(row["warnings"]) and config.collapse.action == "stop"
    return collapsed or row["step"] == config.steps or row["step"] % config.checkpoint.every == 0


@contextmanager
def _checkpoint_if_environment_lost(
    session: Session, step: int, norms: GradientNorms, row: Row | None = None
) -> Iterator[None]:
    """Save the policy after `step` optimizer steps if the environment ends the run in this block (exit code 1).

    Args:
        row: row of the step without its evaluation; a resumed run evaluates the step and writes the row.
    """
    try:
        yield
    except ServiceLost:  # with the weights: there is nothing to save
        raise
    except EchoError as error:
        if error.exit_code == 1 and step not in session.run.checkpoints.steps():
            _save(session, step, norms, best=False, unrecorded=row)
        raise


def _save(session: Session, step: int, norms: GradientNorms, *, best: bool, unrecorded: Row | None = None) -> None:
    meta = {"seconds": session.seconds, "gradient_norms": asdict(norms)}
    if session.curriculum is not None:
        meta["curriculum"] = session.curriculum.to_json()
    if session.drawn is not None:
        meta["drawn"] = session.drawn
    if unrecorded is not None:
        meta["unrecorded"] = unrecorded
    session.run.save_checkpoint(step, session.policy.save, meta)
    if best:
        session.run.checkpoints.mark_best(step)
    session.run.checkpoints.prune(session.config.checkpoint.keep)
