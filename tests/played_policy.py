"""Synthetic policies, played in the real toy world like a real policy: token by token through `play_policy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from echo_cli.environments.tasks import Task
from echo_cli.environments.toy import ToyWorlds
from echo_cli.models.architecture import model_folder
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tokenizer import TOKENIZER_FILE, Tokenizer
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_policy
from echo_cli.trajectory import Trajectory

LIMITS = EpisodeLimits(action_tokens=16, output_tokens=256, episode_tokens=512)
TASKS, GROUP = 8, 4

Act = Callable[[str], str]
"""What a policy writes after the text that came last."""


class _Sampler:
    """A sampler without a model: each row writes what its `act` says."""

    def __init__(self, acts: Sequence[Act], tokenizer: Tokenizer) -> None:
        self._acts, self._tokenizer = list(acts), tokenizer
        self._last = [""] * len(acts)

    def append(self, token_lists: Sequence[Sequence[int]]) -> None:
        self._last = [self._tokenizer.decode(list(token_ids)) for token_ids in token_lists]

    def keep(self, rows: Sequence[int]) -> None:
        self._acts = [self._acts[row] for row in rows]

    def add(self, rollouts: Sequence[int]) -> None:
        raise AssertionError("all episodes are seated from the start")

    def sample(self, max_tokens: int, rows: Sequence[int] | None = None) -> list[tuple[list[int], list[float]]]:
        chosen = range(len(self._acts)) if rows is None else rows
        texts = [self._acts[row](self._last[row]) for row in chosen]
        actions = [self._tokenizer.encode(text)[:max_tokens] for text in texts]
        return [(token_ids, [-0.1] * len(token_ids)) for token_ids in actions]


def play(habit: str) -> list[Trajectory]:
    """Play a step's rollouts of a constant, empty, endless, parroting (the world's replies) or expert policy."""
    worlds, tokenizer = ToyWorlds([0], [], max_turns=5), Tokenizer.load(model_folder("tiny-base") / TOKENIZER_FILE)
    tasks = [task for task in worlds.tasks.train[:TASKS] for _ in range(GROUP)]

    def act_of(task: Task) -> Act:
        script = iter(worlds.expert(task))
        return {
            "expert": lambda last: next(script) + "\n",
            "constant": lambda last: "ls /\n",
            "empty": lambda last: "\n",
            "endless": lambda last: "cat " * 99,
            "parrot": lambda last: "ls /\n" if "task: " in last else last.split("\n", 1)[0] + "\n",
        }[habit]

    wanted = [(task, task.task_id) for task in tasks]
    return play_policy(
        lambda _: _Sampler([act_of(task) for task in tasks], tokenizer),
        PlainRenderer(tokenizer),
        worlds,
        wanted,
        LIMITS,
        verify=True,
    )
