"""Runs on traces, alone and with an environment: learning, measures, stored files and errors."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import error_of, observations, rows, train, weights
from trace_files import ALONE, store, trace_file

from echo_cli.cli.main import main
from echo_cli.config.episodes.traces import TracesConfig, TraceSplitConfig
from echo_cli.config.loader import find_config, load_config
from echo_cli.models.renderer import PlainRenderer
from echo_cli.runs.directory import open_run
from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.training_data import render_and_truncate
from echo_cli.training.plan import plan
from echo_cli.training.session import Session
from echo_cli.training.step_data import StepData, collect_step
from echo_cli.trajectory import Role, Turn, read_trajectories


def alone(run: Path, traces: Path, *words: str) -> int:
    steps = () if "--steps" in words else ("--steps", "4")
    place = ["--output-dir", str(run.parent), "--run-name", run.name]
    return main(["train", "--config", "toy-files", *place, *steps, *ALONE, f"traces.path={traces}", *words])


def beside(run: Path, traces: Path, *words: str) -> int:
    """A tiny run of the toy terminal, with traces."""
    return train(run, f"traces.path={traces}", "traces.per_step=4", *words)


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "environment.json").read_text())["traces"]
    return found


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trace_file(tmp_path_factory.mktemp("traces"), store())


@pytest.fixture(scope="module")
def trained(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps on traces alone, imitating; the path of the traces was given relative to their folder."""
    run = tmp_path_factory.mktemp("outputs") / "alone"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(traces.parent)
        assert alone(run, Path(traces.name), "traces.imitation_coeff=0.5") == 0
    return run


