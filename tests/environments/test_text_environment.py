"""Text environments over a source: retries at the start, faults in the middle, turns, and reward rules."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.environments.faults import AtCapacity, BadAction, EnvironmentFault, Fault, SessionLost, Unavailable
from echo_cli.environments.protocol import Client, Description, HostLimits, JsonObject, Payload, StepResult, TextPiece
from echo_cli.environments.tasks import Task
from echo_cli.environments.text_environment import TextEnvironment, episode_reward
from echo_cli.errors import EchoError
from echo_cli.trajectory import Role

C, E, W = Role.CONTEXT, Role.ENV_OUTPUT, Role.WARNING
TASK = Task("t1", "train", "f", {"seed": 3})
PROMPT = TextPiece(C, "> ")

Answer = Payload | Fault


def said(text: str, reward: float | None = None, *, done: bool = False, **fields: Any) -> Payload:
    return Payload({"text": text, **fields}, reward, done)


class Scripted:
    """A source whose clients answer from one list, beginning with `reset`, and which records its requests."""

    def __init__(self, *answers: Answer, ended: str | None = None) -> None:
        self.answers, self.sent, self.clients, self.closed = list(answers), [], 0, 0
        self._ended = ended

    def describe(self) -> Description:
        return Description("scripted", {}, {})

    def client(self) -> Client:
        self.clients += 1
        return _ScriptedClient(self)

    def ended(self) -> str | None:
        return self._ended


class _ScriptedClient:
    def __init__(self, source: Scripted) -> None:
        self._source = source

    async def reset(self, arguments: JsonObject) -> Payload:
        return self._next({"reset": dict(arguments)})

    async def step(self, action: JsonObject) -> Payload:
        return self._next(dict(action))

    async def close(self) -> None:
        self._source.closed += 1

    def _next(self, message: JsonObject) -> Payload:
        self._source.sent.append(message)
        answer = self._source.answers.pop(0)
        if isinstance(answer, Fault):
            raise answer
        return answer


def settings(**keys: Any) -> EnvironmentConfig:
    values = {
        "url": "http://127.0.0.1:1",
        "tasks": {"seeds": 3},
        "action": {"template": {"command": "{text}"}},
        "observation": [{"path": "text"}],
        "retry_s": 0.5,
        **keys,
    }
    return EnvironmentConfig.model_validate_json(json.dumps(values), strict=True)


class Played:
    """An episode played step by step."""

    def __init__(self, source: Scripted, hosting: HostLimits | None = None, **keys: Any) -> None:
        self.hosting = hosting or HostLimits()
        self.environment = TextEnvironment(source, settings(**keys), self.hosting)
        self.opening = asyncio.run(self.environment.reset(TASK))

    def step(self, action: str) -> StepResult:
        return asyncio.run(self.environment.step(action))

    def verify(self) -> float | None:
        return asyncio.run(self.environment.verify())

    def faults(self) -> dict[str, int]:
        return {key: count for key, count in self.hosting.faults.take().items() if count}


# --- The course of an episode ----------------------------------------------------------------------------------------


def test_an_episode_is_opened_with_the_task_and_prompted_on_a_line_of_its_own() -> None:
    source = Scripted(said("hello"), said("no newline"), said("line\n"), said("bye\n", 1.0, done=True))
    episode = Played(source)
    assert source.sent == [{"reset": {"seed": 3}}]
    assert episode.opening == (TextPiece(C, "hello"), TextPiece(C, "\n> "))
    assert episode.step("one").pieces == (TextPiece(E, "no newline"), TextPiece(C, "\n> "))
    assert episode.step("two").pieces == (TextPiece(E, "line\n"), PROMPT)
    last = episode.step("three")
    assert (last.pieces, last.done, last.capped) == ((TextPiece(E, "bye\n"),), True, False)
    assert source.sent[1:] == [{"command": "one"}, {"command": "two"}, {"command": "three"}]
    assert episode.verify() == 1.0 and episode.faults() == {}


def test_the_turn_cap_ends_the_episode_without_a_prompt() -> None:
    episode = Played(Scripted(said("q\n"), said("a\n"), said("b\n")), max_turns=2)
    assert not episode.step("one").done
    last = episode.step("two")
    assert (last.pieces, last.done, last.capped) == ((TextPiece(E, "b\n"),), True, True)


def test_a_done_on_the_last_turn_is_the_cap_if_a_command_ran_and_an_answer_if_not() -> None:
    for exit_code, capped in ((0, True), (None, False)):
        episode = Played(Scripted(said("q\n"), said("a\n", done=True, code=exit_code)), max_turns=1, exit_code="code")
        assert episode.step("one").capped is capped


def test_the_exit_code_and_invalid_actions_are_read_from_the_payload() -> None:
    episode = Played(
        Scripted(said("q\n"), said("x\n", code=2), said("sh: no\n", code=127), said("y\n", code=0)),
        exit_code="code",
        invalid={"path": "text", "pattern": "^sh: "},
    )
    replies = [episode.step(action) for action in ("a", "b", "")]
    assert [reply.exit_code for reply in replies] == [2, 127, 0]
    assert [reply.valid_action for reply in replies] == [True, False, False]


# --- Faults ----------------------------------------------------------------------------------------------------------


def test_what_is_no_action_is_a_warning_and_never_sent() -> None:
    source = Scripted(said("q\n"), said("fine\n"))
    episode = Played(source, action={"kind": "json", "penalty": 0.25})
    refused = episode.step("not json")
    assert [piece.role for piece in refused.pieces] == [W, C] and refused.pieces[0].channel == "notice"
    assert (refused.valid_action, refused.clean_parse, refused.done, refused.penalty) == (False, False, False, 0.25)
    assert len(source.sent) == 1
    assert episode.step('{"command": "ls"}').clean_parse
    assert episode.faults() == {"bad_actions": 1}


def test_a_reply_says_how_the_text_parsed() -> None:
    episode = Played(Scripted(said("q\n"), said("fine\n")), action={"kind": "json"})
    replies = [episode.step(text) for text in ("", "not json", '{"command": "ls"}')]
    assert [reply.parse for reply in replies] == ["none", "malformed", "valid"]
    unheard = asyncio.run(episode.environment.step('{"command": "ls"}', "it thinks, and thinking is forbidden"))
    assert (unheard.parse, unheard.clean_parse) == ("malformed", False)
    assert unheard.pieces[0].text == "[not an action: it thinks, and thinking is forbidden]\n"


@pytest.mark.parametrize(
    ("fault", "counter", "parse"),
    [
        (BadAction("command: too long"), "bad_actions", "malformed"),
        (EnvironmentFault("boom"), "errors", "valid"),  # the environment's failure, not the policy's
    ],
)
def test_a_refused_or_failed_action_is_a_warning_and_the_episode_goes_on(
    fault: Fault, counter: str, parse: str
) -> None:
    episode = Played(Scripted(said("q\n"), fault, said("fine\n")))
    refused = episode.step("x")
    assert (refused.parse, refused.valid_action) == (parse, False)
    assert refused.pieces[0].role is W and str(fault) in refused.pieces[0].text
    assert refused.pieces[0].text.endswith("]\n") and refused.pieces[1] == PROMPT
    assert episode.step("y").pieces[0] == TextPiece(E, "fine\n")
    assert episode.faults() == {counter: 1}


def test_an_error_message_is_one_safe_line() -> None:
    episode = Played(Scripted(said("q\n"), EnvironmentFault("a\x1b[31m\nTraceback:\n" + "x" * 10_000)))
    text = episode.step("x").pieces[0].text
    assert text.count("\n") == 1 and "\x1b" not in text and len(text) < 300


def test_a_refused_last_turn_ends_the_episode() -> None:
    episode = Played(Scripted(said("q\n"), BadAction("no")), max_turns=1)
    last = episode.step("x")
    assert (last.done, last.capped, [piece.role for piece in last.pieces]) == (True, True, [W])


def test_a_lost_session_is_left_to_the_rollout() -> None:
    episode = Played(Scripted(said("q\n"), SessionLost("closed")))
    with pytest.raises(SessionLost, match="closed"):
        episode.step("x")


def test_an_unavailable_environment_is_tried_again_with_a_new_client() -> None:
    source = Scripted(Unavailable("at capacity"), Unavailable("refused"), said("q\n"))
    episode = Played(source)
    assert (source.clients, source.closed) == (3, 2)
    assert episode.opening[0] == TextPiece(C, "q\n") and episode.faults() == {"unavailable": 2}


def test_a_refused_session_is_left_to_the_rollout_once_others_show_how_many_are_granted() -> None:
    hosting = HostLimits(sessions=4)
    hosting.count.open, hosting.count.opening = 2, 1
    with pytest.raises(AtCapacity):
        Played(Scripted(AtCapacity("full")), hosting=hosting)
    assert (hosting.at_once, hosting.count.take_granted(), hosting.count.take_granted()) == (3, 3, None)


@pytest.mark.parametrize("state", [{"open": 0, "opening": 3}, {"open": 2, "abandoned": True}])
def test_a_refused_session_is_tried_again_if_others_do_not_show_how_many_are_granted(state: dict[str, int]) -> None:
    hosting = HostLimits(sessions=4)
    vars(hosting.count).update(state)
    episode = Played(Scripted(AtCapacity("full"), said("q\n")), hosting=hosting)
    assert episode.opening[0] == TextPiece(C, "q\n") and hosting.at_once == 4
    assert hosting.count.open == state["open"] + 1


def test_an_environment_that_never_comes_ends_the_run_with_the_last_reason() -> None:
    source = Scripted(*(Unavailable("connection refused") for _ in range(50)))
    with pytest.raises(EchoError, match="the environment is not available: connection refused") as caught:
        Played(source)
    assert caught.value.exit_code == 1 and "--resume" in (caught.value.tip or "")
    assert 2 <= source.clients == source.closed < 50


def test_a_server_of_ours_that_has_ended_is_not_waited_for() -> None:
    source = Scripted(Unavailable("connection refused"), ended="its process ended with exit code 3")
    with pytest.raises(EchoError, match="its process ended with exit code 3"):
        Played(source, retry_s=3600.0)
    assert source.clients == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (EnvironmentFault("no such task"), "no such task"),
        (Payload({}, None, True, {"status": "failed to boot"}), "the reset is already done: status failed to boot"),
    ],
)
def test_a_reset_that_fails_is_tried_a_few_times_and_then_names_the_task(answer: Answer, reason: str) -> None:
    source = Scripted(answer, answer, said("q\n"))
    assert Played(source, attempts=3).faults() == {"unavailable": 2}
    with pytest.raises(EchoError, match=f"failed to start task t1: {reason}") as caught:
        Played(Scripted(answer, answer, answer), attempts=3)
    assert caught.value.exit_code == 1


# --- Rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "mode", "none", "expected"),
    [
        ([1.0, None, 0.5], "sum", "skip", 1.5),
        ([1.0, None, 0.5], "sum", "zero", 1.5),
        ([1.0, None, None], "last", "skip", 1.0),
        ([1.0, None, None], "last", "zero", 0.0),
        ([None, None], "sum", "skip", None),
        ([None, None], "sum", "zero", 0.0),
        ([], "last", "skip", None),
        ([], "last", "zero", 0.0),
        ([0.0], "sum", "skip", 0.0),
        ([-1.0, 3.0], "final", "skip", 2.0),
    ],
)
def test_a_reward_of_null_is_not_zero(
    rewards: Sequence[float | None], mode: str, none: str, expected: float | None
) -> None:
    assert episode_reward(list(rewards), mode, none) == expected


VERIFY, DONE = {"type": "call_tool", "tool_name": "verify"}, {"type": "call_tool", "tool_name": "done"}


def _with_final(source: Scripted, mode: str, **keys: Any) -> Played:
    final = [{"action": VERIFY}, {"action": DONE, "counts": False}]
    return Played(source, reward={"mode": mode, "final": final, **keys})


def test_final_actions_are_sent_in_order_and_only_those_that_count_do() -> None:
    source = Scripted(said("q\n"), said("a\n", 0.25), said("verified", 1.0), said("done", 0.0, done=True))
    episode = _with_final(source, "final")
    episode.step("x")
    assert episode.verify() == 1.0 and source.sent[-2:] == [VERIFY, DONE]
    source = Scripted(said("q\n"), said("a\n", 0.25), said("verified", 1.0), said("done", 0.0, done=True))
    episode = _with_final(source, "sum")
    episode.step("x")
    assert episode.verify() == 1.25


def test_final_actions_run_at_the_turn_cap_and_are_spared_an_episode_that_is_over() -> None:
    source = Scripted(said("q\n"), said("a\n"), said("v", 1.0), said("d", done=True))
    episode = Played(
        source, max_turns=1, reward={"mode": "final", "final": [{"action": VERIFY}, {"action": DONE, "counts": False}]}
    )
    assert episode.step("x").capped and episode.verify() == 1.0
    source = Scripted(said("q\n"), said("a\n", 0.5, done=True))
    episode = _with_final(source, "last")
    episode.step("x")
    assert episode.verify() == 0.5 and len(source.sent) == 2


@pytest.mark.parametrize("mode", ["sum", "last", "final"])
@pytest.mark.parametrize("none", ["skip", "zero"])
def test_a_final_action_that_fails_gives_no_reward(mode: str, none: str) -> None:
    source = Scripted(said("q\n"), said("a\n", 0.25), EnvironmentFault("verifier crashed"), said("d"))
    episode = _with_final(source, mode, none=none)
    episode.step("x")
    assert episode.verify() is None and episode.faults() == {"errors": 1} and source.sent[-1] == DONE
    told: list[str] = []
    episode.hosting.faults.tell_reasons(told.append)
    assert told == ["the final action failed: verifier crashed"]


def test_a_final_action_that_does_not_count_may_fail() -> None:
    source = Scripted(said("q\n"), said("a\n"), said("v", 1.0), BadAction("no such tool"))
    episode = _with_final(source, "final")
    episode.step("x")
    assert episode.verify() == 1.0 and episode.faults() == {"bad_actions": 1}


@pytest.mark.parametrize(
    ("action", "problem", "ends"),
    [
        ("It is 3.", None, True),
        (" \n", None, False),
        ("<tool_call>{", None, False),
        ('{"name": "look"}', None, False),
        ("It is 3.", "thinking is not allowed", False),
    ],
)
def test_words_end_an_episode_of_tool_calls_if_the_config_says_so(action: str, problem: str | None, ends: bool) -> None:
    async def play(*, words_end: bool) -> StepResult:
        config = settings(action={"kind": "tool_call", "words_end": words_end})
        env = TextEnvironment(Scripted(said("")), config, HostLimits())
        await env.reset(TASK)
        return await env.step(action, problem)

    assert not asyncio.run(play(words_end=False)).done
    reply = asyncio.run(play(words_end=True))
    assert (reply.done, reply.valid_action, reply.parse == "valid", reply.pieces == ()) == (ends,) * 4


def test_words_end_belongs_to_tool_calls() -> None:
    with pytest.raises(EchoError, match=r"action\.words_end has no effect with kind json"):
        settings(action={"kind": "json", "words_end": True})
