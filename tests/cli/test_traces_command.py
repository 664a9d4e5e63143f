"""`echo-cli traces`: files are written whole or not at all, errors name their location, and printed results."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tiny_run import COMMAND, error_of, start

from echo_cli.cli.main import main
from echo_cli.trace import read_traces, trace_schema
from echo_cli.trajectory import read_trajectories

CHAT: list[dict[str, Any]] = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "yes"}]
GOOD = json.dumps({"messages": CHAT})
NOTHING = b"no text of these traces is env_output, so there is nothing to predict"
TIP = b"tip: if user messages are the environment's answers, name them: --observation user, or --observation REGEX"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with good.jsonl (two chats) and bad.jsonl (lines 2 and 4 are not chats)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_text(f"{GOOD}\n{GOOD}\n")
    (tmp_path / "bad.jsonl").write_text(f"{GOOD}\n{{}}\n{GOOD}\n{{}}\n[{{\n")
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> tuple[str, str]:
    before = set(os.listdir())
    assert main(["traces", *words]) == code
    assert set(os.listdir()) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    return error_of(captured.err)


def prints(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["traces", *words, "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def test_an_import_counts_what_it_wrote(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prints(capsys, "import", "openai", "good.jsonl", "good.jsonl", "--output", "new/out.jsonl") == {
        "output": "new/out.jsonl",
        "files": [{"file": "good.jsonl", "format": "openai", "why": None}] * 2,
        "traces": 4,
        "segments": 8,
        "bytes": {"context": 16, "action": 16, "env_output": 0, "warning": 0},
        "left_out": {},
        "redacted": None,
        "refused": [],
    }
    found = [trace.task_id for trace in read_traces(folder / "new" / "out.jsonl")]
    assert found == ["good.jsonl:1", "good.jsonl:2"] * 2
    assert main(["traces", "import", "openai", "good.jsonl", "-o", "out.jsonl"]) == 0
    said = "out.jsonl: traces: 2, segments: 4; bytes: context 8, action 8, env_output 0, warning 0\n"
    assert capsys.readouterr().out == said


def test_the_first_refusal_ends_an_import_with_its_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message, tip = fails(capsys, "import", "openai", "good.jsonl", "bad.jsonl", "-o", "out.jsonl")
    assert message == "bad.jsonl:2: no messages" and "--skip-bad" in tip
    fails(capsys, "import", "openai", "bad.jsonl", "-o", "-")


def test_skip_bad_counts_by_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traces", "import", "openai", "bad.jsonl", "-o", "out.jsonl", "--skip-bad", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["traces"] == 2 and len(list(read_traces(folder / "out.jsonl"))) == 2
    none, broken = result["refused"]
    assert none == {"reason": "no messages", "count": 2, "first": "bad.jsonl:2"}
    assert (broken["count"], broken["first"]) == (1, "bad.jsonl:5")
    assert captured.err.splitlines()[0] == "skipped 2: no messages, first at bad.jsonl:2"


def test_nothing_to_import_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.jsonl").touch()
    Path("none.jsonl").write_text("{}\n{}\n")
    assert "no records in" in fails(capsys, "import", "openai", "empty.jsonl", "-o", "out.jsonl")[0]
    assert main(["traces", "import", "openai", "none.jsonl", "-o", "out.jsonl", "--skip-bad"]) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "all 2 records of none.jsonl were refused" in message and tip == "2: no messages, first at none.jsonl:1"


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        (("opneai", "good.jsonl"), "unknown format 'opneai'", "did you mean openai?"),
        (
            ("x", "good.jsonl"),
            "unknown format 'x'",
            "choose from auto, echo, asciinema, ",
        ),
        (("harbor", "good.jsonl"), "unknown format 'harbor'", "the format of harbor is atif"),
        (("claudecode", "good.jsonl"), "unknown format 'claudecode'", "the format of claudecode is claude-code"),
        (("OpenAI", "good.jsonl"), "unknown format 'OpenAI'", "did you mean openai?"),
        (("openai", "-", "-"), "- is given twice", "standard input can be read once"),
        (("openai", "wide.jsonl"), "wide.jsonl is UTF-16, not UTF-8 text", "iconv -f UTF-16 -t UTF-8"),
        (("openai", "packed.jsonl"), "cannot read packed.jsonl: its zstd data is damaged", "copy the file again"),
        (("openai", "cut.jsonl.gz"), "cannot read cut.jsonl.gz: its gzip data is damaged", "copy the file again"),
        (("openai", "quote.json"), "quote.json:1: not JSON: Unterminated string", "--skip-bad"),
        (("openai", "trial.json"), "no messages", "this file looks like the format atif"),
        (("anthropic", "log.jsonl"), "no messages", "this file looks like the format claude-code"),
        (("atif", "good.jsonl"), "not a version 1.x of ATIF", "this file looks like the format openai"),
        (("openai", "bad.jsonl"), "no messages", "--skip-bad"),
        (("openai", "."), ". is a folder", "name its files: ./*"),
        (("openai", "none"), "none does not exist", "name the files to import"),
        (("openai", "good.jsonl", "--prompt", "x"), "--prompt has no effect on openai", "only asciinema uses it"),
        (
            ("anthropic", "good.jsonl", "--observation", "user"),
            "--observation has no effect on anthropic",
            "only openai and sharegpt use it",
        ),
        (("openai", "good.jsonl", "--warning", "("), "--warning: not a regular expression", "Python's re"),
        (
            ("echo", "good.jsonl", "--warning", "x"),
            "--warning has no effect on echo",
            "omit it: the lines of a trajectory file already have roles",
        ),
        (("openai", "good.jsonl", "-o", "-", "--json"), "--output - and --json both write to stdout", "a file"),
        (("openai", "good.jsonl", "-o", "bad.jsonl"), "bad.jsonl already exists", "--overwrite"),
        (("openai", "good.jsonl", "-o", "."), ". is a folder", "--output requires the name of a file"),
        (("openai", "good.jsonl", "-o", "good.jsonl/a"), "cannot write", ""),
    ],
)
def test_a_mistake_is_one_line_with_a_tip(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str, tip: str
) -> None:
    Path("wide.jsonl").write_bytes(GOOD.encode("utf-16"))
    Path("packed.jsonl").write_bytes(b"\x28\xb5\x2f\xfd" + GOOD.encode())
    Path("cut.jsonl.gz").write_bytes(gzip.compress(f"{GOOD}\n".encode())[:-12])
    Path("quote.json").write_text('{"messages": "x')
    Path("trial.json").write_text('{"schema_version": "ATIF-v1.8",\n"steps": []}')
    Path("log.jsonl").write_text('{"type": "user", "message": {"role": "user", "content": "q"}}\n')
    output = () if "-o" in words else ("-o", "out.jsonl")
    found = fails(capsys, "import", *words, *output)
    assert message in found[0] and tip in found[1]


@pytest.mark.parametrize(("suffix", "module"), [(".gz", gzip), (".bz2", bz2), (".xz", lzma), ("", gzip)])
def test_a_compressed_file_is_its_content(
    folder: Path, capsys: pytest.CaptureFixture[str], suffix: str, module: Any
) -> None:
    cast = '{"version": 2}\n[0.1, "i", "ls\\r"]\n'
    for name, kind, text in (("a.jsonl", "openai", f"{GOOD}\n{GOOD}\n"), ("a.cast", "asciinema", cast)):
        Path(name).write_text(text)
        Path(f"{name}{suffix}.packed{suffix}").write_bytes(module.compress(text.encode()))
        plain = prints(capsys, "import", kind, name, "-o", f"plain-{name}")
        packed = prints(capsys, "import", kind, f"{name}{suffix}.packed{suffix}", "-o", f"packed-{name}")
        assert (packed["traces"], packed["bytes"]) == (plain["traces"], plain["bytes"])
    Path("out.jsonl.gz").write_bytes(gzip.compress(Path("plain-a.jsonl").read_bytes()))
    prints(capsys, "import", "echo", "out.jsonl.gz", "-o", "again.jsonl")
    assert Path("again.jsonl").read_bytes() == Path("plain-a.jsonl").read_bytes()


@pytest.mark.parametrize("packed", [False, True])
def test_standard_input_is_a_file_named_by_a_dash(folder: Path, packed: bool) -> None:
    data = Path("good.jsonl").read_bytes()
    words = [*COMMAND, "traces", "import", "openai", "-", "-o", "out.jsonl"]
    done = subprocess.run(words, input=gzip.compress(data) if packed else data, capture_output=True)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [NOTHING, TIP]
    assert [trace.task_id for trace in read_traces(folder / "out.jsonl")] == ["-:1", "-:2"]


def test_an_import_without_an_observation_names_the_option(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = [*CHAT, {"role": "user", "content": "seen"}]
    Path("world.jsonl").write_text(json.dumps({"messages": world}))
    result = prints(capsys, "import", "world.jsonl", "-o", "a.jsonl")
    assert (result["bytes"]["env_output"], result["files"][0]["format"]) == (0, "openai")
    assert main(["traces", "import", "world.jsonl", "-o", "b.jsonl"]) == 0
    assert capsys.readouterr().err.encode().splitlines() == [NOTHING, TIP]
    named = ("import", "openai", "world.jsonl", "-o", "c.jsonl", "--observation", "user")
    assert main(["traces", *named]) == 0
    captured = capsys.readouterr()
    assert "env_output 4, " in captured.out and captured.err == ""


def test_names_and_reasons_of_imported_files_are_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("\x1b[31m.jsonl").write_text(json.dumps([{"role": "\x1b]0;owned\x07", "content": ""}]))
    message, _ = fails(capsys, "import", "openai", "\x1b[31m.jsonl", "-o", "out.jsonl", "--strict")
    assert message.isprintable() and r"\x1b[31m.jsonl" in message and "owned" in message


def test_overwriting_replaces_all_or_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.jsonl").write_text("mine")
    fails(capsys, "import", "openai", "bad.jsonl", "-o", "out.jsonl", "--overwrite")
    assert Path("out.jsonl").read_text() == "mine"
    assert prints(capsys, "import", "openai", "good.jsonl", "-o", "out.jsonl", "--overwrite")["traces"] == 2
    assert prints(capsys, "import", "echo", "out.jsonl", "-o", "again.jsonl")["traces"] == 2
    assert Path("out.jsonl").read_bytes() == Path("again.jsonl").read_bytes()


def test_a_link_leads_to_what_is_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("real.jsonl").write_text("mine")
    os.symlink("real.jsonl", "link.jsonl")
    assert prints(capsys, "import", "openai", "good.jsonl", "-o", "link.jsonl", "--overwrite")["traces"] == 2
    assert Path("link.jsonl").is_symlink() and len(list(read_traces(Path("real.jsonl")))) == 2


def test_a_pipe_is_written_to_and_stays_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Output to a device: /dev/null must not be replaced by a file."""
    os.mkfifo("out")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(Path("out").read_bytes()))
    reader.start()
    assert prints(capsys, "import", "openai", "good.jsonl", "-o", "out")["traces"] == 2
    reader.join()
    assert len(got[0].splitlines()) == 2 and Path("out").is_fifo()


