"""The toy terminal, as an environment of OpenEnv's shape and behind echo-cli's environment protocol."""

from __future__ import annotations

import asyncio
import inspect
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import toy_terminal_env
from echo_cli.environments.protocol import Environment, StepResult, TextPiece
from echo_cli.environments.tasks import Task
from echo_cli.environments.toy import ToyWorlds
from echo_cli.trajectory import Role
from toy_terminal_env.environment import ToyTerminalEnvironment, world_and_tasks
from toy_terminal_env.models import ToyTerminalAction, ToyTerminalObservation, ToyTerminalState
from toy_terminal_env.tasks import FAMILIES_OF

WORLD, TASKS = world_and_tasks(0)
TASK = next(task for task in TASKS.values() if task.family == "key" and task.split == "train")


def started(max_turns: int = 3) -> ToyTerminalEnvironment:
    environment = ToyTerminalEnvironment(max_turns)
    environment.reset(0, task_id=TASK.task_id)
    return environment


def step(environment: ToyTerminalEnvironment, command: str) -> ToyTerminalObservation:
    return environment.step(ToyTerminalAction(command))


# --- Episodes --------------------------------------------------------------------------------------------------------


def test_an_episode_that_ends_with_the_answer() -> None:
    environment = ToyTerminalEnvironment(max_turns=3)
    assert environment.reset(0, task_id=TASK.task_id) == ToyTerminalObservation(instruction=TASK.question)
    printed = step(environment, TASK.solution[0])
    assert (printed.exit_code, printed.stderr, printed.done, printed.reward) == (0, "", False, None)
    assert TASK.answer in printed.stdout
    assert step(environment, f"answer: {TASK.answer}") == ToyTerminalObservation(done=True, reward=1.0)


@pytest.mark.parametrize(
    ("line", "reward"),
    [
        ("answer:{}", 1.0),
        ("  answer:   {}  ", 1.0),
        ("answer: {}\r", 1.0),
        ("answer: x{}", 0.0),
        ("answer: {} {}", 0.0),
        ("answer:", 0.0),
        ("answer: ", 0.0),
    ],
)
def test_an_answer_ends_the_episode_with_its_reward(line: str, reward: float) -> None:
    reply = step(started(), line.replace("{}", TASK.answer))
    assert reply == ToyTerminalObservation(done=True, reward=reward)


@pytest.mark.parametrize("line", ["Answer: {}", "answer {}", "echo answer: {}", "{}"])
def test_what_is_not_an_answer_is_a_command(line: str) -> None:
    reply = step(started(), line.replace("{}", TASK.answer))
    assert (reply.exit_code, reply.done, reply.reward) == (127, False, None)


def test_the_last_turn_still_prints_and_ends_without_reward() -> None:
    environment = started(max_turns=2)
    assert not step(environment, "ls /").done
    last = step(environment, "ls /etc")
    assert (last.done, last.reward, last.exit_code) == (True, 0.0, 0)
    assert last.stdout


def test_an_answer_in_the_last_turn_counts() -> None:
    environment = started(max_turns=1)
    assert step(environment, f"answer: {TASK.answer}").reward == 1.0


def test_empty_lines_cost_a_turn() -> None:
    environment = started(max_turns=2)
    assert step(environment, "") == ToyTerminalObservation(exit_code=0)
    assert step(environment, "   ").done


def test_the_reward_is_none_until_the_end() -> None:
    environment = started(max_turns=4)
    assert [step(environment, "ls /").reward for _ in range(4)] == [None, None, None, 0.0]


def test_a_step_before_reset_or_after_the_end_is_an_error() -> None:
    environment = ToyTerminalEnvironment()
    with pytest.raises(RuntimeError, match="reset"):
        step(environment, "ls")
    with pytest.raises(RuntimeError, match="reset"):
        _ = environment.state
    for ending in ("answer: no", "ls"):
        environment = started(max_turns=1)
        step(environment, ending)
        with pytest.raises(RuntimeError, match="over"):
            step(environment, "ls")


