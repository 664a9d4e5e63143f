"""`eval-heldout`: checkpoints against the initial policy and baselines, comparison of runs, text printed as data."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tiny_run import error_of, rows, train

from echo_cli.cli.display.evaluation import print_evaluation
from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.environments.toy import ToyWorlds
from echo_cli.evaluation.evaluator import expert_pool
from echo_cli.evaluation.measures import Measures
from echo_cli.evaluation.records import CSV_COLUMNS, MEASURES, Evaluation, Measured, ModelReport, TaskRow
from echo_cli.models.architecture import model_folder
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tiny import load_model
from echo_cli.reports.evaluation_figure import plot_evaluation
from echo_cli.rollouts.limits import limits_of
from echo_cli.runs.directory import open_run
from echo_cli.statistics import Estimate, pass_at_k
from echo_cli.text import LINES, escape_unprintable

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def finished(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for these tests, because an evaluation writes its figure into the run."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("copies") / "finished")


@pytest.fixture(scope="module")
def evaluate() -> Evaluate:
    """A cached function that returns the result of `eval-heldout RUN WORDS --json`, by default without rollouts."""

    @functools.cache
    def evaluated(run: Path, *words: str) -> dict[str, Any]:
        rollouts = () if "--rollouts" in words else ("--rollouts", "0")
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            assert main(["eval-heldout", str(run), "--json", *rollouts, *words]) == 0
        assert all(line.startswith("eval-heldout: ") for line in err.getvalue().splitlines())
        result: dict[str, Any] = json.loads(out.getvalue())
        return result

    return evaluated


def test_it_measures_what_training_measured(evaluate: Evaluate, finished: Path) -> None:
    best = json.loads((finished / "summary.json").read_text())["heldout"]["best"]["step"]
    latest = evaluate(finished, "--checkpoint", "latest")
    assert latest["step"] == 4
    assert latest["after"]["heldout/env_ce"] == pytest.approx(rows(finished)[4]["heldout/env_ce"], abs=1e-6)
    for key in [f"{name}_{part}" for part in ("shown", "unshown") for name in ("env_ce", "pairs", "bytes")]:
        assert latest["after"][f"heldout/{key}"] == pytest.approx(rows(finished)[4][f"heldout/{key}"], abs=1e-6)
    sizes = {
        model: {
            entry["key"]: (entry["pairs"], entry["tokens"])
            for entry in latest["measurements"]
            if entry["model"] == model and (entry["pool"], entry["group"]) == ("heldout", "lines")
        }
        for model in ("initial", "policy", "5-gram")
    }
    assert sizes["5-gram"] and sizes["initial"] == sizes["policy"] == sizes["5-gram"], "over the same novel pairs"
    assert evaluate(finished)["step"] == best
    start = evaluate(finished, "--step", "0")
    assert start["step"] == 0
    assert start["before"] == start["after"]
    assert start["readout"]["before"] == start["readout"]["after"]


def test_a_policy_has_one_pass_at_1_in_training_and_in_its_evaluation(evaluate: Evaluate, played: Path) -> None:
    recorded = rows(played)
    result = evaluate(played, "--checkpoint", "latest", "--rollouts", "2")
    for moment, step in (("before", 0), ("after", 4)):
        assert result[moment]["heldout/pass_at_1"] == pytest.approx(recorded[step]["heldout/pass_at_1"])
        assert result[moment]["heldout/mean_reward"] == pytest.approx(recorded[step]["heldout/mean_reward"])


def test_one_command_is_read_out(evaluate: Evaluate, finished: Path) -> None:
    readout = evaluate(finished)["readout"]
    assert readout["command"].startswith("grep ")
    assert 0 <= readout["after"]["correct"] <= readout["tokens"]
    asked = evaluate(finished, "--command", readout["command"])["readout"]
    assert asked == readout


PROGRESS = [
    "loading tiny-base as the initial policy",
    "the initial policy plays N held-out tasks, N rollout each",
    "the initial policy scores held-out",
    "loading tiny-base for the checkpoints",
    "loading the checkpoint of step N",
    "step N plays N held-out tasks, N rollout each",
    "step N scores held-out",
]


def test_the_table_and_the_readout_are_printed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval-heldout", str(finished), "--rollouts", "1", "--breakdown"]) == 0
    captured = capsys.readouterr()
    for text in (
        *("env-CE, nats/token", "bits per byte", "5-gram", "copying", "gzip + observations", "pass@1", "novel pairs"),
        *("env-CE, a line never shown", "lines of the novel pair"),
        *("next token is", "not copyable", "w0-000-key", "\n$ grep ", "actual:", "predicted after ("),
        f"figure: {finished / 'heldout_evaluation.png'}",
    ):
        assert text in captured.out
    said = captured.err.splitlines()
    assert all(line.startswith("eval-heldout: ") for line in said)
    # Each line says what it does, and none is there twice.
    assert [re.sub(r"\d+", "N", line.removeprefix("eval-heldout: ")) for line in said] == PROGRESS


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        (["--step", "9"], "no checkpoint of step 9", "0, 1, 2, 3, 4"),
        (
            ["--command", "rm -rf /\x1b[2J"],
            "'rm -rf /\\x1b[2J' is not a command of the held-out pool",
            "the nearest command is: ",
        ),
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
    evaluate: Evaluate, finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    config = load_config(run / "config.yaml")
    worlds, (_, tokenizer) = ToyWorlds((0,), (101, 102), 5), load_model(model_folder("tiny-base"))
    pairs = expert_pool(worlds, worlds.tasks.heldout, PlainRenderer(tokenizer), limits_of(config)).pairs
    open_run(run).append_observations(
        {"step": 4, "command": command, "output": output, "exit_code": 0} for command, output in pairs
    )
    evaluated = {step: evaluate(run, "--step", step)["after"] for step in ("2", "4")}
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


def test_evaluating_adds_its_picture_to_the_run_and_changes_nothing(
    evaluate: Evaluate, finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("heldout_evaluation.*"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = evaluate(run)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    pictures = {run / f"heldout_evaluation.{ending}" for ending in ("png", "svg", "csv")}
    assert after.keys() - before.keys() == pictures and result["figure"] == str(run / "heldout_evaluation.png")
    assert {path: after[path] for path in before} == before
    elsewhere = tmp_path / "pictures" / "mine.png"
    assert evaluate(run, "--output", str(elsewhere))["figure"] == str(elsewhere)
    assert elsewhere.with_suffix(".svg").is_file()


def test_every_value_has_its_interval_and_stands_beside_the_baselines(evaluate: Evaluate, finished: Path) -> None:
    result = evaluate(finished, "--checkpoint", "latest")
    headlines = {entry["model"]: entry for entry in result["measurements"] if entry["group"] == "headline"}
    assert {"initial", "policy", "5-gram", "unigram", "copying", "gzip", "gzip + observations"} <= headlines.keys()
    for name in ("env_ce", "env_bits_per_byte", "token_accuracy", "calibration_error"):
        found = headlines["policy"][name]
        assert found["low"] <= found["value"] <= found["high"]
        assert found["value"] == result["after"][f"heldout/{name}"]
    # A higher order and a dictionary improve n-grams and compressors for any observations.
    assert headlines["5-gram"]["env_ce"]["value"] < headlines["unigram"]["env_ce"]["value"]
    assert "env_ce" not in headlines["gzip"]
    assert len({entry["tokens"] for entry in headlines.values()}) == 1
    assert {entry["group"] for entry in result["measurements"]} == {
        *("headline", "lines", "role", "command", "exit_status", "pair", "position", "copyable")
    }
    parts = [entry for entry in result["measurements"] if (entry["group"], entry["model"]) == ("lines", "policy")]
    assert {entry["key"] for entry in parts} == {"shown", "unshown"}
    assert sum(entry["tokens"] for entry in parts) == headlines["policy"]["tokens"]


def test_a_run_at_its_start_has_uniform_baselines_and_says_so(evaluate: Evaluate, finished: Path) -> None:
    result = evaluate(finished, "--step", "0")
    by_model = {entry["model"]: entry for entry in result["measurements"] if entry["group"] == "headline"}
    for model in ("5-gram", "unigram"):
        assert by_model[model]["env_ce"]["value"] == pytest.approx(math.log(1024))
    assert by_model["gzip"]["env_bits_per_byte"] == by_model["gzip + observations"]["env_bits_per_byte"]
    assert any("no training observations by step 0" in note for note in result["notes"])


def test_several_checkpoints_are_a_curve_over_the_same_tokens(evaluate: Evaluate, finished: Path) -> None:
    result = evaluate(finished, "--checkpoint", "all")
    assert result["checkpoints"] == [0, 1, 2, 3, 4] and result["step"] == 4
    policies = [e for e in result["measurements"] if e["model"] == "policy" and e["group"] == "headline"]
    assert [entry["step"] for entry in policies] == [0, 1, 2, 3, 4]
    assert len({entry["tokens"] for entry in policies}) == 1
    two = evaluate(finished, "--checkpoint", "4", "--checkpoint", "1", "--checkpoint", "latest")
    assert two["checkpoints"] == [1, 4] and two["after"] == result["after"]


def test_pass_at_k_is_unbiased_and_lists_its_tasks(evaluate: Evaluate, finished: Path) -> None:
    result = evaluate(finished, "--rollouts", "3", "--pass-k", "2", "--step", "0")
    rate = sum(pass_at_k(task["rollouts"], task["solved_after"], 2) for task in result["tasks"]) / len(result["tasks"])
    assert result["after"]["heldout/pass_at_2"] == pytest.approx(rate)
    assert {entry["k"] for entry in result["pass_at_k"]} == {2}
    assert all(task["rollouts"] == 3 and task["family"] in task["task_id"] for task in result["tasks"])
    # The same weights and the same sampling seed.
    assert all(task["solved_before"] == task["solved_after"] for task in result["tasks"])


def test_a_pool_from_a_folder_is_one_more_column(
    evaluate: Evaluate, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "mine"
    assert main(["pool", "build", str(pool), "--config", "toy-files", "--split", "validation", "threads=1"]) == 0
    result = evaluate(finished, "--pool", str(pool))
    assert result["after"]["mine/env_ce"] != result["after"]["heldout/env_ce"]
    capsys.readouterr()
    assert main(["eval-heldout", str(finished), "--rollouts", "0", "--pool", str(pool), "--pool", str(pool)]) == 2
    assert "two pools are named mine" in error_of(capsys.readouterr().err)[0]


def test_csv_has_a_row_a_measure(evaluate: Evaluate, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate(finished)
    assert main(["eval-heldout", str(finished), "--csv", "--rollouts", "0"]) == 0
    captured = capsys.readouterr()
    table = list(csv.DictReader(io.StringIO(captured.out)))
    assert captured.err.splitlines()[-1].startswith("figure: ")
    assert tuple(table[0]) == CSV_COLUMNS
    (found,) = (r for r in table if (r["model"], r["group"], r["measure"]) == ("policy", "headline", "env_ce"))
    assert float(found["value"]) == result["after"]["heldout/env_ce"]
    assert len(table) == sum(len(MEASURES) if "env_ce" in entry else 1 for entry in result["measurements"])


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("outputs") / "other"
    assert train(run, "--steps", "4", "objective.world_model_coeff=0") == 0
    return run


def test_two_runs_are_paired_over_what_is_novel_to_both(
    finished: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ["--checkpoint", "latest", "--output", str(tmp_path)]
    assert main(["eval-heldout", "--compare", str(finished), str(other), "--json", "--rollouts", "1", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["runs"] == ["A: finished", "B: other"] and result["steps"] == [4, 4]
    assert Path(result["figure"]) == tmp_path / "heldout_comparison.png"
    (difference,) = result["differences"]
    headlines = {entry["model"]: entry for entry in result["measurements"] if entry["group"] == "headline"}
    first, second = headlines["A: finished"]["env_ce"]["value"], headlines["B: other"]["env_ce"]["value"]
    paired = difference["env_ce"]
    assert paired["value"] == pytest.approx(second - first)
    assert paired["low"] <= paired["value"] <= paired["high"]
    tasks = difference["tasks"]
    assert tasks["both"] + tasks["only_a"] + tasks["only_b"] + tasks["neither"] == 51
    assert tasks["clusters"] == 44 and 0 < tasks["p_value"] <= 1


def test_a_run_does_not_differ_from_itself(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = ["--compare", str(finished), str(finished), "--rollouts", "1", "--breakdown", "--output", str(tmp_path)]
    assert main(["eval-heldout", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.count("B - A   ") == 2 and printed.count("0.000 [0.000, 0.000]") == 2
    assert "0, 0" in printed and "exact McNemar p" in printed and "not copyable" in printed
    assert main(["eval-heldout", *words[:3], "--rollouts", "0", "--output", str(tmp_path)]) == 0
    assert "McNemar" not in capsys.readouterr().out  # nothing was played


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("world_seeds:\n    - 0", "world_seeds:\n    - 5"), "environment.toy_terminal.world_seeds is [0] in A"),
        (("max_output_tokens: 256", "max_output_tokens: 200"), "rollout.max_output_tokens is 256 in A and 200 in B"),
    ],
)
def test_runs_with_other_pools_are_not_compared(
    change: tuple[str, str], message: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    assert change[0] in text
    (run / "config.yaml").write_text(text.replace(*change))
    capsys.readouterr()
    assert main(["eval-heldout", "--compare", str(finished), str(run), "--output", str(tmp_path)]) == 2
    assert message in error_of(capsys.readouterr().err)[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name one RUN, or two runs"),
        (["run", "--compare", "a", "b"], "name one RUN, or two runs"),
        (["run", "another"], "name one RUN, or two runs"),
        (["run", "--json", "--csv"], "exclude each other"),
        (["run", "--step", "1", "--checkpoint", "best"], "exclude each other"),
        (["run", "--checkpoint", "bets\x1b"], "no checkpoint 'bets\\x1b'"),
        (["run", "--checkpoint", "9" * 5000], "no checkpoint"),
        (["run", "--output", "picture.pdf"], "not a .png, .svg or .csv"),
        (["run", "--output", "/dev/null/folder"], "cannot write"),
        (["run", "--pass-k", "5", "--rollouts", "4"], "pass@5 needs 5 rollouts"),
        (["--compare", "x/a", "y/b"], "different folders"),
        (["--compare", "a", "b", "--checkpoint", "all"], "one checkpoint per run"),
        (["--compare", "a", "b", "--command", "ls"], "--command and --compare exclude each other"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval-heldout", *words]) == 2
    assert message in error_of(capsys.readouterr().err)[0]


HOSTILE = "a\x1b[2J\x1b]0;title\x07\r\u202eb\x9b31m[bold]$\\frac{1}{0}$c[/bold]\x00\n\tlast"


def _hostile(novel: bool) -> Evaluation:
    """Return an evaluation whose texts all come from an environment, with or without a novel pair."""
    estimate = Estimate(0.5, None, None)
    measures = Measures(dict.fromkeys(MEASURES, estimate), 2, 3, 1, 1)

    def report(model: str, step: int) -> ModelReport:
        measured = [
            Measured("heldout", group, key, measures)
            for group, key in (("headline", ""), ("command", HOSTILE), ("role", HOSTILE), ("position", "0"))
        ]
        bins = {"heldout": [(0.5, 0.5, 2)] if novel else []}
        return ModelReport(HOSTILE, step, model, measured if novel else [], [], bins)

    reading = {"text": HOSTILE, "correct": 1}
    return Evaluation(
        kind="run",
        policies=[report("initial", 0), report("policy", 1)],
        novel_pairs={"heldout": int(novel), escape_unprintable(HOSTILE): 0},
        tasks=[TaskRow("heldout", HOSTILE, HOSTILE, 1, 0, 1)],
        notes=[],
        readout={"command": HOSTILE, "actual": HOSTILE, "tokens": 2, "before": reading, "after": reading},
    )


def test_hostile_text_is_shown_and_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    # terminals may break a line there
    assert escape_unprintable("a\u2028b\u2029\n", keep=LINES) == "a\\u2028b\\u2029\n"
    escaped = "a\\x1b[2J\\x1b]0;title\\x07\\r\\u202eb\\x9b31m[bold]"
    assert escape_unprintable(HOSTILE, keep=LINES).startswith(escaped)
    print_evaluation(_hostile(novel=True), breakdown=True)
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\r\u202e\x9b\x00")
    assert "[bold]$\\frac{1}{0}$c[/bold]" in printed
    assert [len(line) <= 80 for line in printed.splitlines() if line.startswith("95 % intervals")] == [True]


@pytest.mark.parametrize("novel", [True, False])
def test_hostile_text_and_a_pool_without_novel_pairs_are_drawn(novel: bool, tmp_path: Path) -> None:
    found = _hostile(novel)
    plotted = plot_evaluation(found, tmp_path / "heldout_evaluation")
    texts = [e.text or "" for e in ElementTree.parse(plotted.svg).iter("{http://www.w3.org/2000/svg}text")]
    assert ("no novel pairs" in texts) == (not novel)
    assert not set("".join(texts)) & set("\x1b\x07\r\x9b\x00")
    assert not set(plotted.csv.read_text()) & set("\x1b\x07\r\x9b\x00")
    assert len(list(csv.reader(plotted.csv.open()))) == (1 + 2 * 4 * len(MEASURES) if novel else 1)
    again = plot_evaluation(found, tmp_path / "again" / "heldout_evaluation")
    assert (again.png.read_bytes(), again.svg.read_bytes()) == (plotted.png.read_bytes(), plotted.svg.read_bytes())
