"""Baselines: probabilities sum to one, worked examples, and each baseline improves with information."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from evaluation.test_measures import POOL, TOKENIZER, V, columns, transcript

from echo_cli.evaluation import baselines as baseline
from echo_cli.evaluation.baselines import (
    MATCH_BUCKETS,
    compress,
    compressors,
    copy_predictions,
    exchange_tokens,
    fit_copying,
    fit_ngram,
    ngram_predictions,
)
from echo_cli.evaluation.measures import Predictions, Tokens, measure, tokens_of
from echo_cli.runs.pools import pool_of

OWN = sorted(POOL.pairs)


def bits(tokens: Tokens, predictions: Predictions) -> float:
    found = measure(tokens, predictions, tokens.headline)
    assert found is not None
    return found.estimates["env_bits_per_byte"].value


def test_witten_bell_by_hand() -> None:
    # V = 4, the output is "0 0 1" after the command "2".
    model = fit_ngram([([2], [0, 0, 1])], order=2, vocab_size=4)
    # Empty context: c = 3 tokens, t = 2 distinct.
    unigram = np.array([(2 + 2 / 4) / 5, (1 + 2 / 4) / 5, (2 / 4) / 5, (2 / 4) / 5])
    assert model.distribution([]) == pytest.approx(unigram)
    # After 0: one 0 and one 1; after 2: one 0; 3 was never seen, so the unigram remains.
    assert model.distribution([3, 0]) == pytest.approx((np.array([1, 1, 0, 0]) + 2 * unigram) / 4)
    assert model.distribution([2]) == pytest.approx((np.array([1, 0, 0, 0]) + unigram) / 2)
    assert model.distribution([3]) == pytest.approx(unigram)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_ngram_probabilities_are_positive_and_sum_to_one(order: int) -> None:
    exchanges = exchange_tokens(OWN, TOKENIZER)
    model = fit_ngram(exchanges, order, V)
    for command_ids, output_ids in exchanges:
        for end in range(len(output_ids)):
            probability_V = model.distribution([*command_ids, *output_ids][: len(command_ids) + end])
            assert probability_V.sum() == pytest.approx(1)
            assert (probability_V > 0).all()


def test_without_observations_an_ngram_is_uniform() -> None:
    assert fit_ngram([], 5, 8).distribution([1, 2]) == pytest.approx(np.full(8, 1 / 8))


def test_a_longer_context_helps_on_what_was_observed() -> None:
    tokens, exchanges = columns(), exchange_tokens(OWN, TOKENIZER)
    unigram, bigram, ngram = (bits(tokens, ngram_predictions(fit_ngram(exchanges, n, V), tokens)) for n in (1, 2, 5))
    assert ngram < bigram < unigram < np.log2(V)


def test_an_ngram_looks_at_the_exchange_and_not_beyond() -> None:
    # The same exchange after another exchange has the same predictions, including its first token.
    alone, after = (
        pool_of([transcript(*exchanges, ("cat b", "beta\n", "", 0))]) for exchanges in ([], [("ls", "zeta\n", "", 0)])
    )
    model = fit_ngram(exchange_tokens([("cat b", "beta\n"), ("ls", "zeta\n")], TOKENIZER), 5, V)
    nats = []
    for pool in (alone, after):
        tokens = tokens_of(pool, (), TOKENIZER)
        nats.append(ngram_predictions(model, tokens).nats[tokens.command == "cat"])
    assert nats[0] == pytest.approx(nats[1])


def test_the_copying_mass_by_hand() -> None:
    tokens = columns()
    output = tokens.role == "env_output"
    mass = fit_copying(tokens)
    inside = output & (tokens.match_length == 1)
    hits = (tokens.match_token == tokens.token_id)[inside].sum()
    assert mass[0] == pytest.approx((hits + 0.5) / (inside.sum() + 1))
    assert len(mass) == len(MATCH_BUCKETS) and ((mass > 0) & (mass < 1)).all()
    assert fit_copying(tokens_of(pool_of([]), (), TOKENIZER)) == pytest.approx(0.5)


def test_copying_puts_its_mass_on_the_match_and_the_rest_on_the_unigram() -> None:
    pool = pool_of([transcript(("cat a", "12 34 12 34\n", "", 0))])
    tokens = tokens_of(pool, (), TOKENIZER)
    unigram = fit_ngram(exchange_tokens([("cat a", "12 34\n")], TOKENIZER), 1, V)
    mass = np.array([0.3, 0.6, 0.7, 0.8, 0.9])
    found, unigram_V = copy_predictions(mass, unigram, tokens), unigram.distribution([])
    for row in range(len(tokens)):
        token, length = tokens.token_id[row], tokens.match_length[row]
        p = unigram_V[token]
        if length:
            share = mass[np.searchsorted(MATCH_BUCKETS, length, side="right") - 1]
            copied = tokens.match_token[row]
            p = share if copied == token else (1 - share) * p / (1 - unigram_V[copied])
        assert found.nats[row] == pytest.approx(-np.log(p))
    assert (tokens.match_length == 0).any() and (tokens.match_length > 1).any()


def test_compressors_know_more_with_observations() -> None:
    tokens, observed = columns(), "".join(f"{command}\n{output}" for command, output in OWN).encode()
    found = {name: compress(size, tokens, tokens.headline, TOKENIZER) for name, size in compressors(observed).items()}
    zstd = importlib.util.find_spec("zstandard") is not None
    assert list(found) == ["gzip", "gzip + observations", *(["zstd", "zstd + observations"] if zstd else [])]
    value = {name: measures.estimates["env_bits_per_byte"].value for name, measures in found.items() if measures}
    assert value["gzip + observations"] < value["gzip"]
    assert value.get("zstd + observations", 0) < value.get("zstd", 1)
    assert all(set(measures.estimates) == {"env_bits_per_byte"} for measures in found.values() if measures)
    size = sum(span.output_bytes for spans in POOL.spans for span in spans)
    assert {measures.bytes for measures in found.values() if measures} == {size}


def test_a_compressor_is_charged_for_the_text_and_not_for_its_framing() -> None:
    observed = b"cat a\nalpha: 12\n"
    sizes = compressors(observed)
    assert {size(b"") for size in sizes.values()} == {0}
    # One literal of the fixed code: 8 or 9 bits besides the 10 of an empty block; zstd stores the byte uncompressed.
    assert {name: size(b"a") for name, size in sizes.items()} == dict.fromkeys(sizes, 1)
    # With a dictionary, a text costs about as much as it adds to the stream of both.
    text = b"alpha: 13\n"
    both, known = (compressors(b"")["gzip"](part) for part in (observed + text, observed))
    assert abs(sizes["gzip + observations"](text) - (both - known)) <= 1


def test_a_compressor_sees_the_chosen_outputs_of_a_trajectory_as_one_text() -> None:
    tokens, texts = columns(), []

    def size(text: bytes) -> int:
        texts.append(text.decode())
        return 2 * len(text)

    found = compress(size, tokens, tokens.headline, TOKENIZER)
    assert texts == ["alpha: 12\n日本\ncat: b: no such file\n", "x: 7\nwarn\n"]
    assert found is not None and found.estimates["env_bits_per_byte"].value == 16
    assert compress(size, tokens, np.zeros(len(tokens), dtype=np.bool_), TOKENIZER) is None


def test_without_zstandard_its_rows_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "has_zstd", lambda: False)
    assert list(compressors(b"")) == ["gzip", "gzip + observations"]
