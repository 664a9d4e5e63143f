"""The shipped presets, each against payloads of its environment: exact pieces, roles and actions."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from echo_cli.config.environment import PRESETS, EnvironmentConfig
from echo_cli.config.loader import configs_folder, load_config
from echo_cli.config.mcp import MCP_PRESETS
from echo_cli.environments.actions import ActionMapping, Unparsable, check_action, check_payload
from echo_cli.environments.observations import ObservationMapping, exit_code_of, is_invalid
from echo_cli.environments.protocol import Payload
from echo_cli.models.loading import load_renderer
from echo_cli.trajectory import Role

NONE = "rollout.explorers=0"
C, E, W = Role.CONTEXT, Role.ENV_OUTPUT, Role.WARNING

METADATA = {"type": "object", "additionalProperties": True}
GENERIC_ACTION = {"type": "object", "properties": {"metadata": METADATA}, "additionalProperties": False}


def source(name: str) -> list[str]:
    """Return overrides that set a source for the preset; presets of MCP servers have one, except the common one."""
    if name == "mcp":
        return ["environment.mcp.url=http://127.0.0.1:1"]
    return ["environment.toy_terminal=null" if name in MCP_PRESETS else "environment.url=http://127.0.0.1:1"]


def config(name: str) -> EnvironmentConfig:
    overrides = [*source(name), f"environment.preset={name}", "environment.tasks.seeds=10"]
    if name == "toy_terminal":  # tasks and explorers come from its worlds
        overrides.pop()
    if name in ("agent_world_model", "mcp"):  # tools of any kind, so the preset lists no exploring actions
        overrides.append("rollout.explorers=0")
    return load_config(configs_folder() / "toy.yaml", overrides).environment


class Played:
    """A preset and one episode's mapping of it."""

    def __init__(self, name: str) -> None:
        self.config = config(name)
        self._mapping = ObservationMapping(self.config)
        self.act = ActionMapping(self.config.action).parse

    def opening(self, **observation: Any) -> list[tuple[Any, ...]]:
        return _shown(self._mapping.opening(_payload(observation)))

    def reply(self, action: str = "", **observation: Any) -> list[tuple[Any, ...]]:
        return _shown(self._mapping.reply(_payload(observation), action))


def _payload(observation: dict[str, Any]) -> Payload:
    """Return a payload with its metadata twice, in the observation and beside it, as OpenEnv's server sends it."""
    return Payload(observation, metadata=observation.get("metadata"))


def _shown(pieces: Any) -> list[tuple[Any, ...]]:
    assert not any(piece.cut for piece in pieces)
    return [(piece.role, piece.text, piece.channel) for piece in pieces]


def action_schema(**properties: Any) -> dict[str, Any]:
    """Return the schema that pydantic generates for an action class: its own fields, and OpenEnv's."""
    required = [name for name, schema in properties.items() if "default" not in schema]
    fields = {"metadata": METADATA, **properties}
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def test_the_presets_are_the_shipped_files() -> None:
    assert set(PRESETS) == {path.stem for path in (configs_folder() / "environments").iterdir()}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_maps(name: str) -> None:
    loaded = config(name)
    assert loaded.preset == name
    assert loaded.observation
    ObservationMapping(loaded)
    actions = [ActionMapping(loaded.action).parse(line) for line in loaded.explorer]
    assert len(actions) == len({str(action) for action in actions})


def test_a_preset_s_caps_are_below_the_keys_beside_it_and_above_the_file_s_if_it_is_on_the_command_line(
    tmp_path: Path,
) -> None:
    words = ["environment.url=http://127.0.0.1:1", "environment.tasks.seeds=9"]
    file = tmp_path / "c.yaml"
    file.write_text(
        "environment: {url: 'http://127.0.0.1:1', preset: maze, tasks: {seeds: 9}}\nrollout: {max_output_tokens: 99}\n"
    )
    expected = {"max_action_tokens": 8, "max_episode_tokens": 1400}
    for loaded, output in (
        (load_config(file), 99),
        (load_config(file, ["rollout.max_output_tokens=7"]), 7),
        (load_config(configs_folder() / "toy.yaml", [*words, "environment.preset=maze"]), 256),
    ):
        caps = loaded.rollout.model_dump(include={*expected, "max_output_tokens"})
        assert caps == {**expected, "max_output_tokens": output}
    again = tmp_path / "again.yaml"
    again.write_text(load_config(file).to_yaml())
    assert load_config(again) == load_config(file)


