"""`eval-heldout`: a checkpoint beside its start, over the same pairs, with text shown as text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import error_of, rows

from echo_cli.cli import main
from echo_cli.config import load_config
from echo_cli.display import print_evaluation, printable
from echo_cli.evaluate import limits_of
from echo_cli.policy import load_model, model_folder
from echo_cli.pool import expert_pool
from echo_cli.run import open_run
from echo_cli.session import build_worlds


def _evaluate(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["eval-heldout", str(run), "--json", "--rollouts", "0", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    result: dict[str, Any] = json.loads(captured.out)
    return result


def test_it_measures_what_training_measured(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = json.loads((finished / "summary.json").read_text())["heldout"]["best"]["step"]
    latest = _evaluate(finished, capsys, "--checkpoint", "latest")
    assert latest["step"] == 4
    assert latest["after"]["heldout/env_ce"] == pytest.approx(rows(finished)[4]["heldout/env_ce"], abs=1e-6)
    assert _evaluate(finished, capsys)["step"] == best
    start = _evaluate(finished, capsys, "--step", "0")
    assert start["step"] == 0
    assert start["before"] == start["after"]
    assert start["readout"]["before"] == start["readout"]["after"]


def test_one_command_is_read_out(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readout = _evaluate(finished, capsys)["readout"]
    assert readout["command"].startswith("grep ")
    assert 0 <= readout["after"]["correct"] <= readout["tokens"]
    asked = _evaluate(finished, capsys, "--command", readout["command"])["readout"]
    assert asked == readout


def test_the_table_and_the_readout_are_printed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval-heldout", str(finished), "--rollouts", "0"]) == 0
    captured = capsys.readouterr()
    for text in ("held-out env-CE, nats/token", "novel held-out pairs", "\n$ grep ", "actual:", "predicted after ("):
        assert text in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        (["--step", "9"], "no checkpoint of step 9", "0, 1, 2, 3, 4"),
        (["--command", "rm -rf /\x1b[2J"], "'rm -rf /\\x1b[2J' is not a command of the held-out pool", "one that is: "),
        (["--device", "tpu"], "'device' is \"tpu\"", ""),
    ],
)
def test_what_is_not_there_is_an_error(
    words: list[str], message: str, tip: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["eval-heldout", str(finished), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    found = error_of(captured.err)
    assert message in found[0] and tip in found[1]


def test_a_damaged_checkpoint_is_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "checkpoints" / "step_000004" / "model.safetensors").write_bytes(b"")
    capsys.readouterr()
    assert main(["eval-heldout", str(run), "--checkpoint", "latest"]) == 1
    assert "step_000004 is damaged" in error_of(capsys.readouterr().err)[0]


def test_what_training_executed_later_is_novel_at_an_earlier_step(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    config = load_config(run / "config.yaml")
    worlds, (_, tokenizer) = build_worlds(config), load_model(model_folder("tiny-base"))
    pairs = expert_pool(worlds, worlds.tasks.heldout, tokenizer, limits_of(config)).pairs
    open_run(run).append_observations(
        {"step": 4, "command": command, "output": output, "exit_code": 0} for command, output in pairs
    )
    evaluated = {step: _evaluate(run, capsys, "--step", step)["after"] for step in ("2", "4")}
    assert evaluated["2"]["heldout/novel_pairs"] == rows(run)[2]["heldout/novel_pairs"] > 0
    assert evaluated["4"]["heldout/novel_pairs"] == 0
    assert evaluated["4"]["heldout/env_ce"] is None


def test_a_run_of_an_earlier_version_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "observations.jsonl").unlink()
    capsys.readouterr()
    assert main(["eval-heldout", str(run)]) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "has no observations.jsonl" in message and tip


def test_evaluating_changes_nothing_in_the_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    _evaluate(finished, capsys)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_hostile_text_is_shown_and_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[2J\x1b]0;title\x07\r\u202eb\x9b31m[bold]c[/bold]\x00\n\tlast"
    assert printable(hostile) == (
        "a\\u001b[2J\\u001b]0;title\\u0007\\u000d\\u202eb\\u009b31m[bold]c[/bold]\\u0000\n\tlast"
    )
    keys = ("env_ce", "env_bits_per_byte", "token_accuracy", "env_ce_seen", "pass_at_1", "novel_pairs")
    measures = {f"{pool}/{key}": 1.0 for pool in ("heldout", "validation", "ood") for key in keys}
    reading = {"text": hostile, "correct": 1}
    readout = {"command": hostile, "actual": hostile, "tokens": 2, "before": reading, "after": reading}
    print_evaluation({"run": "r", "step": 1, "before": measures, "after": measures, "readout": readout})
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\r\u202e\x9b\x00")
    assert "[bold]c[/bold]" in printed
