"""A Hugging Face model behind the policy seam gives transformers' numbers, cached or not, with or without an adapter.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import errno
import os
import random
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import CPU, LORA, RENDERER, VOCABULARY, dense, load, make_qwen3
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_lm import A, C, E, episode
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from echo_cli.config.model import ModelConfig
from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.schema import OptimConfig
from echo_cli.errors import EchoError
from echo_cli.models.hf.kv_cache import RowCache, cache_argument
from echo_cli.models.hf.loading import hf_folder, load_hf_model
from echo_cli.models.hf.model import HfModel
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.sampler import CachedSampler
from echo_cli.objective.step import weigh_step
from echo_cli.trajectory import Role, Trajectory

torch.set_num_threads(1)

STOP = (3, 4, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def model(folder: Path) -> HfModel:
    return load(folder)


def tokens(count: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(VOCABULARY) for _ in range(count)]


def assert_close(one: Tensor, other: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=tolerance)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_passed_under_the_decoders_own_name(name: str, folder: Path, model: HfModel) -> None:
    other = load(folder).causal_lm
    theirs, its_name = other.base_model.forward, cache_argument(other.base_model)
    if name == "cache":
        other.base_model.forward = lambda cache=None, **rest: theirs(**{its_name: cache}, **rest)
    else:
        other.base_model.forward = lambda past_key_values=None, **rest: theirs(**{its_name: past_key_values}, **rest)
    renamed = HfModel(other, ModelConfig(kind="hf", path=str(folder)), torch.float32)
    ids, starts = torch.tensor([tokens(6)]), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        for one in (model, renamed):
            cache = one.new_cache(1)
            assert_close(one.extend(ids[:, :4], starts, cache), model(ids[:, :4]))
            assert_close(one.extend(ids[:, 4:], starts + 4, cache), model(ids)[:, 4:])
        assert_close(renamed(ids), model(ids))


# --- The loss and its gradient, against transformers -----------------------------------------------------------------

OBJECTIVE = ObjectiveSettings(world_model_coeff=0.3, kl_coeff=0.1)
COEFF, TEMPERATURE = 0.3, 0.7


def trajectories() -> list[Trajectory]:
    """Return two groups of two rollouts of different lengths, and a scripted rollout."""
    draw, made = random.Random(0), []
    for number, length in enumerate((9, 21, 14, 30, 17)):
        roles = [C, C, *draw.choices([A, A, E], k=length)]
        ids = tokens(len(roles), seed=number)
        scripted = number == 4
        made.append(
            episode(
                roles,
                token_ids=ids,
                reward=float(number % 2),
                group_id="ab"[number // 2 % 2],
                world_model_only=scripted,
                seed=number,
            )
        )
    return made


def logprobs_of(network: nn.Module, trajectory: Trajectory, temperature: float) -> Tensor:
    """Return logprobs, shape [T - 1], of one unpadded sequence through transformers' causal LM."""
    ids = torch.tensor([trajectory.token_ids])
    logits_TV = network(input_ids=ids).logits[0, :-1] / temperature
    return logits_TV.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


def dense_loss(network: nn.Module, reference: nn.Module, played: Sequence[Trajectory]) -> Tensor:
    """Return ECHO's loss as in its paper, rollout by rollout: clipped surrogate, KL and λ · CE."""
    rewards = {"a": (0.0, 1.0), "b": (0.0, 1.0)}
    actions = sum(t.count(Role.ACTION) for t in played if not t.world_model_only)
    loss = torch.zeros(())
    for t in played:
        roles = [segment.role for segment in t.segments][1:]
        if not t.world_model_only:
            mean, deviation = sum(rewards[t.group_id]) / 2, 0.5**0.5
            advantage = (t.reward - mean) / (deviation + 1e-6)
            behaviour = torch.tensor([s.logprobs[0] for s in t.segments if s.logprobs is not None])
            chosen = torch.tensor([role is A for role in roles])
            new = logprobs_of(network, t, TEMPERATURE)[chosen]
            old = logprobs_of(reference, t, TEMPERATURE)[chosen].detach()
            ratio = (new - behaviour).exp()
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
            difference = old - new
            loss = loss - (surrogate - 0.1 * (difference.exp() - difference - 1)).sum() / actions
        observed = torch.tensor([role is E for role in roles])
        loss = loss - COEFF * logprobs_of(network, t, 1.0)[observed].sum() / (len(played) * int(observed.sum()))
    return loss


