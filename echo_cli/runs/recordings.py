"""Where recorded episodes lie: a run's trajectories.jsonl, a frozen pool, or any trajectory file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.runs.directory import RunDirectory, is_run, open_run
from echo_cli.runs.pool_folder import MANIFEST, verified
from echo_cli.text import escape_unprintable
from echo_cli.trace import Trace, read_traces

_TIP = "name a run directory, a pool's folder, or a trajectory file (docs/trajectory-format.md)"


@dataclass(frozen=True)
class Recording:
    """Episodes in a file, which is read anew as often as they are asked for."""

    place: Path
    """What the user named."""
    path: Path
    run: RunDirectory | None
    config: Config | None
    """Of the run."""
    step: int | None
    """Only the episodes of the evaluation after this step."""

    def traces(self) -> Iterator[Trace]:
        """Stream the episodes.

        Raises:
            EchoError: a line is not a trace; names the file and the line.
        """
        for trace in read_traces(self.path, growing=self.run is not None):
            if self.step is None or step_of(trace) == self.step:
                yield trace

    def episode(self, number: int) -> Trace:
        """The episode of that number, from 1.

        Raises:
            EchoError: there are fewer, or a line before it is not a trace.
        """
        count = 0
        for count, trace in enumerate(self.traces(), start=1):
            if count == number:
                return trace
        self.check_any(count)
        of_step = "" if self.step is None else f" of step {self.step}"
        raise EchoError(f"{escape_unprintable(self.place)} has no episode {number}{of_step}", f"they are 1 to {count}")

    def check_any(self, count: int) -> None:
        """Refuse to go on with nothing.

        Raises:
            EchoError: `count`, what was found, is 0; says why there may be nothing.
        """
        if count:
            return
        if self.step is not None:
            found = {step_of(trace) for trace in replace(self, step=None).traces()}
            steps = ", ".join(map(str, sorted(step for step in found if step is not None)))
            tip = f"there are some of step {steps}" if steps else "leave --step away: none says of which step it is"
            raise EchoError(f"{escape_unprintable(self.place)} has no trajectories of step {self.step}", tip)
        raise _nothing(self.place, self.config)


def open_recording(place: Path, step: int | None = None, overrides: Sequence[str] = ()) -> Recording:
    """The episodes of a run directory, of a pool, which is verified, or of a trajectory file.

    Args:
        step: only those that the run's evaluation after this step played.
        overrides: of the run's config.

    Raises:
        EchoError: there is nothing at `place`, or neither of the three; the run has kept no trajectories; the pool was
            changed after it was built.
    """
    if place.is_dir() and (place / MANIFEST).is_file():
        return Recording(place, verified(place)[1], None, None, step)
    if place.is_dir() and not is_run(place):
        raise EchoError(f"{escape_unprintable(place)} is neither a run nor a pool", _TIP)
    if is_run(place) or not place.exists():
        run = open_run(place, _TIP)
        config = run.read_config(overrides)
        if not run.trajectories_path.is_file():
            raise _nothing(place, config)
        return Recording(place, run.trajectories_path, run, config, step)
    if not place.is_file():
        raise EchoError(f"{escape_unprintable(place)} is not a file that can be read twice", "write it to a file first")
    return Recording(place, place, None, None, step)


def step_of(trace: Trace) -> int | None:
    """The step after which a run's evaluation played the episode; None of an episode from elsewhere."""
    step = trace.meta.get("step")
    return step if type(step) is int else None


def _nothing(place: Path, config: Config | None) -> EchoError:
    """What to say of a file without episodes, or of a run (with `config`) that has kept none."""
    if config is None:
        return EchoError(f"{escape_unprintable(place)} holds no traces", "it is empty: name one with some")
    tip = (
        "a run keeps some when it plays its tasks (evaluation.pass_every): this one has not come to it, or was copied "
        "without its trajectories.jsonl"
    )
    evaluation = config.evaluation
    if config.environment.none:
        tip = "without an environment it plays nothing: name its pool_heldout.jsonl, or a file that it was trained on"
    elif evaluation.kept_trajectories == 0:
        tip = "its evaluation.kept_trajectories is 0; a run that is trained with more keeps some"
    elif evaluation.validation_rollouts == evaluation.heldout_rollouts == 0:
        tip = "its evaluation has no rollouts; a run with evaluation.validation_rollouts keeps some"
    return EchoError(f"{escape_unprintable(place)} has no trajectories", tip)