@pytest.mark.parametrize("name", sorted({*PRESETS} - {"toy_terminal"}))
def test_no_exploring_action_exceeds_the_action_cap_of_its_preset(name: str) -> None:
    overrides = [*source(name), f"environment.preset={name}", "environment.tasks.seeds=9"]
    loaded = load_config(configs_folder() / "toy.yaml", [*overrides, "rollout.explorers=0"])
    renderer = load_renderer(loaded)
    lengths = [len(renderer.script(line)) for line in loaded.environment.explorer]
    assert max(lengths, default=0) <= loaded.rollout.max_action_tokens


def test_an_mcp_server_has_the_common_preset_below_its_own_and_a_url_in_place_of_the_preset_s_command() -> None:
    unnamed = load_config(
        configs_folder() / "toy.yaml", [*source("mcp"), "environment.tasks.seeds=9", NONE]
    ).environment
    assert (unnamed.preset, unnamed.observation) == ("mcp", config("mcp").observation)
    sqlite = config("mcp_sqlite")
    assert sqlite.observation == config("mcp").observation and sqlite.mcp is not None
    words = ["environment.mcp.url=http://127.0.0.1:1", "environment.preset=mcp_sqlite", "environment.tasks.seeds=9"]
    remote = load_config(configs_folder() / "toy.yaml", words).environment
    one_tool = 'environment.action={kind: template, template: {tool_name: read_query, arguments: {query: "{text}"}}}'
    assert not load_config(configs_folder() / "toy.yaml", [*words, one_tool]).environment.action.words_end
    assert remote.mcp is not None and (remote.mcp.command, remote.mcp.allow) == ((), sqlite.mcp.allow)


def test_mcp() -> None:
    played = Played("mcp")
    call = '<tool_call>{"name": "read_query", "arguments": {"query": "SELECT 1"}}</tool_call>'
    assert played.act(call) == {"type": "call_tool", "tool_name": "read_query", "arguments": {"query": "SELECT 1"}}
    assert played.opening(question="How many?", server_instructions="Be kind.") == [(C, "How many?\n", "question")]
    assert played.reply(call, channel="read_query", text=["a", "b\n"], left_out=["image image/png"]) == [
        (E, "a", "read_query"),
        (W, "\n", "read_query"),
        (E, "b\n", "read_query"),
        (W, "[left out: image image/png]\n", "left_out"),
    ]
    assert played.reply(call, channel="read_query", error=["no table"], left_out=[]) == [(E, "no table", "tool_error")]


TEXT = {"type": "string", "default": ""}


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("toy_terminal", action_schema(command={"type": "string"})),
        ("tbench2", action_schema(action_type={"type": "string", "default": "exec"}, command=TEXT)),
        ("coding", action_schema(code={"type": "string"})),
        ("repl", action_schema(code=TEXT, is_final={"type": "boolean", "default": False})),
        ("textarena", action_schema(message={"type": "string"})),
        ("echo", GENERIC_ACTION),
        ("agent_world_model", GENERIC_ACTION),
        ("maze", action_schema(action={"type": "integer"})),
    ],
)
def test_every_preset_fits_its_environment_s_schema(name: str, schema: Any) -> None:
    loaded = config(name)
    check_action(loaded.action, schema)
    for index, final in enumerate(loaded.reward.final):
        check_payload(final.action, schema, f"environment.reward.final[{index}].action")


def test_toy_terminal() -> None:
    played = Played("toy_terminal")
    empty = {"stdout": "", "stderr": "", "exit_code": None, "instruction": None}
    assert played.opening(**{**empty, "instruction": "Which file?"}) == [(C, "task: Which file?\n", None)]
    assert played.reply("ls", **{**empty, "stdout": "a\n", "exit_code": 0}) == [(E, "a\n", "stdout")]
    failed = {**empty, "stdout": "a\n", "stderr": "ls: none\n", "exit_code": 2}
    assert played.reply("ls", **failed) == [
        (E, "a\n", "stdout"),
        (E, "ls: none\n", "stderr"),
        (W, "[exit 2]\n", "exit_status"),
    ]
    assert exit_code_of(_payload(failed), played.config.exit_code) == 2
    assert played.config.invalid is not None
    assert [is_invalid(Payload({"stderr": text}), played.config.invalid) for text in ("sh: x", "ls: x")] == [
        True,
        False,
    ]


