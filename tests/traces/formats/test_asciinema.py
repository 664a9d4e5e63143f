"""Casts: every printed character is in a segment, in order, and rules decide its role."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import echo_cli
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.formats.terminals.asciinema import read
from echo_cli.traces.formats.terminals.terminal_line import prompts, shown, typed
from echo_cli.traces.retokenize import render_trace
from echo_cli.trajectory import Role

Event = tuple[str, str]
Roles = list[tuple[str, str]]
PLAIN, DOLLAR = ImportOptions(), ImportOptions(prompt=r"\$ ")
HEADERS = {
    2: {"version": 2, "width": 80, "height": 24, "title": "demo"},
    3: {"version": 3, "term": {"cols": 80, "rows": 24}},
}


def write(tmp_path: Path, events: list[Event], version: int = 3) -> Path:
    path = tmp_path / "demo.cast"
    if version == 1:
        frames = [[0.5, data] for code, data in events if code == "o"]
        path.write_text(json.dumps({"version": 1, "width": 80, "height": 24, "stdout": frames}, indent=2))
    else:
        lines = [HEADERS[version], *([0.25 * number, *event] for number, event in enumerate(events))]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def only(path: Path, options: ImportOptions) -> Trace:
    (trace,) = read(path, options)
    assert isinstance(trace, Trace), trace
    return trace


def roles(trace: Trace) -> Roles:
    return [(segment.role.name.lower(), segment.text) for segment in trace.segments]


def refusals(path: Path, options: ImportOptions = PLAIN) -> list[tuple[str, str]]:
    found = list(read(path, options))
    assert all(isinstance(entry, Refusal) for entry in found), found
    return [(entry.where.removeprefix(str(path)), entry.reason) for entry in found if isinstance(entry, Refusal)]


@pytest.mark.parametrize("version", [2, 3])
def test_a_session_with_input_typed_key_by_key(tmp_path: Path, version: int) -> None:
    events = [
        ("o", "\x1b[?2004h\x1b[32m$ \x1b[0m"),
        ("i", "l"),
        ("o", "l"),
        ("r", "90x30"),
        ("i", "s"),
        ("o", "s"),
        ("i", "\r"),
        ("o", "\r\n"),
        ("o", "a.txt\r\n"),
        ("m", "a marker"),
        ("o", "\x1b[32m$ \x1b[0m"),
        ("i", "\x04"),
        ("o", "exit\r\n"),
        ("z", "a code of a later version"),
        ("x", "7"),
    ]
    trace = only(write(tmp_path, events, version), DOLLAR)
    assert roles(trace) == [
        ("context", "\x1b[?2004h\x1b[32m$ \x1b[0m"),
        ("action", "ls\r"),
        ("warning", "ls"),
        ("warning", "\r\n"),
        ("env_output", "a.txt\r\n"),
        ("context", "\x1b[32m$ \x1b[0m"),
        ("action", "\x04"),
        ("env_output", "exit\r\n"),
    ]
    assert [(turn.command, turn.output, turn.exit_code) for turn in trace.turns] == [
        ("ls", "a.txt\r\n", None),
        ("\x04", "exit\r\n", 7),
    ]
    assert trace.reward is None
    assert trace.world_model_only


def test_without_a_prompt_pattern_prompts_are_what_the_world_printed(tmp_path: Path) -> None:
    events = [("o", "$ "), ("i", "ls\r"), ("o", "ls\r\na.txt\r\n$ ")]
    assert roles(only(write(tmp_path, events), PLAIN)) == [
        ("context", "$ "),
        ("action", "ls\r"),
        ("warning", "ls\r\n"),
        ("env_output", "a.txt\r\n$ "),
    ]


@pytest.mark.parametrize(
    ("name", "events", "expected"),
    [
        (
            "a password is not repeated, so nothing is an echo",
            [("i", "se\r"), ("o", "\r\nsecret place\r\n")],
            [("action", "se\r"), ("env_output", "\r\nsecret place\r\n")],
        ),
        (
            "half of an echo is none",
            [("i", "ls -l\r"), ("o", "ls: not found\r\n")],
            [("action", "ls -l\r"), ("env_output", "ls: not found\r\n")],
        ),
        (
            "an echo with colours",
            [("i", "ls\r"), ("o", "\x1b[1ml\x1b[0ms\x1b[?2004l\r\nx")],
            [("action", "ls\r"), ("warning", "\x1b[1ml\x1b[0ms\x1b[?2004l\r\n"), ("env_output", "x")],
        ),
        (
            "the line's editor ends bracketed paste",
            [("i", "ls\r"), ("o", "ls\r\n\x1b[?2004l\r\x1b[1mx")],
            [("action", "ls\r"), ("warning", "ls\r\n\x1b[?2004l\r"), ("env_output", "\x1b[1mx")],
        ),
        (
            "the rest of an echo that came late",
            [("i", "l"), ("i", "s"), ("o", "l"), ("i", "\r"), ("o", "s\r\nx")],
            [("action", "ls\r"), ("warning", "l"), ("warning", "s\r\n"), ("env_output", "x")],
        ),
        (
            "backspaces stay in what was typed, and how they look is echo",
            [("i", "lx"), ("o", "lx"), ("i", "\x7fs"), ("o", "\b\x1b[Ks"), ("i", "\r"), ("o", "\r\nx")],
            [("action", "lx\x7fs\r"), ("warning", "lx\b\x1b[Ks"), ("warning", "\r\n"), ("env_output", "x")],
        ),
        (
            "what a completion writes is part of the line",
            [("i", "cat a\t"), ("o", "cat a.txt "), ("i", "\r"), ("o", "\r\nx")],
            [("action", "cat a\t\r"), ("warning", "cat a.txt "), ("warning", "\r\n"), ("env_output", "x")],
        ),
        (
            "Ctrl-C ends a line",
            [("i", "wait\r"), ("o", "wait\r\n"), ("i", "\x03"), ("o", "^C\r\n$ "), ("i", "ls\r"), ("o", "ls\r\n")],
            [
                ("action", "wait\r"),
                ("warning", "wait\r\n"),
                ("action", "\x03"),
                ("warning", "^C\r\n"),
                ("context", "$ "),
                ("action", "ls\r"),
                ("warning", "ls\r\n"),
            ],
        ),
        (
            "lines pasted at once are repeated at the prompts",
            [("o", "$ "), ("i", "a\nb\n"), ("o", "a\r\n1\r\n$ b\r\n2\r\n")],
            [
                ("context", "$ "),
                ("action", "a\n"),
                ("action", "b\n"),
                ("warning", "a\r\n"),
                ("env_output", "1\r\n"),
                ("context", "$ "),
                ("warning", "b\r\n"),
                ("env_output", "2\r\n"),
            ],
        ),
        (
            "typed before the prompt was there",
            [("i", "ls\r"), ("o", "$ "), ("o", "ls\r\nx")],
            [("action", "ls\r"), ("context", "$ "), ("warning", "ls\r\n"), ("env_output", "x")],
        ),
        (
            "a prompt's last sequence is printed at the first key",
            [("o", "$ "), ("i", "l"), ("o", "\x1b[0ml"), ("i", "\r"), ("o", "\r\nx")],
            [("context", "$ "), ("action", "l\r"), ("warning", "\x1b[0ml"), ("warning", "\r\n"), ("env_output", "x")],
        ),
        (
            "what was never entered is the last action",
            [("o", "$ "), ("i", "ex"), ("o", "ex")],
            [("context", "$ "), ("action", "ex"), ("warning", "ex")],
        ),
        (
            "a key that needs no Enter",
            [("o", "(END)"), ("i", "q"), ("o", "\r\nbye")],
            [("context", "(END)"), ("action", "q"), ("env_output", "\r\nbye")],
        ),
    ],
)
def test_what_was_typed_and_its_echo(tmp_path: Path, name: str, events: list[Event], expected: Roles) -> None:
    assert roles(only(write(tmp_path, events), DOLLAR)) == expected, name


REPLIES = (
    *("\x1b[2;1R", "\x1b[?12;40R", "\x1b[1;5R", "\x1b[0n", "\x1b[?997;1n"),  # cursor, status
    *("\x1b[?62;22c", "\x1b[>0;95;0c", "\x1bP!|00000000\x1b\\", "\x1b[?1u", "\x1b[?2026;2$y", "\x1b[8;24;80t"),
    *("\x1b]11;rgb:0000/0000/0000\x1b\\", "\x1b]10;rgb:ffff/ffff/ffff\x07", "\x1b]52;c;aGk=\x1b\\"),
    *("\x1bP>|xterm(390)\x1b\\", "\x1bP1$r0m\x1b\\", "\x1bP1+r544e=78\x1b\\", "\x1b_Gi=31;OK\x1b\\"),
    *("\x1b[I", "\x1b[O", "\x1b[<0;33;12M", "\x1b[<0;33;12m", "\x1b[M !!", "\x1b[32;40;12M"),
)
KEYS = (
    "\x1b[A",
    "\x1bOP",
    "\x1b[1;5D",
    "\x1b[3~",
    "\x1b[97;5u",
    "\x1b[200~ls\x1b[201~",
    "\x1bb",
    "\x1b",
    "\x1b[Z",
    "\x1bPa",
)


@pytest.mark.parametrize("reply", REPLIES)
def test_what_the_terminal_answers_is_not_typed(tmp_path: Path, reply: str) -> None:
    asked = [("o", "$ "), ("i", "top\r"), ("o", "top\r\n"), ("o", "\x1b[6n"), ("i", reply), ("o", "all\r\nidle\r\n")]
    events = [*asked, ("o", "$ "), ("i", "q" + reply + "\r"), ("o", "q\r\n")]
    expected = [
        *(("context", "$ "), ("action", "top\r"), ("warning", "top\r\n")),
        *(("env_output", "\x1b[6nall\r\nidle\r\n"), ("context", "$ "), ("action", "q\r"), ("warning", "q\r\n")),
    ]
    assert roles(only(write(tmp_path, events), DOLLAR)) == expected
    assert [turn.command for turn in only(write(tmp_path, events), DOLLAR).turns] == ["top", "q"]


def test_a_long_reply_may_come_in_parts_while_the_program_prints(tmp_path: Path) -> None:
    events = [
        ("i", "a\r"),
        ("o", "a\r\n"),
        ("i", "\x1b]11;rgb:00"),
        ("o", "x"),
        ("i", "00/0000/0000\x1b"),
        ("i", "\\b"),
    ]
    assert roles(only(write(tmp_path, [*events, ("o", "b")]), PLAIN)) == [
        *(("action", "a\r"), ("warning", "a\r\n"), ("env_output", "x"), ("action", "b"), ("warning", "b")),
    ]


@pytest.mark.parametrize("keys", KEYS)
def test_keys_that_send_sequences_are_typed(tmp_path: Path, keys: str) -> None:
    (action,) = [text for role, text in roles(only(write(tmp_path, [("i", f"{keys}\r")]), PLAIN)) if role == "action"]
    assert action == f"{keys}\r"


def test_keys_that_together_spell_a_report_are_typed(tmp_path: Path) -> None:
    events = [("o", "vi"), *(("i", key) for key in ("\x1b", "[", "I", "\x1b", "\x1b[1;2R", "\r"))]
    (action,) = [text for role, text in roles(only(write(tmp_path, events), PLAIN)) if role == "action"]
    assert action == "\x1b[I\x1b\x1b[1;2R\r"  # Shift-F3, since no program asked for the cursor


@pytest.mark.parametrize("version", [1, 2, 3])
def test_without_input_events_commands_stand_behind_prompts(tmp_path: Path, version: int) -> None:
    events = [
        ("o", "welcome\r\n"),
        ("o", "\x1b[1;32mme\x1b[0m:~\x1b[34m$\x1b[0m "),
        ("o", "l"),
        ("o", "x\b\x1b[Ks\r\n"),
        ("o", "costs 5$ \r\na.txt\r\nme:~$ "),
        ("o", "\r\nme:~$ exi"),
    ]
    trace = only(write(tmp_path, events, version), ImportOptions(prompt=r"^me:~\$ "))
    assert roles(trace) == [
        ("context", "welcome\r\n"),
        ("context", "\x1b[1;32mme\x1b[0m:~\x1b[34m$\x1b[0m "),
        ("action", "lx\b\x1b[Ks\r\n"),
        ("env_output", "costs 5$ \r\na.txt\r\n"),
        ("context", "me:~$ "),
        ("action", "\r\n"),
        ("context", "me:~$ "),
        ("action", "exi"),
    ]
    assert [turn.command for turn in trace.turns] == ["ls", "", "exi"]


def test_the_end_of_bracketed_paste_is_no_output_of_a_command(tmp_path: Path) -> None:
    trace = only(write(tmp_path, [("o", "\x1b[?2004h$ ls\r\n\x1b[?2004l\ra.txt\r\n\x1b[?2004h$ ")]), DOLLAR)
    assert roles(trace) == [
        ("context", "\x1b[?2004h$ "),
        ("action", "ls\r\n"),
        ("warning", "\x1b[?2004l\r"),
        ("env_output", "a.txt\r\n"),
        ("context", "\x1b[?2004h$ "),
    ]


def test_a_prompt_that_is_drawn_again_was_no_command(tmp_path: Path) -> None:
    trace = only(write(tmp_path, [("o", "$ l\r\x1b[K$ ls\r\nx")]), DOLLAR)
    assert roles(trace) == [
        ("context", "$ l\r"),
        ("context", "\x1b[K$ "),
        ("action", "ls\r\n"),
        ("env_output", "x"),
    ]


def test_what_warning_matches_is_warning(tmp_path: Path) -> None:
    trace = only(write(tmp_path, [("o", "$ ls\r\n[cut]\r\nx")]), ImportOptions(prompt=r"\$ ", warning=r"\[cut\]\r\n"))
    assert roles(trace)[2:] == [("warning", "[cut]\r\n"), ("env_output", "x")]


@pytest.mark.parametrize(
    "events", [[("o", "$ "), ("i", "ls\r"), ("o", "ls\r\na\r\n")], [("o", "$ lx\b\x1b[Ks\r\na\r\n")]]
)
def test_a_turn_is_written_in_a_policys_tokens(tmp_path: Path, events: list[Event]) -> None:
    trace = only(write(tmp_path, events), DOLLAR)
    trajectory = render_trace(
        trace, PlainRenderer(Tokenizer.load(Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json"))
    )
    assert [segment.text for segment in trajectory.segments if segment.role is Role.ACTION] == ["ls\n"]
    assert [segment.text for segment in trajectory.segments if segment.role is Role.ENV_OUTPUT] == ["a\r\n"]


@pytest.mark.parametrize(
    ("lines", "where", "reason"),
    [
        (['{"version": 4}'], ":1", "not a cast of version 1, 2 or 3: version 4"),
        (['{"version": true}'], ":1", "not a cast of version 1, 2 or 3"),
        (["hello"], ":1", "its header is not JSON"),
        ([""], "", "an empty file"),
        (['{"version": 2}', '[1, "o", "a"]', '[1, "o"', '[1, "o", "b"]'], ":3", "not JSON"),
        (['{"version": 2}', "# no comment in version 2", '[1, "o", "b"]'], ":2", "not JSON"),
        (['{"version": 3}', '[1, "o"]'], ":2", "not an event: [time, code, data]"),
        (['{"version": 3}', '["now", "o", "a"]'], ":2", "not an event"),
        (['{"version": 3}', '[1, "o", 5]'], ":2", "the data of an event 'o' is not text"),
        (['{"version": 3}', '[1, "i", "a"]', '[1, "x", "done"]'], ":3", "the exit status is not a number"),
        (
            ['{"version": 3}', '[1, "o", "a"]'],
            "",
            "so the typed text is unknown: describe the shell's prompt with --prompt REGEX",
        ),
        (['{"version": 3}', '[1, "i", "a\\ud800"]'], "", "not Unicode"),
        (['{"version": 1, "stdout": [[1, "a"], ["b"]]}'], ": stdout[1]", "not a frame: [delay, data]"),
        (['{"version": 1}'], "", "without stdout"),
    ],
)
def test_what_is_no_cast_is_refused_where_it_is(tmp_path: Path, lines: list[str], where: str, reason: str) -> None:
    path = tmp_path / "bad.cast"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    ((place, said),) = refusals(path)
    assert place == where
    assert reason in said


def test_a_prompt_that_matches_nowhere_is_refused(tmp_path: Path) -> None:
    ((_, reason),) = refusals(write(tmp_path, [("o", "a $ ls\r\nx")]), DOLLAR)
    assert reason == "no input events, and --prompt does not match at the start of any line"


@pytest.mark.parametrize("cut", [b'[1.5, "o", "thir', b'[1.5, "o", "\xe2\x82', b"["])
def test_a_last_line_that_was_cut_is_refused_and_the_rest_is_taken(tmp_path: Path, cut: bytes) -> None:
    path = write(tmp_path, [("o", "$ ls\r\n"), ("o", "second")])
    path.write_bytes(path.read_bytes() + cut)
    refusal, trace = read(path, DOLLAR)
    assert isinstance(refusal, Refusal)
    assert refusal.where == f"{path}:4"
    assert "is incomplete" in refusal.reason
    assert isinstance(trace, Trace)
    assert roles(trace) == [("context", "$ "), ("action", "ls\r\n"), ("env_output", "second")]


def test_a_last_line_without_its_newline_can_be_whole(tmp_path: Path) -> None:
    path = write(tmp_path, [("o", "$ ls\r\n"), ("o", "x")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().rstrip(b"\n"))
    assert roles(only(path, DOLLAR))[-1] == ("env_output", "x")


def test_comments_and_empty_lines_of_version_3_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, [("o", "$ ls\r\n"), ("o", "x")])
    path.write_text("\n# a comment\n\n".join(path.read_text().splitlines()) + "\n")
    assert roles(only(path, DOLLAR)) == [("context", "$ "), ("action", "ls\r\n"), ("env_output", "x")]


TEXTS = ["$ ", "l", "s", "ls", "\r\n", "\n", "\r", "\b", "é", "🙂"]
PIECES = st.sampled_from([*TEXTS, "\x1b[32m", "\x1b[0m", "\x1b]0;title\x07", "\x1b]", "\x1b", "\x1b[?2004l\r"])
OUTPUT = st.lists(PIECES, max_size=6).map("".join) | st.text(max_size=8)
KEYS = st.lists(st.sampled_from(["l", "s", "ls", "\r", "\n", "\x03", "\x7f", "\t", "\x1b[A"]), min_size=1, max_size=3)
EVENTS = st.lists(st.tuples(st.just("o"), OUTPUT) | st.tuples(st.just("i"), KEYS.map("".join)), max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, version=st.sampled_from([2, 3]), prompt=st.sampled_from([None, r"\$ ", r"\$ ?l?"]))
@example(events=[("i", "l\rs"), ("o", "l\r\n"), ("i", "\r"), ("o", "$ s\r\n")], version=3, prompt=r"\$ ")
def test_all_that_was_printed_and_typed_is_there_in_order(
    tmp_path: Path, events: list[Event], version: int, prompt: str | None
) -> None:
    (found,) = read(write(tmp_path, events, version), ImportOptions(prompt=prompt))
    printed = "".join(data for code, data in events if code == "o")
    keys = "".join(data for code, data in events if code == "i")
    if isinstance(found, Refusal):
        assert not keys
        if prompt is not None and prompts(printed, prompt):
            assert found.reason == "neither an action nor an observation"
        return
    acted = "".join(segment.text for segment in found.segments if segment.role is Role.ACTION)
    rest = "".join(segment.text for segment in found.segments if segment.role is not Role.ACTION)
    if keys:
        assert (acted, rest) == (keys, printed)
    else:
        assert "".join(segment.text for segment in found.segments) == printed
    assert all(segment.text for segment in found.segments)


@settings(max_examples=100, deadline=None)
@given(raw=OUTPUT)
def test_what_is_shown_is_what_was_printed_without_sequences(raw: str) -> None:
    text = shown(raw)
    assert [raw[text.raw(position)] for position in range(len(text.text))] == list(text.text)
    assert text.raw(len(text.text)) == len(raw)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("a\x1b[31;1mb\x1b[0mc", "abc"),
        ("\x1b]0;a title\x07$ \x1b]8;;x\x1b\\link", "$ link"),
        ("\x1b(B\x1b=\x1b>\x1b7x\x1bPq#0\x1b\\y", "xy"),
        ("\x1b[", "\x1b["),
        ("\x1b]0;never ended", "\x1b]0;never ended"),
    ],
)
def test_sequences_are_skipped_where_they_are_whole(raw: str, text: str) -> None:
    assert shown(raw).text == text


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ("ls\r\n", "ls"),
        ("lx\b \bs\r\n", "ls"),
        ("lx\b\x1b[Ks\n", "ls"),
        ("\b\bls", "ls"),
        ("\x1b[32mls\x1b[0m -l\x1b[?2004l\r\n", "ls -l"),
        ("sl\b\bls", "ls"),
        ("read\b\b\b\b\x1b[2Pls", "ls"),
        ("cho\x1b[3D\x1b[1@e\x1b[3C!", "echo!"),
        ("echo\x1b[2D\x1b[0Kx\x1b[1K", "ecx"),
    ],
)
def test_a_typed_line_is_what_it_shows(raw: str, line: str) -> None:
    assert typed(raw) == line


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        # Output of bash at a prompt two columns wide: ↑ twice; Ctrl-A, then X; lines longer than a row.
        ("read -s x\r\x1b[C\x1b[C\x1b[6Ppwd\r\n", "pwd"),
        ("echo abc\r\x1b[C\x1b[C\x1b[1@X\x1b[C\x1b[C\x1b[C\x1b[C\x1b[C\x1b[C\x1b[C\x1b[C end\r\n", "Xecho abc end"),
        (f"echo {'a' * 73} \rb c\r\n", f"echo {'a' * 73}b c"),
        (f"echo {'a' * 73} \r b c\r\n", f"echo {'a' * 73} b c"),
    ],
)
def test_a_carriage_return_goes_back_to_the_prompt_or_begins_a_row(tmp_path: Path, raw: str, line: str) -> None:
    trace = only(write(tmp_path, [("o", f"$ {raw}out\r\n$ ")]), DOLLAR)
    assert [turn.command for turn in trace.turns] == [line]
    assert roles(trace)[1:3] == [("action", raw), ("env_output", "out\r\n")]
