"""Graders in real processes: what they may answer, and that every failure is a fault and never a reward of 0."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from echo_cli.config.episodes.reward import RewardConfig
from echo_cli.config.loader import load_config
from echo_cli.environments.faults import FaultCounts
from echo_cli.environments.grading.grade import (
    Grade,
    GraderFault,
    criteria_in,
    fault_in,
    number_of,
    values_of,
    weighted,
)
from echo_cli.environments.grading.grader import open_grader
from echo_cli.errors import EchoError

EPISODE: Mapping[str, Any] = {
    "task_id": "count",
    "reward": 0.25,
    "segments": [{"role": "context", "text": "task: how many?\n"}, {"role": "action", "text": "answer: 3+\n"}],
    "turns": [{"command": "wc -l a", "exit_code": 1}, {"command": "answer: 3+", "exit_code": None}],
    "meta": {"task": {"id": "count", "answer": "3+"}},
}
FUNCTIONS = """
import os, sys, time

def turns(episode): return len(episode["turns"]) / 4
def answer(episode): return episode["meta"]["task"]["answer"] == "3+"
def named(episode): return {"right": 1, "short": 0.5}
def hang(episode): time.sleep(600)
def nan(episode): return float("nan")
def nothing(episode): print("loud")
def text(episode): return "0.5"
def raises(episode): raise KeyError("no such key")
def leaves(episode): sys.exit(0)
def dies(episode): os._exit(3)
def secret(episode): return {"mine": "GIVEN" in os.environ, "other": "OTHER" in os.environ}
def once(episode):
    if not os.path.exists(os.environ["MARK"]):
        open(os.environ["MARK"], "w").close()
        time.sleep(600)
    return 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_graders.py").write_text(FUNCTIONS)
    return tmp_path


def script(folder: Path, text: str) -> list[str]:
    path = folder / f"grade{len(list(folder.iterdir()))}.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return [str(path)]


def settings(**keys: Any) -> RewardConfig:
    return RewardConfig.model_validate_json(json.dumps(keys), strict=True)


def graded(
    folder: Path, faults: FaultCounts | None = None, times: int = 1, episode: Any = EPISODE, **keys: Any
) -> list[Grade]:
    async def every() -> list[Grade]:
        assert grader is not None
        return await asyncio.gather(*(grader.grade(episode) for _ in range(times)))

    with open_grader(settings(**keys), faults or FaultCounts(), str(folder)) as grader:
        return asyncio.run(every())


def test_a_function_or_a_command_is_called_with_the_whole_episode_and_gives_a_number(folder: Path) -> None:
    assert graded(folder, function="my_graders:turns") == [Grade(0.5)]
    assert graded(folder, function="my_graders:answer") == [Grade(1.0)]
    read = "python3 -c 'import json, sys; print(json.load(sys.stdin)[\"reward\"])'"
    assert graded(folder, command=script(folder, read)) == [Grade(0.25)]


def test_named_criteria_are_weighted_by_the_config(folder: Path) -> None:
    keys = {"function": "my_graders:named", "criteria": {"right": 3, "short": 1}}
    assert graded(folder, **keys) == [Grade(0.875, {"right": 1.0, "short": 0.5})]
    command = script(folder, """echo '{"right": true, "short": 0}'""")
    assert graded(folder, command=command, criteria={"right": 1, "short": 1}) == [
        Grade(0.5, {"right": 1.0, "short": 0.0})
    ]


def test_a_rubric_has_four_kinds_of_criteria_and_metrics_of_weight_0(folder: Path) -> None:
    rubric = [
        {"name": "form", "pattern": "^answer: {answer}$", "weight": 0.5},
        {"name": "told", "pattern": "how many", "search": "transcript", "weight": 0},
        {"name": "silent", "pattern": "how many"},
        {"name": "failed", "exit_status": 1},
        {"name": "short", "function": "my_graders:turns", "weight": 0.5},
        {"name": "tests", "command": script(folder, "exit 1"), "exit_status": 0, "weight": 1},
        {"name": "bytes", "command": script(folder, "echo 7"), "weight": -0.1},
    ]
    (grade,) = graded(folder, rubric=rubric)
    values = {"form": 1.0, "told": 1.0, "silent": 0.0, "failed": 1.0, "short": 0.5, "tests": 0.0, "bytes": 7.0}
    assert grade.criteria == values and grade.fault is None
    assert grade.reward == pytest.approx((0.5 + 1 + 0.25 - 0.7) / 4)


