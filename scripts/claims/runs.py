"""The runs of the arms: their configs, the learning rate of each arm, training what is missing, and its results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from claims.arms import BY_NAME, Arm, Place
from claims.records import Records
from echo_cli.cli.display.progress import sweep_progress
from echo_cli.cli.interrupt import interruptible
from echo_cli.config.loader import configs_folder, load_config
from echo_cli.config.schema import Config
from echo_cli.config.section import Grants, absolute
from echo_cli.environments.worlds import list_tasks
from echo_cli.errors import EchoError
from echo_cli.files import read_json, read_jsonl, write_json
from echo_cli.reports.reference import fingerprint
from echo_cli.runs.directory import RunDirectory, is_run, open_run
from echo_cli.sweeps import arms as sweep_arms
from echo_cli.sweeps.plan import Cell, ended_summary
from echo_cli.sweeps.results import CellResult, read_cell, with_figures
from echo_cli.sweeps.runner import CellStatus, run_cells
from echo_cli.text import escape_unprintable

RATES_PATH = Path(__file__).with_name("rates.json")


def machine_words(machine: int) -> list[str]:
    """Return the overrides that put a run on a machine."""
    return [f"environment.toy_terminal.world_seeds=[{machine}]"]


@dataclass(frozen=True)
class Study:
    """What all runs have in common."""

    folder: Path
    """Folder of the run directories."""
    jobs: int
    overrides: tuple[str, ...] = ()
    """Overrides of every arm, which come last."""
    homeless_base: Path | None = None
    """Model folder of the base that never met a home machine; without it, its arms are left out."""
    configs: Path = field(default_factory=configs_folder)
    """Folder of the arms' configs."""
    world_words: Callable[[int], Sequence[str]] = machine_words
    """Function that returns the overrides which put a run on a machine, given its number."""
    rates: Path = RATES_PATH
    """File of what each arm solved at each of its learning rates."""
    import_from: str | None = None
    """Folder from which the environment's class is imported, besides the installed packages."""
    arms: Mapping[str, Arm] = field(default_factory=lambda: BY_NAME)
    """All arms, by name."""
    figures: Collection[str] | None = None
    """Names of the figures that records keep; None: all."""
    by_task: bool = False
    """Whether records keep what was solved of each held-out task."""

    def has(self, arm: Arm) -> bool:
        return self.homeless_base is not None or not arm.homeless


def chosen_rate(arm: Arm, study: Study) -> float:
    """Return the learning rate that was best for the arm, or for the arm whose rate it has, when they were tuned.

    Raises:
        SystemExit: the arms have not been tuned.
    """
    name = arm.rate_of or arm.name
    if not is_tuned(arm, study):
        sys.exit(f"error: no learning rate was chosen for {name}\n  tip: run scripts/reproduce-claims --tune first")
    return max(tuned_rates(study)[name], key=lambda row: row["pass_at_1"])["lr"]


def is_tuned(arm: Arm, study: Study) -> bool:
    """Return whether a learning rate was chosen for the arm, or for the arm whose rate it has."""
    return (arm.rate_of or arm.name) in tuned_rates(study)


def tuned_rates(study: Study) -> Mapping[str, Any]:
    """Return, by arm, what it solved at each of its learning rates; empty before the tuning."""
    return read_json(study.rates) if study.rates.exists() else {}


def cell_of(arm: Arm, place: Place, rate: float, study: Study, name: str | None = None) -> Cell:
    """Return the cell of an arm on a machine with a seed.

    In the config of an arm that starts elsewhere, a name stands for the path of these weights: it is the same on every
    machine.
    """
    words = [
        *arm.overrides,
        *study.world_words(place.machine),
        f"seed={place.seed}",
        f"optim.lr={rate!r}",
        "threads=1",
        "evaluation.kept_trajectories=1000",  # all, for pass@1 by family
    ]
    config = load_config(study.configs / f"{arm.config}.yaml", [*words, *study.overrides])
    config = config.granted(Grants(import_from=study.import_from))
    if arm.continues is not None:
        config = _starting_from(fingerprint_of(study.arms[arm.continues], place, study), config)
    if arm.homeless:
        config = _starting_from("base without home machines", config)
    return Cell(sweep_arms.Arm(arm.name, (), named=True), config, study.folder / (name or run_name(arm.name, place)))


def planned(arm: Arm, place: Place, study: Study) -> Cell:
    """Return the cell of an arm at its learning rate."""
    return cell_of(arm, place, chosen_rate(arm, study), study)


def fingerprint_of(arm: Arm, place: Place, study: Study) -> str:
    """Return the first 16 hexadecimal digits of the fingerprint of a planned run's config.

    It covers the run that an arm continues, and no path of this machine.
    """
    return fingerprint(planned(arm, place, study).config)[:16]


def run_name(arm: str, place: Place) -> str:
    """Return the name of a run's directory."""
    return f"{arm}-m{place.machine}-seed{place.seed}"


def _starting_from(path: str, config: Config) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"path": path})})


def _startable(arm: Arm, place: Place, study: Study) -> Cell:
    """Return the planned cell with the path of the weights that it starts from."""
    cell, folder = planned(arm, place, study), study.homeless_base
    if not arm.starts_elsewhere:
        return cell
    if arm.continues is not None:
        folder, _ = open_run(study.folder / run_name(arm.continues, place)).load_checkpoint("latest")
    return replace(cell, config=_starting_from(absolute(str(folder)), cell.config))


