"""A run whose rollouts a real vLLM samples: each from the present adapter, with the logprobs of that adapter.

`scripts/test-vllm` starts it with the model's folder in ECHO_REAL_MODEL, and with the Python of vLLM's own environment
in ECHO_VLLM_PYTHON.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from independent import behaviour_logprobs, echo_loss, read_step
from peft import PeftModel
from real_run import MODEL, TEMPERATURE, base_model, rows, train

START_S = 900.0
"""Longest wait for the server, seconds; it measures its memory first."""
OPTIONS = (
    *("--enable-lora", "--max-loras", "1", "--max-lora-rank", "8", "--logprobs-mode", "processed_logprobs"),
    *("--max-model-len", "2048", "--max-num-seqs", "8", "--dtype", "float32", "--enforce-eager"),
)
SETTINGS = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a vLLM server of the model, on this machine alone."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("vllm") / "log"
    # Its module, since the command `vllm` asks for a package of that name, and this one is called vllm-cpu.
    module = (os.environ["ECHO_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server")
    place = ("--model", MODEL, "--host", "127.0.0.1", "--port", str(port))
    with log.open("w") as output:
        process = subprocess.Popen([*module, *place, *OPTIONS], env=os.environ | SETTINGS, stdout=output, stderr=output)
    try:
        _wait(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    pytest.fail(f"vLLM did not start (exit code {process.poll()}); the end of its log:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def run(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps in float32, sampled by the server."""
    folder = tmp_path_factory.mktemp("outputs")
    endpoint = ("sampler.kind=openai", f"sampler.url={server}", "sampler.model=policy", "sampler.sync=vllm-lora")
    # A high learning rate, so that each step's adapter differs clearly from the one before.
    words = (*endpoint, f"sampler.weights={folder / 'weights'}", "model.dtype=float32", "optim.lr=5e-3")
    assert train(folder / "run", *words) == 0
    return folder / "run"


def test_the_server_samples_from_the_present_adapter(run: Path) -> None:
    found = [row["train/ratio"] for row in rows(run)[1:]]
    assert found == pytest.approx([1.0] * 3, abs=1e-4), found


@torch.no_grad()
def test_the_logprobs_are_those_of_the_checkpoint_before_the_step(run: Path) -> None:
    for step in (2, 3):
        row, records = rows(run)[step], read_step(run / "rollouts.jsonl", step)
        played = [torch.tensor(behaviour_logprobs(record)) for record in records if record["source"] == "policy"]
        folders = (run / "checkpoints" / f"step_{before:06d}" for before in (step - 1, step - 2))
        own, earlier = (
            echo_loss(
                PeftModel.from_pretrained(base_model(), str(folder)),
                records,
                row["train/lambda"],
                TEMPERATURE,
                base_model(),
            )
            for folder in folders
        )
        off, off_earlier = (
            float((torch.cat(played) - torch.cat(list(found.action_logprobs))).abs().max()) for found in (own, earlier)
        )
        assert off < 1e-3 < 0.01 < off_earlier, (step, off, off_earlier)
        assert row["train/loss"] == pytest.approx(float(own.total), rel=1e-3)
