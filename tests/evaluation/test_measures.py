"""Measures over tokens: columns match the pool, worked examples of each measure, groups add up."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import echo_cli
from echo_cli.config.schema import OptimConfig
from echo_cli.evaluation.baselines import predictions_from
from echo_cli.evaluation.measures import (
    Predictions,
    Tokens,
    bits_per_byte_difference,
    env_ce_difference,
    measure,
    pairs_in,
    predict,
    reliability,
    tokens_of,
    values_of,
)
from echo_cli.evaluation.run_evaluation import POSITIONS, groups, line_groups, report_policy
from echo_cli.evaluation.suffix_matches import longest_suffix_matches
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tiny import TinyConfig, TinyModel
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.runs.pools import Pool, pool_of
from echo_cli.trajectory import Role, Segment, Trajectory, Turn

torch.set_num_threads(1)

TOKENIZER = Tokenizer.load(Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json")
V = TOKENIZER.vocab_size


def transcript(*exchanges: tuple[str, str, str, int]) -> Trajectory:
    """One episode of (command, stdout, stderr, exit code), with the harness's warning after a failure."""
    segments, turns = [_segment(Role.CONTEXT, "task: q\n$ ")], []
    for command, stdout, stderr, status in exchanges:
        segments.append(_segment(Role.ACTION, command + "\n"))
        segments += [
            _segment(Role.ENV_OUTPUT, text, channel)
            for text, channel in ((stdout, "stdout"), (stderr, "stderr"))
            if text
        ]
        if status:
            segments.append(_segment(Role.WARNING, f"[exit {status}]\n", "exit_status"))
        segments.append(_segment(Role.CONTEXT, "$ "))
        turns.append(Turn(command, stdout + stderr, status, True, True))
    return Trajectory("t", "t", tuple(segments), tuple(turns), None, "script_end", "expert")


def _segment(role: Role, text: str, channel: str | None = None) -> Segment:
    return Segment(role, text, tuple(TOKENIZER.encode(text)), channel=channel)


def policy(*, uniform: bool = False) -> TorchPolicy:
    model = TinyModel(TinyConfig(V, hidden=32, layers=1, heads=4, max_length=512))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    if uniform:
        torch.nn.init.zeros_(model.embedding.weight)
    return TorchPolicy(model, PlainRenderer(TOKENIZER), OptimConfig(), torch.device("cpu"))


POOL = pool_of(
    [
        transcript(("cat a", "alpha: 12\n日本\n", "", 0), ("cat b", "", "cat: b: no such file\n", 1)),
        transcript(("cat a", "alpha: 12\n日本\n", "", 0), ("grep x a", "x: 7\n", "warn\n", 0), ("ls", "", "", 2)),
    ]
)


def columns(pool: Pool = POOL, *seen: tuple[str, str]) -> Tokens:
    return tokens_of(pool, set(seen), TOKENIZER)


def by_hand(nats: list[float], correct: list[int], confidence: list[float]) -> Predictions:
    return Predictions(np.array(nats), np.array(correct, dtype=np.bool_), np.array(confidence))


def plain(trajectories: list[int], byte_counts: list[int]) -> Tokens:
    """Return columns of `count` env_output tokens with arbitrary other values."""
    count = len(trajectories)
    zeros, texts = np.zeros(count, dtype=np.int64), np.array([""] * count, dtype=object)
    return Tokens(
        sequences=[],
        trajectory=np.array(trajectories),
        index=zeros,
        begin=zeros,
        token_id=zeros,
        byte_count=np.array(byte_counts),
        role=np.array(["env_output"] * count, dtype=object),
        channel=texts,
        command=texts,
        exit_status=texts,
        novel=np.ones(count, dtype=np.bool_),
        shown=np.zeros(count, dtype=np.bool_),
        span=zeros,
        position=zeros,
    )


