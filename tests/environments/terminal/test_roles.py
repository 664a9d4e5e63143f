"""The roles of what a real terminal shows: outputs are env_output; prompt, escape sequences and notices are not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from terminal_sites import settings_of, skip_without_bubblewrap, write_task

from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config
from echo_cli.environments.protocol import StepResult, TaskSuite, TextPiece
from echo_cli.environments.worlds import open_worlds
from echo_cli.trajectory import VOLATILE, Role

C, E, W = Role.CONTEXT, Role.ENV_OUTPUT, Role.WARNING
TERMINAL = "terminal"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_task(tmp_path / "task", {"task.toml": "[metadata]\nmax_turns = 3\n", "environment/notes": "keep\n"})


@pytest.fixture(params=["bwrap", "process"])
def worlds(request: pytest.FixtureRequest, folder: Path) -> Iterator[TaskSuite]:
    if request.param == "bwrap":
        skip_without_bubblewrap()
    with open_worlds(_config(folder, request.param)) as worlds:
        yield worlds


def _config(folder: Path, runtime: str, *overrides: str) -> Config:
    environment = settings_of(folder, *overrides, runtime=runtime)
    return load_config("toy").model_copy(update={"environment": environment})


def play(worlds: TaskSuite, lines: Sequence[str]) -> tuple[tuple[TextPiece, ...], list[StepResult], float | None]:
    """Play one episode; return its opening, the answers to its lines, and its reward."""

    async def played() -> tuple[tuple[TextPiece, ...], list[StepResult], float | None]:
        environment = worlds.environment()
        opening = await environment.reset(worlds.tasks.train[0])
        answers = [await environment.step(line) for line in lines]
        reward = await environment.verify()
        await environment.close()
        return opening, answers, reward

    return asyncio.run(played())


def shown(pieces: Sequence[TextPiece]) -> list[tuple[Role, str, str | None]]:
    return [(piece.role, piece.text, piece.channel) for piece in pieces]


@pytest.mark.parametrize(
    ("line", "pieces"),
    [
        ("cat notes", [(E, "keep\n", TERMINAL), (C, "$ ", None)]),
        ("printf 'no end'", [(E, "no end", TERMINAL), (C, "\n$ ", None)]),
        ("true", [(C, "$ ", None)]),
        ("false", [(W, "[exit 1]\n", "exit_status"), (C, "$ ", None)]),
        (
            "printf '\\033[1;31mred\\033[0m \\033]0;title\\007x\\n'",
            [
                (W, "␛[1;31m", "boilerplate"),
                (E, "red", TERMINAL),
                (W, "␛[0m", "boilerplate"),
                (E, " ", TERMINAL),
                (W, "␛]0;title␇", "boilerplate"),
                (E, "x\n", TERMINAL),
                (C, "$ ", None),
            ],
        ),
        (
            "printf '50%%\\r100%%\\n'",
            [(E, "50%", TERMINAL), (W, "␍", "boilerplate"), (E, "100%\n", TERMINAL), (C, "$ ", None)],
        ),
        ("printf 'a\\r\\n'", [(E, "a\n", TERMINAL), (C, "$ ", None)]),
        ("echo '$ cat notes'", [(E, "$ cat notes\n", TERMINAL), (C, "$ ", None)]),
        (
            "echo 'open",
            [(E, "\n", TERMINAL), (W, "[the command is incomplete]\n", "notice"), (C, "$ ", None)],
        ),
        ("cat", [(C, "$ ", None)]),
    ],
)
def test_only_what_a_command_wrote_is_learned(
    worlds: TaskSuite, line: str, pieces: list[tuple[Role, str, str | None]]
) -> None:
    opening, (answer,), reward = play(worlds, [line])
    assert shown(opening) == [(C, "Write 42 to answer.txt.\n", None), (C, "$ ", None)]
    assert shown(answer.pieces) == pieces
    assert reward == 0.0


def test_an_episode_ends_by_exit_or_at_the_cap_of_the_task(worlds: TaskSuite) -> None:
    _, answers, reward = play(worlds, ["echo 42 > answer.txt", "exit"])
    assert [(answer.done, answer.capped) for answer in answers] == [(False, False), (True, False)]
    assert shown(answers[-1].pieces) == [] and reward == 1.0
    _, answers, reward = play(worlds, ["ls answer.txt", "nonesuch", "pwd"])
    assert [(answer.done, answer.capped) for answer in answers] == [(False, False), (False, False), (True, True)]
    assert [answer.valid_action for answer in answers] == [True, False, True]
    assert [answer.exit_code for answer in answers] == [2, 127, 0]


def test_the_folder_of_a_plain_process_is_volatile(folder: Path) -> None:
    with open_worlds(_config(folder, "process")) as worlds:
        _, (answer,), _ = play(worlds, ["pwd"])
    assert (answer.pieces[0].role, answer.pieces[0].channel) == (C, VOLATILE)
    assert [piece.text for piece in answer.pieces if piece.role is E] == ["/app\n"]


def test_rules_can_show_the_echo_as_a_warning(folder: Path) -> None:
    config = _config(folder, "process")
    rules = [*config.environment.observation]
    echo = rules[0].model_copy(update={"path": "echo", "role": "warning", "on": "step", "channel": "echo"})
    environment = config.environment.model_copy(update={"observation": (echo, *rules)})
    with open_worlds(config.model_copy(update={"environment": environment})) as worlds:
        _, (answer,), _ = play(worlds, ["cat notes"])
    assert shown(answer.pieces)[:2] == [(W, "cat notes\n", "echo"), (E, "keep\n", TERMINAL)]


def test_a_bomb_ends_an_episode_with_a_warning(folder: Path) -> None:
    skip_without_bubblewrap()
    with open_worlds(_config(folder, "bwrap", "environment.terminal.limits.disk_mb=4")) as worlds:
        line = "for i in $(seq 9); do head -c 1000000 /dev/zero > $i; done; sleep 60"
        _, (answer,), reward = play(worlds, [line])
    assert answer.done and reward == 0.0
    assert [piece.role for piece in answer.pieces] == [W]
