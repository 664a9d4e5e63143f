"""Graded episodes: a grader works while others play, sees the finished episode, and replaces the reward."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from test_sessions import LIMITS, PLAIN, House, Room, play, wanted, worlds_of

from echo_cli.environments.grading.grade import Grade
from echo_cli.environments.protocol import StepResult
from echo_cli.errors import EchoError
from echo_cli.rollouts.rollout import play_scripts

MOST_ROUNDS = 5000
GRADE = Grade(0.75, {"form": 1.0, "length": None}, "the criterion length failed")


@dataclass
class Judge:
    """A grader that gives no grade before `episodes` sessions are closed, and records what it is asked about."""

    house: House
    episodes: int = 1
    grade_of: Grade = GRADE
    asked: list[Mapping[str, Any]] = field(default_factory=list)

    async def grade(self, episode: Mapping[str, Any]) -> Grade:
        self.asked.append(episode)
        for _ in range(MOST_ROUNDS):
            if len(self.house.finished) >= self.episodes:
                break
            await asyncio.sleep(0.001)
        else:
            raise AssertionError("no session was freed")
        if self.grade_of.reward == -1:
            raise EchoError("the grader failed", "fix it", exit_code=1)
        return self.grade_of


@dataclass
class JudgedHouse(House):
    def __post_init__(self) -> None:
        self.judge = Judge(self)

    def environment(self) -> Room:
        room = Fined(self)
        room.grader = self.judge  # type: ignore[assignment]
        return room


class Fined(Room):
    """A room whose first step costs a penalty."""

    async def step(self, action: str, problem: str | None = None) -> StepResult:
        answer = await super().step(action, problem)
        return replace(answer, penalty=0.25) if self.steps == 1 else answer


def test_an_episode_is_graded_after_its_session_while_others_play() -> None:
    house = JudgedHouse()
    house.judge.episodes = 3  # the first grade is given once the last episode has closed its session
    played = play(worlds_of(house, sessions=1), wanted("abc"))
    assert house.most_open == 1 and len(house.judge.asked) == 3
    assert [trajectory.task_id for trajectory in played] == ["a", "b", "c"]
    assert [trajectory.reward for trajectory in played] == [0.5] * 3  # less the penalty


def test_a_grader_sees_the_trace_with_the_environments_reward_and_the_task() -> None:
    house = JudgedHouse(rewards={"a": 0.5})
    (trajectory,) = play(worlds_of(house), wanted("a"))
    (episode,) = house.judge.asked
    assert {**episode, "meta": {}} == {**trajectory.to_json(), "reward": 0.5, "meta": {}}
    task = {"id": "a", "split": "train", "family": "f", "reset": {}, "question": "", "answer": None}
    assert episode["meta"] == {"task": task}
    fault = "the criterion length failed"
    assert trajectory.meta == {"criteria": {"form": 1.0, "length": None}, "grader_fault": fault}


def test_an_episode_without_a_grade_has_no_reward_and_its_group_no_rl_term() -> None:
    house = JudgedHouse()
    house.judge.grade_of = Grade(None, {}, "nothing")
    worlds = worlds_of(house)
    played = play(worlds, wanted("a", group=2))
    assert all(trajectory.reward is None and trajectory.world_model_only for trajectory in played)
    counts = worlds.hosting.faults.take()
    assert (counts["unrewarded"], counts["groups_dropped"]) == (2, 1)


def test_a_grader_that_stops_the_run_ends_the_play_with_all_sessions_closed() -> None:
    house = JudgedHouse()
    house.judge.grade_of = Grade(-1.0)
    with pytest.raises(EchoError, match="the grader failed"):
        play(worlds_of(house, sessions=2), wanted("abcd"))
    assert house.open == 0


def test_scripts_are_graded_where_they_are_verified() -> None:
    house = JudgedHouse()
    scripts = [(task, ["one", "two"]) for task, _ in wanted("ab")]
    played = play_scripts(PLAIN, worlds_of(house), scripts, LIMITS, "explorer", verify=True)
    assert [trajectory.reward for trajectory in played] == [0.75, 0.75]
    play_scripts(PLAIN, worlds_of(house), scripts, LIMITS, "explorer")
    assert len(house.judge.asked) == 2