# --- Columns ---------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_spans_and_all_warnings() -> None:
    tokens = columns()
    output, warning = tokens.role == "env_output", tokens.role == "warning"
    assert output.sum() == sum(span.count for spans in POOL.spans for span in spans)
    assert warning.sum() == sum(trajectory.count(Role.WARNING) for trajectory in POOL.trajectories)
    ids = [trajectory.token_ids for trajectory in POOL.trajectories]
    assert all(ids[t][i] == token for t, i, token in zip(tokens.trajectory, tokens.index, tokens.token_id, strict=True))
    # The repeated pair of the second trajectory is not measured.
    assert set(tokens.command[output & (tokens.trajectory == 1)]) == {"grep"}
    assert set(zip(tokens.command[warning], tokens.exit_status[warning], strict=True)) == {("cat", "1"), ("ls", "2")}


def test_the_bytes_of_a_span_are_those_of_its_output() -> None:
    tokens = columns()
    spans = [span for spans in POOL.spans for span in spans]
    found = np.bincount(tokens.span[tokens.span >= 0], tokens.byte_count[tokens.span >= 0])
    assert found.tolist() == [span.output_bytes for span in spans]
    # Positions run on over stdout and stderr of a command.
    assert [tokens.position[tokens.span == n].tolist() for n in range(3)] == [list(range(s.count)) for s in spans]


def test_an_output_cut_within_a_character_has_the_bytes_that_were_shown() -> None:
    whole = transcript(("cat a", "日本\n", "", 0))
    (cut_ids,) = (TOKENIZER.encode("日")[:1],)
    text = TOKENIZER.decode(cut_ids)
    segments = [replace(s, text=text, token_ids=tuple(cut_ids)) if s.channel else s for s in whole.segments]
    pool = pool_of([replace(whole, segments=tuple(segments))])
    tokens = tokens_of(pool, (), TOKENIZER)
    assert tokens.byte_count.sum() == len(text.encode()) == pool.spans[0][0].output_bytes


def test_executed_pairs_are_seen_and_leave_the_headline() -> None:
    tokens = columns(POOL, ("cat b", "cat: b: no such file\n"))
    assert set(tokens.span[tokens.headline].tolist()) == {0, 2}
    found = {(group, key): int(mask.sum()) for group, key, mask in groups(tokens)}
    assert found["pair", "novel"] == tokens.headline.sum()
    assert found["pair", "seen"] == (tokens.span == 1).sum()
    assert ("role", "warning exit_status") in found


def test_novel_pairs_are_parted_by_whether_training_observed_all_their_lines() -> None:
    # Both lines of `cat a` were observed under other commands, and one of them with another line; `x: 7` and the error
    # were not: equal lines count, not parts of lines.
    seen = [("tail -n 1 a", "日本\n"), ("head -n 1 a", "alpha: 12\nbeta\n"), ("cat c", "x: 71\ncat: b: no such\n")]
    tokens = columns(POOL, *seen)
    shown, unshown = tokens.by_lines.values()
    assert set(tokens.span[shown].tolist()) == {0} and set(tokens.span[unshown].tolist()) == {1, 2}
    assert [(key, pairs_in(tokens, mask)) for _, key, mask in line_groups(tokens)] == [("shown", 1), ("unshown", 2)]
    spans = [span for spans in POOL.spans for span in spans]
    assert int(tokens.byte_count[unshown].sum()) == sum(span.output_bytes for span in spans[1:])
    # A pair that was executed is in neither part, and without observations every pair has a line that nothing showed.
    assert set(columns(POOL, *seen, spans[0].pair).by_lines["shown"].tolist()) == {False}
    assert (columns().by_lines["unshown"] == columns().headline).all() and not columns().by_lines["shown"].any()


@pytest.mark.parametrize("group", ["command", "exit_status", "position", "copyable", "lines"])
def test_groups_part_the_headline(group: str) -> None:
    tokens = columns()
    masks = [mask for name, _, mask in groups(tokens) if name == group]
    assert (np.sum(masks, axis=0) == tokens.headline).all()