def test_tbench2() -> None:
    played = Played("tbench2")
    assert played.act("ls -l | wc") == {"action_type": "exec", "command": "ls -l | wc"}
    rest = {"instruction": "Fix it.", "success": True, "error": "", "task_id": "t", "task_path": "/t", "info": {}}
    assert played.opening(**rest, output="", action_type="reset") == [(C, "Fix it.", None)]
    assert played.reply("ls", **rest, output="a\nb\n") == [(E, "a\nb\n", "stdout")]
    for said in (
        "Command executed successfully (no output).",
        "Command did not complete within 20.0 seconds. Process continues in background as session 's'.\n\nYou can:\n",
        "Error executing command: [Errno 7]",
    ):
        assert played.reply("x", **rest, output=said) == [(W, said, "boilerplate")]
    quoted = "he said: Command executed successfully (no output).\n"
    assert played.reply("x", **rest, output=quoted) == [(E, quoted, "stdout")]
    failed = {**rest, "success": False, "error": "no such session"}
    assert played.reply("x", **failed, output="") == [(W, "no such session", "error")]
    assert [(final.action, final.counts) for final in played.config.reward.final] == [
        ({"action_type": "evaluate"}, True)
    ]
    assert played.config.reward.mode == "final"


@pytest.mark.parametrize(
    ("text", "volatile"),
    [
        ("<a at 0x7f3a2c001d30>", ["0x7f3a2c001d30"]),
        ("id 123e4567-e89b-12d3-a456-426614174000.", ["123e4567-e89b-12d3-a456-426614174000"]),
        ("2025-01-31T12:00:01.5Z up", ["2025-01-31T12:00:01.5Z"]),
        ("-rw-r--r-- 1 root root 5 Jan  2 12:34 a", ["Jan  2 12:34"]),
        ("now 12:00:59", ["12:00:59"]),
        ("4 passed in 0.42s", ["0.42s"]),
        ("killed pid 4711, PID: 12", ["pid 4711", "PID: 12"]),
        ("[1] 4711\n[2] 17 x\n", ["4711"]),
        ("/tmp/tmpab12_x9z/f", ["ab12_x9z"]),
        ("42 files, 3.14, v1.2.3, ratio 16:9, 2025-01-31, rapid 5, 0xff", []),
    ],
)
def test_what_differs_from_run_to_run_is_not_learned(text: str, volatile: list[str]) -> None:
    pieces = Played("tbench2").reply("x", output=text)
    assert [piece for _, piece, channel in pieces if channel == "volatile"] == volatile
    assert "".join(piece for _, piece, _ in pieces) == text
    assert {role for role, _, channel in pieces if channel == "volatile"} <= {C}


# As coding_env and repl_env send it; the frames in the middle are left out.
FRAMES = """Traceback (most recent call last):
  File "/app/.venv/lib/python3.11/site-packages/smolagents/local_python_executor.py", line 1643, in _execute_code
    result = evaluate_ast(node, state, static_tools, custom_tools, authorized_imports)
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
ZeroDivisionError: division by zero

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/app/envs/coding_env/server/python_executor.py", line 84, in run
    exec_result = self._executor(code)
                  ^^^^^^^^^^^^^^^^^^^^
  File "/app/.venv/lib/python3.11/site-packages/smolagents/local_python_executor.py", line 1659, in _execute_code
    raise InterpreterError(
"""
RAISED = "smolagents.local_python_executor.InterpreterError: "
DIVIDED = "Code execution failed at line '1/0' due to: ZeroDivisionError: division by zero\n"
UNPARSED = (
    "Code parsing failed on line 1 due to: SyntaxError: invalid syntax (<unknown>, line 1)\nhello world\n       ^\n"
)
IMPORTED = "Code execution failed at line 'import os' due to: InterpreterError: Import of os is not allowed. "
ALLOWED = "Authorized imports are: "


