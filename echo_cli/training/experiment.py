"""A complete run: train, then write summary.json, whatever the outcome."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.several import members_of
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import leak_notices, pool_notices, split_notices
from echo_cli.evaluation.loaded_run import run_notices
from echo_cli.files import Row
from echo_cli.models.device import OutOfMemory
from echo_cli.models.distributed.ranks import ALONE, Ranks
from echo_cli.models.tinker.loading import service_notices
from echo_cli.models.tinker.policy import ServicePolicy
from echo_cli.models.tinker.service import ServiceLost
from echo_cli.runs.directory import RunDirectory, is_half_made, open_run
from echo_cli.runs.provenance import read_record
from echo_cli.runs.summary import is_finished, summarize_run
from echo_cli.training.collapse import CollapseError, no_gradient_line
from echo_cli.training.loop import train
from echo_cli.training.plan import memory_notice
from echo_cli.training.resume import check_same_config
from echo_cli.training.rows import dropped_groups_line
from echo_cli.training.session import Session, open_session
from echo_cli.training.trackers.tracking import Trackers, check_trackers, tracking


def _ignore(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class RunHooks:
    """Callbacks of a run. The defaults do nothing and do not stop the run."""

    on_start: Callable[[str], object] = _ignore
    """Callback at the start, with the reason for the choice of device."""
    on_notice: Callable[[str], None] = _ignore
    """Callback for each line: about the environment before `on_start`, about the run's traces, memory and pools after
    it, and per failed tracker."""
    on_row: Callable[[Row], object] = _ignore
    """Callback after each step, with the step's metrics."""
    on_summary: Callable[[], object] = _ignore
    """Callback after the summary of a run with metrics is written, whatever the outcome."""
    should_stop: Callable[[], bool] = lambda: False
    """Callback after each step that returns whether to save and end the run."""


NO_HOOKS = RunHooks()


def run_experiment(
    path: Path,
    config: Config,
    hooks: RunHooks = NO_HOOKS,
    *,
    resume: bool = False,
    overwrite: bool = False,
    argv: Sequence[str] = (),
    group: str | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train the run at `path` and return its summary; with `resume`, a finished run is not trained again.

    Args:
        group: name under which trackers group the run with others.
        ranks: processes that train the run together; each calls this function, and the first one's hooks are called.

    Raises:
        EchoError: as in `check_trackers`, `open_session` and `train`; the summary of a run that diverged or collapsed
            is written first.
    """
    # A run killed while its directory was created has nothing to resume and nothing to lose.
    resume = resume and not is_half_made(path)
    if resume:
        run = open_run(path)
        check_same_config(run, config)
        summary = run.read_summary()
        if summary is not None and is_finished(summary, config.steps):
            return summary
    check_trackers(config.track)
    hooks = hooks if ranks.is_first else RunHooks(should_stop=hooks.should_stop)
    with open_session(
        path, config, resume=resume, overwrite=overwrite, argv=argv, announce=hooks.on_notice, ranks=ranks
    ) as session:
        hooks.on_start(_processes(session))
        for line in ranks.first(lambda: _notices(session)):
            hooks.on_notice(line)
        rows = session.run.read_metrics()
        with tracking(
            path,
            config.track if ranks.is_first else None,
            json.loads(config.model_dump_json()),
            group=group,
            last_step=rows[-1]["step"] if rows else None,
            warn=hooks.on_notice,
        ) as trackers:
            return _train(session, trackers, hooks)


def _processes(session: Session) -> str:
    """Return the devices of the run's processes, and the reason for their choice."""
    ranks, reason = session.ranks, session.device.reason
    return reason if ranks.size == 1 else f"{ranks.size} ranks, each on {reason}"


def _notices(session: Session) -> list[str]:
    """Return the lines about traces, memory, splits and pools and, for a new run, about state between episodes."""
    config, worlds, policy = session.config, session.worlds, session.policy
    if isinstance(policy, ServicePolicy):
        memory = service_notices(config, policy)
    else:
        memory = memory_notice(config, session.device, session.ranks.size, split=policy.is_split)
    lines = [*session.notices, *run_notices(session.run, config), *memory]
    lines += [*policy.renderer.notices, *worlds.description.notices, *split_notices(worlds)]
    lines += pool_notices(config, worlds, session.evaluator.pools)
    is_checked = worlds.replayable or session.start_step > 0  # of several environments, `leak_notices` skips toy worlds
    return lines if is_checked else [*lines, *leak_notices(config, worlds, policy)]


def _train(session: Session, trackers: Trackers, hooks: RunHooks) -> dict[str, Any]:
    """Train and return the summary, which is written and tracked even if the run diverged or collapsed."""
    run, config = session.run, session.config

    def finish(status: str) -> dict[str, Any]:
        summary = _finish(run, config, status, session.seconds, hooks)
        trackers.summarize(summary)
        return summary

    rows, worlds, ranks = run.read_metrics(), session.worlds, session.ranks
    try:
        for row in train(session, lambda: ranks.any(hooks.should_stop())):
            rows.append(row)
            trackers.log(row)
            hooks.on_row(row)
            skips = any(section.reward.none == "skip" for section in config.sections.values())
            dropped = dropped_groups_line(rows, config.rollout.tasks_per_step, "skip" if skips else "zero")
            reasons: list[str] = []
            worlds.hosting.faults.tell_reasons(reasons.append)
            for reason in dict.fromkeys(reason for of_rank in ranks.gather(reasons) for reason in of_rank):
                hooks.on_notice(reason)
            for line in (dropped, no_gradient_line(rows, config.rollout), *_granted_lines(worlds)):
                if line is not None:
                    hooks.on_notice(line)
    except (OutOfMemory, ServiceLost) as error:
        saved = run.checkpoints.steps()
        kept = f"; --resume continues from the checkpoint of step {saved[-1]}" if saved else ""
        raise EchoError(error.message, f"{error.tip}{kept}", exit_code=1) from error
    except EchoError as error:
        if error.exit_code == 3:
            finish(error.status if isinstance(error, CollapseError) else "diverged")
        raise
    return finish("finished" if run.checkpoints.steps()[-1] == config.steps else "stopped")


def _granted_lines(worlds: TaskSuite) -> Iterator[str]:
    """Yield a line for each environment that has just shown how many sessions it grants."""
    for name, member in members_of(worlds).items():
        if (granted := member.hosting.count.take_granted()) is not None:
            which = f"environment {name}" if name else "the environment"
            yield f"{which} grants {granted} of {member.hosting.sessions} sessions: rollouts use {granted}"


def _finish(run: RunDirectory, config: Config, status: str, seconds: float, hooks: RunHooks) -> dict[str, Any]:
    """Write the summary of a run that has ended."""
    rows = run.read_metrics()
    summary = summarize_run(
        rows,
        status=status,
        seconds=seconds,
        seed=config.seed,
        coeff=config.objective.base_coeff,
        evaluation=config.evaluation,
        versions=read_record(run.path).get("versions"),
    )
    best = run.checkpoints.best_step()
    summary["checkpoint"] = f"checkpoints/step_{best:06d}" if best is not None else None
    run.write_summary(summary)
    if rows:
        hooks.on_summary()
    return summary
