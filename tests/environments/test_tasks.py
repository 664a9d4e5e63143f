"""Tasks from files, from the config and by seed: their splits, and errors that name their place."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from echo_cli.config.episodes.tasks import TasksConfig
from echo_cli.environments.tasks import TaskList, default_id, load_tasks, splits_by_hash
from echo_cli.errors import EchoError


def _load(folder: Path, name: str, text: str | bytes, **fractions: float) -> TaskList:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_tasks(TasksConfig(file=str(path), **fractions))  # type: ignore[arg-type]


def _refused(folder: Path, name: str, text: str | bytes, **fractions: float) -> EchoError:
    with pytest.raises(EchoError) as caught:
        _load(folder, name, text, **fractions)
    assert caught.value.exit_code == 2
    assert caught.value.tip
    return caught.value


def _split_of(tasks: TaskList) -> dict[str, str]:
    splits = tasks.splits
    return {task.task_id: task.split for task in (*splits.train, *splits.validation, *splits.heldout)}


def test_seeds_are_reset_arguments_from_0() -> None:
    tasks = load_tasks(TasksConfig(seeds=40))
    every = (*tasks.splits.train, *tasks.splits.validation, *tasks.splits.heldout)
    assert sorted(task.reset_arguments["seed"] for task in every) == list(range(40))
    assert {task.task_id for task in every} == {f"seed={seed}" for seed in range(40)}
    assert {task.family for task in every} == {"task"}
    assert tasks.actions == {} and tasks.ood == ()


def test_the_split_is_the_hash_of_the_arguments_against_the_fractions() -> None:
    # The first eight bytes of SHA-256('{"seed":0}') as a fraction of 2**64.
    first = int(hashlib.sha256(b'{"seed":0}').hexdigest()[:16], 16) / 2**64
    for validation, heldout, split in (
        (first + 1e-9, 0.0, "validation"),
        (first / 2, first / 2 + 1e-9, "heldout"),
        (first / 2, first / 2 - 1e-9, "train"),
    ):
        assert splits_by_hash(['{"seed":0}'], validation, heldout) == {'{"seed":0}': split}


@pytest.mark.parametrize("tasks", [*range(2, 41), 80, 200])
@pytest.mark.parametrize("first", [0, 100, 1000])
def test_shares_are_near_the_fractions_however_few_tasks_there_are(tasks: int, first: int) -> None:
    names = [f'{{"seed":{seed}}}' for seed in range(first, first + tasks)]
    for validation, heldout in ((0.15, 0.25), (0.45, 0.45), (0.0, 0.9), (0.5, 0.0)):
        found = splits_by_hash(names, validation, heldout)
        assert found == splits_by_hash(names[::-1], validation, heldout) and found.keys() == set(names)
        sizes = [list(found.values()).count(split) for split in ("validation", "heldout", "train")]
        fractions = (validation, heldout, 1 - validation - heldout)
        for split, size, fraction in zip(("validation", "heldout", "train"), sizes, fractions, strict=True):
            near = max(1, tasks / 20) + 1e-9  # train takes what is left, so it may have more
            assert -near <= size - fraction * tasks <= near * (1 + (split == "train"))
            assert size > 0 or fraction == 0 or tasks < sum(map(bool, fractions))


def test_a_split_that_was_asked_for_has_a_task_even_beside_a_large_one() -> None:
    names = [f'{{"seed":{seed}}}' for seed in range(20)]
    for fractions in ((0.9, 0.05), (0.05, 0.9), (0.01, 0.01)):
        for tasks in (3, 4, 10, 20):
            assert set(splits_by_hash(names[:tasks], *fractions).values()) == {"train", "validation", "heldout"}


def test_a_fraction_of_0_is_no_task() -> None:
    for seeds in range(1, 60):
        splits = load_tasks(TasksConfig(seeds=seeds, validation=0.0, heldout=0.0)).splits
        assert len(splits.train) == seeds


def test_the_fractions_hold_over_many_tasks() -> None:
    splits = load_tasks(TasksConfig(seeds=4000, validation=0.15, heldout=0.25)).splits
    assert 0.13 < len(splits.validation) / 4000 < 0.17
    assert 0.22 < len(splits.heldout) / 4000 < 0.28


def test_most_tasks_keep_their_split_when_others_are_added_and_keys_change_places(tmp_path: Path) -> None:
    few, many = (_split_of(load_tasks(TasksConfig(seeds=count))) for count in (20, 200))
    assert sum(many[name] != split for name, split in few.items()) <= 1
    lines = [f"- {{seed: {seed}, level: easy}}\n" for seed in range(50)]
    turned = [f"- {{level: easy, seed: {seed}}}\n" for seed in reversed(range(50))]
    assert _split_of(_load(tmp_path, "a.yaml", "".join(lines))) == _split_of(_load(tmp_path, "b.yaml", "".join(turned)))


def test_yaml_jsonl_and_inline_items_are_the_same_tasks(tmp_path: Path) -> None:
    yaml = (
        "- {seed: 1, on: off}\n"
        "- reset: {seed: 2}\n  split: heldout\n  id: two\n  family: easy\n  actions: [ls, 'a: b']\n"
    )
    jsonl = (
        '{"seed": 1, "on": "off"}\n\n'
        '{"reset": {"seed": 2}, "split": "heldout", "id": "two", "family": "easy", "actions": ["ls", "a: b"]}\n'
    )
    items = (
        {"seed": 1, "on": "off"},
        {"reset": {"seed": 2}, "split": "heldout", "id": "two", "family": "easy", "actions": ["ls", "a: b"]},
    )
    fractions = {"validation": 0.0, "heldout": 0.0}
    found = _load(tmp_path, "tasks.yaml", yaml, **fractions)
    assert found == _load(tmp_path, "tasks.jsonl", jsonl, **fractions)
    assert found == load_tasks(TasksConfig(items=items, validation=0.0, heldout=0.0))
    (train,), (held,) = found.splits.train, found.splits.heldout
    assert (train.task_id, train.reset_arguments) == ("on=off,seed=1", {"seed": 1, "on": "off"})
    assert (held.task_id, held.family, held.split) == ("two", "easy", "heldout")
    assert found.actions == {"two": ("ls", "a: b")}


def test_out_of_distribution_tasks_are_in_no_split_of_training(tmp_path: Path) -> None:
    tasks = _load(tmp_path, "t.yaml", "- {reset: {seed: 1}, split: train}\n- {reset: {seed: 9}, split: ood}\n")
    assert _split_of(tasks) == {"seed=1": "train"}
    assert [(task.task_id, task.split) for task in tasks.ood] == [("seed=9", "heldout")]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({}, "default"),
        ({"seed": 3, "level": "easy"}, "level=easy,seed=3"),
        ({"a": "1"}, 'a="1"'),
        ({"a": "true", "b": True, "c": None}, 'a="true",b=true,c=null'),
        ({"a": {"y": 1, "x": [2]}}, 'a={"x": [2], "y": 1}'),
        ({"env_id": "TowerOfHanoi-v0"}, "env_id=TowerOfHanoi-v0"),
    ],
)
def test_an_id_says_what_the_arguments_are(arguments: dict[str, object], name: str) -> None:
    assert default_id(arguments) == name


def test_the_id_of_long_arguments_is_short_and_its_own() -> None:
    first, second = default_id({"text": "x" * 500}), default_id({"text": "x" * 501})
    assert first != second
    assert max(len(first), len(second)) <= 64
    assert default_id({"text": "\x1b[31m"}).isprintable()


def test_a_split_that_the_hash_leaves_empty_is_an_error_for_training_alone(tmp_path: Path) -> None:
    tasks = _load(tmp_path, "t.yaml", "- {seed: 1}\n", validation=0.0, heldout=0.0)
    assert _split_of(tasks) == {"seed=1": "train"}
    error = _refused(tmp_path, "t.yaml", "- {reset: {seed: 1}, split: validation}\n- {reset: {seed: 2}, split: ood}\n")
    assert error.message == "no task is left to train on: 2 in total, 1 validation, 1 ood"


def test_the_same_arguments_may_be_twice_in_one_split_under_two_ids(tmp_path: Path) -> None:
    text = "- {reset: {seed: 1}, id: a, split: train}\n- {reset: {seed: 1}, id: b, split: train}\n"
    assert _split_of(_load(tmp_path, "t.yaml", text)) == {"a": "train", "b": "train"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {seed: 1}\n\n- {seed: 1}\n", "the task id 'seed=1' is already used at {path}:1 ({path}:3)"),
        (
            "- {reset: {seed: 1}, id: a, split: train}\n- {reset: {seed: 1}, id: b, split: heldout}\n",
            "the same reset arguments are in train ({path}:1) and in heldout ({path}:2)",
        ),
        (
            "- {reset: {seed: 1}, id: a, split: train}\n- {reset: {seed: 1}, id: b, split: ood}\n",
            "the same reset arguments are in train ({path}:1) and in ood ({path}:2)",
        ),
        ("- {seed: 1}\n- reset: {seed: 2}\n  splt: train\n", "unknown key 'splt' beside reset ({path}:2)"),
        ("- {reset: {seed: 1}, split: test}\n", "unknown split 'test' ({path}:1)"),
        ("- {reset: 3}\n", "reset is not a mapping ({path}:1)"),
        ("- {reset: {seed: 1}, id: 3}\n", "id is 3, not a line of text ({path}:1)"),
        ("- {reset: {seed: 1}, family: ''}\n", 'family is "", not a line of text ({path}:1)'),
        ("- {reset: {seed: 1}, actions: ls}\n", "actions is not a list of lines ({path}:1)"),
        ('- {reset: {seed: 1}, actions: ["a\\nb"]}\n', "actions is not a list of lines ({path}:1)"),
        ("- {seed: 1}\n- 3\n", "a task is not a mapping of reset arguments ({path}:2)"),
        ("- {seed: .nan}\n", "nan is not a JSON number ({path}:1)"),
        ("- {at: [{x: -.inf}]}\n", "-inf is not a JSON number ({path}:1)"),
        ("- {1: 2}\n", "the key 1 is not text ({path}:1)"),
        ("- {seed: 1}\n- {seed: 2, seed: 3}\n", "duplicate key '1.seed' ({path}:2)"),
        ("seed: 1\n", "not a list of tasks ({path}:1)"),
        ("- {seed: 1\n", "invalid YAML: "),
        ("- &a {seed: 1}\n- *a\n", "aliases (*) are not supported"),
        ("", "{path} has no tasks"),
        ("[]", "{path} has no tasks"),
        (b"\xff\xfe", "cannot read tasks {path}: it is UTF-16, not UTF-8 text"),
    ],
)
def test_a_wrong_yaml_file_is_refused_with_the_line(text: str | bytes, message: str, tmp_path: Path) -> None:
    error = _refused(tmp_path, "tasks.yaml", text)
    assert message.replace("{path}", str(tmp_path / "tasks.yaml")) in error.message
    assert "tasks.yaml" in error.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": 1}\n{"seed": 1}\n', "the task id 'seed=1' is already used at {path}:1 ({path}:2)"),
        ('{"seed": 1}\n{"seed": \n', "not JSON: "),
        ('{"seed": 1}\n{"seed": NaN}\n', "NaN is not a JSON number ({path}:2)"),
        ('{"seed": 1}\n{"seed": 1e999}\n', "inf is not a JSON number ({path}:2)"),
        ('{"seed": 1}\n{"seed": 2, "seed": 3}\n', "key 'seed' is given twice ({path}:2)"),
        ('{"seed": 1}\n[2]\n', "a task is not a mapping of reset arguments ({path}:2)"),
        ("[" * 100_000, "not JSON: "),
        ("\n", "{path} has no tasks"),
        (b"\xff\xfe", "cannot read tasks {path}: it is UTF-16, not UTF-8 text"),
    ],
)
def test_a_wrong_jsonl_file_is_refused_with_the_line(text: str | bytes, message: str, tmp_path: Path) -> None:
    error = _refused(tmp_path, "tasks.jsonl", text)
    assert message.replace("{path}", str(tmp_path / "tasks.jsonl")) in error.message


def test_a_wrong_item_is_named_by_its_key() -> None:
    with pytest.raises(EchoError, match=r"unknown key 'x' beside reset \(environment\.tasks\.items\.1\)"):
        load_tasks(TasksConfig(items=({"seed": 1}, {"reset": {"seed": 2}, "x": 1})))


def test_a_file_of_another_kind_or_none_at_all_is_refused(tmp_path: Path) -> None:
    assert "unsupported task file" in _refused(tmp_path, "tasks.csv", "seed\n1\n").message
    for name in ("missing.yaml", "missing.jsonl"):
        with pytest.raises(EchoError, match=f"cannot read tasks .*{name}"):
            load_tasks(TasksConfig(file=str(tmp_path / name)))


def test_a_path_is_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"reset": {"seed": 1}, "split": "train"}\n')
    monkeypatch.chdir(tmp_path)
    assert _split_of(load_tasks(TasksConfig(file="tasks.jsonl"))) == {"seed=1": "train"}


def test_a_surrogate_in_an_argument_is_kept(tmp_path: Path) -> None:
    tasks = _load(tmp_path, "t.jsonl", '{"text": "\\ud800"}\n', validation=0.0, heldout=0.0)
    (task,) = tasks.splits.train
    assert task.reset_arguments == {"text": "\ud800"} and task.task_id.isprintable()
