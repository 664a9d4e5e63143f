"""Content of a report: figures equal to eval-heldout's, curves thinned without loss of extremes, never above 2 MB."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import error_of, train
from trace_files import store, trace_file

from echo_cli.cli.main import main
from echo_cli.files import append_jsonl, read_jsonl
from echo_cli.reports.charts import METRICS, charts, thinned
from echo_cli.reports.content import (
    Column,
    ObservationHeat,
    PageEpisode,
    PageText,
    Report,
    RunReport,
    differing,
    in_turn,
    least_predictable,
    most_improved,
    plain_columns,
    shortened,
)
from echo_cli.reports.page import MOST_BYTES, page
from echo_cli.reports.run_content import read_run
from echo_cli.runs.checkpoints import Checkpoints
from echo_cli.runs.curves import Curve, read_curve
from echo_cli.runs.directory import open_run
from echo_cli.statistics import Estimate


@pytest.fixture(scope="module")
def read(played: Path) -> RunReport:
    return read_run(played, "run", checkpoint=None, most_episodes=40)


@pytest.fixture
def quick(played: Path, tmp_path: Path) -> Path:
    """A copy whose report replays no tasks."""
    run = shutil.copytree(played, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("heldout_rollouts: 2", "heldout_rollouts: 0"))
    return run


def _curve(name: str = "a", **series: list[tuple[int, float]]) -> Curve:
    points = {metric: series.get(metric.replace("/", "_"), []) for metric in METRICS}
    return Curve(name, 1.0, points, best_step=2)


def _episode(*texts: PageText, origin: str = "rollout") -> PageEpisode:
    return PageEpisode(origin, 0, "task", "policy", "answered", 1.0, None, texts)  # type: ignore[arg-type]


def _run(name: str = "a", **changes: Any) -> RunReport:
    values: dict[str, Any] = {
        **{key: {} for key in ("facts", "pairs", "config")},
        **dict.fromkeys(("columns", "alarms", "notes", "episodes", "observations"), ()),
        **{
            "name": name,
            "measured": False,
            "base": ("defaults", {}),
            "trained_on": (0, 0),
            "checkpoint": None,
            "roles": None,
        },
        **{"episodes_there": len(changes.get("episodes", ()))},
    }
    return RunReport(**values | changes)


def test_a_thinned_line_keeps_its_ends_and_its_extremes() -> None:
    points = [(step, float((step * 7919) % 1009)) for step in range(5000)]
    points[2500] = (2500, 1e6)
    thin = thinned(points, 100)
    assert len(thin) <= 100 and thin == sorted(thin) and set(thin) <= set(points)
    assert thin[0] == points[0] and thin[-1] == points[-1]
    assert max(thin, key=lambda p: p[1]) == (2500, 1e6)
    assert min(value for _, value in thin) == min(value for _, value in points)
    assert thinned(points[:7], 100) == points[:7]
    assert thinned([(0, 1.0), (1, float("nan"))], 100) == [(0, 1.0)]


def test_a_chart_without_values_is_left_out_and_the_best_step_is_starred() -> None:
    drawn = charts([_curve(heldout_env_ce=[(0, 2.0), (2, 1.0)]), _curve("b")], 100)
    assert [chart.title for chart in drawn] == ["Held-out env-CE"]
    assert [(line.run, line.series) for line in drawn[0].lines] == [(0, 0)]
    assert drawn[0].best == ((0, 2, 1.0),)


def test_a_best_step_without_a_value_has_no_star() -> None:
    (drawn,) = charts([_curve(heldout_env_ce=[(0, 2.0), (2, float("nan"))])], 100)
    assert drawn.best == () and drawn.steps == [0]


def test_an_episode_is_cut_at_its_pieces_and_says_by_how_much() -> None:
    heat = (0.5, 1.5, 2.5)
    cut = shortened(
        _episode(PageText("action", None, ("abc", "de", "fgh"), heat, heat), PageText("context", None, ("xyz",))), 4, 6
    )
    assert cut.texts[0] == PageText("action", None, ("abc", "d"), heat[:2], heat[:2], left_out=4)
    assert cut.texts[1] == PageText("context", None, ("xy",), left_out=1)
    whole = _episode(PageText("action", None, ("abc",)))
    assert shortened(whole, 3, 3) == whole and not whole.is_cut


def test_observations_are_ranked_by_nats_per_token() -> None:
    found = [
        ObservationHeat(str(n), "out", 1, before, after, True)
        for n, (before, after) in enumerate([(3, 1), (2, 2.5), (5, 4)])
    ]
    assert [entry.command for entry in most_improved(found)] == ["0", "2"]
    assert [entry.command for entry in least_predictable(found)] == ["2", "1", "0"]


def test_config_differences_are_between_runs_or_from_the_start() -> None:
    one, two = _run("a", config={"x": 1, "y": 2}), _run("b", config={"x": 1, "y": 3, "z": "new"})
    assert differing(Report((one, two), ())) == {"y": {"a": 2, "b": 3}, "z": {"a": None, "b": "new"}}
    alone = _run("a", config={"x": 1, "y": 2}, base=("shipped config toy", {"x": 1, "y": 5}))
    assert differing(Report((alone,), ())) == {"y": {"shipped config toy": 5, "a": 2}}


def test_any_beginning_of_the_episodes_has_its_share_of_runs_and_origins() -> None:
    pool, rollout = _episode(origin="held-out pool"), _episode()
    runs = [_run("a", episodes=(pool, pool, pool, rollout)), _run("b", episodes=(rollout,))]
    assert list(in_turn(runs)) == [(0, 0), (0, 3), (1, 0), (0, 1), (0, 2)]


def test_a_page_never_grows_beyond_2_mb_and_says_what_is_left_out() -> None:
    episodes = tuple(_episode(PageText("env_output", None, ("<\x1b&" * 30_000,))) for _ in range(60))
    found = page(Report((_run(episodes=episodes, episodes_there=70),), (_curve(heldout_env_ce=[(0, 1.0)]),)))
    assert len(found.html.encode()) <= MOST_BYTES
    assert 0 < found.shown < 60 and found.cut == found.shown and found.left_out == 70 - found.shown
    assert f"{found.left_out} more are omitted" in found.html
    assert f"{found.cut} of the shown episodes are truncated" in found.html


@pytest.mark.parametrize(("runs", "most"), [(4, 200), (7, 80)])
def test_many_long_runs_get_fewer_points_and_still_fit(runs: int, most: int) -> None:
    line = [(step, step**0.5 * 1.2345678) for step in range(600)]
    drawn = [metric for metric in METRICS if not metric.endswith("/env_ce_seen")]  # never beside env_ce
    curves = tuple(_curve(f"run {n}", **{metric.replace("/", "_"): line for metric in drawn}) for n in range(runs))
    found = page(Report(tuple(_run(curve.name) for curve in curves), curves))
    assert len(found.html.encode()) <= MOST_BYTES and f"Lines of more than {most} points are thinned" in found.html


HOSTILE = "</script><b id=x onload='alert(1)'>\"\x1b[31m\u202e\ud800\r\0 {{ 7 * 7 }} {% endfor %} &lt;"


def _hostile(value: Any) -> Any:
    """Append `HOSTILE` to every text in `value`, including the keys of mappings."""
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _hostile(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, dict):
        return {_hostile(key): _hostile(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_hostile, value))
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


class _Tags(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, frozenset[str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, frozenset(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_no_text_of_a_run_is_markup_or_unprintable_wherever_it_stands() -> None:
    heat = (0.5,)
    texts = (PageText("action", "stdout", ("a",), heat, heat), PageText("context", None, ("b",)))
    plain = _run(
        facts={"status": "finished at step 4", "λ": "1", "python": "3"},
        columns=(Column("best", 4, {"heldout/env_ce": Estimate(1.0, 0.5, 1.5)}),),
        measured=True,
        pairs={"heldout": 3},
        config={"x": "y"},
        alarms=("alarm",),
        notes=("note",),
        checkpoint=4,
        episodes=(replace(_episode(*texts), advantage=0.5),),
        observations=(ObservationHeat("ls", "one\n" * 9, 3, 2.0, 1.0, True),),
    )
    curves = tuple(_curve(name, heldout_env_ce=[(0, 1.0), (2, 2.0)]) for name in "ab")
    for runs in ((plain,), (plain, replace(plain, name="b", config={"x": "z"}))):
        report = Report(runs, curves[: len(runs)], ("all",))
        # Not text of a run: keys and words chosen by the code.
        hostile = _hostile(report)
        hostile = replace(
            hostile,
            runs=tuple(
                replace(
                    run,
                    pairs=own.pairs,
                    columns=own.columns,
                    facts=dict(zip(own.facts, run.facts.values(), strict=True)),
                )
                for run, own in zip(hostile.runs, report.runs, strict=True)
            ),
            curves=report.curves,
        )
        html = page(hostile).html
        found, clean = _Tags(html), _Tags(page(report).html)
        assert found.tags == clean.tags
        assert all(character.isprintable() or character in "\n\t" for character in html)
        assert (
            found.text.count("{{ 7 * 7 }} {% endfor %} &lt;") >= 20 and "\\x1b[31m\\u202e\\ud800\\r\\x00" in found.text
        )
        assert page(hostile).html == html


def test_the_summary_has_the_figures_and_intervals_of_eval_heldout(
    played: Path, read: RunReport, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert (
        main(["eval-heldout", str(played), "--checkpoint", "latest", "--rollouts", "0", "--json", "-o", str(played)])
        == 0
    )
    records = json.loads(capsys.readouterr().out)["measurements"]
    headline = {r["model"]: r for r in records if (r["pool"], r["group"]) == ("heldout", "headline")}
    columns = {column.label: column for column in read.columns}
    assert read.measured and columns["last"].step == 4
    for label, model in (("before", "initial"), ("last", "policy")):
        for name in ("env_ce", "env_bits_per_byte", "token_accuracy"):
            found = columns[label].figures[f"heldout/{name}"]
            assert found.to_json() == pytest.approx(headline[model][name])


def test_pass_at_1_is_that_of_the_runs_own_evaluation_with_an_interval(played: Path, read: RunReport) -> None:
    rows = {row["step"]: row for row in open_run(played).read_metrics()}
    for label, step in (("before", 0), ("last", 4)):
        (column,) = (column for column in read.columns if column.label == label)
        found = column.figures["heldout/pass_at_1"]
        assert found.value == pytest.approx(rows[step]["heldout/pass_at_1"])
        assert found.low is not None and found.high is not None and found.low <= found.value <= found.high


def test_episodes_have_the_text_they_had_and_heat_where_something_was_scored(played: Path, read: RunReport) -> None:
    rollouts = [episode for episode in read.episodes if episode.origin == "rollout"]
    rows = list(read_jsonl(open_run(played).trajectories_path))
    assert len(rollouts) == len(rows) == 10 and {episode.step for episode in rollouts} == {0, 4}
    for episode, row in zip(rollouts, rows, strict=True):
        assert ["".join(text.pieces) for text in episode.texts] == [segment["text"] for segment in row["segments"]]
        for text in episode.texts:
            assert (text.before is None) == (text.role == "context")
            if text.before is not None and text.after is not None:
                assert len(text.pieces) == len(text.before) == len(text.after)
    pool = [episode for episode in read.episodes if episode.origin == "held-out pool"]
    assert pool and read.episodes_there == len(read.episodes)


def test_an_advantage_is_given_where_the_whole_group_was_kept(quick: Path) -> None:
    shutil.rmtree(quick / "checkpoints")
    rows = list(read_jsonl(quick / "trajectories.jsonl"))
    (quick / "trajectories.jsonl").unlink()
    judged = [{**row, "reward": reward} for row, reward in zip(rows, (0.0, 1.0, 1.0, 0.0, 1.0), strict=False)]
    append_jsonl(quick / "trajectories.jsonl", judged)
    config = (quick / "config.yaml").read_text()
    (quick / "config.yaml").write_text(config.replace("heldout_rollouts: 0", "heldout_rollouts: 2"))
    read = read_run(quick, "run", checkpoint=None, most_episodes=40)
    advantages = [episode.advantage for episode in read.episodes if episode.origin == "rollout"]
    half = 0.5**0.5  # a deviation of 1/2 over a standard deviation of √(1/2)
    assert advantages[:4] == pytest.approx([-half, half, half, -half], abs=1e-4)
    assert advantages[4:] == [None]  # the fifth is the only kept rollout of a group of two


def test_without_an_rl_term_there_is_no_advantage(played: Path, tmp_path: Path) -> None:
    shutil.copytree(played, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("use_rl: true", "use_rl: false"))
    found = read_run(tmp_path / "run", "run", checkpoint=None, most_episodes=8)
    assert {episode.advantage for episode in found.episodes} == {None}


def test_held_out_traces_beside_an_environment_are_in_summary_and_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = (f"traces.path={trace_file(tmp_path, store())}", "traces.per_step=2", "rollout.tasks_per_step=1")
    assert train(run, *words) == 0
    capsys.readouterr()
    assert main(["eval-heldout", str(run), "--checkpoint", "latest", "--rollouts", "0", "--json", "-o", str(run)]) == 0
    after = json.loads(capsys.readouterr().out)["after"]
    found = read_run(run, "run", checkpoint=None, most_episodes=4)
    last = next(column for column in found.columns if column.label == "last")
    plain = next(column for column in plain_columns(open_run(run).read_summary() or {}) if column.label == "last")
    for key in ("traces/env_ce", "traces/env_bits_per_byte", "traces/token_accuracy"):
        assert last.figures[key].value == pytest.approx(after[key]) == pytest.approx(plain.figures[key].value)
        assert last.figures[key].low is not None
    assert found.config["traces.path"] == ["traces.jsonl"]  # a page shows no folder of the machine
    assert found.pairs["traces"] == after["traces/novel_pairs"] > 0
    curve = read_curve(run, "run", METRICS)
    assert "Env-CE of held-out traces" in [chart.title for chart in charts([curve], 50)]
    assert '<th scope="row">held-out traces\' env-CE' in unescape(page(Report((found,), (curve,))).html)


def test_a_run_without_checkpoints_is_reported_with_plain_figures(
    played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(played, run)
    shutil.rmtree(run / "checkpoints")
    assert main(["report", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (record,) = found["runs"]
    assert not record["measured"] and any("no checkpoints" in note for note in record["notes"])
    before = next(column for column in record["columns"] if column["label"] == "before")
    summary = json.loads((run / "summary.json").read_text())
    expected = {"value": summary["heldout"]["before"]["env_ce"], "low": None, "high": None}
    assert before["figures"]["heldout/env_ce"] == expected
    assert found["file"] == str(run / "report.html") and found["bytes"] == (run / "report.html").stat().st_size
    assert found["episodes"]["shown"] > 10
    assert main(["report", str(run), "--checkpoint", "latest"]) == 2
    message, tip = error_of(capsys.readouterr().err.split("\n", 1)[1])
    assert message.endswith("has no checkpoint") and "copied without some of its files" in tip


def _losing(run: Path, monkeypatch: pytest.MonkeyPatch, losses: int) -> None:
    """Replace the last checkpoint by a later step's just before it is read, `losses` times."""
    load, left = Checkpoints.load, [losses]

    def losing(checkpoints: Checkpoints, which: str | int = "latest") -> Any:
        last = checkpoints.steps()[-1]
        if left[0] and which == last:
            left[0] -= 1
            folder = checkpoints.path / f"step_{last:06d}"
            meta = json.loads((folder / "meta.json").read_text())
            (folder / "meta.json").write_text(json.dumps({**meta, "step": last + 1}))
            folder.rename(checkpoints.path / f"step_{last + 1:06d}")
        return load(checkpoints, which)

    monkeypatch.setattr(Checkpoints, "load", losing)


