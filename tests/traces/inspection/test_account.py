"""Inspection of recorded episodes, against counts made by hand on short episodes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

import echo_cli
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.inspection.account import Inspection, inspect
from echo_cli.traces.inspection.boundaries import Straddle, StraddleExample, straddles
from echo_cli.traces.inspection.outputs import KEPT, LONGEST, BoundedCounter
from echo_cli.trajectory import Role, Turn

TOKENIZER = Tokenizer.load(Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json")


def segment(role: Role, text: str, channel: str | None = None, ids: tuple[int, ...] | None = None) -> TraceSegment:
    return TraceSegment(role, text, channel, ids)


def episode(*exchanges: tuple[str, str], task: str = "t", exit_code: int | None = 0, **fields: object) -> Trace:
    """Return an episode of a prompt and these (command, output) pairs."""
    segments, turns = [segment(Role.CONTEXT, "$ ")], []
    for command, output in exchanges:
        segments.append(segment(Role.ACTION, f"{command}\n"))
        segments += [segment(Role.ENV_OUTPUT, output, "stdout")] if output else []
        turns.append(Turn(command, output, exit_code, valid_action=True, clean_parse=True))
    return Trace(task, tuple(segments), tuple(turns), **fields)  # type: ignore[arg-type]


def inspected(*traces: Trace) -> Inspection:
    return inspect(iter(traces), TOKENIZER, own_ids=all(trace.has_token_ids for trace in traces))


def two_roles() -> Trace:
    """Return a trace of 15 bytes and, by its own ids, 10 tokens: context 3 + 2, action 2, output 2, warning 1."""
    segments = (
        segment(Role.CONTEXT, "go\n", ids=(1, 2, 3)),
        segment(Role.CONTEXT, "$ ", "prompt", (4, 5)),
        segment(Role.ACTION, "ls\n", ids=(6, 7)),
        segment(Role.ENV_OUTPUT, "é\n", "stdout", (8,)),
        segment(Role.ENV_OUTPUT, "b", "stderr", (9,)),
        segment(Role.WARNING, "cut", ids=(9,)),
    )
    return Trace("t", segments, (Turn("ls", "é\nb", 0, valid_action=True, clean_parse=True),), reward=1.0)


# --- Roles -----------------------------------------------------------------------------------------------------------


def test_segments_bytes_and_tokens_are_counted_by_role_and_channel() -> None:
    account = inspected(two_roles()).account
    counts = {
        (role, channel): (part.segments, part.bytes, part.tokens)
        for role, amount in account.roles.items()
        for channel, part in [("", amount), *amount.channels.items()]
    }
    assert counts == {
        ("context", ""): (2, 5, 5),
        ("context", "unnamed"): (1, 3, 3),
        ("context", "prompt"): (1, 2, 2),
        ("action", ""): (1, 3, 2),
        ("action", "unnamed"): (1, 3, 2),
        ("env_output", ""): (2, 4, 2),
        ("env_output", "stdout"): (1, 3, 1),
        ("env_output", "stderr"): (1, 1, 1),
        ("warning", ""): (1, 3, 1),
        ("warning", "unnamed"): (1, 3, 1),
    }
    assert (account.total.segments, account.total.bytes, account.total.tokens) == (6, 15, 10)
    assert account.roles["env_output"].bytes_share == pytest.approx(4 / 15)
    assert account.roles["env_output"].tokens_share == pytest.approx(0.2)


def test_plain_rl_discards_observations_and_warnings() -> None:
    account = inspected(two_roles()).account
    assert (account.learnable_tokens, account.discarded_tokens) == (5, 3)
    assert account.discarded_share == pytest.approx(0.6)


def test_a_file_that_lacks_some_ids_is_counted_in_the_tokens_of_a_tokenizer() -> None:
    trace = episode(("ls /etc", "a b\n"))
    assert two_roles().has_token_ids and not trace.has_token_ids
    found = inspect([two_roles(), trace], TOKENIZER, own_ids=False).account
    texts = [each.text for each in (*two_roles().segments, *trace.segments)]
    assert found.total.tokens == sum(len(TOKENIZER.encode(text)) for text in texts)


def test_episodes_rewards_and_how_they_ended_are_counted() -> None:
    found = inspected(
        episode(reward=1.0, stop_reason="answered", source="policy", world_model_only=False),
        episode(reward=-0.5, stop_reason="answered", source="policy", world_model_only=False),
        episode(),
    )
    assert (found.trajectories, found.world_model_only) == (3, 1)
    rewards = found.rewards
    assert (rewards.scored, rewards.unscored, rewards.mean, rewards.lowest, rewards.highest) == (2, 1, 0.25, -0.5, 1.0)
    assert found.stop_reasons == {"answered": 2, "unknown": 1}
    assert found.sources == {"policy": 2, "trace": 1}


def test_nothing_has_no_shares() -> None:
    found = inspected()
    assert found.trajectories == 0 and found.account.discarded_share is None
    assert found.straddling.share is None and found.outputs.volatile_share is None and found.rewards.mean is None


# --- Boundaries ------------------------------------------------------------------------------------------------------


def test_a_token_of_two_roles_is_found_with_its_two_halves() -> None:
    # The tokenizer joins a space to the next word, and never joins a newline to anything.
    assert [TOKENIZER.decode([token]) for token in TOKENIZER.encode("$ ls\n")] == ["$", " ls", "\n"]
    segments = (segment(Role.CONTEXT, "$ "), segment(Role.ACTION, "ls\n"), segment(Role.ENV_OUTPUT, "a\n"))
    assert straddles(segments, TOKENIZER) == [Straddle(Role.CONTEXT, Role.ACTION, " ", "ls"), None]


def test_segments_of_one_role_and_empty_ones_have_no_boundary() -> None:
    segments = (
        *(segment(Role.CONTEXT, "$"), segment(Role.CONTEXT, " "), segment(Role.WARNING, "")),
        *(segment(Role.ACTION, "l"), segment(Role.ACTION, "s")),
    )
    assert straddles(segments, TOKENIZER) == [Straddle(Role.CONTEXT, Role.ACTION, " ", "ls")]
    assert straddles([segment(Role.CONTEXT, "")], TOKENIZER) == []


def test_one_token_can_span_several_boundaries() -> None:
    letters = (segment(Role.CONTEXT, " l"), segment(Role.ACTION, "i"), segment(Role.ENV_OUTPUT, "nes"))
    assert len(TOKENIZER.encode(" lines")) == 1
    assert straddles(letters, TOKENIZER) == [
        Straddle(Role.CONTEXT, Role.ACTION, " l", "ines"),
        Straddle(Role.ACTION, Role.ENV_OUTPUT, " li", "nes"),
    ]


def test_boundaries_are_counted_by_pair_with_the_commonest_tokens() -> None:
    found = inspected(*[episode(("ls", "a\n"))] * 2, episode(("grep x", ""))).straddling
    assert (found.boundaries, found.straddling, found.share) == (5, 3, pytest.approx(0.6))
    first, second = found.pairs
    assert (first.first, first.second, first.straddling, first.boundaries) == ("context", "action", 3, 3)
    assert first.examples == (StraddleExample(" ", "ls", 2), StraddleExample(" ", "grep", 1))
    assert (second.first, second.second, second.straddling, second.boundaries) == ("action", "env_output", 0, 2)


# --- Outputs ---------------------------------------------------------------------------------------------------------


def test_empty_outputs_are_counted_and_answers_apart() -> None:
    found = inspected(
        episode(("touch a", ""), ("echo", "\n"), ("touch  a", ""), ("answer: 3", ""), stop_reason="answered"),
    ).outputs
    assert (found.turns, found.without_output, found.answers_without_output, found.blank) == (4, 3, 1, 1)
    assert found.without_output_share == 0.75
    assert [(each.command, each.count) for each in found.emptiest] == [("touch a", 2)]


def test_the_longest_outputs_are_kept_of_any_number() -> None:
    sizes = [3, 9, 1, 9, 7, 2, 8, 4]
    found = inspected(*(episode(("true", ""), (f"cat {size}", "x" * size)) for size in sizes)).outputs.longest
    assert [(each.bytes, each.episode, each.turn) for each in found] == [
        (9, 2, 2),
        (9, 4, 2),
        (8, 7, 2),
        (7, 5, 2),
        (4, 8, 2),
    ]
    assert len(found) == LONGEST and found[2].command == "cat 8" and found[2].tokens == len(TOKENIZER.encode("x" * 8))


def test_an_output_is_all_that_a_command_printed() -> None:
    (longest,) = inspected(two_roles()).outputs.longest
    assert (longest.text, longest.bytes, longest.tokens) == ("é\nb", 4, 2)


def test_volatile_text_has_its_share_of_the_observations() -> None:
    found = inspected(episode(("ps", "pid 4711 pid 4711 pid 12 ok"), ("date", "10:20:30\n"))).outputs
    pid, time = found.volatile["pid"], found.volatile["timestamp"]
    assert (pid.count, pid.bytes, pid.share, pid.examples) == (3, 22, pytest.approx(22 / 36), ("pid 4711", "pid 12"))
    assert (time.count, time.bytes) == (1, 8)
    assert found.volatile_share == pytest.approx(30 / 36)


# --- Duplicates ------------------------------------------------------------------------------------------------------


def test_copies_of_pairs_outputs_and_episodes_are_counted() -> None:
    once = episode(("ls", "a\n"), ("cat a", "1\n"), task="x")
    found = inspected(once, once, episode(("ls  ", "a\n"), ("cat b", "1\n"), ("rm a", ""), task="y")).duplicates
    assert (found.pairs.total, found.pairs.distinct, found.pairs.copies) == (7, 4, 3)
    assert (found.outputs.total, found.outputs.distinct, found.outputs.copies) == (6, 2, 4)
    assert (found.trajectories.total, found.trajectories.distinct, found.trajectories.copies) == (3, 2, 1)
    (copied,) = found.trajectories.examples
    assert (copied.text, copied.count, copied.episode) == ("x", 2, 1)
    assert [(each.text, each.count) for each in found.outputs.examples] == [("a\n", 3), ("1\n", 3)]


def test_texts_that_join_alike_are_no_copies() -> None:
    assert inspected(episode(("a b", "c")), episode(("a", "b c"))).duplicates.pairs.copies == 0


def test_what_ran_nothing_is_no_pair() -> None:
    assert inspected(episode(("answer: 3", ""), exit_code=None)).duplicates.pairs.total == 0


def test_commands_that_gave_other_outputs_are_told_from_nondeterminism() -> None:
    def others(*traces: Trace) -> tuple[int, int, int]:
        found = inspected(*traces).duplicates.other_outputs
        return found.anywhere, found.same_task, found.same_history

    assert others(episode(("ls", "a"), ("ls", "a"))) == (0, 0, 0)
    assert others(episode(("ls", "a"), task="x"), episode(("ls", "b"), task="y")) == (1, 0, 0)
    assert others(episode(("ls", "a"), ("rm a", ""), ("ls", ""))) == (1, 1, 0)
    assert others(episode(("date", "1")), episode(("date", "2")), episode(("date", "3"))) == (1, 1, 1)
    found = inspected(episode(("date", "1")), episode(("date", "2")), episode(("date", "3"))).duplicates.other_outputs
    assert [(each.command, each.count) for each in found.examples] == [("date", 2)]


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_a_tally_counts_no_more_than_so_many_things() -> None:
    tally: BoundedCounter[int] = BoundedCounter()
    for number in range(KEPT + 5):
        tally.add(number)
    tally.add(3, 2)
    assert tally.total == KEPT + 7 and tally.commonest(1) == [(3, 3)] and len(tally.commonest(2 * KEPT)) == KEPT


def test_traces_are_read_one_at_a_time() -> None:
    read: list[weakref.ref[Trace]] = []

    def stream() -> Iterator[Trace]:
        for number in range(9):
            assert not any(trace() for trace in read[:-1])
            trace = episode(("ls", f"{number}\n"))
            read.append(weakref.ref(trace))
            yield trace
            del trace

    assert inspect(stream(), TOKENIZER, own_ids=False).trajectories == 9
