"""`scripts/reproduce-claims`: its records stand for run directories that are not there, and only missing runs train."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree

import pytest
from claims.arms import BY_NAME, Arm, Place
from claims.measured import Measured, collect
from claims.page import FIGURES, figures, write_docs
from claims.records import Record, read_records, write_records
from claims.runs import Study, run_name, tuned_rates

from echo_cli.errors import EchoError
from echo_cli.files import write_json
from echo_cli.runs.directory import open_run

GRPO, AFTER, HOMELESS = (BY_NAME[name] for name in ("grpo", "env-after", "homeless-grpo"))
PLACE = Place(20, 0)
RECORD = Record("grpo", 20, 0, 1e-3, "0" * 16, {"pass_at_1_last": 0.5}, {"heldout/env_ce": [(0, 1.5)]}, ("entropy",))
TINY = (
    "steps=1 rollout.tasks_per_step=1 rollout.group_size=2 rollout.explorers=2 evaluation.heldout_rollouts=1 "
    "evaluation.validation_rollouts=0 evaluation.every=1 evaluation.pass_every=1 "
    "environment.toy_terminal.families=[setting] environment.toy_terminal.ood_world_seeds=[]"
).split()


def _study(folder: Path, *overrides: str, base: Path | None = None) -> Study:
    rates = folder / "rates.json"
    write_json(rates, {name: [{"lr": 1e-3, "pass_at_1": 0.1}] for name in ("grpo", "echo")})
    return Study(folder / "runs", 2, (*TINY, *overrides), base, rates=rates, figures=FIGURES)


def _collect(study: Study, *arms: Arm, training: bool = True) -> dict[str, Measured]:
    return collect([(arm, [PLACE]) for arm in arms], study, study.folder.parent / "runs.jsonl", training=training)


def _page(folder: Path, study: Study, measured: dict[str, Measured], monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the bytes of the page and of its picture."""
    monkeypatch.setattr("claims.page.PICTURES", {"after": (GRPO.name, AFTER.name)})
    write_docs(folder, measured, figures(measured, 1, tuned_rates(study)))
    return [(folder / name).read_bytes() for name in ("claims.md", "claims/after.png")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run directories and the records of GRPO and of an arm that continues it."""
    folder = tmp_path_factory.mktemp("trained")
    _collect(_study(folder), AFTER, GRPO)
    return folder


@pytest.fixture
def elsewhere(trained: Path, tmp_path: Path) -> Path:
    """Another folder with the same records and no run directory."""
    (tmp_path / "runs.jsonl").write_bytes((trained / "runs.jsonl").read_bytes())
    return tmp_path


def _records(folder: Path) -> dict[str, Record]:
    return {record.arm: record for record in read_records(folder / "runs.jsonl")}


def _rewrite(folder: Path, change: Callable[[Record], Record]) -> None:
    path = folder / "runs.jsonl"
    write_records(path, map(change, read_records(path)))


@pytest.mark.slow
def test_a_page_from_records_is_the_page_from_run_directories_and_needs_none(
    trained: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copytree(trained / "runs", elsewhere / "copy" / "runs")
    at_runs, at_records = _study(elsewhere / "copy"), _study(elsewhere)
    from_runs = _collect(at_runs, GRPO, AFTER, training=False)
    from_records = _collect(at_records, training=False)
    assert from_runs == from_records and list(from_records) == [GRPO.name, AFTER.name]
    assert not at_records.folder.exists()
    before, after = (
        _page(elsewhere / str(index), study, measured, monkeypatch)
        for index, (study, measured) in enumerate(((at_runs, from_runs), (at_records, from_records)))
    )
    assert before == after and b"- env-CE alone, explorers, after GRPO (1 run): from 0" in after[0]
    assert (elsewhere / "runs.jsonl").read_bytes() == (trained / "runs.jsonl").read_bytes()


@pytest.mark.slow
def test_a_record_is_a_short_line_with_the_figures_and_the_evaluations_of_its_run(trained: Path) -> None:
    lines = (trained / "runs.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["arm"] for line in lines] == [AFTER.name, GRPO.name]
    record, run = _records(trained)[GRPO.name], open_run(trained / "runs" / run_name(GRPO.name, PLACE))
    assert (record.place, record.lr, set(record.figures) - set(FIGURES)) == (PLACE, 1e-3, set())
    rows = [row for row in run.read_metrics() if row.get("heldout/env_ce") is not None]
    assert record.curves["heldout/env_ce"] == [
        (row["step"], pytest.approx(row["heldout/env_ce"], rel=1e-4)) for row in rows
    ]
    assert [step for step, _ in record.curves["heldout/pass_at_1"]] == [0, 1]
    assert max(map(len, lines)) <= 700


@pytest.mark.slow
def test_a_stale_record_is_dropped_and_its_run_trained_again(
    trained: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = _records(trained)
    _rewrite(elsewhere, lambda record: replace(record, config="0" * 16) if record.arm == GRPO.name else record)
    assert list(_collect(_study(elsewhere), training=False)) == [AFTER.name] == list(_records(elsewhere))
    assert "dropped 1 record of grpo: its config or learning rate has changed" in capsys.readouterr().err

    _rewrite(elsewhere, lambda record: replace(record, arm="no-arm"))
    assert _collect(_study(elsewhere), GRPO)[GRPO.name].records == {PLACE: fresh[GRPO.name]}
    assert _records(elsewhere) == {GRPO.name: fresh[GRPO.name]}
    assert "dropped 1 record of no-arm: there is no such arm" in capsys.readouterr().err


@pytest.mark.slow
def test_a_record_is_stale_where_the_run_that_it_continues_has_another_config(elsewhere: Path) -> None:
    study = _study(elsewhere)
    write_json(study.rates, {"grpo": [{"lr": 5e-4, "pass_at_1": 0.1}], "echo": [{"lr": 1e-3, "pass_at_1": 0.1}]})
    assert _collect(study, training=False) == {}
    assert (elsewhere / "runs.jsonl").read_bytes() == b""


@pytest.mark.slow
def test_an_arm_that_continues_another_trains_that_first_where_its_run_is_only_recorded(
    trained: Path, elsewhere: Path
) -> None:
    write_records(elsewhere / "runs.jsonl", [_records(trained)[GRPO.name]])
    assert set(_collect(_study(elsewhere), AFTER)) == {GRPO.name, AFTER.name}
    assert _records(elsewhere) == _records(trained), "training is deterministic, and a record knows no path"
    config = open_run(elsewhere / "runs" / run_name(AFTER.name, PLACE)).read_config()
    assert Path(config.model.path).is_relative_to(elsewhere / "runs" / run_name(GRPO.name, PLACE))


@pytest.mark.slow
def test_a_finished_run_is_recorded_when_another_fails(trained: Path, tmp_path: Path) -> None:
    study = _study(tmp_path, base=tmp_path / "no base")
    name = run_name(GRPO.name, PLACE)
    copytree(trained / "runs" / name, study.folder / name)
    with pytest.raises(SystemExit, match="homeless-grpo-m20-seed0"):
        _collect(study, GRPO, HOMELESS)
    assert _records(tmp_path) == {GRPO.name: _records(trained)[GRPO.name]}


@pytest.mark.slow
def test_a_run_directory_of_another_config_is_not_used(trained: Path, tmp_path: Path) -> None:
    copytree(trained / "runs", tmp_path / "runs")
    study = _study(tmp_path, "objective.clip_low=0.1")
    for arm in (GRPO, AFTER):
        with pytest.raises(EchoError, match="grpo-m20-seed0 is a run of another config"):
            _collect(study, arm)
    assert not (tmp_path / "runs.jsonl").exists()
    rmtree(study.folder / run_name(GRPO.name, PLACE))
    with pytest.raises(EchoError, match="env-after-m20-seed0 is a run of another config"):
        _collect(study, AFTER, training=False)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"<<<<<<< HEAD", "Invalid JSON"),
        (b'{"arm":"grpo","machine":20', "Invalid JSON"),
        (b'{"arm":"grpo","machine":20}', "seed: Field required"),
        (b'{"more":1}', "arm: Field required"),
    ],
)
def test_a_line_that_is_no_record_is_one_error_with_a_tip(tmp_path: Path, line: bytes, what: str) -> None:
    path = tmp_path / "runs.jsonl"
    write_records(path, [RECORD])
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(EchoError, match=rf"^{re.escape(str(path))}:2: not a record of a run: {what}") as raised:
        read_records(path)
    assert "delete this line" in raised.value.tip and "\n" not in raised.value.message


def test_a_key_that_a_record_does_not_have_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    write_records(path, [RECORD])
    assert read_records(path) == [RECORD]
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "more": 1}) + "\n")
    with pytest.raises(EchoError, match="more: Unexpected keyword argument"):
        read_records(path)
