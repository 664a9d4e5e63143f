"""Behaviour metrics of healthy and of collapsed policies: synthetic policies in the real toy world."""

from __future__ import annotations

from dataclasses import replace

import pytest
from played_policy import play

from echo_cli.config.episodes.rollout import RolloutConfig
from echo_cli.rollouts.behaviour import BEHAVIOUR_KEYS, behaviour_metrics, find_obstacles, refused_fraction
from echo_cli.trajectory import Role, Segment, Trajectory, Turn


def test_values_by_hand() -> None:
    one = _rollout("g", [("ls /a", "x y\n", True), ("answer: x", "", True)])
    two = _rollout("g", [("ls  /a ", "x y\n", True), ("frob", "sh: frob: command not found\n", False)], "turn_cap")
    found = behaviour_metrics([one, two, _rollout("h", [("ls /a", "x y\n", True)])])
    assert found["action_length"] == 2
    assert found["valid_action_fraction"] == 4 / 5
    assert found["capped_fraction"] == 1 / 3
    assert found["commands_per_task"] == 3 / 2  # ls /a, answer: x, frob over the tasks g and h
    assert found["observations_per_task"] == 2 / 2
    assert found["role_confusion"] == 0


def test_what_went_wrong_is_told_from_what_was_not_tried() -> None:
    rollout = _rollout("g", [("ls", "a\n", True), ("{", "", False), ("hm", "", False), ("{}}", "", False)])
    parsed = [("valid", True), ("malformed", False), ("none", False), ("malformed", False)]
    turns = (replace(t, parse=p, clean_parse=c) for t, (p, c) in zip(rollout.turns, parsed, strict=True))
    found = behaviour_metrics([replace(rollout, turns=tuple(turns))])  # type: ignore[arg-type]
    assert (found["malformed_fraction"], found["no_action_fraction"]) == (0.5, 0.25)
    assert behaviour_metrics(play("endless"))["malformed_fraction"] == 1


def test_scripted_rollouts_do_not_count_and_alone_give_nothing() -> None:
    scripted = _rollout("g", [("ls /", "a\n", True)], source="explorer")
    assert behaviour_metrics([scripted]) == dict.fromkeys(BEHAVIOUR_KEYS)
    own = _rollout("g", [("cat /a", "1\n", True)])
    assert behaviour_metrics([own, scripted]) == behaviour_metrics([own])


@pytest.mark.parametrize(
    ("action", "valid", "confused"),
    [
        ("INFO started", False, True),  # a line that the environment printed
        ("  INFO started ", False, True),
        ("INFO", False, False),  # only the beginning of a printed line, and not a truncated one
        ("$ ls /", False, True),  # the prompt
        ("$", False, True),
        ("[exit 1]", False, True),  # looks like the status that was printed
        ("[exit 127] no", False, True),
        ("frob", False, False),  # a mistake, but not a copy of output
        ("", False, False),
        ("INFO started", True, False),  # looks like output, but the environment could run it
    ],
)
def test_role_confusion_is_what_looks_like_the_reply_and_could_not_run(
    action: str, valid: bool, confused: bool
) -> None:
    seen = _rollout("g", [("cat /log", "INFO started\n", True), ("cat /no", "cat: /no: no such file\n", True)])
    assert behaviour_metrics([seen, _rollout("h", [(action, "", valid)])])["role_confusion"] == confused / 3


def test_a_cut_action_is_confusion_if_a_printed_line_begins_so() -> None:
    seen = _rollout("g", [("cat /log", "INFO the service has started\n", True)])
    for action, confusion in (("INFO the serv", 0.5), ("the serv", 0)):
        cut = _rollout("h", [(action, "", False)], "length_cap", cut=True)
        assert behaviour_metrics([seen, cut])["role_confusion"] == confusion


def test_an_action_that_does_not_parse_is_neither_cut_nor_a_cap() -> None:
    seen = _rollout("g", [("cat /log", "INFO the service has started\n", True)])
    refused = _rollout("h", [("INFO the serv", "", False)], cut=True)
    measured = behaviour_metrics([seen, refused])
    assert (measured["role_confusion"], measured["capped_fraction"]) == (0, 0)


def test_an_action_like_one_that_was_echoed_is_not_confusion() -> None:
    rollout = _rollout("g", [("[A C]", "moved\n", True), ("[A C]", "illegal\n", False)])
    echo = Segment(Role.WARNING, "[A C]\n", (6,), channel="echo")
    echoed = replace(rollout, segments=(*rollout.segments[:2], echo, *rollout.segments[2:]))
    assert behaviour_metrics([echoed])["role_confusion"] == 0


def test_experts_are_healthy_and_a_constant_command_is_not() -> None:
    healthy, constant = behaviour_metrics(play("expert")), behaviour_metrics(play("constant"))
    assert healthy["role_confusion"] == constant["role_confusion"] == 0
    assert (healthy["capped_fraction"], constant["capped_fraction"]) == (0, 1)
    assert (healthy["commands_per_task"] or 0) > 1 > 0.2 > (constant["commands_per_task"] or 1)
    for name in ("command_compression", "observation_compression"):
        assert 3 * (healthy[name] or 0) < (constant[name] or 0)


