"""Commands on a model, run or config of a stranger: no command runs its code or asks the hub without a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from others_models import HUB_NAME, change_json, name_model, stand_in_hub, write_model_with_code
from tiny_run import error_of

from echo_cli.cli.main import main
from echo_cli.evaluation.comparison import overrides_of


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    with stand_in_hub(monkeypatch, tmp_path / "hub") as asked:
        yield asked


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with code, beside the marker that the code writes."""
    place = tmp_path_factory.mktemp("coded")
    return write_model_with_code(place / "model", place / "marker")


@pytest.fixture
def run(played: Path, tmp_path: Path) -> Path:
    """A run that has been stopped at its last but one checkpoint."""
    path = shutil.copytree(played, tmp_path / "run")
    (path / "summary.json").unlink()
    steps = sorted((path / "checkpoints").glob("step_*"))
    shutil.rmtree(steps[-1])
    (path / "checkpoints" / "best").write_text(f"{steps[-2].name}\n")
    return path


LOOKING = ("inspect {run}", "inspect {run} --episode 1 --checkpoint best", "report {run}", "plot {run}")
"""Commands that look at a run, and go on whatever its model is."""
ACTING = (
    *("eval-heldout {run}", "dream {run}", "dream {run} --score 2", "pool build {out} --actor {run}"),
    *("train --resume --output-dir {parent} --run-name run", "env check {config}", "env check {config} --model"),
    "export {run} -o {out} --merge",
)
"""Commands that need the model of a run or a config."""


WITHOUT_ITS_MODEL = {command for command in ACTING if command.startswith(("export", "pool"))}
"""Commands that read a checkpoint of full weights, not the model that the run began with."""


def _words(command: str, run: Path) -> list[str]:
    places = {"run": run, "out": run.parent / "out", "parent": run.parent, "config": run / "config.yaml"}
    return command.format(**places).split()


@pytest.mark.parametrize("command", [*LOOKING, *ACTING])
def test_no_run_or_config_runs_the_code_of_a_model(
    command: str, run: Path, coded: Path, hub: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name_model(run, str(coded))
    code = main(_words(command, run))
    said = capsys.readouterr().err
    assert not (coded.parent / "marker").exists() and hub == []
    if command in LOOKING:
        assert code == 0 and "Traceback" not in said
    elif command not in WITHOUT_ITS_MODEL and command != "env check {config}":  # which needs the tokenizer alone
        message, tip = error_of(said)
        assert code == 2 and "contains Python code" in message and "--trust-remote-code" in tip


@pytest.mark.parametrize(
    "command",
    [
        *LOOKING,
        *ACTING,
        "train --dry-run --config {config}",
        "traces export {run} --to masks --config {config} -o {out}",
    ],
)
def test_no_run_or_config_asks_the_hub(
    command: str, run: Path, hub: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name_model(run, HUB_NAME)
    code = main(_words(command, run))
    said = capsys.readouterr().err
    assert hub == []
    if command in LOOKING or "--dry-run" in command:
        assert code == 0 and "Traceback" not in said
    elif command not in WITHOUT_ITS_MODEL:
        message, tip = error_of(said)
        assert code == 2 and f"{HUB_NAME} is not on this machine" in message and f"hf download {HUB_NAME}" in tip


def test_a_sweep_refuses_the_code_of_a_model_before_its_first_run(
    run: Path, coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name_model(run, str(coded))
    assert main(["sweep-lambda", "0", "--config", str(run / "config.yaml"), "--output-dir", str(tmp_path / "out")]) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "contains Python code" in message and "--trust-remote-code" in tip
    assert not (coded.parent / "marker").exists()
    assert not list((tmp_path / "out").rglob("*.log"))


def test_the_word_for_code_holds_for_the_runs_whose_models_have_some(
    run: Path, played: Path, tmp_path: Path, coded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["device=cpu", "model.trust_remote_code=true"]
    assert overrides_of([played, run], words) == [words, words]
    name_model(run, str(coded))
    assert overrides_of([played, run], words) == [["device=cpu"], words]
    page = tmp_path / "page.html"
    assert main(["report", str(played), str(played), "--trust-remote-code", "-o", str(page)]) == 2
    assert "model.trust_remote_code has no effect" in capsys.readouterr().err


def test_inspect_reads_a_run_whose_tokenizer_is_missing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name_model(run, "/nowhere/model")
    assert main(["inspect", str(run)]) == 0
    shown = capsys.readouterr()
    assert "(tiny-base)" in shown.out
    assert "the tokens are tiny-base's, as the run's tokenizer cannot be loaded: no model folder" in shown.err


def test_inspect_and_report_say_why_there_are_no_scores(
    run: Path, coded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name_model(run, str(coded))
    assert main(["inspect", str(run), "--episode", "1", "--checkpoint", "best"]) == 0
    shown = capsys.readouterr().out
    assert "note: no nats per token" in shown and "contains Python code" in shown and "--trust-remote-code" in shown
    assert main(["report", str(run), "--json"]) == 0
    written = capsys.readouterr()
    assert any("contains Python code" in note for note in json.loads(written.out)["runs"][0]["notes"])
    assert "no heat maps" in written.err


@pytest.mark.parametrize(
    "command",
    [
        "inspect {run} --trust-remote-code",
        "env check {config} --trust-remote-code",
        "env check {config} model.trust_remote_code=true",
    ],
)
def test_only_the_command_line_runs_the_code_and_says_so(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_model_with_code(tmp_path / "model", tmp_path / "marker")
    name_model(run, str(own))
    change_json(own / "config.json", model_type=f"their_{tmp_path.name}")  # transformers registers a type once
    (own / "theirs.py").write_text((own / "theirs.py").read_text().replace('"their_model"', f'"their_{tmp_path.name}"'))
    main(_words(command, run))
    assert (tmp_path / "marker").exists()
    assert f"the Python code in {own} runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        *(f"{command} --fetch-model" for command in ACTING if command.startswith(("eval", "dream", "env"))),
        f"train --config hf-smoke model.path={HUB_NAME} --output-dir {{out}}",
        f"eval-heldout --model {HUB_NAME} --pool {{pool}}",
    ],
)
def test_the_hub_is_asked_on_request_and_a_line_says_so(
    command: str, run: Path, hub: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name_model(run, HUB_NAME)
    pool = run.parent / "pool"
    if "{pool}" in command:
        assert main(["pool", "build", str(pool), "environment.toy_terminal.families=[setting]"]) == 0
        capsys.readouterr()
    assert main(_words(command.replace("{pool}", str(pool)), run)) == 2
    assert any(HUB_NAME in path for path in hub)
    assert f"fetching {HUB_NAME} from http://127.0.0.1:" in capsys.readouterr().err
