"""Interactive episodes in which the environment and the policy both answer each command.

The environment answers first. The policy does not see this answer and writes its own after the transcript up to and
including the command. The transcript has the environment's replies; in a closed loop it has the policy's replies, and
the environment answers the same commands for comparison only.

A generated reply that does not end by itself (see replies.py) is truncated: at a cap if the policy learns the ends of
outputs (`objective.end_of_output`), which is then a safety, otherwise at the length of the real reply.
"""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from echo_cli.concurrency import EventLoop
from echo_cli.config.episodes.chosen import alone_in
from echo_cli.environments.faults import SessionLost
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.tasks import Task
from echo_cli.environments.worlds import list_tasks, text_settings
from echo_cli.errors import EchoError
from echo_cli.evaluation.dream.generation import dream
from echo_cli.evaluation.dream.replies import ReplyForm, reply_form
from echo_cli.evaluation.dream.scoring import edit_similarity
from echo_cli.evaluation.loaded_run import load_run
from echo_cli.models.backend import Policy
from echo_cli.rollouts.episode import Episode
from echo_cli.rollouts.limits import EpisodeLimits, limits_for
from echo_cli.runs.origin import NO_CONSENT, Consent
from echo_cli.seeds import derive_seed
from echo_cli.text import counted, escape_unprintable


@dataclass(frozen=True)
class Opening:
    """The observation at the start of an episode."""

    text: str


@dataclass(frozen=True)
class Answer:
    """A command with the policy's predicted reply and the environment's real reply."""

    command: str
    predicted: str
    actual: str
    ended: bool
    """Whether the predicted reply ended by itself."""
    exact_match: bool
    edit_similarity: float
    predicted_exit_code: int | None
    exit_code: int | None


@dataclass(frozen=True)
class Notice:
    """A line about the episode: its end, a lost session, or a command that does not fit."""

    text: str


Event = Opening | Answer | Notice


@dataclass(frozen=True)
class DreamSettings:
    """Settings for predicting replies."""

    max_tokens: int | None = None
    """Cap of a predicted reply, tokens; None for the output cap, or for the length of the real reply and its end if the
    policy does not learn where outputs end."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    seed: int = 0
    """Sampling seed."""
    closed_loop: bool = False
    """Whether the transcript has the policy's earlier replies instead of the real ones."""


class DreamPlay:
    """Repeated episodes of one task."""

    def __init__(
        self,
        policy: Policy,
        worlds: TaskSuite,
        task: Task,
        limits: EpisodeLimits,
        form: ReplyForm,
        loop: EventLoop,
        settings: DreamSettings,
    ) -> None:
        self._policy = policy
        self._worlds = worlds
        self._task = task
        self._limits = limits
        self._form = form
        self._loop = loop
        self._settings = settings
        self._asked = 0
        self._transcript: list[int] = []
        self._episode: Episode | None = None

    def converse(self, commands: Iterator[str]) -> Generator[Event, None, None]:
        """Play `commands` and yield the events; after the end of an episode, the next command begins a new one.

        Raises:
            EchoError: the environment is not available, or loses the session in every attempt to begin (exit code 1).
        """
        try:
            yield self._begin()
            for command in commands:
                if self._episode is None:
                    yield self._begin()
                yield from self._ask(command)
        finally:
            self._close()

    def _begin(self) -> Opening:
        reason = ""
        for _ in range(self._worlds.hosting.attempts):
            group_id = self._task.task_id
            environment = self._worlds.environment()
            tools = self._worlds.description.tools
            episode = Episode(self._policy.renderer, environment, self._task, group_id, self._limits, tools)
            try:
                following = self._loop.run(episode.reset())
            except SessionLost as error:
                reason = str(error)
                continue
            self._episode, self._transcript = episode, following.token_ids
            return Opening(self._form.text(self._form.segments(episode.segments)))
        times = counted(self._worlds.hosting.attempts, "time")
        message = f"the environment lost the session of task {group_id} {times}: {reason}"
        raise EchoError(message, "see the server's log", exit_code=1)

    def _ask(self, command: str) -> Iterator[Event]:
        episode, form, renderer, settings = self._episode, self._form, self._policy.renderer, self._settings
        assert episode is not None
        action = renderer.script(command)
        if not episode.has_room(action):
            limits = self._limits
            most = max(limits.action_tokens, limits.episode_tokens - episode.length)
            yield Notice(f"the command has {counted(len(action), 'token')}, the limit here is {most}")
            return
        frame = renderer.reply(action)
        context = [*self._transcript, *action, *(token for part in frame.before for token in part.token_ids)]
        if len(context) >= self._policy.model.max_length:  # only the policy's own replies can be this long
            self._close()
            yield Notice("the transcript fills the model's context; the next command begins the episode again")
            return
        before = len(episode.segments) + 1
        try:
            following = self._loop.run(episode.act(action, None))
        except SessionLost as error:
            self._episode = None
            yield Notice(f"the environment lost the session: {error}; the next command begins the episode again")
            return
        said = form.segments(episode.segments[before:])
        size = sum(len(segment.token_ids) for segment in said)
        measured = settings.max_tokens is None and not form.learned
        most = settings.max_tokens or (size if measured else self._limits.output_tokens) + form.longest_end
        seed = derive_seed(settings.seed, "dream/reply", self._asked)
        self._asked += 1
        (reply,) = dream(self._policy, form, [context], [most], temperature=settings.temperature, seed=seed)
        ended = reply.ended
        if not ended and measured:
            reply = form.cut(reply, max(size, 1))  # for an empty real reply, show the first token
        actual = form.text(said)
        turn = episode.turns[-1]
        bare, status = form.exit_status(reply.text, ended=ended)
        true, _ = form.exit_status(actual)
        yield Answer(
            command,
            reply.text,
            actual,
            ended,
            form.masked(bare) == form.masked(true),
            edit_similarity(form.masked(bare), form.masked(true)),
            status,
            turn.exit_code,
        )
        if settings.closed_loop:
            after = [token for part in frame.after for token in part.token_ids]
            encode = renderer.tokenizer.encode
            self._transcript = [*context, *encode(reply.text), *encode(form.prompt), *after]
        else:
            transcript = [*self._transcript, *action]
            del transcript[len(transcript) - following.rewind :]
            self._transcript = [*transcript, *following.token_ids]
        if episode.stop_reason is not None:
            yield self._finished(episode)

    def _close(self) -> None:
        episode, self._episode = self._episode, None
        if episode is not None:
            self._loop.run(episode.environment.close())

    def _finished(self, episode: Episode) -> Notice:
        """Ask for the reward of an episode that has ended, and close it."""
        self._episode = None
        try:
            finished = self._loop.run(episode.finish("trace", verify=True, world_model_only=True))
        except SessionLost as error:
            return Notice(f"the episode is over: {episode.stop_reason}; the environment lost its session: {error}")
        played = self._loop.run(episode.grade(finished))
        reward = "no reward" if played.reward is None else f"reward {played.reward:g}"
        return Notice(f"the episode is over: {episode.stop_reason}, {reward}; the next command begins it again")


