"""Plays tasks: a policy or a script acts, an environment answers, and every token is tagged with its role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from echo_cli.environment import Environment, Piece, Reply
from echo_cli.task import Task
from echo_cli.tokenizer import Tokenizer
from echo_cli.trajectory import Role, Segment, Source, StopReason, Trajectory, Turn

CUT_ACTION = "\n[action cut]\n"
CUT_OUTPUT = "[output cut]\n"


@dataclass(frozen=True)
class Limits:
    """Caps of an episode, in tokens: one action, one reply of the environment, the whole episode."""

    action_tokens: int
    output_tokens: int
    episode_tokens: int


class Sampler(Protocol):
    """Batched sampling over a set of growing sequences, one row each."""

    def append(self, token_lists: Sequence[Sequence[int]]) -> None:
        """Add context and observation tokens to every row."""
        ...

    def sample(self, max_tokens: int) -> list[tuple[list[int], list[float]]]:
        """Sample every row until a stop token or `max_tokens`: token ids and behaviour logprobs of each."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        ...


class Episode:
    """A trajectory in the making."""

    def __init__(self, tokenizer: Tokenizer, environment: Environment, task: Task, group_id: str, limits: Limits):
        self.tokenizer = tokenizer
        self.environment = environment
        self.task = task
        self.group_id = group_id
        self.limits = limits
        self.segments: list[Segment] = []
        self.turns: list[Turn] = []
        self.stop_reason: StopReason | None = None
        self.length = 0

    def reset(self) -> list[int]:
        """Start the episode; returns its first tokens."""
        opening = self._add_pieces(self.environment.reset(self.task), first=True)
        return [token for segment in opening for token in segment.token_ids]

    def act(self, token_ids: Sequence[int], logprobs: Sequence[float] | None) -> list[int]:
        """Let the environment answer an action, given as sampled; returns the tokens that follow it.

        An action without its stop token was cut at the cap: the environment never sees it.
        """
        ids = list(token_ids)
        text = self.tokenizer.decode(ids)
        self._add(Segment(Role.ACTION, text, tuple(ids), None if logprobs is None else tuple(logprobs)))
        if not ids or ids[-1] not in self.tokenizer.newline_ids:
            self.turns.append(Turn(text, "", None, valid_action=False, clean_parse=False))
            return self._reply(Reply((Piece(Role.WARNING, CUT_ACTION, "notice"),), done=True), "length_cap")
        command = text.split("\n", 1)[0]
        reply, before = self.environment.step(command), len(self.segments)
        following = self._reply(reply, "answered" if reply.exit_code is None else "turn_cap")
        output = "".join(segment.text for segment in self.segments[before:] if segment.role is Role.ENV_OUTPUT)
        self.turns.append(Turn(command, output, reply.exit_code, reply.valid_action, clean_parse=True))
        return following

    def finish(self, source: Source, *, verify: bool, world_model_only: bool = False) -> Trajectory:
        """The finished trajectory, with the verifier's reward if asked for.

        A script that ran out before the episode ended stops with `script_end`.
        """
        reward = self.environment.verify() if verify else None
        self.environment.close()
        return Trajectory(
            task_id=self.task.task_id,
            group_id=self.group_id,
            segments=tuple(self.segments),
            turns=tuple(self.turns),
            reward=reward,
            stop_reason=self.stop_reason or "script_end",
            source=source,
            world_model_only=world_model_only,
        )

    def _reply(self, reply: Reply, ending: StopReason) -> list[int]:
        added = self._add_pieces(reply.pieces)
        if reply.done:
            self.stop_reason = ending
        elif self.length + self.limits.action_tokens > self.limits.episode_tokens:
            self.stop_reason = "length_cap"
        return [token for segment in added for token in segment.token_ids]

    def _add_pieces(self, pieces: Sequence[Piece], first: bool = False) -> list[Segment]:
        """Tokenise each piece alone, so that no token straddles two roles; cut outputs at the cap with a notice."""
        added = []
        for piece in pieces:
            text, ids = piece.text, _encode(self.tokenizer, piece.text, first)
            first = False
            cut = piece.role is Role.ENV_OUTPUT and len(ids) > self.limits.output_tokens
            if cut:
                ids, text = _cut(self.tokenizer, ids, self.limits.output_tokens)
            added.append(self._add(Segment(piece.role, text, tuple(ids), channel=piece.channel)))
            if cut:
                notice = tuple(self.tokenizer.encode(CUT_OUTPUT))
                added.append(self._add(Segment(Role.WARNING, CUT_OUTPUT, notice, channel="notice")))
        return added

    def _add(self, segment: Segment) -> Segment:
        self.segments.append(segment)
        self.length += len(segment.token_ids)
        return segment


