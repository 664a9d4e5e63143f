"""Exchanges: each action with its turn and the segments returned for it, as segments and as token positions."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cli.runs.pools import Span, pool_of
from echo_cli.trace import Trace, TraceSegment
from echo_cli.trajectory import NAMED_ROLES, Role, Segment, Trajectory, Turn, split_at_actions, text_of, visible

BANNER = Segment(Role.ENV_OUTPUT, "welcome\n", (1, 2))
PROMPT = Segment(Role.CONTEXT, "$ ", (3,))
LIST = Segment(Role.ACTION, "hm ls x\n", (4, 5, 6, 7), transient=2)
FOUND = Segment(Role.ENV_OUTPUT, "a\n", (8, 9), channel="stdout")
STATUS = Segment(Role.WARNING, "[exit 1]\n", (10, 11, 12))
MISSING = Segment(Role.ENV_OUTPUT, "no x\n", (13, 14, 15), channel="stderr")
CHANGE = Segment(Role.ACTION, "cd /\n", (16, 17))
ANSWER = Segment(Role.ACTION, "a\n", (18,))
THANKS = Segment(Role.ENV_OUTPUT, "\u00e9\n", (19,))
TURNS = (
    Turn("ls  x", "a\nno x\n", 1, True, True),
    Turn("cd /", "", 0, True, True),
    Turn("a", "\u00e9\n", None, True, True),
)


def trajectory(*segments: Segment, turns: tuple[Turn, ...] = TURNS) -> Trajectory:
    opening = (Segment(Role.CONTEXT, "task\n", (0,)), BANNER, PROMPT)
    return Trajectory("t", "g", (*opening, *segments), turns, None, "unknown", "expert")


PLAYED = trajectory(LIST, FOUND, STATUS, MISSING, PROMPT, CHANGE, PROMPT, ANSWER, THANKS)


def test_an_exchange_is_an_action_with_its_turn_and_what_came_back() -> None:
    ls, cd, answer = PLAYED.exchanges()
    assert (ls.turn, ls.action, ls.segments[1:]) == (TURNS[0], LIST, (FOUND, STATUS, MISSING, PROMPT))
    assert ls.outputs == (FOUND, MISSING) and text_of(ls.segments, Role.ENV_OUTPUT) == "a\nno x\n"
    assert (cd.turn, cd.segments, cd.outputs) == (TURNS[1], (CHANGE, PROMPT), ())
    assert (answer.turn, answer.segments, answer.outputs) == (TURNS[2], (ANSWER, THANKS), (THANKS,))


def test_the_tokens_of_an_exchange_are_found_in_the_trajectory() -> None:
    assert PLAYED.starts == [0, 1, 3, 4, 8, 10, 13, 16, 17, 19, 20, 21]
    assert [(exchange.place, PLAYED.starts[exchange.span]) for exchange in PLAYED.exchanges()] == [
        (3, [4, 8, 10, 13, 16]),
        (8, [17, 19]),
        (10, [20, 21]),
    ]
    # Later turns do not see the two tokens of thinking.
    assert [visible(PLAYED).starts[exchange.place] for exchange in visible(PLAYED).exchanges()] == [4, 15, 18]


def test_a_pool_counts_tokens_of_env_output_alone_and_stdout_and_stderr_as_one() -> None:
    (spans,) = pool_of([PLAYED]).spans
    assert spans == (
        Span(("ls x", "a\nno x\n"), start=2, count=5, output_bytes=7),
        Span(("a", "\u00e9\n"), start=7, count=1, output_bytes=3),
    )


def test_what_precedes_the_first_action_belongs_to_no_exchange() -> None:
    opened = trajectory(turns=())
    assert opened.exchanges() == [] and pool_of([opened]).pairs == frozenset()
    assert split_at_actions(opened.segments) == [opened.segments]
    assert split_at_actions([LIST, FOUND]) == [(), (LIST, FOUND)]


def test_a_trace_has_its_exchanges_without_tokens() -> None:
    act, output = TraceSegment(Role.ACTION, "ls\n"), TraceSegment(Role.ENV_OUTPUT, "a\n")
    (exchange,) = Trace("t", (output, act, output), (TURNS[0],)).exchanges()
    assert (exchange.place, exchange.segments) == (1, (act, output))


def test_an_action_without_a_turn_is_refused_and_a_turn_without_its_action_is_left_out() -> None:
    with pytest.raises(ValueError, match="2 actions and 1 turns"):
        trajectory(LIST, FOUND, CHANGE, turns=TURNS[:1]).exchanges()
    (aborted,) = trajectory(LIST, FOUND).exchanges()
    assert aborted.turn == TURNS[0]


ROLES = st.sampled_from(list(NAMED_ROLES.values()))


@given(st.lists(st.tuples(ROLES, st.integers(0, 3)), max_size=12))
def test_every_token_is_in_the_opening_or_in_one_exchange(shape: list[tuple[Role, int]]) -> None:
    sizes = [1, *(size for _, size in shape)]
    ends = [*accumulate(sizes)]
    roles = [Role.CONTEXT, *(role for role, _ in shape)]
    segments = tuple(
        Segment(role, "x" * size, tuple(range(end - size, end)))
        for role, size, end in zip(roles, sizes, ends, strict=True)
    )
    turns = tuple(Turn(str(number), "", 0, True, True) for number in range(roles.count(Role.ACTION)))
    played = Trajectory("t", "g", segments, turns, None, "unknown", "expert")
    opening, found = split_at_actions(segments)[0], played.exchanges()

    parts = [opening, *(exchange.segments for exchange in found)]
    assert [token for part in parts for segment in part for token in segment.token_ids] == list(range(len(played)))
    assert tuple(segment for part in parts for segment in part) == segments
    assert all(segment.role is not Role.ACTION for segment in opening)
    for number, exchange in enumerate(found):
        assert exchange.turn.command == str(number)
        assert [segment.role is Role.ACTION for segment in exchange.segments].count(True) == 1
        assert exchange.action.role is Role.ACTION and segments[exchange.span] == exchange.segments
        for segment, start in zip(exchange.segments, played.starts[exchange.span], strict=True):
            assert segment.token_ids == tuple(range(start, start + len(segment.token_ids)))
