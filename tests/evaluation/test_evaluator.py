"""Held-out measures: hand-computed cross-entropy and bits per byte, each pair once, novel and seen separately."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import echo_cli
from echo_cli.config.environment import EnvironmentConfig
from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.schema import Config, EvaluationConfig, OptimConfig
from echo_cli.environments.protocol import Description, Environment, HostLimits, StepResult, TaskSuite, TextPiece
from echo_cli.environments.tasks import Task, TaskSplits
from echo_cli.environments.toy import ToyWorlds
from echo_cli.evaluation.evaluator import (
    Evaluator,
    expert_pool,
    expert_pools,
    leak_notices,
    play_pools,
    pool_notices,
    rollout_tasks,
    split_notices,
)
from echo_cli.evaluation.measures import Predictions, Tokens, measure, predict, tokens_of, values_of
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tiny import TinyConfig, TinyModel
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_scripts
from echo_cli.runs.pools import ObservationLog, Pair, Pool, pairs_of, pool_of
from echo_cli.trajectory import Role, Trajectory

torch.set_num_threads(1)

TOKENIZER = Tokenizer.load(Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json")
PLAIN = PlainRenderer(TOKENIZER)
V = TOKENIZER.vocab_size
WIDE = EpisodeLimits(action_tokens=50, output_tokens=1000, episode_tokens=10_000)


def policy(*, uniform: bool = False) -> TorchPolicy:
    model = TinyModel(TinyConfig(V, hidden=32, layers=2, heads=4, max_length=1024))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    if uniform:
        torch.nn.init.zeros_(model.embedding.weight)
    return TorchPolicy(model, PlainRenderer(TOKENIZER), OptimConfig(), torch.device("cpu"))


class CannedTerminal:
    """An environment that answers each command with its (text, channel) parts, for at most five turns."""

    grader = None

    def __init__(self, answers: Mapping[str, Sequence[tuple[str, str]]], opening: tuple[TextPiece, ...]) -> None:
        self._answers = answers
        self._opening = opening

    async def reset(self, task: Task) -> tuple[TextPiece, ...]:
        return self._opening

    async def step(self, action: str, problem: str | None = None) -> StepResult:
        if action.startswith("answer"):
            return StepResult((), done=True)
        parts = tuple(TextPiece(Role.ENV_OUTPUT, text, channel) for text, channel in self._answers[action])
        return StepResult((*parts, TextPiece(Role.CONTEXT, "$ ")), exit_code=0)

    async def verify(self) -> float:
        raise AssertionError("nothing here may call the verifier")

    async def close(self) -> None: ...


class CannedWorlds:
    """A suite with one task per list of expert commands."""

    replayable = True
    description = Description("canned", {}, {})

    def __init__(
        self,
        answers: Mapping[str, Sequence[tuple[str, str]]],
        scripts: Sequence[Sequence[str]],
        opening: tuple[TextPiece, ...] = (TextPiece(Role.CONTEXT, "task: q\n$ "),),
    ) -> None:
        self._answers, self._opening = answers, opening
        self._scripts = {f"t{i}": list(script) for i, script in enumerate(scripts)}
        self.hosting = HostLimits()
        self.tasks = TaskSplits((), (), [Task(name, "heldout", "f", {}) for name in self._scripts])

    def environment(self) -> Environment:
        return CannedTerminal(self._answers, self._opening)

    def expert(self, task: Task) -> list[str]:
        return [*self._scripts[task.task_id], "answer: x"]

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        raise AssertionError("an evaluation never explores")

    def reserved(self, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
        return []

    def out_of_distribution(self) -> TaskSuite:
        return self


ANSWERS = {
    "a": [("alpha\n", "stdout")],
    "b": [("日本\n", "stdout")],
    "both": [("out\n", "stdout"), ("cat: no\n", "stderr")],
    "silent": [],
    "empty": [("", "stdout")],
    "twin": [("alpha\n", "stdout")],
}


def count(text: str) -> int:
    return len(TOKENIZER.encode(text))


def scored(scorer: TorchPolicy, pool: Pool) -> tuple[Tokens, Predictions]:
    tokens = tokens_of(pool, (), TOKENIZER)
    return tokens, predict(scorer, pool, tokens)


# --- Pools -----------------------------------------------------------------------------------------------------------


def test_each_pair_is_in_the_pool_once() -> None:
    worlds = CannedWorlds(ANSWERS, [["a"], ["a", "b"], ["b", "a"], ["twin"], ["a", "a", "both"]])
    pool = expert_pool(worlds, worlds.tasks.heldout, PLAIN, WIDE)
    pairs = [[span.pair for span in spans] for spans in pool.spans]
    # "a" first occurs in t0; t2 has no new pair; the same output of a different command is a different pair.
    assert [trajectory.task_id for trajectory in pool.trajectories] == ["t0", "t1", "t3", "t4"]
    assert pairs == [[("a", "alpha\n")], [("b", "日本\n")], [("twin", "alpha\n")], [("both", "out\ncat: no\n")]]
    assert len(pool.pairs) == 4


def test_a_pair_twice_in_one_trajectory_is_counted_once() -> None:
    worlds = CannedWorlds(ANSWERS, [["a", "b", "a"]])
    pool = expert_pool(worlds, worlds.tasks.heldout, PLAIN, WIDE)
    assert pool.spans[0][0].start == 0
    assert [span.pair[0] for span in pool.spans[0]] == ["a", "b"]
    assert len(tokens_of(pool, (), TOKENIZER)) == count("alpha\n") + count("日本\n")


def test_stdout_and_stderr_of_a_command_are_one_span() -> None:
    worlds = CannedWorlds(ANSWERS, [["a", "both", "b"]])
    pool = expert_pool(worlds, worlds.tasks.heldout, PLAIN, WIDE)
    ((first, both, last),) = pool.spans
    assert (both.start, both.count) == (first.count, count("out\n") + count("cat: no\n"))
    assert (last.start, last.count) == (both.start + both.count, count("日本\n"))
    assert [span.output_bytes for span in (first, both, last)] == [6, 12, 7]


@pytest.mark.parametrize("command", ["silent", "empty"])
def test_a_command_without_output_has_no_span(command: str) -> None:
    worlds = CannedWorlds(ANSWERS, [[command], [command, "a"]])
    pool = expert_pool(worlds, worlds.tasks.heldout, PLAIN, WIDE)
    assert [trajectory.task_id for trajectory in pool.trajectories] == ["t1"]
    assert pool.spans[0][0].pair == ("a", "alpha\n")


def test_output_before_the_first_action_belongs_to_no_command() -> None:
    banner = (
        TextPiece(Role.CONTEXT, "task: q\n"),
        TextPiece(Role.ENV_OUTPUT, "welcome\n"),
        TextPiece(Role.CONTEXT, "$ "),
    )
    worlds = CannedWorlds(ANSWERS, [["a"]], banner)
    pool = expert_pool(worlds, worlds.tasks.heldout, PLAIN, WIDE)
    ((span,),) = pool.spans
    assert (span.pair, span.start, span.count) == (("a", "alpha\n"), count("welcome\n"), count("alpha\n"))


class BlindWorlds(CannedWorlds):
    """A suite whose held-out tasks have no expert; a line that is not in its answers is answered with a prompt."""

    def __init__(self, lines: Sequence[str], actions: Sequence[str]) -> None:
        super().__init__(ANSWERS, [])
        self._lines, self._actions = lines, actions
        self.tasks = TaskSplits(
            [Task("train", "train", "f", {})], [], [Task(name, "heldout", "f", {}) for name in ("h0", "h1", "h2")]
        )
        self.asked: list[tuple[str, int]] = []

    def environment(self) -> Environment:
        answers = defaultdict(list, self._answers)
        return CannedTerminal(answers, self._opening)

    def expert(self, task: Task) -> list[str] | None:  # type: ignore[override]
        if task.task_id == "h1":
            return ["both", "answer: x"]
        return list(self._actions) if task.task_id == "train" and self._actions else None

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        self.asked.append((task.task_id, count))
        return list(self._lines)

    def out_of_distribution(self) -> TaskSuite:
        return CannedWorlds(ANSWERS, [])


@pytest.mark.parametrize(
    ("lines", "actions", "source", "pairs"),
    [
        (["a", "silent"], ["b"], "explorer", {("a", "alpha\n")}),  # explorer lines before a training task's actions
        ([], ["b"], "explorer", {("b", "日本\n")}),
        ([], [], "policy", set()),  # no script is known
    ],
)
def test_a_task_on_which_the_initial_policy_observes_nothing_is_played_with_a_script(
    lines: list[str], actions: list[str], source: str, pairs: set[Pair]
) -> None:
    worlds, config = BlindWorlds(lines, actions), Config()
    played = play_pools(config, worlds, policy())
    assert {name: [each.task_id for each in of] for name, of in played.items()} == {
        "validation": [],
        "heldout": ["h1", "h0", "h2"],  # tasks with an expert come first
        "ood": [],
    }
    expert, *others = played["heldout"]
    assert (expert.source, pool_of([expert]).pairs) == ("expert", {("both", "out\ncat: no\n")})
    for each in others:
        assert (each.source, pool_of([each]).pairs, each.reward) == (source, pairs, None)
    assert worlds.asked == [("h0", config.rollout.explorer_commands), ("h2", config.rollout.explorer_commands)]


def test_a_pool_with_few_pairs_is_said_with_the_key_to_set() -> None:
    answers = {f"c{number}": [(f"output {number}\n", "stdout")] for number in range(5)}

    def said(name: str, pairs: int, config: Config | None = None, suite: TaskSuite | None = None) -> list[str]:
        worlds = CannedWorlds(answers, [list(answers)[:pairs]])
        pool = expert_pool(worlds, worlds.tasks.heldout, PLAIN, WIDE)
        assert len(pool.pairs) == pairs
        return pool_notices(config or Config(), suite or worlds, {name: pool})

    few = "add tasks in environment.tasks, or commands in rollout.explorer_commands"
    assert said("heldout", 5) == []
    assert said("heldout", 4) == [f"warning: the held-out pool rests on 4 (command, output) pairs: {few}"]
    assert said("heldout", 1) == [f"warning: the held-out pool rests on 1 (command, output) pair: {few}"]
    (empty,) = said("heldout", 0)
    assert empty.startswith("warning: the held-out pool is empty: neither") and "environment.explorer" in empty
    (validation,) = said("validation", 0)
    assert validation == "warning: the validation pool is empty: it has no tasks; add some in environment.tasks"
    assert "OOD pool rests on 2" in said("ood", 2)[0] and said("ood", 0, suite=BlindWorlds([], [])) == []
    alone = Config().model_copy(update={"environment": EnvironmentConfig(none=True)})
    for name, config in (("traces", Config()), ("heldout", alone)):
        assert said(name, 4, config)[0].endswith(
            "add traces, or raise their share in traces.split or traces.max_tokens"
        )


def test_a_split_of_one_task_is_said() -> None:
    worlds = CannedWorlds(ANSWERS, [["a"], ["b"]])
    assert split_notices(worlds) == []  # two held-out tasks, and none in the other splits
    worlds.tasks = TaskSplits([Task("a", "train", "f", {})], [], [Task("b", "heldout", "f", {})])
    assert [line.split(":")[1] for line in split_notices(worlds)] == [
        " the train split has 1 task",
        " the heldout split has 1 task",
    ]


# --- Scores ----------------------------------------------------------------------------------------------------------


def test_uniform_logits_cost_ln_v_a_token() -> None:
    worlds = CannedWorlds(ANSWERS, [["a", "both"], ["b"]])
    tokens, predictions = scored(policy(uniform=True), expert_pool(worlds, worlds.tasks.heldout, PLAIN, WIDE))
    assert len(tokens) == count("alpha\n") + count("out\n") + count("cat: no\n") + count("日本\n")
    found = values_of(tokens, predictions, tokens.headline)
    assert found["env_ce"] == pytest.approx(math.log(V), abs=1e-5)
    assert found["env_bits_per_byte"] == pytest.approx(len(tokens) * math.log2(V) / (6 + 12 + 7), rel=1e-6)


def test_a_score_is_the_teacher_forced_cross_entropy_of_the_output() -> None:
    worlds = CannedWorlds(ANSWERS, [["a", "both"]])
    pool, scorer = expert_pool(worlds, worlds.tasks.heldout, PLAIN, WIDE), policy()
    (trajectory,) = pool.trajectories
    ids = trajectory.token_ids
    with torch.no_grad():
        logits_TV = scorer.model(torch.tensor([ids]))[0] @ scorer.model.lm_head_VH.T
    logprobs_TV = torch.log_softmax(logits_TV.double(), dim=-1)
    expected: dict[str, tuple[float, int]] = {"a": (0.0, 0), "both": (0.0, 0)}
    turn, position = -1, 0
    for segment in trajectory.segments:
        turn += segment.role is Role.ACTION
        for token in segment.token_ids:
            if segment.role is Role.ENV_OUTPUT:
                name = trajectory.turns[turn].command
                nats, correct = expected[name]
                hit = int(logits_TV[position - 1].argmax()) == token
                expected[name] = (nats - float(logprobs_TV[position - 1, token]), correct + hit)
            position += 1
    tokens, predictions = scored(scorer, pool)
    for number, span in enumerate(pool.spans[0]):
        inside = tokens.span == number
        found = predictions.nats[inside].sum(), predictions.correct[inside].sum()
        assert found == pytest.approx(expected[span.pair[0]], rel=1e-4)


def test_an_output_cut_at_its_cap_is_scored_over_the_bytes_that_were_shown() -> None:
    worlds = CannedWorlds({"long": [("0123456789" * 3, "stdout")]}, [["long"]])
    limits = EpisodeLimits(action_tokens=50, output_tokens=12, episode_tokens=10_000)
    tokens, predictions = scored(policy(uniform=True), expert_pool(worlds, worlds.tasks.heldout, PLAIN, limits))
    assert (tokens.headline.sum(), tokens.byte_count[tokens.headline].sum()) == (12, 12)
    found = values_of(tokens, predictions, tokens.headline)
    assert found["env_bits_per_byte"] == pytest.approx(math.log2(V), rel=1e-6)


# --- The evaluator ---------------------------------------------------------------------------------------------------


def executed_pairs(trajectories: Sequence[Trajectory]) -> set[Pair]:
    return pairs_of(ObservationLog().add(trajectories, 1))


def quiet_config(**fields: object) -> Config:
    evaluation = EvaluationConfig(validation_rollouts=0, heldout_rollouts=0)
    return Config(evaluation=evaluation, **fields)  # type: ignore[arg-type]


def evaluator_of(worlds: TaskSuite, config: Config) -> Evaluator:
    return Evaluator(config, worlds, expert_pools(config, worlds, policy()))


@pytest.fixture(scope="module")
def toy() -> tuple[ToyWorlds, Config]:
    return ToyWorlds((0,), (101,), 5), quiet_config()


def test_pools_are_frozen_and_share_no_pair(toy: tuple[ToyWorlds, Config]) -> None:
    worlds, config = toy
    one, two = (evaluator_of(worlds, config) for _ in range(2))
    assert {name: pool.trajectories for name, pool in one.pools.items()} == {
        name: pool.trajectories for name, pool in two.pools.items()
    }
    assert not one.pools["validation"].pairs & one.pools["heldout"].pairs
    # Every world has the same number of services, so one line count is the same in all of them.
    assert one.pools["ood"].pairs & one.pools["heldout"].pairs <= {("wc -l /srv/registry.csv", "5 /srv/registry.csv\n")}
    assert len(one.pools["heldout"].pairs) >= 40


def test_executed_pairs_are_no_longer_novel(toy: tuple[ToyWorlds, Config]) -> None:
    worlds, config = toy
    evaluator, scorer = evaluator_of(worlds, config), policy()
    before = evaluator.evaluate(scorer).metrics
    pool = evaluator.pools["heldout"]
    assert before["heldout/novel_pairs"] == len(pool.pairs)
    assert before["heldout/env_ce_seen"] is None
    executed = pool.trajectories[:3]
    others = [output for spans in pool.spans[3:6] for (_, output) in (span.pair for span in spans)]
    observed = executed_pairs([*executed, *executed]) | {("cat /srv/copy", "".join(others))}
    evaluator.observe(observed)
    assert evaluator.seen == executed_pairs(executed) & pool.pairs
    after = evaluator.evaluate(scorer).metrics
    # Summed per output first, as in the metrics of runs.
    nats: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    for of, spans in zip(scorer.score(pool.trajectories, {Role.ENV_OUTPUT}), pool.spans, strict=True):
        for span in spans:
            logprobs = of.logprobs[span.start : span.start + span.count].double()
            nats[span.pair in evaluator.seen].append((-float(logprobs.sum()), span.count))
    assert nats[True] and len(nats[False]) + len(nats[True]) == len(pool.pairs)
    assert after["heldout/novel_pairs"] == len(nats[False])
    assert (before["heldout/pairs_shown"], before["heldout/env_ce_shown"]) == (0, None)
    assert before["heldout/pairs_unshown"] == len(pool.pairs)
    assert after["heldout/pairs_shown"] + after["heldout/pairs_unshown"] == len(nats[False])
    lines = {line for _, output in observed for line in output.splitlines()}
    told = [out for _, out in pool.pairs - evaluator.seen if lines.issuperset(out.splitlines())]
    assert len(others) <= len(told) == after["heldout/pairs_shown"] < len(nats[False])
    assert after["heldout/bytes_shown"] == sum(len(output.encode()) for output in told)
    for name, seen in (("env_ce", False), ("env_ce_seen", True)):
        assert after[f"heldout/{name}"] == sum(n for n, _ in nats[seen]) / sum(tokens for _, tokens in nats[seen])
    assert after["ood/env_ce"] == before["ood/env_ce"]
    assert after.keys() == before.keys()


def test_training_and_eval_heldout_have_one_scorer(toy: tuple[ToyWorlds, Config]) -> None:
    worlds, config = toy
    evaluator, scorer = evaluator_of(worlds, config), policy()
    start, trained = policy(uniform=True), evaluator.pools["heldout"].trajectories[:3]
    evaluator.remember_start(start)
    evaluator.observe(executed_pairs(trained))
    metrics = evaluator.evaluate(scorer).metrics
    for name, pool in evaluator.pools.items():
        parts = tokens_of(pool, executed_pairs(trained), TOKENIZER)
        for key, chosen in parts.by_lines.items():
            part = measure(parts, predict(scorer, pool, parts), chosen)
            assert metrics[f"{name}/pairs_{key}"] == (part.pairs if part else 0)
            assert metrics[f"{name}/bytes_{key}"] == (part.bytes if part else 0)
            expected = part.estimates["env_ce"].value if part else None
            assert metrics[f"{name}/env_ce_{key}"] == (None if expected is None else pytest.approx(expected, rel=1e-6))
        seen = set() if name == "validation" else evaluator.seen
        tokens = tokens_of(pool, seen, TOKENIZER)
        found = measure(tokens, predict(scorer, pool, tokens), tokens.headline)
        assert found is not None
        for measured in ("env_ce", "env_bits_per_byte", "token_accuracy"):
            assert metrics[f"{name}/{measured}"] == pytest.approx(found.estimates[measured].value, rel=1e-6)
        before = values_of(tokens, predict(start, pool, tokens), tokens.headline)
        assert metrics[f"{name}/env_ce_start"] == pytest.approx(before["env_ce"], rel=1e-6)


def test_the_start_is_scored_over_the_pairs_that_are_still_novel(toy: tuple[ToyWorlds, Config]) -> None:
    worlds, config = toy
    evaluator, start = evaluator_of(worlds, config), policy()
    evaluator.remember_start(start)
    before = evaluator.evaluate(start).metrics
    evaluator.observe(executed_pairs(evaluator.pools["heldout"].trajectories[:3]))
    evaluator.observe(executed_pairs(evaluator.pools["validation"].trajectories[:3]))
    after = evaluator.evaluate(start).metrics
    # The policy did not change: env-CE and its start agree over any pairs, and the headline changes with its pairs.
    for name in ("heldout", "validation"):
        assert after[f"{name}/env_ce_start"] == after[f"{name}/env_ce"]
    assert after["heldout/env_ce_start"] != before["heldout/env_ce_start"]
    assert after["validation/env_ce"] == before["validation/env_ce"]  # the best step is chosen over equal pairs
    assert after["validation/novel_pairs"] != before["validation/novel_pairs"]


def test_a_pool_without_novel_pairs_has_no_headline(toy: tuple[ToyWorlds, Config]) -> None:
    worlds, config = toy
    evaluator = evaluator_of(worlds, config)
    evaluator.remember_start(policy())
    evaluator.observe(evaluator.pools["heldout"].pairs | evaluator.pools["validation"].pairs)
    metrics = evaluator.evaluate(policy()).metrics
    for name in ("env_ce", "env_bits_per_byte", "token_accuracy", "env_ce_start"):
        assert metrics[f"heldout/{name}"] is None and metrics[f"validation/{name}"] is not None
    assert metrics["heldout/novel_pairs"] == 0 and metrics["heldout/env_ce_seen"] is not None


def test_the_same_command_with_another_output_is_another_pair(toy: tuple[ToyWorlds, Config]) -> None:
    worlds, config = toy
    evaluator = evaluator_of(worlds, config)
    trajectory = evaluator.pools["heldout"].trajectories[0]
    changed = replace(trajectory, turns=tuple(replace(turn, output=turn.output + "x") for turn in trajectory.turns))
    evaluator.observe(executed_pairs([changed]))
    assert evaluator.seen == set()


def test_explorers_never_make_a_heldout_pair_seen(toy: tuple[ToyWorlds, Config]) -> None:
    worlds, config = toy
    evaluator, rng = evaluator_of(worlds, config), random.Random(0)
    task = worlds.tasks.train[0]
    for _ in range(60):
        actions = worlds.explorer(task, 4, rng)
        evaluator.observe(executed_pairs(play_scripts(PLAIN, worlds, [(task, actions)], WIDE, "explorer")))
    assert evaluator.seen == set()


class RewardedTerminal(CannedTerminal):
    """A terminal whose verifier gives `reward` whatever has been done."""

    def __init__(self, reward: float | None) -> None:
        super().__init__(ANSWERS, (TextPiece(Role.CONTEXT, "task: q\n$ "),))
        self._reward = reward

    async def verify(self) -> float | None:  # type: ignore[override]
        return self._reward


@pytest.mark.parametrize(("reward", "lines"), [(1.0, 1), (0.5, 1), (0.0, 0), (None, 0)])
def test_a_reward_without_an_action_is_said_at_the_start_of_a_run(
    reward: float | None, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = CannedWorlds(ANSWERS, [["a"], ["b"]])
    opened: list[RewardedTerminal] = []
    monkeypatch.setattr(worlds, "environment", lambda: opened.append(RewardedTerminal(reward)) or opened[-1])
    found = leak_notices(Config(), worlds, policy())
    assert len(found) == lines and len(opened) == 1
    assert all("without any action" in line and "leaks between episodes" in line for line in found)
    monkeypatch.setattr(worlds, "expert", lambda task: None)
    assert leak_notices(Config(), worlds, policy()) == [] and len(opened) == 1


def test_playing_keeps_the_training_temperature_and_is_repeatable(toy: tuple[ToyWorlds, Config]) -> None:
    worlds, _ = toy
    config = Config()
    tasks = worlds.tasks.heldout[:2]
    one, two, three = (rollout_tasks(policy(), worlds, tasks, 2, config, seed) for seed in (1, 1, 2))
    assert [trajectory.task_id for trajectory in one] == [task.task_id for task in tasks for _ in range(2)]
    assert [t.token_ids for t in one] == [t.token_ids for t in two] != [t.token_ids for t in three]
    assert all(trajectory.reward is not None for trajectory in one)


def test_training_logs_the_mean_reward_and_pass_at_1_of_solved_at(toy: tuple[ToyWorlds, Config]) -> None:
    worlds, _ = toy

    def logged(solved_at: float) -> Mapping[str, float | None]:
        settings = EvaluationConfig(validation_rollouts=1, heldout_rollouts=0, solved_at=solved_at)
        return Evaluator(Config(evaluation=settings), worlds, {}).evaluate(policy()).metrics

    # Random weights solve nothing: every reward is 0.
    assert (logged(1.0)["validation/mean_reward"], logged(1.0)["validation/pass_at_1"]) == (0.0, 0.0)
    assert (logged(0.0)["validation/mean_reward"], logged(0.0)["validation/pass_at_1"]) == (0.0, 1.0)
    assert logged(1.0)["heldout/mean_reward"] is logged(1.0)["heldout/pass_at_1"] is None


def test_the_ends_of_outputs_have_a_ce_of_their_own_and_leave_env_ce_as_it_is() -> None:
    # An answer follows the last output, so "both" ends too; the second "a" is not a new pair, and its end not counted.
    worlds, scorer = CannedWorlds(ANSWERS, [["a", "both", "silent", "a"]]), policy()
    off, on = (
        evaluator_of(worlds, quiet_config(objective=ObjectiveSettings(end_of_output=learned)))
        for learned in (False, True)
    )
    plain, marked = off.evaluate(scorer).metrics, on.evaluate(scorer).metrics
    assert marked.keys() - plain.keys() == {"heldout/end_ce", "ood/end_ce", "validation/end_ce"}
    assert {name: pytest.approx(value, abs=1e-6) for name, value in plain.items()} == {
        name: value for name, value in marked.items() if name in plain
    }
    (trajectory,) = on.pools["heldout"].trajectories
    assert Role.END not in trajectory.roles and on.pools["heldout"] == off.pools["heldout"]
    (scores,) = scorer.score([scorer.mark_ends(trajectory)], [Role.END])
    assert len(scores.logprobs) == 3
    assert marked["heldout/end_ce"] == pytest.approx(-float(scores.logprobs[:2].mean()))
    assert marked["validation/end_ce"] is None
    on.observe({("a", "alpha\n")})
    assert on.evaluate(scorer).metrics["heldout/end_ce"] == pytest.approx(-float(scores.logprobs[1]))


def test_predictions_do_not_depend_on_how_many_positions_get_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worlds, scorer = CannedWorlds(ANSWERS, [["a", "both"]]), policy()
    (trajectory, *_) = expert_pool(worlds, worlds.tasks.heldout, PLAIN, WIDE).trajectories
    whole = scorer.predict(trajectory)
    sizes: list[int] = []
    head = scorer.model.head
    monkeypatch.setattr(type(scorer), "_chunk_rows", 3)
    monkeypatch.setattr(scorer.model, "head", lambda hidden: (sizes.append(len(hidden)), head(hidden))[1])
    assert scorer.predict(trajectory) == whole and len(whole) == len(trajectory)
    assert max(sizes) == 3 and sum(sizes) == len(trajectory)
