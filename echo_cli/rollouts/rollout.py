"""Rollouts of tasks, played by a policy or a script; every token of a rollout is tagged with its role."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from echo_cli.concurrency import EventLoop
from echo_cli.environments.faults import AtCapacity, EnvironmentDown, SessionLost
from echo_cli.environments.protocol import HostLimits, TaskSuite
from echo_cli.environments.tasks import Task
from echo_cli.errors import EchoError
from echo_cli.models.distributed.ranks import ALONE, Ranks
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.episode import Episode, Following
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.text import counted
from echo_cli.trajectory import Source, Trajectory


class Sampler(Protocol):
    """Batched sampling over growing sequences, one per row."""

    def append(self, token_lists: Sequence[Sequence[int]]) -> None:
        """Add context and observation tokens to every row."""
        ...

    def rewind(self, row: int, count: int) -> None:
        """Remove the last `count` tokens of a row."""
        ...

    def sample(
        self, max_tokens: int, rows: Sequence[int] | None = None
    ) -> Sequence[tuple[list[int], list[float]] | None]:
        """Sample `rows`, or all rows, until a stop token or `max_tokens`; return token ids and behaviour logprobs.

        None is returned for a row that has not finished; the row continues when it is in `rows` again.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Keep the given rows and drop the others."""
        ...

    def add(self, rollouts: Sequence[int]) -> None:
        """Append an empty row for each of `rollouts`; a row's draws depend on the rollout's number, not on the row."""
        ...


def play_scripts(
    renderer: Renderer,
    worlds: TaskSuite,
    scripts: Sequence[tuple[Task, Sequence[str]]],
    limits: EpisodeLimits,
    source: Source,
    *,
    verify: bool = False,
    world_model_only: bool = False,
    ranks: Ranks = ALONE,
) -> list[Trajectory]:
    """Play episodes whose actions are given as text, with as many concurrent episodes as there are sessions.

    Each of `ranks` plays its share of the episodes, in sessions of its own, and gets all of them.

    An episode ends before an action that exceeds the policy's action cap and would exceed the episode's cap.

    Raises:
        EchoError: the environment is unavailable, or loses the session of a script in every attempt (exit code 1).
    """

    async def attempt(task: Task, actions: Sequence[str]) -> tuple[Episode, Trajectory]:
        episode = Episode(renderer, worlds.environment(), task, task.task_id, limits, worlds.description.tools)
        await episode.reset()
        for ids in map(renderer.script, actions):
            if episode.stop_reason is None and not episode.has_room(ids):
                episode.stop_reason = "length_cap"
            if episode.stop_reason is not None:
                break
            await episode.act(ids, None)
        return episode, await episode.finish(source, verify=verify, world_model_only=world_model_only)

    async def play(task: Task, actions: Sequence[str]) -> Trajectory:
        reason, attempts = "", worlds.hosting.attempts
        while attempts > 0:
            await sessions.acquire()
            try:
                episode, finished = await attempt(task, actions)
            except AtCapacity:
                continue  # there is one session less: it is not released
            except SessionLost as error:
                worlds.hosting.faults.count("sessions_lost")
                reason, attempts = str(error), attempts - 1
            except BaseException:
                sessions.release()
                raise
            else:
                sessions.release()
                return await episode.grade(finished) if verify else finished
            sessions.release()
        lost = f"the environment lost the session of task {task.task_id} {counted(worlds.hosting.attempts, 'time')}"
        raise EnvironmentDown(f"{lost}: {reason}", "check the server's log")

    async def play_all(share: Sequence[tuple[Task, Sequence[str]]]) -> list[Trajectory]:
        return await asyncio.gather(*(play(task, actions) for task, actions in share))

    sessions = asyncio.Semaphore(worlds.hosting.at_once or max(len(scripts), 1))
    with EventLoop() as loop:
        return ranks.map(lambda share: loop.run(play_all(share)), scripts)


def play_policy(
    new_sampler: Callable[[Sequence[int]], Sampler],
    renderer: Renderer,
    worlds: TaskSuite,
    wanted: Sequence[tuple[Task, str]],
    limits: EpisodeLimits,
    *,
    verify: bool,
    training: bool = False,
    ranks: Ranks = ALONE,
) -> list[Trajectory]:
    """Play a rollout for each (task, group id), with as many concurrent rollouts as there are sessions.

    The policy samples for all rollouts that await an action, while the environments of the others work. Finished
    episodes leave the batch, and waiting rollouts join it. A rollout whose session is lost is played again, with
    the same draws; the observations of lost sessions are at the end of the result, as trajectories with the stop reason
    `aborted`. Each of `ranks` plays its share of the groups, in sessions of its own, and gets the rollouts of all.

    Args:
        new_sampler: function that returns a sampler with a row for each of the given rollouts, which are indices into
            `wanted`.
        verify: whether to call the verifier; otherwise rewards are None.
        training: whether to subtract penalties from the rewards, and to count incomplete groups as dropped.

    Raises:
        EchoError: the environment is unavailable or rejects a task (exit code 1).
    """
    groups = set(ranks.share(list(dict.fromkeys(group_id for _, group_id in wanted))))
    mine = {number: each for number, each in enumerate(wanted) if each[1] in groups}

    def play() -> tuple[dict[int, Trajectory], list[Trajectory]]:
        if not mine:
            return {}, []
        with EventLoop() as loop:
            scheduler = _Scheduler(loop, renderer, worlds, mine, limits, verify=verify, penalize=training)
            scheduler.run(new_sampler)
        whole = dict(sorted(scheduler.played.items()))
        if verify:
            marked, incomplete = _without_incomplete_groups(list(whole.values()), list(mine.values()), worlds.hosting)
            whole = dict(zip(whole, marked, strict=True))
            for _ in range(incomplete if training else 0):
                worlds.hosting.faults.count("groups_dropped")
        return whole, scheduler.fragments

    parts = ranks.collect(play)
    played = {number: trajectory for whole, _ in parts for number, trajectory in whole.items()}
    fragments = [trajectory for _, lost in parts for trajectory in lost]
    return [*(played[number] for number in sorted(played)), *fragments]


@dataclass
class _Wanted:
    """A rollout to play, and the number of sessions it has used."""

    number: int
    task: Task
    group_id: str
    sessions: int = 0


@dataclass
class _Rollout:
    """A rollout with its session."""

    wanted: _Wanted
    episode: Episode
    answer: Future[Following] | None
    """Pending reply of the environment; None while the policy samples an action."""
    following: Following = field(default_factory=lambda: Following([]))
    """Tokens not yet passed to the sampler."""


class _Scheduler:
    """A scheduler that plays rollouts in rounds: collect replies of environments, sample, admit waiting rollouts.

    A rollout waits for a session, plays as a row of the sampler, and ends while its environment verifies and closes.
    Then, without a session, it is graded if there is a grader.
    """

    def __init__(
        self,
        loop: EventLoop,
        renderer: Renderer,
        worlds: TaskSuite,
        wanted: Mapping[int, tuple[Task, str]],
        limits: EpisodeLimits,
        *,
        verify: bool,
        penalize: bool,
    ) -> None:
        self._loop, self._renderer, self._worlds, self._limits = loop, renderer, worlds, limits
        self._hosting, self._verify, self._penalize = worlds.hosting, verify, penalize
        self._waiting = deque(_Wanted(number, task, group_id) for number, (task, group_id) in wanted.items())
        self._playing: list[_Rollout] = []  # in the order of the sampler's rows
        self._ending: dict[Future[Trajectory], _Rollout] = {}
        self._grading: dict[Future[Trajectory], int] = {}
        self.played: dict[int, Trajectory] = {}
        """Finished rollouts by number in `wanted`."""
        self.fragments: list[Trajectory] = []
        """Observations of lost sessions."""

    def run(self, new_sampler: Callable[[Sequence[int]], Sampler]) -> None:
        """Play all rollouts; every session is closed at the end, also after an error."""
        try:
            sampler = new_sampler(self._admit())
            while self._waiting or self._playing or self._ending or self._grading:
                self._collect(sampler)
                self._sample(sampler)
                if joining := self._admit():
                    sampler.add(joining)
        finally:
            left = [*self._playing, *self._ending.values()]
            wait([self._loop.start(rollout.episode.environment.close()) for rollout in left])

    def _admit(self) -> list[int]:
        """Assign free sessions to waiting rollouts, and return the numbers of the rollouts that joined."""
        free = len(self._waiting)
        if (limit := self._hosting.at_once) is not None:
            free = max(min(free, limit - len(self._playing) - len(self._ending)), 0)
        joining = [self._waiting.popleft() for _ in range(free)]
        for wanted in joining:
            wanted.sessions += 1
            environment = self._worlds.environment()
            tools = self._worlds.description.tools
            episode = Episode(self._renderer, environment, wanted.task, wanted.group_id, self._limits, tools)
            self._playing.append(_Rollout(wanted, episode, self._loop.start(episode.reset())))
        return [wanted.number for wanted in joining]

    def _collect(self, sampler: Sampler) -> None:
        """Wait for the environments, take their replies, and drop the rows of rollouts that leave."""
        self._wait()
        for end in [end for end in self._ending if end.done()]:
            rollout = self._ending.pop(end)
            try:
                self._keep(rollout, end.result())
            except SessionLost:
                self._lose(rollout)
        for grade in [grade for grade in self._grading if grade.done()]:
            self.played[self._grading.pop(grade)] = grade.result()
        staying = [row for row, rollout in enumerate(self._playing) if self._advance(rollout)]
        if len(staying) < len(self._playing):
            sampler.keep(staying)
            self._playing = [self._playing[row] for row in staying]

    def _wait(self) -> None:
        """Wait for all replies, at most `batch_wait_s` seconds; if the policy has nothing to sample, until one arrives.

        While rollouts wait for a session, also wait for ending rollouts, which free a session. Grades are awaited once
        nothing else is to do.
        """
        answers = [rollout.answer for rollout in self._playing if rollout.answer is not None]
        sampling = len(answers) < len(self._playing)
        expected: list[Future[Any]] = [*answers]
        if self._waiting or not (answers or sampling):
            expected += self._ending
        if not expected and not sampling:
            expected += self._grading
        if not wait(expected, timeout=self._hosting.batch_wait_s).done and not sampling:
            wait(expected, return_when=FIRST_COMPLETED)

    def _advance(self, rollout: _Rollout) -> bool:
        """Take the environment's reply if it has arrived; return whether the rollout stays in the batch."""
        # Checked once per round: a reply that arrives while others are collected is taken in the next round.
        if rollout.answer is None or not rollout.answer.done():
            return True
        try:
            rollout.following = rollout.answer.result()
        except AtCapacity:
            rollout.wanted.sessions -= 1
            self._waiting.appendleft(rollout.wanted)
            return False
        except SessionLost:
            self._lose(rollout)
            return False
        if rollout.episode.stop_reason is not None:
            self._retire(rollout)
            return False
        rollout.answer = None
        return True

    def _sample(self, sampler: Sampler) -> None:
        """Pass new tokens to the sampler, and start environment steps for the actions that it finishes."""
        ready = [row for row, rollout in enumerate(self._playing) if rollout.answer is None]
        if not ready:
            return
        for row, rollout in enumerate(self._playing):
            if rollout.following.rewind:
                sampler.rewind(row, rollout.following.rewind)
        sampler.append([rollout.following.token_ids for rollout in self._playing])
        for rollout in self._playing:
            rollout.following = Following([])
        for row, sample in zip(ready, sampler.sample(self._limits.action_tokens, ready), strict=True):
            if sample is not None:
                rollout = self._playing[row]
                rollout.answer = self._loop.start(rollout.episode.act(*sample))

    def _retire(self, rollout: _Rollout) -> None:
        """Start to verify and close a finished episode."""
        finish = rollout.episode.finish("policy", verify=self._verify, penalize=self._penalize)
        self._ending[self._loop.start(finish)] = rollout

    def _keep(self, rollout: _Rollout, finished: Trajectory) -> None:
        """Keep a finished rollout, or start to grade it."""
        if self._verify and rollout.episode.environment.grader is not None:
            grade = rollout.episode.grade(finished, penalize=self._penalize)
            self._grading[self._loop.start(grade)] = rollout.wanted.number
        else:
            self.played[rollout.wanted.number] = finished

    def _lose(self, rollout: _Rollout) -> None:
        """Keep the observations of a lost session, and queue its rollout again if it has attempts left."""
        self._hosting.faults.count("sessions_lost")
        if (fragment := rollout.episode.aborted("policy")) is not None:
            self.fragments.append(fragment)
        if rollout.wanted.sessions < self._hosting.attempts:
            self._hosting.faults.count("topped_up")
            self._waiting.appendleft(rollout.wanted)