def test_state_follows_the_episode() -> None:
    environment = ToyTerminalEnvironment()
    environment.reset(0, "episode-7", task_id=TASK.task_id)
    assert environment.state == ToyTerminalState("episode-7", 0, 0, TASK.task_id)
    step(environment, "ls")
    assert environment.state.step_count == 1
    environment.reset(1)
    assert (environment.state.world_seed, environment.state.step_count) == (1, 0)


def test_reset_starts_over_after_the_end() -> None:
    environment = started(max_turns=1)
    step(environment, "ls")
    environment.reset(0, task_id=TASK.task_id)
    assert step(environment, f"answer: {TASK.answer}").reward == 1.0


def test_reset_chooses_the_first_training_task() -> None:
    environment = ToyTerminalEnvironment()
    environment.reset(0)
    assert TASKS[environment.state.task_id].split == "train"


def test_a_refused_reset_changes_nothing() -> None:
    environment = started()
    before = step(environment, "ls /etc").stdout
    with pytest.raises(ValueError, match="no task"):
        environment.reset(1, task_id=TASK.task_id)
    assert environment.state == ToyTerminalState(TASK.task_id, 1, 0, TASK.task_id)
    assert step(environment, "ls /etc").stdout == before


@pytest.mark.parametrize("max_turns", [0, -1])
def test_an_episode_has_at_least_one_turn(max_turns: int) -> None:
    with pytest.raises(ValueError, match="max_turns"):
        ToyTerminalEnvironment(max_turns)
    environment = started()
    with pytest.raises(ValueError, match="max_turns"):
        environment.reset(1, max_turns=max_turns)
    assert environment.state.world_seed == 0


def test_reset_gives_one_episode_its_own_turns() -> None:
    environment = ToyTerminalEnvironment(max_turns=2)
    environment.reset(0, max_turns=1)
    assert step(environment, "ls /").done
    environment.reset(0, max_turns=3)
    assert [step(environment, "ls /").done for _ in range(3)] == [False, False, True]
    environment.reset(0)
    assert [step(environment, "ls /").done for _ in range(2)] == [False, True]


# --- OpenEnv's shape -------------------------------------------------------------------------------------------------


def test_the_methods_are_openenvs() -> None:
    reset = list(inspect.signature(ToyTerminalEnvironment.reset).parameters)
    assert reset[:3] == ["self", "seed", "episode_id"]
    assert list(inspect.signature(ToyTerminalEnvironment.step).parameters) == ["self", "action"]
    assert isinstance(ToyTerminalEnvironment.state, property)
    observation = ToyTerminalObservation()
    assert (observation.done, observation.reward) == (False, None)
    assert {"episode_id", "step_count"} <= set(ToyTerminalState.__dataclass_fields__)


def test_the_manifest_follows_openenvs_convention() -> None:
    folder = Path(toy_terminal_env.__file__).parent
    manifest = yaml.safe_load((folder / "openenv.yaml").read_text(encoding="utf-8"))
    assert set(manifest) == {"spec_version", "name", "version", "type", "runtime", "app", "port"}
    assert (manifest["spec_version"], manifest["name"]) == (1, folder.name)
    assert manifest["version"] == toy_terminal_env.__version__
    assert isinstance(manifest["port"], int)


