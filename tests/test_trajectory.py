"""Trajectories as records: reading is the inverse of writing, for records of earlier versions too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from echo_cli.errors import EchoError
from echo_cli.trajectory import Role, Segment, Trajectory, Turn, read_trajectories, write_trajectories

PLAYED = Trajectory(
    "t",
    "g",
    (
        Segment(Role.CONTEXT, "task\n", (1, 2)),
        Segment(Role.ACTION, "hm ls\n", (3, 4, 5), (-0.1, -0.2, -0.3), transient=1),
        Segment(Role.ENV_OUTPUT, "a\n", (6,), channel="stdout"),
        Segment(Role.ACTION, "hm\n", (7,), (-0.5,)),
    ),
    (Turn("ls", "a\n", 0, True, True, "valid"), Turn("hm", "", None, False, False, "none")),
    1.0,
    "answered",
    "policy",
)


def test_a_trajectory_comes_back_from_its_file(tmp_path: Path) -> None:
    write_trajectories(tmp_path / "log.jsonl", [PLAYED])
    assert list(read_trajectories(tmp_path / "log.jsonl")) == [PLAYED]


def test_a_log_without_parses_comes_back_as_it_is() -> None:
    record = json.loads(json.dumps(PLAYED.to_json()))
    for turn in record["turns"]:
        del turn["parse"]
    old = Trajectory.from_json(record)
    assert [turn.parse for turn in old.turns] == [None, None]
    assert json.loads(json.dumps(old.to_json())) == record


@pytest.mark.parametrize("parse", ["none", "odd", 1])
def test_a_parse_that_cannot_be_is_refused(tmp_path: Path, parse: object) -> None:
    record = PLAYED.to_json()
    record["turns"][0]["parse"] = parse
    (tmp_path / "log.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(EchoError, match=r"log.jsonl:1: not a trajectory: turns.0"):
        list(read_trajectories(tmp_path / "log.jsonl"))
