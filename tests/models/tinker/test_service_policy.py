"""The policy at a stand-in service with sum reduction: the bytes on the wire, what is measured, retried and refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mock_lm import A, C, E, episode
from stand_in_service import BASE, StandInService

from echo_cli.config.loader import find_config, load_config
from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.metrics import reduce_metrics
from echo_cli.models.loading import open_policy
from echo_cli.models.tinker.archive import write_adapter
from echo_cli.models.tinker.policy import ServicePolicy
from echo_cli.models.tinker.service import ServiceLost
from echo_cli.objective.step import WeighedStep, weigh_step
from echo_cli.trajectory import Role

pytest.importorskip("tinker", reason="the extra tinker, of Python 3.11 and newer, is not installed")

PAPER = ObjectiveSettings(rl_normalization="token_mean", env_normalization="observation_tokens", advantage="group_mean")
EIGHT = episode([C, C, A, A, E, E, A, A], token_ids=[1, 2, 3, 4, 5, 6, 7, 8], reward=1.0)
OTHER = episode([C, A, E], token_ids=[1, 2, 3], reward=0.0)


@pytest.fixture
def service() -> Iterator[StandInService]:
    started = StandInService()
    yield started
    started.stop()


def config_for(service: StandInService, *words: str) -> Config:
    backend = ("backend.kind=tinker", f"backend.url={service.url}", "backend.lora_rank=4", f"backend.base_model={BASE}")
    return load_config(find_config("hf-smoke"), [*backend, "optim.lr=0.01", *words])


def policy_for(service: StandInService, *words: str) -> ServicePolicy:
    policy, _ = open_policy(config_for(service, *words), trains=True)
    assert isinstance(policy, ServicePolicy)
    return policy


def learned(coeff: float, **changes: Any) -> WeighedStep:
    return weigh_step([EIGHT, OTHER], replace(PAPER, **changes), coeff, 1.0)


def fresh_of(service: StandInService, ids: list[int]) -> list[float]:
    """Return the logprobs of the base's next tokens."""
    all_TV = torch.log_softmax(service.base_VV[ids[:-1]], dim=-1)
    return all_TV.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def datum(ids: list[int], advantages: list[float], logprobs: list[float]) -> dict[str, Any]:
    """Return a sequence as it is sent."""
    size = [len(ids) - 1]
    single = [torch.tensor(values).tolist() for values in (logprobs, advantages)]  # float32
    return {
        "loss_fn_inputs": {
            "target_tokens": {"data": ids[1:], "dtype": "int64", "shape": size},
            "logprobs": {"data": single[0], "dtype": "float32", "shape": size},
            "advantages": {"data": single[1], "dtype": "float32", "shape": size},
        },
        "model_input": {"chunks": [{"tokens": ids[:-1], "type": "encoded_text"}]},
    }


def body(sent: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sent)
    return found


def test_the_request_of_a_step_byte_for_byte(service: StandInService) -> None:
    policy = policy_for(service)
    policy.forward_backward(learned(0.5))
    behaviour = [segment.logprobs[0] for segment in EIGHT.segments if segment.logprobs]
    (other,) = [segment.logprobs[0] for segment in OTHER.segments if segment.logprobs]
    fresh, fresh_other = fresh_of(service, [*range(1, 9)]), fresh_of(service, [1, 2, 3])
    first = datum(
        [*range(1, 9)],
        [0, 0.1, 0.1, 0.125, 0.125, 0.1, 0.1],
        [0, *behaviour[:2], *fresh[3:5], *behaviour[2:]],
    )
    second = datum([1, 2, 3], [-0.1, 0.25], [other, fresh_other[1]])
    expected = {
        "forward_backward_input": {
            "data": [first, second],
            "loss_fn": "ppo",
            "loss_fn_config": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.28},
        },
        "model_id": body(service.sent("forward_backward")[-1])["model_id"],
        "seq_id": 2,
    }
    sent = service.sent("forward_backward")[-1]
    assert json.loads(sent) == expected
    assert sent == json.dumps(expected, separators=(",", ":")).encode()


def test_at_zero_lambda_the_bytes_are_those_of_grpo(service: StandInService) -> None:
    policy = policy_for(service)
    before = len(service.sent("forward"))
    policy.forward_backward(learned(0.0))
    blind = [replace(rollout, segments=tuple(map(_unseen, rollout.segments))) for rollout in (EIGHT, OTHER)]
    policy.forward_backward(weigh_step(blind, PAPER, 0.0, 1.0))
    first, second = (body(sent)["forward_backward_input"] for sent in service.sent("forward_backward")[-2:])
    assert json.dumps(first) == json.dumps(second)
    assert len(service.sent("forward")) == before  # no fresh logprobs


def _unseen(segment: Any) -> Any:
    return replace(segment, role=Role.CONTEXT) if segment.role is Role.ENV_OUTPUT else segment


