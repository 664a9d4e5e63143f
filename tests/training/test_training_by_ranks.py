"""Whole runs trained by several real processes over gloo: equal to the run of one process, and written by one."""

from __future__ import annotations

import json
import os
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from launched import OnRanks, say
from tiny_run import error_of, observations, rows, train, train_words
from trace_files import store, trace_file

from echo_cli.cli.main import main
from echo_cli.runs import provenance
from echo_cli.trajectory import Role, read_trajectories

SCRIPTED = (
    "rollout.tasks_per_step=0 objective.use_rl=false rollout.explorers=3 traces.per_step=3 traces.imitation_coeff=0.5 "
    "traces.split.validation=0.2 objective.end_of_output=true"
).split()
SAMPLED = "rollout.tasks_per_step=3 rollout.explorers=3 rollout.keep=99 probe_every=1".split()
PLAYED = "evaluation.heldout_rollouts=2 environment.toy_terminal.families=[key]".split()

ARRANGED = {"train/padding_fraction"}
"""Metrics of how the trajectories are arranged in micro-batches, which is what the ranks change."""


def train_jointly(words: list[str]) -> None:
    assert main(words) == 0


def assert_equal_rows(run: Path, other: Path) -> None:
    for one, two in zip(rows(run), rows(other), strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - ARRANGED:
            expected = pytest.approx(one[key], rel=1e-5, abs=1e-5) if isinstance(one[key], float) else one[key]
            assert two[key] == expected, f"{key} at step {one['step']}"


@pytest.fixture(scope="module")
def scripted_words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words of a run whose rollouts are not sampled: explorers and traces."""
    traces = trace_file(tmp_path_factory.mktemp("traces"), store())
    return [f"traces.path={traces}", *SCRIPTED]


@pytest.fixture(scope="module")
def scripted(scripted_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    assert train(run, *scripted_words) == 0
    return run


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_a_run_that_samples_nothing_is_equal_on_any_number_of_ranks(
    size: int, scripted: Path, scripted_words: list[str], on_ranks: OnRanks, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    on_ranks(size, train_jointly, train_words(run, *scripted_words))
    assert_equal_rows(scripted, run)
    assert observations(run) == observations(scripted)
    assert {entry.name for entry in run.iterdir()} == {entry.name for entry in scripted.iterdir()}


def _actions(run: Path) -> list[tuple[Any, ...]]:
    """Return the sampled tokens of each rollout of the first step."""
    lines = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    first = sum(line["meta"]["step"] == 1 for line in lines)
    return [
        tuple(segment.token_ids for segment in rollout.segments if segment.role is Role.ACTION)
        for rollout in list(read_trajectories(run / "rollouts.jsonl"))[:first]
    ]


@pytest.mark.slow
def test_two_ranks_sample_what_one_process_samples(on_ranks: OnRanks, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    words = (*SAMPLED, *PLAYED, "--steps", "1", "rollout.group_size=4")
    assert train(alone, *words) == 0
    on_ranks(2, train_jointly, train_words(together, *words))
    pairs = list(zip_longest(_actions(alone), _actions(together)))
    assert len(pairs) == 3 * 4 + 3
    assert sum(one == two for one, two in pairs) >= 0.99 * len(pairs)
    assert_equal_rows(alone, together)


def refuse(words: list[str], folder: str) -> None:
    """Start a run in a rank that cannot start, with a commit of its own, and keep what the rank says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "git_commit", lambda: "abcd"[int(os.environ["RANK"])] * 40)
        say(words, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], f"rank 0 has commit {'a' * 40}, rank 1 commit {'b' * 40}"),
        (["--config", "nowhere"], "no config named 'nowhere'"),
        (["--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
    ],
)
def test_ranks_that_cannot_start_say_so_once(words: list[str], message: str, on_ranks: OnRanks, tmp_path: Path) -> None:
    on_ranks(2, refuse, train_words(tmp_path / "run", *words), str(tmp_path))
    said = [(tmp_path / f"said{rank}").read_text() for rank in range(2)]
    assert said[0].startswith("2 ") and message in error_of(said[0][2:])[0]
    assert said[1] == "2 "
    assert not (tmp_path / "run").exists()
