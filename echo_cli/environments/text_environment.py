"""Adapt any environment source to the environment protocol: text to actions, payloads to role-tagged text."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.environments.actions import ActionMapping, Unparsable
from echo_cli.environments.faults import (
    FINAL_FAILED,
    AtCapacity,
    BadAction,
    EnvironmentDown,
    EnvironmentFault,
    SessionLost,
    Unavailable,
)
from echo_cli.environments.observations import ObservationMapping, exit_code_of, is_invalid, line_end, safe
from echo_cli.environments.protocol import (
    Client,
    Description,
    EnvironmentSource,
    Grader,
    HostLimits,
    JsonObject,
    Payload,
    StepResult,
    TextPiece,
)
from echo_cli.environments.tasks import Task
from echo_cli.trajectory import Parse, Role

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_NOTICE_CHARS = 200


class TextEnvironment:
    """One episode of `source`, mapped to text by `settings`."""

    def __init__(
        self,
        source: EnvironmentSource,
        settings: EnvironmentConfig,
        hosting: HostLimits,
        grader: Grader | None = None,
    ) -> None:
        self.grader = grader
        self._source = source
        self._settings = settings
        self._faults, self._count = hosting.faults, hosting.count
        self._counted = False
        self._actions = ActionMapping(settings.action)
        self._observations = ObservationMapping(settings)
        self._client: Client | None = None
        self._rewards: list[float | None] = []
        self._turns = 0
        self._max_turns = settings.max_turns
        self._done = False

    async def reset(self, task: Task) -> tuple[TextPiece, ...]:
        """Start the episode, retrying while the environment is not available; the task's question opens it.

        Raises:
            AtCapacity: the environment grants no more sessions than those of the run that are open.
            EchoError: the environment was not available for `retry_s` seconds, has ended, or refused the task's reset
                (exit code 1).
        """
        self._max_turns = min(self._settings.max_turns, task.max_turns or self._settings.max_turns)
        try:
            payload = await self._begin(task)
        except SessionLost:
            self._count.abandoned = True
            raise
        opening = self._observations.opening(payload)
        if task.question:  # first, so that no long opening crowds it out
            opening = (TextPiece(Role.CONTEXT, safe(task.question).removesuffix("\n") + "\n", "question"), *opening)
        return self._prompted(opening)

    async def step(self, action: str, problem: str | None = None) -> StepResult:
        """Parse `action`, send it, and map the answer to text; an action that fails yields a warning."""
        self._turns += 1
        try:
            if problem is not None:
                raise Unparsable(problem)
            payload = await self._sent(self._actions.parse(action))
        except (Unparsable, BadAction) as error:
            if self._settings.action.words_end and problem is None and _is_words(error) and action.strip():
                self._done = True
                return StepResult((), done=True)
            self._faults.count("bad_actions")
            parse = error.parse if isinstance(error, Unparsable) else "malformed"
            return self._refused(f"not an action: {error}", parse, self._settings.action.penalty)
        except EnvironmentFault as error:
            self._faults.count("errors")
            return self._refused(f"the environment failed: {error}", "valid", 0.0)
        self._rewards.append(payload.reward)
        self._done = payload.done
        settings = self._settings
        exit_code = exit_code_of(payload, settings.exit_code)
        # An action that runs on the last turn (it has an exit code) ends the episode as capped, even if the environment
        # reports done. A submitted answer has no exit code: the environment's done takes precedence over the cap.
        capped = self._turns >= self._max_turns and (not payload.done or exit_code is not None)
        done = payload.done or capped
        pieces = self._observations.reply(payload, action)
        return StepResult(
            pieces if done else self._prompted(pieces),
            done,
            exit_code,
            valid_action=bool(action.strip())
            and not (settings.invalid and is_invalid(payload, settings.invalid, settings.max_observation_chars)),
            capped=capped,
            reward=payload.reward,
        )

    async def verify(self) -> float | None:
        """Send the final actions and return the episode's reward by the rules of `settings.reward`.

        The reward is None if a final action with `counts` fails.
        """
        rules, known = self._settings.reward, True
        final: list[float | None] = []
        for last in rules.final:
            if last.unless_done and self._done:
                continue
            try:
                payload = await self._sent(last.action)
            except (BadAction, EnvironmentFault) as error:
                reason = f"{FINAL_FAILED}: {error}" if last.counts else None
                self._faults.count("bad_actions" if isinstance(error, BadAction) else "errors", reason)
                known = known and not last.counts
                continue
            self._done = self._done or payload.done
            if last.counts:
                final.append(payload.reward)
        if not known:
            return None
        return episode_reward(final if rules.mode == "final" else [*self._rewards, *final], rules.mode, rules.none)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        self._release()

    @property
    def _open_client(self) -> Client:
        assert self._client is not None, "reset comes first"
        return self._client

    async def _begin(self, task: Task) -> Payload:
        deadline = time.monotonic() + self._settings.retry_s
        pause, refusals = _FIRST_PAUSE_S, 0
        while True:
            self._client, full = self._source.client(), None
            try:
                payload = await self._opened(task)
                if not payload.done:
                    return payload
                refusals, reason = refusals + 1, f"the reset is already done: {_summary(payload.metadata)}"
            except (BadAction, EnvironmentFault) as error:
                refusals, reason = refusals + 1, str(error)
            except Unavailable as error:
                reason, full = str(error), error if isinstance(error, AtCapacity) else None
            self._faults.count("unavailable")
            await self._client.close()
            self._release()
            if full is not None and self._count.learn():
                raise full
            if refusals >= self._settings.attempts:
                raise EnvironmentDown(
                    f"the environment failed to start task {task.task_id}: {reason}",
                    "check the reset arguments of environment.tasks with `echo-cli env check`",
                )
            ended = self._source.ended()
            if ended or time.monotonic() + pause > deadline:
                raise EnvironmentDown(
                    f"the environment is not available: {ended or reason}",
                    "restart it, or lower environment.sessions if it is full; --resume continues a run",
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _sent(self, action: JsonObject) -> Payload:
        try:
            return await self._open_client.step(action)
        except SessionLost:
            self._count.abandoned = True
            raise

    async def _opened(self, task: Task) -> Payload:
        """Reset a new session and count it as open."""
        self._count.opening += 1
        try:
            payload = await self._open_client.reset(task.reset_arguments)
        finally:
            self._count.opening -= 1
        self._count.open += 1
        self._counted = True
        return payload

    def _release(self) -> None:
        if self._counted:
            self._counted = False
            self._count.open -= 1

    def _refused(self, reason: str, parse: Parse, penalty: float) -> StepResult:
        """Return the result of an action that did not run."""
        line = " ".join(safe(reason).split())
        notice = TextPiece(Role.WARNING, f"[{line[:_NOTICE_CHARS]}]\n", "notice")
        capped = self._turns >= self._max_turns
        return StepResult(
            (notice,) if capped else self._prompted((notice,)),
            done=capped,
            valid_action=False,
            parse=parse,
            capped=capped,
            penalty=penalty,
        )

    def _prompted(self, pieces: tuple[TextPiece, ...]) -> tuple[TextPiece, ...]:
        """Return `pieces` followed by the prompt of the next action, on its own line."""
        prompt = self._settings.prompt
        return (*pieces, TextPiece(Role.CONTEXT, line_end(pieces) + prompt)) if prompt else pieces


@dataclass(frozen=True)
class EnvironmentFactory:
    """A factory of a run's environments: their source, and the settings that map them to text."""

    source: EnvironmentSource
    settings: EnvironmentConfig
    hosting: HostLimits
    description: Description
    grader: Grader | None = None

    def environment(self) -> TextEnvironment:
        return TextEnvironment(self.source, self.settings, self.hosting, self.grader)


def episode_reward(rewards: list[float | None], mode: str, none: str) -> float | None:
    """Return an episode's reward, given the rewards of its steps; None if it has none (null is not zero).

    Args:
        mode: `last` takes the last reward, `sum` and `final` add the rewards.
        none: `zero` counts a null as 0, `skip` omits it.
    """
    if none == "zero":
        known = [reward or 0.0 for reward in rewards] or [0.0]
    else:
        known = [reward for reward in rewards if reward is not None]
    if not known:
        return None
    return known[-1] if mode == "last" else sum(known)


def _is_words(error: Unparsable | BadAction) -> bool:
    """Return whether a text was refused because it contains no action at all."""
    return isinstance(error, Unparsable) and error.parse == "none"


def _summary(metadata: JsonObject | None) -> str:
    text = ", ".join(f"{key} {value}" for key, value in (metadata or {}).items()) or "no reason given"
    return text[:_NOTICE_CHARS]
