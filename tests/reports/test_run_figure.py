"""Figures: the CSV has exactly the drawn points, text is data, and a run with few points is drawn too."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from echo_cli.errors import EchoError
from echo_cli.reports.figure import Plotted
from echo_cli.reports.run_figure import plot_run, plot_sweep
from echo_cli.runs.curves import Band, Curve, band, read_curve

METRICS = ("heldout/env_ce", "ood/env_ce", "train/env_ce", "heldout/pass_at_1", "train/reward")


def _row(step: int, evaluated: bool, shift: float = 0.0) -> dict[str, Any]:
    trained = step > 0
    return {
        "step": step,
        "train/env_ce": 2.0 / (step + 1) + shift if trained else None,
        "train/reward": step / 20 if trained else None,
        "train/lambda": 0.05 if trained else None,
        "heldout/env_ce": 2.5 / (step + 1) + shift if evaluated else None,
        "ood/env_ce": 3.5 / (step + 1) if evaluated else None,
        "validation/env_ce": abs(step - 8) + shift if evaluated else None,
        "heldout/pass_at_1": step / 30 if evaluated else None,
    }


def _run(path: Path, rows: list[dict[str, Any]], summary: dict[str, Any] | None = None) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("")
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def _rows(last: int = 12, shift: float = 0.0) -> list[dict[str, Any]]:
    return [_row(step, step % 4 == 0, shift) for step in range(last + 1)]


def _table(path: Path) -> list[tuple[str, int, str, float]]:
    table = csv.DictReader(io.StringIO(path.read_text()))
    return [(line["run"], int(line["step"]), line["series"], float(line["value"])) for line in table]


def _texts(svg: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def _check_picture(plotted: Plotted) -> None:
    with Image.open(plotted.png) as image:
        assert image.width == 1600
        assert 650 < image.height < 1400
        colours = image.convert("RGB").getcolors(2**24)
    assert colours is not None and len(colours) > 20


def test_a_run_is_drawn_into_its_folder(tmp_path: Path) -> None:
    run = _run(tmp_path / "toy", _rows())
    plotted = plot_run([run])
    assert plotted == Plotted(*(run / f"heldout_env_ce.{ending}" for ending in ("png", "svg", "csv")))
    _check_picture(plotted)
    expected = [
        ("toy", row["step"], metric, row[metric]) for metric in METRICS for row in _rows() if row[metric] is not None
    ]
    assert sorted(_table(plotted.csv)) == sorted(expected)


def test_the_labels_are_text_with_the_unit_and_the_best_step(tmp_path: Path) -> None:
    texts = _texts(plot_run([_run(tmp_path / "toy", _rows())]).svg)
    assert {"held-out env-CE, nats/token (novel pairs)", "λ = 0.05: toy"} <= set(texts)
    assert {"best step 8,", "by validation env-CE:", f"held-out env-CE {2.5 / 9:.3f}"} <= set(texts)


def test_the_star_says_which_measure_chose_the_step_and_whose_figure_it_is(tmp_path: Path) -> None:
    summary = {"selected_by": "validation/pass_at_1", "heldout": {"best": {"step": 4}}}
    rows = [{**row, "heldout/pass_at_1": 0.125 if row["step"] == 4 else None} for row in _rows()]
    texts = _texts(plot_run([_run(tmp_path / "toy", rows, summary)]).svg)
    assert texts.count("by validation pass@1:") == 2
    assert "held-out pass@1 0.125" in texts


def test_a_run_without_novel_pairs_is_drawn_over_its_seen_pairs(tmp_path: Path) -> None:
    met = 4
    rows = [{**row, "heldout/env_ce_seen": 0.5 if row["heldout/env_ce"] else None} for row in _rows()]
    rows = [{**row, "heldout/env_ce": None} if row["step"] >= met else row for row in rows]
    run = _run(tmp_path / "toy", rows)
    plotted = plot_run([run])
    drawn = {metric: [step for _, step, of, _ in _table(plotted.csv) if of == metric] for metric in METRICS}
    seen = [step for _, step, of, _ in _table(plotted.csv) if of == "heldout/env_ce_seen"]
    assert min(seen) == met > max(drawn["heldout/env_ce"]) and seen == [4, 8, 12]
    assert "seen pairs, as none is novel" in _texts(plotted.svg)
    of_sweep = plot_sweep([("λ = 1", [run])], tmp_path / "sweep.png")
    assert ("λ = 1", met, "heldout/env_ce_seen/mean", 0.5) in _table(of_sweep.csv)
    assert any("dotted: seen pairs" in text for text in _texts(of_sweep.svg))


def test_the_summary_decides_best_step_and_lambda(tmp_path: Path) -> None:
    run = _run(tmp_path / "toy", _rows(), {"lambda": 0.5, "heldout": {"best": {"step": 0}}})
    texts = _texts(plot_run([run]).svg)
    assert "λ = 0.5: toy" in texts and "held-out env-CE 2.500" in texts


def test_several_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    runs = [_run(tmp_path / name, _rows(shift=shift)) for name, shift in (("a", 0.0), ("b", 0.5), ("c", 1.0))]
    plotted = plot_run(runs)
    assert plotted.png == tmp_path / "comparison.png"
    _check_picture(plotted)
    assert {name for name, *_ in _table(plotted.csv)} == {"a", "b", "c"}
    assert f"λ = 0.05: c (best step 8: held-out env-CE {2.5 / 9 + 1:.3f} nats/token)" in _texts(plotted.svg)


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [_run(tmp_path / parent / "run", _rows()) for parent in ("x", "y")]
    with pytest.raises(EchoError, match="different folders") as caught:
        plot_run(runs)
    assert caught.value.tip is not None and "--output" in caught.value.tip
    plotted = plot_run([*runs, runs[0]], tmp_path / "pictures" / "two.svg")
    assert plotted.csv == tmp_path / "pictures" / "two.csv"
    assert {name for name, *_ in _table(plotted.csv)} == {"x/run", "y/run"}


def test_the_same_points_give_the_same_bytes(tmp_path: Path) -> None:
    runs = [_run(tmp_path / name, _rows()) for name in "ab"]
    first, second = plot_run(runs, tmp_path / "1"), plot_run(runs, tmp_path / "2")
    assert first.svg.read_bytes() == second.svg.read_bytes()
    assert first.png.read_bytes() == second.png.read_bytes()


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ([_row(0, True)], False),
        ([_row(1, False)], True),
        ([_row(0, False), _row(1, False), _row(2, False)], True),
        ([{"step": 0}], True),
    ],
)
def test_a_run_with_little_in_it_is_drawn_with_a_note(tmp_path: Path, rows: list[dict[str, Any]], note: bool) -> None:
    for runs in ([_run(tmp_path / "a", rows)], [tmp_path / "a", _run(tmp_path / "b", rows)]):
        plotted = plot_run(runs)
        _check_picture(plotted)
        assert ("no held-out evaluation yet" in _texts(plotted.svg)) == note


def test_names_are_data(tmp_path: Path) -> None:
    names = ["_$\\frac{1}{0}$ <b>&", "\x1b[31mred\n", "日本", "x" * 200]
    for runs in ([tmp_path / names[0]], [tmp_path / name for name in names]):
        for run in runs:
            if not run.exists():
                _run(run, [{"step": 0, "heldout/env_ce": 1.0}])
        plotted = plot_run(runs)
        texts = " ".join(_texts(plotted.svg))
        assert "run _$\\frac{1}{0}$ <b>&" in texts
    assert "\\x1b[31mred\\n" in texts and "日本" in texts and "x…x" in texts
    assert "x" * 200 in {name for name, *_ in _table(plotted.csv)}


def test_a_sweep_has_mean_and_range_at_the_steps_all_seeds_have(tmp_path: Path) -> None:
    full = [_run(tmp_path / f"a{seed}", _rows(shift=seed)) for seed in range(3)]
    short = [
        _run(tmp_path / "b0", _rows()),
        _run(tmp_path / "b1", _rows(last=5)),
        _run(tmp_path / "b2", [_row(1, False)]),
    ]
    plotted = plot_sweep([("λ = 0", full[:1]), ("λ = 0", full[1:]), ("_λ = 0.05", short)], tmp_path / "sweep")
    assert plotted.csv == tmp_path / "sweep" / "comparison.csv"
    _check_picture(plotted)
    table = {(label, step, series): value for label, step, series, value in _table(plotted.csv)}
    assert table["λ = 0", 12, "heldout/env_ce/mean"] == pytest.approx(2.5 / 13 + 1)
    assert table["λ = 0", 12, "heldout/env_ce/max"] - table["λ = 0", 12, "heldout/env_ce/min"] == pytest.approx(2.0)
    assert {step for label, step, _ in table if label == "_λ = 0.05"} == {0, 4}
    texts = " ".join(_texts(plotted.svg))
    assert "λ = 0 (mean and min–max of 3 runs)" in texts
    assert "_λ = 0.05 (mean and min–max of 3 runs; 1 without evaluation; at the steps common to all)" in texts


def test_a_sweep_without_tasks_played_has_its_env_ce_and_a_note(tmp_path: Path) -> None:
    runs = [_run(tmp_path / str(seed), [{"step": 0, "heldout/env_ce": 1.0 + seed}]) for seed in range(2)]
    texts = _texts(plot_sweep([("λ = 0", runs)], tmp_path / "sweep").svg)
    assert "λ = 0 (mean and min–max of 2 runs)" in " ".join(texts)
    assert "no held-out tasks played" in texts and "no held-out evaluation yet" not in texts


def test_a_band_over_one_run_is_its_curve() -> None:
    curve = Curve("a", None, {"m": [(0, 1.0), (5, 2.0)]}, None)
    assert band([curve], "m") == Band([0, 5], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], 1, False)
    assert band([Curve("a", None, {"m": []}, None)], "m") == Band([], [], [], [], 0, False)


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    run = _run(tmp_path / "toy", _rows())
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "tra')
    assert read_curve(run, "toy", ["train/env_ce"]).series["train/env_ce"][-1][0] == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "lacks config.yaml or metrics.jsonl"),
        ("", "is empty"),
        ('{"train/env_ce": 1}\n', "a row has no step"),
        ('{"step": 1, "train/env_ce": "low"}\n', "train/env_ce of step 1 is not a number"),
        ('{"step"\n{"step": 2}\n', "metrics.jsonl:1: not JSON"),
    ],
)
def test_a_folder_that_cannot_be_plotted_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    run = tmp_path / "toy"
    run.mkdir()
    (run / "config.yaml").write_text("")
    if content is not None:
        (run / "metrics.jsonl").write_text(content)
    with pytest.raises(EchoError) as caught:
        plot_run([run])
    assert message in caught.value.message and str(run) in caught.value.message
    assert caught.value.tip and "\n" not in f"{caught.value.message}{caught.value.tip}"


def test_nothing_to_plot_and_nowhere_to_write_are_errors(tmp_path: Path) -> None:
    run = _run(tmp_path / "toy", _rows())
    with pytest.raises(EchoError, match="no run to plot"):
        plot_run([])
    with pytest.raises(EchoError, match="no run to plot"):
        plot_sweep([], tmp_path)
    with pytest.raises(EchoError, match="no run to plot"):
        plot_sweep([("a", [])], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(EchoError, match="cannot write"):
        plot_run([run], tmp_path / "file" / "figure.png")


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "tkagg"])
def test_plotting_needs_no_display_and_leaves_pyplot_and_the_backend_alone(tmp_path: Path, backend: str) -> None:
    run = _run(tmp_path / "toy", _rows())
    script = (
        "import os, sys; from pathlib import Path; from echo_cli.reports.run_figure import plot_run;"
        "plot_run([Path(sys.argv[1])]);"
        "print('matplotlib.pyplot' in sys.modules, os.environ['MPLBACKEND'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | {"MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", script, str(run)], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == (f"False {backend}\n", "")
    assert (run / "heldout_env_ce.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["figure.pdf", "x.txt", "run.json"])
def test_another_file_format_is_refused_and_a_folder_with_a_dot_is_none(tmp_path: Path, name: str) -> None:
    run = _run(tmp_path / "toy", _rows())
    with pytest.raises(EchoError, match=r"not a \.png, \.svg or \.csv"):
        plot_run([run], tmp_path / name)
    assert not (tmp_path / name).exists()
    (tmp_path / name).mkdir()
    assert plot_run([run], tmp_path / name).png.parent == tmp_path / name
    assert plot_run([run], tmp_path / "run-0.5").png.parent == tmp_path / "run-0.5"
