"""Reading of a run directory for a report: its logs, config and provenance. The directory is not modified."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from echo_cli.config.loader import configs_folder, find_config, load_config
from echo_cli.config.schema import Config, flat_config
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import criteria_in
from echo_cli.evaluation.loaded_run import load_run
from echo_cli.files import Row
from echo_cli.objective.advantages import advantages
from echo_cli.reports.content import RunReport, plain_columns
from echo_cli.reports.measurements import KeptRollout, measured
from echo_cli.runs.directory import RunDirectory
from echo_cli.runs.provenance import read_record
from echo_cli.runs.recordings import step_of
from echo_cli.runs.summary import summarize_run, warnings_of
from echo_cli.text import escape_unprintable
from echo_cli.trace import Trace, read_traces, trajectory_of
from echo_cli.traces.inspection.account import RoleAccount, RoleCount
from echo_cli.training.collapse import alarms
from echo_cli.trajectory import Trajectory

_SHIPPED_DEFAULT = "toy"  # the config of `train` without --config


@dataclass(frozen=True)
class _Kept:
    """A selection of the rollouts in trajectories.jsonl, and counts over all of them."""

    rollouts: Sequence[KeptRollout]
    there: int
    """Number of all rollouts."""
    roles: RoleAccount | None


def read_run(
    path: Path,
    name: str,
    *,
    checkpoint: str | int | None,
    most_episodes: int,
    overrides: Sequence[str] = (),
    announce: Callable[[str], object] = lambda _: None,
) -> RunReport:
    """Read the run at `path` and measure its checkpoints.

    Args:
        name: the run's name in the report.
        checkpoint: checkpoint of the heat maps: "best", "latest" or a step. With None, the best checkpoint, or the
            latest if none is marked as best; if the model cannot be loaded here, the report has no heat maps.
        most_episodes: maximum number of episodes to read and score.
        overrides: overrides of the run's config, as in `load_run`.
        announce: called with a line before each slow part.

    Raises:
        EchoError: the run or the checkpoint does not exist, or a file of the run is damaged.
    """
    with load_run(path, overrides=overrides) as run:
        run.announce = announce
        directory, config = run.directory, run.config
        rows = directory.read_metrics()
        summary = directory.read_summary() or _so_far(rows, config)
        record = read_record(path)
        kept = _kept(directory, config, most_episodes)
        found = measured(run, kept.rollouts, checkpoint, most_episodes)
    notes, criteria = list(found.notes), tuple(criteria_in(config))
    if not directory.trajectories_path.is_file():
        notes.append("the run has no trajectories.jsonl: no evaluation rollouts, no role shares")
    if found.columns is None:
        notes.append("the summary has the figures of summary.json, without intervals")
    return RunReport(
        name=name,
        facts=_facts(summary, record),
        criteria=criteria,
        environments=config.names,
        columns=plain_columns(summary, criteria, config.names) if found.columns is None else found.columns,
        measured=found.columns is not None,
        pairs=found.pairs,
        config=_told(config),
        base=_base(record),
        roles=kept.roles,
        trained_on=(_total(rows, "train/action_tokens"), _total(rows, "train/env_tokens")),
        alarms=tuple(_alarms(rows, config)),
        notes=tuple(notes),
        checkpoint=found.checkpoint,
        episodes=found.episodes,
        episodes_there=kept.there + found.pool_episodes,
        observations=found.observations,
    )


def _kept(run: RunDirectory, config: Config, most: int) -> _Kept:
    """Read trajectories.jsonl once, in bounded memory; keep some rollouts of the first evaluation, and the last."""
    count = RoleCount()
    groups: dict[tuple[int | None, str], list[float | None]] = {}
    first: list[tuple[Trace, int | None, int]] = []
    newest: deque[tuple[Trace, int | None, int]] = deque(maxlen=most)
    there, first_step = 0, None
    for trace in read_traces(run.trajectories_path, growing=True) if run.trajectories_path.is_file() else ():
        there += 1
        count.add(trace.segments, [len(segment.token_ids or ()) for segment in trace.segments])
        step = step_of(trace)
        group = groups.setdefault((step, trace.group_id), [])
        entry = (trace, step, len(group))
        group.append(trace.reward)
        first_step = step if there == 1 else first_step
        if step == first_step and len(first) < most // 4:
            first.append(entry)
        else:
            newest.append(entry)
    chosen = [*first, *list(newest)[max(len(newest) - most + len(first), 0) :]]
    whole = config.evaluation.group_size
    rollouts = [
        KeptRollout(_played(trace, run), step, _advantage(groups[step, trace.group_id], place, whole, config))
        for trace, step, place in chosen
    ]
    return _Kept(rollouts, there, count.result() if there else None)


def _played(trace: Trace, run: RunDirectory) -> Trajectory:
    try:
        return trajectory_of(trace)
    except ValueError as error:
        raise EchoError(
            f"{escape_unprintable(run.trajectories_path)}: {escape_unprintable(trace.task_id)} is not a rollout "
            f"of a run: {escape_unprintable(str(error))}",
            "the file was changed or damaged after it was written",
        ) from error


def _advantage(rewards: Sequence[float | None], place: int, whole: int, config: Config) -> float | None:
    """Return the advantage that training would assign to a rollout, from the rewards of its group.

    The advantage is None without an RL term, or if the group is incomplete.

    Args:
        rewards: rewards of the kept rollouts of the group.
        place: index of the rollout in `rewards`.
        whole: Number of rollouts in a complete group.
    """
    if not config.objective.use_rl:
        return None
    known = [reward for reward in rewards if reward is not None]
    if len(known) != len(rewards) or len(known) < 2 or len(known) != whole:
        return None
    rewards_B = torch.tensor(known, dtype=torch.float64)
    return float(advantages(rewards_B, [""] * len(known), config.objective.advantage)[place])


def _so_far(rows: Sequence[Row], config: Config) -> Row:
    """Compute the summary of a run without summary.json, which was killed or is in progress."""
    return summarize_run(
        rows,
        status="not finished",
        seconds=0.0,
        seed=config.seed,
        coeff=config.objective.base_coeff,
        evaluation=config.evaluation,
        versions={},
    )


def _alarms(rows: Sequence[Row], config: Config) -> Iterator[str]:
    """Yield the alarms that training raised; for rows of earlier versions, the alarms it would raise."""
    if any("warnings" in row for row in rows):
        for warning in warnings_of(rows):
            yield f"step {warning['step']}: {warning['signal']}: {warning['reason']}"
    else:
        for alarm in alarms(rows, config.collapse, config.rollout):
            yield f"step {alarm.step}: {alarm.signal}: {alarm.reason}"
    for key in sorted({key for row in rows for key in row if key.startswith("environment/")}):
        if count := _total(rows, key):
            yield f"environment: {key.removeprefix('environment/').replace('_', ' ')}: {count}"


def _total(rows: Sequence[Row], key: str) -> int:
    return int(sum(row[key] for row in rows if row.get(key) is not None))


def _told(config: Config) -> dict[str, Any]:
    """Return the config's keys for publication: without the run's location, absolute paths reduced to their names."""
    flat = flat_config(config.model_dump(mode="json"))
    return {key: _without_folder(value) for key, value in flat.items() if key not in ("output_dir", "run_name")}


def _without_folder(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_folder(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _base(record: Row) -> tuple[str, dict[str, Any]]:
    """Return the base config: the shipped config that the command line names or implies; for a file, the defaults."""
    words = [str(word) for word in record.get("argv", [])]
    named = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    named += [words[place + 1] for place, word in enumerate(words[:-1]) if word == "--config"]
    name = named[-1] if named else _SHIPPED_DEFAULT
    if name in {path.stem for path in configs_folder().glob("*.yaml")}:
        return f"shipped config {name}", _told(load_config(find_config(name)))
    return "defaults", _told(Config())


def _facts(summary: Row, record: Row) -> dict[str, str]:
    versions = record.get("versions") or {}
    seconds = summary.get("seconds")
    facts = {
        "status": f"{summary.get('status')} at step {summary.get('steps')}",
        "λ": f"{summary['lambda']:g}" if isinstance(summary.get("lambda"), (int, float)) else None,
        "best step chosen by": summary.get("selected_by"),
        "wall clock": f"{seconds:g} s" if isinstance(seconds, (int, float)) and seconds else None,
        "seed": record.get("seed", summary.get("seed")),
        "command line": shlex.join(map(str, record["argv"])) if record.get("argv") else None,
        "device": f"{record['device']}, {record.get('threads')} threads" if "device" in record else None,
        "platform": record.get("platform"),
        "python": record.get("python"),
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items() if version) or None,
        "git commit": record.get("git_commit"),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}
