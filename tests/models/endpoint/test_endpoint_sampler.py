"""Rollouts from an endpoint: exactly the sampled tokens, from the policy's current weights, or an error."""

from __future__ import annotations

import copy
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in_endpoint import StandInEndpoint, load
from tiny_run import TINY, rows

from echo_cli.cli.main import main
from echo_cli.config.model import SamplerConfig
from echo_cli.config.schema import Config, OptimConfig
from echo_cli.config.section import Grants
from echo_cli.environments.toy import ToyWorlds
from echo_cli.errors import EchoError, install_command
from echo_cli.models.architecture import model_folder
from echo_cli.models.endpoint.client import Endpoint
from echo_cli.models.endpoint.served_policy import ServedPolicy
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tiny import TinyModel, load_model
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_policy
from echo_cli.trajectory import Role, Trajectory

torch.set_num_threads(1)

BASE, TOKENIZER = load_model(model_folder("tiny-base"))
RENDERER = PlainRenderer(TOKENIZER)
LIMITS = EpisodeLimits(action_tokens=8, output_tokens=64, episode_tokens=256)
PROMPT = [TOKENIZER.start_id, *TOKENIZER.encode("$ ls /\n")]
SECRET = "sesame-4711"


@pytest.fixture
def server() -> Iterator[StandInEndpoint]:
    server = StandInEndpoint(other_model())
    yield server
    server.stop()


def other_model() -> TinyModel:
    """Return the untrained model that the server starts with."""
    model = TinyModel(BASE.config)
    model.init_weights(torch.Generator().manual_seed(7))
    return model.requires_grad_(False)


def settings(server: StandInEndpoint, weights: Path, **changes: Any) -> SamplerConfig:
    values = {"url": f"{server.url}/v1", "model": "policy", "sync": "sglang", "weights": str(weights), "timeout_s": 5}
    return SamplerConfig(kind="openai", **{**values, **changes})


Connect = Callable[..., TorchPolicy]


@pytest.fixture
def connect(server: StandInEndpoint, tmp_path: Path) -> Iterator[Connect]:
    made: list[TorchPolicy] = []

    def policy(**changes: Any) -> TorchPolicy:
        sampling = settings(server, tmp_path / "weights", **changes)
        made.append(TorchPolicy(copy.deepcopy(BASE), RENDERER, OptimConfig(), torch.device("cpu"), sampling=sampling))
        return made[-1]

    yield policy
    for each in made:
        assert each._served is not None
        each._served.endpoint.close()


def replay(policy: TorchPolicy, before: list[int], sampled: list[int], temperature: float) -> list[float]:
    """Return teacher-forced logprobs of `sampled` after `before`."""
    with torch.inference_mode():
        logits_TV = policy.model.head(policy.model(torch.tensor([[*before, *sampled]]))[0]) / temperature
        logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
    return [float(logprobs_TV[len(before) - 1 + i, token]) for i, token in enumerate(sampled)]


def play(policy: TorchPolicy, temperature: float = 1.0, count: int = 6, seed: int = 0) -> list[Trajectory]:
    worlds = ToyWorlds([0], [], max_turns=3)
    wanted = [(task, "g") for task in worlds.tasks.train[:count]]
    return play_policy(policy.sampler(temperature, seed), RENDERER, worlds, wanted, LIMITS, verify=True)


def sample_once(policy: TorchPolicy, temperature: float = 0.7, max_tokens: int = 12) -> tuple[list[int], list[float]]:
    sampler = policy.sampler(temperature, 0)(range(1))
    sampler.append([PROMPT])
    (sample,) = sampler.sample(max_tokens)
    assert sample is not None
    return sample


def train(run: Path, *words: str) -> int:
    return main(["train", "--output-dir", str(run.parent), "--run-name", run.name, *TINY, *words])


