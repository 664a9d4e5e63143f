"""Concurrent episodes: session limits, environments that answer late, lost sessions, and groups kept whole."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from canned_worlds import CannedWorlds

import echo_cli
from echo_cli.concurrency import EventLoop
from echo_cli.environments.faults import FAULT_KEYS, SessionLost
from echo_cli.environments.protocol import HostLimits, StepResult, TextPiece
from echo_cli.environments.tasks import Task
from echo_cli.errors import EchoError
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.sampler import CachedSampler
from echo_cli.models.tiny import TinyConfig, TinyModel
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_policy, play_scripts, without_fragments
from echo_cli.trajectory import Role, Trajectory

TOKENIZER = Tokenizer.load(Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json")
PLAIN = PlainRenderer(TOKENIZER)
LIMITS = EpisodeLimits(action_tokens=50, output_tokens=100, episode_tokens=1000)
PROMPT = TextPiece(Role.CONTEXT, "$ ")


@dataclass
class House:
    """Shared state of a test's environments: how many are open, and how their steps behave."""

    turns: Callable[[str], int] = lambda name: 2
    """Number of steps of an episode, by the name of its task."""
    open: int = 0
    most_open: int = 0
    lose: dict[str, list[int]] = field(default_factory=dict)
    """Step at which the session is lost, by task and for its episodes in order; 0 is the reset, -1 never."""
    slow: dict[str, asyncio.Event] = field(default_factory=dict)
    rewards: dict[str, float | None] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)

    def environment(self) -> Room:
        return Room(self)


class Room:
    """An environment that echoes its actions, numbered, and counts as open from reset to close."""

    grader = None

    def __init__(self, house: House) -> None:
        self.house, self.steps, self.entered = house, 0, False

    async def reset(self, task: Task) -> tuple[TextPiece, ...]:
        self.name = task.task_id
        plan = self.house.lose.get(self.name, [])
        self.lost_at = plan.pop(0) if plan else -1
        self.entered = True
        self.house.open += 1
        self.house.most_open = max(self.house.most_open, self.house.open)
        await asyncio.sleep(0)
        self._perhaps_lost()
        return (TextPiece(Role.CONTEXT, f"task: {self.name}\n"), PROMPT)

    async def step(self, action: str, problem: str | None = None) -> StepResult:
        self.steps += 1
        self._perhaps_lost()
        done = self.steps == self.house.turns(self.name)
        output = TextPiece(Role.ENV_OUTPUT, f"{self.name}{self.steps}: {action}\n", "stdout")
        return StepResult((output,) if done else (output, PROMPT), done, exit_code=0)

    async def verify(self) -> float | None:
        return self.house.rewards.get(self.name, 1.0)

    async def close(self) -> None:
        if self.entered:
            self.entered = False
            self.house.open -= 1
            self.house.finished.append(self.name)

    def _perhaps_lost(self) -> None:
        if self.steps == self.lost_at:
            raise SessionLost("the connection was closed")


class Scribe:
    """A sampler that returns `line` for every row, and records the rows it was asked for."""

    def __init__(self, rollouts: Sequence[int]) -> None:
        self.rows: list[list[int]] = [[] for _ in rollouts]
        self.asked: list[int] = []

    def append(self, token_lists: Sequence[Sequence[int]]) -> None:
        for row, tokens in zip(self.rows, token_lists, strict=True):
            row.extend(tokens)

    def add(self, rollouts: Sequence[int]) -> None:
        self.rows += [[] for _ in rollouts]

    def keep(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[row] for row in rows]

    def sample(self, max_tokens: int, rows: Sequence[int] | None = None) -> list[tuple[list[int], list[float]]]:
        chosen = list(range(len(self.rows)) if rows is None else rows)
        self.asked.append(len(chosen))
        ids = [*TOKENIZER.encode("say"), TOKENIZER.newline_ids[0]]
        for row in chosen:
            assert self.rows[row], "sampled before its environment had said anything"
            self.rows[row].extend(ids)
        return [(ids, [-0.5] * len(ids)) for _ in chosen]