def test_a_policy_that_writes_nothing_or_without_end() -> None:
    empty, endless = behaviour_metrics(play("empty")), behaviour_metrics(play("endless"))
    assert (empty["action_length"], empty["valid_action_fraction"], empty["observations_per_task"]) == (1, 0, 0)
    assert empty["observation_compression"] is None
    assert (endless["action_length"], endless["capped_fraction"], endless["valid_action_fraction"]) == (16, 1, 0)


def test_a_policy_that_repeats_the_world_is_confused() -> None:
    parrot = behaviour_metrics(play("parrot"))
    assert (parrot["role_confusion"] or 0) > 0.5


HEALTHY = {**dict.fromkeys(BEHAVIOUR_KEYS, 0.0), "valid_action_fraction": 1.0, "observations_per_task": 3.0}


@pytest.mark.parametrize(
    ("signals", "names"),
    [
        ({}, []),
        ({"valid_action_fraction": 0.51, "capped_fraction": 0.49, "zero_advantage_fraction": 0.99}, []),
        ({"malformed_fraction": 0.49, "no_action_fraction": 0.49, "valid_action_fraction": 0.51}, []),
        ({"malformed_fraction": 0.5, "capped_fraction": 0.5, "action_length": 10.0}, ["cut_actions"]),
        ({"malformed_fraction": 0.5, "capped_fraction": 0.5, "action_length": 9.9}, ["malformed_actions"]),
        ({"malformed_fraction": 0.5, "capped_fraction": 0.49, "action_length": 20.0}, ["malformed_actions"]),
        ({"no_action_fraction": 0.5, "valid_action_fraction": 0.1}, ["no_actions"]),
        ({"malformed_fraction": 0.5, "no_action_fraction": 0.5}, ["malformed_actions"]),
        ({"valid_action_fraction": 0.5}, ["refused_actions"]),
        ({"valid_action_fraction": 0.0, "capped_fraction": 0.5}, ["refused_actions", "capped"]),
        ({"malformed_fraction": 0.49, "capped_fraction": 0.5, "action_length": 20.0}, ["capped"]),
        ({"observations_per_task": 0.0, "zero_advantage_fraction": 1.0}, ["no_observations", "no_contrast"]),
    ],
    ids=str,
)
def test_obstacles_are_flaws_of_half_of_the_actions_or_rollouts(signals: dict[str, float], names: list[str]) -> None:
    found = find_obstacles({**HEALTHY, **signals}, RolloutConfig(max_action_tokens=20, explorers=0))
    assert [finding.name for finding in found] == names
    assert all(finding.message and finding.tip for finding in found)


def test_without_signals_there_is_no_obstacle() -> None:
    assert find_obstacles({}, RolloutConfig()) == find_obstacles(behaviour_metrics([]), RolloutConfig()) == []


def test_outputs_that_nobody_sees_come_from_explorers_if_there_are_any() -> None:
    for explorers, tip in ((0, "set rollout.explorers above 0"), (3, "the 3 explorers of a step alone")):
        (found,) = find_obstacles({"observations_per_task": 0.0}, RolloutConfig(explorers=explorers))
        assert tip in found.tip


def _rollout(
    group: str,
    turns: list[tuple[str, str, bool]],
    stop_reason: str = "answered",
    *,
    source: str = "policy",
    cut: bool = False,
) -> Trajectory:
    """Return a rollout, two tokens per action; `sh:` and `cat:` outputs get an exit status."""
    segments = [Segment(Role.CONTEXT, "task: ?\n$ ", (1,))]
    for action, output, _ in turns:
        segments.append(Segment(Role.ACTION, action, (2, 3), (-0.1, -0.1)))
        segments.append(Segment(Role.ENV_OUTPUT, output, (4,)))
        if output.startswith(("sh: ", "cat: ")):
            segments.append(Segment(Role.WARNING, "[exit 2]\n", (5,), channel="exit_status"))
        segments.append(Segment(Role.CONTEXT, "$ ", (1,)))
    played = tuple(Turn(action, output, 0, valid, clean_parse=not cut) for action, output, valid in turns)
    return Trajectory("t", group, tuple(segments), played, 0.0, stop_reason, source)  # type: ignore[arg-type]


def test_the_refused_fraction_is_of_turns_that_the_environment_could_not_run() -> None:
    expert, empty = play("expert"), play("empty")
    assert (refused_fraction(expert), refused_fraction(empty), refused_fraction([])) == (0, 1, None)
    turns = sum(len(rollout.turns) for rollout in (*expert, *empty))
    both = refused_fraction([*expert, *empty])
    assert both == pytest.approx(sum(len(rollout.turns) for rollout in empty) / turns)
    valid = behaviour_metrics([*expert, *empty])["valid_action_fraction"]
    assert valid is not None and both == pytest.approx(1 - valid)