def train(cells: Sequence[Cell], jobs: int) -> None:
    """Train cells.

    Raises:
        SystemExit: a run failed, or a signal stopped the training.
    """
    with interruptible() as interrupt, sweep_progress(cells) as show:
        outcomes = run_cells(cells, jobs=jobs, overwrite=False, should_stop=interrupt, show=show)
    if interrupt():
        print("stopped and saved; repeat the command to continue", file=sys.stderr)
        sys.exit(interrupt.exit_code)
    failed = [f"{name}: {outcome.error}" for name, outcome in outcomes.items() if outcome.status == "failed"]
    if failed:
        sys.exit("\n".join(failed))


def tune(arms: Sequence[Arm], machines: Sequence[int], study: Study) -> None:
    """Train each arm at each of its learning rates and write the held-out pass@1 at the last step to `study.rates`.

    The rates of arms that are not among `arms` stay there.

    The machines are used for nothing else, so that their held-out tasks serve as validation.
    """
    cells = {
        (arm.name, rate, machine): cell_of(
            arm, Place(machine, 0), rate, study, f"tune-{arm.name}-lr{rate:g}-m{machine}"
        )
        for arm in arms
        for rate in arm.rates
        for machine in machines
    }
    train([cell for cell in cells.values() if not _is_done(cell)], study.jobs)
    found = {
        arm.name: [
            {"lr": rate, "pass_at_1": fmean(_last_pass(cells[arm.name, rate, machine]) for machine in machines)}
            for rate in arm.rates
        ]
        for arm in arms
        if arm.rates
    }
    write_json(study.rates, {**tuned_rates(study), **found})


def _last_pass(cell: Cell) -> float:
    """Return held-out pass@1 at the last step; 0 for a run whose training broke down."""
    value = read(cell).figures["pass_at_1_last"]
    return 0.0 if value is None else value


Placed = Sequence[tuple[Arm, Sequence[Place]]]
"""Arms with the places at which each is trained."""


def on_machines(arms: Sequence[Arm], machines: Sequence[int], seeds: Sequence[int]) -> Placed:
    """Return the arms, each on all machines with all seeds."""
    return [(arm, [Place(machine, seed) for machine in machines for seed in seeds]) for arm in arms]


def train_arms(placed: Placed, study: Study, records: Records) -> None:
    """Train the runs that neither have a record nor are finished, one place after the other.

    The arms that continue no other are first. A run that is continued and has no directory is trained for that, even if
    it has a record: training is deterministic.
    """
    missing = [
        (place, arm)
        for arm, places in placed
        for place in places
        if (arm.name, place) not in records and not has_ended(arm, place, study)
    ]
    origins = [(place, study.arms[arm.continues]) for place, arm in missing if arm.continues is not None]
    origins = [(place, arm) for place, arm in origins if not has_ended(arm, place, study)]
    first = [(place, arm) for place, arm in missing if arm.continues is None]
    continuing = [(place, arm) for place, arm in missing if arm.continues is not None]
    for wave in ([*first, *origins], continuing):
        in_order = sorted(dict.fromkeys(wave), key=lambda each: (each[0].machine, each[0].seed))
        train([_startable(arm, place, study) for place, arm in in_order], study.jobs)


def has_ended(arm: Arm, place: Place, study: Study) -> bool:
    """Return whether the run directory of an arm at a place is there, and its run is done.

    Raises:
        EchoError: the directory is of another config, or that of the run which it continues is.
    """
    if arm.continues is not None:
        has_ended(study.arms[arm.continues], place, study)
    cell = planned(arm, place, study)
    return _is_done(cell, start=cell.config.model.path if arm.starts_elsewhere else None)


def _is_done(cell: Cell, *, start: str | None = None) -> bool:
    """Return whether the run of a cell is done.

    Args:
        start: name of the weights that it started from, in place of their path.

    Raises:
        EchoError: the run directory is of another config.
    """
    if not is_run(cell.path):
        return False
    config = open_run(cell.path).read_config()
    if fingerprint(config if start is None else _starting_from(start, config)) != fingerprint(cell.config):
        raise EchoError(
            f"{escape_unprintable(cell.path)} is a run of another config or learning rate than today's",
            "move it away, and with it the runs that continue it, or give the runs another --output",
        )
    return ended_summary(cell) is not None


def read(cell: Cell) -> CellResult:
    """Return the result of a trained cell, with held-out pass@1 at the last step by family, as `FAMILY_last`."""
    run = open_run(cell.path)
    status = CellStatus((run.read_summary() or {}).get("status", "failed"))
    (result,) = with_figures([read_cell(cell, status)])
    return replace(result, figures={**result.figures, **_by_family(cell, run)})


def solved_by_task(cell: Cell, run: RunDirectory) -> dict[str, float]:
    """Return the fraction of the rollouts of each held-out task that solve it, at the last step."""
    held = {task.task_id for task in list_tasks(cell.config)[0].heldout}
    solved: dict[str, list[bool]] = {}
    for record in read_jsonl(run.trajectories_path):
        if record["meta"]["step"] == cell.config.steps and record["task_id"] in held:
            reward = record["reward"]
            solved.setdefault(record["task_id"], []).append(reward >= cell.config.evaluation.solved_at)
    return {task_id: fmean(values) for task_id, values in solved.items()}


def _by_family(cell: Cell, run: RunDirectory) -> dict[str, float]:
    family_of = {task.task_id: task.family for task in list_tasks(cell.config)[0].heldout}
    shares: dict[str, list[float]] = {}
    for task_id, share in solved_by_task(cell, run).items():
        shares.setdefault(family_of[task_id], []).append(share)
    return {f"{family}_last": fmean(values) for family, values in shares.items()}