def step_of(model: HfModel, played: Sequence[Trajectory]) -> tuple[float, TorchPolicy]:
    """Return the loss of a step in several micro-batches; the gradient is left in the parameters."""
    policy = TorchPolicy(model, RENDERER, OptimConfig(token_budget=70), CPU)
    policy.keep_reference()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the reference, so that the KL is not 0
            if parameter.requires_grad:
                parameter.mul_(1.05)
    metrics = policy.forward_backward(weigh_step(played, OBJECTIVE, COEFF, TEMPERATURE))
    return metrics["loss"].total, policy


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "words",
    [
        {},
        {"attention": "eager"},
        {"gradient_checkpointing": True},
        {"lora": LORA},
        {"lora": LORA, "gradient_checkpointing": True},
    ],
    ids=["full", "eager", "checkpointed", "lora", "lora-checkpointed"],
)
def test_the_loss_and_its_gradient_equal_a_dense_computation_in_transformers(
    words: dict[str, Any], tied: bool, folder: Path, untied: Path, tmp_path: Path
) -> None:
    base = folder if tied else untied
    model, played = load(base, **words), trajectories()
    reference = dense(model, tmp_path / "before", base) if "lora" not in words else load(base).causal_lm
    loss, _ = step_of(model, played)
    network = dense(model, tmp_path / "after", base)
    expected = dense_loss(network, reference, played)
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    expected.backward()
    theirs = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    ours = {name: p.grad for name, p in model.model.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert gradient is not None
        assert_close(gradient, theirs[name], 1e-5)


@pytest.mark.parametrize("words", [{}, {"lora": LORA}], ids=["full", "lora"])
def test_scores_equal_transformers_token_by_token(words: dict[str, Any], untied: Path, tmp_path: Path) -> None:
    model, played = load(untied, **words), trajectories()
    network = dense(model, tmp_path / "saved", untied)
    policy = TorchPolicy(model, RENDERER, OptimConfig(token_budget=70), CPU)
    for trajectory, scores in zip(played, policy.score(played, {E, A}), strict=True):
        wanted = torch.tensor([segment.role in (E, A) for segment in trajectory.segments][1:])
        with torch.no_grad():
            assert_close(scores.logprobs, logprobs_of(network, trajectory, 1.0)[wanted], 1e-5)


# --- The cache -------------------------------------------------------------------------------------------------------


@st.composite
def chunkings(draw: st.DrawFn) -> list[list[int]]:
    """Draw the chunk lengths of B sequences, which all have the same number of chunks."""
    batch, chunks = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    lengths = st.lists(st.integers(1, 40), min_size=chunks, max_size=chunks)
    return draw(st.lists(lengths, min_size=batch, max_size=batch))


@given(chunkings(), st.integers(0, 1000), st.booleans())
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_extend_in_any_chunks_of_any_rows_equals_forward(
    model: HfModel, lengths: list[list[int]], seed: int, together: bool
) -> None:
    draw = random.Random(seed)
    rows = [tokens(sum(chunks), seed + row) for row, chunks in enumerate(lengths)]
    cache = model.new_cache(len(rows))
    starts = [0] * len(rows)
    for turn in range(len(lengths[0])):
        order = list(range(len(rows)))
        if not together:
            draw.shuffle(order)
        split = len(order) if together else draw.randrange(len(order) + 1)
        for group in filter(None, (order[:split], order[split:])):
            counts = [lengths[row][turn] for row in group]
            width = max(counts) + draw.randrange(3)
            # Right padding is arbitrary: it must not change this output or a later one.
            ids_BT = torch.tensor(
                [
                    rows[row][starts[row] : starts[row] + count] + tokens(width - count, draw.randrange(99))
                    for row, count in zip(group, counts, strict=True)
                ]
            )
            starts_B = torch.tensor([starts[row] for row in group])
            hidden_BTH = model.extend(ids_BT, starts_B, cache, None if together else torch.tensor(group))
            for number, (row, count) in enumerate(zip(group, counts, strict=True)):
                whole_TH = model(torch.tensor([rows[row]]))[0]
                assert_close(hidden_BTH[number, :count], whole_TH[starts[row] : starts[row] + count], 1e-4)
        starts = [start + chunks[turn] for start, chunks in zip(starts, lengths, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_may_reach_past_the_last_position(attention: str, tmp_path: Path) -> None:
    model = load(make_qwen3(tmp_path, max_position_embeddings=8), attention=attention)
    rows, cache = [tokens(8, 1), tokens(4, 2)], model.new_cache(2)
    model.extend(torch.tensor([rows[0][:5], [*rows[1][:1], 0, 0, 0, 0]]), torch.tensor([0, 0]), cache)
    hidden_BTH = model.extend(torch.tensor([[*rows[0][5:], 9], [*rows[1][1:], 9]]), torch.tensor([5, 1]), cache)
    for row, count in ((0, 3), (1, 3)):
        whole_TH = model(torch.tensor([rows[row]]))[0]
        assert_close(hidden_BTH[row, :count], whole_TH[-count:], 1e-4)


@torch.no_grad()
def test_a_sequence_ends_where_a_longer_one_would_change_its_rotations(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    model = load(make_qwen3(tmp_path, rope_parameters={**rope, "original_max_position_embeddings": 16}))
    assert model.max_length == 16
    ids = tokens(17)
    before_TH = model(torch.tensor([ids[:8]]))[0]
    assert_close(model(torch.tensor([ids[:16]]))[0, :8], before_TH, 1e-4)
    assert not torch.allclose(model(torch.tensor([ids]))[0, :8], before_TH, atol=0.1)


@torch.no_grad()
def test_keep_and_add_leave_the_kept_rows_as_they_were(model: HfModel) -> None:
    rows = [tokens(9, seed) for seed in range(5)]
    cache = model.new_cache(4)
    model.extend(torch.tensor([ids[:5] for ids in rows[:4]]), torch.zeros(4, dtype=torch.int64), cache)
    cache.keep(torch.tensor([3, 1]))
    cache.add(1)
    ids_BT = torch.tensor([rows[3][5:], rows[1][5:], rows[4][:4]])
    hidden_BTH = model.extend(ids_BT, torch.tensor([5, 5, 0]), cache)
    assert_close(hidden_BTH[0], model(torch.tensor([rows[3]]))[0, 5:], 1e-4)
    assert_close(hidden_BTH[1], model(torch.tensor([rows[1]]))[0, 5:], 1e-4)
    assert_close(hidden_BTH[2], model(torch.tensor([rows[4][:4]]))[0], 1e-4)


def test_a_cache_is_little_larger_than_what_is_in_it() -> None:
    cache, one = RowCache(1, 2, torch.float32), torch.zeros(2, 1, 1, 1)
    for position in range(3000):
        cache.place(torch.tensor([[position], [position]]), None, position + 1)
        cache.layers[0].update(one, one)
        assert cache.layers[0].keys.shape[2] <= max(position + 64, (position + 1) * 9 / 8)


# --- Sampling --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def replay(model: HfModel, before: Sequence[int], sampled: Sequence[int], temperature: float) -> list[float]:
    """Return teacher-forced logprobs of `sampled` after `before`, from one forward pass over a single sequence."""
    ids = [*before, *sampled]
    logprobs_TV = (model.head(model(torch.tensor([ids]))[0]).float() / temperature).log_softmax(-1)
    return [float(logprobs_TV[i - 1, ids[i]]) for i in range(len(before), len(ids))]


@pytest.mark.parametrize(
    ("lora", "prefill", "refill"),
    [(None, None, 1.0), (None, 30, 1.0), (None, None, 0.25), (LORA, 30, 0.25)],
    ids=["at-once", "prefilled-in-groups", "refilled", "lora"],
)
def test_sampling_logprobs_equal_a_replay_with_rows_that_come_go_and_take_back(
    lora: Any, prefill: int | None, refill: float, folder: Path
) -> None:
    model = load(folder, lora=lora)
    draw = random.Random(7)
    drawn = CachedSampler(model, range(4), 0.7, STOP, 3, refill, prefill)
    rows: list[list[int]] = [[] for _ in range(4)]
    running = [False] * 4
    finished = 0
    for turn in range(12):
        if turn in (4, 8):  # one row leaves, two join
            kept = [0, 2, *range(3, len(rows))]
            drawn.keep(kept)
            rows, running = [rows[row] for row in kept] + [[], []], [running[row] for row in kept] + [False] * 2
            drawn.add([turn, turn + 1])
        for row, ids in enumerate(rows):
            if not running[row] and len(ids) > 6 and draw.random() < 0.3:
                drawn.rewind(row, 4)
                rows[row] = ids[:-4]
        more = [[] if running[row] else tokens(draw.randrange(1, 9), turn * 10 + row) for row in range(len(rows))]
        drawn.append(more)
        rows = [[*ids, *new] for ids, new in zip(rows, more, strict=True)]
        for row, sample in enumerate(drawn.sample(12)):
            running[row] = sample is None
            if sample is not None:
                ids, logprobs = sample
                assert logprobs == pytest.approx(replay(model, rows[row], ids, 0.7), abs=1e-5)
                rows[row] = [*rows[row], *ids]
                finished += 1
    assert finished > 15


def test_each_token_is_computed_once(folder: Path) -> None:
    model = load(folder)
    seen: list[int] = []
    embedding = model.causal_lm.get_input_embeddings()
    embedding.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].numel()))
    drawn = CachedSampler(model, range(3), 1.0, STOP, 0)
    drawn.append([tokens(100, row) for row in range(3)])
    drawn.sample(4)
    first = sum(seen)
    assert 300 <= first <= 300 + 3 * 3
    drawn.append([tokens(50, 9 + row) for row in range(3)])
    drawn.sample(4)
    # The observations, the last token of each action, and the new samples; the prompts are not computed again.
    assert sum(seen) - first <= 3 * (50 + 1) + 3 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_merged_for_sampling_only_and_the_base_is_bitwise_the_same_after_it(
    dtype: torch.dtype, folder: Path
) -> None:
    model = load(folder, dtype, lora=LORA)
    adapted = [module for module in model.modules() if isinstance(module, LoraLinear)]
    base = [(layer.weight, layer.weight.data_ptr(), layer.weight.detach().clone()) for layer in adapted]
    calls: list[int] = []
    for layer in adapted:
        layer.lora_A["default"].register_forward_hook(lambda *_: calls.append(1))
    for update in range(3):
        for layer in adapted:
            nn.init.normal_(layer.lora_B["default"].weight, std=0.05 * (update + 1))
        drawn = CachedSampler(model, range(2), 1.0, STOP, update)
        rows, samples = [tokens(7, 1), tokens(12, 2)], []
        drawn.append(rows)
        for _ in range(2):  # the second call uses the weights that the first one merged
            samples += [*zip(rows, drawn.sample(6), strict=True)]
            rows = [[*row, *sample[0], 9] for row, sample in samples[-2:]]  # type: ignore[index]
            drawn.append([[9], [9]])
        assert (len(calls) == 0) == (dtype == torch.float32)
        for weight, place, before in base:
            assert weight.data_ptr() == place and torch.equal(weight, before) and not weight.requires_grad
        for row, sample in samples:  # a replay adds the adapter's products
            assert sample is not None
            expected = replay(model, row, sample[0], 1.0)
            assert sample[1] == pytest.approx(expected, abs=1e-5 if dtype == torch.float32 else 0.1)
        assert calls
        calls.clear()


def test_a_merged_adapter_follows_an_update_whatever_was_sampled_before_it(folder: Path) -> None:
    model = load(folder, lora=LORA)
    _, policy = step_of(model, trajectories())
    row = tokens(9)
    for update in range(2):  # the gradient of the first round has been accumulated before its sample
        drawn = CachedSampler(model, [0], 1.0, STOP, update)
        drawn.append([row])
        (sample,) = drawn.sample(6)
        assert sample is not None and sample[1] == pytest.approx(replay(model, row, sample[0], 1.0), abs=1e-5)
        policy.optim_step(0.1)


def test_a_merged_adapter_is_undone_where_sampling_fails(folder: Path) -> None:
    model = load(folder, lora=LORA)
    ids_BT = torch.tensor([tokens(9)])
    before_BTH = model(ids_BT)
    with pytest.raises(KeyboardInterrupt), model.holding_weights():
        assert_close(model(ids_BT), before_BTH)
        raise KeyboardInterrupt
    assert torch.equal(model(ids_BT), before_BTH)


# --- References and dtypes -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_reference_of_an_adapter_is_the_base_and_the_adapter_stays_on(folder: Path) -> None:
    base, model = load(folder), load(folder, lora=LORA)
    ids_BT = torch.tensor([tokens(15)])
    before = model.head(model(ids_BT)[0])
    reference = model.reference()
    assert torch.equal(reference.head(reference(ids_BT)[0]), base.head(base(ids_BT)[0]))
    assert torch.equal(model.head(model(ids_BT)[0]), before)
    assert not torch.allclose(before, base.head(base(ids_BT)[0]), atol=1e-2)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_reference_of_an_adapter_that_is_trained_further_is_where_it_starts(
    dtype: torch.dtype, folder: Path, tmp_path: Path
) -> None:
    load(folder, lora=LORA).save(tmp_path)
    model = load_hf_model(tmp_path, ModelConfig(kind="hf", path="a"), CPU, dtype, 0, VOCABULARY)
    ids_1T = torch.tensor([tokens(15)])
    reference, before = model.reference(), model.head(model(ids_1T)[0])
    assert torch.equal(reference.head(reference(ids_1T)[0]), before)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.mul_(1.5)
    assert torch.equal(reference.head(reference(ids_1T)[0]), before)
    assert not torch.equal(model.head(model(ids_1T)[0]), before)
    own, frozen = ({p.data_ptr() for p in of.parameters()} for of in (model, reference))
    assert len(own - frozen) == len(trained)  # both share the base
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert [parameter.requires_grad for parameter in trained] == [True] * len(trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_reference_of_a_whole_model_is_itself_until_it_changes(
    dtype: torch.dtype, folder: Path, untied: Path
) -> None:
    for place in (folder, untied):
        model, ids_BT = load(place, dtype), torch.tensor([tokens(15)])
        reference, before = model.reference(), model.head(model(ids_BT)[0])
        for parameter in model.parameters():
            parameter.mul_(1.5)
        assert torch.equal(reference.head(reference(ids_BT)[0]), before)
        assert not any(parameter.requires_grad for parameter in reference.parameters())
        assert not torch.equal(model.head(model(ids_BT)[0]), before)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_bfloat16_computes_in_it_and_trains_in_float32(lora: Any, folder: Path) -> None:
    model, exact = load(folder, torch.bfloat16, lora=lora), load(folder, lora=lora)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == (set() if lora is None else {torch.bfloat16})
    ids_BT = torch.tensor([tokens(20)])
    with torch.no_grad():
        logits_TV, expected_TV = model.head(model(ids_BT)[0]), exact.head(exact(ids_BT)[0])
    assert logits_TV.dtype == torch.bfloat16
    assert 0 < float((logits_TV - expected_TV).norm() / expected_TV.norm()) < 0.05
    cache = model.new_cache(1)
    model.extend(ids_BT, torch.tensor([0]), cache)
    assert cache.layers[0].keys.dtype == torch.bfloat16
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    policy = TorchPolicy(model, RENDERER, OptimConfig(), CPU)
    model.head(model(ids_BT)[0]).float().log_softmax(-1)[:, 0].sum().backward()
    policy.optim_step(1e-6)  # far too small to change a bfloat16 weight of 0.2
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert set(moved) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_bfloat16_sampling_logprobs_are_near_a_replay(folder: Path) -> None:
    model = load(folder, torch.bfloat16)
    drawn = CachedSampler(model, range(2), 1.0, STOP, 0)
    rows = [tokens(7, 1), tokens(12, 2)]
    drawn.append(rows)
    for row, sample in enumerate(drawn.sample(6)):
        assert sample is not None
        assert sample[1] == pytest.approx(replay(model, rows[row], sample[0], 1.0), abs=0.1)


def test_dropout_is_off_where_layers_are_recomputed(folder: Path) -> None:
    model = load(folder, gradient_checkpointing=True)
    ids_BT = torch.tensor([tokens(30)])
    one, two = model(ids_BT), model(ids_BT)
    assert model.model.training
    assert torch.equal(one, two)
    with torch.no_grad():
        assert_close(model(ids_BT), one.detach())
        assert not model.model.training


def test_checkpointed_layers_are_computed_again_in_the_backward_pass(folder: Path) -> None:
    counts = []
    for words in ({}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "lora": LORA}):
        model, calls = load(folder, **words), []
        layer = model.causal_lm.base_model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(torch.tensor([tokens(9)])).sum().backward()
        counts.append(len(calls))
    assert counts == [1, 2, 2]


# --- Weights on disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_what_is_saved_is_what_is_loaded_and_what_transformers_loads(
    tied: bool, lora: Any, folder: Path, untied: Path, tmp_path: Path
) -> None:
    base = folder if tied else untied
    model, fresh = load(base, lora=lora), load(base, lora=lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.mul_(1.1)
    network = dense(model, tmp_path / "saved", base)
    fresh.load(tmp_path / "saved")
    ids_BT = torch.tensor([tokens(15)])
    logits_TV = model.head(model(ids_BT)[0])
    assert torch.equal(fresh.head(fresh(ids_BT)[0]), logits_TV)
    assert_close(network(input_ids=ids_BT).logits[0], logits_TV, 1e-5)
    if lora is not None:  # a folder with an adapter is a model.path too
        assert torch.equal(load_unstirred(tmp_path / "saved")(ids_BT), model(ids_BT))


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_who_may_read_the_other_files_may_read_the_weights(mask: int, folder: Path, tmp_path: Path) -> None:
    """A server of the weights may run as another user."""
    before = os.umask(mask)
    try:
        load(folder).save(tmp_path)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o666 & ~mask}