def test_the_logic_imports_the_standard_library_only() -> None:
    code = (
        "import sys, toy_terminal_env.environment, toy_terminal_env.scripted\n"
        "names = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(name for name in names if not name.startswith('_')))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=Path(toy_terminal_env.__file__).parents[1],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "['toy_terminal_env']"


# --- Behind the protocol of echo-cli ---------------------------------------------------------------------------------


PROMPT = TextPiece(Role.CONTEXT, "$ ")


def task_of() -> Task:
    return Task(TASK.task_id, "train", TASK.family, {"seed": 0, "task_id": TASK.task_id})


class Terminal:
    """Play an episode of three turns, one call after the other."""

    def __init__(self) -> None:
        self._inner: Environment = ToyWorlds((0,), (), max_turns=3).environment()
        self.opening = asyncio.run(self._inner.reset(task_of()))

    def step(self, action: str) -> StepResult:
        return asyncio.run(self._inner.step(action))

    def verify(self) -> float | None:
        return asyncio.run(self._inner.verify())


def test_roles_are_decided_where_the_text_is_made() -> None:
    terminal = Terminal()
    assert terminal.opening == (TextPiece(Role.CONTEXT, f"task: {TASK.question}\n"), PROMPT)
    good = terminal.step("ls /")
    assert good.pieces == (TextPiece(Role.ENV_OUTPUT, "etc\nsrv\nvar\n", "stdout"), PROMPT)
    assert (good.done, good.exit_code, good.valid_action) == (False, 0, True)
    both = terminal.step("ls / /none")
    assert [(piece.role, piece.channel) for piece in both.pieces] == [
        (Role.ENV_OUTPUT, "stdout"),
        (Role.ENV_OUTPUT, "stderr"),
        (Role.WARNING, "exit_status"),
        (Role.CONTEXT, None),
    ]
    assert both.pieces[2].text == "[exit 2]\n"
    last = terminal.step("cat /none")
    assert last.done and last.capped and [piece.role for piece in last.pieces] == [Role.ENV_OUTPUT, Role.WARNING]


def test_a_command_without_output_adds_no_env_output() -> None:
    terminal = Terminal()
    assert terminal.step("").pieces == (PROMPT,)
    silent = terminal.step("grep nothing-at-all /srv/registry.csv")
    assert [piece.role for piece in silent.pieces] == [Role.WARNING, Role.CONTEXT]
    assert silent.valid_action


def test_an_answer_adds_nothing_and_ends() -> None:
    terminal = Terminal()
    reply = terminal.step(f"answer: {TASK.answer}")
    assert (reply.pieces, reply.done, reply.exit_code, reply.valid_action) == ((), True, None, True)
    assert not reply.capped
    assert terminal.verify() == 1.0


def test_an_unfinished_episode_is_worth_nothing() -> None:
    terminal = Terminal()
    assert terminal.verify() == 0.0
    terminal.step("ls")
    assert terminal.verify() == 0.0


def test_an_answer_on_the_last_turn_is_an_answer() -> None:
    terminal = Terminal()
    for command in ("ls", "ls"):
        assert not terminal.step(command).done
    reply = terminal.step(f"answer: {TASK.answer}")
    assert (reply.done, reply.capped, terminal.verify()) == (True, False, 1.0)


@pytest.mark.parametrize(
    ("action", "valid"),
    [
        *((action, True) for action in ("ls /", "ls /none", "cat /none", "grep zzz /srv/registry.csv", "head -n")),
        *((action, False) for action in ("sed x", "ls | wc", "cat '", "", "  ")),
    ],
)
def test_a_valid_action_is_one_the_shell_could_run(action: str, valid: bool) -> None:
    terminal = Terminal()
    assert terminal.step(action).valid_action is valid


def test_out_of_distribution_tasks_are_from_other_worlds() -> None:
    worlds = ToyWorlds((0,), (101, 102), 5)
    other = worlds.out_of_distribution()
    seeds = {task.reset_arguments["seed"] for task in (*other.tasks.train, *other.tasks.heldout)}
    assert seeds == {101, 102}
    assert {task.task_id for task in worlds.tasks.heldout}.isdisjoint(task.task_id for task in other.tasks.heldout)


def test_families_choose_the_tasks_of_every_split_here_and_out_of_distribution() -> None:
    chosen = ToyWorlds((0,), (101,), 3, families=("key", "cell"))
    for worlds in (chosen, chosen.out_of_distribution()):
        for tasks in (worlds.tasks.train, worlds.tasks.validation, worlds.tasks.heldout):
            assert {task.family for task in tasks} == {"key", "cell"}
    everything, machine = ToyWorlds((0,), (), 3), ToyWorlds((0,), (), 3, kind="machine")
    assert {task.family for task in everything.tasks.train} == set(FAMILIES_OF["files"])
    assert {task.family for task in machine.tasks.heldout} == set(FAMILIES_OF["machine"])
    assert [t for t in everything.tasks.heldout if t.family in ("key", "cell")] == list(chosen.tasks.heldout)


def test_explorers_type_the_same_whatever_the_families() -> None:
    few, all_of_them = ToyWorlds((0,), (), 3, families=("key",)), ToyWorlds((0,), (), 3)
    task = few.tasks.train[0]
    assert few.explorer(task, 20, random.Random(1)) == all_of_them.explorer(task, 20, random.Random(1))
