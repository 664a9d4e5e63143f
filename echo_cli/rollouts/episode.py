"""An episode in progress: converts text to tokens with roles, and finally to a trajectory."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from echo_cli.environments.protocol import Environment, JsonObject, StepResult, TextPiece
from echo_cli.environments.tasks import Task
from echo_cli.models.renderer import Frame, Renderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.rollouts.limits import _PROMPT_TOKENS, EpisodeLimits
from echo_cli.trajectory import (
    CUT_ACTION,
    CUT_NOTICE,
    CUT_OUTPUT,
    SCAFFOLD,
    Role,
    Segment,
    Source,
    StopReason,
    Trajectory,
    Turn,
    text_of,
)

T = TypeVar("T")
_LONGEST_TOKEN_CHARS = 64


@dataclass(frozen=True)
class Following:
    """Tokens to append to a policy's sequence after its last `rewind` tokens are removed."""

    token_ids: list[int]
    rewind: int = 0


class Episode:
    """A trajectory in progress.

    Each coroutine closes the environment when it fails, so that no session leaks.
    """

    def __init__(
        self,
        renderer: Renderer,
        environment: Environment,
        task: Task,
        group_id: str,
        limits: EpisodeLimits,
        tools: Sequence[JsonObject] = (),
    ) -> None:
        self.renderer = renderer
        self.tools = tools
        self.tokenizer = renderer.tokenizer
        self.environment = environment
        self.task = task
        self.group_id = group_id
        self.limits = limits
        self.segments: list[Segment] = []
        self.turns: list[Turn] = []
        self.penalty = 0.0
        self.stop_reason: StopReason | None = None
        self.length = 0

    async def reset(self) -> Following:
        """Start the episode and return its first tokens."""
        opening = await self._or_close(self.environment.reset(self.task))
        frame = self.renderer.opening(self.tools)
        if not frame.before and (not opening or opening[0].role is not Role.CONTEXT):  # BOS must be context
            opening = (TextPiece(Role.CONTEXT, ""), *opening)
        return Following(_ids(self._add_pieces(opening, frame, first=True)))

    async def act(self, token_ids: Sequence[int], logprobs: Sequence[float] | None) -> Following:
        """Step the environment with an action as sampled, and return the tokens that follow the action.

        An action without a stop token was truncated at the cap and is not sent to the environment.
        """
        ids = list(token_ids)
        said, frame = self.renderer.message(ids), self.renderer.reply(ids)
        self._add(
            Segment(
                Role.ACTION,
                self.tokenizer.decode(ids),
                tuple(ids),
                None if logprobs is None else tuple(logprobs),
                transient=said.transient,
            )
        )
        self.length -= said.transient
        if not said.complete:
            self.turns.append(Turn(said.text, "", None, valid_action=False, clean_parse=False, parse="malformed"))
            notice = StepResult((TextPiece(Role.WARNING, CUT_ACTION, CUT_NOTICE),), done=True)
            return self._following(ids, 0, notice, frame, "length_cap")
        reply = await self._or_close(self.environment.step(said.text, said.problem))
        before = len(self.segments)
        following = self._following(ids, said.transient, reply, frame, "turn_cap" if reply.capped else "answered")
        output = text_of(self.segments[before:], Role.ENV_OUTPUT)
        self.turns.append(Turn(said.text, output, reply.exit_code, reply.valid_action, reply.clean_parse, reply.parse))
        self.penalty += reply.penalty
        return following

    def has_room(self, action_ids: Sequence[int]) -> bool:
        """Return whether the action keeps the episode within `EpisodeLimits.longest`; sampled actions always do."""
        limits = self.limits
        return len(action_ids) <= max(limits.action_tokens, limits.episode_tokens - self.length)

    async def finish(
        self, source: Source, *, verify: bool, penalize: bool = False, world_model_only: bool = False
    ) -> Trajectory:
        """Close the environment and return the trajectory.

        The stop reason of a script that ends before the episode is `script_end`. If the environment has a grader, the
        reward is the environment's own, and `grade` returns the trajectory with the grader's.

        Args:
            verify: whether to call the verifier for the reward; otherwise the reward is None.
            penalize: whether to subtract penalties from the reward.
        """
        reward = await self._or_close(self.environment.verify()) if verify else None
        await self.environment.close()
        if self.environment.grader is None:
            reward = self._penalized(reward, penalize)
        return self._trajectory(self.stop_reason or "script_end", source, reward, world_model_only)

    async def grade(self, finished: Trajectory, *, penalize: bool = False) -> Trajectory:
        """Return a finished trajectory with the reward and the criteria of the environment's grader, if it has one.

        The session is closed by then, so that other episodes can use it.

        Raises:
            EchoError: as in `Grader.grade`.
        """
        grader = self.environment.grader
        if grader is None:
            return finished
        record = finished.to_json()
        grade = await grader.grade({**record, "meta": {**record["meta"], "task": self.task.to_json()}})
        reward = self._penalized(grade.reward, penalize)
        return replace(finished, reward=reward, meta={**finished.meta, **grade.meta})

    def _penalized(self, reward: float | None, penalize: bool) -> float | None:
        return reward - self.penalty if reward is not None and penalize else reward

    def aborted(self, source: Source) -> Trajectory | None:
        """Return the trajectory up to the last observation before the session was lost, for the env term alone.

        Return None if nothing was observed.
        """
        while self.segments and self.segments[-1].role is not Role.ENV_OUTPUT:
            self.segments.pop()
        return self._trajectory("aborted", source, None, world_model_only=True) if self.segments else None

    def _trajectory(
        self, stop_reason: StopReason, source: Source, reward: float | None, world_model_only: bool
    ) -> Trajectory:
        while len(self.segments) > 1 and self.segments[-1].channel == SCAFFOLD:
            self.segments.pop()  # it opens a turn that was not played
        return Trajectory(
            task_id=self.task.task_id,
            group_id=self.group_id,
            segments=tuple(self.segments),
            turns=tuple(self.turns),
            reward=reward,
            stop_reason=stop_reason,
            source=source,
            world_model_only=world_model_only,
        )

    async def _or_close(self, answer: Coroutine[Any, Any, T]) -> T:
        try:
            return await answer
        except BaseException:
            await self.environment.close()
            raise

    def _following(
        self, action_ids: list[int], transient: int, reply: StepResult, frame: Frame, ending: StopReason
    ) -> Following:
        """Add the environment's reply to an action to the episode, and return the tokens that follow the action.

        An action whose thinking is dropped is replaced in the policy's sequence by the action without thinking.
        """
        added = _ids(self._add_pieces(reply.pieces, replace(frame, after=()) if reply.done else frame))
        if reply.done:
            self.stop_reason = ending
        elif self.length + self.limits.action_tokens > self.limits.episode_tokens:
            self.stop_reason = "length_cap"
        return Following([*action_ids[transient:], *added], len(action_ids)) if transient else Following(added)

    def _add_pieces(self, pieces: Sequence[TextPiece], frame: Frame, first: bool = False) -> list[Segment]:
        """Tokenise each piece separately, so that no token straddles two roles; truncate long pieces, with a notice.

        A piece of a reply has at most `output_tokens` tokens, and all pieces together at most twice as many. An opening
        leaves room for an action. The prompt (a short piece of context at the end) and the scaffold of `frame` are
        never truncated.
        """
        if not pieces and not frame.after:
            return []
        limits, notice = self.limits, tuple(self.tokenizer.encode(CUT_OUTPUT))
        ending = self._prompt_ids(pieces)
        if first:
            scaffold = len(self.renderer.start_ids) + len(_ids((*frame.before, *frame.after)))
            left = max(limits.episode_tokens - limits.action_tokens - scaffold - len(notice) - len(ending), 1)
        else:
            left = 2 * (limits.output_tokens + len(notice))
        start = self.renderer.start_ids if first else ()
        added = []
        for segment in frame.before:
            added.append(self._add(replace(segment, token_ids=(*start, *segment.token_ids))))
            start = ()
        for piece in pieces[:-1] if ending else pieces:
            if left <= 0:
                break
            cap = left if first else min(left, limits.output_tokens)
            # Do not tokenise text far beyond the cap.
            text = piece.text[: cap * _LONGEST_TOKEN_CHARS]
            ids = self.tokenizer.encode(text)
            cut = piece.cut or len(text) < len(piece.text) or len(ids) > cap
            if cut:
                ids, text = cut_tokens(self.tokenizer, ids, min(cap, len(ids)))
            left -= len(ids)
            added.append(self._add(Segment(piece.role, text, (*start, *ids), channel=piece.channel)))
            start = ()
            if cut:
                left -= len(notice)
                added.append(self._add(Segment(Role.WARNING, CUT_OUTPUT, notice, channel=CUT_NOTICE)))
        if ending:
            added.append(self._add(Segment(Role.CONTEXT, pieces[-1].text, tuple(ending), channel=pieces[-1].channel)))
        return [*added, *(self._add(segment) for segment in frame.after)]

    def _prompt_ids(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Return the tokens of the prompt that ends `pieces`; empty if there is no prompt or no other piece."""
        longest = _PROMPT_TOKENS * _LONGEST_TOKEN_CHARS
        if len(pieces) < 2 or pieces[-1].role is not Role.CONTEXT or len(pieces[-1].text) > longest:
            return []
        ids = self.tokenizer.encode(pieces[-1].text)
        return ids if len(ids) <= _PROMPT_TOKENS else []

    def _add(self, segment: Segment) -> Segment:
        self.segments.append(segment)
        self.length += len(segment.token_ids)
        return segment


def _ids(segments: Sequence[Segment]) -> list[int]:
    return [token for segment in segments for token in segment.token_ids]


def cut_tokens(tokenizer: Tokenizer, ids: list[int], count: int) -> tuple[list[int], str]:
    """Return the first `count` tokens and their text, or fewer tokens so that no character is split."""
    while tokenizer.encode(text := tokenizer.decode(ids[:count])) != ids[:count]:
        count -= 1
    return ids[:count], text


def cut_pieces(trajectories: Iterable[Trajectory]) -> int:
    """Return the number of pieces of text truncated at a cap, by counting the notices."""
    segments = (segment for trajectory in trajectories for segment in trajectory.segments)
    notice = (Role.WARNING, CUT_NOTICE, CUT_OUTPUT)
    return sum((segment.role, segment.channel, segment.text) == notice for segment in segments)