def test_groups_by_hand() -> None:
    def texts(words: str) -> np.ndarray[Any, Any]:
        return np.array(["" if word == "-" else word for word in words.split()], dtype=object)

    rows = plain([0] * 8, [1] * 8)
    tokens = replace(
        rows,
        sequences=[[0, 1, 0, 1, 0, 5, 6, 7]],  # at 4, the two tokens before are followed by 0, as they were at 2
        index=np.arange(8),
        token_id=np.array([0, 1, 0, 1, 0, 5, 6, 7]),
        role=texts("env_output " * 6 + "warning warning"),
        channel=texts("stdout stdout stderr stdout stdout - exit_status exit_status"),
        command=texts("cat ls cat cat ls rm cat ls"),
        exit_status=texts("10 2 none 0 2 3 1 1"),
        novel=np.array([True] * 5 + [False, True, False]),
        shown=np.array([True] + [False] * 4 + [True] * 3),
        position=np.array([0, 1, 3, 4, 16, 64, 0, 0]),
    )
    assert [(group, key, np.flatnonzero(mask).tolist()) for group, key, mask in groups(tokens)] == [
        ("role", "env_output stderr", [2]),
        ("role", "env_output stdout", [0, 1, 3, 4]),
        ("role", "warning exit_status", [6, 7]),
        ("command", "cat", [0, 2, 3]),  # the most frequent first
        ("command", "ls", [1, 4]),
        ("exit_status", "0", [3]),  # numbers in their order, then words
        ("exit_status", "2", [1, 4]),
        ("exit_status", "10", [0]),
        ("exit_status", "none", [2]),
        ("pair", "novel", [0, 1, 2, 3, 4]),
        ("pair", "seen", [5]),
        ("lines", "shown", [0]),
        ("lines", "unshown", [1, 2, 3, 4]),
        ("position", "0", [0]),
        ("position", "1-3", [1, 2]),
        ("position", "4-15", [3]),
        ("position", "16-63", [4]),
        ("copyable", "copyable", [4]),
        ("copyable", "not copyable", [0, 1, 2, 3]),
    ]


def test_positions_fall_into_their_buckets() -> None:
    long = tokens_of(pool_of([transcript(("cat", "1" * 70 + "\n", "", 0))]), (), TOKENIZER)
    found = {key: sorted(long.position[mask].tolist()) for name, key, mask in groups(long) if name == "position"}
    assert [found[name][0] for name, _ in POSITIONS] == [first for _, first in POSITIONS] == [0, 1, 4, 16, 64]
    assert found["1-3"] == [1, 2, 3]


def test_longest_matches_by_hand() -> None:
    #                                     0  1  2  3  4  5  6  7  8
    length, following = longest_suffix_matches([5, 6, 7, 5, 6, 8, 5, 6, 7])
    # At 5, the suffix "5 6" occurred at 0-1, followed by 7; at 8, its latest occurrence is 3-4, followed by 8.
    assert length.tolist() == [0, 0, 0, 0, 1, 2, 0, 1, 2]
    assert following.tolist() == [-1, -1, -1, -1, 6, 7, -1, 6, 8]
    # A match may overlap its continuation; the longest match has priority over the latest.
    assert longest_suffix_matches([1, 1, 1])[0].tolist() == [0, 0, 1]
    length, following = longest_suffix_matches([9, 1, 2, 3, 1, 4, 9, 1, 2])
    assert (length[8], following[8]) == (2, 2)
    assert [part.tolist() for part in longest_suffix_matches([])] == [[], []]


def test_copyable_by_hand() -> None:
    long = list(range(11, 20))
    sequences = [[1, 7, 1, 7], [1, 2, 7, 1, 2, 7], [1, 2, 8, 1, 2, 7], [*long, 7, *long, 7]]
    tokens = replace(
        plain([0, 1, 2, 3], [1] * 4),
        sequences=sequences,
        index=np.array([len(sequence) - 1 for sequence in sequences]),
        token_id=np.array([7, 7, 7, 7]),
    )
    assert (tokens.match_length.tolist(), tokens.match_token.tolist()) == ([1, 2, 2, 9], [7, 7, 8, 7])
    # Match too short; continued; different continuation; continued.
    assert tokens.copyable.tolist() == [False, True, False, True]
    pool = pool_of([transcript(("cat a", "12 34\n", "", 0), ("cat b", "12 39\n", "", 0))])
    found = tokens_of(pool, (), TOKENIZER)
    second = found.span == 1
    text = [TOKENIZER.decode([token]) for token in found.token_id[second]]
    copyable = dict(zip(text, found.copyable[second], strict=True))
    assert text[-2:] == ["9", "\n"] and not copyable["9"] and not copyable["\n"]
    assert found.copyable[second][text.index("2")]


