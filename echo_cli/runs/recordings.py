"""Recorded episodes of a run (of its evaluations or of its training), of a frozen pool, or in any trajectory file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.runs.directory import RunDirectory, is_run, open_run
from echo_cli.runs.pool_folder import MANIFEST, verify_pool
from echo_cli.runs.provenance import again_tip
from echo_cli.text import escape_unprintable
from echo_cli.trace import Trace, read_traces

_TIP = "give a run directory, a pool's folder, or a trajectory file (docs/trajectory-format.md)"


@dataclass(frozen=True)
class Recording:
    """Episodes in a file, which is read again on each access."""

    place: Path
    """Path as given by the user."""
    path: Path
    run: RunDirectory | None
    config: Config | None
    """Config of the run."""
    step: int | None
    """Step that played the selected episodes, or whose evaluation did; None selects all episodes."""
    training: bool = False
    """Whether the episodes of a run are training rollouts, not those of its evaluations."""

    def traces(self) -> Iterator[Trace]:
        """Stream the episodes.

        Raises:
            EchoError: a line is not a trace; the message has the file and the line.
        """
        for trace in read_traces(self.path, growing=self.run is not None):
            if self.step is None or step_of(trace) == self.step:
                yield trace

    def episode(self, number: int) -> Trace:
        """Return the episode with a 1-based number.

        Raises:
            EchoError: there are fewer episodes, or an earlier line is not a trace.
        """
        count = 0
        for count, trace in enumerate(self.traces(), start=1):
            if count == number:
                return trace
        self.check_any(count)
        of_step = "" if self.step is None else f" of step {self.step}"
        raise EchoError(
            f"{escape_unprintable(self.place)} has no episode {number}{of_step}", f"choose one from 1 to {count}"
        )

    def check_any(self, count: int) -> None:
        """Check that episodes were found.

        Raises:
            EchoError: `count` is 0; the tip explains why there may be no episodes.
        """
        if count:
            return
        if self.step is not None:
            found = {step_of(trace) for trace in replace(self, step=None).traces()}
            steps = ", ".join(map(str, sorted(step for step in found if step is not None)))
            tip = f"steps with trajectories: {steps}" if steps else "omit --step: no trajectory has a step"
            raise EchoError(f"{escape_unprintable(self.place)} has no trajectories of step {self.step}", tip)
        raise _nothing(self.place, self.config, self.training)


def open_recording(
    place: Path, step: int | None = None, overrides: Sequence[str] = (), *, training: bool = False
) -> Recording:
    """Open the episodes of a run directory, of a pool, which is verified first, or of a trajectory file.

    Args:
        step: select the episodes played by the run's evaluation after this step, or with `training` by this step.
        overrides: overrides of the run's config.
        training: whether to open a run's training rollouts, which `rollout.keep` recorded.

    Raises:
        EchoError: `place` does not exist or is none of the three; the run has kept no trajectories; the pool was
            changed after it was built.
    """
    if training and place.exists() and not is_run(place):
        raise EchoError(f"{escape_unprintable(place)} is not a run, so it has no training rollouts", "omit --training")
    if place.is_dir() and (place / MANIFEST).is_file():
        return Recording(place, verify_pool(place)[1], None, None, step)
    if place.is_dir() and not is_run(place):
        raise EchoError(f"{escape_unprintable(place)} is neither a run nor a pool", _TIP)
    if is_run(place) or not place.exists():
        run = open_run(place, _TIP)
        config = run.read_config(overrides)
        path = run.rollouts_path if training else run.trajectories_path
        if not path.is_file():
            raise _nothing(place, config, training)
        return Recording(place, path, run, config, step, training)
    if not place.is_file():
        raise EchoError(f"{escape_unprintable(place)} is not a file that can be read twice", "write it to a file first")
    return Recording(place, place, None, None, step)


def step_of(trace: Trace) -> int | None:
    """Return the step of a run that played the episode, or whose evaluation did; None for other episodes."""
    step = trace.meta.get("step")
    return step if type(step) is int else None


def _nothing(place: Path, config: Config | None, training: bool) -> EchoError:
    """Return the error for a file without episodes, or for a run (with `config`) that has kept none."""
    if config is None:
        return EchoError(f"{escape_unprintable(place)} contains no traces", "give a file that is not empty")
    if training:
        tip = "no step is recorded yet"
        if config.rollout.keep == 0:
            tip = "its rollout.keep is 0; train a run, or continue this one with --resume, with a value above 0"
        return EchoError(f"{escape_unprintable(place)} has no training rollouts", tip)
    tip = again_tip(place, "played tasks (evaluation.pass_every)")
    evaluation = config.evaluation
    if config.environment.none:
        tip = "the run has no environment and plays nothing: give its pool_heldout.jsonl or one of its trace files"
    elif evaluation.kept_trajectories == 0:
        tip = "its evaluation.kept_trajectories is 0; train a run with a value above 0"
    elif evaluation.validation_rollouts == evaluation.heldout_rollouts == 0:
        tip = "its evaluation has no rollouts; train a run with evaluation.validation_rollouts above 0"
    return EchoError(f"{escape_unprintable(place)} has no trajectories", tip)
