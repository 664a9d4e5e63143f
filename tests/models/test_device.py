"""A failed allocation is a one-line error that names the phase and the setting; the run can resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import error_of, rows, train

from echo_cli.errors import EchoError
from echo_cli.models.device import OutOfMemory, is_out_of_memory, naming_memory
from echo_cli.models.tiny import TinyModel

HUGE = 2**50


def _after(calls: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `call` so that, after `calls` calls, it allocates more memory than any machine has."""
    made = 0

    def limited(*arguments: Any, **keywords: Any) -> Any:
        nonlocal made
        made += 1
        if made > calls:
            torch.empty(HUGE)
        return call(*arguments, **keywords)

    return limited


def test_a_failed_allocation_names_its_phase() -> None:
    with pytest.raises(OutOfMemory) as caught, naming_memory("update"):
        torch.empty(HUGE)
    assert caught.value.exit_code == 1
    assert caught.value.message.startswith("out of memory during update: ") and "\n" not in caught.value.message
    assert caught.value.tip is not None and "optim.token_budget" in caught.value.tip
    with pytest.raises(OutOfMemory, match="out of memory during loading: MemoryError"), naming_memory("loading"):
        raise MemoryError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_only_failed_allocations_count(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
    with pytest.raises(OutOfMemory if expected else type(error)), naming_memory("rollout"):
        raise error


@pytest.mark.parametrize(
    ("method", "calls", "phase", "setting"),
    [
        ("forward", 14, "update", "optim.token_budget"),
        ("extend", 90, "rollout", "environment.sessions"),
        ("forward", 0, "scoring", "optim.token_budget"),
    ],
)
def test_a_run_that_is_out_of_memory_goes_on_from_its_checkpoint(
    method: str,
    calls: int,
    phase: str,
    setting: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as limit:
        limit.setattr(TinyModel, method, _after(calls, getattr(TinyModel, method)))
        assert train(run, "--steps", "4") == 1
    message, tip = error_of(capsys.readouterr().err)
    assert message.startswith(f"out of memory during {phase}: ")
    assert setting in tip
    if phase != "update":
        return
    assert "the checkpoint of step" in tip and "--resume" in tip
    assert train(run, "--steps", "4", "--resume", "optim.token_budget=4096") == 0
    assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(finished)]


def test_out_of_memory_while_loading_names_a_smaller_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyModel, "load", _after(0, TinyModel.load))
    assert train(tmp_path / "run") == 1
    message, tip = error_of(capsys.readouterr().err)
    assert message.startswith("out of memory during loading: ") and "smaller model" in tip


def test_an_error_of_ours_passes_through() -> None:
    with pytest.raises(EchoError, match="as it was"), naming_memory("update"):
        raise EchoError("as it was")