def test_a_checkpoint_that_training_deletes_meanwhile_is_replaced_by_a_later_one(
    quick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last = open_run(quick).checkpoints.steps()[-1]
    (quick / "checkpoints" / "best").write_text(f"step_{0:06d}\n")
    _losing(quick, monkeypatch, 2)
    found = read_run(quick, "run", checkpoint=None, most_episodes=2)
    assert found.columns[-1].step == last + 2
    _losing(quick, monkeypatch, 99)
    assert main(["report", str(quick), "--episodes", "2"]) == 1
    message, tip = error_of(capsys.readouterr().err)
    assert "is being trained" in message and "checkpoint.keep" in tip
    monkeypatch.undo()
    assert main(["report", str(quick), "--checkpoint", "777"]) == 2
    assert "has no checkpoint of step 777" in error_of(capsys.readouterr().err)[0]


def test_a_run_that_measures_no_pass_at_1_is_not_said_to_lack_its_interval(quick: Path) -> None:
    assert any("pass@1 and mean reward have no intervals" in note for note in _notes(quick))
    lines = [json.loads(line) for line in (quick / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if "pass_at" not in key} for row in lines]
    (quick / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert not any("pass@1" in note for note in _notes(quick))


def _notes(run: Path) -> Sequence[str]:
    return read_run(run, "run", checkpoint=None, most_episodes=2).notes


def test_a_rollout_that_is_not_in_the_models_tokens_is_shown_without_heat(quick: Path) -> None:
    *_, row = read_jsonl(quick / "trajectories.jsonl")
    row["segments"][0]["token_ids"] = [1, 10**9]
    append_jsonl(quick / "trajectories.jsonl", [row])
    read = read_run(quick, "run", checkpoint=None, most_episodes=40)
    assert not read.episodes[-1].has_heat and any("without heat" in note for note in read.notes)


def test_a_run_of_a_users_environment_is_measured_on_the_pool_it_kept_and_nothing_is_started(
    played: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(played, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["environment"] = {  # no server listens there
        "url": "http://127.0.0.1:1",
        "tasks": {"items": [{"instruction": word} for word in "oak elm ash yew fir fig bay box".split()]},
        "action": {"template": {"command": "{text}"}},
        "observation": [{"path": "output", "channel": "stdout"}],
        "explorer": ["look"],
        "reward": {"none": "zero"},
    }
    config["model"]["path"] = "/somewhere/of/mine/tiny-base"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(run / "trajectories.jsonl", run / "pool_heldout.jsonl")
    blind = read_run(run, "run", checkpoint=None, most_episodes=40)
    assert not blind.measured and any("model cannot be loaded" in note for note in blind.notes)
    assert blind.config["model.path"] == "tiny-base" and "output_dir" not in blind.config
    assert sum(episode.origin == "held-out pool" for episode in blind.episodes) > 0

    config["model"]["path"] = "tiny-base"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    read = read_run(run, "run", checkpoint="latest", most_episodes=40)
    assert read.measured and set(read.pairs) == {"heldout"} and read.observations
    assert any("not replayed" in note for note in read.notes)
    (last,) = (column for column in read.columns if column.label == "last")
    expected = open_run(run).read_metrics()[-1]["heldout/pass_at_1"]
    assert last.figures["heldout/pass_at_1"] == Estimate(expected, None, None)


def test_few_episodes_are_of_both_kinds_and_of_both_ends_of_training(quick: Path) -> None:
    read = read_run(quick, "run", checkpoint=None, most_episodes=8)
    assert [episode.origin for episode in read.episodes] == ["held-out pool"] * 4 + ["rollout"] * 4
    assert [episode.step for episode in read.episodes[4:]] == [0, 4, 4, 4]
    assert not read_run(quick, "run", checkpoint=None, most_episodes=0).episodes


def test_reports_go_where_plots_go(played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [tmp_path / folder / "run" for folder in ("x", "y")]
    for run in runs:
        shutil.copytree(played, run, ignore=shutil.ignore_patterns("checkpoints"))
    words = ["report", *map(str, runs), "--episodes", "3"]
    assert main(words) == 2
    assert error_of(capsys.readouterr().err)[0] == "the runs are in different folders"
    assert main([*words, "-o", str(tmp_path / "both.txt")]) == 2
    assert "not an .html file" in error_of(capsys.readouterr().err)[0] and not (tmp_path / "both.txt").exists()
    assert main([*words, "-o", str(tmp_path / "both.html")]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "both.html")
    assert "report: x/run" in captured.err.splitlines() and "report: y/run" in captured.err.splitlines()
    text = (tmp_path / "both.html").read_text()
    assert "x/run" in text and "y/run" in text
    runs[1].rename(tmp_path / "x" / "other")
    assert main(["report", str(runs[0]), str(tmp_path / "x" / "other"), "--episodes", "0"]) == 0
    assert (tmp_path / "x" / "report.html").is_file()


def test_a_checkpoint_of_a_step_is_a_column_of_its_own(quick: Path) -> None:
    assert open_run(quick).checkpoints.best_step() != 1
    read = read_run(quick, "run", checkpoint=1, most_episodes=2)
    assert read.checkpoint == 1
    assert [column.label for column in read.columns] == ["before", "best", "last", "step 1"]
    assert all(isinstance(column.figures["heldout/env_ce"], Estimate) for column in read.columns)
