"""Datasets of tasks: columns as reset arguments, question and answer; splits by content; what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_text_environment import Scripted, said, settings

from echo_cli.config.episodes.tasks import TasksConfig
from echo_cli.config.loader import load_config
from echo_cli.environments.protocol import HostLimits, TextPiece
from echo_cli.environments.tasks import Task, TaskList, load_tasks
from echo_cli.environments.text_environment import TextEnvironment
from echo_cli.environments.worlds import open_worlds
from echo_cli.errors import EchoError
from echo_cli.trajectory import Role

ROWS = [{"q": f"what is {number} + 1?", "a": str(number + 1), "seed": number, "kind": "sum"} for number in range(20)]
COLUMNS = {"reset": {"start": "seed"}, "question": "q", "answer": "a", "family": "kind"}


def jsonl(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(dataset: str, columns: Any = COLUMNS, **keys: Any) -> TaskList:
    values = {"dataset": dataset, "columns": columns, **keys}
    return load_tasks(TasksConfig.model_validate_json(json.dumps(values), strict=True))


def every(tasks: TaskList) -> list[Task]:
    return sorted((task for of in tasks.splits.by_name.values() for task in of), key=lambda task: task.question)


def refused(dataset: str, columns: Any = COLUMNS, **keys: Any) -> EchoError:
    with pytest.raises(EchoError) as caught:
        load(dataset, columns, **keys)
    assert caught.value.exit_code == 2 and caught.value.tip and "\n" not in caught.value.message
    return caught.value


def test_columns_become_reset_arguments_question_and_answer(tmp_path: Path) -> None:
    tasks = load(jsonl(tmp_path / "t.jsonl", ROWS))
    first = every(tasks)[0]
    assert (first.reset_arguments, first.question, first.answer) == ({"start": 0}, "what is 0 + 1?", "1")
    assert first.family == "sum" and first.task_id == 'question="what is 0 + 1?",start=0'
    assert len(every(tasks)) == 20 and all(len(of) >= 2 for of in tasks.splits.by_name.values())


def test_reset_arguments_are_a_mapping_a_list_or_a_column_that_holds_them_without_nulls(tmp_path: Path) -> None:
    rows = [{"seed": 3, "level": None, "openenv_reset": {"seed": 3, "hint": None}, "text": '{"seed": 3}'}]
    path = jsonl(tmp_path / "t.jsonl", rows)
    for reset in (["seed", "level"], {"seed": "seed"}, "openenv_reset", "text"):
        (task,) = every(load(path, {"reset": reset}, validation=0, heldout=0))
        assert (task.reset_arguments, task.question, task.answer) == ({"seed": 3}, "", None)


def test_a_csv_file_has_text_and_numbers_where_reset_arguments_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        'id,q,a,seed,zip,on,script,part\n7,"one,\ntwo?",042,1.5,007,true,"ls\ncat a",heldout\n8,q,1,2,x,,,\n'
    )
    columns = {"reset": ["seed", "zip", "on"], "question": "q", "answer": "a", "id": "id", "actions": "script"}
    tasks = load(str(path), {**columns, "split": "part"}, validation=0, heldout=0)
    (held,), (train,) = tasks.splits.heldout, tasks.splits.train
    assert held.reset_arguments == {"seed": 1.5, "zip": "007", "on": True}
    assert (held.task_id, held.question, held.answer) == ("7", "one,\ntwo?", "042")
    assert tasks.actions == {"7": ("ls", "cat a")}
    assert train.reset_arguments == {"seed": 2, "zip": "x"} and train.task_id == "8"


def test_the_split_is_a_hash_of_the_content_whatever_the_order_the_id_and_the_answer(tmp_path: Path) -> None:
    def splits(rows: Sequence[Any], **columns: str) -> dict[str, str]:
        tasks = load(jsonl(tmp_path / "t.jsonl", rows), {**COLUMNS, **columns})
        return {task.question: task.split for task in every(tasks)}

    found = splits(ROWS)
    assert found == splits(ROWS[::-1]) == splits([{**row, "a": "?"} for row in ROWS])
    assert found == splits([{**row, "n": number} for number, row in enumerate(ROWS)], id="n")
    more = splits([*ROWS, *({**row, "q": f"and {row['q']}"} for row in ROWS)])
    assert sum(more[question] == split for question, split in found.items()) >= 17


def test_a_repeated_row_is_one_task_and_is_counted(tmp_path: Path) -> None:
    tasks = load(jsonl(tmp_path / "t.jsonl", [*ROWS, {**ROWS[3], "a": "other"}, ROWS[5]]))
    assert len(every(tasks)) == 20 and tasks.splits.repeated == 2
    assert {task.answer for task in every(tasks) if task.question == ROWS[3]["q"]} == {"4"}


def test_duplicates_across_splits_are_refused(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "part": "train"}, {**ROWS[1], "part": "heldout"}, {**ROWS[0], "part": "heldout"}]
    path = jsonl(tmp_path / "t.jsonl", rows)
    message = refused(path, {**COLUMNS, "split": "part"}).message
    assert message == f"the same reset arguments and question are in train ({path}:1) and in heldout ({path}:3)"


@pytest.mark.parametrize(
    ("text", "columns", "message", "tip"),
    [
        ('{"q": "a", "seed": 1}', {"question": "qu"}, "has no column 'qu' ({path}:1)", "did you mean 'q'?"),
        ('{"q": "a"}\n{"p": 1}', {"question": "q"}, "has no column 'q' ({path}:2)", "columns: p"),
        ("", {"question": "q"}, "has no rows", "another split or file"),
        ("\n\n", {"question": "q"}, "has no rows", "another split or file"),
        ('{"q": "a"}\n{"q"', {"question": "q"}, "not JSON: ", "one JSON object per line"),
        ("[1]", {"question": "q"}, "a row is not a mapping of columns ({path}:1)", "one JSON object"),
        ('{"q": 3}', {"question": "q"}, "question is 3, not text ({path}:1)", "quote a number"),
        ('{"r": 3}', {"reset": "r"}, "reset is not a mapping ({path}:1)", ""),
        ('{"r": "x"}', {"reset": "r"}, "reset is not a mapping ({path}:1)", ""),
        (
            '{"q": "a", "s": "test"}',
            {"question": "q", "split": "s"},
            "unknown split 'test' ({path}:1)",
            "splits: train",
        ),
        ('{"q": "a", "s": "ood"}', {"question": "q", "split": "s"}, "no task is left to train on", ""),
    ],
)
def test_a_wrong_dataset_is_refused_with_the_row(
    text: str, columns: Any, message: str, tip: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    error = refused(str(path), columns)
    assert message.replace("{path}", str(path)) in error.message and tip in (error.tip or "")


def test_a_wrong_csv_file_is_refused_with_the_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("q,a\n1,2\n1\n")
    assert f"a row has 1 cells, the header 2 ({path}:3)" in refused(str(path), {"question": "q"}).message
    path.write_text('q,a\n"1"x,2\n')
    assert f"not CSV: ',' expected after '\"' ({path}:2)" in refused(str(path), {"question": "q"}).message
    path.write_text("q,a\n")
    assert "has no rows" in refused(str(path), {"question": "q"}).message


def test_a_dataset_that_is_not_there_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    assert "cannot read dataset" in refused(str(tmp_path / "gone.csv")).message
    (tmp_path / "t.xml").touch()
    error = refused(str(tmp_path / "t.xml"))
    assert "unsupported dataset" in error.message and ".jsonl, .csv, .parquet" in (error.tip or "")
    path = jsonl(tmp_path / "t.jsonl", ROWS)
    assert "is a single file" in refused(path, split="test").message
    assert "is a single file" in refused(path, subset="main").message


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"dataset": "t.csv"}, "environment.tasks.dataset has no columns"),
        ({"dataset": "t.csv", "columns": {"answer": "a"}}, "names neither reset nor question"),
        ({"dataset": "t.csv", "seeds": 3, "columns": {"question": "q"}}, "sets seeds and dataset"),
        ({"seeds": 3, "columns": {"question": "q"}}, "environment.tasks.columns has no effect without dataset"),
        ({"seeds": 3, "split": "test"}, "environment.tasks.split has no effect without dataset"),
        ({"dataset": "./t.csv", "revision": "v1", "columns": {"question": "q"}}, "revision has no effect"),
        ({"dataset": "t.csv", "columns": {"qestion": "q"}}, "unknown key 'environment.tasks.columns.qestion'"),
    ],
)
def test_a_config_of_a_dataset_that_makes_no_sense_is_refused(
    tasks: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"environment": {"url": "http://h:1", "tasks": tasks}, "rollout": {"explorers": 0}}))
    with pytest.raises(EchoError, match=message.replace("[", r"\[")) as caught:
        load_config(path)
    assert caught.value.tip


def test_another_source_of_tasks_replaces_a_dataset_with_all_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    tasks = {"dataset": "t.csv", "columns": {"question": "q"}, "split": {"train": "a", "heldout": "b"}, "subset": "s"}
    path.write_text(json.dumps({"environment": {"url": "http://h:1", "tasks": tasks}, "rollout": {"explorers": 0}}))
    assert load_config(path, ["environment.tasks.seeds=5"]).environment.tasks == TasksConfig(seeds=5)
    loaded = load_config(path, ["environment.tasks.split=test"]).environment.tasks
    assert loaded is not None and loaded.split == "test" and loaded.columns is not None


def test_the_policy_is_shown_the_question_first_and_never_the_answer() -> None:
    task = Task("t", "train", "f", {"seed": 3}, "how many?\x1b[2J", "secret")
    source = Scripted(said("hello\n"))
    environment = TextEnvironment(source, settings(), HostLimits())
    opening = asyncio.run(environment.reset(task))
    assert opening == (
        TextPiece(Role.CONTEXT, "how many?␛[2J\n", "question"),
        TextPiece(Role.CONTEXT, "hello\n"),
        TextPiece(Role.CONTEXT, "> "),
    )
    assert source.sent == [{"reset": {"seed": 3}}]
    assert task.to_json()["answer"] == "secret"


def test_a_task_list_may_have_questions_and_answers_too() -> None:
    items = ({"reset": {"seed": 1}, "question": "q", "answer": 3, "split": "train"}, {"seed": 1})
    tasks = load_tasks(TasksConfig(items=items, validation=0, heldout=0))
    first, second = tasks.splits.train
    assert (first.question, first.answer, second.question) == ("q", 3, "")
    for wrong in ({"question": 3}, {"answer": float("nan")}):
        with pytest.raises(EchoError, match=r"items\.0"):
            load_tasks(TasksConfig(items=({"reset": {}, **wrong},)))


def test_a_pattern_with_the_answer_needs_a_task_with_one(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    reward = {"rubric": [{"name": "right", "pattern": "^{answer}$"}]}
    environment = {"url": "http://127.0.0.1:1", "tasks": {"seeds": 3}, "reward": reward}
    path.write_text(json.dumps({"environment": environment, "rollout": {"explorers": 0}}))
    with (
        pytest.raises(EchoError, match=r"right has \{answer\}, and the task seed=. has none"),
        open_worlds(load_config(path)),
    ):
        pass


# --- With the extra `datasets` ---------------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A folder as on the hub: two subsets, each with two splits."""
    pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet as files

    for subset, first in (("main", 0), ("other", 10)):
        folder = tmp_path / "repo" / subset
        folder.mkdir(parents=True)
        for split, rows in (("train", ROWS[first : first + 7]), ("test", ROWS[first + 7 : first + 10])):
            table = pyarrow.Table.from_pylist([{**row, "openenv_reset": {"start": row["seed"]}} for row in rows])
            files.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    (tmp_path / "repo" / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {name}\n  data_files:\n"
            + "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in ("train", "test"))
            for name in ("main", "other")
        )
        + "---\n"
    )
    return tmp_path / "repo"


