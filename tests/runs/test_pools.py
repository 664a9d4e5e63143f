"""Executed observations: each is recorded once, as the policy saw it; answers and cut actions have none."""

from __future__ import annotations

from echo_cli.runs.pools import Observation, ObservationLog, observations, pairs_of
from echo_cli.trajectory import Role, Segment, Trajectory, Turn


def rollout(*turns: Turn) -> Trajectory:
    return Trajectory("t", "t", (Segment(Role.CONTEXT, "", (1,)),), turns, None, "script_end", "explorer")


def ran(command: str, output: str, exit_code: int | None = 0) -> Turn:
    return Turn(command, output, exit_code, valid_action=True, clean_parse=True)


def test_what_ran_or_printed_is_an_observation() -> None:
    cut = Turn("cat /etc/x and on", "", None, valid_action=False, clean_parse=False)
    turns = (ran(" cat   a ", "x\n"), ran("answer: 7", "", None), ran("grep q a", "", 1), ran("open page", "<p>", None))
    assert observations([rollout(*turns), rollout(cut)]) == [
        Observation("cat a", "x\n", 0),
        Observation("grep q a", "", 1),
        Observation("open page", "<p>", None),
    ]


def test_each_observation_is_new_once() -> None:
    log = ObservationLog()
    first = log.add(
        [rollout(ran("a", "1"), ran("b", "2"), ran("a", "1")), rollout(ran("a ", "1"), ran("a", "1", 1))], 3
    )
    assert first == [
        {"step": 3, "command": "a", "output": "1", "exit_code": 0},
        {"step": 3, "command": "b", "output": "2", "exit_code": 0},
        {"step": 3, "command": "a", "output": "1", "exit_code": 1},
    ]
    assert [row["command"] for row in log.add([rollout(ran("b", "2"), ran("c", "3"))], 4)] == ["c"]
    assert pairs_of(first) == {("a", "1"), ("b", "2")}


def test_a_log_that_is_read_again_goes_on_where_it_was() -> None:
    rows = ObservationLog().add([rollout(ran("a", "1"), ran("b", "2"))], 1)
    assert ObservationLog(rows).add([rollout(ran("b", "2"), ran("c", "3"))], 2) == [
        {"step": 2, "command": "c", "output": "3", "exit_code": 0}
    ]