def without_fragments(played: Sequence[Trajectory], wanted: int, hosting: HostLimits) -> list[Trajectory]:
    """Return the complete rollouts in a result of `play_policy`.

    Raises:
        EchoError: fewer than `wanted` rollouts are complete, because sessions were lost in every attempt (exit code 1).
    """
    whole = [trajectory for trajectory in played if trajectory.stop_reason != "aborted"]
    if missing := wanted - len(whole):
        message = f"the environment lost the session of {missing} of {counted(wanted, 'rollout')}"
        raise EchoError(f"{message} {counted(hosting.attempts, 'time')}", "check the server's log", exit_code=1)
    return whole


def _without_incomplete_groups(
    trajectories: Sequence[Trajectory], wanted: Sequence[tuple[Task, str]], hosting: HostLimits
) -> tuple[list[Trajectory], int]:
    """Mark the rollouts of incomplete groups, which lack a rollout or a reward, as `world_model_only`.

    Returns:
        The rollouts, and the number of incomplete groups.
    """
    rewarded = Counter(trajectory.group_id for trajectory in trajectories if trajectory.reward is not None)
    sizes = Counter(group_id for _, group_id in wanted)
    short = {group_id for group_id, size in sizes.items() if rewarded[group_id] < size}
    for trajectory in trajectories:
        if trajectory.reward is None:
            hosting.faults.count("unrewarded")
    marked = [
        replace(trajectory, world_model_only=True) if trajectory.group_id in short else trajectory
        for trajectory in trajectories
    ]
    return marked, len(short)
