"""Saved state of a policy: it loads as it was saved, and one that is hostile, torn or of another model is refused."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from echo_cli.config.loader import load_config
from echo_cli.errors import EchoError
from echo_cli.models.loading import load_policy
from echo_cli.models.optimizer_state import TRAINER_FILE
from echo_cli.models.policy import TorchPolicy

torch.set_num_threads(1)


def _policy() -> TorchPolicy:
    return load_policy(load_config("toy"), torch.device("cpu"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a policy after an optimizer step."""
    policy, folder = _policy(), tmp_path_factory.mktemp("saved")
    for number, parameter in enumerate(policy.model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.01 * (number + 1))
    policy.optim_step(1e-3)
    policy.save(folder)
    return folder


class _Touch:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def _bytes(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[dict[str, Any], Path], bytes]:
    """Return a function that changes the moments of the first parameter."""

    def spoil(state: dict[str, Any], _: Path) -> bytes:
        change(state["state"][0])
        return _bytes(state)

    return spoil


def test_a_loaded_state_is_the_saved_one(saved: Path, tmp_path: Path) -> None:
    policy = _policy()
    policy.load(saved)
    policy.save(tmp_path)
    before, after = (torch.load(place / TRAINER_FILE, weights_only=True)["state"] for place in (saved, tmp_path))
    assert before.keys() == after.keys() and len(before) == len(list(policy.model.parameters()))
    for index, moments in before.items():
        assert moments.keys() == {"step", "exp_avg", "exp_avg_sq"} and moments["exp_avg"].any()
        assert all(torch.equal(value, after[index][name]) for name, value in moments.items())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state, marker: pickle.dumps(_Touch(marker)),
        lambda state, marker: _bytes({"state": _Touch(marker), "param_groups": []}),
        lambda state, marker: _bytes(state)[:-100],
        lambda state, marker: b"",
        lambda state, marker: b"\x1b[31mnot a state",
        lambda state, marker: _bytes([1]),
        lambda state, marker: _bytes({"state": [], "param_groups": []}),
        lambda state, marker: _bytes({"state": {10**9: {}}, "param_groups": []}),
        lambda state, marker: _bytes({"state": {"x": {}}, "param_groups": []}),
        _changed(lambda moments: moments.update(exp_avg=torch.zeros(3))),
        _changed(lambda moments: moments.update(exp_avg=torch.zeros(1).expand(10**13))),
        _changed(lambda moments: moments.update(exp_avg=moments["exp_avg"].to_sparse())),
        _changed(lambda moments: moments.update(exp_avg=moments["exp_avg"].long())),
        _changed(lambda moments: moments.update(more=torch.zeros(3))),
        _changed(lambda moments: moments.pop("step")),
    ],
)
def test_a_hostile_or_torn_state_is_one_line(
    spoil: Callable[[dict[str, Any], Path], bytes], saved: Path, tmp_path: Path
) -> None:
    state = torch.load(saved / TRAINER_FILE, weights_only=True)
    for file in saved.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / TRAINER_FILE).unlink()
    (tmp_path / TRAINER_FILE).write_bytes(spoil(state, tmp_path / "marker"))
    with pytest.raises(EchoError, match="is not a trainer state of this run") as caught:
        _policy().load(tmp_path)
    assert caught.value.message.isprintable() and len(caught.value.message) < 600 and caught.value.tip
    assert not (tmp_path / "marker").exists()


def test_training_imports_neither_torchs_compiler_nor_scipys_statistics(tmp_path: Path) -> None:
    """Take a step, save and load in a new process: each of the two libraries takes about a second to import."""
    code = """
import sys, torch
from pathlib import Path
from echo_cli.config.loader import load_config
from echo_cli.models.loading import load_policy
from echo_cli.training.experiment import run_experiment
policy = load_policy(load_config("toy"), torch.device("cpu"))
for parameter in policy.model.parameters():
    parameter.grad = torch.ones_like(parameter)
policy.optim_step(1e-3)
policy.save(Path(sys.argv[1]))
policy.load(Path(sys.argv[1]))
assert all(parameter.grad is None for parameter in policy.model.parameters())
sys.exit(bool({"torch._dynamo", "scipy.stats"} & set(sys.modules)))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_its_optimizer_is_adamw() -> None:
    """Compare three steps with torch's own class, bit by bit."""
    policy = _policy()
    optim = load_config("toy").optim
    reference = [parameter.detach().clone().requires_grad_() for parameter in policy.model.parameters()]
    names = {"betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
    theirs = torch.optim.AdamW(reference, lr=1e-3, fused=True, **names)
    for step in range(3):
        for own, other in zip(policy.model.parameters(), reference, strict=True):
            own.grad = torch.full_like(own, 1e-5 * (step + 1))  # too small to be clipped
            other.grad = own.grad.clone()
        policy.optim_step(1e-3)
        theirs.step()
    assert all(map(torch.equal, policy.model.parameters(), reference))