def worlds_of(house: House, rooms: int = 200, **hosting: object) -> CannedWorlds:
    return CannedWorlds(*(house.environment() for _ in range(rooms)), hosting=HostLimits(**hosting))  # type: ignore[arg-type]


def wanted(names: str, group: int = 1) -> list[tuple[Task, str]]:
    return [(Task(name, "train", "f", {}), f"g-{name}") for name in names for _ in range(group)]


def play(worlds: CannedWorlds, episodes: list[tuple[Task, str]]) -> list[Trajectory]:
    return play_policy(Scribe, PLAIN, worlds, episodes, LIMITS, verify=True, training=True)


def outputs(trajectory: Trajectory) -> list[str]:
    return [segment.text for segment in trajectory.segments if segment.role is Role.ENV_OUTPUT]


# --- Sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sessions", [1, 3, None])
def test_no_more_episodes_are_open_than_there_are_sessions(sessions: int | None) -> None:
    house = House(turns=lambda name: 1 + ord(name) % 3)
    played = play(worlds_of(house, sessions=sessions), wanted("abcdefgh"))
    assert house.most_open == (sessions or 8)
    assert [trajectory.task_id for trajectory in played] == list("abcdefgh")
    for trajectory in played:
        count = 1 + ord(trajectory.task_id) % 3
        assert outputs(trajectory) == [f"{trajectory.task_id}{step}: say\n" for step in range(1, count + 1)]
    assert house.open == 0 and len(house.finished) == 8


def test_while_one_environment_works_the_policy_samples_for_the_others() -> None:
    house, made = House(turns=lambda name: 1 if name == "a" else 4), []

    class Slow(Room):
        """Answers after the others have finished, which requires the batch to continue without it."""

        async def step(self, action: str, problem: str | None = None) -> StepResult:
            while len(house.finished) < 2:
                await asyncio.sleep(0.001)
            return await super().step(action)

    def sampler(rollouts: Sequence[int]) -> Scribe:
        made.append(Scribe(rollouts))
        return made[0]

    worlds = CannedWorlds(Slow(house), Room(house), Room(house), hosting=HostLimits(batch_wait_s=0.01))
    played = play_policy(sampler, PLAIN, worlds, wanted("abc"), LIMITS, verify=True)
    assert [len(outputs(trajectory)) for trajectory in played] == [1, 4, 4]
    assert made[0].asked[0] == 3 and set(made[0].asked[1:]) <= {1, 2}


def test_an_answer_that_comes_while_the_batch_is_made_waits_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Future[Any]):
        """A future that is not done when first asked."""

        asked = 0

        def done(self) -> bool:
            self.asked += 1
            return self.asked > 1 and super().done()

    class Loop(EventLoop):
        def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
            late = Late()
            future = super().start(coroutine)
            future.add_done_callback(lambda _: late.set_result(future.result()))
            return late

    monkeypatch.setattr("echo_cli.rollouts.rollout.EventLoop", Loop)
    (trajectory,) = play(worlds_of(House()), wanted("a"))
    assert outputs(trajectory) == ["a1: say\n", "a2: say\n"]


def test_scripts_share_the_sessions_too() -> None:
    house = House(turns=lambda name: 9)
    scripts = [(task, ["x", "y"]) for task, _ in wanted("abcdef")]
    played = play_scripts(PLAIN, worlds_of(house, sessions=2), scripts, LIMITS, "explorer", world_model_only=True)
    assert (house.most_open, house.open) == (2, 0)
    assert [outputs(trajectory) for trajectory in played] == [[f"{name}1: x\n", f"{name}2: y\n"] for name in "abcdef"]


# --- Lost sessions ---------------------------------------------------------------------------------------------------


