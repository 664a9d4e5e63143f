"""Seeds and uniform numbers: golden values. A change here changes every published run."""

from __future__ import annotations

from echo_cli.seeds import derive_seed, generator, uniforms


def test_derived_seeds_are_stable() -> None:
    assert derive_seed(0, "rollout") == derive_seed(0, "rollout", 0) == 5_744_114_572_069_357_870
    assert derive_seed(0, "rollout", 7) == 2_285_310_363_826_366_543
    assert derive_seed(1234, "evaluate/heldout", 60) == 6_882_465_508_514_712_319


def test_every_seed_purpose_and_step_has_its_own() -> None:
    keys = [
        (seed, purpose, step) for seed in range(10) for purpose in ("rollout", "tasks", "1/2") for step in range(20)
    ]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)  # the maximum of torch.Generator


def test_generators_draw_the_same_and_do_not_share_state() -> None:
    one, two = generator(0, "tasks", 3), generator(0, "tasks", 3)
    two.random()
    assert one.randrange(10**6) == generator(0, "tasks", 3).randrange(10**6) == 384_914
    assert one.random() != generator(0, "tasks", 4).random()


def test_a_uniform_number_depends_on_seed_stream_and_index_alone() -> None:
    stream = uniforms(2**63 - 1, 3, 0, 40)
    assert stream[:2].tolist() == [0.9138379561395334, 0.5548339494361428]
    assert all((uniforms(2**63 - 1, 3, start, 9) == stream[start : start + 9]).all() for start in range(31))
    assert (stream >= 0).all() and (stream < 1).all()
    others = [uniforms(seed, number, 0, 40) for seed in range(3) for number in range(3)]
    assert len({value for other in [stream, *others] for value in other.tolist()}) == 400
