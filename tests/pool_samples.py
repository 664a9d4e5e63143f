"""Trajectories for pools written by tests: text of every kind, printed by an environment."""

from __future__ import annotations

from pathlib import Path

from canned_worlds import CannedWorlds

import echo_cli
from echo_cli.environments.protocol import StepResult, TextPiece
from echo_cli.environments.tasks import Task
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_scripts
from echo_cli.runs.pool_folder import Actor, Provenance
from echo_cli.trajectory import Role, Trajectory

TOKENIZER = Tokenizer.load(Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json")
PLAIN = PlainRenderer(TOKENIZER)
OTHER = Tokenizer.train(["grep budget budget budget\n", "aa aa aa"], 300)
PLAIN_OTHER = PlainRenderer(OTHER)
LIMITS = EpisodeLimits(action_tokens=50, output_tokens=100, episode_tokens=10_000)
TASK = Task("t", "heldout", "f", {})
AWKWARD = ["a\r\nb\r\n", "🚀👩\u200d👧\n", "日本\u2028ログ\n", "\x00\x1b[31m\ufffd<bos>", "no newline"]
ORIGIN = Provenance(
    actor=Actor(kind="expert"),
    split="heldout",
    out_of_distribution=False,
    world_seeds=(0,),
    rollouts_per_task=1,
    only_solved=False,
    temperature=None,
    seed=None,
    limits=LIMITS,
    environment={"toy_terminal": {"world_seeds": [0]}},
    echo_cli="0.1.0",
    git_commit=None,
)


class Printer:
    """An environment that prints each of its texts once, stderr after stdout, for any command."""

    grader = None

    def __init__(self, *texts: str) -> None:
        self._texts = list(texts)

    async def reset(self, task: Task) -> tuple[TextPiece, ...]:
        return (TextPiece(Role.CONTEXT, "task: é\n$ "),)

    async def step(self, action: str, problem: str | None = None) -> StepResult:
        text = self._texts.pop(0)
        pieces = (TextPiece(Role.ENV_OUTPUT, text, "stdout"), TextPiece(Role.ENV_OUTPUT, "err\n", "stderr"))
        return StepResult(
            (*pieces, TextPiece(Role.WARNING, "[exit 1]\n", "exit_status"), TextPiece(Role.CONTEXT, "$ ")), exit_code=1
        )

    async def verify(self) -> float:
        return 1.0

    async def close(self) -> None: ...


def printed(*texts: str, limits: EpisodeLimits = LIMITS) -> Trajectory:
    commands = [f"cat {number}" for number in range(len(texts))]
    return play_scripts(PLAIN, CannedWorlds(Printer(*texts)), [(TASK, commands)], limits, "expert")[0]
