"""Trajectories → tensors: targets, roles, padding, packing, buckets."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mock_lm import A, C, E, W, episode, random_episodes

from echo_cli.objective.batch import bucket, collate, count_rollouts, pack, targets
from echo_cli.trajectory import Role, Segment, Trajectory

ALL_ROLES = frozenset({A, E, W})
EIGHT = [C, C, A, A, E, E, A, A]


def test_the_eight_token_episode_has_its_roles_at_the_target() -> None:
    micro = collate([episode(EIGHT, token_ids=range(10, 18))], [0], pad_id=0)
    wanted = targets(micro, {A, E})
    # Predecessor → target:  0→1 C | 1→2 A | 2→3 A | 3→4 E | 4→5 E | 5→6 A | 6→7 A; actions come first.
    assert wanted.position_N.tolist() == [1, 2, 5, 6, 3, 4]
    assert wanted.token_ids_N.tolist() == [12, 13, 16, 17, 14, 15]
    assert wanted.roles_N.tolist() == [A, A, A, A, E, E]
    assert wanted.action_count == 4


def test_targets_carry_the_behaviour_logprobs_of_their_own_tokens() -> None:
    segments = (
        Segment(C, "", (1, 2)),
        Segment(A, "", (3, 4), logprobs=(-0.5, -1.5)),
        Segment(E, "", (5,)),
        Segment(A, "", (6,), logprobs=(-2.5,)),
    )
    trajectory = Trajectory("task", "g", segments, (), 1.0, "answered", "policy")
    wanted = targets(collate([trajectory], [0], pad_id=0), {A, E})
    assert wanted.token_ids_N.tolist() == [3, 4, 6, 5]
    assert wanted.behaviour_logprobs_N.tolist() == [-0.5, -1.5, -2.5, 0.0]


def test_only_the_roles_asked_for_are_targets() -> None:
    micro = collate([episode([C, A, E, W])], [0], pad_id=0)
    assert targets(micro, {E}).roles_N.tolist() == [E]
    assert targets(micro, {E, W}).roles_N.tolist() == [E, W]
    assert targets(micro, {A}).roles_N.tolist() == [A]
    assert len(targets(micro, set()).roles_N) == 0


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_is_never_a_target_even_when_the_pad_id_is_the_eos_id(padding_side: str) -> None:
    eos = 7
    trajectories = [
        episode([C, A, A], token_ids=[1, 2, eos]),
        episode([C, A, E, E, A], token_ids=[1, 3, eos, eos, eos]),
    ]
    micro = pack(trajectories, [[0], [1]], pad_id=eos, width=9, padding_side=padding_side)  # type: ignore[arg-type]
    wanted = targets(micro, ALL_ROLES)
    assert wanted.token_ids_N.tolist() == [2, eos, 3, eos, eos, eos]
    assert wanted.roles_N.tolist() == [A, A, A, A, E, E]
    assert (micro.roles_RT == Role.PAD).sum() == 18 - 8
    assert ((micro.rollout_RT == -1) == (micro.roles_RT == Role.PAD)).all()


def test_position_zero_and_padding_are_never_targets_whatever_their_roles() -> None:
    micro = pack([episode([C, E]), episode([C, E]), episode([C])], [[0, 1, 2]], pad_id=0, width=8)
    # With these roles, only the rollout indices exclude position 0 and padding.
    micro.roles_RT[:] = E
    wanted = targets(micro, ALL_ROLES)
    assert wanted.position_N.tolist() == [0, 2]
    assert wanted.rollout_N.tolist() == [0, 1]


def test_packed_rollouts_keep_their_own_positions_and_indices() -> None:
    micro = pack([episode([C, A]), episode([C, E, E])], [[1, 0]], pad_id=0, width=6)
    assert micro.rollout_RT.tolist() == [[1, 1, 1, 0, 0, -1]]
    assert micro.position_ids_RT.tolist() == [[0, 1, 2, 0, 1, 0]]


def test_padding_is_on_the_side_asked_for() -> None:
    trajectories = [episode([C, A], token_ids=[5, 6]), episode([C, E, E], token_ids=[7, 8, 9])]
    left = pack(trajectories, [[0], [1]], pad_id=1, padding_side="left")
    assert left.token_ids_RT.tolist() == [[1, 5, 6], [7, 8, 9]]
    assert left.position_ids_RT.tolist() == [[0, 0, 1], [0, 1, 2]]
    assert collate(trajectories, [0, 1], pad_id=1).token_ids_RT.tolist() == [[5, 6, 1], [7, 8, 9]]


def test_a_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="5 tokens does not fit in a width of 4"):
        pack([episode([C, A, A, E, E])], [[0]], pad_id=0, width=4)


def test_the_observation_after_the_last_command_is_kept() -> None:
    trajectory = episode([C, A, E, A, E, E], token_ids=[1, 2, 3, 4, 5, 6])
    wanted = targets(collate([trajectory], [0], pad_id=0), {E})
    assert wanted.token_ids_N.tolist() == [3, 5, 6]
    assert count_rollouts([trajectory], {E}).selected_B.tolist() == [3]


def test_text_that_spells_a_special_token_changes_nothing() -> None:
    def says(text: str) -> Trajectory:
        return Trajectory("t", "g", (Segment(C, "x", (1,)), Segment(E, text, (2, 3))), (), 1.0, "answered", "policy")

    for name, tensor in vars(collate([says("ls")], [0], pad_id=0)).items():
        assert torch.equal(tensor, getattr(collate([says("<pad><eos>")], [0], pad_id=0), name))


def test_a_trajectory_of_context_alone_has_no_targets() -> None:
    assert len(targets(collate([episode([C])], [0], pad_id=0), ALL_ROLES).row_N) == 0


def test_empty_segments_are_skipped() -> None:
    segments = (Segment(C, "x", (1,)), Segment(E, "", ()), Segment(A, "y", (2,), logprobs=(-1.0,)))
    micro = collate([Trajectory("t", "g", segments, (), 1.0, "answered", "policy")], [0], pad_id=0)
    assert micro.roles_RT.tolist() == [[C, A]]


def test_counts_are_those_of_the_roles() -> None:
    trajectories = [episode([C, A, A, E, W, W]), episode([C, A], world_model_only=True), episode([C, E])]
    counts = count_rollouts(trajectories, {E}, kept=[0, 1])
    assert counts.actions_B.tolist() == [2, 1, 0]
    assert counts.observations_B.tolist() == [3, 0, 1]
    assert counts.selected_B.tolist() == [1, 0, 1]
    assert counts.in_rl_B.tolist() == [True, False, True]
    assert counts.in_env_B.tolist() == [True, True, False]
    assert count_rollouts(trajectories, {E, W}).selected_B.tolist() == [3, 0, 1]
    assert not count_rollouts(trajectories, {E}, use_rl=False).in_rl_B.any()


@given(st.integers(0, 10_000))
def test_counts_and_targets_agree(seed: int) -> None:
    trajectories = random_episodes(seed)
    wanted = targets(pack(trajectories, [[0, 1], [2], [3, 4]], pad_id=0), ALL_ROLES)
    counts = count_rollouts(trajectories, {E, W})
    for role_mask, expected_B in ((wanted.roles_N == A, counts.actions_B), (wanted.roles_N != A, counts.selected_B)):
        assert torch.equal(torch.bincount(wanted.rollout_N[role_mask], minlength=5), expected_B)


def test_ids_and_counts_are_integers_also_of_nothing() -> None:
    micro = collate([episode([C, A, E])], [0], pad_id=0)
    assert {name: tensor.dtype for name, tensor in vars(micro).items() if tensor.dtype != torch.int64} == {
        "behaviour_logprobs_RT": torch.float32
    }
    counts = count_rollouts([], {E})
    assert {name: tensor.dtype for name, tensor in vars(counts).items()} == {
        **dict.fromkeys(("actions_B", "observations_B", "candidates_B", "selected_B", "ends_B"), torch.int64),
        "factors_B": torch.float64,
        **dict.fromkeys(("in_rl_B", "in_env_B", "in_imitation_B"), torch.bool),
    }


def test_a_micro_batch_moves_to_a_device_as_a_whole() -> None:
    moved = collate([episode([C, A, E])], [0], pad_id=0).to("meta")
    assert {tensor.device.type for tensor in vars(moved).values()} == {"meta"}


def test_targets_of_views_belong_to_the_rollouts_of_the_views() -> None:
    wanted = targets(collate([episode([C, A, E]), episode([C, E]), episode([C, A])], [0, 1, 2], pad_id=0), {A, E})
    moved = wanted.of_rollouts([4, 4, 1])
    assert (wanted.rollout_N.tolist(), moved.rollout_N.tolist()) == ([0, 2, 0, 1], [4, 1, 4, 4])
    assert moved.token_ids_N.tolist() == wanted.token_ids_N.tolist()
    none = targets(collate([episode([C])], [0], pad_id=0), {A, E}).of_rollouts([])
    assert none.rollout_N.tolist() == [] and none.rollout_N.dtype == torch.int64


def test_gather_takes_the_hidden_state_of_the_predecessor() -> None:
    wanted = targets(collate([episode([C, A, E])], [0], pad_id=0), {A, E})
    hidden_RTH = torch.arange(3.0)[None, :, None]
    assert wanted.gather(hidden_RTH).tolist() == [[0.0], [1.0]]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 200), st.floats(0, 1))
def test_buckets_respect_the_budget_and_the_padding(lengths: list[int], budget: int, max_padding: float) -> None:
    trajectories = [episode([C] * length) for length in lengths]
    buckets = bucket(trajectories, budget, max_padding)
    assert sorted(index for members in buckets for index in members) == list(range(len(lengths)))
    assert buckets == bucket(trajectories, budget, max_padding)
    for members in buckets:
        widths = [lengths[index] for index in members]
        assert len(members) == 1 or len(members) * max(widths) <= budget
        assert len(members) == 1 or 1 - sum(widths) / (len(members) * max(widths)) <= max_padding


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 90), st.integers(0, 20))
def test_no_other_cut_of_the_sorted_rollouts_computes_fewer_tokens(
    lengths: list[int], budget: int, overhead: int
) -> None:
    def cost(groups: list[list[int]]) -> int:
        return sum(len(group) * max(group) + overhead for group in groups)

    def fits(group: list[int]) -> bool:
        cells = len(group) * max(group)
        return len(group) == 1 or (cells <= budget and 1 - sum(group) / cells <= 0.25)

    ordered = sorted(lengths, reverse=True)
    every_cut = [
        [ordered[start:end] for start, end in zip([0, *ends], [*ends, len(ordered)], strict=True)]
        for size in range(len(ordered))
        for ends in itertools.combinations(range(1, len(ordered)), size)
    ]
    best = min(cost(groups) for groups in every_cut if all(map(fits, groups)))
    found = bucket([episode([C] * length) for length in lengths], budget, overhead=overhead)
    assert cost([[lengths[index] for index in members] for members in found]) == best


def test_buckets_group_equal_lengths_and_leave_a_long_rollout_alone() -> None:
    trajectories = [episode([C] * length) for length in (3, 50, 3, 4)]
    assert bucket(trajectories, token_budget=12) == [[1], [3, 0, 2]]
    assert bucket(trajectories, token_budget=12, max_padding=0.0) == [[1], [3], [0, 2]]
