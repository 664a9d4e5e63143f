"""The `backend` section: what a Tinker service cannot carry is refused by name, with a tip."""

from __future__ import annotations

import pytest

from echo_cli.config.effects import effects_of
from echo_cli.config.loader import find_config, load_config
from echo_cli.errors import EchoError

SERVICE = ("backend.kind=tinker", "backend.url=http://127.0.0.1:8000")
RANKED = (*SERVICE, "backend.lora_rank=8")


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        (["backend.kind=tinker"], "backend.url is missing", "http://127.0.0.1:8000"),
        (["backend.url=http://127.0.0.1:8000"], "backend.url has no effect", "backend.kind=tinker"),
        (["backend.kind=tinker", "backend.url=http://me:secret@host"], "contains credentials", "backend.api_key_env"),
        ([*SERVICE], "model.lora is null: a Tinker service trains adapters", "backend.lora_rank"),
        ([*RANKED, "model.lora.rank=4"], "backend.lora_rank is 8 and model.lora.rank is 4", "one of them"),
        ([*SERVICE, "model.lora.targets=[q_proj]"], "cannot name layers", "model.lora.targets=[]"),
        ([*RANKED, "rollout.temperature=0.7"], "at temperature 1", "rollout.temperature=1"),
        ([*RANKED, "model.init=scratch"], "the service has the weights", "pretrained"),
        ([*RANKED, "model.compile=true"], "model.compile is not possible", "false"),
        ([*RANKED, "distributed.strategy=ddp"], "distributed is not possible", "distributed=null"),
        ([*RANKED, "objective.kl_coeff=0.1"], "no reference weights", "kl_coeff=0"),
        ([*RANKED, "objective.clip_high=0"], "would clip observations", "higher objective.clip_high"),
        ([*RANKED, "objective.schedule=gradient_ratio"], "no gradients to compare", "another objective.schedule"),
        ([*RANKED, "probe_every=5"], "probe_every is not possible", "probe_every=0"),
    ],
)
def test_what_a_service_cannot_carry_is_refused(words: list[str], message: str, tip: str) -> None:
    with pytest.raises(EchoError) as refused:
        load_config(find_config("hf-smoke"), words)
    assert message in refused.value.message and tip in str(refused.value.tip)


def test_a_built_in_model_is_at_no_service() -> None:
    with pytest.raises(EchoError, match="which no service has"):
        load_config(find_config("toy"), list(RANKED))


def test_without_rl_any_sampling_temperature_is_possible() -> None:
    config = load_config(find_config("hf-smoke"), [*RANKED, "rollout.temperature=0.7", "objective.use_rl=false"])
    assert config.service is not None and config.service.rank(config.model) == 8


def test_torch_by_name_is_no_service() -> None:
    assert load_config(find_config("hf-smoke"), ["backend.kind=torch"]).service is None


def test_the_address_and_the_key_are_effects() -> None:
    config = load_config(find_config("hf-smoke"), [*RANKED, "backend.api_key_env=MY_KEY"])
    assert str(effects_of(config)) == "contacts http://127.0.0.1:8000; sends MY_KEY"