def test_coding() -> None:
    played = Played("coding")
    assert played.act("print('hi')") == {"code": "print('hi')"}
    assert played.opening(stdout="", stderr="", exit_code=0) == []
    assert played.reply("1", stdout="1\n\n1", stderr="", exit_code=0) == [(E, "1\n\n1", "stdout")]
    failed = {"stdout": "", "stderr": FRAMES + RAISED + DIVIDED, "exit_code": 1, "metadata": {"last_code": "1/0"}}
    assert played.reply("1/0", **failed) == [(E, RAISED + DIVIDED, "stderr"), (W, "[exit 1]\n", "exit_status")]
    before = {**failed, "stdout": "1\n", "stderr": "said before\n" + FRAMES + RAISED + DIVIDED}
    assert played.reply("1/0", **before)[:2] == [
        (E, "1\n", "stdout"),
        (E, "said before\n" + RAISED + DIVIDED, "stderr"),
    ]
    assert exit_code_of(_payload(failed), played.config.exit_code) == 1
    assert played.reply("x", stdout="", stderr="one line", exit_code=0) == [(E, "one line", "stderr")]
    assert played.reply("x", stdout="<f at 0x7f00aa11bb>\n", exit_code=0) == [
        (E, "<f at ", "stdout"),
        (C, "0x7f00aa11bb", "volatile"),
        (E, ">\n", "stdout"),
    ]


def test_repl() -> None:
    played = Played("repl")
    ready = "REPL environment initialized.\nTask: Count."
    result = {"stdout": ready, "stderr": "", "locals_snapshot": {}, "execution_time": 0.0, "success": True}
    assert played.opening(result=result, context_preview="once upon", context_length=9) == [
        (C, ready, "stdout"),
        (C, "\ncontext: once upon\n", None),
    ]
    answered = {**result, "stdout": "9\n", "execution_time": 0.0123}
    assert played.reply(
        "len(context)", metadata={"execution_time": 0.0123}, result=answered, context_preview="once upon"
    ) == [(E, "9\n", "stdout")]
    failed = {**result, "stdout": "", "stderr": f"InterpreterError: {DIVIDED}{FRAMES}{RAISED}{DIVIDED}"}
    assert played.reply("1/0", result=failed) == [(E, f"InterpreterError: {DIVIDED}", "stderr")]
    long = {**result, "stdout": "xx\n... (truncated, total 9000 chars)"}
    assert played.reply("x", result=long) == [
        (E, "xx", "stdout"),
        (W, "\n... (truncated, total 9000 chars)", "boilerplate"),
    ]
    end = {**result, "stdout": "Maximum iterations (30) reached."}
    assert played.reply("x", result=end) == [(W, "Maximum iterations (30) reached.", "boilerplate")]


def test_textarena() -> None:
    played = Played("textarena")
    assert played.act("[A C]") == {"message": "[A C]"}
    game = "\n[GAME] You are Player 0.\nA: [3, 2, 1]\n"
    assert played.opening(prompt="TowerOfHanoi-v0", messages=[{"content": game}]) == [(C, game, "game")]
    echo, answer = "\n[Player 0] [A C]", "\n[GAME] Player 0 moved disk from A to C.\nA: [3, 2]\nB: []\nC: [1]\n"
    game += echo + answer
    assert played.reply("[A C]", messages=[{"content": game}]) == [(W, echo + "\n", "echo"), (E, answer[1:], "game")]
    bare = "[A B]\nB: [2]\n"
    game += bare
    assert played.reply("[A B]", messages=[{"content": game}]) == [(W, "[A B]\n", "echo"), (E, "B: [2]\n", "game")]
    assert played.config.invalid is not None
    assert not is_invalid(Payload({"messages": [{"content": game}]}), played.config.invalid)
    game += "\n[Player 0] hm\n[GAME] Player 0 attempted an invalid move. Reason: no. Please resubmit a valid move."
    assert is_invalid(Payload({"messages": [{"content": game}]}), played.config.invalid)
    game += "\n[Player 0] [B C]\n[GAME] Player 0 moved disk from B to C.\n"
    assert not is_invalid(Payload({"messages": [{"content": game}]}), played.config.invalid)