def test_the_update_is_that_of_the_loss(service: StandInService) -> None:
    policy = policy_for(service, "optim.grad_clip=100")
    metrics = reduce_metrics([policy.forward_backward(learned(0.5, surrogate="reinforce"))])
    norm = policy.optim_step(0.01)
    ids, other = [*range(1, 9)], [1, 2, 3]
    table_VV = torch.zeros_like(service.base_VV).requires_grad_()

    def logprobs(tokens: list[int]) -> torch.Tensor:
        all_TV = torch.log_softmax((service.base_VV + table_VV)[tokens[:-1]], dim=-1)
        return all_TV.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]

    weights = torch.tensor([0, 0.1, 0.1, 0.125, 0.125, 0.1, 0.1]), torch.tensor([-0.1, 0.25])
    loss = -(weights[0] * logprobs(ids)).sum() - (weights[1] * logprobs(other)).sum()
    loss.backward()
    assert table_VV.grad is not None
    assert norm == pytest.approx(float(table_VV.grad.norm()), rel=1e-5)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    env_ce = -(logprobs(ids)[3:5].sum() + logprobs(other)[1]) / 3
    assert metrics["env_ce"] == pytest.approx(float(env_ce.detach()), rel=1e-5)


def test_what_the_service_can_do_is_measured_and_named(service: StandInService) -> None:
    policy, choice = open_policy(config_for(service), trains=True)
    assert isinstance(policy, ServicePolicy) and policy.abilities is not None
    assert (policy.abilities.reduction, policy.abilities.clips) == ("sum", True)
    assert "losses importance_sampling, ppo; reduction sum; clips gradients" in choice.reason
    assert len(service.adapters) == 1  # the one of the measurements is gone
    service.clips, service.reduce = False, lambda losses: torch.stack([of.mean() for of in losses]).mean()
    again, choice = open_policy(config_for(service), trains=True)
    assert "reduction sequence_mean; does not clip gradients" in choice.reason
    policy.close()
    assert isinstance(again, ServicePolicy)
    again.close()
    assert not service.adapters


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({"losses": {"cross_entropy", "importance_sampling"}}, (), "no loss ppo, which objective.surrogate: clipped"),
        ({"losses": {"cross_entropy"}}, (), "none of the losses importance_sampling, ppo"),
        ({"reports_norm": False}, (), "no gradient norm by which to measure its reduction"),
        ({"reduce": lambda losses: torch.cat(losses).mean()}, (), "reduces losses in an unknown way"),
        ({}, ("backend.base_model=other",), "has no model other"),
    ],
)
def test_a_service_that_cannot_train_the_run_is_refused(
    service: StandInService, change: dict[str, Any], words: tuple[str, ...], message: str
) -> None:
    vars(service).update(change)
    with pytest.raises(EchoError, match=message) as refused:
        policy_for(service, *words)
    assert refused.value.tip


def test_a_named_reduction_is_not_measured(service: StandInService) -> None:
    service.reports_norm = False
    policy = policy_for(service, "backend.reduction=sum")
    policy.forward_backward(learned(0.5))
    assert policy.optim_step(0.01) is None


def test_requests_without_effect_are_repeated(service: StandInService) -> None:
    policy = policy_for(service)
    service.statuses = {"forward": [503, 429]}
    (scores,) = policy.score([EIGHT], [Role.ENV_OUTPUT])
    assert scores.logprobs.tolist() == pytest.approx(fresh_of(service, [*range(1, 9)])[3:5])
    assert service.statuses["forward"] == []


@pytest.mark.parametrize("name", ["forward_backward", "optim_step"])
@pytest.mark.parametrize("fault", ["refused", "carried out, and the answer lost"])
def test_what_changes_the_weights_is_sent_once(service: StandInService, name: str, fault: str) -> None:
    policy = policy_for(service)
    if name == "optim_step":
        policy.forward_backward(learned(0.5))
    before = len(service.sent(name))
    if fault == "refused":
        service.statuses = {name: [503]}
    else:
        service.silent = [name]
    with pytest.raises(ServiceLost, match=f"the Tinker service at {service.url} did not") as lost:
        policy.forward_backward(learned(0.5)) if name == "forward_backward" else policy.optim_step(0.01)
    assert lost.value.exit_code == 1
    assert len(service.sent(name)) == before + 1


def test_a_state_at_the_service_is_loaded_with_its_optimizer(service: StandInService, tmp_path: Path) -> None:
    policy = policy_for(service)
    for _ in range(2):
        policy.forward_backward(learned(0.5))
        policy.optim_step(0.01)
    policy.save(tmp_path)
    record = json.loads((tmp_path / "service.json").read_text())
    assert record["state"] in service.states and record["lora_rank"] == 4
    policy.forward_backward(learned(0.5))
    policy.optim_step(0.01)
    (after,) = [adapter.table_VV.detach().clone() for adapter in service.adapters.values()]
    other = policy_for(service)
    other.load(tmp_path)
    other.forward_backward(learned(0.5))
    other.optim_step(0.01)
    *_, adapter = service.adapters.values()
    torch.testing.assert_close(adapter.table_VV.detach(), after, rtol=0, atol=0)


