"""Plays tasks: a policy or a script acts, an environment answers, and every token is tagged with its role."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from echo_cli.concurrency import EventLoop
from echo_cli.environments.faults import SessionLost
from echo_cli.environments.protocol import HostLimits, TaskSuite
from echo_cli.environments.tasks import Task
from echo_cli.errors import EchoError
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.episode import Episode, Following
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.trajectory import Source, Trajectory


class Sampler(Protocol):
    """Batched sampling over a set of growing sequences, one row each."""

    def append(self, token_lists: Sequence[Sequence[int]]) -> None:
        """Add context and observation tokens to every row."""
        ...

    def rewind(self, row: int, count: int) -> None:
        """Take the last `count` tokens of a row back."""
        ...

    def sample(
        self, max_tokens: int, rows: Sequence[int] | None = None
    ) -> Sequence[tuple[list[int], list[float]] | None]:
        """Sample `rows`, or all, until a stop token or `max_tokens`: token ids and behaviour logprobs of each.

        None stands for a row that has not finished, and goes on when it is among `rows` again.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        ...

    def add(self, count: int) -> None:
        """Add empty rows after the others."""
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
) -> list[Trajectory]:
    """Episodes whose actions are given as text, as many at once as there are sessions.

    An episode ends before an action that is longer than the policy's may be and reaches past the episode's cap.

    Raises:
        EchoError: the environment is not available, or loses the session of a script again and again (exit code 1).
    """

    async def attempt(task: Task, actions: Sequence[str]) -> Trajectory:
        episode = Episode(renderer, worlds.environment(), task, task.task_id, limits)
        await episode.reset()
        for ids in map(renderer.script, actions):
            if episode.stop_reason is None and not episode.has_room(ids):
                episode.stop_reason = "length_cap"
            if episode.stop_reason is not None:
                break
            await episode.act(ids, None)
        return await episode.finish(source, verify=verify, world_model_only=world_model_only)

    async def play(task: Task, actions: Sequence[str]) -> Trajectory:
        reason = ""
        for _ in range(worlds.hosting.attempts):
            async with sessions:
                try:
                    return await attempt(task, actions)
                except SessionLost as error:
                    worlds.hosting.faults.count("sessions_lost")
                    reason = str(error)
        raise EchoError(
            f"the environment lost the session of task {task.task_id} {worlds.hosting.attempts} times: {reason}",
            "look at the server's own log",
            exit_code=1,
        )

    async def play_all() -> list[Trajectory]:
        return await asyncio.gather(*(play(task, actions) for task, actions in scripts))

    with EventLoop() as loop:
        sessions = asyncio.Semaphore(worlds.hosting.sessions or max(len(scripts), 1))
        return loop.run(play_all())


@dataclass
class _Rollout:
    """One rollout that is wanted, its episode once it is played, and the answer that the policy waits for."""

    number: int
    task: Task
    group_id: str
    attempts: int = 0
    episode: Episode = field(init=False)
    answer: Future[Following] | None = field(init=False, default=None)
    """None while the policy samples its action."""