def test_echo() -> None:
    played = Played("echo")
    line = '<tool_call>{"name": "echo_message", "arguments": {"message": "hello"}}</tool_call>'
    assert played.act(line) == {"type": "call_tool", "tool_name": "echo_message", "arguments": {"message": "hello"}}
    with pytest.raises(Unparsable):
        played.act("echo hello")
    content = [{"type": "text", "text": "hello", "annotations": None}, {"type": "text", "text": "again"}]
    result = {"content": content, "structured_content": {"result": "hello"}, "is_error": False}
    assert played.opening(metadata={"status": "ready"}) == []
    assert played.reply(line, tool_name="echo_message", result=result, error=None) == [
        (E, "hello", "tool_result"),
        (W, "\n", "tool_result"),
        (E, "again", "tool_result"),
    ]
    error = {"error_type": "tool_not_found", "message": "Unknown tool: 'x'"}
    assert played.reply(line, tool_name="x", result=None, error=error) == [(E, "Unknown tool: 'x'", "tool_error")]


def test_agent_world_model() -> None:
    played = Played("agent_world_model")
    task = {"reward_type": "reset_ok", "scenario": "e_commerce_33", "task": "Buy one.", "task_idx": 0, "num_tools": 39}
    assert played.opening(**task) == [(C, "task: Buy one.\n", None)]
    row = '{\n  "id": 4,\n  "created_at": "2026-06-16T03:51:10.029385"\n}'
    answer = {"reward_type": "tool_call_ok", "tool_name": "add_item_to_cart"}
    assert played.reply("x", **answer, tool_result=row) == [
        (E, '{\n  "id": 4,\n  "created_at": "', "tool_result"),
        (C, "2026-06-16T03:51:10.029385", "volatile"),
        (E, '"\n}', "tool_result"),
    ]
    assert played.reply("x", **answer, tool_result={"total": 3, "items": []}) == [
        (E, '{"items":[],"total":3}', "tool_result")
    ]
    assert played.reply("x", tool_name="x", reward_type="tool_not_found", error="Tool x not found") == [
        (E, "Tool x not found", "tool_error")
    ]
    assert played.opening(reward_type="reset_warning", task="Buy.", warning="no tools discovered") == [
        (C, "task: Buy.\n", None),
        (W, "no tools discovered", "notice"),
    ]
    verify, done = played.config.reward.final
    assert (verify.action["tool_name"], verify.counts) == ("verify", True)
    assert (done.action["tool_name"], done.counts) == ("done", False)
    assert played.config.reward.mode == "final"


def test_maze() -> None:
    played = Played("maze")
    assert played.act(" 3") == {"action": 3}
    with pytest.raises(Unparsable):
        played.act("right")
    metadata = {"maze": [[0, 1], [0, 0]], "status": "playing", "exit_cell": [1, 1], "step": 0}
    start = {"current_position": [0, 0], "previous_position": [0, 0], "legal_actions": [1], "metadata": metadata}
    assert played.opening(**start) == [
        (C, "maze: [[0,1],[0,0]]\n", "maze"),
        (C, "at: [0,0]\n", "position"),
        (C, "moves: [1]\n", "moves"),
    ]
    moved = {**start, "current_position": [0, 1], "legal_actions": [0, 3]}
    assert played.reply("1", **moved) == [
        (W, "at: ", "position"),
        (E, "[0,1]", "position"),
        (W, "\n", "position"),
        (W, "moves: ", "moves"),
        (E, "[0,3]", "moves"),
        (W, "\n", "moves"),
    ]
    won = {**moved, "legal_actions": [], "metadata": {**metadata, "status": "win"}}
    assert [text for _, text, channel in played.reply("3", **won) if channel == "status"] == ["status: ", "win", "\n"]


# --- Ill-formed actions: payloads of the real servers ----------------------------------------------------------------

GAME = "\n[GAME] Current Board: \nA: [3, 2, 1]\nB: []\nC: []\n."
INVALID = "[GAME] You attempted an invalid move. Reason: {}. Please resubmit a valid move and remember to follow the game rules to avoid penalties."  # noqa: E501
NO_MOVE = INVALID.format("You did not respond with valid '[source] [target]'")