FAILING = {
    "hangs": ({"function": "my_graders:hang", "timeout_s": 0.4}, "my_graders:hang gave no answer within 0.4 s"),
    "nan": ({"function": "my_graders:nan"}, "my_graders:nan gave nan"),
    "nothing": ({"function": "my_graders:nothing"}, "gave null in place of a number"),
    "text": ({"function": "my_graders:text"}, 'gave "0.5" in place of a number'),
    "raises": ({"function": "my_graders:raises"}, "raised KeyError: 'no such key'"),
    "exits": ({"function": "my_graders:leaves"}, "raised SystemExit: 0"),
    "dies": ({"function": "my_graders:dies"}, "ended its process with code 3"),
    "names": ({"function": "my_graders:named", "criteria": {"right": 1}}, "gave a value for short, which"),
    "number": ({"function": "my_graders:turns", "criteria": {"right": 1}}, "gave 0.5 in place of the criteria right"),
    "mapping": ({"function": "my_graders:named"}, 'gave {"right": 1, "short": 0.5} in place of a number'),
}
SCRIPTS = {
    "garbage": ("echo 0.5 points", "printed 0.5 points, which is not a number"),
    "silent": ("true", "printed nothing"),
    "infinite": ("echo Infinity", "gave inf"),
    "huge": ("echo 1e200", "gave a number that is too large"),
    "fails": ("echo 1; echo no compiler >&2; exit 4", "ended with exit code 4: no compiler"),
    "killed": ("kill -9 $$", "was killed by SIGKILL"),
    "floods": ("head -c 3000000 /dev/zero", "printed more than 1 MiB"),
    "sleeps": ("sleep 600", "gave no answer within 0.4 s"),
}


@pytest.mark.parametrize("name", [*FAILING, *SCRIPTS])
def test_every_failure_is_a_fault_without_a_reward(name: str, folder: Path) -> None:
    if name in FAILING:
        keys, message = FAILING[name]
    else:
        text, message = SCRIPTS[name]
        keys = {"command": script(folder, text), "timeout_s": 0.4 if name == "sleeps" else 20.0}
    faults = FaultCounts()
    (grade,) = graded(folder, faults, **keys)
    assert grade.reward is None and message in (grade.fault or "")
    assert set(grade.criteria.values()) <= {None}
    assert faults.take()["ungraded"] == 1
    told: list[str] = []
    faults.tell_reasons(told.append)
    faults.tell_reasons(told.append)
    assert told == [f"the grader failed: {grade.fault}"]


def test_the_policy_decides_what_a_failure_costs(folder: Path) -> None:
    (grade,) = graded(folder, function="my_graders:nan", on_error="zero")
    assert grade.reward == 0.0 and grade.fault is not None
    with pytest.raises(EchoError, match="the grader failed on task count: my_graders:nan gave nan") as caught:
        graded(folder, function="my_graders:nan", on_error="stop")
    assert caught.value.exit_code == 1 and "--resume" in (caught.value.tip or "")


def test_a_criterion_that_fails_takes_the_reward_only_if_it_counts(folder: Path) -> None:
    broken = {"name": "judge", "function": "my_graders:raises"}
    rubric = [{"name": "form", "pattern": "answer"}, {**broken, "weight": 0}]
    (grade,) = graded(folder, rubric=rubric)
    assert grade.reward == 1.0 and grade.criteria == {"form": 1.0, "judge": None}
    assert "the criterion judge raised KeyError" in (grade.fault or "")
    (grade,) = graded(folder, rubric=[rubric[0], broken])
    assert grade.reward is None and grade.criteria == {"form": 1.0, "judge": None}


def test_a_pattern_that_backtracks_for_ever_ends_at_the_time_limit(folder: Path) -> None:
    rubric = [{"name": "slow", "pattern": r"([ -~]+)+\t", "search": "transcript"}]
    long = {**EPISODE, "segments": [{"role": "action", "text": "a" * 60}]}
    (grade,) = graded(folder, episode=long, rubric=rubric, timeout_s=0.4)
    assert grade.reward is None and "the criterion slow gave no answer" in (grade.fault or "")


def test_graders_run_at_once_and_one_that_hung_is_replaced(folder: Path) -> None:
    here = folder / "here"
    here.mkdir()
    together = f"touch {here}/$$; while [ $(ls {here} | wc -l) -lt 4 ]; do sleep 0.02; done; echo 1"
    assert graded(folder, times=4, command=script(folder, together), workers=4) == [Grade(1.0)] * 4
    keys = {"function": "my_graders:once", "env": {"MARK": str(folder / "mark")}, "timeout_s": 1.0}
    first, second = graded(folder, times=2, workers=1, **keys)
    assert first.reward is None and second.reward == 1.0


def test_what_a_grader_started_ends_with_it(folder: Path) -> None:
    mark = folder / "pid"
    command = script(folder, f"sleep 600 & echo $! > {mark}; wait")
    graded(folder, command=command, timeout_s=2.0)
    pid = int(mark.read_text())
    for _ in range(100):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    raise AssertionError("the grader's child is alive")


def test_a_grader_gets_the_variables_that_the_config_names_and_no_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER", "1")
    monkeypatch.setenv("MINE", "hidden-value")
    keys: dict[str, Any] = {"criteria": {"mine": 1, "other": 0}, "env": {"GIVEN": "${MINE}"}}
    assert graded(folder, function="my_graders:secret", **keys) == [Grade(1.0, {"mine": 1.0, "other": 0.0})]
    (grade,) = graded(folder, command=script(folder, 'echo "$GIVEN$OTHER"'), env={"GIVEN": "${MINE}"})
    assert grade.fault is not None and "hidden-value" not in grade.fault and "${MINE}," in grade.fault