# --- What was sampled --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", ["sglang", "vllm-lora"])
def test_trajectories_hold_what_the_server_sampled_with_the_logprobs_of_a_replay(
    server: StandInEndpoint, connect: Connect, sync: str
) -> None:
    answered: list[tuple[list[int], list[int]]] = []
    server.alter = lambda answer, body: answered.append((body["prompt"], answer["choices"][0]["token_ids"]))
    policy = connect(sync=sync, concurrency=3)
    played = play(policy, temperature=0.7)
    assert len(played) == 6
    turns = 0
    for trajectory in played:
        ids: list[int] = []
        for segment in trajectory.segments:
            if segment.role is Role.ACTION:
                assert (ids, list(segment.token_ids)) in answered
                expected = replay(policy, ids, list(segment.token_ids), 0.7)
                assert segment.logprobs == pytest.approx(expected, abs=1e-5)
                turns += 1
            ids = [*ids, *segment.token_ids]
    assert turns == len(answered) - 1  # all requests except the check at the start
    assert 1 < server.most_running <= 3
    bodies = server.bodies("/v1/completions")
    assert len({body["seed"] for body in bodies}) == len(bodies)
    for body in bodies:
        neutral = {"top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1, "temperature": 0.7}
        assert neutral.items() <= body.items()


def test_what_is_sampled_does_not_depend_on_how_many_requests_run_at_once(connect: Connect) -> None:
    one, many = (play(connect(concurrency=concurrency), count=3) for concurrency in (1, 3))
    assert [trajectory.token_ids for trajectory in one] == [trajectory.token_ids for trajectory in many]
    assert len({tuple(trajectory.token_ids) for trajectory in one}) == 3


def test_a_slow_request_holds_up_no_other_row(server: StandInEndpoint, connect: Connect) -> None:
    sampler = connect().sampler(1.0, 0)(range(2))
    slow = [*PROMPT, *PROMPT]
    gate = threading.Event()
    server.alter = lambda answer, body: body["prompt"] == slow and gate.wait(10)
    sampler.append([slow, PROMPT])
    late, soon = sampler.sample(6)
    assert late is None and soon is not None
    before = len(server.requests)
    gate.set()
    (late,) = sampler.sample(6, [0])
    assert late is not None
    assert len(server.requests) == before  # the pending request is collected, not repeated


def test_a_row_is_rewound_kept_and_added_by_its_ids(server: StandInEndpoint, connect: Connect) -> None:
    sampler = connect().sampler(1.0, 0)(range(2))
    sampler.append([[5, 6, 7], PROMPT])
    sampler.rewind(1, 2)
    sampler.rewind(1, 0)
    sampler.keep([1])
    sampler.add([2])
    sampler.append([[9], [8, 8]])
    for _ in range(2):  # one row per call: rows return in the order in which they finish
        sampler.sample(1, [0])
    sampler.sample(1, [1])
    prompts = [body["prompt"] for body in server.bodies("/v1/completions")[1:]]
    assert prompts[0] == [*PROMPT[:-2], 9]
    assert prompts[1][:-1] == prompts[0] and len(prompts[1]) == len(prompts[0]) + 1  # with the sampled token
    assert prompts[2] == [8, 8]


def test_a_token_that_only_the_server_stops_at_does_not_end_an_action(
    server: StandInEndpoint, connect: Connect
) -> None:
    server.own_stops = set(range(0, BASE.vocab_size, 2))
    policy = connect()
    token_ids, logprobs = sample_once(policy)
    assert len(token_ids) == 12 or token_ids[-1] in RENDERER.stop_ids
    assert any(token in server.own_stops for token in token_ids[:-1])
    assert logprobs == pytest.approx(replay(policy, PROMPT, token_ids, 0.7), abs=1e-5)


# --- What is refused ---------------------------------------------------------------------------------------------


def choice_of(answer: dict[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = answer["choices"][0]
    return choice


def trim(answer: dict[str, Any], body: dict[str, Any]) -> None:
    choice = choice_of(answer)
    if body["stop_token_ids"]:
        choice.update(token_ids=[4, 5], logprobs={"token_logprobs": [-1.0, -1.0]}, finish_reason="stop", matched_stop=3)


def past_stop(answer: dict[str, Any], body: dict[str, Any]) -> None:
    if body["stop_token_ids"]:
        ids = [RENDERER.stop_ids[0], 5]
        choice_of(answer).update(token_ids=ids, logprobs={"token_logprobs": [-1.0, -1.0]})


def cut(answer: dict[str, Any], body: dict[str, Any]) -> None:
    choice_of(answer).update(token_ids=[4], logprobs={"token_logprobs": [-1.0]}, finish_reason="length")


FAULTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "no token ids": lambda answer, _: choice_of(answer).pop("token_ids"),
    "no logprobs": lambda answer, _: choice_of(answer).update(logprobs=None),
    "logprobs that are not finite numbers": lambda answer, _: choice_of(answer).update(
        logprobs={"token_logprobs": [None]}
    ),
    r"32 token ids and 31 logprobs": lambda answer, _: choice_of(answer)["logprobs"]["token_logprobs"].pop(),
    "0 tokens instead of 1 to 32": lambda answer, _: choice_of(answer).update(token_ids=[]),
    "ids outside": lambda answer, _: choice_of(answer)["token_ids"].append(choice_of(answer)["token_ids"].pop() + 9999),
    "without returning the token it stopped at": trim,
    "past a stop token": past_stop,
    "does not fit its context": cut,
    'finish_reason "abort"': lambda answer, body: (cut(answer, body), choice_of(answer).update(finish_reason="abort")),
    "does not answer with a completion": lambda answer, _: answer.pop("choices"),
    "sampled with the weights 'x'": lambda answer, _: answer.update(metadata={"weight_version": "x"}),
}


@pytest.mark.parametrize("said", FAULTS)
def test_an_answer_that_is_not_what_was_sampled_is_refused(
    server: StandInEndpoint, connect: Connect, said: str
) -> None:
    server.alter = FAULTS[said]
    with pytest.raises(EchoError, match=said) as caught:
        sample_once(connect())
    assert caught.value.exit_code == 1 and caught.value.tip
    assert "\n" not in caught.value.message


def test_raw_logprobs_are_refused_where_they_differ_and_the_flag_is_named(
    server: StandInEndpoint, connect: Connect
) -> None:
    server.processed = False
    sample_once(connect(), temperature=1.0)  # at temperature 1, raw and processed logprobs are equal
    with pytest.raises(EchoError, match=r"samples at temperature 0\.7 but returns logprobs at temperature 1") as caught:
        sample_once(connect(), temperature=0.7)
    assert caught.value.tip is not None and "--logprobs-mode processed_logprobs" in caught.value.tip


def test_a_server_that_keeps_its_own_weights_is_refused(server: StandInEndpoint, connect: Connect) -> None:
    stale = server.models["policy"]
    server.load = lambda folder: stale
    with pytest.raises(
        EchoError, match=r"differ from the policy's by \d+\.\d{3} nats per token, more than 0\.1"
    ) as caught:
        sample_once(connect())
    assert caught.value.tip is not None and "sampler.weights" in caught.value.tip


def test_a_server_slightly_off_the_policy_is_taken(server: StandInEndpoint, connect: Connect) -> None:
    def blur(answer: dict[str, Any], body: dict[str, Any]) -> None:
        values = choice_of(answer)["logprobs"]["token_logprobs"]
        values[:] = [value + (0.02 if index % 2 else -0.02) for index, value in enumerate(values)]

    server.alter = blur
    sample_once(connect())


# --- Weights -----------------------------------------------------------------------------------------------------


def nudge(policy: TorchPolicy) -> None:
    """An optimizer step that moves every weight."""
    for parameter in policy.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    policy.optim_step(1e-2)


@pytest.mark.parametrize("sync", ["sglang", "vllm-lora"])
def test_weights_reach_the_server_after_a_step_and_only_then(
    server: StandInEndpoint, connect: Connect, tmp_path: Path, sync: str
) -> None:
    path = {"sglang": "/update_weights_from_disk", "vllm-lora": "/v1/load_lora_adapter"}[sync]
    policy = connect(sync=sync)
    (tmp_path / "weights" / "echo-weights-of-a-killed-run").mkdir(parents=True)
    for expected in (1, 2):
        for _ in range(2):
            token_ids, logprobs = sample_once(policy)
            assert logprobs == pytest.approx(replay(policy, PROMPT, token_ids, 0.7), abs=1e-5)
            assert len(server.bodies(path)) == expected
        nudge(policy)
    (folder,) = (tmp_path / "weights").iterdir()  # only the loaded version
    assert all(torch.isfinite(parameter).all() for parameter in load(folder).parameters())
    assert (folder / "tokenizer.json").exists() is (sync == "sglang")
    if sync == "vllm-lora":
        assert len(server.models) == 2  # the base and the current adapter
        names = [body["lora_name"] for body in server.bodies(path)]
        assert len(set(names)) == 2 and names[-1] in server.models
        assert server.bodies("/v1/completions")[-1]["model"] == names[-1]


def test_a_server_that_was_started_anew_is_given_the_next_adapter(server: StandInEndpoint, connect: Connect) -> None:
    policy = connect(sync="vllm-lora")
    sample_once(policy)
    server.models = {"policy": server.models["policy"]}
    with pytest.raises(EchoError, match="does not exist"):
        sample_once(policy)
    nudge(policy)
    sample_once(policy)


def test_a_sync_that_fails_is_refused(server: StandInEndpoint, connect: Connect, tmp_path: Path) -> None:
    policy = connect()
    for status, said in ((400, "HTTP 400"), (404, "HTTP 404"), (500, "HTTP 500")):
        server.statuses = [status]
        with pytest.raises(EchoError, match=f"did not reach the endpoint.*off-policy: .*{said}") as caught:
            sample_once(policy)
        assert caught.value.exit_code == 1
        assert list((tmp_path / "weights").iterdir()) == []
    server.answer = lambda *_: (200, json.dumps({"success": False, "message": "shape\nmismatch"}))  # type: ignore[method-assign]
    with pytest.raises(EchoError, match="off-policy: it answers shape mismatch"):
        sample_once(policy)


# --- The wire ----------------------------------------------------------------------------------------------------


def test_a_server_that_is_busy_is_asked_again(server: StandInEndpoint, connect: Connect) -> None:
    policy = connect()
    server.statuses = [503, 429]
    sample_once(policy)
    assert [path for path, _ in server.requests[:3]] == ["/update_weights_from_disk"] * 3


def test_a_server_that_stays_busy_and_one_that_is_silent_end_it(server: StandInEndpoint, connect: Connect) -> None:
    server.statuses = [503] * 99
    with pytest.raises(EchoError, match="is not available: HTTP 503") as caught:
        sample_once(connect(timeout_s=0.4))
    assert caught.value.exit_code == 1 and "--resume" in (caught.value.tip or "")
    gate = threading.Event()
    server.statuses, server.alter = [], lambda answer, body: gate.wait(10)
    with pytest.raises(EchoError, match=r"did not answer /v1/completions within 0\.4 s"):
        sample_once(connect(timeout_s=0.4))
    gate.set()


def test_headers_are_sent_and_their_secrets_never_shown(
    server: StandInEndpoint, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENDPOINT_KEY", SECRET)
    policy = connect(headers={"Authorization": "Bearer ${ENDPOINT_KEY}"})
    sample_once(policy)
    assert server.authorizations == {f"Bearer {SECRET}"}
    server.statuses = [401]
    with pytest.raises(EchoError, match=r"HTTP 401: not for Bearer \$\{ENDPOINT_KEY\}") as caught:
        sample_once(policy)
    assert SECRET not in repr(caught.value) + str(caught.value.tip)
    monkeypatch.delenv("ENDPOINT_KEY")
    with pytest.raises(EchoError, match=r"sampler\.headers\.Authorization: .* ENDPOINT_KEY is not set"):
        connect(headers={"Authorization": "Bearer ${ENDPOINT_KEY}"})


def test_its_headers_go_to_another_machine_over_tls_or_with_a_word(
    server: StandInEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENDPOINT_KEY", SECRET)
    headers = {"Authorization": "Bearer ${ENDPOINT_KEY}"}
    away = settings(server, tmp_path, url="http://192.0.2.1:8000", headers=headers)
    with pytest.raises(EchoError, match=r"sampler.headers would send \$\{ENDPOINT_KEY\} to 192.0.2.1") as error:
        ServedPolicy(away, BASE, RENDERER, torch.device("cpu"))
    assert "--allow-plain-http" in str(error.value.tip)
    allowed = away.granted(Grants(plain_http=True))
    assert ServedPolicy(allowed, BASE, RENDERER, torch.device("cpu")).endpoint.url == away.url


def test_without_httpx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(EchoError, match="needs httpx") as caught:
        Endpoint("http://127.0.0.1:1", {}, concurrency=1, timeout_s=1)
    assert caught.value.tip == install_command("hf")


# --- A run -------------------------------------------------------------------------------------------------------


def run_words(server: StandInEndpoint, weights: Path, *words: str) -> list[str]:
    sampler = {"kind": "openai", "url": server.url, "model": "policy", "sync": "sglang", "weights": str(weights)}
    return [
        *("model.kind=hf", "model.path=tiny-for-the-test", "sampler.timeout_s=4", "rollout.temperature=0.8"),
        *(f"sampler.{key}={value}" for key, value in sampler.items()),
        *words,
    ]


@pytest.fixture
def tiny_as_hf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `model.kind: hf` load the tiny model: these tests are about sampling, not about the model."""

    def load_policy(config: Config, device: torch.device, *_: Any) -> TorchPolicy:
        return TorchPolicy(copy.deepcopy(BASE), RENDERER, config.optim, device, sampling=config.sampler)

    monkeypatch.setattr("echo_cli.models.loading.load_policy", load_policy)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_as_hf")
def test_a_run_trains_on_policy_and_goes_on_where_its_server_died(
    server: StandInEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, weights = tmp_path / "run", tmp_path / "weights"

    def die_in_the_second_step(answer: dict[str, Any], body: dict[str, Any]) -> None:
        if len(server.bodies("/update_weights_from_disk")) == 2:
            server.lives = min(server.lives, 1)

    server.alter = die_in_the_second_step
    assert train(run, "--steps", "2", *run_words(server, weights)) == 1
    captured = capsys.readouterr().err
    assert "is not available" in captured and "--resume" in captured
    assert [row["step"] for row in rows(run)] == [0, 1]

    anew = StandInEndpoint(other_model())
    try:
        assert train(run, "--resume", "--steps", "2", *run_words(anew, weights)) == 0
    finally:
        anew.stop()
    found = rows(run)
    assert [row["step"] for row in found] == [0, 1, 2]
    for row in found[1:]:
        assert row["train/ratio"] == pytest.approx(1, abs=1e-4)
        assert row["train/action_tokens"] > 0


@pytest.mark.usefixtures("tiny_as_hf")
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sampler.sync=null", "sampler.sync is missing"),
        ("sampler.weights=null", "sampler.weights is missing"),
        ("sampler.sync=vllm-lora", "sampler.sync is vllm-lora and model.lora is null"),
        ("sampler.url=http://me:secret@127.0.0.1:1", "sampler.url contains credentials"),
        ("sampler.url=ftp://127.0.0.1", "sampler.url"),
    ],
)
def test_a_config_that_cannot_work_is_one_line(
    server: StandInEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    assert train(tmp_path / "run", "--steps", "1", *run_words(server, tmp_path / "weights", word)) == 2
    captured = capsys.readouterr().err
    assert said in captured and "tip:" in captured
    assert not server.requests
