"""The runs of the arms: their configs, the learning rate of each arm, training what is missing, and reading it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from claims.arms import BY_NAME, Arm
from echo_cli.cli.display.progress import sweep_progress
from echo_cli.cli.interrupt import interruptible
from echo_cli.config.loader import configs_folder, load_config
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
    """Where an arm is trained: a machine and a seed."""

    machine: int
    seed: int


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

    def has(self, arm: Arm) -> bool:
        return self.homeless_base is not None or not arm.homeless


def chosen_rate(arm: Arm) -> float:
    """Return the learning rate that was best for the arm, or for the arm whose rate it has, when they were tuned.

    Raises:
        SystemExit: the arms have not been tuned.
    """
    name = arm.rate_of or arm.name
    tuned = _tuned()
    if name not in tuned:
        sys.exit(f"error: no learning rate was chosen for {name}\n  tip: run scripts/reproduce-claims --tune first")
    return max(tuned[name], key=lambda row: row["pass_at_1"])["lr"]


def _tuned() -> Mapping[str, Any]:
    return read_json(RATES_PATH) if RATES_PATH.exists() else {}


def cell_of(arm: Arm, place: Place, rate: float, study: Study, name: str | None = None) -> Cell:
    """Return the cell of an arm on a machine with a seed."""
    words = [
        *arm.overrides,
        f"environment.toy_terminal.world_seeds=[{place.machine}]",
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
    config = load_config(configs_folder() / f"{arm.config}.yaml", [*words, *study.overrides])
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
    """Train each arm at each of its learning rates and write the held-out pass@1 at the last step to `RATES_PATH`.

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
    write_json(RATES_PATH, {**_tuned(), **found})


def _last_pass(cell: Cell) -> float:
    """Return held-out pass@1 at the last step; 0 for a run whose training broke down."""
    value = read(cell).figures["pass_at_1_last"]
    return 0.0 if value is None else value


def places(arm: Arm, machines: Sequence[int], seeds: Sequence[int]) -> list[Place]:
    return [Place(machine, seed) for machine in machines for seed in seeds[: arm.seeds]]


def train_arms(arms: Sequence[Arm], machines: Sequence[int], seeds: Sequence[int], study: Study) -> None:
    """Train the arms on all machines: first the arms that continue no other."""
    for wave in ([arm for arm in arms if not arm.continues], [arm for arm in arms if arm.continues]):
        each = [(arm, place) for place in (Place(m, s) for m in machines for s in seeds) for arm in wave]
        wanted = [(arm, place) for arm, place in each if place.seed in seeds[: arm.seeds]]
        train([cell_of(arm, place, chosen_rate(arm), study) for arm, place in wanted], study.jobs)


def read(cell: Cell) -> CellResult:
    """Return the result of a trained cell, with held-out pass@1 at the last step by family, as `FAMILY_last`."""
    run = open_run(cell.path)
    status = CellStatus((run.read_summary() or {}).get("status", "failed"))
    (result,) = with_figures([read_cell(cell, status)])
    return replace(result, figures={**result.figures, **_by_family(cell, run)})


def _by_family(cell: Cell, run: RunDirectory) -> dict[str, float]:
    family_of = {task.task_id: task.family for task in list_tasks(cell.config)[0].heldout}
    rewards: dict[str, list[float]] = {family: [] for family in family_of.values()}
    for record in read_jsonl(run.trajectories_path):
        if record["meta"]["step"] == cell.config.steps and record["task_id"] in family_of:
            rewards[family_of[record["task_id"]]].append(float(record["reward"] >= cell.config.evaluation.solved_at))
    return {f"{family}_last": fmean(values) for family, values in rewards.items() if values}


@dataclass(frozen=True)
class Measured:
    """An arm with the results of its runs by place."""

    arm: Arm
    results: Mapping[Place, CellResult]
    cells: Mapping[Place, Cell]

    @property
    def machines(self) -> list[int]:
        return sorted({place.machine for place in self.results})


def measure(arm: Arm, machines: Sequence[int], seeds: Sequence[int], study: Study) -> Measured:
    cells = {place: cell_of(arm, place, chosen_rate(arm), study) for place in places(arm, machines, seeds)}
    return Measured(arm, {place: read(cell) for place, cell in cells.items()}, cells)


def default_jobs() -> int:
    return os.cpu_count() or 1
