"""Plan of a sweep over λ: values, seeds, configs and folders of its cells, and which cells are done."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.runs.directory import is_run, open_run
from echo_cli.runs.summary import is_finished
from echo_cli.text import escape_unprintable

Summary = Mapping[str, Any]

PROBE_EVERY = 10
"""Number of steps between gradient probes in a sweep, unless the config sets it."""

BROKEN = ("diverged", "collapsed")
"""Statuses of runs whose training broke down. They would end in the same way again, so their cells are done.

A collapsed run is nevertheless resumed if `collapse.action` is changed to a value other than `stop`.
"""

_SEEDS = "--seeds"
_SEEDS_TIP = "give integers from 0: --seeds 0 1 2, or --seeds=0,1,2; put the λ values before --seeds"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    coeff: float
    config: Config
    path: Path

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def group(self) -> str:
        """λ of the cell, as shown in tables and figures."""
        return f"λ = {shown_coeff(self.coeff)}"

    @property
    def title(self) -> str:
        return f"{self.group}, seed {self.seed}"


def parse_words(words: Sequence[str]) -> tuple[list[float], list[str]]:
    """Return the λ values, without duplicates, and the `key.path=value` overrides; overrides contain `=`.

    Raises:
        EchoError: there is no value, a word is neither, λ is overridden, or two values would share a folder.
    """
    overrides = [word for word in words if "=" in word]
    if any(word.partition("=")[0] == "objective.world_model_coeff" for word in overrides):
        raise EchoError("a sweep sets objective.world_model_coeff itself", "give λ values as words: 0 0.005 0.05")
    coeffs = _once(parse_coeff(word) for word in words if "=" not in word)
    if not coeffs:
        raise EchoError("no λ values", "give at least one: echo-cli sweep-lambda 0 0.005 0.05")
    for first, second in itertools.pairwise(sorted(coeffs)):
        if shown_coeff(first) == shown_coeff(second):
            raise EchoError(f"λ {first!r} and {second!r} are the same to 12 digits", "give one of them")
    return coeffs, overrides


def parse_coeff(word: str) -> float:
    """Parse a λ value from the command line.

    Raises:
        EchoError: the value is not a number, not finite or negative.
    """
    try:
        coeff = float(word)
    except ValueError:
        raise EchoError(f"'{word}' is not a λ value", "give a number, such as 0.05") from None
    if not 0 <= coeff < float("inf"):
        raise EchoError(f"λ is {word}", "set λ to a finite number, 0 or more; 0 is plain GRPO")
    return coeff + 0.0  # turns -0.0 into 0.0


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
        while rest and not rest[0].startswith("-") and "=" not in rest[0]:
            seeds.append(rest.pop(0))
        joined.append(f"{_SEEDS}={','.join(seeds)}")
    return joined


def parse_seeds(values: Sequence[str]) -> list[int]:
    """Return the seeds of comma-separated lists, without duplicates, in the order given.

    Raises:
        EchoError: a list has no value, or a seed is not an integer from 0 to 2^63 - 1.
    """
    words = [word for value in values for word in value.split(",")]
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 20 and int(word) < 2**63):
            raise EchoError(f"'{word}' is not a seed" if word else "--seeds has no value", _SEEDS_TIP)
    return _once(map(int, words))


def sweep_config(source: Path, words: Sequence[str]) -> Config:
    """Return the config of a cell, with gradient probes and pass@1 at every evaluation unless `words` override them.

    Neither affects training. A nonzero `probe_every` in the file is kept, and `words` take precedence.

    Raises:
        EchoError: as `load_config`.
    """
    asked = load_config(source, words)
    probe = f"probe_every={asked.probe_every or PROBE_EVERY}"
    return load_config(source, [probe, f"evaluation.pass_every={asked.evaluation.every}", *words])


def plan_cells(configs: Sequence[Config], seeds: Sequence[int], folder: Path, *, jobs: int, cores: int) -> list[Cell]:
    """Return the cells of a sweep: every seed of every config (one config per λ), each with a folder in `folder`.

    If `threads` is 0, the cores are divided among the concurrent processes.
    """
    processes = min(jobs, len(configs) * len(seeds))
    cells = []
    for config in configs:
        threads = config.threads or max(1, cores // processes)
        coeff = config.objective.base_coeff
        for seed in seeds:
            name = f"lambda-{shown_coeff(coeff)}-seed{seed}"
            cells.append(Cell(coeff, config.model_copy(update={"seed": seed, "threads": threads}), folder / name))
    return cells


def ended_summary(cell: Cell) -> Summary | None:
    """Return the summary of a cell that is done, or None if the cell must be trained or resumed."""
    if not is_run(cell.path):
        return None
    summary = open_run(cell.path).read_summary()
    status = None if summary is None else summary.get("status")
    broken = status == "diverged" or (status == "collapsed" and cell.config.collapse.action == "stop")
    return summary if broken or is_finished(summary, cell.config.steps) else None


def check_cells(cells: Sequence[Cell]) -> None:
    """Check that existing runs have the configs of their cells and were trained on the same traces.

    If all runs are done and the config has the same `traces` section, the trace files are not read.

    Raises:
        EchoError: a run has a different config or different traces, or the traces cannot be read.
    """
    found = [cell for cell in cells if is_run(cell.path)]
    if found:
        from echo_cli.traces.corpus import index_traces
        from echo_cli.training.resume import check_same_config, check_same_traces  # loads torch

        unfinished, corpus = any(ended_summary(cell) is None for cell in cells), None
        for cell in found:
            run = open_run(cell.path)
            check_same_config(run, cell.config)
            before, traces = load_config(run.config_path), cell.config.traces
            if traces is not None and (unfinished or traces != before.traces):
                corpus = corpus or index_traces(traces)  # all cells use the same files
                check_same_traces(run, corpus)
            trained, wanted = before.collapse, cell.config.collapse
            # The section may change on resume, but a finished run is not trained again, and only lowered λ affects
            # training.
            lowers = "lower_lambda" in (trained.action, wanted.action)
            if lowers and trained != wanted and is_finished(run.read_summary(), cell.config.steps):
                raise EchoError(
                    f"{escape_unprintable(cell.path)} was trained with a different collapse section",
                    "train it again with --overwrite, or revert the change",
                )


def shown_coeff(coeff: float) -> str:
    return f"{coeff:.12g}"


def _once(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