def test_a_state_of_another_rank_or_that_is_gone_is_refused(service: StandInService, tmp_path: Path) -> None:
    policy = policy_for(service)
    policy.save(tmp_path)
    with pytest.raises(EchoError, match="lora_rank is 4, here it is 8"):
        policy_for(service, "backend.lora_rank=8").load(tmp_path)
    service.states.clear()
    with pytest.raises(ServiceLost, match=r"did not load a state: .*Checkpoint not found"):
        policy.load(tmp_path)


@pytest.mark.parametrize(("end", "problem"), [(-40, "damaged: Compressed file ended"), (5, "damaged: [^\n]*$")])
def test_a_damaged_archive_is_told_in_one_line(
    service: StandInService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int, problem: str
) -> None:
    policy_for(service).save(tmp_path)
    found = service._archive

    def cut(parts: list[str]) -> dict[str, Any] | bytes:
        whole = found(parts)
        return whole[:end] if isinstance(whole, bytes) else whole

    monkeypatch.setattr(service, "_archive", cut)
    with pytest.raises(EchoError, match=problem) as refused:
        write_adapter(config_for(service), tmp_path, tmp_path)
    assert refused.value.exit_code == 1 and "\n" not in refused.value.message


def test_samples_are_of_the_present_weights(service: StandInService) -> None:
    policy = policy_for(service)
    sampler = policy.sampler(1.0, 3)([0, 1])
    sampler.append([[1, 2], [1, 3]])
    (first, second) = sampler.sample(5)
    assert first is not None and second is not None and first != second
    row_V = torch.log_softmax(service.base_VV[2], dim=-1)
    assert first[1][0] == pytest.approx(float(row_V[first[0][0]]), rel=1e-5)
    policy.sampler(1.0, 4)([0])
    assert len(service.sent("save_weights_for_sampler")) == 1
    policy.forward_backward(learned(0.5))
    policy.optim_step(0.01)
    policy.sampler(1.0, 5)([0])
    assert len(service.sent("save_weights_for_sampler")) == 2


def test_only_the_named_key_is_sent(service: StandInService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-of-another-service")
    policy_for(service)
    assert "tml-of-another-service" not in {*service.keys}
    service.keys.clear()
    monkeypatch.setenv("MY_KEY", "tml-of-this-one")
    policy_for(service, "backend.api_key_env=MY_KEY")
    assert service.keys - {None} == {"tml-of-this-one"}
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(EchoError, match="MY_KEY"):
        policy_for(service, "backend.api_key_env=MY_KEY")


@pytest.mark.parametrize("status", [429, 503])
def test_a_sample_that_fails_in_passing_is_asked_for_again(service: StandInService, status: int) -> None:
    policy = policy_for(service)
    sampler = policy.own_sampler(2, 1.0, 3, [])
    sampler.append([[1, 2], [1, 3]])
    service.statuses = {"asample": [status]}
    assert all(sample is not None and len(sample[0]) == 5 for sample in sampler.sample(5))
    assert sampler.sample(5, rows=[]) == []
    service.statuses = {"asample": [503] * 4}
    with pytest.raises(ServiceLost, match="did not sample actions"):
        sampler.sample(5)


def test_a_service_that_opens_no_session_is_lost_within_the_wait_for_overload(
    service: StandInService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echo_cli.models.tinker.service._RETRY_S", 0.2)
    service.statuses = {"client/config": [500] * 9}
    with pytest.raises(ServiceLost, match=r"did not open a session: .*not now"):
        policy_for(service)
    assert len(service.sent("client/config")) == 1  # the SDK would ask again for minutes


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        ("http://127.0.0.1:9", None, "backend.api_key_env: the environment variable MY_KEY is not set"),
        ("http://127.0.0.1:9", "of another kind", "backend.api_key_env: the SDK takes no key that begins otherwise"),
        ("http://192.0.2.1", "tml-key", r"backend.api_key_env would send \$\{MY_KEY\} to 192.0.2.1 over plain http"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_by_its_name_in_the_config(
    service: StandInService, monkeypatch: pytest.MonkeyPatch, url: str, key: str | None, message: str
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False) if key is None else monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(EchoError, match=message) as refused:
        policy_for(service, f"backend.url={url}", "backend.api_key_env=MY_KEY")
    assert refused.value.exit_code == 2 and (key is None or key not in refused.value.message)


def test_a_service_that_is_not_there_is_named_in_one_line(
    service: StandInService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echo_cli.models.tinker.service._LOST_S", 0.2)
    service.stop()
    with pytest.raises(ServiceLost, match=f"the Tinker service at {service.url} does not answer"):
        policy_for(service)