def play_policy(
    new_sampler: Callable[[int], Sampler],
    renderer: Renderer,
    worlds: TaskSuite,
    wanted: Sequence[tuple[Task, str]],
    limits: EpisodeLimits,
    *,
    verify: bool,
    penalize: bool = False,
) -> list[Trajectory]:
    """Play a rollout for each (task, group id), as many at once as there are sessions.

    The policy samples for all that wait for it while the environments of the others work. Finished episodes leave the
    batch, waiting ones join. A rollout whose session is lost is played again; what it had observed comes last in the
    result, `aborted`.

    Args:
        new_sampler: makes a sampler for that many sequences.
        verify: False never calls the verifier; rewards are then None.
        penalize: whether penalties are taken off the rewards.

    Raises:
        EchoError: the environment is not available, or refuses a task (exit code 1).
    """
    hosting = worlds.hosting
    waiting = deque(_Rollout(number, task, group_id) for number, (task, group_id) in enumerate(wanted))
    playing: list[_Rollout] = []  # each is a row of the sampler
    ending: dict[Future[Trajectory], _Rollout] = {}
    played: dict[int, Trajectory] = {}
    fragments: list[Trajectory] = []
    sampler: Sampler | None = None

    def lose(rollout: _Rollout) -> None:
        hosting.faults.count("sessions_lost")
        if (fragment := rollout.episode.aborted("policy")) is not None:
            fragments.append(fragment)
        if rollout.attempts < hosting.attempts:
            hosting.faults.count("topped_up")
            waiting.appendleft(rollout)

    with EventLoop() as loop:
        try:
            while waiting or playing or ending:
                joining = _free_sessions(hosting, len(waiting), len(playing) + len(ending))
                for _ in range(joining):
                    rollout = waiting.popleft()
                    rollout.attempts += 1
                    rollout.episode = Episode(renderer, worlds.environment(), rollout.task, rollout.group_id, limits)
                    rollout.answer = loop.start(rollout.episode.reset())
                    playing.append(rollout)
                if sampler is None:
                    sampler = new_sampler(joining)
                elif joining:
                    sampler.add(joining)

                answers = [rollout.answer for rollout in playing if rollout.answer is not None]
                sampling = len(answers) < len(playing)
                _wait(answers, list(ending), hosting.batch_wait_s, full=bool(waiting), sampling=sampling)
                for end in [end for end in ending if end.done()]:
                    rollout = ending.pop(end)
                    try:
                        played[rollout.number] = end.result()
                    except SessionLost:
                        lose(rollout)
                going_on: list[int] = []
                ready: list[int] = []
                following: list[Following] = []
                for row, rollout in enumerate(playing):
                    answer = Following([])
                    if rollout.answer is None:
                        ready.append(len(going_on))
                    elif rollout.answer.done():
                        try:
                            answer = rollout.answer.result()
                        except SessionLost:
                            lose(rollout)
                            continue
                        if rollout.episode.stop_reason is not None:
                            finish = rollout.episode.finish("policy", verify=verify, penalize=penalize)
                            ending[loop.start(finish)] = rollout
                            continue
                        ready.append(len(going_on))
                        rollout.answer = None
                    going_on.append(row)
                    following.append(answer)

                if len(going_on) < len(playing):
                    sampler.keep(going_on)
                    playing = [playing[row] for row in going_on]
                if ready:
                    for row, answer in enumerate(following):
                        if answer.rewind:
                            sampler.rewind(row, answer.rewind)
                    sampler.append([answer.token_ids for answer in following])
                    for row, sample in zip(ready, sampler.sample(limits.action_tokens, ready), strict=True):
                        if sample is not None:
                            playing[row].answer = loop.start(playing[row].episode.act(*sample))
        finally:
            left = [*playing, *ending.values()]
            wait([loop.start(rollout.episode.environment.close()) for rollout in left])
    whole = [played[number] for number in sorted(played)]
    return [*(_settled(whole, wanted, hosting) if verify else whole), *fragments]


def without_fragments(played: Sequence[Trajectory], wanted: int, hosting: HostLimits) -> list[Trajectory]:
    """The whole rollouts among those of `play_policy`, where all that were `wanted` are.

    Raises:
        EchoError: the environment lost the session of one again and again (exit code 1).
    """
    whole = [trajectory for trajectory in played if trajectory.stop_reason != "aborted"]
    if missing := wanted - len(whole):
        message = f"the environment lost the session of {missing} of {wanted} rollouts"
        raise EchoError(f"{message} {hosting.attempts} times", "look at the server's own log", exit_code=1)
    return whole


def _free_sessions(hosting: HostLimits, waiting: int, taken: int) -> int:
    return waiting if hosting.sessions is None else min(waiting, hosting.sessions - taken)


def _wait(
    answers: Sequence[Future[Following]],
    endings: Sequence[Future[Trajectory]],
    batch_wait_s: float,
    *,
    full: bool,
    sampling: bool,
) -> None:
    """Wait for all answers, at most `batch_wait_s`, but for one at least where the policy is not `sampling`.

    Where all sessions are taken (`full`), an ending is waited for too: it frees one.
    """
    expected: list[Future[Any]] = [*answers, *endings] if full or not (answers or sampling) else [*answers]
    if not wait(expected, timeout=batch_wait_s).done and not sampling:
        wait(expected, return_when=FIRST_COMPLETED)


def _settled(
    trajectories: Sequence[Trajectory], wanted: Sequence[tuple[Task, str]], hosting: HostLimits
) -> list[Trajectory]:
    """A group is whole or none: where a rollout or its reward is missing, the others keep the env term only."""
    rewarded = Counter(trajectory.group_id for trajectory in trajectories if trajectory.reward is not None)
    sizes = Counter(group_id for _, group_id in wanted)
    short = {group_id for group_id, size in sizes.items() if rewarded[group_id] < size}
    for _ in short:
        hosting.faults.count("groups_dropped")
    for trajectory in trajectories:
        if trajectory.reward is None:
            hosting.faults.count("unrewarded")
    return [
        replace(trajectory, world_model_only=True) if trajectory.group_id in short else trajectory
        for trajectory in trajectories
    ]