def _refused(folder: Path, **keys: Any) -> EchoError:
    with pytest.raises(EchoError) as caught, open_grader(settings(**keys), FaultCounts(), str(folder)):
        pass
    assert caught.value.exit_code == 2 and caught.value.tip and "\n" not in caught.value.message
    return caught.value


def test_a_grader_that_cannot_run_is_refused_before_anything_is_played(folder: Path) -> None:
    plain = folder / "plain.sh"
    plain.write_text("#!/bin/sh\n")
    assert "plain.sh is not executable" in _refused(folder, command=[str(plain)]).message
    assert "does not exist" in _refused(folder, command=[str(folder / "gone.sh")]).message
    assert "'no-such-program' was not found" in _refused(folder, command=["no-such-program"]).message
    error = _refused(folder, function="my_graders:turn")
    assert "has no function 'turn'" in error.message and "turns" in (error.tip or "")
    assert "module 'none_such' not found" in _refused(folder, function="none_such:f").message
    assert "UNSET_HERE is not set" in _refused(folder, function="my_graders:nan", env={"A": "${UNSET_HERE}"}).message
    (folder / "sick.py").write_text("1 / 0")
    assert "ZeroDivisionError" in _refused(folder, function="sick:f").message
    rubric = [{"name": "a", "command": [str(plain)]}]
    assert "is not executable" in _refused(folder, rubric=rubric).message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"function": "a:b", "command": ["c"]}, "sets function and command"),
        ({"function": "a:b", "criteria": {"x": 0, "y": 0}}, "all weights are 0"),
        ({"rubric": [{"name": "x", "pattern": "a", "weight": -1}]}, "no weight is above 0"),
        ({"rubric": [{"name": "x", "pattern": "a"}, {"name": "x", "exit_status": 0}]}, "two criteria"),
        ({"rubric": [{"name": "x"}]}, "the criterion x sets no kind"),
        ({"rubric": [{"name": "x", "pattern": "a", "function": "a:b"}]}, "sets pattern and function"),
        ({"rubric": [{"name": "x", "exit_status": 0, "search": "transcript"}]}, "search of the criterion x"),
        ({"rubric": [{"name": "x", "pattern": "a("}]}, "invalid regular expression"),
        ({"rubric": [{"name": "x", "pattern": "a"}], "criteria": {"x": 1}}, "no effect with a rubric"),
        ({"function": "score"}, "'score' is not an import path"),
        ({"workers": 2}, "environment.reward.workers has no effect without a grader"),
        ({"function": "a:b", "env": {"API_KEY": "abcdefgh1234"}}, "environment.reward.env.API_KEY is a secret"),
        ({"command": ["./g", "--token=abcdefgh1234"]}, "environment.reward.command holds a secret"),
    ],
)
def test_a_reward_that_makes_no_sense_is_one_line_with_a_tip(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(EchoError, match=message) as caught:
        settings(**keys)
    assert caught.value.tip


def test_a_program_given_by_a_path_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings(command=["./grade.sh", "./here"]).command == (f"{os.getcwd()}/grade.sh", "./here")
    assert settings(command=["python", "grade.py"]).command == ("python", "grade.py")


def test_weights_are_shares_of_the_positive_ones() -> None:
    assert weighted({"a": 1.0, "b": 1.0, "c": 0.0}, {"a": 2, "b": 6, "c": -4}) == 1.0
    assert weighted({"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 2, "b": 6, "c": -4}) == -0.25
    assert weighted({"a": 1.0, "b": None}, {"a": 1, "b": 0}) == 1.0
    assert weighted({"a": 1.0, "b": None}, {"a": 1, "b": 1}) is None
    assert weighted({"": 0.3}, {"": 1.0}) == 0.3


def test_recorded_criteria_are_read_whatever_they_are() -> None:
    assert criteria_in({"criteria": {"a": 1, "b": None, "c": "x", "d": 10**400}}) == {
        "a": 1,
        "b": None,
        "c": None,
        "d": None,
    }
    assert criteria_in({"criteria": [1]}) == criteria_in({}) == {}
    assert fault_in({"grader_fault": ["x"]}) == "['x']" and fault_in({}) is None


def test_numbers_and_values_are_finite_and_complete() -> None:
    assert [number_of(value) for value in (True, False, 2, -0.5)] == [1.0, 0.0, 2.0, -0.5]
    assert values_of({"b": 1, "a": True}, ["a", "b"]) == {"a": 1.0, "b": 1.0}
    for answer in (None, "1", [1], {"a": 1}, 10**400):
        with pytest.raises(GraderFault):
            number_of(answer)
    with pytest.raises(GraderFault, match="no value for b"):
        values_of({"a": 1}, ["a", "b"])
    with pytest.raises(GraderFault, match="gave nan for a"):
        values_of({"a": float("nan")}, ["a"])


@pytest.mark.parametrize("key", ["command", "rubric"])
def test_an_empty_grader_is_refused(key: str) -> None:
    with pytest.raises(EchoError, match=rf"'environment.reward.{key}' is not valid"):
        load_config("toy", [f"environment.reward.{key}=[]"])