def test_a_closed_stdout_is_one_line(folder: Path) -> None:
    words = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "traces", "import", "openai", "good.jsonl", "-o", "-"]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and error_of(done.stderr)[0] == "standard output is closed"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_import_leaves_nothing(folder: Path, number: signal.Signals, code: int) -> None:
    os.mkfifo("pipe.jsonl")
    process = start("traces", "import", "openai", "pipe.jsonl", "-o", "out.jsonl")
    with open("pipe.jsonl", "w") as pipe:
        pipe.write(GOOD + "\n")
        pipe.flush()
        while not any(name.startswith(".tmp-") for name in os.listdir()):
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait() == code
    assert set(os.listdir()) == {"good.jsonl", "bad.jsonl", "pipe.jsonl"}
    told = "interrupted" if number is signal.SIGINT else ""
    assert process.stderr is not None and process.stderr.read().strip() == told


def test_a_pipe_is_read_once_whatever_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    for text, traces in ((f"\n{GOOD}\n{GOOD}\n", 2), (json.dumps([{"messages": CHAT}] * 3, indent=1), 3)):
        writer = threading.Thread(target=Path("pipe").write_text, args=(text,))
        writer.start()
        assert prints(capsys, "import", "openai", "pipe", "-o", "out.jsonl", "--overwrite")["traces"] == traces
        writer.join()


