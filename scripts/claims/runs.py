"""The runs of the arms: their configs, the learning rate of each arm, training what is missing, and reading it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from claims.arms import BY_NAME, Arm
from echo_cli.cli.display.progress import sweep_progress
from echo_cli.cli.interrupt import interruptible
from echo_cli.config.loader import configs_folder, load_config
from echo_cli.config.section import Grants
from echo_cli.environments.worlds import list_tasks
from echo_cli.files import read_json, read_jsonl, write_json
from echo_cli.runs.directory import RunDirectory, open_run
from echo_cli.sweeps import arms as sweep_arms
from echo_cli.sweeps.plan import Cell
from echo_cli.sweeps.results import CellResult, read_cell, with_figures
from echo_cli.sweeps.runner import CellStatus, run_cells

RATES_PATH = Path(__file__).with_name("rates.json")


@dataclass(frozen=True)
class Place:
    """Where an arm is trained: a machine, or another world, and a seed."""

    machine: int
    seed: int


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

    def has(self, arm: Arm) -> bool:
        return self.homeless_base is not None or not arm.homeless


def chosen_rate(arm: Arm, study: Study) -> float:
    """Return the learning rate that was best for the arm, or for the arm whose rate it has, when they were tuned.

    Raises:
        SystemExit: the arms have not been tuned.
    """
    name = arm.rate_of or arm.name
    tuned = tuned_rates(study)
    if name not in tuned:
        sys.exit(f"error: no learning rate was chosen for {name}\n  tip: run scripts/reproduce-claims --tune first")
    return max(tuned[name], key=lambda row: row["pass_at_1"])["lr"]


def tuned_rates(study: Study) -> Mapping[str, Any]:
    """Return, by arm, what it solved at each of its learning rates; empty before the tuning."""
    return read_json(study.rates) if study.rates.exists() else {}


def cell_of(arm: Arm, place: Place, rate: float, study: Study, name: str | None = None) -> Cell:
    """Return the cell of an arm on a machine with a seed."""
    words = [
        *arm.overrides,
        *study.world_words(place.machine),
        f"seed={place.seed}",
        f"optim.lr={rate!r}",
        "threads=1",
        "evaluation.kept_trajectories=1000",  # all, for pass@1 by family
    ]
    if arm.continues is not None:
        run = open_run(study.folder / _name(BY_NAME[arm.continues], place))
        words.append(f"model.path={json.dumps(str(run.load_checkpoint('latest')[0]))}")
    if arm.homeless:
        words.append(f"model.path={json.dumps(str(study.homeless_base))}")
    config = load_config(study.configs / f"{arm.config}.yaml", [*words, *study.overrides])
    config = config.granted(Grants(import_from=study.import_from))
    return Cell(sweep_arms.Arm(arm.name, (), named=True), config, study.folder / (name or _name(arm, place)))


def _name(arm: Arm, place: Place) -> str:
    return f"{arm.name}-m{place.machine}-seed{place.seed}"


def train(cells: Sequence[Cell], jobs: int) -> None:
    """Train the cells that are not finished.

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
    train(list(cells.values()), study.jobs)
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
    """Return the arms on all machines, each with its number of the seeds."""
    return [(arm, [Place(machine, seed) for machine in machines for seed in seeds[: arm.seeds]]) for arm in arms]


def train_arms(placed: Placed, study: Study) -> None:
    """Train the arms at their places, one place after the other: first the arms that continue no other."""
    for continuing in (False, True):
        wave = [(place, arm) for arm, places in placed for place in places if bool(arm.continues) == continuing]
        wave.sort(key=lambda each: (each[0].machine, each[0].seed))
        train([cell_of(arm, place, chosen_rate(arm, study), study) for place, arm in wave], study.jobs)


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


@dataclass(frozen=True)
class Measured:
    """An arm with the results of its runs by place."""

    arm: Arm
    results: Mapping[Place, CellResult]
    cells: Mapping[Place, Cell]

    @property
    def machines(self) -> list[int]:
        return sorted({place.machine for place in self.results})


def measure(arm: Arm, places: Sequence[Place], study: Study) -> Measured:
    cells = {place: cell_of(arm, place, chosen_rate(arm, study), study) for place in places}
    return Measured(arm, {place: read(cell) for place, cell in cells.items()}, cells)
