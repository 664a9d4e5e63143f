"""SkyRL's server and a tiny random Qwen3: gradients, learning, resumption after a kill of either side, and the export.

Run by `scripts/test-tinker`, which installs the server.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from echo_cli.environments.worlds import open_worlds
from echo_cli.evaluation.loaded_run import build_policy
from echo_cli.metrics import reduce_metrics
from echo_cli.models.hf.random_qwen3 import make_random_qwen3
from echo_cli.models.loading import close_policy, load_policy
from echo_cli.objective.step import WeighedStep, weigh_step
from echo_cli.runs.directory import RunDirectory, open_run
from echo_cli.runs.export import export_checkpoint
from echo_cli.runs.pools import Pool
from echo_cli.training.step_data import play_explorers, play_tasks
from echo_cli.trajectory import Role, Trajectory

STEPS = 6
PATIENCE_S = 300.0
SMALL = (
    *("rollout.tasks_per_step=1", "rollout.group_size=4", "rollout.explorers=4", "rollout.max_action_tokens=8"),
    *("evaluation.every=2", "evaluation.pass_every=6", "evaluation.validation_rollouts=0", "checkpoint.every=1"),
    *("environment.toy_terminal.families=[key]", "sampler.refill=1", "optim.lr=0.003", "backend.lora_rank=8"),
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """SkyRL's server on the loopback device; what it stores outlives a kill."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._port, self._folder, self._model = free_port(), folder, model
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        serve = Path(__file__).with_name("serve.py")
        words = [
            os.environ["ECHO_TINKER_PYTHON"],
            str(serve),
            "--base-model",
            str(self._model),
            "--port",
            str(self._port),
        ]
        words += [
            "--checkpoints-base",
            str(self._folder / "states"),
            "--database-url",
            f"sqlite:///{self._folder}/server.db",
        ]
        limits = {"max_lora_adapters": 8, "max_lora_rank": 8, "sample_max_num_sequences": 4}
        # For a tiny model, compiling takes far longer than computing.
        quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(self._folder / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*words, "--backend-config", json.dumps(limits)],
                stdout=log,
                stderr=log,
                env={**os.environ, **quick, **cache},
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_up():
            assert self._process.poll() is None and time.monotonic() < deadline, (
                self._folder / "server.log"
            ).read_text()
            time.sleep(0.5)

    def _is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """Kill the server and its engine."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_random_qwen3(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"), model)
    started.start()
    yield started
    started.kill()


def words(run: Path, server: Server, model: Path, *more: str) -> list[str]:
    backend = ("backend.kind=tinker", f"backend.url={server.url}", f"model.path={model}", "--config", "hf-smoke")
    place = ("--output-dir", str(run.parent), "--run-name", run.name, "--steps", str(STEPS))
    return [sys.executable, "-m", "echo_cli", "train", *place, *backend, *SMALL, *more]


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in found]


def close(row: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Return whether two rows of metrics are equal up to rounding."""
    floats = {key for key, value in expected.items() if isinstance(value, float)}
    return row.keys() == expected.keys() and all(
        value == (pytest.approx(expected[key], rel=1e-4, abs=1e-6) if key in floats else expected[key])
        for key, value in row.items()
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, server: Server, model: Path) -> Path:
    """A run of six steps."""
    run = tmp_path_factory.mktemp("outputs") / "finished"
    done = subprocess.run(words(run, server, model), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stderr.splitlines() if " on the Tinker service " in line)
    assert line.endswith("losses importance_sampling, ppo; reduction sequence_mean; does not clip gradients")
    assert "optim.grad_clip=1 has no effect" in done.stderr
    return run


def test_six_steps_lower_heldout_env_ce(finished: Path) -> None:
    before, *_, after = [row["heldout/env_ce"] for row in rows(finished) if row["heldout/env_ce"] is not None]
    assert after < before - 0.1
    assert all(row["train/grad_norm"] > 0 for row in rows(finished)[1:])


def test_a_sweep_trains_its_cells_at_the_service(server: Server, model: Path, tmp_path: Path) -> None:
    _, _, _, _, *own = words(tmp_path / "sweep", server, model)
    command = [sys.executable, "-m", "echo_cli", "sweep-lambda", "0", "0.3", "--seeds", "0", *own, "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "sweep" / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [cell["status"] for cell in cells] == ["finished"] * 2
    trained = [[row["step"] for row in rows(run)] for run in (tmp_path / "sweep").glob("lambda-*/")]
    assert trained == [[0, 1, 2]] * 2


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)


