"""`env check`: its report on an environment, and its warnings, one flaw at a time."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from tiny_run import error_of

from echo_cli.cli.display.environment import print_check, schema_lines
from echo_cli.cli.main import main
from echo_cli.config.environment import ActionConfig, EnvironmentConfig, ObservationRule
from echo_cli.config.episodes.tasks import TasksConfig
from echo_cli.environments.faults import SessionLost
from echo_cli.environments.protocol import Description, Environment, Grader, HostLimits, StepResult, TextPiece
from echo_cli.environments.tasks import Task, TaskSplits
from echo_cli.errors import EchoError
from echo_cli.models.architecture import model_folder
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tokenizer import TOKENIZER_FILE, Tokenizer
from echo_cli.rollouts.environment_check import CheckReport, check_environment
from echo_cli.rollouts.environment_findings import hides_too_much, volatile_patterns
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.random_actions import random_line
from echo_cli.trajectory import Role

LIMITS = EpisodeLimits(action_tokens=16, output_tokens=64, episode_tokens=512)
SETTINGS = EnvironmentConfig(
    url="http://127.0.0.1:1",
    tasks=TasksConfig(seeds=1),
    observation=(ObservationRule(path="stdout"),),
    explorer=("ls", "cat notes"),
    max_turns=4,
    prompt="$ ",
)
PROMPT = TextPiece(Role.CONTEXT, "$ ")
STRING = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
Answer = Callable[[Task, str, int], StepResult]


@dataclass
class _Fake:
    """An environment whose replies are `answer` of (task, action, number of the episode)."""

    answer: Answer
    opening: str
    reward: float | None
    number: int
    solved: set[str]
    """Tasks that earlier episodes have solved, if state leaks."""
    acted: bool = False
    grader: Grader | None = None

    async def reset(self, task: Task) -> tuple[TextPiece, ...]:
        self.task = task
        text = self.opening.format(seed=task.reset_arguments["seed"], number=self.number)
        return (TextPiece(Role.CONTEXT, text), PROMPT) if text else (PROMPT,)

    async def step(self, action: str, problem: str | None = None) -> StepResult:
        self.acted = True
        return self.answer(self.task, action, self.number)

    async def verify(self) -> float | None:
        if self.acted:
            self.solved.add(self.task.task_id)
            return self.reward
        return self.reward if self.task.task_id in self.solved else 0.0

    async def close(self) -> None:
        pass


def _answer(task: Task, action: str, number: int) -> StepResult:
    if action == "answer":
        return StepResult((), done=True, reward=1.0)
    return StepResult((TextPiece(Role.ENV_OUTPUT, f"{action} of {task.task_id}\n", "stdout"), PROMPT), exit_code=0)


@dataclass
class _FakeWorlds:
    """A faultless environment, in which a test introduces one flaw."""

    answer: Answer = _answer
    opening: str = "task {seed}\n"
    reward: float | None = 1.0
    actions: Sequence[str] | None = ("ls", "answer")
    tasks: TaskSplits = field(
        default_factory=lambda: TaskSplits(
            [Task("a", "train", "task", {"seed": 1}), Task("b", "train", "task", {"seed": 2})],
            [Task("c", "validation", "task", {"seed": 3}), Task("e", "validation", "task", {"seed": 5})],
            [Task("d", "heldout", "task", {"seed": 4}), Task("f", "heldout", "task", {"seed": 6})],
        )
    )
    hosting: HostLimits = field(default_factory=lambda: HostLimits(sessions=4))
    description: Description = field(default_factory=lambda: Description("fake", STRING, {}, 4))
    replayable: bool = False
    episodes: int = 0
    leaks: bool = False
    solved: set[str] = field(default_factory=set)

    def environment(self) -> Environment:
        self.episodes += 1
        solved = self.solved if self.leaks else set()
        return _Fake(self.answer, self.opening, self.reward, self.episodes, solved)

    def expert(self, task: Task) -> list[str] | None:
        return None if self.actions is None else list(self.actions)

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        return rng.choices(SETTINGS.explorer, k=count)

    def reserved(self, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
        return []

    def out_of_distribution(self) -> _FakeWorlds:
        raise AssertionError("no check plays there")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(model_folder("tiny-base") / TOKENIZER_FILE)


def _warnings(report: CheckReport) -> list[str]:
    return [finding.name for finding in report.findings]


def _settings(**changes: Any) -> EnvironmentConfig:
    return SETTINGS.model_copy(update=changes)


def test_a_good_environment_has_no_warning(tokenizer: Tokenizer) -> None:
    report = check_environment(_FakeWorlds(), PlainRenderer(tokenizer), LIMITS, SETTINGS)
    assert _warnings(report) == []
    assert report.script == "actions"
    assert report.tasks == {"train": 2, "validation": 2, "heldout": 2}
    assert (report.step_rewards, report.trajectory.reward) == ((None, 1.0), 1.0)
    assert (report.trajectory.task_id, report.trajectory.stop_reason) == ("a", "answered")
    assert report.sessions == 4


def test_tokens_are_counted_by_role_and_channel(tokenizer: Tokenizer) -> None:
    report = check_environment(_FakeWorlds(), PlainRenderer(tokenizer), LIMITS, SETTINGS)
    assert report.tokens == {
        (Role.CONTEXT, None): 1 + sum(len(tokenizer.encode(text)) for text in ("task 1\n", "$ ", "$ ")),  # 1: BOS
        (Role.ACTION, None): sum(len(tokenizer.encode(text)) for text in ("ls\n", "answer\n")),
        (Role.ENV_OUTPUT, "stdout"): len(tokenizer.encode("ls of a\n")),
    }


def test_without_a_solution_explorer_lines_are_played_and_else_random_ones(tokenizer: Tokenizer) -> None:
    explored = check_environment(_FakeWorlds(actions=None), PlainRenderer(tokenizer), LIMITS, SETTINGS)
    assert explored.script == "explorer"
    assert {turn.command for turn in explored.trajectory.turns} <= set(SETTINGS.explorer)
    assert len(explored.trajectory.turns) == SETTINGS.max_turns
    settings = _settings(explorer=(), action=ActionConfig(template={"command": "{text}"}))
    drawn = [check_environment(_FakeWorlds(actions=None), PlainRenderer(tokenizer), LIMITS, settings) for _ in range(2)]
    assert drawn[0].script == "random"
    assert drawn[0].trajectory == drawn[1].trajectory


def _pieces(*pieces: TextPiece, **reply: Any) -> Answer:
    return lambda task, action, number: StepResult((*pieces, PROMPT), **reply)


def _only_on(task_id: str) -> Answer:
    """Answer as the faultless environment on one task, with nothing on the others."""
    return lambda task, action, number: (
        _answer(task, action, number) if task.task_id == task_id else StepResult((PROMPT,), exit_code=0)
    )


def _warning(text: str) -> TextPiece:
    return TextPiece(Role.WARNING, text, "notice")


@pytest.mark.parametrize(
    ("changes", "settings", "names"),
    [
        ({"answer": _pieces()}, {"observation": ()}, "no_text never_done"),
        ({"answer": _pieces()}, {}, "no_env_output never_done"),
        ({"answer": _pieces(_warning("note\n"))}, {}, "no_env_output never_done"),
        ({"opening": ""}, {}, "no_opening"),
        ({"answer": _pieces(TextPiece(Role.ENV_OUTPUT, "1 2 3 4 5 " * 40))}, {}, "cut never_done"),
        ({"answer": _pieces(TextPiece(Role.ENV_OUTPUT, "long", cut=True))}, {}, "cut never_done"),
        (
            {"answer": _pieces(_warning("[bad]\n"), parse="malformed", valid_action=False)},
            {},
            "no_env_output refused never_done",
        ),
        ({"answer": _pieces(TextPiece(Role.ENV_OUTPUT, "sh: bad\n"), valid_action=False)}, {}, "refused never_done"),
        ({"actions": ("1" * 40, "answer")}, {}, "long_action"),
        ({"actions": ("ls",) * 200}, {}, "length_cap"),
        ({"actions": ("ls",)}, {}, "never_done"),
        ({"reward": None}, {}, "no_reward"),
        ({"reward": 0.0}, {}, "unsolved"),
        ({"opening": "task {seed} at {number}\n"}, {}, "other_opening"),
        ({"hosting": HostLimits(sessions=1)}, {}, "one_session"),
        ({"answer": _pieces(TextPiece(Role.ENV_OUTPUT, "same\n")), "opening": "task\n"}, {}, "never_done same_tasks"),
        (
            {"tasks": TaskSplits([Task("a", "train", "task", {"seed": 1})], [], [])},
            {},
            "no_validation no_heldout small_split",
        ),
        ({"leaks": True}, {}, "leak"),
        ({"actions": None}, {"explorer": ()}, "never_done no_script"),
        ({"answer": _only_on("a")}, {}, "empty_pool"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_flaw_has_its_warning_and_no_other(
    changes: Mapping[str, Any], settings: Mapping[str, Any], names: str, tokenizer: Tokenizer
) -> None:
    report = check_environment(_FakeWorlds(**changes), PlainRenderer(tokenizer), LIMITS, _settings(**settings))
    assert _warnings(report) == names.split()
    assert all(finding.message and finding.tip and "\n" not in finding.message for finding in report.findings)


def test_other_text_the_second_time_is_shown_with_a_pattern_that_masks_it(tokenizer: Tokenizer) -> None:
    def answer(task: Task, action: str, number: int) -> StepResult:
        return StepResult((TextPiece(Role.ENV_OUTPUT, f"{task.task_id} ok\npid {100 + number} ok\n"), PROMPT))

    report = check_environment(_FakeWorlds(answer=answer), PlainRenderer(tokenizer), LIMITS, SETTINGS)
    (finding,) = (finding for finding in report.findings if finding.name == "nondeterministic")
    assert "at action 1: 'pid 101 ok', then 'pid 102 ok'" in finding.message
    assert r"environment.volatile: ['(?<=pid\ )\d+']" in finding.tip


def test_what_is_volatile_already_is_no_difference(tokenizer: Tokenizer) -> None:
    def answer(task: Task, action: str, number: int) -> StepResult:
        known, unknown = (
            TextPiece(Role.ENV_OUTPUT, f"{task.task_id} "),
            TextPiece(Role.CONTEXT, f"{number}", "volatile"),
        )
        return StepResult((known, unknown, PROMPT))

    assert "nondeterministic" not in _warnings(
        check_environment(_FakeWorlds(answer=answer), PlainRenderer(tokenizer), LIMITS, SETTINGS)
    )


def test_an_episode_that_is_shorter_the_second_time_is_a_difference(tokenizer: Tokenizer) -> None:
    def answer(task: Task, action: str, number: int) -> StepResult:
        return StepResult((TextPiece(Role.ENV_OUTPUT, "on\n"), PROMPT), done=number == 2, reward=1.0)

    report = check_environment(_FakeWorlds(answer=answer), PlainRenderer(tokenizer), LIMITS, SETTINGS)
    (finding,) = (finding for finding in report.findings if finding.name == "nondeterministic")
    assert "at action 2: 'on', then ''" in finding.message


@pytest.mark.parametrize("length", [80, 81])
def test_a_long_line_is_shown_up_to_its_80th_character(length: int, tokenizer: Tokenizer) -> None:
    def answer(task: Task, action: str, number: int) -> StepResult:
        return StepResult((TextPiece(Role.ENV_OUTPUT, f"{number}{'x' * (length - 1)}\n"), PROMPT))

    report = check_environment(_FakeWorlds(answer=answer), PlainRenderer(tokenizer), LIMITS, SETTINGS)
    (finding,) = (finding for finding in report.findings if finding.name == "nondeterministic")
    shown = "x" * 79 + ("…" if length > 80 else "")
    assert finding.message.endswith(f"at action 1: '1{shown}', then '2{shown}'")


@pytest.mark.parametrize(
    ("first", "second", "patterns"),
    [
        ("pid 123 ok", "pid 4567 ok", [r"(?<=pid\ )\d+"]),  # after the two tokens before it, if both lines have them
        ("at 12:30:01", "at 13:31:02", [r"(?<=at\ )\d+", r"(?<=:)\d+", r"(?<=:)\d+"]),
        ("/tmp/sandbox-ab_1/x", "/tmp/sandbox-zz9/x", [r"(?<=sandbox\-)\w+"]),
        ("12 done", "7 done", [r"\b\d+"]),
        ("a 1 b 1", "a 1 b 2", [r"(?<=b\ )\d+"]),
        ("took 0.25 s, id f00d", "took 1.5 s, id beef", [r"(?<=took\ )\d+", r"(?<=\.)\d+", r"(?<=id\ )\w+"]),
        ("one", "two words", []),
        ("a+b", "a-b", []),
        ("{1, 2}", "{2, 1}", [r"(?<=\{)\d+", r"(?<=,\ )\d+"]),
        ("1ab", "2cd", []),  # no word boundary separates the two that differ
    ],
)
def test_patterns_mask_all_that_two_lines_differ_in(first: str, second: str, patterns: list[str]) -> None:
    assert volatile_patterns(first, second) == patterns
    if patterns:
        masked = re.compile("|".join(patterns))
        assert masked.sub("", first) == masked.sub("", second)


@pytest.mark.parametrize(
    ("first", "second", "too_much"),
    [
        (["pid 101 ok"], ["pid 102 ok"], False),  # 3 of 8 letters and digits
        (["pid 101"], ["pid 102"], False),  # a half
        (["go 101"], ["go 102"], True),  # 3 of 5
        (["| 2 | 4 |", "| 8 | 4 |"], ["| 4 | 2 |", "| 2 | 2 |"], True),  # a board of random tiles
        (["G Y X"], ["X X Y"], True),
        (
            ["it is too low", "it is too low", "it is too high"],
            ["it is too high", "it is too low", "it is too high"],
            True,
        ),
        (["a\npid 7 ended, a"], ["a\npid 8 ended, a"], False),
        (["pid 7 ended", "more"], ["pid 8 ended"], False),
        (["go 101\nthis line is equal in both plays"], ["go 102\nthis line is equal in both plays"], True),
        (["go 101", "a"], ["go 102"], True),  # 6 of 11
        (["go 101\na"], ["go 102"], True),
        (["pid 7 has ended", "pid 8 has ended"], ["pid 7 has ended", "pid 9 has ended"], False),  # a match in each
    ],
)
def test_a_pattern_that_would_hide_what_is_to_be_learned(first: list[str], second: list[str], too_much: bool) -> None:
    lines = next(
        (one, other)
        for of in zip(first, second, strict=False)
        for one, other in zip(*(text.split("\n") for text in of), strict=False)
        if one != other
    )
    patterns = volatile_patterns(*lines)
    assert patterns and hides_too_much(patterns, first, second) is too_much
    assert not hides_too_much([], first, second)


@pytest.mark.parametrize("opening", ["task {seed}\n", "task {seed}, board {number}\n"])
def test_no_pattern_is_proposed_where_the_world_itself_is_another(opening: str, tokenizer: Tokenizer) -> None:
    def answer(task: Task, action: str, number: int) -> StepResult:
        line = f"you rolled {number} of 6" if "board" in opening else f"{number} {number + 1}"
        return StepResult((TextPiece(Role.ENV_OUTPUT, f"{line}\n"), PROMPT))

    report = check_environment(_FakeWorlds(answer=answer, opening=opening), PlainRenderer(tokenizer), LIMITS, SETTINGS)
    (finding,) = (finding for finding in report.findings if finding.name == "nondeterministic")
    assert "environment.volatile: [" not in finding.tip and "seed" in finding.tip


def test_a_lost_session_is_tried_again_and_counted(tokenizer: Tokenizer) -> None:
    def answer(task: Task, action: str, number: int) -> StepResult:
        if number == 1:
            raise SessionLost("closed")
        return _answer(task, action, number)

    report = check_environment(_FakeWorlds(answer=answer), PlainRenderer(tokenizer), LIMITS, SETTINGS)
    assert report.faults["sessions_lost"] == 1
    assert report.trajectory.stop_reason == "answered"


def test_an_environment_that_loses_every_session_ends_the_check(tokenizer: Tokenizer) -> None:
    def answer(task: Task, action: str, number: int) -> StepResult:
        raise SessionLost("closed")

    with pytest.raises(EchoError, match="closed") as caught:
        check_environment(_FakeWorlds(answer=answer), PlainRenderer(tokenizer), LIMITS, SETTINGS)
    assert caught.value.exit_code == 1


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields)}


@pytest.mark.parametrize(
    ("template", "field", "fits"),
    [
        ("{text:int}", {"type": "integer", "minimum": 3, "maximum": 5}, lambda line: 3 <= int(line) <= 5),
        ("{text:int}", {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5}, lambda line: line == "4"),
        ("{text:int}", {"type": "integer", "maximum": -1}, lambda line: -10 <= int(line) <= -1),
        ("{text:int}", {}, lambda line: 0 <= int(line) <= 9),
        ("{text:float}", {"type": "number"}, lambda line: 0 <= float(line) <= 9),
        ("{text:bool}", {"type": "boolean"}, lambda line: line in ("true", "false")),
        ("{text}", {"enum": ["UP", "DOWN"]}, lambda line: line in ("UP", "DOWN")),
        ("{text}", {"anyOf": [{"type": "null"}, {"const": "go"}]}, lambda line: line == "go"),
        ("{text}", {"oneOf": [{"const": "go"}]}, lambda line: line == "go"),
        ("{text}", {"allOf": [{"const": "go"}]}, lambda line: line == "go"),
        ("{text}", {"enum": [], "anyOf": []}, lambda line: line.isalpha()),
        ("{text}", {"$ref": "#/$defs/Move"}, lambda line: line in ("A", "B")),
        ("{text}", {"type": "string"}, lambda line: line.isalpha()),
        ("move {text}", {"type": "string"}, lambda line: line.isalpha()),
        ("{text:json}", {"type": "array", "items": {"const": 1}}, lambda line: json.loads(line) == [1]),
        ("{text:json}", {"type": "object"}, lambda line: json.loads(line) == {}),
        ("{text:json}", {"$ref": "#/$defs/Moves"}, lambda line: json.loads(line) in (["A"], ["B"])),
        ("{text}", "garbage", lambda line: line.isalpha()),
        ("{text}", {"$ref": "#/nowhere"}, lambda line: line.isalpha()),
        ("{text}", {"$ref": "#/properties/x"}, lambda line: line.isalpha()),
    ],
)
def test_a_random_line_fits_the_schema(template: str, field: Any, fits: Callable[[str], bool]) -> None:
    moves = {"type": "array", "items": {"$ref": "#/$defs/Move"}}
    schema = {**_object(x=field), "$defs": {"Move": {"enum": ["A", "B"]}, "Moves": moves}}
    config = ActionConfig(template={"kind": "fixed", "x": template})
    for seed in range(20):
        assert fits(random_line(config, schema, random.Random(seed)))


@pytest.mark.parametrize(
    ("bounds", "low", "high"),
    [
        ({}, 0, 9),
        ({"minimum": 3, "maximum": 5}, 3, 5),
        ({"exclusiveMinimum": 3, "exclusiveMaximum": 7}, 4, 6),
        ({"minimum": 2, "exclusiveMinimum": 0}, 2, 11),
        ({"minimum": -3}, -3, 6),
        ({"maximum": 4, "exclusiveMaximum": 3}, 0, 4),
        ({"maximum": 0}, 0, 0),
        ({"maximum": -1}, -10, -1),
        ({"minimum": 5, "maximum": 3}, 5, 5),
    ],
    ids=str,
)
def test_random_integers_are_all_those_between_the_bounds(bounds: dict[str, int], low: int, high: int) -> None:
    schema, config = _object(x={"type": "integer", **bounds}), ActionConfig(template={"x": "{text:int}"})
    drawn = {int(random_line(config, schema, random.Random(seed))) for seed in range(150)}
    assert drawn == set(range(low, high + 1))


def test_a_random_json_action_has_what_is_required() -> None:
    schema = {**_object(move=_object(x={"type": "integer"}), why={"type": "string"})}
    action = json.loads(random_line(ActionConfig(kind="json"), schema, random.Random(0)))
    assert isinstance(action["move"]["x"], int) and isinstance(action["why"], str)


def test_a_random_tool_call_has_the_form_of_one() -> None:
    line = random_line(ActionConfig(kind="tool_call"), {}, random.Random(0))
    call = json.loads(line.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert call.keys() == {"name", "arguments"}


def test_a_random_call_of_a_listed_tool_fits_its_schema() -> None:
    definitions = {"Side": {"enum": ["left", "right"]}}
    arguments = {**_object(side={"$ref": "#/$defs/Side"}), "$defs": definitions}
    forms = [_object(tool_name={"const": name}, arguments=arguments) for name in ("turn", "look")]
    lines = [random_line(ActionConfig(kind="tool_call"), {"anyOf": forms}, random.Random(seed)) for seed in range(40)]
    calls = [json.loads(line.removeprefix("<tool_call>").removesuffix("</tool_call>")) for line in lines]
    assert {call["name"] for call in calls} == {"turn", "look"}
    assert {call["arguments"]["side"] for call in calls} == {"left", "right"}


def test_a_schema_is_one_line_a_field() -> None:
    schema = {
        "properties": {
            "move": {"type": "integer", "minimum": 0, "maximum": 6},
            "kind": {"enum": ["a", "b"], "default": "a"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "path": {"type": "array", "items": {"$ref": "#/$defs/Step"}},
            "any": True,
        },
        "required": ["move"],
    }
    assert list(schema_lines(schema)) == [
        "move: integer ≥ 0 ≤ 6, required",
        'kind: "a" | "b" = "a"',
        "note: string | null = null",
        "path: list of Step",
        "any: anything",
    ]
    assert list(schema_lines({})) == ["no fields listed"]


def _escaping(task: Task, action: str, number: int) -> StepResult:
    return StepResult((TextPiece(Role.ENV_OUTPUT, f"\x1b[31mred {number}\n", "\x1b[0m"), PROMPT))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", [False, True])
def test_roles_have_colours_on_a_terminal_alone(
    no_color: bool, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = check_environment(_FakeWorlds(answer=_escaping), PlainRenderer(tokenizer), LIMITS, SETTINGS)
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    printed = {}
    for name, stream in (("terminal", _Terminal()), ("file", io.StringIO())):
        monkeypatch.setattr(sys, "stdout", stream)
        print_check(report)
        printed[name] = stream.getvalue()
    monkeypatch.undo()
    assert "\x1b" not in printed["file"]
    assert r"env_output \x1b[0m | \x1b[31mred 1" in printed["file"]
    assert ("\x1b[33menv_output" in printed["terminal"]) is not no_color
    assert "\x1b[31mred" not in printed["terminal"]


def test_the_check_of_the_toy_terminal_prints_or_gives_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "check", "toy"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "no problems found" in printed.out
    assert re.search(r"^action +\| answer: ", printed.out, re.MULTILINE)
    assert main(["env", "check", "toy", "--json", "environment.toy_terminal.families=[setting]"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["warnings"] == [] and report["reward"] == 1.0
    assert report["sessions"] is None and report["step_rewards"] == [None, 1.0]
    assert {entry["role"] for entry in report["tokens"]} >= {"context", "action", "env_output"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env", "check"], "Missing argument 'CONFIG'."),
        (["env", "check", "toyy"], "no config named 'toyy'"),
        (["env", "check", "toy", "environment.maxturns=1"], "unknown key 'environment.maxturns'"),
        (["env", "check", "sandbox", "environment.tasks.validation=2"], "'environment.tasks.validation' is 2"),
    ],
)
def test_a_mistake_is_a_config_error(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in error_of(capsys.readouterr().err)[0]


@pytest.mark.slow
def test_the_sandbox_is_started_checked_and_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openenv")
    assert main(["env", "check", "sandbox", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["environment"]["name"] == "Sandbox"
    assert report["script"] == "explorer"
    # Explorers give no answer, so nothing ends the episode.
    assert [warning["name"] for warning in report["warnings"]] in (["never_done"], ["never_done", "cut"])
