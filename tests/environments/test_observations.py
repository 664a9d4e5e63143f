"""Observation mappings: which characters of a payload are shown, with which roles; none is lost or invented."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_cli.config.environment import EnvironmentConfig, InvalidConfig, ObservationRule
from echo_cli.environments.faults import SessionLost
from echo_cli.environments.observations import (
    ObservationMapping,
    exit_code_of,
    is_invalid,
    line_end,
    merge,
    safe,
    values_at,
)
from echo_cli.environments.protocol import Payload, TextPiece
from echo_cli.errors import EchoError
from echo_cli.trajectory import Role

C, E, W = Role.CONTEXT, Role.ENV_OUTPUT, Role.WARNING


def mapping(*rules: dict[str, Any], **keys: Any) -> ObservationMapping:
    parsed = tuple(ObservationRule(**rule) for rule in rules)
    return ObservationMapping(
        EnvironmentConfig.model_validate(
            {"url": "http://127.0.0.1:1", "tasks": {"seeds": 10}, "observation": parsed, **keys}
        )
    )


def payload(**observation: Any) -> Payload:
    return Payload(observation)


def reply(made: ObservationMapping, action: str = "act", **observation: Any) -> list[tuple[Any, ...]]:
    return shown(made.reply(payload(**observation), action))


def opening(made: ObservationMapping, **observation: Any) -> list[tuple[Any, ...]]:
    return shown(made.opening(payload(**observation)))


def shown(pieces: tuple[TextPiece, ...]) -> list[tuple[Any, ...]]:
    return [(piece.role, piece.text, piece.channel, *([True] if piece.cut else [])) for piece in pieces]


# --- Paths and values ------------------------------------------------------------------------------------------------

ROOT = {"a": {"b": [{"c": [{"d": 1}, {"d": 2}, {}, 3]}, {"c": "x"}]}, "n": None, "two words": "x", "0": "y"}


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("a.b[0].c[*].d", [1, 2]),
        ("a.b[*].c", [ROOT["a"]["b"][0]["c"], "x"]),  # type: ignore[index]
        ("a.b[1].c", ["x"]),
        ("a.b[2].c", []),
        ("a.b[1].c[0]", []),
        ("a[0]", []),
        ("a.b.c", []),
        ("a[*]", []),
        ("n", [None]),
        ("n.a", []),
        ("none", []),
        ("two words", ["x"]),
        ("0", ["y"]),
    ],
)
def test_values_at_a_path(path: str, values: list[Any]) -> None:
    assert values_at(ROOT, path) == values


def test_index_after_index() -> None:
    assert values_at({"m": [[1, 2], [3]]}, "m[0][1]") == [2]
    assert values_at({"m": [[1, 2], [3]]}, "m[*][*]") == [1, 2, 3]


@pytest.mark.parametrize("path", ["", ".", ".a", "a.", "a..b", "[0]", "a[", "a[x]", "a[-1]", "a[0]b", "a]", "a.[0]"])
def test_a_path_of_another_form_is_refused_at_once(path: str) -> None:
    for made in (lambda: mapping({"path": path}), lambda: mapping(exit_code=path)):
        with pytest.raises(EchoError, match="is not an observation path"):
            made()
    with pytest.raises(EchoError, match="is not an observation path"):
        mapping(invalid={"path": path, "pattern": "x"})


def test_a_drop_echo_that_is_no_pattern_is_refused_at_once() -> None:
    with pytest.raises(EchoError, match="drop_echo is not a regular expression"):
        mapping({"path": "a", "drop_echo": "({action}"})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "text"),
        (3, "3"),
        (0.5, "0.5"),
        (True, "true"),
        ({"b": 1, "a": [None, "é"]}, '{"a":[null,"é"],"b":1}'),
        ([], "[]"),
    ],
)
def test_values_as_text(value: Any, text: str) -> None:
    assert reply(mapping({"path": "x"}), x=value) == [(E, text, None)]


@pytest.mark.parametrize("observation", [{}, {"x": None}, {"x": ""}, {"y": "unlisted"}])
def test_nothing_is_nothing(observation: dict[str, Any]) -> None:
    made = mapping({"path": "x", "label": "x: "})
    assert reply(made, **observation) == opening(made, **observation) == []


@pytest.mark.parametrize(
    ("omitted", "value", "is_shown"),
    [
        (0, 0, False),
        (0, False, True),
        (0, 0.0, True),
        (0, "0", True),
        (False, False, False),
        (False, 0, True),
        (0.0, 0.0, False),
        ("ok", "ok", False),
        ("ok", "ok ", True),
    ],
)
def test_omit_compares_type_and_value(omitted: Any, value: Any, is_shown: bool) -> None:
    assert bool(reply(mapping({"path": "x", "omit": (omitted,)}), x=value)) is is_shown


def test_reward_done_and_metadata_have_paths_too() -> None:
    made = mapping({"path": "reward"}, {"path": "done"}, {"path": "metadata.note"})
    pieces = made.reply(Payload({}, 1.0, True, {"note": "end"}), "")
    assert shown(pieces) == [(E, "1.0", None), (W, "\n", None), (E, "true", None), (W, "\n", None), (E, "end", None)]


def test_a_value_nested_too_deep_loses_the_session() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SessionLost, match="nested too deep at 'x'"):
        mapping({"path": "x"}).reply(payload(x=deep), "")
    while deep:
        deep = deep.pop()  # so deep a list cannot be freed at once


# --- Rules -----------------------------------------------------------------------------------------------------------


def test_rules_show_in_their_order_at_their_time_with_their_roles() -> None:
    made = mapping(
        {"path": "instruction", "on": "reset", "label": "task: {text}\n"},
        {"path": "out", "channel": "stdout"},
        {"path": "err", "on": "step", "channel": "stderr"},
        {"path": "note", "role": "warning"},
        {"path": "hint", "on": "step", "role": "context"},
    )
    observation = {"instruction": "find it", "out": "o\n", "err": "e\n", "note": "n\n", "hint": "h\n"}
    assert opening(made, **observation) == [(C, "task: find it\n", None), (C, "o\n", "stdout"), (W, "n\n", None)]
    assert reply(made, **observation) == [
        (E, "o\n", "stdout"),
        (E, "e\n", "stderr"),
        (W, "n\n", None),
        (C, "h\n", None),
    ]


def test_a_label_is_the_harness_s_before_or_around() -> None:
    made = mapping(
        {"path": "a", "label": "a=", "channel": "x"},
        {"path": "b", "role": "warning", "label": "[exit {text}]\n", "channel": "y"},
    )
    assert reply(made, a="1\n", b=2) == [(W, "a=", "x"), (E, "1\n", "x"), (W, "[exit 2]\n", "y")]
    assert opening(made, a="1\n", b=2) == [(C, "a=1\n", "x"), (C, "[exit ", "y"), (W, "2", "y"), (C, "]\n", "y")]


def test_a_piece_after_an_open_line_begins_a_new_one() -> None:
    made = mapping({"path": "a[*]"}, {"path": "b", "channel": "b", "label": "b: "})
    assert reply(made, a=["1", "2\n", "3"], b="4") == [
        (E, "1", None),
        (W, "\n", None),
        (E, "2\n3", None),
        (W, "\nb: ", "b"),
        (E, "4", "b"),
    ]
    assert opening(made, a=["1", "2"], b="") == [(C, "1\n2", None)]


def test_delta_keeps_what_is_new() -> None:
    made = mapping({"path": "log", "delta": True})
    assert opening(made, log="a\n") == [(C, "a\n", None)]
    assert reply(made, log="a\nb\n") == [(E, "b\n", None)]
    assert reply(made, log="a\nb\n") == []
    assert reply(made, log="begun again\n") == [(E, "begun again\n", None)]
    assert reply(made) == []
    assert reply(made, log="begun again\n") == [(E, "begun again\n", None)]


def test_delta_remembers_what_it_did_not_show_and_each_of_many() -> None:
    made = mapping({"path": "log", "on": "step", "delta": True}, {"path": "m[*].text", "delta": True, "label": "- "})
    assert opening(made, log="before", m=[{"text": "x"}]) == [(C, "- x", None)]
    assert reply(made, log="before, after\n", m=[{"text": "x"}, {"text": "y"}]) == [
        (E, ", after\n", None),
        (W, "- ", None),
        (E, "y", None),
    ]


def test_two_rules_share_a_growing_text() -> None:
    made = mapping(
        {"path": "log", "on": "reset", "delta": True}, {"path": "log", "on": "step", "delta": True, "channel": "log"}
    )
    assert opening(made, log="a") == [(C, "a", None)]
    assert reply(made, log="ab") == [(E, "b", "log")]


@pytest.mark.parametrize(
    ("action", "text", "pieces"),
    [
        ("ls", "ls\nfile\n", [(W, "ls\n", "echo"), (E, "file\n", None)]),
        ("ls", "\n  ls \nfile\n", [(W, "\n  ls \n", "echo"), (E, "file\n", None)]),
        (" ls ", "ls", [(W, "ls", "echo")]),
        ("ls", "lsof\n", [(E, "lsof\n", None)]),
        ("1", "10\n", [(E, "10\n", None)]),
        ("ls", "file\nls\n", [(E, "file\nls\n", None)]),
        ("", "\nfile", [(E, "\nfile", None)]),
        ("a.*[", "a.*[\nx", [(W, "a.*[\n", "echo"), (E, "x", None)]),
        ("b\x1bc", "b\x1bc\nx", [(W, "b␛c\n", "echo"), (E, "x", None)]),
    ],
)
def test_the_echo_of_the_action_is_a_warning(action: str, text: str, pieces: list[Any]) -> None:
    assert reply(mapping({"path": "x", "drop_echo": True}), action, x=text) == pieces


def test_an_echo_in_a_frame() -> None:
    made = mapping({"path": "x", "drop_echo": r"\[\w+\] {action}\n"})
    assert reply(made, "a+b", x="[me] a+b\nyes\n") == [(W, "[me] a+b\n", "echo"), (E, "yes\n", None)]
    assert reply(made, "a+b", x="no [me] a+b\n") == [(E, "no [me] a+b\n", None)]
    assert opening(made, x="[me] act\n") == [(C, "[me] act\n", None)]


def test_an_echo_without_what_the_environment_omits() -> None:
    made = mapping({"path": "x", "drop_echo": True, "echo_omits": (r"\[GAME\]", "!")})
    assert reply(made, "[GAME] a!", x="a\nyes\n") == [(W, "a\n", "echo"), (E, "yes\n", None)]
    assert reply(made, "[GAME] a!", x="[GAME] a!\nyes\n") == [(W, "[GAME] a!\n", "echo"), (E, "yes\n", None)]
    assert reply(made, "b", x="a\nyes\n") == [(E, "a\nyes\n", None)]


def test_what_is_dropped_is_shown_to_nobody() -> None:
    made = mapping(
        {"path": "x", "channel": "out", "drop": ("<[^>]*>", r"(?m)^ at .*\n"), "label": "x: "},
        {"path": "n"},
    )
    assert reply(made, x="a<0123456789>b\r\n at line 1\n at line 2\nc", n="<1>") == [
        (W, "x: ", "out"),
        (E, "ab\nc", "out"),
        (W, "\n", None),
        (E, "<1>", None),
    ]
    assert reply(made, x="<all>") == opening(made, x="<all>") == []
    assert opening(made, x="a<1>") == [(C, "x: a", "out")]


def test_boilerplate_is_split_off_as_warnings() -> None:
    made = mapping({"path": "x", "channel": "out", "split": ("<[^>]*>", "b*", r"\Anothing\.\Z")})
    assert reply(made, x="<1>cab<2><3>d") == [
        (W, "<1>", "boilerplate"),
        (E, "ca", "out"),
        (W, "b<2><3>", "boilerplate"),
        (E, "d", "out"),
    ]
    assert reply(made, x="nothing.") == [(W, "nothing.", "boilerplate")]
    assert opening(made, x="a<1>") == [(C, "a", "out"), (W, "<1>", "boilerplate")]


def test_volatile_text_is_shown_and_never_learned() -> None:
    rules = ({"path": "x", "channel": "out", "split": ("pid",)}, {"path": "n", "role": "warning"})
    made = mapping(*rules, volatile=(r"pid \d+", r"0x[0-9a-f]+"))
    assert reply(made, x="at 0xff, pid 12.\n", n="0xff") == [
        (E, "at ", "out"),
        (C, "0xff", "volatile"),
        (E, ", ", "out"),
        (W, "pid", "boilerplate"),
        (C, " 12", "volatile"),
        (E, ".\n", "out"),
        (W, "0xff", None),
    ]
    assert opening(made, x="at 0xff\n") == [(C, "at 0xff\n", "out")]


# --- Characters and size ---------------------------------------------------------------------------------------------


def test_no_character_acts_on_a_terminal() -> None:
    assert safe("a\r\nb\tc\n") == "a\nb\tc\n"
    assert safe("\x1b[31m\x00\x07\r\x7f") == "␛[31m␀␇␍␡"
    assert safe("\x85\x9b1m\ud800 \U0001f600é") == "\ufffd\ufffd1m\ufffd \U0001f600é"
    for code in [*range(0xA0), *range(0xD800, 0xE000)]:
        kept = chr(code) in "\n\t" or 0x20 <= code < 0x7F
        assert (safe(chr(code)) == chr(code)) is kept


def test_patterns_see_safe_text() -> None:
    assert reply(mapping({"path": "x", "split": ("␛",)}), x="a\x1bb") == [
        (E, "a", None),
        (W, "␛", "boilerplate"),
        (E, "b", None),
    ]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("abcde", [(E, "abcde", None)]),
        ("abcdef", [(E, "abcde", None, True)]),
        ("\r\n" * 5, [(E, "\n" * 5, None)]),
        ("\r\n" * 6, [(E, "\n" * 5, None, True)]),
        ("ab<c>d", [(E, "ab", None, True), (W, "<c>", "boilerplate")]),
        ("<abc>d", [(W, "<abc>", "boilerplate", True)]),
        ("<abcdef>", [(E, "<abcd", None, True)]),
    ],
)
def test_a_text_is_cut_at_the_cap(text: str, pieces: list[Any]) -> None:
    assert reply(mapping({"path": "x", "split": ("<[a-z]*>",)}, max_observation_chars=5), x=text) == pieces


def test_the_cap_is_each_rule_s_and_of_its_texts_together() -> None:
    made = mapping({"path": "a[*]", "label": "{text};\n"}, {"path": "b"}, max_observation_chars=4)
    assert reply(made, a=["ab", "cd", "e", "f"], b="12345") == [
        (E, "ab", None),
        (W, ";\n", None),
        (E, "cd", None, True),
        (W, ";\n", None),
        (E, "1234", None, True),
    ]
    assert reply(made, a=["abc", "de"], b="1") == [
        (E, "abc", None),
        (W, ";\n", None),
        (E, "d", None, True),
        (W, ";\n", None),
        (E, "1", None),
    ]
    assert opening(made, a=["abcde"], b="1") == [(C, "abcd", None, True), (C, ";\n1", None)]


def test_nothing_is_added_between_a_cut_and_what_follows() -> None:
    made = mapping({"path": "a"}, {"path": "b"}, max_observation_chars=2)
    assert reply(made, a="abc", b="d") == [(E, "ab", None, True), (E, "d", None)]


def test_patterns_see_a_text_only_up_to_the_cap() -> None:
    seen = {"drop": ("a(?=.*secret)", "-"), "drop_echo": "a(?=.*secret)", "split": ("a(?=.*secret)",)}
    made = mapping({"path": "x", **seen}, volatile=("a(?=.*secret)",), max_observation_chars=8)
    assert reply(made, x="aaa-secret") == [(E, "aaasecr", None, True)]
    assert reply(made, x="--------secret") == [(W, "\n", None, True)]  # all of it is dropped, and more was there
    assert reply(made, x="--") == []
    invalid = InvalidConfig(path="x", pattern="secret")
    assert [is_invalid(payload(x="aaa-secret"), invalid, chars) for chars in (8, 10)] == [False, True]


def test_delta_comes_before_the_cap() -> None:
    made = mapping({"path": "x", "delta": True}, max_observation_chars=3)
    assert opening(made, x="abcdef") == [(C, "abc", None, True)]
    assert reply(made, x="abcdefgh") == [(E, "gh", None)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("cap", [50_000, 30_000_000])
def test_twenty_megabytes_are_no_trouble(cap: int) -> None:
    made = mapping({"path": "x", "delta": True, "split": ("b+",)}, volatile=("c",), max_observation_chars=cap)
    before, after = "\x1b" * 10_000_000, "a\x1b\r\n" * 2_500_000
    made.opening(payload(x=before))
    (piece,) = made.reply(payload(x=before + after), "a")
    assert (len(piece.text), piece.cut) == (min(cap, 7_500_000), cap == 50_000)


@pytest.mark.timeout(60)
def test_a_million_values_are_no_trouble() -> None:
    made = mapping({"path": "m[*].t", "label": "- ", "channel": "m"}, {"path": "j", "channel": "j"})
    pieces = made.reply(payload(m=[{"t": "y\n"}] * 1_000_000, j=[0] * 1_000_000), "a")
    assert len(pieces) == 50_001
    assert [piece.channel for piece in pieces if piece.cut] == ["m", "j"]


# --- The rest of a payload -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "code"), [(0, 0), (127, 127), (None, None), (True, None), (1.0, None), ("0", None)])
def test_exit_codes_are_whole_numbers(value: Any, code: int | None) -> None:
    assert exit_code_of(payload(result={"code": value}), "result.code") == code
    assert exit_code_of(payload(), "result.code") is None
    assert exit_code_of(payload(result={"code": value}), None) is None


def test_an_invalid_action_is_where_the_pattern_matches() -> None:
    invalid = InvalidConfig(path="err", pattern="^sh: ")
    assert is_invalid(payload(err="sh: syntax error"), invalid)
    assert not any(is_invalid(payload(err=err), invalid) for err in ("cat: no", "", None))
    assert not is_invalid(payload(), invalid)
    assert is_invalid(payload(valid=False), InvalidConfig(path="valid", pattern="^false$"))


def test_merge_joins_neighbours_of_one_role_and_channel() -> None:
    pieces = [
        TextPiece(C, ""),
        TextPiece(E, "a", "x"),
        TextPiece(E, "b", "x", cut=True),
        TextPiece(E, "c", "x"),
        TextPiece(E, "d"),
        TextPiece(C, "e"),
        TextPiece(C, "f"),
    ]
    assert merge(pieces) == (
        TextPiece(E, "ab", "x", cut=True),
        TextPiece(E, "c", "x"),
        TextPiece(E, "d"),
        TextPiece(C, "ef"),
    )
    assert merge(()) == ()


def test_the_newline_that_a_prompt_needs() -> None:
    assert [
        line_end(pieces) for pieces in ([], [TextPiece(E, "a\n")], [TextPiece(E, "a")], [TextPiece(E, "a", cut=True)])
    ] == [
        "",
        "",
        "\n",
        "",
    ]


# --- What holds of every mapping -------------------------------------------------------------------------------------

WORLD = st.text(st.sampled_from("ab \n\r\t\x1b\ud800é"), max_size=12)
LABEL = st.sampled_from(["", "⟦", "⟦{text}⟧", "⟦{text}⟧\n"])
RULE = st.fixed_dictionaries(
    {
        "path": st.sampled_from(["x", "y", "m[*].t"]),
        "role": st.sampled_from(["env_output", "context", "warning"]),
        "on": st.sampled_from(["reset", "step", "both"]),
        "channel": st.sampled_from([None, "p", "q"]),
        "label": LABEL,
        "drop_echo": st.sampled_from([False, True, "a*{action}"]),
        "split": st.sampled_from([(), ("a+",), ("b?", "a ")]),
    }
)
OBSERVATION = st.fixed_dictionaries({"x": WORLD, "y": WORLD, "m": st.lists(st.fixed_dictionaries({"t": WORLD}))})


@settings(max_examples=300, deadline=None)
@given(st.lists(RULE, max_size=4), OBSERVATION, WORLD, st.booleans())
def test_the_pieces_are_the_labels_and_texts_in_order_and_nothing_else(
    rules: list[dict[str, Any]], observation: dict[str, Any], action: str, is_reset: bool
) -> None:
    made = mapping(*rules, volatile=(" +", "é"))
    pieces = made.opening(payload(**observation)) if is_reset else made.reply(payload(**observation), action)

    expected, worlds = "", []
    for rule in rules:
        if rule["on"] in ("both", "reset" if is_reset else "step"):
            for value in values_at(observation, rule["path"]):
                text = safe(value)
                if text:
                    expected += "\n" if expected and not expected.endswith("\n") else ""
                    before, _, after = rule["label"].partition("{text}")
                    expected += before + text + after
                    worlds.append(text)
    assert "".join(piece.text for piece in pieces) == expected
    assert {piece.role for piece in pieces} <= ({C, W} if is_reset else {C, E, W})
    assert not any("⟦" in piece.text or "⟧" in piece.text for piece in pieces if piece.role is E)
    learned = "".join(piece.text for piece in pieces if piece.role is E)
    assert len(learned) <= sum(map(len, worlds))
    assert not set(learned) & {" ", "é"}
    assert all(piece.text and not piece.cut for piece in pieces)
    assert merge(pieces) == pieces