@pytest.mark.parametrize(
    ("action", "echo", "answer"),
    [
        ("move A to C", "\n[GAME] [move A to C]\n", NO_MOVE),
        ("", "\n[GAME] []\n", NO_MOVE),
        ("multi\nline", "\n[GAME] [multi\nline]\n", NO_MOVE),
        ("[A B] please", "\n[GAME] [A B] please\n", "[GAME] You moved disk 2 from A to B."),
        ("  [A B]", "\n[GAME]   [A B]", ""),
        ("[B A]", "\n[GAME] [B A]\n", INVALID.format("You tried to move a disk from an empty tower")),
        ("[GAME] You moved disk 1.", "\n[GAME]  You moved disk 1.\n", NO_MOVE),  # names in brackets are removed
        ("[Player] [A C]", "\n[GAME]  [A C]\n", "[GAME] You moved disk 1 from A to C."),
        ("GAME", "\n[GAME] \n", NO_MOVE),  # after the brackets were added
    ],
)
def test_textarena_learns_no_form_of_the_action(action: str, echo: str, answer: str) -> None:
    played = Played("textarena")
    assert played.act(action) == {"message": action}
    assert played.opening(messages=[{"content": GAME}]) == [(C, GAME, "game")]
    messages = [{"content": GAME + echo + answer}]
    assert played.reply(action, messages=messages) == [(W, echo, "echo"), *([(E, answer, "game")] if answer else [])]
    assert played.config.invalid is not None
    assert is_invalid(_payload({"messages": messages}), played.config.invalid) == ("attempted" in answer)


def test_textarena_learns_what_a_game_says_that_echoes_nothing() -> None:
    played = Played("textarena")
    played.opening(messages=[{"content": GAME}])
    answer = "\n[GAME] You moved disk 1 from A to C.\n"
    assert played.reply("[A C]", messages=[{"content": GAME + answer}]) == [(E, answer, "game")]


MAZE = {"current_position": [0, 0], "previous_position": [0, 0], "legal_actions": [3]}
TB2 = {"instruction": "Fix it.\n", "success": True, "error": "", "task_id": "t1", "action_type": "exec", "info": {}}
MISSING = "1 validation error for call[echo_message]\nmessage\n  Missing required argument [type=missing_argument, input_value={}, input_type=dict]\n    For further information visit https://errors.pydantic.dev/2.14/v/missing_argument"  # noqa: E501


def _call(name: str) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>'


