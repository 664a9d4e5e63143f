"""Rows, tables, files and page of a sweep, from its cells: figures computed by hand."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from echo_cli.cli.display.results import print_sweep
from echo_cli.config.schema import Config
from echo_cli.reports.sweep_figure import plot_lambda_axis
from echo_cli.reports.sweep_page import write_report
from echo_cli.sweeps.arms import Arm, lambda_arm
from echo_cli.sweeps.files import sweep_object, write_tables
from echo_cli.sweeps.results import CellResult, pairs_of, results_of, with_figures
from echo_cli.sweeps.runner import CellStatus
from echo_cli.sweeps.tables import NOTES, sweep_tables
from echo_cli.sweeps.verdict import RULE


def _cell(coeff: float, seed: int, passes: list[float], last: float = 1.0, **changes: Any) -> CellResult:
    """Return a finished cell, evaluated at steps 0, 10, ...; env-CE starts at 2, its best is 0.05 below the last."""
    steps = [10 * index for index in range(len(passes))]
    rows = [
        {
            "step": step,
            "heldout/pass_at_1": value,
            "train/groups_all_failed": step / 100 if step else None,
            "train/groups_all_solved": 0.5 if step else None,
            "probe/action_kl": 0.02 if step == 10 else None,
            "train/probe_ratio": 4.0 if step else None,
            "train/probe_cosine": 0.5 if step == 10 else None,
            "train/lambda": coeff if step else None,
            "time/probe_s": 0.5 if step else None,
        }
        for step, value in zip(steps, passes, strict=True)
    ]
    summary = {
        "status": "finished",
        "steps": steps[-1],
        "seconds": 10.0,
        "portable_lambda": 2 * coeff,
        "heldout": {
            "before": {"step": 0, "pass_at_1": passes[0], "env_ce": 2.0, "env_ce_start": 2.0},
            "best": {"step": 10, "pass_at_1": passes[1], "env_ce": last - 0.05, "env_ce_start": 2.0},
            "last": {"step": steps[-1], "pass_at_1": passes[-1], "env_ce": last, "env_ce_start": 2.0},
        },
        "ood": {"before": None, "best": None, "last": {"step": steps[-1], "env_ce": 3.0, "env_ce_start": 2.5}},
    }
    whole = {
        "name": f"lambda-{coeff:g}-seed{seed}",
        "arm": lambda_arm(coeff),
        "outcome": CellStatus("finished"),
        "summary": summary,
        "rows": rows,
    }
    return CellResult(coeff=coeff, seed=seed, **{**whole, **changes})


def _failed(coeff: float, seed: int, status: Any = "failed", error: str = "the disk is full") -> CellResult:
    return _cell(coeff, seed, [0.0, 0.0], outcome=CellStatus(status, error), summary=None, rows=[])


CELLS = with_figures(
    [
        _cell(0.0, 0, [0.2, 0.4, 0.3], last=1.9),
        _cell(0.0, 1, [0.2, 0.3, 0.3], last=2.1),
        _cell(0.0, 2, [0.5, 0.3, 0.3], last=2.0),
        _cell(0.5, 0, [0.2, 0.3, 0.5], last=1.0),
        _cell(0.5, 1, [0.2, 0.3, 0.6], last=1.1),
        _cell(0.5, 2, [0.5, 0.3, 0.4], last=1.2),
        _failed(0.5, 3),
        _failed(9.0, 0, "diverged"),
    ]
)
FIGURES = [cell.figures for cell in CELLS]
RESULTS = results_of(CELLS)


def test_a_cell_says_how_far_it_came_from_the_start_over_the_same_pairs() -> None:
    figures = FIGURES[3]
    assert figures["env_ce_change_last"] == pytest.approx((1.0 - 2.0) / 2.0)
    assert figures["env_ce_change_best"] == pytest.approx((0.95 - 2.0) / 2.0)
    assert figures["env_ce_rise"] == pytest.approx(0.05 / 2.0)
    assert figures["ood_env_ce_change_last"] == pytest.approx(0.2)
    assert figures["pass_at_1_change"] == pytest.approx(0.3)
    assert figures["best_step"] == 10


def test_the_gradient_ratio_has_lambda_in_it_and_the_probe_its_share_of_the_seconds() -> None:
    figures = FIGURES[3]
    assert figures["gradient_ratio"] == pytest.approx(0.5 * 4.0)
    assert figures["gradient_cosine"] == 0.5
    assert figures["portable_lambda"] == 1.0
    assert figures["probe_share_of_seconds"] == pytest.approx(2 * 0.5 / 10.0)


def test_pass_at_1_averaged_over_the_steps_prefers_the_faster_of_two_runs_that_end_alike() -> None:
    # Evaluated at steps 0, 10 and 20: (0.2 + 2 · 0.4 + 0.3) / 4.
    assert FIGURES[0]["pass_at_1_mean"] == pytest.approx(0.325)
    fast, slow = with_figures([_cell(0.5, 0, [0.2, 0.5, 0.5]), _cell(0.5, 1, [0.2, 0.2, 0.5])])
    assert (fast.figures["pass_at_1_mean"] or 0) > (slow.figures["pass_at_1_mean"] or 0)
    difference = RESULTS[1].measures["pass_at_1_mean_difference"]
    assert difference is not None and difference.seeds == 3
    assert difference.estimate.value == pytest.approx((0.325 + 0.35 + 0.375 - 0.325 - 0.275 - 0.35) / 3)
    assert sweep_tables(RESULTS)[1].rows[1][4] == "0.350"


def test_outcomes_beside_pass_at_1_and_the_verdict_on_tasks() -> None:
    wide = [_cell(coeff, seed, [0.2, 0.2, 0.2 + coeff + seed / 100]) for coeff in (0.0, 0.5) for seed in range(3)]
    for cell in wide:
        assert cell.summary is not None
        cell.summary["heldout_rollouts"] = 4
        cell.summary["heldout"]["last"] |= {"pass_at_4": 0.4 + cell.coeff, "refused_fraction": 0.25}
    found = with_figures(wide)
    names = ("pass_at_k_last", "refused_last", "groups_all_failed", "groups_all_solved", "action_kl")
    assert [found[3].figures[name] for name in names] == pytest.approx([0.9, 0.25, 0.15, 0.5, 0.02])
    first, second = results_of(found)
    assert (first.tasks.name, second.tasks.name) == ("inconclusive", "solves more")
    # (0 + 0 + 0.5 / 2) / 2 at every seed: the interval has no width.
    assert second.tasks.reason == "pass@1 over the steps +0.125 [+0.125, +0.125]"
    assert second.to_json()["tasks"] == "solves more"
    table = sweep_tables([first, second])[2]
    assert table.rows[1][1:4] == ["solves more", "0.900", "+0.50 [+0.50, +0.50]"]
    assert list(table.rows[1][4:]) == ["25.0%", "15.0%", "50.0%", "0.0200"]


def test_one_evaluation_of_the_tasks_is_no_curve() -> None:
    rows = [{"step": 10, "heldout/pass_at_1": 0.3}]
    (alone,) = with_figures([_cell(0.5, 0, [0.2, 0.3], rows=rows)])
    assert alone.figures["pass_at_1_mean"] is None


def test_a_row_has_mean_interval_and_spread_over_the_finished_seeds() -> None:
    last = RESULTS[1].measures["env_ce_last"]
    assert last is not None and last.seeds == 3
    assert last.estimate.value == pytest.approx(1.1)
    assert last.spread == pytest.approx(0.1)
    half = 4.302652729911275 * 0.1 / 3**0.5  # t(0.975, 2)
    assert last.estimate.low == pytest.approx(1.1 - half) and last.estimate.high == pytest.approx(1.1 + half)


def test_differences_are_paired_by_seed() -> None:
    difference = RESULTS[1].measures["env_ce_last_difference"]
    assert difference is not None and difference.seeds == 3
    assert difference.estimate.value == pytest.approx((-0.9 - 1.0 - 0.8) / 3)
    assert difference.spread == pytest.approx(0.1)
    assert RESULTS[0].measures["env_ce_last_difference"] is None
    alone = results_of(with_figures(CELLS[3:6]))[0]
    assert alone.measures["env_ce_last_difference"] is None
    assert alone.measures["pass_at_1_mean_difference"] is None
    only_other_seeds = [_cell(0.0, 7, [0.2, 0.2]), *CELLS[3:6]]
    assert results_of(with_figures(only_other_seeds))[1].measures["env_ce_last_difference"] is None


def test_every_lambda_has_a_verdict_and_counts_of_its_runs() -> None:
    rows = [result.to_json() for result in RESULTS]
    assert [row["verdict"] for row in rows] == ["inconclusive", "learns", "collapsed"]
    assert [(row["runs"], row["finished"], row["diverged"], row["failed"]) for row in rows] == [
        (3, 3, 0, 0),
        (4, 3, 0, 1),
        (1, 0, 1, 0),
    ]
    assert rows[2]["env_ce_last"] is None


def test_the_printed_tables_fit_80_columns_and_hold_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [
        _cell(coeff, seed, [0.2, 0.3, 0.1 * seed], last=1 + 0.3 * seed) for coeff in (0, 0.005) for seed in range(9)
    ]
    print_sweep(sweep_tables(results_of(with_figures(cells))), NOTES, RULE, "outputs/sweep/report.html")
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert sum(line.strip().startswith("0.005 ") for line in lines) >= 3


def _table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_files_hold_rows_cells_and_the_rule(tmp_path: Path) -> None:
    write_tables(tmp_path, sweep_object([Config()], CELLS, RESULTS))
    sweep = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["lambda"] for row in sweep["rows"]] == [0.0, 0.5, 9.0]
    assert sweep["rows"][1]["env_ce_last"].keys() == {"value", "low", "high", "spread", "seeds"}
    assert sweep["rule"] == list(RULE)
    assert [cell["error"] for cell in sweep["cells"][-2:]] == ["the disk is full"] * 2
    assert "world_model_coeff" not in sweep["config"]["objective"]
    rows = _table(tmp_path / "sweep.csv")
    assert [row["verdict"] for row in rows] == ["inconclusive", "learns", "collapsed"]
    assert float(rows[1]["env_ce_last"]) == pytest.approx(1.1) and rows[2]["env_ce_last_low"] == ""
    cells = _table(tmp_path / "cells.csv")
    assert [row["status"] for row in cells] == ["finished"] * 6 + ["failed", "diverged"]
    assert float(cells[3]["gradient_ratio"]) == 2.0


def test_cells_without_any_gradient_have_their_own_name_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = with_figures([*CELLS[:3], *(_failed(9.0, seed, "no_gradient", "all is malformed") for seed in range(3))])
    results = results_of(cells)
    assert results[1].verdict.name == "no gradient" and "3 of 3" in results[1].verdict.reason
    sweep = sweep_object([Config()], cells, results)
    write_tables(tmp_path, sweep)
    assert [row["status"] for row in _table(tmp_path / "cells.csv")][3:] == ["no_gradient"] * 3
    assert [(row["collapsed"], row["no_gradient"]) for row in _table(tmp_path / "sweep.csv")] == [
        ("0", "0"),
        ("0", "3"),
    ]
    print_sweep(sweep_tables(results), NOTES, RULE, "report.html")
    assert re.search(r"^ 9 +0/3 +no gradient ", capsys.readouterr().out, re.MULTILINE)
    page = write_report(
        tmp_path, sweep, sweep_tables(results), command="echo-cli sweep-lambda 0 9", pictures=[]
    ).read_text()
    assert page.count("no_gradient") == 3 and "all is malformed" in page


def test_each_criterion_of_a_grader_has_figures_differences_and_a_table(tmp_path: Path) -> None:
    cells = [_cell(coeff, seed, [0.2, 0.3]) for coeff in (0.0, 0.5) for seed in range(2)]
    for cell, last in zip(cells, (0.2, 0.4, 0.7, 0.9), strict=True):
        assert cell.summary is not None
        cell.summary["heldout"]["before"]["criterion_short"] = 0.1
        cell.summary["heldout"]["last"]["criterion_short"] = last
    cells = [*(replace(cell, criteria=("short", "form")) for cell in cells), _failed(0.5, 2)]
    found = with_figures(cells)
    results = results_of(found)
    measured = results[1].measures["criterion_short_last"]
    assert measured is not None and (measured.seeds, measured.estimate.value) == (2, pytest.approx(0.8))
    assert results[1].measures["criterion_form_last"] is None
    tables = sweep_tables(results, pairs_of(found))
    short, form = tables[3:5]
    assert (short.title, form.title) == ("held-out criterion short, mean", "held-out criterion form, mean")
    assert [row[1] for row in short.rows] == ["0.100", "0.100"]
    assert short.rows[1][3] == "+0.50 [+0.50, +0.50]" and list(form.rows[1][1:]) == ["-", "-", "-"]

    sweep = sweep_object([Config()], found, results)
    write_tables(tmp_path, sweep)
    assert "criterion short" in sweep["figures"]["criterion_short_last_difference"]
    assert [row["criterion_short_last"] for row in _table(tmp_path / "cells.csv")] == ["0.2", "0.4", "0.7", "0.9", ""]
    row = _table(tmp_path / "sweep.csv")[1]
    assert float(row["criterion_short_last_difference"]) == pytest.approx(0.5) and row["criterion_form_last"] == ""
    page = write_report(tmp_path, sweep, tables, command="echo-cli sweep-lambda 0 0.5", pictures=[]).read_text()
    assert "held-out criterion short, mean" in page


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        places = [value or "" for name, value in attrs if name in ("src", "href")]
        self.sources += [place for place in places if not place.startswith("#")]  # on the page itself
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""


def test_the_report_is_one_page_that_loads_nothing_and_escapes_text(tmp_path: Path) -> None:
    cells = with_figures([*CELLS, _failed(0.5, 4, error="<script>alert(1)</script>\x1b[31m")])
    results = results_of(cells)
    picture = plot_lambda_axis(results, cells, tmp_path).png
    sweep = sweep_object([Config()], cells, results)
    report = write_report(
        tmp_path, sweep, sweep_tables(results), command="echo-cli sweep-lambda <0>", pictures=[("A & B", picture)]
    )
    text = report.read_text()
    page = _Page()
    page.feed(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert "default-src 'none'" in page.policy and "unsafe" not in page.policy and "script-src" not in page.policy
    assert page.tags.count("table") == page.tags.count("caption") == 6
    assert all(source.startswith("data:image/png;base64,") for source in page.sources) and len(page.sources) == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m" in text
    assert "sweep-lambda &lt;0&gt;" in text
    assert "learns" in text and "diverged" in text and "explorer_commands" in text


def test_the_axis_is_drawn_with_gaps_one_seed_or_nothing_measured(tmp_path: Path) -> None:
    for cells in (CELLS, CELLS[:1], with_figures([_failed(0.0, 0)])):
        plotted = plot_lambda_axis(results_of(cells), cells, tmp_path)
        assert plotted.png.stat().st_size > 0
    assert _table(plotted.csv) == []
    plotted = plot_lambda_axis(RESULTS, CELLS, tmp_path)
    points = {(row["run"], row["series"], row["step"]): float(row["value"]) for row in _table(plotted.csv)}
    assert points["lambda-0.5-seed1", "pass_at_1_last", "20"] == 0.6
    assert points["lambda-0.5-seed1", "env_ce_start_last", "0"] == 2.0


def test_runs_without_novel_pairs_show_env_ce_of_seen_pairs() -> None:
    cells = [_cell(1.0, seed, [0.2, 0.3], last=1.0) for seed in range(3)]
    for cell, seen in zip(cells[:2], (0.1, 0.3), strict=True):
        assert cell.summary is not None
        cell.summary["heldout"]["last"] |= {"env_ce": None, "env_ce_start": None, "env_ce_seen": seen}
    some, every = results_of(with_figures(cells)), results_of(with_figures(cells[:2]))
    table, *_ = sweep_tables([*some, *every])
    last = list(table.columns).index("last")
    assert [row[last] for row in table.rows] == ["1.000 (1/3), 0.200 seen (2/3)", "0.200 seen"]
    assert some[0].verdict.name == "inconclusive"
    assert "2 of 3 runs have executed every held-out pair" in some[0].verdict.reason


def _named(name: str, coeff: float, passes: list[list[float]], last: float) -> list[CellResult]:
    arm = Arm(name, (f"objective.world_model_coeff={coeff}", "optim.lr=0.1"), named=True)
    return [_cell(coeff, seed, of, last, arm=arm, name=f"{arm.stem}-seed{seed}") for seed, of in enumerate(passes)]


ARMS = with_figures(
    [
        *_named("grpo", 0.0, [[0.2, 0.3], [0.2, 0.5]], 2.0),
        *_named("own", 0.3, [[0.2, 0.6], [0.2, 0.6]], 1.5),
        *_named("explorers-of-this-machine", 0.3, [[0.2, 0.9], [0.2, 0.7]], 1.0),  # the λ of another arm
    ]
)


def test_arms_are_paired_by_seed_with_the_first_arm_and_with_each_other() -> None:
    results, pairs = results_of(ARMS), pairs_of(ARMS)
    assert [result.arm.label for result in results] == ["grpo", "own", "explorers-of-this-machine"]
    differences = [result.measures["pass_at_1_last_difference"] for result in results]
    assert differences[0] is None
    for found, value in zip(differences[1:], (0.2, 0.4), strict=True):
        assert found is not None and found.seeds == 2 and found.estimate.value == pytest.approx(value)
    assert [(pair.arm.label, pair.other.label) for pair in pairs] == [
        ("own", "grpo"),
        ("explorers-of-this-machine", "grpo"),
        ("explorers-of-this-machine", "own"),
    ]
    last = pairs[2].differences["pass_at_1_last"]
    assert last is not None and last.seeds == 2 and last.estimate.value == pytest.approx((0.3 + 0.1) / 2)
    assert last.spread == pytest.approx(0.1 * 2**0.5)
    with_zero = results_of([*with_figures([_cell(0.0, 1, [0.2, 0.1])]), *ARMS])
    found = with_zero[1].measures["pass_at_1_last_difference"]
    assert found is not None and found.seeds == 1 and found.estimate.value == pytest.approx(0.5 - 0.1)


def test_arms_have_rows_in_every_table_file_figure_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [*CELLS[3:6], *ARMS]
    results, pairs = results_of(cells), pairs_of(cells)
    tables = sweep_tables(results, pairs)
    assert [table.columns[0] for table in tables] == ["arm", "arm", "arm", "arm", "arms"]
    assert [row[0] for row in tables[0].rows] == ["λ = 0.5", "grpo", "own", "explorers-of-this-machine"]
    assert [row[0] for row in tables[4].rows][:2] == ["grpo - λ = 0.5", "own - λ = 0.5"]
    assert "last vs grpo" in tables[1].columns
    print_sweep(tables, NOTES, RULE, "report.html")
    assert max(len(line.rstrip()) for line in capsys.readouterr().out.splitlines()) <= 80
    configs = [Config(seed=1), Config(seed=2, steps=9)]
    sweep = sweep_object(configs, cells, results)
    assert "steps" not in sweep["config"] and sweep["config"]["model"] == Config().model_dump(mode="json")["model"]
    assert [row["arm"] for row in sweep["rows"]] == ["0.5", "grpo", "own", "explorers-of-this-machine"]
    assert sweep["arms"]["own"] == ["objective.world_model_coeff=0.3", "optim.lr=0.1"]
    assert sweep["baseline"] == "grpo" and len(sweep["pairs"]) == 6
    assert sweep["figures"]["pass_at_1_last_difference"].startswith("to grpo: ")
    write_tables(tmp_path, sweep)
    assert [(row["arm"], row["lambda"]) for row in _table(tmp_path / "sweep.csv")][1:3] == [
        ("grpo", "0.0"),
        ("own", "0.3"),
    ]
    plotted = plot_lambda_axis(results, cells, tmp_path)
    drawn = re.sub(r"<!--|-->", "", plotted.svg.read_text())
    assert "explorers-" in drawn and "machine" in drawn
    page = write_report(tmp_path, sweep, tables, command="echo-cli sweep-lambda", pictures=[]).read_text()
    assert "4 arms × 3 seeds" in page and "explorers-of-this-machine - own" in page
