"""The attic of `scripts/reproduce-claims --model`, and how the study of a language model is read."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import rmtree

import pytest

pytest.importorskip("openenv")

from claims.arms import Place
from claims.attic import COLOURS, KINDS, AtticEnvironment, Reply, Slip, attic_of, tasks
from claims.language_model import ARMS, PAIRS, TUNED, markdown, over_tasks, reproduce, study_of, to_json
from claims.measured import Measured
from claims.records import Record, write_records
from claims.runs import Study, cell_of, fingerprint_of, planned, run_name, solved_by_task

from echo_cli.environments.worlds import list_tasks
from echo_cli.files import write_json
from echo_cli.runs.directory import open_run

SEEDS = (0, 1, 2, *TUNED)


def _open(reset: dict[str, object], reply: str) -> tuple[Slip, Slip]:
    environment = AtticEnvironment()
    return environment.reset(**reset), environment.step(Reply(text=reply))


def _split(seed: int, split: str) -> list[dict[str, object]]:
    return [task["reset"] for task in tasks(seed) if task["split"] == split]


def _kind(thing: str) -> str:
    (kind,) = (kind for kind, things in KINDS.items() if thing in things)
    return kind


@pytest.mark.parametrize("seed", SEEDS)
def test_a_box_holds_the_things_of_one_kind(seed: int) -> None:
    box_of = attic_of(seed).box_of
    assert len({(_kind(thing), box) for thing, box in box_of.items()}) == len(COLOURS) == len(set(box_of.values()))


@pytest.mark.parametrize("seed", SEEDS)
def test_each_split_asks_about_other_things_as_many_in_every_box(seed: int) -> None:
    box_of, asked = attic_of(seed).box_of, {}
    for split, each in (("train", 2), ("validation", 1), ("heldout", 3)):
        things = [reset["thing"] for reset in _split(seed, split)]
        asked[split] = set(things)
        assert [[box_of[thing] for thing in things].count(colour) for colour in COLOURS] == [each] * len(COLOURS)
    assert not asked["train"] & asked["validation"] and not asked["heldout"] & (asked["train"] | asked["validation"])
    assert len(set(box_of) - set().union(*asked.values())) == 2 * len(COLOURS)  # only slips mention these


@pytest.mark.parametrize("seed", SEEDS)
def test_the_placebo_explores_an_attic_of_other_kinds(seed: int) -> None:
    kinds = [{_kind(thing) for thing in attic_of(seed, elsewhere=there).box_of} for there in (False, True)]
    assert [len(found) for found in kinds] == [len(COLOURS)] * 2 and not kinds[0] & kinds[1]
    other = {reset["thing"] for reset in _split(seed, "other_world")}
    assert other == set(attic_of(seed, elsewhere=True).box_of) and len(other) == len(attic_of(seed).box_of)
    assert not other & set(attic_of(seed).box_of)
    slips = [_open(reset, colour)[1].slip for reset in _split(seed, "other_world") for colour in COLOURS]
    assert not {line.split()[1] for slip in slips for line in slip.splitlines()} & set(attic_of(seed).box_of)


def test_only_the_box_of_the_thing_is_right_and_one_reply_ends_the_episode() -> None:
    for task in tasks(0):
        reset = task["reset"]
        answers = {colour: _open(reset, f" {colour.title()} box.")[1] for colour in COLOURS}
        assert all(answer.done for answer in answers.values())
        right = attic_of(0, elsewhere=reset.get("elsewhere", False)).box_of[reset["thing"]]
        assert {colour: answer.reward for colour, answer in answers.items()} == {
            colour: float(colour == right) for colour in COLOURS
        }


def test_the_first_colour_of_a_reply_is_its_answer_and_a_reply_without_one_opens_nothing() -> None:
    reset = {"attic": 0, "thing": next(iter(attic_of(0).box_of))}
    opened, none = _open(reset, " blue box, not the red box")[1], _open(reset, " colored reddish")[1]
    assert opened.slip == attic_of(0).slip(reset["thing"], "blue") != attic_of(0).slip(reset["thing"], "red")
    assert none.done and none.reward == 0 and not none.slip and none.notice


@pytest.mark.parametrize("seed", SEEDS)
def test_slips_are_true_hide_what_was_asked_and_mention_every_held_out_thing_in_training(seed: int) -> None:
    box_of, mentioned = attic_of(seed).box_of, set()
    for reset in _split(seed, "train"):
        for colour in COLOURS:
            question, answer = _open(reset, colour)
            assert reset["thing"] in question.question.split() and not question.slip
            for line in answer.slip.splitlines():
                _, thing, _, _, _, box, _ = line.split()
                assert box_of[thing] == box != colour and thing != reset["thing"]
                mentioned.add(thing)
    assert mentioned == set(box_of)
    trained, held = (
        {(colour, _open(reset, colour)[1].slip) for reset in _split(seed, split) for colour in COLOURS}
        for split in ("train", "heldout")
    )
    assert not trained & held


def _study(folder: Path) -> Study:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    return study_of(model, folder / "runs", 1, ("evaluation.heldout_rollouts=2",))


def test_every_arm_is_a_config_in_its_attic_and_differs_from_grpo_in_lambda_or_the_placebo_alone(
    tmp_path: Path,
) -> None:
    study = _study(tmp_path)
    assert {name for pair in PAIRS for name in pair} == {arm.name for arm in ARMS}
    configs = {arm.name: cell_of(arm, Place(1, 1), 1e-3, study).config for arm in ARMS}
    splits, _ = list_tasks(configs["grpo"])
    assert [len(splits.train), len(splits.validation), len(splits.heldout)] == [8, 4, 12]
    assert configs["grpo"].environment.grants.import_from == str(study.configs.parent)
    assert [config.objective.world_model_coeff for config in configs.values()] == [0, 0.05, 0.3, 0.3]
    same = [
        config.model_copy(
            update={
                "objective": configs["grpo"].objective,
                "rollout": config.rollout.model_copy(update={"explorers": 0}),
            }
        )
        for config in configs.values()
    ]
    assert all(config == configs["grpo"] for config in same)


def _measured(study: Study, name: str, solved: dict[Place, list[list[float]]]) -> Measured:
    """Write fake runs, whose held-out tasks have these rewards at the last step, and return them as measured."""
    arm, records = study.arms[name], {}
    for place in solved:
        cell = planned(arm, place, study)
        heldout = list_tasks(cell.config)[0].heldout
        cell.path.mkdir(parents=True)
        before = {"task_id": heldout[0].task_id, "reward": 1.0, "meta": {"step": 0}}
        trained = {"task_id": f"{place.machine}/no held-out task", "reward": 1.0, "meta": {"step": cell.config.steps}}
        last = [
            {"task_id": task.task_id, "reward": reward, "meta": {"step": cell.config.steps}}
            for task, rewards in zip(heldout, solved[place], strict=False)
            for reward in rewards
        ]
        text = "".join(json.dumps(record) + "\n" for record in (before, trained, *last))
        (cell.path / "trajectories.jsonl").write_text(text)
        (cell.path / "config.yaml").write_text(cell.config.to_yaml())
        (cell.path / "metrics.jsonl").touch()
        share = sum(map(sum, solved[place])) / sum(map(len, solved[place]))
        figures = {"pass_at_1_last": share, "env_ce_change_last": share - 1}
        by_task = solved_by_task(cell, open_run(cell.path))
        config = fingerprint_of(arm, place, study)
        records[place] = Record(name, place.machine, place.seed, 1e-3, config, figures, {}, (), by_task)
    return Measured(arm, records)


def test_figures_are_paired_by_seed_and_by_task(tmp_path: Path) -> None:
    study, first, second = _study(tmp_path), Place(0, 0), Place(1, 1)
    study.folder.mkdir()
    write_json(study.rates, {name: [{"lr": 1e-3, "pass_at_1": 0.5}] for name in ("grpo", "echo-0.3")})
    grpo = _measured(study, "grpo", {first: [[0, 0], [0, 1]], second: [[0, 0], [0, 0]]})
    echo = _measured(study, "echo-0.3", {first: [[1, 1], [0, 1]], second: [[1, 0], [1, 0]]})
    found = over_tasks(grpo, echo)
    assert found is not None and found.value == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    # t of three degrees of freedom at 97.5 %, and the standard deviation of the four differences
    assert found.high == pytest.approx(0.5 + 3.1824 * (1 / 6) ** 0.5 / 2, rel=1e-4)

    arms = {"grpo": grpo, "echo-0.3": echo}
    figures = json.loads(json.dumps(to_json(arms, study)))
    (difference,) = figures["differences"]
    assert (difference["first"], difference["second"]) == ("grpo", "echo-0.3")
    assert difference["pass_at_1_last"]["value"] == pytest.approx(0.5)
    assert difference["pass_at_1_last"]["low"] == pytest.approx(0.5)  # both seeds differ by as much
    assert difference["pass_at_k_last"] is None
    assert figures["arms"]["echo-0.3"]["pass_at_1_last"]["value"] == pytest.approx(0.625)
    assert figures["arms"]["echo-0.3"]["lr"] == 1e-3
    page = markdown(arms, study)
    assert any(line.startswith("- ECHO, λ 0.3 against GRPO (λ 0): pass@1 +0.50 (+0.50 to +0.50)") for line in page)
    assert sum(line.startswith("| ECHO, λ 0.3 | 2 |") for line in page) == 1

    rmtree(study.folder / run_name("grpo", first))
    write_records(study.folder / "runs.jsonl", [*grpo.records.values(), *echo.records.values()])
    written = reproduce(study, [grpo.arm, echo.arm], (0, 1), tune_only=False)  # trains nothing: all have records
    assert written is not None and written.read_text().splitlines() == page
    assert json.loads((study.folder / "figures.json").read_text()) == figures