# --- Measures --------------------------------------------------------------------------------------------------------


def test_measures_by_hand() -> None:
    tokens = plain([0, 0, 1, 1], [1, 3, 2, 2])
    predictions = by_hand([1.0, 2.0, 0.5, 0.5], [1, 0, 1, 1], [0.95, 0.5, 0.95, 0.5])
    found = measure(tokens, predictions, tokens.headline)
    assert found is not None and (found.tokens, found.bytes, found.trajectories) == (4, 8, 2)
    values = {name: estimate.value for name, estimate in found.estimates.items()}
    assert values == pytest.approx(
        {
            "env_ce": 1.0,
            "env_bits_per_byte": 4.0 / math.log(2) / 8,
            "token_accuracy": 0.75,
            # The last of 15 bins: 2 · |0.95 - 1|; the bin of 0.5: 2 · |0.5 - 0.5|.
            "calibration_error": 0.1 / 4,
        }
    )
    assert reliability(predictions, tokens.headline) == [(0.5, 0.5, 2), (pytest.approx(0.95), 1.0, 2)]
    assert measure(tokens, predictions, ~tokens.headline) is None


def test_certainty_is_in_the_last_bin() -> None:
    tokens, predictions = plain([0, 0], [1, 1]), by_hand([0.0, 0.0], [1, 0], [1.0, 1.0])
    assert reliability(predictions, tokens.headline) == [(1.0, 0.5, 2)]
    found = measure(tokens, predictions, tokens.headline)
    assert found is not None and found.estimates["calibration_error"].value == 0.5


def test_bits_per_byte_are_compared_over_the_same_bytes_in_other_tokens() -> None:
    one, two = plain([0, 1], [4, 4]), replace(plain([0, 0, 1, 1], [2, 2, 4, 9]), novel=np.array([True] * 3 + [False]))
    first, second = by_hand([1.0, 2.0], [0] * 2, [0.5] * 2), by_hand([1.0, 1.0, 3.0, 7.0], [0] * 4, [0.5] * 4)
    found = bits_per_byte_difference(one, first, two, second)
    assert found is not None and found.value == pytest.approx((5 - 3) / math.log(2) / 8)
    # Paired by trajectory: each costs one nat more over its four bytes, so every resample has the same difference.
    assert (found.low, found.high) == pytest.approx((found.value, found.value))


