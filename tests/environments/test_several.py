"""Several environments as one suite: draws by weight, names of tasks, and bad configs."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import yaml
from tiny_run import error_of

from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config
from echo_cli.environments.several import SeveralWorlds, shares, side_by_side
from echo_cli.environments.tasks import Task, TaskSplits
from echo_cli.environments.toy import ToyWorlds
from echo_cli.errors import EchoError
from echo_cli.runs.parts import row_of, with_unions
from echo_cli.training.curriculum import Curriculum
from echo_cli.training.step_data import draw_tasks

MACHINE = {"name": "machine", "weight": 3, "toy_terminal": {"kind": "machine"}}
FILES = {"name": "files", "toy_terminal": {"kind": "files", "max_turns": 3}}


@pytest.fixture
def worlds() -> SeveralWorlds:
    members = {"machine": ToyWorlds((0,), (101,), 2, kind="machine"), "files": ToyWorlds((0,), (), 3)}
    return SeveralWorlds(members, {"machine": 3.0, "files": 1.0})


def config_of(*environments: object, **keys: object) -> Config:
    values = {"environments": list(environments), **keys}
    return load_config(Path("several.yaml"), text=yaml.safe_dump(values))


def test_a_steps_shares_differ_from_the_weights_by_less_than_one_and_not_on_average() -> None:
    weights = {"a": 2.0, "never": 0.0, "b": 1.0, "c": 0.5}
    drawn = [shares(weights, 8, 0, "tasks", step) for step in range(700)]
    for found in drawn:
        assert sum(found.values()) == 8 and found["never"] == 0
        assert all(abs(count - 8 * weights[name] / 3.5) < 1 for name, count in found.items())
    total = Counter[str]()
    for found in drawn:
        total.update(found)
    # 700 steps of 8 draws: 3200, 1600 and 800 are expected, and each step adds an error below 1.
    assert abs(total["a"] - 3200) < 60 and abs(total["b"] - 1600) < 60 and abs(total["c"] - 800) < 60
    assert drawn == [shares(weights, 8, 0, "tasks", step) for step in range(700)]
    assert drawn != [shares(weights, 8, 1, "tasks", step) for step in range(700)]


def test_one_draw_falls_to_one_name_and_the_last_weight_of_zero_never_takes_the_rest() -> None:
    found = [shares({"a": 1.0, "b": 1.0, "zero": 0.0}, 1, 5, "tasks", step) for step in range(50)]
    assert {sum(each.values()) for each in found} == {1} and all(each["zero"] == 0 for each in found)
    assert {name for each in found for name, count in each.items() if count} == {"a", "b"}


def test_tasks_are_named_after_their_environment_and_each_plays_its_own_epochs(worlds: SeveralWorlds) -> None:
    config = config_of(MACHINE, FILES, rollout={"tasks_per_step": 8})
    drawn: dict[str, int] = {}
    steps = [draw_tasks(config, worlds, step, None, drawn) for step in range(60)]
    names = Counter(worlds.own(task)[0] for tasks in steps for task in tasks)
    assert names == {"machine": 360, "files": 120} == drawn
    played = Counter(task.task_id for tasks in steps for task in tasks)
    for name, member in worlds.members.items():
        counts = [played[f"{name}/{task.task_id}"] for task in member.tasks.train]
        assert max(counts) - min(counts) <= 1  # shuffled epochs: no task is played twice more often than another
    before = dict(drawn)
    assert draw_tasks(config, worlds, 60, None, drawn) == draw_tasks(config, worlds, 60, None, before)


def test_an_environment_that_is_left_out_has_no_share_and_a_curriculum_draws_within_each(
    worlds: SeveralWorlds,
) -> None:
    config = config_of(MACHINE, FILES, rollout={"tasks_per_step": 4, "curriculum": "learnable"})
    lazy = Curriculum(1.0, contrast={task.task_id: 0.0 for task in worlds.tasks.train[1:]})
    names = [worlds.own(task)[0] for task in draw_tasks(config, worlds, 0, lazy, {})]
    assert names == ["machine"] * 3 + ["files"]
    weights = {name: weight for name, weight in worlds.weights.items() if name == "files"}
    assert shares(weights, 4, 0, "environments", 0) == {"files": 4}


def test_equal_tasks_of_two_environments_are_two_tasks() -> None:
    one = TaskSplits((Task("seed=0", "train", "task", {"seed": 0}),), (), ())
    assert [task.task_id for task in side_by_side({"a": one, "b": one}).train] == ["a/seed=0", "b/seed=0"]


def test_experts_and_reserved_scripts_are_those_of_a_tasks_own_environment(worlds: SeveralWorlds) -> None:
    for task in worlds.tasks.heldout[:3]:
        name, own = worlds.own(task)
        assert worlds.expert(task) == worlds.members[name].expert(own)
    reserved = worlds.reserved(worlds.tasks.heldout)
    assert reserved and {worlds.own(task)[0] for task, _ in reserved} <= {"machine", "files"}
    elsewhere = worlds.out_of_distribution().tasks.heldout
    assert elsewhere and all(task.task_id.startswith("machine/") for task in elsewhere)


def test_a_row_of_one_environment_has_its_figures_in_the_place_of_all() -> None:
    row = {"step": 3, "heldout/env_ce": 2.0, "heldout/a/env_ce": 1.0, "heldout/b/env_ce": 3.0, "train/lambda": 0.5}
    row |= {"train/reward": 0.5, "train/a/reward": 0.25, "heldout/pass_at_2": 1.0}
    assert row_of(row, "a", ["a", "b"]) == {
        "step": 3,
        "heldout/env_ce": 1.0,
        "train/lambda": 0.5,
        "train/reward": 0.25,
    }
    found = with_unions({"heldout/a": [1], "heldout/b": [2], "traces": [3]}, lambda parts: [*chain(*parts)])
    assert list(found.items()) == [("heldout", [1, 2]), ("heldout/a", [1]), ("heldout/b", [2]), ("traces", [3])]


@pytest.mark.parametrize(
    ("environments", "message", "tip"),
    [
        ([], "environments is empty", "list one or more"),
        ([{**MACHINE, "weight": 0}, {**FILES, "weight": 0}], "every weight in environments is 0", "set one above 0"),
        ([MACHINE, {**FILES, "name": "machine"}], "two environments are named machine", "give each its own name"),
        ([{"name": "none", "none": True}], "environments.none.none is true", "omit the environment"),
        ([{"name": "a", "url": "http://x:1"}], "environments.a.url has no tasks", "in environments.a.tasks"),
        ([{"name": "a"}], "environments.a sets no source", "set exactly one of"),
        ([{"name": "a", "toy_terminal": {}, "retry_s": 1.0}], "environments.a.retry_s has no effect", "toy_terminal"),
        ([{"toy_terminal": {}}], "'environments.0.name' is missing", "add it"),
        ([{**MACHINE, "name": "a/b"}], "'environments.0.name' is \"a/b\"", ""),
        ([{**MACHINE, "weight": -1}], "'environments.machine.weight' is -1", ""),
        ([{**MACHINE, "wieght": 2}], "unknown key 'environments.machine.wieght'", "'environments.machine.weight'"),
        ([MACHINE, {"name": "machine", "weight": -1, "toy_terminal": {}}], "'environments.1.weight' is -1", ""),
        (
            [{**MACHINE, "toy_terminal": 3}],
            "'environments.machine.toy_terminal' is 3",
            "environments.machine.toy_terminal.",
        ),
        ("toy", "'environments' is \"toy\"", ""),
    ],
)
def test_a_bad_list_is_one_line_with_a_tip(
    environments: object, message: str, tip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "several.yaml"
    path.write_text(yaml.safe_dump({"environments": environments}))
    assert main(["train", "--config", str(path), "--output-dir", str(tmp_path / "out")]) == 2
    said, advice = error_of(capsys.readouterr().err)
    assert message in said and "several.yaml" in said and tip in advice and advice
    assert not (tmp_path / "out").exists()


def test_environment_and_environments_exclude_each_other_and_overrides_go_by_name() -> None:
    path, text = Path("several.yaml"), yaml.safe_dump({"environments": [MACHINE, FILES]})
    changed = load_config(
        path, ["environments.files.weight=2", "environments.files.toy_terminal.max_turns=4"], text=text
    )
    assert changed.environments is not None and changed.environments[1].weight == 2.0
    assert changed.sections["files"].toy_worlds.max_turns == 4  # type: ignore[union-attr]
    assert load_config(path, text=changed.to_yaml()) == changed and "\nenvironment:" not in changed.to_yaml()
    for word, said in (
        ("environment.url=http://127.0.0.1:1", "environment and environments are both set"),
        ("environments.fils.weight=1", "no environment is named 'fils'"),
        ("environments.files.headers={A: secret}", "environments.files.headers"),
    ):
        with pytest.raises(Exception, match="environment") as caught:
            load_config(path, [word], text=text)
        assert said in str(caught.value) or "headers" in said
    with pytest.raises(EchoError) as wrong:
        load_config(path, ["environments.files.weight=x"], text=text)
    assert "'environments.files.weight' is" in wrong.value.message
    assert wrong.value.message.endswith("(command line: environments.files.weight=x)")
    with pytest.raises(EchoError, match=r"several.yaml:\d+"):
        load_config(path, text=text.replace("weight: 3", "weight: -1"))


def test_explorers_play_where_there_are_lines_and_need_one_such_place() -> None:
    silent = {"name": "silent", "url": "http://127.0.0.1:1", "tasks": {"seeds": 9}}
    config = config_of(MACHINE, silent)
    assert config.of_each["silent"].rollout.explorers == 0 < config.of_each["machine"].rollout.explorers
    with pytest.raises(Exception, match="no environment has explorer lines"):
        config_of({**MACHINE, "weight": 0}, silent)