def test_a_lost_session_is_played_again_and_what_it_saw_is_kept_for_the_env_term_alone() -> None:
    house = House(turns=lambda name: 3, lose={"a": [2]})
    worlds = worlds_of(house)
    played = play(worlds, wanted("ab", group=2))
    whole, fragments = played[:4], played[4:]
    assert [trajectory.group_id for trajectory in whole] == ["g-a", "g-a", "g-b", "g-b"]
    assert all(len(outputs(trajectory)) == 3 and trajectory.reward == 1.0 for trajectory in whole)
    assert not any(trajectory.world_model_only for trajectory in whole)
    (fragment,) = fragments
    assert (fragment.stop_reason, fragment.reward, fragment.world_model_only) == ("aborted", None, True)
    assert outputs(fragment) == ["a1: say\n"] and fragment.segments[-1].role is Role.ENV_OUTPUT
    assert worlds.hosting.faults.take() == {**dict.fromkeys(FAULT_KEYS, 0), "sessions_lost": 1, "topped_up": 1}
    assert house.open == 0


@pytest.mark.parametrize("lost_at", [0, 1])
def test_a_session_lost_before_any_observation_leaves_nothing(lost_at: int) -> None:
    house = House(lose={"a": [lost_at]})
    assert [trajectory.stop_reason for trajectory in play(worlds_of(house), wanted("a"))] == ["answered"]
    assert house.open == 0


def test_a_group_that_cannot_be_made_whole_leaves_the_rl_term() -> None:
    house = House(lose={"a": [-1, 2, 2, 2]})
    worlds = worlds_of(house, attempts=3)
    played = play(worlds, wanted("ab", group=2))
    of_a = [trajectory for trajectory in played if trajectory.task_id == "a"]
    assert [(t.stop_reason, t.world_model_only) for t in of_a] == [("answered", True)] + [("aborted", True)] * 3
    assert not any(trajectory.world_model_only for trajectory in played if trajectory.task_id == "b")
    faults = worlds.hosting.faults.take()
    assert (faults["sessions_lost"], faults["topped_up"], faults["groups_dropped"]) == (3, 2, 1)


def test_a_group_with_a_missing_reward_leaves_the_rl_term() -> None:
    house = House(rewards={"a": None})
    worlds = worlds_of(house)
    played = play(worlds, wanted("ab"))
    assert [(t.reward, t.world_model_only) for t in played] == [(None, True), (1.0, False)]
    faults = worlds.hosting.faults.take()
    assert (faults["unrewarded"], faults["groups_dropped"]) == (1, 1)


def test_where_every_rollout_is_needed_a_lost_one_is_an_error() -> None:
    house = House(lose={"a": [2]})
    worlds = worlds_of(house)
    whole = without_fragments(play(worlds, wanted("ab")), 2, worlds.hosting)
    assert [(t.task_id, t.stop_reason) for t in whole] == [("a", "answered"), ("b", "answered")]
    house = House(lose={"a": [2, 2, 2]})
    worlds = worlds_of(house)
    played = play(worlds, wanted("ab"))
    with pytest.raises(EchoError, match="lost the session of 1 of 2 rollouts 3 times") as caught:
        without_fragments(played, 2, worlds.hosting)
    assert caught.value.exit_code == 1 and house.open == 0


def test_a_script_whose_session_is_lost_again_and_again_ends_the_run() -> None:
    house = House(lose={"a": [1, 1, 1]})
    with pytest.raises(EchoError, match="lost the session of task a 3 times: the connection was closed") as caught:
        play_scripts(PLAIN, worlds_of(house), [(wanted("a")[0][0], ["x"])], LIMITS, "expert")
    assert caught.value.exit_code == 1 and house.open == 0


def test_an_error_closes_every_session() -> None:
    house = House(turns=lambda name: 3)

    class Broken(Room):
        async def step(self, action: str, problem: str | None = None) -> StepResult:
            raise EchoError("the environment is not available", exit_code=1)

    worlds = CannedWorlds(Room(house), Broken(house), Room(house))
    with pytest.raises(EchoError, match="not available"):
        play(worlds, wanted("abc"))
    assert house.open == 0