def _encode(tokenizer: Tokenizer, text: str, first: bool) -> list[int]:
    """The tokens of a piece; the first one of an episode begins with BOS."""
    return [tokenizer.bos_id, *tokenizer.encode(text)] if first else tokenizer.encode(text)


def _cut(tokenizer: Tokenizer, ids: list[int], count: int) -> tuple[list[int], str]:
    """The first `count` tokens and their text; a few less where a character would be cut in two."""
    while tokenizer.encode(text := tokenizer.decode(ids[:count])) != ids[:count]:
        count -= 1
    return ids[:count], text


def reencode(trajectory: Trajectory, tokenizer: Tokenizer) -> Trajectory:
    """The same text in the tokens of `tokenizer`, each segment encoded alone and BOS first, as in an `Episode`.

    The tokenizer that a scripted episode was played with gives its ids again. A policy samples ids that need not be
    the encoding of their text, so those of its actions may differ; its behaviour logprobs belong to the sampled ids
    and are dropped, which leaves a rollout that RL cannot learn from (`world_model_only`).
    """
    segments = tuple(
        replace(segment, token_ids=tuple(_encode(tokenizer, segment.text, number == 0)), logprobs=None)
        for number, segment in enumerate(trajectory.segments)
    )
    world_model_only = trajectory.world_model_only or trajectory.source == "policy"
    return replace(trajectory, segments=segments, world_model_only=world_model_only)


def play_script(
    tokenizer: Tokenizer,
    environment: Environment,
    task: Task,
    actions: Sequence[str],
    limits: Limits,
    source: Source,
    *,
    world_model_only: bool = False,
) -> Trajectory:
    """One episode whose actions are given as text. No verifier is called."""
    episode = Episode(tokenizer, environment, task, task.task_id, limits)
    episode.reset()
    for action in actions:
        if episode.stop_reason is not None:
            break
        episode.act(tokenizer.encode(action + "\n"), None)
    return episode.finish(source, verify=False, world_model_only=world_model_only)


def play_policy(
    new_sampler: Callable[[int], Sampler],
    tokenizer: Tokenizer,
    episodes: Sequence[tuple[Environment, Task, str]],
    limits: Limits,
    *,
    verify: bool,
) -> list[Trajectory]:
    """Play (environment, task, group id) episodes together, turn by turn; finished ones leave the batch.

    Args:
        new_sampler: makes a sampler for that many sequences.
        verify: False never calls the verifier; rewards are then None.
    """
    played = [Episode(tokenizer, environment, task, group, limits) for environment, task, group in episodes]
    sampler = new_sampler(len(played))
    sampler.append([episode.reset() for episode in played])
    running = played
    while running:
        replies = [
            episode.act(token_ids, logprobs)
            for episode, (token_ids, logprobs) in zip(running, sampler.sample(limits.action_tokens), strict=True)
        ]
        going_on = [row for row, episode in enumerate(running) if episode.stop_reason is None]
        if len(going_on) < len(running):
            sampler.keep(going_on)
        running = [running[row] for row in going_on]
        if running:
            sampler.append([replies[row] for row in going_on])
    return [episode.finish("policy", verify=verify) for episode in played]