def test_the_interval_holds_the_value_and_is_a_point_for_equal_trajectories() -> None:
    rng = np.random.default_rng(0)
    tokens = plain([n // 5 for n in range(100)], [1] * 100)
    nats, confidence = rng.exponential(size=100), rng.uniform(size=100)
    varied = measure(tokens, Predictions(nats, rng.uniform(size=100) < confidence, confidence), tokens.headline)
    same = measure(tokens, by_hand([1.0, 2, 3, 4, 5] * 20, [0, 1, 0, 1, 0] * 20, [0.3] * 100), tokens.headline)
    assert varied is not None and same is not None
    for estimate in varied.estimates.values():
        assert estimate.low is not None and estimate.high is not None
        assert estimate.low <= estimate.value <= estimate.high and estimate.low < estimate.high
    for estimate in same.estimates.values():
        assert (estimate.low, estimate.high) == pytest.approx((estimate.value, estimate.value))


def test_a_uniform_model_costs_log_v() -> None:
    tokens = columns()
    for predictions in (
        predict(policy(uniform=True), POOL, tokens),
        predictions_from(lambda row: np.full(V, 1 / V), tokens),
    ):
        found = measure(tokens, predictions, tokens.headline)
        assert found is not None
        assert found.estimates["env_ce"].value == pytest.approx(math.log(V), abs=1e-5)
        size = sum(span.output_bytes for spans in POOL.spans for span in spans)
        expected = tokens.headline.sum() * math.log2(V) / size
        assert found.estimates["env_bits_per_byte"].value == pytest.approx(expected, rel=1e-6)


def test_values_by_hand() -> None:
    tokens = replace(plain([0] * 5 + [1] * 3, [2] * 5 + [1, 2, 3]), span=np.array([0] * 4 + [1] * 4))
    predictions = by_hand([0.5, 1.0, 1.0, 0.5, 0.25, 0.25, 0.25, 0.25], [0, 1, 0, 0, 1, 1, 0, 0], [0.5] * 8)
    assert values_of(tokens, predictions, tokens.headline) == {
        "env_ce": 0.5,
        "env_bits_per_byte": pytest.approx(4.0 / math.log(2) / 16),
        "token_accuracy": 3 / 8,
    }
    assert values_of(tokens, predictions, ~tokens.headline) == {}


def test_a_measure_is_its_value_with_an_interval() -> None:
    tokens = columns(POOL, ("cat b", "cat: b: no such file\n"))
    predictions = predict(policy(), POOL, tokens)
    for _, _, chosen in groups(tokens):
        found, values = measure(tokens, predictions, chosen), values_of(tokens, predictions, chosen)
        assert found is not None
        for name, value in values.items():
            estimate = found.estimates[name]
            assert estimate.value == value
            assert estimate.low is None or estimate.high is None or estimate.low <= value <= estimate.high


def test_only_the_roles_that_are_asked_for_are_measured() -> None:
    outputs = tokens_of(POOL, (), TOKENIZER, (Role.ENV_OUTPUT,))
    both, scorer = columns(), policy()
    chosen = both.role == "env_output"
    assert set(outputs.role) == {"env_output"} and outputs.index.tolist() == both.index[chosen].tolist()
    found, expected = (predict(scorer, POOL, tokens) for tokens in (outputs, both))
    assert found.nats == pytest.approx(expected.nats[chosen], rel=1e-5)


def test_confidence_is_the_probability_of_the_most_probable_token() -> None:
    tokens, scorer = columns(), policy()
    predictions = predict(scorer, POOL, tokens)
    with torch.no_grad():
        for row in range(0, len(tokens), 7):
            ids = POOL.trajectories[tokens.trajectory[row]].token_ids
            hidden = scorer.model(torch.tensor([ids]))[0, tokens.index[row] - 1]
            probability_V = torch.softmax(hidden @ scorer.model.lm_head_VH.T, dim=-1)
            assert predictions.confidence[row] == pytest.approx(float(probability_V.max()), rel=1e-4)
            assert predictions.nats[row] == pytest.approx(-math.log(probability_V[tokens.token_id[row]]), rel=1e-4)
            assert predictions.correct[row] == (int(probability_V.argmax()) == tokens.token_id[row])


def test_a_difference_is_paired_by_trajectory() -> None:
    tokens = plain([0, 1, 2], [1, 1, 1])
    first, second = (by_hand(nats, [0] * 3, [0.5] * 3) for nats in ([1.0, 10.0, 100.0], [0.5, 9.5, 99.5]))
    found = env_ce_difference(tokens, first, second, tokens.headline)
    assert found is not None and (found.value, found.low, found.high) == (-0.5, -0.5, -0.5)
    assert env_ce_difference(tokens, first, second, ~tokens.headline) is None


@pytest.mark.parametrize("novel", [False, True])
def test_a_report_without_novel_pairs_has_env_ce_over_the_seen_ones(novel: bool) -> None:
    tokens = tokens_of(POOL, () if novel else set(POOL.pairs), TOKENIZER)
    predictions = {"heldout": predict(policy(), POOL, tokens)}
    brief, detailed = (
        report_policy("r", "m", 1, predictions, {"heldout": tokens}, {}, (), detailed=wanted)
        for wanted in (False, True)
    )
    plain = brief.plain({"heldout": 0})
    assert (plain["heldout/env_ce"] is not None) is novel
    if novel:
        assert plain["heldout/env_ce_seen"] is None
    else:
        assert plain["heldout/env_ce_seen"] == detailed.plain({"heldout": 0})["heldout/env_ce_seen"] > 0