def test_stdout_has_the_lines_and_nothing_else(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    process = start("traces", "import", "openai", "good.jsonl", "-o", "-")
    out, err = process.communicate()
    assert process.returncode == 0 and len(out.splitlines()) == 2 and err.startswith("-: traces: 2")
    assert main(["traces", "import", "openai", "good.jsonl", "-o", "out.jsonl"]) == 0
    assert Path("out.jsonl").read_text(encoding="utf-8") == out


def test_a_run_is_exported_in_every_form(
    played: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run, kept = played, list(read_trajectories(played / "trajectories.jsonl"))
    assert kept and kept[0].source == "policy"
    schema = jsonschema.Draft202012Validator(trace_schema())
    count = {"traces": len(kept), "lines": len(kept)}
    assert prints(capsys, "export", str(run), "--to", "echo", "-o", "a.jsonl") == {
        "output": "a.jsonl",
        "to": "echo",
        **count,
    }
    assert list(read_trajectories(Path("a.jsonl"))) == kept
    for file in (run / "trajectories.jsonl", Path("a.jsonl")):
        for line in file.read_text().splitlines():
            schema.validate(json.loads(line))
    again = prints(capsys, "import", "echo", "a.jsonl", "-o", "b.jsonl")
    assert again["traces"] == len(kept) and Path("a.jsonl").read_bytes() == Path("b.jsonl").read_bytes()

    own = prints(capsys, "export", str(run), "a.jsonl", "--to", "masks", "-o", "own.jsonl")
    assert own["tokenizer"] == "own" and own["traces"] == 2 * len(kept)
    assert own["tokens"]["prompt_token_ids"] + own["tokens"]["completion_token_ids"] == 2 * sum(map(len, kept))
    first = json.loads(Path("own.jsonl").read_text().splitlines()[0])
    assert first["prompt_token_ids"] + first["completion_token_ids"] == kept[0].token_ids

    shutil.copy("a.jsonl", "mixed.jsonl")
    with open("mixed.jsonl", "a") as file:
        file.write(json.dumps({"task_id": "t", "segments": [{"role": "env_output", "text": "x"}], "turns": []}) + "\n")
    mixed = prints(capsys, "export", "mixed.jsonl", "--to", "masks", "-o", "mixed-masks.jsonl")
    named = prints(capsys, "export", str(run), "--to", "masks", "-o", "toy.jsonl", "--config", "toy-grpo")
    assert (mixed["tokenizer"], named["tokenizer"]) == ("toy", "toy-grpo")

    assert main(["traces", "export", str(run), "--to", "openai", "-o", "-"]) == 0
    captured = capsys.readouterr()
    roles = [[message["role"] for message in json.loads(line)["messages"]] for line in captured.out.splitlines()]
    assert len(roles) == len(kept) and all(names[:2] == ["user", "assistant"] for names in roles)
    assert captured.err == f"-: traces: {len(kept)}, lines: {len(kept)}\n"


def test_a_run_whose_last_line_was_cut_is_exported_without_it(
    played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(played, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    whole = (run / "trajectories.jsonl").read_bytes()
    (run / "trajectories.jsonl").write_bytes(whole[:-40])
    assert main(["traces", "export", str(run), "--to", "echo", "-o", str(tmp_path / "out.jsonl")]) == 0
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == whole.count(b"\n") - 1


def test_a_pool_that_was_changed_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool", "build", str(tmp_path / "pool")]) == 0
    capsys.readouterr()
    with (tmp_path / "pool" / "trajectories.jsonl").open("ab") as file:
        file.write(b"\n")
    assert (
        "was changed after the pool was built"
        in fails(capsys, "export", str(tmp_path / "pool"), "--to", "echo", "-o", str(tmp_path / "out.jsonl"))[0]
    )


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        (("good.jsonl", "--to", "csv"), "no target 'csv'", "--to is one of echo, openai, masks"),
        (
            ("none", "--to", "echo"),
            "none does not exist",
            "give a run directory, a pool's folder, or a trajectory file",
        ),
        ((".", "--to", "echo"), ". is neither a run nor a pool", "give a run"),
        (("good.jsonl", "--to", "echo"), "good.jsonl:1: not a trace", "echo-cli traces import FILE"),
        (("empty.jsonl", "--to", "masks"), "empty.jsonl contains no traces", "not empty"),
        (("good.jsonl", "--to", "echo", "--config", "toy"), "--config has no effect with --to echo", "masks"),
        (("empty.jsonl", "--to", "masks", "--config", "tyo"), "no config named 'tyo'", "toy"),
        (("/dev/null", "--to", "masks"), "/dev/null is not a file that can be read twice", "to a file first"),
    ],
)
def test_an_export_that_cannot_be_is_one_line_with_a_tip(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str, tip: str
) -> None:
    Path("empty.jsonl").touch()
    found = fails(capsys, "export", *words, "-o", "out.jsonl")
    assert message in found[0] and tip in found[1]