def test_a_full_disk_is_an_error_with_its_number(folder: Path, tmp_path: Path) -> None:
    """Weights are written in Rust, so a limit on file size stands in for a full disk."""
    model = load(folder)
    with limited_files((folder / "model.safetensors").stat().st_size // 2), pytest.raises(OSError) as caught:
        model.save(tmp_path)
    assert caught.value.errno == errno.EFBIG


def test_a_full_disk_of_temporary_files_is_one_line() -> None:
    with (
        limited_files(2**20),
        pytest.raises(EchoError, match="the disk is full") as caught,
        hf_folder(ModelConfig(kind="hf", path="random-qwen3"), 0),
    ):
        pass
    assert caught.value.exit_code == 1


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def load_unstirred(folder: Path) -> HfModel:
    return load_hf_model(folder, ModelConfig(kind="hf", path=str(folder)), CPU, torch.float32, 0, VOCABULARY)


def test_weights_of_another_kind_or_damaged_are_refused(folder: Path, tmp_path: Path) -> None:
    whole, adapted = load(folder), load(folder, lora=LORA)
    whole.save(tmp_path / "whole")
    (tmp_path / "adapter").mkdir()
    adapted.save(tmp_path / "adapter")
    other = load(make_qwen3(tmp_path / "other", intermediate_size=40))
    with pytest.raises(EchoError, match="another architecture"):
        other.load(tmp_path / "whole")
    with pytest.raises(EchoError, match=r"no config\.json"):
        whole.load(tmp_path / "adapter")
    with pytest.raises(EchoError, match=r"no adapter_config\.json"):
        adapted.load(tmp_path / "whole")
    wider = load(folder, lora=LORA.model_copy(update={"rank": 8}))
    with pytest.raises(EchoError, match="r is 4 in the adapter and 8 in the model"):
        wider.load(tmp_path / "adapter")
    fewer = load(folder, lora=LORA.model_copy(update={"targets": ("q_proj",)}))
    with pytest.raises(EchoError, match="does not fit the model"):
        fewer.load(tmp_path / "adapter")
    for place, model in (("whole", whole), ("adapter", adapted)):
        (file,) = (tmp_path / place).glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(EchoError, match="cannot load weights"):
            model.load(tmp_path / place)
