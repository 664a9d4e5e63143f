"""Runs shared by several tests. They are read-only: a test that modifies a run copies it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from launched import OnRanks, RankPool
from loopback import OpenEnvServer
from tiny_run import train

# A shell ignores SIGINT in background jobs, nohup ignores SIGHUP, and processes started by the tests would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of this user's key during the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps with a checkpoint after each."""
    run = tmp_path_factory.mktemp("outputs") / "finished"
    assert train(run, "--steps", "4") == 0
    return run


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has played its held-out tasks, of one family for speed, before training and after step 4.

    It has kept five rollouts each time, and evaluated after every step.
    """
    run = tmp_path_factory.mktemp("played") / "run"
    words = ("evaluation.heldout_rollouts=2", "evaluation.pass_every=4", "environment.toy_terminal.families=[key]")
    kept = ("evaluation.kept_trajectories=5", "evaluation.every=1", "rollout.tasks_per_step=2")
    assert train(run, "--steps", "4", *words, *kept) == 0
    return run


@pytest.fixture(scope="session")
def on_ranks(state_home: Path) -> Iterator[OnRanks]:
    """A function that calls another one in several processes, as the ranks of a run."""
    pool = RankPool()
    yield pool.run
    pool.stop()


@pytest.fixture(scope="session")
def openenv_server() -> Iterator[OpenEnvServer]:
    """A server of the environments in `openenv_samples`. A test that restarts it leaves it running."""
    server = OpenEnvServer()
    yield server
    server.stop()
