"""The built-in model: causal, independent of padding, and equal with and without a KV cache.

Shapes: B sequences, T tokens, H hidden.
"""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from echo_cli.models.tiny import KVCache, TinyConfig, TinyModel

torch.set_num_threads(1)

VOCABULARY = 40
CONFIG = TinyConfig(VOCABULARY, hidden=32, layers=2, heads=4, max_length=160)


def random_model(seed: int = 0, config: TinyConfig = CONFIG) -> TinyModel:
    """Return a model with all weights random: `init_weights` makes residual outputs and the convolution no-ops."""
    generator = torch.Generator().manual_seed(seed)
    model = TinyModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.requires_grad_(False)


MODEL = random_model()


def cache_for(batch: int) -> KVCache:
    return KVCache(CONFIG, batch, torch.device("cpu"), torch.float32)


def tokens(count: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(VOCABULARY) for _ in range(count)]


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


# --- forward ---------------------------------------------------------------------------------------------------------


def test_every_layer_and_the_order_of_tokens_matter() -> None:
    ids_BT = torch.tensor([tokens(12)])
    hidden_BTH = MODEL(ids_BT)
    assert hidden_BTH.shape == (1, 12, 32)
    assert not torch.allclose(hidden_BTH[0, -1], MODEL(ids_BT.flip(1).roll(-1, 1))[0, -1], atol=1e-2)
    for block in MODEL.blocks:
        saved = block.out.weight.clone()
        block.out.weight.zero_()
        changed = MODEL(ids_BT)
        block.out.weight.copy_(saved)
        assert not torch.allclose(hidden_BTH, changed, atol=1e-2)


@given(st.integers(2, 20), st.integers(0, 19), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_future_and_padding_change_nothing_before_them(length: int, cut: int, seed: int) -> None:
    cut = min(cut, length)
    ids = tokens(length, seed)
    other = ids[:cut] + tokens(length - cut + 5, seed + 1)
    one, two = MODEL(torch.tensor([ids]))[0, :cut], MODEL(torch.tensor([other]))[0, :cut]
    assert_close(one, two)


def test_a_sequence_does_not_see_its_neighbours() -> None:
    rows = [tokens(9, 1), tokens(9, 2), tokens(9, 3)]
    together = MODEL(torch.tensor(rows))
    for row, ids in enumerate(rows):
        assert_close(together[row], MODEL(torch.tensor([ids]))[0])


# --- extend: the same as forward --------------------------------------------------------------------------------------


@st.composite
def chunkings(draw: st.DrawFn) -> list[list[int]]:
    """Draw the chunk lengths of B sequences, which all have the same number of chunks."""
    batch, chunks = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    lengths = st.lists(st.integers(1, 9), min_size=chunks, max_size=chunks)
    return draw(st.lists(lengths, min_size=batch, max_size=batch))


@given(chunkings(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_extend_in_any_chunks_equals_forward(lengths: list[list[int]], seed: int) -> None:
    draw = random.Random(seed)
    rows = [tokens(sum(chunks), seed + row) for row, chunks in enumerate(lengths)]
    cache = cache_for(len(rows))
    starts = [0] * len(rows)
    for turn in range(len(lengths[0])):
        counts = [chunks[turn] for chunks in lengths]
        width = max(counts) + draw.randrange(3)
        # Right padding is arbitrary: it must not change this output or a later one.
        ids_BT = torch.tensor(
            [
                ids[start : start + count] + [draw.randrange(VOCABULARY) for _ in range(width - count)]
                for ids, start, count in zip(rows, starts, counts, strict=True)
            ]
        )
        hidden_BTH = MODEL.extend(ids_BT, torch.tensor(starts), cache)
        for row, (ids, start, count) in enumerate(zip(rows, starts, counts, strict=True)):
            # One token more than the sequence, since later tokens must not matter.
            expected_TH = MODEL(torch.tensor([[*ids, 0]]))[0, start : start + count]
            assert_close(hidden_BTH[row, :count], expected_TH)
        starts = [start + count for start, count in zip(starts, counts, strict=True)]


def test_one_token_at_a_time_beyond_the_first_reservation() -> None:
    ids = tokens(150)
    cache = cache_for(1)
    hidden = [MODEL.extend(torch.tensor([[token]]), torch.tensor([i]), cache)[0, 0] for i, token in enumerate(ids)]
    assert_close(torch.stack(hidden), MODEL(torch.tensor([ids]))[0])


@given(st.permutations(range(4)), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_keep_leaves_the_kept_rows_as_they_were(order: list[int], count: int) -> None:
    kept = order[:count]
    rows = [tokens(8, seed) for seed in range(4)]
    cache = cache_for(4)
    MODEL.extend(torch.tensor([ids[:5] for ids in rows]), torch.zeros(4, dtype=torch.int64), cache)
    cache.keep(torch.tensor(kept))
    hidden_BTH = MODEL.extend(torch.tensor([rows[row][5:] for row in kept]), torch.full((count,), 5), cache)
    for position, row in enumerate(kept):
        assert_close(hidden_BTH[position], MODEL(torch.tensor([rows[row]]))[0, 5:])


# --- Weights ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed * 17)  # the global generator must not matter
        model = TinyModel(CONFIG)
        model.init_weights(torch.Generator().manual_seed(seed))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_fresh_weights_are_finite_and_can_learn() -> None:
    model = TinyModel(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    ids_BT = torch.tensor([tokens(10)])
    logits = model(ids_BT) @ model.lm_head_VH.T
    assert torch.isfinite(logits).all()
    torch.nn.functional.cross_entropy(logits[0, :-1], ids_BT[0, 1:]).backward()
    assert model.lm_head_VH.grad is not None and model.lm_head_VH.grad.abs().sum() > 0


def test_the_head_is_the_embedding_and_is_stored_once() -> None:
    model = TinyModel(CONFIG)
    assert model.lm_head_VH is model.embedding.weight
    assert not any("lm_head" in name or "rotations" in name for name in model.state_dict())


def test_a_sequence_beyond_the_positions_is_refused() -> None:
    with pytest.raises((RuntimeError, IndexError)):
        MODEL(torch.zeros(1, CONFIG.max_length + 1, dtype=torch.int64))