# --- The sampler -----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("hosting", "lose"),
    [({"batch_wait_s": 0.001}, {}), ({"sessions": 3, "batch_wait_s": 0.001}, {}), ({}, {"b": [1], "f": [0, 2]})],
    ids=["late-answers", "few-sessions", "lost-sessions"],
)
def test_the_seed_decides_the_rollouts_whoever_is_late_waits_or_is_lost(
    hosting: dict[str, Any], lose: dict[str, list[int]]
) -> None:
    model, house = _model(TOKENIZER.vocab_size), House(turns=lambda name: 3, lose=lose)
    delays = random.Random(str(hosting))

    class Late(Room):
        async def step(self, action: str, problem: str | None = None) -> StepResult:
            await asyncio.sleep(delays.random() * 0.02 if "batch_wait_s" in hosting else 0)
            return await super().step(action)

    def played(worlds: CannedWorlds) -> list[list[int]]:
        limits = EpisodeLimits(action_tokens=6, output_tokens=20, episode_tokens=200)
        trajectories = play_policy(
            lambda rollouts: CachedSampler(model, rollouts, 1.0, TOKENIZER.newline_ids, 7, refill=0.3),
            *(PLAIN, worlds, wanted("abcdefgh"), limits),
            verify=True,
        )
        return [trajectory.token_ids for trajectory in trajectories[:8]]

    together = played(worlds_of(House(turns=lambda name: 3)))
    worlds = CannedWorlds(*(Late(house) for _ in range(20)), hosting=HostLimits(**hosting))
    assert played(worlds) == together
    assert len({str(ids) for ids in together}) == 8


def _model(vocabulary: int = 40) -> TinyModel:
    model = TinyModel(TinyConfig(vocabulary, hidden=32, layers=2, heads=4, max_length=256))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def _replayed(model: TinyModel, before: Sequence[int], sampled: Sequence[int]) -> list[float]:
    """Return the logprobs of `sampled` after `before`, from a dense forward pass."""
    ids = torch.tensor([[*before, *sampled]])
    logprobs = torch.log_softmax(model(ids)[0] @ model.lm_head_VH.T, dim=-1)
    start = len(before)
    return [float(logprobs[start + offset - 1, token]) for offset, token in enumerate(sampled)]


def test_rows_that_wait_or_join_later_are_sampled_as_if_alone() -> None:
    model = _model()
    sampler = CachedSampler(model, range(2), 1.0, [], 1)
    texts: list[list[int]] = [[1, 2, 3], [4, 5]]

    def sampled(rows: list[int], count: int) -> None:
        for row, (tokens, logprobs) in zip(rows, sampler.sample(count, rows), strict=True):
            assert logprobs == pytest.approx(_replayed(model, texts[row], tokens), abs=1e-5)
            texts[row] += tokens

    with torch.no_grad():
        sampler.append(texts)
        sampled([0, 1], 4)
        for row, tokens in ((1, [6, 7]), (1, [8])):  # row 0 waits for its environment, twice
            sampler.append([tokens if number == row else [] for number in range(2)])
            texts[row] += tokens
            sampled([row], 3)
        sampler.add([2])
        texts.append([9, 10, 11, 12])
        sampler.append([[], [13], [9, 10, 11, 12]])
        texts[1].append(13)
        sampled([1, 2], 5)
        sampler.append([[14, 15, 16], [], []])  # the environment of row 0 answers
        texts[0] += [14, 15, 16]
        sampled([0], 3)
        sampler.keep([0, 2])
        texts = [texts[0], texts[2]]
        sampled([0, 1], 2)
        sampler.keep([])
        sampler.add([3])
        texts = [[3]]
        sampler.append([[3]])
        sampled([0], 3)


@torch.no_grad()
def test_a_row_that_waits_does_not_grow_with_the_text_of_another() -> None:
    model = _model()
    sampler = CachedSampler(model, range(2), 1.0, [], 1)
    ids = torch.randint(1, 40, (2, 200), generator=torch.Generator().manual_seed(2)).tolist()
    texts = [ids[0], [2]]
    sampler.append(texts)
    for row, (tokens, _) in enumerate(sampler.sample(5)):
        texts[row] = texts[row] + tokens
    for row, told in ((1, ids[1]), (0, [3])):  # 205 + 200 tokens would not fit the model's 256
        sampler.append([told if number == row else [] for number in range(2)])
        texts[row] = texts[row] + told
        ((tokens, logprobs),) = sampler.sample(5, [row])
        assert logprobs == pytest.approx(_replayed(model, texts[row], tokens), abs=1e-5)
        texts[row] = texts[row] + tokens