@pytest.mark.parametrize(
    ("name", "action", "observation", "learned", "harness", "invalid"),
    [
        ("tbench2", "hello wrld", {**TB2, "output": "/bin/sh: 1: hello: not found\n"}, ..., "", True),
        ("tbench2", "$ ls", {**TB2, "output": "/bin/sh: 1: $: not found\n"}, ..., "", True),
        (
            "tbench2",
            'echo "open',
            {**TB2, "output": "/bin/sh: 1: Syntax error: Unterminated quoted string\n"},
            ...,
            "",
            True,
        ),
        ("tbench2", "cat nope", {**TB2, "output": "cat: nope: No such file or directory\n"}, ..., "", False),
        (
            "coding",
            "hello world",
            {"stdout": "", "stderr": FRAMES + RAISED + UNPARSED, "exit_code": 1},
            RAISED + UNPARSED,
            "[exit 1]\n",
            True,
        ),
        (
            "coding",
            "import os",
            {"stdout": "", "stderr": FRAMES + RAISED + IMPORTED + ALLOWED + "['time', 're']\n", "exit_code": 1},
            RAISED + IMPORTED + ALLOWED + "\n",
            "[exit 1]\n",
            False,
        ),
        ("coding", "", {"stdout": "", "stderr": "", "exit_code": 0}, "", "", False),
        (
            "repl",
            "hello world",
            {"result": {"stdout": "", "stderr": f"InterpreterError: {UNPARSED}{FRAMES}{RAISED}{UNPARSED}"}},
            f"InterpreterError: {UNPARSED}",
            "",
            True,
        ),
        (
            "repl",
            "import os",
            {"result": {"stdout": "", "stderr": f"InterpreterError: {IMPORTED}{ALLOWED}['time', 're']\n{FRAMES}"}},
            f"InterpreterError: {IMPORTED}{ALLOWED}\n",
            "",
            False,
        ),
        (
            "echo",
            _call("nope"),
            {"result": None, "error": {"error_type": "tool_not_found", "message": "Unknown tool: 'nope'"}},
            "Unknown tool: 'nope'",
            "",
            True,
        ),
        (
            "echo",
            _call("echo_message"),
            {"result": None, "error": {"error_type": "invalid_args", "message": MISSING}},
            MISSING,
            "",
            True,
        ),
        (
            "agent_world_model",
            _call("nope"),
            {"reward_type": "tool_not_found", "tool_name": "nope", "error": "Tool nope not found"},
            "Tool nope not found",
            "",
            True,
        ),
        ("maze", "0", {**MAZE, "metadata": {"status": "playing"}}, "[0,0][3]", "at: \nmoves: \n", False),
        (
            "toy_terminal",
            "hello",
            {"stdout": "", "stderr": "sh: hello: not found\n", "exit_code": 127},
            "sh: hello: not found\n",
            "[exit 127]\n",
            True,
        ),
    ],
)
def test_the_answer_to_an_ill_formed_action(
    name: str, action: str, observation: dict[str, Any], learned: Any, harness: str, invalid: bool
) -> None:
    played = Played(name)
    played.act(action)
    pieces = played.reply(action, **observation)
    text = {role: "".join(piece for of, piece, _ in pieces if of is role) for role in (E, W)}
    assert text == {E: observation["output"] if learned is ... else learned, W: harness}
    found = played.config.invalid is not None and is_invalid(_payload(observation), played.config.invalid)
    assert found == invalid
    assert not any(path in piece for _, piece, _ in pieces for path in ("/app/", "site-packages"))


@pytest.mark.parametrize(("name", "line"), [("maze", "x"), ("maze", ""), ("echo", "echo hi"), ("echo", "<tool_call>{")])
def test_a_line_that_is_no_action_of_the_preset_is_not_sent(name: str, line: str) -> None:
    with pytest.raises(Unparsable):
        Played(name).act(line)


@pytest.mark.slow
def test_echo_against_openenv_itself() -> None:
    """Payloads and schemas of an MCP environment as OpenEnv's server sends them."""
    fastmcp = pytest.importorskip("fastmcp")
    mcp_environment = pytest.importorskip("openenv.core.env_server.mcp_environment")
    from openenv.core.env_server.mcp_types import CallToolAction
    from openenv.core.env_server.serialization import deserialize_action, serialize_observation
    from openenv.core.env_server.types import Action, Observation, State, WSObservationResponse

    server = fastmcp.FastMCP("echo")

    @server.tool
    def echo_message(message: str) -> str:
        return message

    class Echo(mcp_environment.MCPEnvironment):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(server)

        def reset(self, *_: Any, **__: Any) -> Any:
            return Observation(metadata={"status": "ready"})

        def _step_impl(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("only tools are called")

        @property
        def state(self) -> Any:
            return State()

    played = Played("echo")

    def call(name: str) -> str:
        return f'<tool_call>{{"name": "{name}", "arguments": {{"message": "hé\\u001b[0m"}}}}</tool_call>'

    async def step(line: str) -> Any:
        action = deserialize_action(dict(played.act(line)), Action)
        answer = WSObservationResponse(data=serialize_observation(await Echo().step_async(action)))
        return Payload.from_data(json.loads(answer.model_dump_json())["data"]).observation

    assert played.reply(call("echo_message"), **asyncio.run(step(call("echo_message")))) == [
        (E, "hé␛[0m", "tool_result")
    ]
    ((role, text, channel),) = played.reply(call("none"), **asyncio.run(step(call("none"))))
    assert (role, channel) == (E, "tool_error")
    assert "none" in text
    for schema in (Action.model_json_schema(), CallToolAction.model_json_schema()):
        for name in ("echo", "agent_world_model"):
            loaded = config(name)
            check_action(loaded.action, schema)
            for final in loaded.reward.final:
                check_payload(final.action, schema, "final")
