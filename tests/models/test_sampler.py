"""Sampling: behaviour logprobs equal a teacher-forced replay for any batch, temperature and turn.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_cli.errors import EchoError
from echo_cli.models.sampler import CachedSampler, _draw, _groups
from echo_cli.models.tiny import TinyConfig, TinyModel

torch.set_num_threads(1)

VOCABULARY, STOP = 12, (3,)
CONFIG = TinyConfig(VOCABULARY, hidden=32, layers=2, heads=4, max_length=160)


def random_model(seed: int = 0) -> TinyModel:
    generator = torch.Generator().manual_seed(seed)
    model = TinyModel(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.requires_grad_(False)


MODEL = random_model()


def sampler(batch: int, temperature: float = 1.0, seed: int = 0, model: TinyModel = MODEL) -> CachedSampler:
    return CachedSampler(model, range(batch), temperature, STOP, seed)


def context(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(VOCABULARY) for _ in range(count)]


def replay(before: Sequence[int], sampled: Sequence[int], temperature: float) -> list[float]:
    """Return teacher-forced logprobs of `sampled` after `before`, from one forward pass over a single sequence."""
    ids = [*before, *sampled]
    logits_TV = MODEL(torch.tensor([ids]))[0] @ MODEL.lm_head_VH.T / temperature
    logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
    return [float(logprobs_TV[i - 1, ids[i]]) for i in range(len(before), len(ids))]


# --- Behaviour logprobs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_sampling_logprobs_equal_a_replay_over_several_turns(temperature: float) -> None:
    batch = 5
    drawn = sampler(batch, temperature)
    sequences = [context(3 + 4 * row, row) for row in range(batch)]
    drawn.append(sequences)
    for turn in range(4):
        for row, (ids, logprobs) in enumerate(drawn.sample(max_tokens=9)):
            assert logprobs == pytest.approx(replay(sequences[row], ids, temperature), abs=1e-5)
            sequences[row] = [*sequences[row], *ids]
        more = [context((row * 3 + turn) % 7, 100 + row) for row in range(batch)]  # empty for some rows
        drawn.append(more)
        sequences = [[*ids, *new] for ids, new in zip(sequences, more, strict=True)]


def test_at_temperature_zero_the_most_probable_token_is_certain() -> None:
    before = context(5, 1)
    drawn = sampler(1, 0.0)
    drawn.append([before])
    ((ids, logprobs),) = drawn.sample(max_tokens=6)  # type: ignore[misc]
    assert logprobs == [0.0] * len(ids)
    for end, token in enumerate(ids):
        logits_TV = MODEL(torch.tensor([[*before, *ids[:end]]]))[0] @ MODEL.lm_head_VH.T
        assert token == int(logits_TV[-1].argmax())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_greedy_refuses_logits_that_are_no_numbers(bad: float) -> None:
    model = random_model()
    torch.nn.init.constant_(model.lm_head_VH, bad)
    drawn = sampler(1, 0.0, model=model)
    drawn.append([[1, 2]])
    with pytest.raises(EchoError, match="not finite"):
        drawn.sample(max_tokens=2)


@given(st.integers(0, 10_000), st.sampled_from([1.0, 0.7]))
@settings(max_examples=25, deadline=None)
def test_rows_are_independent_of_their_batch_and_of_who_left_it(seed: int, temperature: float) -> None:
    draw = random.Random(seed)
    sequences = [context(draw.randrange(1, 12), seed + row) for row in range(4)]
    drawn = sampler(4, temperature, seed)
    drawn.append(sequences)
    for turn in range(3):
        for row, (ids, logprobs) in enumerate(drawn.sample(max_tokens=6)):
            # The replay does not see the other rows.
            assert logprobs == pytest.approx(replay(sequences[row], ids, temperature), abs=1e-5)
            sequences[row] = [*sequences[row], *ids]
        kept = sorted(draw.sample(range(len(sequences)), max(1, len(sequences) - turn)))
        drawn.keep(kept)
        more = [context(draw.randrange(5), seed + 50 + row) for row in kept]
        drawn.append(more)
        sequences = [[*sequences[row], *new] for row, new in zip(kept, more, strict=True)]


def test_keeping_nobody_is_fine() -> None:
    drawn = sampler(2)
    drawn.append([[1], [2]])
    drawn.sample(2)
    drawn.keep([])


# --- Where an action ends --------------------------------------------------------------------------------------------


def test_an_action_ends_with_its_first_stop_token_or_at_the_cap() -> None:
    drawn = sampler(200, seed=1)
    drawn.append([context(4, row) for row in range(200)])
    samples = drawn.sample(max_tokens=8)
    stopped = [ids for ids, _ in samples if ids[-1] in STOP]
    cut = [ids for ids, _ in samples if ids[-1] not in STOP]
    assert stopped and cut
    assert all(STOP[0] not in ids[:-1] for ids, _ in samples)
    assert all(1 <= len(ids) <= 8 for ids in stopped)
    assert all(len(ids) == 8 for ids in cut)
    assert all(len(ids) == len(logprobs) for ids, logprobs in samples)


def test_one_token_at_most() -> None:
    drawn = sampler(3)
    drawn.append([[1], [2, 4], [5]])
    assert [len(ids) for ids, _ in drawn.sample(max_tokens=1)] == [1, 1, 1]


# --- Going on while others finish ------------------------------------------------------------------------------------


@pytest.mark.parametrize("refill", [0.1, 0.25, 0.5])
def test_a_call_ends_once_a_share_has_finished_and_the_others_go_on(refill: float) -> None:
    batch, turns, cap, stops = 12, 3, 14, (1, 3, 5)
    drawn = CachedSampler(MODEL, range(batch), 1.0, stops, 2, refill)
    sequences = [context(2 + row, row) for row in range(batch)]
    drawn.append(sequences)
    left, ready, waited = [turns] * batch, list(range(batch)), 0
    while ready:
        more: list[list[int]] = [[] for _ in range(batch)]
        samples = drawn.sample(cap, ready)
        finished = [row for row, sample in zip(ready, samples, strict=True) if sample is not None]
        assert len(finished) >= refill * len(ready)
        waited += len(ready) - len(finished)
        for row, sample in zip(ready, samples, strict=True):
            if sample is None:
                continue
            ids, logprobs = sample
            assert (ids[-1] in stops or len(ids) == cap) and not set(stops) & set(ids[:-1]) and len(ids) <= cap
            assert logprobs == pytest.approx(replay(sequences[row], ids, 1.0), abs=1e-5)
            left[row] -= 1
            more[row] = context(row % 4, 70 + row)
            sequences[row] = [*sequences[row], *ids, *more[row]]
        drawn.append(more)
        ready = [row for row in ready if left[row]]
    assert waited > 0  # otherwise no row continued while another waited


def test_a_row_that_is_being_sampled_survives_those_that_leave_and_join() -> None:
    drawn = CachedSampler(MODEL, range(6), 1.0, (1, 3, 5), 3, refill=0.1)
    sequences = [context(3 + row, row) for row in range(6)]
    drawn.append(sequences)
    samples = drawn.sample(12)
    going = [row for row, sample in enumerate(samples) if sample is None]
    assert going and len(going) < 6
    drawn.keep(going)
    drawn.add([6])
    drawn.append([[]] * len(going) + [context(5, 9)])
    sequences = [sequences[row] for row in going] + [context(5, 9)]
    rows = list(range(len(sequences)))
    while rows:
        for row, sample in zip(list(rows), drawn.sample(12, rows), strict=True):
            if sample is not None:
                assert sample[1] == pytest.approx(replay(sequences[row], sample[0], 1.0), abs=1e-5)
                rows.remove(row)


def test_rows_of_unlike_lengths_are_prefilled_apart_where_a_pass_costs_less_than_their_padding() -> None:
    lengths = [100, 10, 90, 10]  # padded as one batch 400 tokens, as two groups 220
    assert _groups([0, 1, 2, 3], lengths, 16_384, overhead=64) == [[0, 2], [1, 3]]
    assert _groups([0, 1, 2, 3], lengths, 16_384, overhead=4096) == [[0, 1, 2, 3]]
    assert _groups([0, 1, 2, 3], lengths, 150, overhead=64) == [[0], [2], [1, 3]]
    assert _groups([0, 1, 2, 3], lengths, None, overhead=64) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("cells", [1, 20, 64])
def test_openings_are_computed_in_groups_of_a_bounded_size(cells: int) -> None:
    widths: list[int] = []

    class Watched(TinyModel):
        def extend(self, token_ids_BT, starts_B, cache, rows_B=None):  # type: ignore[no-untyped-def]
            widths.append(token_ids_BT.numel())
            return super().extend(token_ids_BT, starts_B, cache, rows_B)

    model = Watched(CONFIG)
    model.load_state_dict(MODEL.state_dict())
    drawn = CachedSampler(model.requires_grad_(False), range(5), 1.0, STOP, 1, 1.0, cells)
    sequences = [context(4 + 9 * row, row) for row in range(5)]
    drawn.append(sequences)
    for row, (ids, logprobs) in enumerate(drawn.sample(6)):
        assert logprobs == pytest.approx(replay(sequences[row], ids, 1.0), abs=1e-5)
    assert max(widths) <= max(cells, 4 + 9 * 4)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_tokens_can_be_taken_back(count: int) -> None:
    drawn = sampler(2, seed=4)
    sequences = [context(6, 1), context(9, 2)]
    drawn.append(sequences)
    (ids, _), (others, _) = drawn.sample(7)
    shorter = [*sequences[0], *ids][:-count] if count <= len(ids) else [*sequences[0], *ids][: -len(ids)]
    drawn.rewind(0, min(count, len(ids)))
    drawn.append([[5, 6], []])
    first, second = drawn.sample(5)
    assert first[1] == pytest.approx(replay([*shorter, 5, 6], first[0], 1.0), abs=1e-5)
    assert second[1] == pytest.approx(replay([*sequences[1], *others], second[0], 1.0), abs=1e-5)


# --- Draws by seed, rollout and position -----------------------------------------------------------------------------


def turns_of(rollouts: Sequence[int], refill: float, cells: int | None, late: Sequence[int] = ()) -> dict[int, list]:
    """Return three actions of each rollout; the rollouts `late` join the batch after a call."""
    drawn = CachedSampler(MODEL, rollouts, 1.0, (1, 3, 5), 11, refill, cells)
    rows, found = list(rollouts), {rollout: [] for rollout in (*rollouts, *late)}
    drawn.append([context(4 + rollout, rollout) for rollout in rollouts])
    while rows:
        samples = drawn.sample(12)
        for rollout, sample in zip(rows, samples, strict=True):
            found[rollout] += [] if sample is None else [sample[0]]
        kept = [row for row, rollout in enumerate(rows) if len(found[rollout]) < 3]
        more = [[] if samples[row] is None else context(rows[row] % 3, len(found[rows[row]])) for row in kept]
        drawn.keep(kept)
        drawn.add(late)
        rows = [*(rows[row] for row in kept), *late]
        drawn.append([*more, *(context(4 + rollout, rollout) for rollout in late)])
        late = ()
    return found


def test_who_is_in_a_batch_and_when_does_not_change_what_is_sampled() -> None:
    alone = {rollout: turns_of([rollout], 1.0, None)[rollout] for rollout in range(8)}
    assert len({str(actions) for actions in alone.values()}) == 8
    assert turns_of(range(8), 1.0, None) == alone
    assert turns_of(range(8), 0.1, None) == alone
    assert turns_of([5, 0, 7, 2], 0.25, 20, late=[6, 1, 4, 3]) == alone


def test_the_draws_of_a_rollout_are_its_stream_of_uniform_numbers_by_position() -> None:
    model = random_model()
    torch.nn.init.zeros_(model.lm_head_VH)  # every token has probability 1 / 12
    drawn = CachedSampler(model, [4], 1.0, (), 9)
    drawn.append([[1, 2]])
    ((first, _),) = drawn.sample(5)  # type: ignore[misc]
    drawn.append([[6, 7, 8]])
    ((second, _),) = drawn.sample(6)  # type: ignore[misc]
    stream = np.random.Generator(np.random.Philox(key=np.array([9, 4], dtype=np.uint64))).random(11)
    assert [*first, *second] == [int(uniform * VOCABULARY) for uniform in stream]


def test_the_same_seed_samples_the_same_tokens() -> None:
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(drawn))  # the global generator must not matter
        one = sampler(6, seed=seed)
        one.append([context(5, row) for row in range(6)])
        drawn.append([one.sample(10), one.sample(10)])
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_rows_with_the_same_context_differ() -> None:
    drawn = sampler(20)
    drawn.append([[1, 2]] * 20)
    assert len({tuple(ids) for ids, _ in drawn.sample(8)}) > 10


def test_a_low_temperature_takes_the_most_probable_token() -> None:
    drawn = sampler(1, temperature=1e-4)
    drawn.append([[1, 2, 4]])
    ((ids, logprobs),) = drawn.sample(6)
    before = [1, 2, 4]
    for token, logprob in zip(ids, logprobs, strict=True):
        logits_V = MODEL(torch.tensor([before]))[0, -1] @ MODEL.lm_head_VH.T
        assert token == int(logits_V.argmax())
        assert logprob == pytest.approx(0.0, abs=1e-4)
        before.append(token)


# --- The draw --------------------------------------------------------------------------------------------------------


def uniform_B1(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_draws_follow_the_probabilities() -> None:
    p = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.15, 0.1, 0.05, 0.0])
    count = 20_000
    chosen = _draw(p.expand(count, -1), uniform_B1(count, 0))[:, 0]
    seen = torch.bincount(chosen, minlength=len(p)).double()
    positive = p > 0
    assert float(seen[~positive].sum()) == 0
    expected = p[positive].double() * count
    chi_square = float(((seen[positive] - expected) ** 2 / expected).sum())
    assert chi_square < 18.5  # 4 degrees of freedom, p = 0.001


@given(st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-6, 0.3, 1.0]), min_size=1, max_size=12), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_a_token_of_probability_zero_is_never_drawn(weights: list[float], seed: int) -> None:
    if sum(weights) == 0:
        weights[-1] = 1.0
    p = torch.tensor(weights, dtype=torch.float64)
    chosen = _draw((p / p.sum()).expand(64, -1), uniform_B1(64, seed))
    assert chosen.shape == (64, 1)
    assert (p[chosen[:, 0]] > 0).all()


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.5, 3), (1 - 2**-53, 3)])
def test_the_extremes_of_the_uniform_land_on_tokens_of_positive_probability(uniform: float, token: int) -> None:
    p = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    assert _draw(p, torch.tensor([[uniform]], dtype=torch.float64)).tolist() == [[token]]


def test_a_distribution_that_does_not_sum_to_one_is_normalised() -> None:
    chosen = _draw(torch.tensor([[0.2, 0.2]]).expand(4000, -1), uniform_B1(4000, 0))
    assert abs(float(chosen.double().mean()) - 0.5) < 0.05


def test_logits_that_are_not_finite_are_an_error() -> None:
    model = random_model()
    model.embedding.weight[5].fill_(float("nan"))
    drawn = sampler(1, model=model)
    drawn.append([[1, 2]])
    with pytest.raises(EchoError, match="not finite"):
        drawn.sample(2)


def test_sequences_of_any_length_that_fit_one_prefill_stay_in_their_rows() -> None:
    drawn = CachedSampler(MODEL, range(3), 1.0, STOP, 0, prefill_cells=100)
    rows = [context(count, count) for count in (2, 9, 5)]
    drawn.append(rows)
    for row, sample in zip(rows, drawn.sample(4), strict=True):
        assert sample is not None
        assert sample[1] == pytest.approx(replay(row, sample[0], 1.0), abs=1e-5)
