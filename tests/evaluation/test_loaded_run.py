"""A loaded run opens only what is requested."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import error_of

from echo_cli.cli.main import main
from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.worlds import open_worlds
from echo_cli.errors import EchoError
from echo_cli.evaluation import loaded_run
from echo_cli.evaluation.comparison import _check_same_pools
from echo_cli.evaluation.loaded_run import load_run
from echo_cli.evaluation.run_evaluation import rollouts_and_ks
from echo_cli.trajectory import write_trajectories


@pytest.fixture
def elsewhere(finished: Path, tmp_path: Path) -> Path:
    """A copy with stored pools whose environment is at an address without a server."""
    run = shutil.copytree(finished, tmp_path / "run")
    with load_run(finished) as opened:
        for name, pool in opened.frozen_pools(opened.policy()).items():
            write_trajectories(run / f"pool_{name}.jsonl", pool.trajectories)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["environment"] = {
        "url": "http://127.0.0.1:9",
        "retry_s": 0.2,
        "tasks": {"items": [{"instruction": word} for word in "oak elm ash yew fir fig bay box".split()]},
        "action": {"template": {"command": "{text}"}},
        "observation": [{"path": "output", "channel": "stdout"}],
        "explorer": ["look"],
        "reward": {"none": "zero"},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run


def test_files_are_read_without_a_model_or_an_environment(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open_worlds", "open_policy", "load_renderer"):
        monkeypatch.setattr(loaded_run, name, lambda *_: pytest.fail("opened"))
    with load_run(finished) as run:
        assert run.name == finished.name and run.notes == []
        assert run.checkpoint("latest") == (finished / "checkpoints" / "step_000004", 4)
        assert run.checkpoint_steps(["all"]) == [0, 1, 2, 3, 4] == run.checkpoint_steps([4, "all", 2])
        assert len(run.observed(4)) == len(set(run.observed(4))) > len(run.observed(1)) > 0
        assert run.kept_pool("heldout") is None


def test_an_environment_is_open_until_the_end_of_the_block(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []

    @contextmanager
    def watched(config: Config) -> Iterator[TaskSuite]:
        with open_worlds(config) as worlds:
            events.append("open")
            yield worlds
        events.append("closed")

    monkeypatch.setattr(loaded_run, "open_worlds", watched)
    with load_run(finished) as run:
        run.policy()
        assert events == []
        assert run.task_suite is run.task_suite and run.task_suite.tasks.heldout
        assert events == ["open"]
    assert events == ["open", "closed"]


def test_the_initial_policy_is_not_the_one_that_a_checkpoint_is_loaded_into(finished: Path) -> None:
    run = load_run(finished)
    policy = run.policy(run.checkpoint("latest")[0])
    start, trained = ([*of.model.parameters()] for of in (run.initial, policy))
    assert not all(before.equal(after) for before, after in zip(start, trained, strict=True))
    run.load(policy, 0)
    assert all(before.equal(after) for before, after in zip(start, trained, strict=True))


def test_kept_pools_are_measured_without_their_environment(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval-heldout", str(elsewhere), "--rollouts", "0", "--json"]) == 0
    capsys.readouterr()
    assert main(["dream", str(elsewhere), "--list-tasks"]) == 0
    capsys.readouterr()
    assert main(["eval-heldout", str(elsewhere), "--rollouts", "1", "--allow-environment"]) == 1
    assert "127.0.0.1:9" in error_of(capsys.readouterr().err)[0]


def test_held_out_tasks_are_played_as_often_as_in_training(finished: Path) -> None:
    runs = []
    for rollouts in (0, 2, 3):
        settings = load_run(finished).config.evaluation.model_copy(update={"heldout_rollouts": rollouts})
        config = load_run(finished).config.model_copy(update={"evaluation": settings})
        runs.append(loaded_run.LoadedRun(load_run(finished).directory, config))
    none, two, three = runs
    assert rollouts_and_ks([none], None, None) == (0, ())
    assert rollouts_and_ks([two], None, None) == (2, [1, 2])
    assert rollouts_and_ks([two, three], None, None) == (3, [1, 3])
    assert rollouts_and_ks([two], None, [4, 1]) == (4, [1, 4])
    assert rollouts_and_ks([two], 8, None) == (8, [1, 8])
    assert rollouts_and_ks([two], 0, None) == (0, ())


def test_runs_that_count_other_rollouts_as_solved_are_not_compared(finished: Path) -> None:
    first = load_run(finished)
    settings = first.config.evaluation.model_copy(update={"solved_at": 0.5})
    second = loaded_run.LoadedRun(first.directory, first.config.model_copy(update={"evaluation": settings}))
    with pytest.raises(EchoError, match=r"evaluation\.solved_at is 1\.0 in A and 0\.5 in B"):
        _check_same_pools(first, second)
    _check_same_pools(first, first)


@pytest.mark.parametrize("name", ["heldout", "validation"])
def test_a_run_that_has_lost_a_pool_says_so(name: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / f"pool_{name}.jsonl").unlink()
    capsys.readouterr()
    assert main(["eval-heldout", str(elsewhere), "--rollouts", "0"]) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert message.endswith(f"lacks its {name} pool") and "--overwrite" in tip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record.update(turns=[]), "actions and 0 turns"),
        *(
            (
                lambda record, token=token: record["segments"][0]["token_ids"].append(token),
                "tokens of another tokenizer",
            )
            for token in (-1, 10**6, 10**30)
        ),
    ],
)
def test_a_kept_pool_of_other_actions_or_tokens_is_damaged(
    change: Callable[[Any], None], said: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = elsewhere / "pool_heldout.jsonl"
    records = [json.loads(line) for line in pool.read_text().splitlines()]
    change(records[0])
    pool.write_text("".join(json.dumps(record) + "\n" for record in records))
    capsys.readouterr()
    assert main(["eval-heldout", str(elsewhere), "--rollouts", "0"]) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "pool_heldout.jsonl is damaged" in message and said in message and "--overwrite" in tip