@dataclass(frozen=True)
class OpenDream:
    """A run and task opened for a dream session."""

    run: str
    step: int
    task_id: str
    prompt: str
    play: DreamPlay

    @property
    def title(self) -> str:
        return f"{escape_unprintable(self.run)}, step {self.step}, task {escape_unprintable(self.task_id)}"


def tasks_of(path: Path, environment: str | None = None) -> list[Task]:
    """Return the tasks of the run at `path`, held-out tasks first and out-of-distribution tasks last.

    Raises:
        EchoError: the run does not exist, or its tasks cannot be read.
    """
    splits, ood = list_tasks(alone_in(load_run(path).config, environment))
    return [*splits.heldout, *splits.validation, *splits.train, *ood.heldout]


@contextmanager
def open_dream(
    path: Path,
    *,
    checkpoint: str | int,
    task_id: str | None,
    settings: DreamSettings,
    overrides: Sequence[str] = (),
    consent: Consent = NO_CONSENT,
    environment: str | None = None,
) -> Iterator[OpenDream]:
    """Open the run at `path` with its environment, for a `with` block.

    Args:
        checkpoint: "best", "latest" or a step.
        task_id: the task to play; None for the first held-out task.
        overrides: overrides of the run's config, as in `load_run`.
        consent: as in `LoadedRun`.
        environment: name of the environment, if the run has several.

    Raises:
        EchoError: the run, checkpoint or task does not exist, or the environment may not be used or is not
            available (exit code 1).
    """
    with load_run(path, overrides=overrides, consent=consent, environment=environment) as run:
        alone_in(run.config, None)
        folder, step = run.checkpoint(checkpoint)
        worlds, task = _task(run.task_suite, task_id)
        policy = run.policy(folder)
        text, learned = text_settings(run.config.environment), run.config.objective.end_of_output
        form = reply_form(policy.renderer, text, learned=learned)
        with EventLoop() as loop:
            play = DreamPlay(policy, worlds, task, limits_for(run.config, policy, worlds), form, loop, settings)
            yield OpenDream(run.name, step, task.task_id, form.prompt or "> ", play)


def _tasks(worlds: TaskSuite) -> list[tuple[TaskSuite, Task]]:
    elsewhere = worlds.out_of_distribution()
    splits = worlds.tasks
    here = [(worlds, task) for task in (*splits.heldout, *splits.validation, *splits.train)]
    return [*here, *((elsewhere, task) for task in elsewhere.tasks.heldout)]


def _task(worlds: TaskSuite, task_id: str | None) -> tuple[TaskSuite, Task]:
    found = _tasks(worlds)
    if not found:
        raise EchoError("the run has no tasks", "use --score N, which needs no tasks")
    if task_id is None:
        return found[0]
    chosen = next((entry for entry in found if entry[1].task_id == task_id), None)
    if chosen is None:
        nearest = difflib.get_close_matches(task_id, [task.task_id for _, task in found], n=1, cutoff=0.0)[0]
        raise EchoError(
            f"no task '{escape_unprintable(task_id)}'",
            f"did you mean {escape_unprintable(nearest)}? --list-tasks lists all tasks",
        )
    return chosen