@pytest.fixture(scope="module")
def mixed(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("outputs") / "mixed"
    assert beside(run, traces) == 0
    return run


# --- Alone -----------------------------------------------------------------------------------------------------------


def test_a_run_on_traces_alone_learns_what_it_was_not_shown(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = rows(trained)
    assert len({tuple(row) for row in metrics}) == 1
    assert metrics[4]["heldout/env_ce"] < metrics[0]["heldout/env_ce"] == metrics[0]["heldout/env_ce_start"]
    assert all(metrics[1][f"train/{key}"] > 0 for key in ("env_ce", "imitation_loss", "imitation_tokens", "grad_norm"))
    assert [row["train/traces"] for row in metrics] == [None, 4, 4, 4, 4]
    nothing = "reward entropy policy_env_ce action_length role_confusion ratio portable_lambda".split()
    assert all(row[f"train/{key}"] is None for row in metrics for key in nothing)
    absent = ("validation/pass_at_1", "heldout/pass_at_1", "ood/env_ce", "ood/novel_pairs")
    assert all(row[key] is None for row in metrics for key in absent)
    assert not [key for key in metrics[0] if key.startswith("traces/")]
    assert metrics[1]["train/loss"] == pytest.approx(
        metrics[1]["train/env_loss"] + 0.5 * metrics[1]["train/imitation_loss"]
    )
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["heldout"]["best"]["step"] == summary["validation"]["best"]["step"] == 4
    assert "traces" not in summary and summary["warnings"] == []


def test_nothing_of_an_environment_is_opened(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(*_: Any, **__: Any) -> Iterator[None]:
        raise AssertionError("something was opened")

    for name in (
        "environments.worlds.open_source",
        "environments.worlds.ToyWorlds",
        "rollouts.rollout.EventLoop",
        "training.session.play_pools",
    ):
        monkeypatch.setattr(f"echo_cli.{name}", opened)
    assert alone(tmp_path / "run", traces, "--steps", "1") == 0
    lines = capsys.readouterr().err
    assert "train: traces: 9 training, 1 validation, 6 held-out" in lines
    assert "train: held-out traces: 6 of 12 observations (50.0%) also occur in training and are not measured" in lines


def test_what_training_sees_too_is_context_in_the_kept_pools(trained: Path) -> None:
    paths = open_run(trained).pool_paths
    assert set(paths) == {"validation", "heldout"}
    for split, path in paths.items():
        pool, noted = list(read_trajectories(path)), record(trained)[split]
        assert len(pool) == noted["traces"] and noted["seen"] == noted["traces"] == noted["observations"] / 2
        roles = {(s.role, s.text) for trajectory in pool for s in trajectory.segments if s.channel == "stdout"}
        assert {role for role, text in roles if text == "/srv/store\n"} == {Role.CONTEXT}
        assert {role for role, text in roles if text != "/srv/store\n"} == {Role.ENV_OUTPUT}
        assert all(trajectory.world_model_only for trajectory in pool)
    assert rows(trained)[0]["heldout/novel_pairs"] == record(trained)["heldout"]["traces"]


def test_every_seed_and_lambda_has_the_same_split(trained: Path, traces: Path, tmp_path: Path) -> None:
    assert alone(tmp_path / "other", traces, "--seed", "3", "--lambda", "0.2", "--steps", "1") == 0
    for name, path in open_run(trained).pool_paths.items():
        assert open_run(tmp_path / "other").pool_paths[name].read_bytes() == path.read_bytes()


@pytest.mark.parametrize("moves", [False, True])
def test_resuming_elsewhere_equals_never_having_stopped(
    moves: bool, trained: Path, traces: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "summary.json").unlink()
    for later in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"step_{later:06d}")
    moved = tmp_path / "moved.jsonl"
    shutil.copy(traces, moved)
    place = ["--output-dir", str(run.parent), "--run-name", run.name]
    assert main(["train", "--resume", *place, *([f"traces.path={moved}"] if moves else [])]) == 0
    assert rows(run) == rows(trained)
    assert (observations(run), weights(run, 4)) == (observations(trained), weights(trained, 4))


def test_other_traces_are_no_continuation(
    trained: Path, traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "summary.json").unlink()  # a finished run needs no traces
    again = ("traces.imitation_coeff=0.5", "--resume")
    changed = trace_file(tmp_path, store()[::-1])
    assert alone(run, changed, *again) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "traces.jsonl is not the file that" in message and "--run-name" in tip
    assert alone(run, traces, "--resume", "traces.imitation_coeff=0.1") == 2
    assert "traces.imitation_coeff was 0.5, now 0.1" in error_of(capsys.readouterr().err)[0]


def test_a_step_that_loses_its_file_keeps_what_was_learned(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "traces.jsonl"
    shutil.copy(traces, file)

    def losing(session: Session, step: int, coeff: float) -> StepData:
        if step == 2:
            file.unlink()
        return collect_step(session, step, coeff)

    monkeypatch.setattr("echo_cli.training.loop.collect_step", losing)
    assert alone(tmp_path / "run", file, "checkpoint.every=9") == 1
    assert "has changed since it was indexed" in error_of(capsys.readouterr().err)[0]
    assert open_run(tmp_path / "run").checkpoints.steps() == [0, 2]
    monkeypatch.undo()
    shutil.copy(traces, file)
    assert alone(tmp_path / "run", file, "--resume", "checkpoint.every=9") == 0
    assert alone(tmp_path / "whole", file) == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_inspect_says_what_of_a_run_without_an_environment_there_is_to_see(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(trained)]) == 2
    assert "give its pool_heldout.jsonl" in error_of(capsys.readouterr().err)[1]
    assert main(["inspect", str(trained / "pool_heldout.jsonl")]) == 0


def test_eval_heldout_needs_no_trace_file(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(load_config(run / "config.yaml").traces.path[0]), "gone.jsonl"))  # type: ignore[union-attr]
    capsys.readouterr()
    assert main(["eval-heldout", str(run), "--json", "--command", "pwd"]) == 2
    assert "'pwd' is not a command of the held-out pool" in error_of(capsys.readouterr().err)[0]
    assert main(["eval-heldout", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    metrics = rows(run)
    assert found["after"]["heldout/env_ce"] == pytest.approx(metrics[4]["heldout/env_ce"], abs=1e-6)
    assert found["before"]["heldout/env_ce"] == pytest.approx(metrics[0]["heldout/env_ce"], abs=1e-6)
    assert found["pass_at_k"] == [] and found["tasks"] == []
    assert any("also occur in training and are not measured" in note for note in found["notes"])
    assert main(["plot", str(run)]) == 0


def test_traces_longer_than_they_may_be_are_cut_and_counted(
    traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainRenderer, "notices", ("a note of the renderer",))
    assert alone(tmp_path / "run", traces, "traces.max_tokens=30", "--steps", "1") == 0
    assert rows(tmp_path / "run")[1]["train/traces_cut"] == 4
    cut = record(tmp_path / "run")["cut"]
    told = capsys.readouterr().err
    assert cut["heldout"] > 0 and f"held-out traces: {cut['heldout']} truncated to 30 tokens" in told
    assert "a note of the renderer" in told
    for path in open_run(tmp_path / "run").pool_paths.values():
        assert max(map(len, read_trajectories(path))) <= 30
    assert (
        record(tmp_path / "run")["emptied"] == {"validation": 0, "heldout": 0} and "no observation within" not in told
    )
    assert alone(tmp_path / "short", traces, "traces.max_tokens=4", "--steps", "1") == 1
    assert "no trace of step 1 fits in 4 tokens" in error_of(capsys.readouterr().err)[0]


def test_traces_whose_opening_fills_their_length_are_counted_with_the_key_to_raise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opening = (TraceSegment(Role.CONTEXT, "$ "), TraceSegment(Role.CONTEXT, f"# {'rules ' * 40}\n$ "))
    long = [replace(each, segments=(*opening, *each.segments)) for each in store()]
    assert alone(tmp_path / "long", trace_file(tmp_path, long), "traces.max_tokens=60", "--steps", "1") == 1
    told = capsys.readouterr().err
    counts = record(tmp_path / "long")
    for split, name in (("validation", "validation"), ("heldout", "held-out")):
        number = counts[split]["traces"]
        assert counts["emptied"][split] == number > 0
        tip = "no observation within 60 tokens: raise traces.max_tokens, choose a model with a longer context"
        assert f"warning: {name} traces: {number} of {number} have {tip}" in told
    error, tip = error_of(told)
    assert "4 traces of step 1 have no observation within 60 tokens" in error and "raise traces.max_tokens" in tip

    some = trace_file(tmp_path, [*long[:8], *store()[8:]], "some.jsonl")  # a run goes on with those that fit
    assert alone(tmp_path / "some", some, "traces.max_tokens=60", "--steps", "1") == 0
    emptied, said = record(tmp_path / "some")["emptied"], capsys.readouterr().err
    assert 0 < sum(emptied.values()) < 8 and f"{emptied['heldout']} of " in said


# --- Imitation -------------------------------------------------------------------------------------------------------


def test_without_lambda_imitation_alone_clones_the_behaviour(traces: Path, tmp_path: Path) -> None:
    assert alone(tmp_path / "run", traces, "--lambda", "0", "traces.imitation_coeff=1.0", "--steps", "6") == 0
    metrics = rows(tmp_path / "run")
    assert metrics[6]["train/imitation_loss"] < metrics[1]["train/imitation_loss"]
    for row in metrics[1:]:
        assert row["train/loss"] == pytest.approx(row["train/imitation_loss"], rel=1e-6)


# --- Beside an environment -------------------------------------------------------------------------------------------


def test_beside_an_environment_its_pools_stay_the_headline(mixed: Path, finished: Path) -> None:
    metrics, without = rows(mixed), rows(finished)
    assert len({tuple(row) for row in metrics}) == 1
    own = set(metrics[0]) - set(without[0])
    measures = "env_ce env_bits_per_byte token_accuracy novel_pairs env_ce_start env_ce_seen".split()
    measures += [f"{name}_{part}" for part in ("shown", "unshown") for name in ("env_ce", "pairs", "bytes")]
    assert own == {f"traces/{name}" for name in measures} | {
        f"train/{name}" for name in ("traces", "traces_cut", "imitation_loss", "imitation_tokens")
    }
    assert [key for key in metrics[0] if key not in own] == list(without[0])
    shared = [key for key in without[0] if key.startswith(("validation/", "heldout/"))]
    assert [metrics[0][key] for key in shared] == [without[0][key] for key in shared]
    assert metrics[2]["traces/env_ce"] < metrics[0]["traces/env_ce"]
    assert set(open_run(mixed).pool_paths) == {"traces"}
    summary = json.loads((mixed / "summary.json").read_text())
    assert summary["traces"]["last"]["env_ce"] == metrics[2]["traces/env_ce"]


def test_the_policys_rollouts_are_the_same_with_traces_and_without(mixed: Path, finished: Path) -> None:
    # After one step, the weights differ.
    keys = "reward action_tokens commands_per_task action_length entropy role_confusion env_dropped_correct".split()
    first, without = rows(mixed)[1], rows(finished)[1]
    assert [first[f"train/{key}"] for key in keys] == [without[f"train/{key}"] for key in keys]
    assert first["train/env_tokens"] > without["train/env_tokens"]


def test_what_traces_showed_is_novel_no_more(finished: Path, tmp_path: Path) -> None:
    words = ["--config", "toy-files", "environment.toy_terminal.ood_world_seeds=[]"]
    assert main(["pool", "build", str(tmp_path / "pool"), *words]) == 0
    file = tmp_path / "pool" / "trajectories.jsonl"
    assert beside(tmp_path / "run", file, "traces.per_step=40", "rollout.explorers=0") == 0
    found, without = rows(tmp_path / "run")[2], rows(finished)[2]
    assert found["heldout/novel_pairs"] < without["heldout/novel_pairs"] / 2


def test_eval_heldout_has_the_traces_as_one_more_column(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval-heldout", str(mixed), "--rollouts", "0", "--json", "-o", str(mixed)]) == 0
    found = json.loads(capsys.readouterr().out)["after"]
    assert found["traces/env_ce"] == pytest.approx(rows(mixed)[2]["traces/env_ce"], abs=1e-6)
    assert found["heldout/env_ce"] == pytest.approx(rows(mixed)[2]["heldout/env_ce"], abs=1e-6)


def test_at_lambda_zero_traces_are_not_even_read(traces: Path, tmp_path: Path) -> None:
    assert beside(tmp_path / "run", traces, "--lambda", "0", "--steps", "1") == 0
    assert [rows(tmp_path / "run")[1][f"train/{key}"] for key in ("traces", "traces_cut", "imitation_tokens")] == [
        0
    ] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective.min_correct_fraction=0.5"], "min_correct_fraction needs a reward, but "),
        (["objective.min_valid_action_fraction=0.5"], "min_valid_action_fraction needs turns, but "),
    ],
)
def test_a_filter_whose_metadata_traces_lack_is_an_error(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = [replace(trace, reward=None) for trace in store()]
    silent = [Trace("t", (TraceSegment(Role.ENV_OUTPUT, f"{word}\n"),), (), reward=1.0) for word in "abcdefgh"]
    path = trace_file(tmp_path, bare if "correct" in words[0] else silent)
    assert alone(tmp_path / "run", path, *words) == 2
    assert message in error_of(capsys.readouterr().err)[0]
    assert not (tmp_path / "run").exists()


def test_a_filter_judges_traces_by_what_they_say(tmp_path: Path) -> None:
    judged = [replace(trace, reward=float(number % 2)) for number, trace in enumerate(store())]
    path = trace_file(tmp_path, judged)
    words = ("objective.min_correct_fraction=0.5", "traces.per_step=9", "--steps", "1")
    assert alone(tmp_path / "run", path, *words) == 0
    assert 0 < rows(tmp_path / "run")[1]["train/env_dropped_correct"] < 9


@pytest.mark.parametrize("name", ["min_valid_action_fraction", "min_clean_parse_fraction"])
def test_a_trace_that_is_cut_before_its_first_action_stops_no_filter(name: str, tmp_path: Path) -> None:
    long = [replace(trace, segments=(*trace.segments[:1] * 30, *trace.segments)) for trace in store()]
    path = trace_file(tmp_path, [*long[:8], *store()[8:]])
    assert alone(tmp_path / "run", path, "traces.max_tokens=60", f"objective.{name}=0.5") == 0
    assert sum(row["train/traces_cut"] for row in rows(tmp_path / "run")[1:]) > 0


# --- Rendering, plans, configs ---------------------------------------------------------------------------------------


def test_thinking_that_was_dropped_is_not_in_a_trace_and_there_is_one_view() -> None:
    from test_trace import RENDERER

    from echo_cli.trajectory import context_views

    ids = tuple(RENDERER.tokenizer.encode("hm, hm ls\n"))
    segments = (
        TraceSegment(Role.CONTEXT, "$ "),
        TraceSegment(Role.ACTION, "hm, hm ls", token_ids=ids, logprobs=(-1.0,) * len(ids), transient=3),
        TraceSegment(Role.ENV_OUTPUT, "a\n"),
    )
    turns = (Turn("ls", "a\n", 0, valid_action=True, clean_parse=True),)
    trace = Trace("t", segments, turns, source="policy", world_model_only=False)
    (found,) = render_and_truncate([trace], RENDERER, 99).trajectories
    assert [segment.text for segment in found.segments] == ["$ ", "ls\n", "a\n"]
    assert (found.source, found.world_model_only, len(context_views(found))) == ("trace", True, 1)
    assert all(segment.logprobs is None and not segment.transient for segment in found.segments)


def test_a_dry_run_counts_the_traces(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *ALONE, f"traces.path={traces}", "--steps", "10", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["plan"]
    counts = planned["traces"]
    assert planned["environment"] == "none" and planned["traces per step"] == 4
    assert sum(counts.values()) == 16 and planned["epochs over the training traces"] == round(40 / counts["train"], 2)
    held = counts["held-out"]
    assert f"{held} of {2 * held} observations (50.0%) also occur in training" in planned["held-out traces"]
    assert planned["tokens per step, at most"] == 4 * 2048


def test_a_plan_counts_traces_among_the_rollouts(traces: Path) -> None:
    toy = load_config(find_config("toy"), ["rollout.explorers=0", f"traces.path={traces}", "traces.per_step=26"])
    explorers = load_config(find_config("toy"), ["rollout.explorers=26"])
    key = "portable λ, estimated"
    assert plan(toy, Path("run"))[key] == plan(explorers, Path("run"))[key]


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        (["environment.none=true"], "environment.none is true and traces is null", "set traces.path"),
        (
            ["environment.none=true", "traces.path=a", "rollout.tasks_per_step=8"],
            "rollout.tasks_per_step is 8",
            "objective.use_rl=false",
        ),
        ([*ALONE, "traces.path=a", "rollout.explorers=3"], "rollout.explorers is 3", "rollout.explorers=0"),
        ([*ALONE, "traces.path=a", "objective.use_rl=true"], "objective.use_rl is true", "use_rl: false"),
        ([*ALONE, "traces.path=a", "objective.world_model_coeff=0"], "the loss is always 0", "imitation_coeff"),
        ([*ALONE, "traces.path=a", "evaluation.select_by=pass_at_1"], "select_by is pass_at_1", "env_ce"),
        ([*ALONE, "traces.path=a", "environment.max_turns=3"], "environment.max_turns has no effect with none", ""),
        ([*ALONE, "traces.path=a", "traces.split={validation: 0.5, heldout: 0.5}"], "no trace remains", "lower"),
        ([*ALONE, "traces.path=[]"], "'traces.path' is []", ""),
        ([*ALONE, "traces.path=3"], "'traces.path' is 3", ""),
        ([*ALONE, "traces.path=a", "traces.per_step=0"], "'traces.per_step' is 0", ""),
        ([*ALONE, "traces.path=a", "traces.imitation_coeff=-1"], "'traces.imitation_coeff' is -1", ""),
        (["traces.path=a", "traces.paths=b"], "unknown key 'traces.paths'", "did you mean 'traces.path'?"),
        (["environment.none=false"], "'environment.none' is false", ""),
    ],
)
def test_a_config_that_cannot_train_says_why(
    words: list[str], message: str, tip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, "--dry-run"]) == 2
    said, advice = error_of(capsys.readouterr().err)
    assert message in said and tip in advice


def test_the_documented_config_is_one_and_has_every_key(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "traces.md").read_text()
    section = text.partition("\n## The config\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```yaml\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    (tmp_path / "traces.yaml").write_text(block)
    traces = load_config(tmp_path / "traces.yaml").traces
    assert traces == TracesConfig(path=("mine.jsonl",))
    assert yaml.safe_load(block)["traces"].keys() == TracesConfig.model_fields.keys()
    assert yaml.safe_load(block)["traces"]["split"].keys() == TraceSplitConfig.model_fields.keys()


def test_no_environment_takes_the_place_of_any(tmp_path: Path) -> None:
    words = ["rollout.tasks_per_step=0", "rollout.explorers=0", "objective.use_rl=false", "traces.path=[a, b]"]
    config = load_config(find_config("sandbox"), ["environment.none=true", *words])
    assert config.environment.source == "none" and config.environment.provider is None
    assert config.traces is not None and config.traces.path == (os.path.abspath("a"), os.path.abspath("b"))
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    back = load_config(tmp_path / "again.yaml", ["environment.toy_terminal.max_turns=3"]).environment
    assert back.none is None and back.toy_terminal is not None and back.tasks is None


def test_there_is_nothing_to_check_without_an_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["environment.none=true", "rollout.tasks_per_step=0", "rollout.explorers=0", "traces.path=a"]
    assert main(["env", "check", "toy-world-model", *words]) == 2
    assert "there is no environment to check" in error_of(capsys.readouterr().err)[0]
    assert main(["pool", "build", str(tmp_path / "pool"), "--config", "toy-world-model", *words]) == 2
    assert "the config has no heldout task" in error_of(capsys.readouterr().err)[0]


def test_a_sweep_plans_its_runs_on_the_same_traces(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep-lambda", "0", "1", "--seeds", "0", "1", *ALONE, f"traces.path={traces}", "--dry-run", "--json"]
    assert main([*words, "traces.imitation_coeff=0.5"]) == 0
    plans = [run["plan"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert len(plans) == 4 and all(found["traces"] == plans[0]["traces"] for found in plans)
    assert main(words) == 2
    assert "the loss is always 0" in error_of(capsys.readouterr().err)[0]


def test_a_sweep_does_not_pass_off_runs_as_trained_on_other_traces(
    trained: Path, traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = shutil.copytree(trained, tmp_path / "sweep" / "lambda-1-seed0")
    own = trace_file(tmp_path, [])
    shutil.copy(traces, own)
    (cell.parent / "sweep.json").write_text("{}")
    config = yaml.safe_load((cell / "config.yaml").read_text())
    config["traces"]["path"] = [str(own)]
    (cell / "config.yaml").write_text(yaml.safe_dump(config))

    def sweep(path: Path) -> int:
        words = ["1", "--seeds", "0", "--steps", "4", "--output-dir", str(tmp_path), "--run-name", "sweep"]
        words += ["--config", "toy-files"]
        words += ["probe_every=0", "evaluation.pass_every=60"]
        return main(["sweep-lambda", *words, *ALONE, f"traces.path={path}", "traces.imitation_coeff=0.5"])

    other = trace_file(tmp_path, store()[::-1], "other.jsonl")
    assert sweep(other) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "other.jsonl is not the file that" in message and "--run-name" in tip
    assert sweep(traces) == 0  # the same file, moved
    own.unlink()
    assert sweep(own) == 0  # after the run and its evaluation, the file is not needed
    (cell / "summary.json").unlink()
    shutil.copy(other, own)
    capsys.readouterr()
    assert sweep(own) == 2
    assert "traces.jsonl is not the file that" in error_of(capsys.readouterr().err)[0]