def test_a_run_whose_trainer_is_killed_continues(finished: Path, server: Server, model: Path) -> None:
    run = finished.with_name("killed")
    process = start(words(run, server, model))
    wait_for(run / "checkpoints" / "step_000002", process)
    process.kill()
    process.communicate()
    resumed = subprocess.run(words(run, server, model, "--resume"), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert all(map(close, rows(run), rows(finished))) and len(rows(run)) == len(rows(finished))


@pytest.fixture(scope="session")
def adapter(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported adapter of the run's last step."""
    folder = tmp_path_factory.mktemp("export") / "adapter"
    assert export_checkpoint(finished, "latest", folder).kind == "adapter"
    return folder


def test_the_exported_adapter_scores_the_same_in_transformers(
    finished: Path, model: Path, adapter: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    written = json.loads((adapter / "adapter_config.json").read_text())
    layers = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert (written["target_modules"], written["base_model_name_or_path"]) == (layers, str(model))
    pool = heldout(open_run(finished))
    with_service = scores(finished, pool)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter)
    export_checkpoint(finished, "latest", tmp_path / "merged", merge=True)
    for net in (loaded, AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)):
        for trajectory, expected in zip(pool, with_service, strict=True):
            torch.testing.assert_close(logprobs(net, trajectory), expected, rtol=1e-4, atol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert (
        max(
            float((logprobs(plain, of) - expected).abs().max()) for of, expected in zip(pool, with_service, strict=True)
        )
        > 0.1
    )


def heldout(run: RunDirectory) -> list[Trajectory]:
    from echo_cli.evaluation.loaded_run import LoadedRun

    with LoadedRun(run, run.read_config([])) as loaded:
        pool: Pool = loaded.heldout
        return list(pool.trajectories)[:6]


def scores(path: Path, pool: Sequence[Trajectory]) -> list[torch.Tensor]:
    """Return the service's logprobs of the outputs."""
    run = open_run(path)
    policy, _ = build_policy(run.read_config([]))
    policy.load(run.load_checkpoint("latest")[0])
    found = [score.logprobs for score in policy.score(pool, [Role.ENV_OUTPUT])]
    close_policy(policy)
    return found


@torch.inference_mode()
def logprobs(net: Any, trajectory: Trajectory) -> torch.Tensor:
    """Return transformers' logprobs of the outputs."""
    ids_T = torch.tensor(trajectory.token_ids)
    all_TV = net(ids_T[None]).logits[0, :-1].log_softmax(dim=-1)
    places = [place for place, role in enumerate(trajectory.roles) if role is Role.ENV_OUTPUT]
    found: torch.Tensor = all_TV.gather(1, ids_T[1:, None])[:, 0][[place - 1 for place in places]]
    return found


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "lambda 0": {"coeff": 0.0},
    "paper": {"coeff": 0.05, "env_normalization": "observation_tokens", "clip_high": 0.28},
    "reinforce": {"surrogate": "reinforce", "rl_normalization": "sequence_mean"},
    "limits": {"env_loss_clip": 6.9, "env_stop_at": 0.5},
    "weights": {"env_weights": {"env_output": 0.3}, "world_loss_target": "all"},
    "placebo": {"env_targets": "shuffled"},
    "no rl": {"use_rl": False},
}


def test_the_gradient_norm_is_that_of_the_torch_backend(finished: Path, adapter: Path) -> None:
    run = open_run(finished)
    config = run.read_config([])
    policy, _ = build_policy(config, trains=True)
    folder, _ = run.load_checkpoint("latest")
    policy.load(folder)
    model = config.model.model_copy(update={"path": str(adapter)})
    own = load_policy(config.model_copy(update={"backend": None, "model": model}), torch.device("cpu"))
    with open_worlds(config) as worlds:
        played = play_tasks(config, policy, worlds, STEPS)
        data = [replace(rollout, reward=float(number % 2)) for number, rollout in enumerate(played)]
        data += play_explorers(config, policy, worlds, STEPS, config.rollout.explorers)
    for name, changes in VARIANTS.items():
        coeff, settings = changes.get("coeff", 1.0), {key: of for key, of in changes.items() if key != "coeff"}
        step = weigh_step(data, replace(config.objective, **settings), coeff, 1.0, mark_ends=own.mark_ends)
        policy.load(folder)
        assert norms(own, policy, step) == pytest.approx([1.0] * 2, rel=1e-4), name
    close_policy(policy)


def norms(own: Any, policy: Any, step: WeighedStep) -> list[float]:
    """Return the service's gradient norm over the torch backend's, and the same of the loss."""
    expected, found = (reduce_metrics([of.forward_backward(step)])["loss"] for of in (own, policy))
    assert expected is not None and found is not None
    # SkyRL's JAX engine fuses q, k and v, and gate and up: one matrix A each, which the export repeats.
    gradients: dict[Any, torch.Tensor] = {}
    for name, part in own.model.named_parameters():
        if part.requires_grad:
            key = part.detach().numpy().tobytes() if "lora_A" in name else name
            gradients[key] = gradients.get(key, torch.zeros(())) + part.grad
    norm = torch.stack([of.norm() for of in gradients.values()]).norm()
    own.optim_step(0.0)
    return [policy.optim_step(0.0) / float(norm), (found + 10) / (expected + 10)]


def test_a_killed_server_ends_the_run_and_a_new_one_continues_it(finished: Path, server: Server, model: Path) -> None:
    run = finished.with_name("lost")
    process = start(words(run, server, model))
    wait_for(run / "checkpoints" / "step_000002", process)
    server.kill()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    *_, error, tip = errors.splitlines()
    assert error.startswith(f"error: the Tinker service at {server.url} did not ") and "  tip: " in tip
    assert "--resume continues from the checkpoint of step" in tip
    server.start()
    resumed = subprocess.run(words(run, server, model, "--resume"), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert all(map(close, rows(run), rows(finished))) and len(rows(run)) == len(rows(finished))
    shutil.rmtree(run)
