"""The directory of a run that several ranks train: the first rank writes, and the others wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_cli.files import os_errors
from echo_cli.models.distributed.ranks import Ranks
from echo_cli.runs.checkpoints import Checkpoints
from echo_cli.runs.directory import RunDirectory, open_run


@dataclass(frozen=True)
class SharedRun(RunDirectory):
    """A run directory whose writers are collectives: what the first rank writes, all can read after the call.

    An error of the first rank is raised on all.
    """

    ranks: Ranks

    @property
    def checkpoints(self) -> SharedCheckpoints:
        return SharedCheckpoints(self.path / "checkpoints", self.ranks)

    @contextmanager
    def lock(self) -> Iterator[None]:
        with ExitStack() as held:
            self.ranks.first(lambda: held.enter_context(RunDirectory.lock(self)))
            yield

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        self.ranks.first(lambda: RunDirectory.append_metrics(self, row))

    def append_trajectories(self, records: Iterable[Mapping[str, Any]]) -> None:
        self.ranks.first(lambda: RunDirectory.append_trajectories(self, records))

    def append_rollouts(self, records: Iterable[Mapping[str, Any]]) -> None:
        self.ranks.first(lambda: RunDirectory.append_rollouts(self, records))

    def append_observations(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.ranks.first(lambda: RunDirectory.append_observations(self, rows))

    def rewind(self, step: int) -> None:
        self.ranks.first(lambda: RunDirectory.rewind(self, step))

    def save_checkpoint(self, step: int, write: Callable[[Path], None], meta: Mapping[str, Any]) -> Path:
        """Save the state after `step`; all ranks call `write` with the folder that the first one has made and seals."""
        begun = False

        def write_jointly(folder: Path) -> None:
            nonlocal begun
            begun = True
            self.ranks.gather(folder)
            write(folder)

        def save() -> Path:
            try:
                return RunDirectory.save_checkpoint(self, step, write_jointly, meta)
            finally:
                if not begun:  # the others wait for the folder that could not be made
                    self.ranks.gather(None)

        def follow() -> Path:
            folder = self.ranks.gather(None)[0]
            if folder is not None:
                with os_errors(folder):
                    write(folder)
            return self.path

        return self.ranks.collect(save if self.ranks.is_first else follow)[0]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self.ranks.first(lambda: RunDirectory.write_summary(self, summary))


@dataclass(frozen=True)
class SharedCheckpoints(Checkpoints):
    """The checkpoints of a run directory whose first rank writes."""

    ranks: Ranks

    def mark_best(self, step: int) -> None:
        self.ranks.first(lambda: Checkpoints.mark_best(self, step))

    def prune(self, keep: int) -> None:
        self.ranks.first(lambda: Checkpoints.prune(self, keep))


def open_shared(path: Path, ranks: Ranks) -> RunDirectory:
    """Open the run at `path` for training by `ranks`.

    Raises:
        EchoError: a rank does not see the run; or as in `open_run`.
    """
    if ranks.size == 1:
        return open_run(path)
    tip = "put output_dir on a file system that all machines share"
    ranks.each(lambda: open_run(path, f"rank {ranks.rank} of {ranks.size} needs it: {tip}"))
    return SharedRun(path, ranks)
