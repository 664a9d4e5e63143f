"""Plays tasks: a policy or a script acts, an environment answers, and every token is tagged with its role."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Any, Protocol

from echo_cli.environment import Hosting, Worlds
from echo_cli.episode import Episode, Limits
from echo_cli.error import EchoError
from echo_cli.event_loop import EventLoop
from echo_cli.fault import SessionLost
from echo_cli.task import Task
from echo_cli.tokenizer import Tokenizer
from echo_cli.trajectory import Source, Trajectory


class Sampler(Protocol):
    """Batched sampling over a set of growing sequences, one row each."""

    def append(self, token_lists: Sequence[Sequence[int]]) -> None:
        """Add context and observation tokens to every row."""
        ...

    def sample(self, max_tokens: int, rows: Sequence[int] | None = None) -> list[tuple[list[int], list[float]]]:
        """Sample `rows`, or all, until a stop token or `max_tokens`: token ids and behaviour logprobs of each."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        ...

    def add(self, count: int) -> None:
        """Add empty rows after the others."""
        ...


def play_scripts(
    tokenizer: Tokenizer,
    worlds: Worlds,
    scripts: Sequence[tuple[Task, Sequence[str]]],
    limits: Limits,
    source: Source,
    *,
    verify: bool = False,
    world_model_only: bool = False,
) -> list[Trajectory]:
    """Episodes whose actions are given as text, as many at once as there are sessions.

    Raises:
        EchoError: the environment is not available, or loses the session of a script again and again (exit code 1).
    """

    async def attempt(task: Task, actions: Sequence[str]) -> Trajectory:
        episode = Episode(tokenizer, worlds.environment(), task, task.task_id, limits)
        await episode.reset()
        for action in actions:
            if episode.stop_reason is not None:
                break
            await episode.act(tokenizer.encode(action + "\n"), None)
        return await episode.finish(source, verify=verify, world_model_only=world_model_only)

    async def play(task: Task, actions: Sequence[str]) -> Trajectory:
        reason = ""
        for _ in range(worlds.hosting.attempts):
            async with seats:
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
        seats = asyncio.Semaphore(worlds.hosting.sessions or max(len(scripts), 1))
        return loop.run(play_all())


@dataclass
class _Seat:
    """One rollout that is wanted: its episode, and the answer that the episode waits for."""

    number: int
    task: Task
    group_id: str
    episode: Episode
    answer: Future[list[int]]
    attempts: int


def play_policy(
    new_sampler: Callable[[int], Sampler],
    tokenizer: Tokenizer,
    worlds: Worlds,
    wanted: Sequence[tuple[Task, str]],
    limits: Limits,
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
    waiting = deque((number, task, group_id, 0) for number, (task, group_id) in enumerate(wanted))
    rows: list[_Seat] = []
    endings: dict[Future[Trajectory], _Seat] = {}
    played: dict[int, Trajectory] = {}
    fragments: list[Trajectory] = []
    sampler: Sampler | None = None

    def lost(seat: _Seat) -> None:
        hosting.faults.count("sessions_lost")
        if (fragment := seat.episode.aborted("policy")) is not None:
            fragments.append(fragment)
        if seat.attempts < hosting.attempts:
            hosting.faults.count("topped_up")
            waiting.appendleft((seat.number, seat.task, seat.group_id, seat.attempts))

    with EventLoop() as loop:
        try:
            while waiting or rows or endings:
                seated = _free_seats(hosting, len(waiting), len(rows) + len(endings))
                for _ in range(seated):
                    number, task, group_id, attempts = waiting.popleft()
                    episode = Episode(tokenizer, worlds.environment(), task, group_id, limits)
                    answer = loop.start(episode.reset())
                    rows.append(_Seat(number, task, group_id, episode, answer, attempts + 1))
                if sampler is None:
                    sampler = new_sampler(seated)
                elif seated:
                    sampler.add(seated)

                _wait([seat.answer for seat in rows], list(endings), hosting.batch_wait_s, full=bool(waiting))
                for ending in [ending for ending in endings if ending.done()]:
                    seat = endings.pop(ending)
                    try:
                        played[seat.number] = ending.result()
                    except SessionLost:
                        lost(seat)
                going_on: list[int] = []
                ready: list[int] = []
                answers: list[list[int]] = []
                for row, seat in enumerate(rows):
                    try:
                        tokens = seat.answer.result() if seat.answer.done() else []
                    except SessionLost:
                        lost(seat)
                        continue
                    if seat.answer.done() and seat.episode.stop_reason is not None:
                        endings[loop.start(seat.episode.finish("policy", verify=verify, penalize=penalize))] = seat
                        continue
                    if seat.answer.done():
                        ready.append(len(going_on))
                    going_on.append(row)
                    answers.append(tokens)
                if len(going_on) < len(rows):
                    sampler.keep(going_on)
                    rows = [rows[row] for row in going_on]
                if not ready:
                    continue
                sampler.append(answers)
                for row, sample in zip(ready, sampler.sample(limits.action_tokens, ready), strict=True):
                    rows[row].answer = loop.start(rows[row].episode.act(*sample))
        finally:
            seats = [*rows, *endings.values()]
            wait([loop.start(seat.episode.environment.close()) for seat in seats])
    whole = [played[number] for number in sorted(played)]
    return [*(_settled(whole, wanted, hosting) if verify else whole), *fragments]


def _free_seats(hosting: Hosting, waiting: int, taken: int) -> int:
    return waiting if hosting.sessions is None else min(waiting, hosting.sessions - taken)


def _wait(
    answers: Sequence[Future[list[int]]], endings: Sequence[Future[Trajectory]], batch_wait_s: float, *, full: bool
) -> None:
    """Wait for all answers, at most `batch_wait_s`, but for one at least; with `full` seats for the endings too."""
    expected: list[Future[Any]] = [*answers, *endings] if full or not answers else [*answers]
    if not wait(expected, timeout=batch_wait_s).done:
        wait(expected, return_when=FIRST_COMPLETED)


def _settled(
    trajectories: Sequence[Trajectory], wanted: Sequence[tuple[Task, str]], hosting: Hosting
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
