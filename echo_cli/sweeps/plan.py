"""Plan of a sweep: arms, seeds, configs and folders of its cells, and which cells are done."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_cli.config.episodes.traces import TracesConfig
from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.files import os_errors
from echo_cli.objective.schedule import world_model_coeff_at
from echo_cli.runs.directory import is_run, open_run
from echo_cli.runs.summary import is_finished
from echo_cli.sweeps.arms import Arm, lambda_arm, read_arms
from echo_cli.text import escape_unprintable

Summary = Mapping[str, Any]

PROBE_EVERY = 10
"""Number of steps between gradient probes in a sweep, unless the config sets it."""

BROKEN = ("diverged", "collapsed", "no_gradient")
"""Statuses of runs whose training broke down. They would end in the same way again, so their cells are done.

A run that the collapse detector stopped, collapsed or without any gradient, is nevertheless resumed if
`collapse.action` is changed to a value other than `stop`.
"""

_SEEDS = "--seeds"
_SEEDS_TIP = "give integers from 0: --seeds 0 1 2, or --seeds=0,1,2; put the λ values before --seeds"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    arm: Arm
    config: Config
    path: Path

    @property
    def coeff(self) -> float:
        """λ at the first step."""
        return world_model_coeff_at(self.config.objective, 0, self.config.steps)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def title(self) -> str:
        return f"{self.arm.title}, seed {self.seed}"


def join_seeds(words: Sequence[str]) -> list[str]:
    """Join the words after `--seeds`, up to the next option or override, into one: `--seeds 0 1` → `--seeds=0,1`.

    A command-line parser assigns one word to an option and would read the others as λ values.
    """
    joined: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word != _SEEDS:
            joined.append(word)
            continue
        seeds = []
        while rest and (rest[0][1:].isdigit() or not rest[0].startswith("-")) and "=" not in rest[0]:
            seeds.append(rest.pop(0))
        joined.append(f"{_SEEDS}={','.join(seeds)}")
    return joined


def parse_seeds(values: Sequence[str]) -> list[int]:
    """Return the seeds of comma-separated lists, in the order given.

    Raises:
        EchoError: a list has no value, or a seed is not an integer from 0 to 2^63 - 1, or is given twice.
    """
    words = [word for value in values for word in value.split(",")]
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 20 and int(word) < 2**63):
            raise EchoError(f"'{word}' is not a seed" if word else "--seeds has no value", _SEEDS_TIP)
    seeds = [int(word) for word in words]
    for first, second in itertools.pairwise(sorted(seeds)):
        if first == second:
            raise EchoError(f"seed {first} is given twice", "give every seed once")
    return seeds


def sweep_config(source: Path, words: Sequence[str]) -> Config:
    """Return the config of a cell, with gradient probes and pass@1 at every evaluation unless `words` override them.

    Neither affects training. A nonzero `probe_every` in the file is kept, and `words` take precedence. A policy at a
    service, or with `distributed.strategy: fsdp`, has no gradient probes.

    Raises:
        EchoError: as `load_config`.
    """
    asked = load_config(source, words)
    split = asked.distributed is not None and asked.distributed.strategy == "fsdp"
    without = asked.service is not None or split
    probe = f"probe_every={asked.probe_every or (0 if without else PROBE_EVERY)}"
    return load_config(source, [probe, f"evaluation.pass_every={asked.evaluation.every}", *words])


def threads_of_cells() -> int:
    """Return the number of CPU threads of a cell whose config leaves it open: OMP_NUM_THREADS, else 1.

    It depends neither on `--jobs` nor on the machine, because results do depend on it, in the last digits.
    """
    first = re.match(r"\s*([1-9][0-9]{0,3})\b", os.environ.get("OMP_NUM_THREADS", ""))  # a list has one per level
    return 1 if first is None else int(first[1])


def plan_cells(configs: Mapping[Arm, Config], seeds: Sequence[int], folder: Path, *, threads: int) -> list[Cell]:
    """Return the cells of a sweep: every seed of every arm, each with a folder in `folder`.

    Args:
        threads: number of CPU threads of each cell if the config leaves it open.

    Raises:
        EchoError: two arms have the same config.
    """
    for (arm, config), (other, same) in itertools.combinations(configs.items(), 2):
        if config == same:
            raise EchoError(
                f"{arm.title} and {other.title} have the same config, so their runs would be the same",
                "omit one of them, or change an override of one",
            )
    return [_cell(arm, config, seed, folder, threads) for arm, config in configs.items() for seed in seeds]


def _cell(arm: Arm, config: Config, seed: int, folder: Path, threads: int) -> Cell:
    own = config.model_copy(update={"seed": seed, "threads": config.threads or threads})
    return Cell(arm, own, folder / f"{arm.stem}-seed{seed}")


def ended_summary(cell: Cell) -> Summary | None:
    """Return the summary of a cell that is done, or None if the cell must be trained or resumed."""
    if not is_run(cell.path):
        return None
    try:
        summary = open_run(cell.path).read_summary()
    except FileNotFoundError:  # another process resumes the run at this moment
        return None
    status = None if summary is None else summary.get("status")
    broken = status in BROKEN and (status == "diverged" or cell.config.collapse.action == "stop")
    return summary if broken or is_finished(summary, cell.config.steps) else None


def check_folder(folder: Path) -> None:
    """Check that a sweep may use `folder`.

    Raises:
        EchoError: the folder is a run, or has files but is not a sweep.
    """
    if is_run(folder):
        raise EchoError(f"{escape_unprintable(folder)} is a run, not a sweep", "give the sweep another --run-name")
    with os_errors(folder):
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if any(not name.startswith(".") for name in names) and names.isdisjoint({"cells", "sweep.json"}):
        tip = "give the sweep another --run-name or --output-dir"
        raise EchoError(f"{escape_unprintable(folder)} is not empty and not a sweep", tip)


def check_cells(cells: Sequence[Cell]) -> None:
    """Check that existing runs have the configs of their cells and were trained on the same traces.

    If all runs are done and the config has the same `traces` section, the trace files are not read.

    Raises:
        EchoError: a run has a different config or different traces, or the traces cannot be read.
    """
    found = [cell for cell in cells if is_run(cell.path)]
    if found:
        from echo_cli.traces.corpus import TraceCorpus, index_traces
        from echo_cli.training.resume import check_same_traces  # loads torch

        unfinished = any(ended_summary(cell) is None for cell in cells)
        read: dict[TracesConfig, TraceCorpus] = {}  # one for all cells, unless arms set other files
        for cell in found:
            before, traces = _check_config(cell), cell.config.traces
            if traces is not None and (unfinished or traces != before.traces):
                read[traces] = read.get(traces) or index_traces(traces)
                check_same_traces(open_run(cell.path), read[traces])


def other_cells(folder: Path, cells: Sequence[Cell], config_of: Callable[[Sequence[str]], Config]) -> list[Cell]:
    """Return the cells in `folder` that an earlier sweep has trained and that are not among `cells`.

    Tables and figures cover them too, so that a narrower sweep does not erase the results of a wider one.

    Args:
        config_of: function that returns the sweep's config with the overrides of an arm.

    Raises:
        EchoError: such a run has another config than `cells`, apart from its arm and the seed.
    """
    planned, others = {cell.path for cell in cells}, []
    recorded = {arm.stem: arm for arm in read_arms(folder).values()} | {cell.arm.stem: cell.arm for cell in cells}
    paths = (path for start in ("lambda", "arm") for path in sorted(folder.glob(f"{start}-*-seed*")))
    for path in paths:
        if path in planned or not is_run(path):
            continue
        own, arm = load_config(open_run(path).config_path), recorded.get(path.name.rpartition("-seed")[0])
        if path.name.startswith("lambda-"):
            arm = lambda_arm(own.objective.base_coeff)
        if arm is None:
            raise EchoError(
                f"{escape_unprintable(path)} is of an arm that is not recorded in {escape_unprintable(folder)}",
                "name this arm again with its overrides, or give the sweep another --run-name",
            )
        cell = Cell(arm, _cell(arm, config_of(arm.words), own.seed, folder, threads_of_cells()).config, path)
        _check_config(cell)
        if ended_summary(cell) is not None:
            others.append(cell)
    return others


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Return cells by ascending λ, then the named arms in order of first occurrence, and by seed."""
    order = {arm: number for number, arm in enumerate(dict.fromkeys(cell.arm for cell in cells))}
    return sorted(
        cells, key=lambda cell: (cell.arm.named, order[cell.arm] if cell.arm.named else cell.coeff, cell.seed)
    )


def _check_config(cell: Cell) -> Config:
    """Check that the run of a cell has its config, and return the run's own.

    Raises:
        EchoError: the configs differ in a key that affects results.
    """
    from echo_cli.training.resume import check_same_config  # loads torch

    run, path = open_run(cell.path), escape_unprintable(cell.path)
    before = load_config(run.config_path)
    # Both may change when a single run is resumed, but the runs of a sweep are compared with each other.
    for key in ("steps", "threads"):
        was, now = getattr(before, key), getattr(cell.config, key)
        if was != now:
            raise EchoError(
                f"{path} was trained with {key}={was}, not {now}",
                f"give {'--steps ' if key == 'steps' else f'{key}='}{was}, train it again with --overwrite, or give "
                "the sweep another --run-name",
            )
    check_same_config(run, cell.config)
    trained, wanted = before.collapse, cell.config.collapse
    # The section may change on resume, but a finished run is not trained again, and only lowered λ affects training.
    lowers = "lower_lambda" in (trained.action, wanted.action)
    if lowers and trained != wanted and is_finished(run.read_summary(), cell.config.steps):
        raise EchoError(
            f"{path} was trained with a different collapse section",
            "train it again with --overwrite, or revert the change",
        )
    return before
