"""Action mappings: which text is an action, and whether the environment accepts it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cli.config.environment import ActionConfig
from echo_cli.environments.action_schema import Unknown, find_misfit
from echo_cli.environments.actions import ActionMapping, Unparsable, check_action, check_payload, wrap_action
from echo_cli.errors import EchoError


def mapping(**keys: Any) -> ActionMapping:
    return ActionMapping(ActionConfig(**keys))


def template(**fields: Any) -> ActionMapping:
    return mapping(template=fields)


def reason(made: ActionMapping, text: str) -> str:
    with pytest.raises(Unparsable) as raised:
        made.parse(text)
    return raised.value.reason


# --- Templates -------------------------------------------------------------------------------------------------------


def test_a_template_is_filled_at_every_depth_and_constants_stay() -> None:
    made = template(kind="exec", n=3, ok=True, none=None, deep={"run": ["a", "{text}", {"x": "<{text}|{text}>"}]})
    assert made.parse('say "{text}"') == {
        "kind": "exec",
        "n": 3,
        "ok": True,
        "none": None,
        "deep": {"run": ["a", 'say "{text}"', {"x": '<say "{text}"|say "{text}">'}]},
    }


@pytest.mark.parametrize(
    ("cast", "text", "value"),
    [
        ("int", "3", 3),
        ("int", " -12 ", -12),
        ("float", "3", 3.0),
        ("float", "-.5e1", -5.0),
        ("bool", "True", True),
        ("bool", " false", False),
        ("json", ' {"a": [1, 2.5, null]} ', {"a": [1, 2.5, None]}),
        ("json", '"x"', "x"),
    ],
)
def test_a_cast_gives_a_value_of_its_type(cast: str, text: str, value: Any) -> None:
    got = template(x=f"{{text:{cast}}}").parse(text)["x"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("cast", "texts"),
    [
        ("int", ["", "x", "3.0", "1_000", "٣", "1e3", "0x10", "9" * 5000, "1\n2"]),
        ("float", ["", "nan", "inf", "1e999", "1_0.5", ".", "٣.5"]),
        ("bool", ["", "1", "yes", "truefalse"]),
        ("json", ["", "{", "NaN", "[Infinity]", "-Infinity", "1e999", "9" * 5000, "[" * 100_000, '"\\ud800"']),
        ("json", ["[" * 65 + "]" * 65, '{"a":' * 500 + "1" + "}" * 500]),
    ],
)
def test_what_does_not_cast_is_no_action(cast: str, texts: list[str]) -> None:
    for text in texts:
        why = reason(template(x=f"{{text:{cast}}}"), text)
        assert len(why) < 80
        assert "\n" not in why


def test_json_of_the_deepest_nesting_is_taken() -> None:
    assert template(x="{text:json}").parse("[" * 64 + "]" * 64)


@pytest.mark.parametrize(
    ("keys", "message", "tip"),
    [
        ({}, "environment.action.template is missing", "{text}"),
        ({"template": {"a": "constant"}}, "has no {text}", "{text}"),
        ({"template": {"a": "{text:integer}"}}, "unknown cast 'integer'", "int"),
        ({"template": {"a": "go {text:int}"}}, "must be the whole string", "{text}"),
        ({"kind": "json", "template": {"a": "{text}"}}, "is not used with kind json", "null"),
    ],
)
def test_a_template_that_cannot_work_is_refused_at_once(keys: Any, message: str, tip: str) -> None:
    with pytest.raises(EchoError) as raised:
        mapping(**keys)
    assert message in raised.value.message
    assert tip in str(raised.value.tip)


# --- JSON and tool calls ---------------------------------------------------------------------------------------------


def test_json_is_one_object() -> None:
    made = mapping(kind="json")
    assert made.parse(' {"a": {"b": 1}} ') == {"a": {"b": 1}}
    assert reason(made, "[1]") == "the line is no JSON object"
    assert reason(made, "{a: 1}").startswith("not JSON: ")
    assert reason(made, '{"a": NaN}') == "not JSON: a number out of range"
    assert reason(made, '{"a": 1} {"a": 2}') == "not JSON: extra data"


def call(name: str = "echo", arguments: Any = None) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments or {}})}</tool_call>"


def test_a_tool_call_anywhere_becomes_openenvs() -> None:
    made = mapping(kind="tool_call")
    assert made.parse(f"I will: {call('echo', {'message': 'hé'})} now.") == {
        "type": "call_tool",
        "tool_name": "echo",
        "arguments": {"message": "hé"},
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no tool call"),
        (call() + call(), "more than one tool call"),
        ("<tool_call>{}", "the tool call does not end"),
        ("<tool_call>{}</tool_call>", "the tool call has not exactly name and arguments"),
        ('<tool_call>{"name": "a"}</tool_call>', "the tool call has not exactly name and arguments"),
        ('<tool_call>{"name": "a", "arguments": {}, "id": 1}</tool_call>', "has not exactly name and arguments"),
        ('<tool_call>{"name": 1, "arguments": {}}</tool_call>', "the tool call's name is no text"),
        ('<tool_call>{"name": "a", "arguments": "{}"}</tool_call>', "arguments is no JSON object"),
        ("<tool_call>[]</tool_call>", "the tool call is no JSON object"),
        ("<tool_call>" * 10_000, "more than one tool call"),
    ],
)
def test_what_is_no_tool_call(text: str, why: str) -> None:
    assert why in reason(mapping(kind="tool_call"), text)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "say", "parameters": {"text": "hi"}}',
        ' {"name": "say", "arguments": {"text": "hi"}}\n',
        'so <tool_call>{"name": "say", "parameters": {"text": "hi"}}</tool_call>',
        '{hm} <tool_call>{"name": "say", "arguments": {"text": "hi"}}</tool_call>',
    ],
)
def test_a_tool_call_in_other_words(text: str) -> None:
    called = {"type": "call_tool", "tool_name": "say", "arguments": {"text": "hi"}}
    assert mapping(kind="tool_call").parse(text) == called


def test_an_object_that_is_no_tool_call() -> None:
    made = mapping(kind="tool_call")
    both = '{"name": "say", "arguments": {}, "parameters": {}}'
    for text in ('{"text": "hi"}', both):
        assert reason(made, text) == "the tool call has not exactly name and arguments"
    assert reason(made, '{"name": "say", "parameters": 1}') == "parameters is no JSON object"
    assert reason(made, '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}') == "not JSON: extra data"


@pytest.mark.parametrize(
    ("keys", "text", "parse"),
    [
        ({"kind": "tool_call"}, "I do not know.", "none"),
        ({"kind": "tool_call"}, "", "none"),
        ({"kind": "tool_call"}, '{"name": "say", ', "malformed"),
        ({"kind": "tool_call"}, "<tool_call></tool_call>", "malformed"),
        ({"kind": "tool_call"}, "<tool_call>{}", "malformed"),
        ({"kind": "tool_call"}, call() + call(), "malformed"),
        ({"kind": "json"}, " \n", "none"),
        ({"kind": "json"}, "{", "malformed"),
        ({"kind": "json"}, "[1]", "malformed"),
        ({"template": {"x": "{text:int}"}}, "", "none"),
        ({"template": {"x": "{text:int}"}}, "three", "malformed"),
        ({"template": {"x": "{text:int}"}, "extract": r"<(.*)>"}, "3", "none"),
        ({"template": {"x": "{text:int}"}, "extract": r"<(.*)>"}, "<>", "none"),
        ({"template": {"x": "{text:int}"}, "extract": r"<(.*)>"}, "<x>", "malformed"),
    ],
)
def test_an_action_that_went_wrong_is_told_from_none_at_all(keys: Any, text: str, parse: str) -> None:
    with pytest.raises(Unparsable) as raised:
        mapping(**keys).parse(text)
    assert raised.value.parse == parse


# --- Extract and odd text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extract", "line", "wrapped"),
    [
        ("<py>(.*)</py>", "ls", "<py>ls</py>"),
        ("<py>(.*)</py>", "so <py>ls</py>", "so <py>ls</py>"),  # it holds an action already
        (r"(?s)```(?:bash|sh)?\n(.*?)\n```", "ls -l", "```\nls -l\n```"),
        (r"ACTION:\s*(.+)", "ls", "ACTION:ls"),
        (r"(?i)<answer>\s*(?P<answer>.*?)\s*</answer>", "42", "<answer>42</answer>"),
        (r"^> (.*)$", "ls", "> ls"),
        (r'(?:do|run)\s+"([^"]+)"', "A B", 'do "A B"'),
        (r"cmd=(?:'([^']*)')?", "ls", "cmd='ls'"),
        (r"\A\w{3}: ([a-z]+)[.!]\Z", "ls", "xxx: ls."),
        (r"[0-9]\) (?:(\w+)|none)[^x\w]\D", "ls", "0) ls  "),
        (r"[^ ](\w+)[^x]", "ls", "xls "),
        (r"\[(\w+ \w+)\]", "ls", "ls"),  # the pattern refuses the line
        ("(?x) <do>\\ # opening\n (.+) </do>", "ls", "<do> ls</do>"),
        (r"(?#tag)\x3c(?i:DO){2,3}>((a)|.*?)(?=</)[^\]]", "ls", "ls"),  # what a look-ahead asks for is not written
        (r"(?:x|\(([^()\]\n]+)\))+?$", "ls", "(ls)"),
        (r"!{1}\t[\t-]?(\S+)[]x]\b", "ls", "ls"),  # no word begins after the bracket
        (r"!{1}\t[\t-]?(\S+)[]x]\B", "ls", "!\tls]"),
        ("go .*", "ls", "ls"),  # it has no group
        (r"(?<=x)(.*)", "ls", "ls"),
    ],
)
def test_a_line_is_wrapped_as_the_pattern_asks(extract: str, line: str, wrapped: str) -> None:
    config = ActionConfig(template={"x": "{text}"}, extract=extract)
    assert wrap_action(config, line) == wrapped
    if wrapped != line:
        assert ActionMapping(config).parse(wrapped) == {"x": line}


@given(st.text(max_size=20))
def test_without_a_pattern_or_within_tags_every_line_is_the_action(line: str) -> None:
    assert wrap_action(ActionConfig(template={"x": "{text}"}), line) == line
    config = ActionConfig(template={"x": "{text}"}, extract=r"(?s)<do>(.*)</do>")
    assert ActionMapping(config).parse(wrap_action(config, line)) == {"x": line}


def test_extract_takes_its_first_group_or_the_whole_match() -> None:
    assert mapping(template={"m": "{text}"}, extract=r"move: (\w+)").parse("so move: up!") == {"m": "up"}
    assert mapping(template={"m": "{text}"}, extract=r"\[\w \w\]").parse("I say [A C].") == {"m": "[A C]"}
    assert reason(mapping(template={"m": "{text}"}, extract="x(y)?"), "x") == "no action in it"
    assert reason(mapping(kind="json", extract="{.*}"), "none") == "no action in it"


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_an_action_or_none_and_the_action_is_json(text: str) -> None:
    kinds = [{"kind": "json"}, {"kind": "tool_call"}, {"template": {"a": "{text}"}}, {"template": {"a": "{text:json}"}}]
    for keys in kinds:
        try:
            action = mapping(**keys).parse(text)
        except Unparsable:
            continue
        assert json.loads(json.dumps(action, ensure_ascii=False, allow_nan=False).encode()) == action


def test_half_characters_and_nul_break_nothing() -> None:
    assert template(a="{text}").parse("a\x00b\ud800c") == {"a": "a\x00b\ufffdc"}


# --- Against the environment's schema --------------------------------------------------------------------------------

METADATA = {"type": "object", "additionalProperties": True}
GENERIC = {"type": "object", "title": "Action", "properties": {"metadata": METADATA}, "additionalProperties": False}
CALL_TOOL = {
    "type": "object",
    "properties": {
        "metadata": METADATA,
        "type": {"const": "call_tool", "type": "string", "default": "call_tool"},
        "tool_name": {"type": "string"},
        "arguments": {"type": "object", "additionalProperties": True},
    },
    "required": ["tool_name"],
    "additionalProperties": False,
}
LIST_TOOLS = {
    "type": "object",
    "properties": {"metadata": METADATA, "type": {"const": "list_tools", "type": "string"}},
    "additionalProperties": False,
}
EITHER = {
    "$defs": {"CallToolAction": CALL_TOOL, "ListToolsAction": LIST_TOOLS},
    "discriminator": {"propertyName": "type"},
    "oneOf": [{"$ref": "#/$defs/ListToolsAction"}, {"$ref": "#/$defs/CallToolAction"}],
}
SHELL = {
    "$defs": {"Mode": {"enum": ["exec", "view"], "type": "string"}},
    "type": "object",
    "properties": {
        "metadata": METADATA,
        "mode": {"$ref": "#/$defs/Mode"},
        "command": {"type": "string"},
        "wait": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        "env": {"type": "object", "additionalProperties": {"type": "string"}},
        "words": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["command"],
    "additionalProperties": False,
}


def checked(schema: Any, **fields: Any) -> None:
    check_action(ActionConfig(template=fields), schema)


def test_templates_that_the_environment_takes() -> None:
    checked(SHELL, command="{text}")
    checked(SHELL, command="run {text}", mode="exec", wait=None, env={"A": "{text}"}, words=["a", "{text}"])
    checked(SHELL, command="x", wait="{text:int}", mode="{text}")
    checked(SHELL, command="x", wait="{text:json}")
    checked({"type": "object"}, anything="{text}")
    checked({}, anything="{text}")


@pytest.mark.parametrize(
    ("fields", "message", "tip"),
    [
        ({"comand": "{text}"}, "environment.action.template.comand is unknown", "did you mean 'command'?"),
        ({"mode": "{text}"}, "environment.action.template lacks the required field 'command'", "add it"),
        ({"command": "{text:int}"}, "template.command is of type integer; expected string", "/schema"),
        ({"command": "c", "wait": "{text}"}, "is of type string; expected integer or null", "{text:int}"),
        ({"command": "{text}", "wait": 1.5}, "template.wait is 1.5; expected integer or null", "/schema"),
        ({"command": "{text}", "wait": True}, "template.wait is true", "/schema"),
        ({"command": "{text}", "mode": "run"}, 'is "run"; expected "exec" or "view"', "/schema"),
        ({"command": "{text}", "mode": 1}, 'template.mode is 1; expected "exec" or "view"', "/schema"),
        ({"command": "{text}", "env": {"A": 1}}, "template.env.A is 1", "/schema"),
        ({"command": "{text}", "words": ["a", 2]}, "template.words[1] is 2; expected string", "/schema"),
        ({"command": ["{text}"]}, 'template.command is ["<string>"]', "/schema"),
    ],
)
def test_templates_that_the_environment_would_refuse(fields: Any, message: str, tip: str) -> None:
    with pytest.raises(EchoError) as raised:
        checked(SHELL, **fields)
    assert message in raised.value.message
    assert tip in str(raised.value.tip)


@pytest.mark.parametrize("schema", [GENERIC, CALL_TOOL, LIST_TOOLS, EITHER, {"type": "object"}, {}])
def test_mcp_environments_take_tool_calls(schema: Any) -> None:
    check_action(ActionConfig(kind="tool_call"), schema)
    checked(schema, type="call_tool", tool_name="echo_message", arguments={"message": "{text}"})
    check_payload({"type": "call_tool", "tool_name": "verify", "arguments": {"mode": "code"}}, schema, "here")


@pytest.mark.parametrize("schema", [GENERIC, CALL_TOOL, EITHER])
def test_a_wrong_tool_call_of_the_config_is_refused(schema: Any) -> None:
    with pytest.raises(EchoError, match=r"reward\.final\[0\]\.action\.tool is unknown to the environment"):
        check_payload({"type": "call_tool", "tool": "verify"}, schema, "environment.reward.final[0].action")
    with pytest.raises(EchoError, match=r"^here.tool_name is 1"):
        check_payload({"type": "call_tool", "tool_name": 1}, schema, "here")


def test_other_environments_take_no_tool_calls() -> None:
    with pytest.raises(EchoError, match=r"accepts no tool calls \(fields: metadata, mode, command") as raised:
        check_action(ActionConfig(kind="tool_call"), SHELL)
    assert "environment.action.template" in str(raised.value.tip)
    check_action(ActionConfig(kind="json"), SHELL)  # JSON actions cannot be checked before the policy writes one


def test_names_of_a_server_are_data() -> None:
    schema = {"type": "object", "properties": {"a\x1b[31m": {}}, "required": ["\x1b]0;x\x07"]}
    with pytest.raises(EchoError) as raised:
        checked(schema, a="{text}")
    assert "\x1b" not in raised.value.message + str(raised.value.tip)


def test_a_schema_of_any_shape_ends() -> None:
    circle: Any = {"$defs": {"A": {"anyOf": [{"$ref": "#/$defs/B"}] * 9}, "B": {"allOf": [{"$ref": "#/$defs/A"}] * 9}}}
    assert find_misfit({}, {**circle, "$ref": "#/$defs/A"}) is not None
    tree: Any = {"properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    assert find_misfit({"next": {"next": {}}}, tree) is None
    assert find_misfit({"next": {"next": {"other": 1}}}, tree) is not None
    for odd in ({"properties": []}, {"type": 1}, {"anyOf": {}}, {"required": 3}, {"$ref": 1}, {"$ref": "http://x"}, []):
        assert find_misfit({"a": Unknown("string")}, odd) is None
    deep: Any = {}
    for _ in range(3000):
        deep = {"allOf": [deep]}
    with pytest.raises(EchoError, match="nested too deep"):
        check_payload({"a": 1}, deep, "here")