def test_parquet_files_and_folders_are_read_as_jsonl_is(parquet: Path, tmp_path: Path) -> None:
    file = str(parquet / "main" / "train-00000-of-00001.parquet")
    plain = load(jsonl(tmp_path / "t.jsonl", ROWS[:7]))
    assert every(load(file)) == every(plain)
    assert every(load(str(parquet), subset="main")) == every(plain)
    reset = {**COLUMNS, "reset": "openenv_reset"}
    assert every(load(file, reset)) == every(plain)
    tasks = load(str(parquet), subset="other", split={"train": "train", "heldout": "test"})
    assert [len(tasks.splits.train), len(tasks.splits.validation), len(tasks.splits.heldout)] == [7, 0, 3]
    assert "no column 'qq'" in refused(file, {"question": "qq"}).message
    assert "cannot read the dataset" in refused(str(parquet), subset="none").message
    assert "Available splits" in refused(str(parquet), subset="main", split="dev").message
    card = parquet / "README.md"
    for elsewhere in ("https://example.com/x.parquet", "/etc/hosts", "../../x.parquet"):
        card.write_text(f"---\nconfigs:\n- config_name: main\n  data_files: [{elsewhere}]\n---\n")
        error = refused(str(parquet), subset="main")
        assert error.message.endswith(f"has files elsewhere: {elsewhere}")
    card.write_text("---\nconfigs: [\n---\n")
    assert "is not valid YAML" in refused(str(parquet), subset="main").message
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" * 10)
    assert "cannot read the dataset" in refused(str(tmp_path / "broken.parquet")).message


def test_a_dataset_of_the_hub_is_read_from_this_machine_and_not_fetched_without_leave(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    error = refused("someone/sums", subset="main")
    assert error.message == "the dataset someone/sums is not on this machine" and "--fetch-model" in (error.tip or "")
    held, commit = tmp_path / "hub" / "datasets--someone--sums", "0" * 40
    (held / "refs").mkdir(parents=True)
    (held / "refs" / "main").write_text(commit)
    (held / "snapshots").mkdir()
    parquet.rename(held / "snapshots" / commit)
    assert len(every(load("someone/sums", subset="main"))) == 7
    assert len(every(load("someone/sums", subset="main", revision=commit, split="test"))) == 3
