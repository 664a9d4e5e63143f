"""An import that was killed or interrupted: the same command gives the bytes of an undisturbed import."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import error_of

from echo_cli.cli.main import main
from echo_cli.errors import EchoError
from echo_cli.traces import importing
from echo_cli.traces.builder import ImportOptions
from echo_cli.traces.importing import ImportResult, import_traces

OPTIONS = ImportOptions()


class Killed(BaseException):
    """Stands for a signal that ends the process."""


def chat(number: int) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": ""}}
    messages = [
        {"role": "user", "content": f"Look at {number}. é"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "out\n" * (number % 7)},
    ]
    return {"messages": messages}


def bad(number: int) -> Any:
    return {"messages": []} if number % 5 == 3 else chat(number)


def write_jsonl(path: Path, count: int = 30) -> Path:
    """Write lines of one record, of two, of none and of one that is refused."""
    lines = [json.dumps([bad(n), chat(n)] if n % 4 == 1 else bad(n)) + "\n" * (1 + n % 2) for n in range(count)]
    path.write_text("".join(lines))
    return path


def write_gzip(path: Path) -> Path:
    path.write_bytes(gzip.compress(write_jsonl(path).read_bytes()))
    return path


def write_zstd(path: Path) -> Path:
    path.write_bytes(pytest.importorskip("zstandard").compress(write_jsonl(path).read_bytes()))
    return path


def write_document(path: Path) -> Path:
    path.write_text(json.dumps([bad(number) for number in range(30)], indent=1))
    return path


def write_parquet(path: Path) -> Path:
    pytest.importorskip("pyarrow")
    from pyarrow import Table, parquet

    table = Table.from_pylist([{"messages": json.dumps(bad(number)["messages"])} for number in range(150)])
    parquet.write_table(table, path, row_group_size=40)
    return path


WRITE: dict[str, Callable[[Path], Path]] = {
    "lines": write_jsonl,
    "gzip": write_gzip,
    "zstd": write_zstd,
    "document": write_document,
    "parquet": write_parquet,
}


def import_(files: list[Path], output: Path, *, stop_at: int | None = None, **more: Any) -> ImportResult:
    """Import `files`, and stop as if killed after the `stop_at`th result, 1-based."""
    seen = 0

    def report(_: int) -> None:
        nonlocal seen
        seen += 1
        if seen == stop_at:
            raise Killed

    return import_traces("openai", files, output, OPTIONS, skip_bad=True, report=report, **more)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def inputs_of(kind: str) -> Path:
        if kind not in made:
            made[kind] = WRITE[kind](tmp_path_factory.mktemp("in") / kind)
        return made[kind]

    return inputs_of


@pytest.mark.parametrize("kind", WRITE)
def test_an_import_that_is_killed_anywhere_continues_to_the_same_bytes(
    kind: str, inputs: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = [inputs("lines"), inputs(kind)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "_SHOW_EVERY", 0)
        whole = tmp_path_factory.mktemp("whole") / "out.jsonl"
        expected = import_(files, whole)

        @settings(max_examples=8, deadline=None)
        @given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=3))
        def killed(stops: list[tuple[int, bool]]) -> None:
            output = tmp_path_factory.mktemp("out") / "out.jsonl"
            for stop_at, saves in stops:
                patch.setattr(importing, "_SAVE_EVERY", 0 if saves else 1e9)
                try:
                    found = import_(files, output, stop_at=stop_at, overwrite=True)
                except Killed:
                    continue
                assert found == expected  # it was so far that it ended
                output.unlink()
            assert import_(files, output, overwrite=True) == expected
            assert output.read_bytes() == whole.read_bytes()
            assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]

        killed()


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with in.jsonl and an import of it into out.jsonl that was killed in the middle."""
    monkeypatch.setattr(importing, "_SHOW_EVERY", 0)
    monkeypatch.setattr(importing, "_SAVE_EVERY", 0)
    write_jsonl(tmp_path / "in.jsonl")
    with pytest.raises(Killed):
        import_([tmp_path / "in.jsonl"], tmp_path / "out.jsonl", stop_at=9)
    return tmp_path


def test_until_it_is_complete_the_output_has_another_name(interrupted: Path) -> None:
    assert {path.name for path in interrupted.iterdir()} == {"in.jsonl", "out.jsonl.partial", "out.jsonl.partial.json"}
    saved = json.loads((interrupted / "out.jsonl.partial.json").read_text())
    assert saved["state"]["place"]["offset"] > 0


@pytest.mark.parametrize(
    ("change", "what"), [("input", "inputs"), ("option", "options"), ("format", "formats"), ("damage", "damaged")]
)
def test_another_import_into_the_same_output_begins_anew_only_if_asked(
    change: str, what: str, interrupted: Path
) -> None:
    source, output, options, name = interrupted / "in.jsonl", interrupted / "out.jsonl", OPTIONS, "openai"
    if change == "input":
        write_jsonl(source, 10)
    elif change == "option":
        options = ImportOptions(warning="x")
    elif change == "format":
        name = "anthropic"
    else:
        (interrupted / "out.jsonl.partial.json").write_text('{"job"')
    before = (interrupted / "out.jsonl.partial").read_bytes()
    with pytest.raises(EchoError, match=what) as raised:
        import_traces(name, [source], output, options, skip_bad=True)
    assert "--overwrite" in str(raised.value.tip)
    assert (interrupted / "out.jsonl.partial").read_bytes() == before
    expected = import_traces("openai", [source], interrupted / "whole.jsonl", options, skip_bad=True)
    assert import_traces("openai", [source], output, options, skip_bad=True, overwrite=True) == expected
    assert output.read_bytes() == (interrupted / "whole.jsonl").read_bytes()


def test_a_refused_record_leaves_nothing_of_an_import_that_was_interrupted(interrupted: Path) -> None:
    (interrupted / "bad.jsonl").write_text("[]\n{}\n")
    with pytest.raises(EchoError):
        import_traces("openai", [interrupted / "bad.jsonl"], interrupted / "new.jsonl", OPTIONS)
    assert not list(interrupted.glob("new.jsonl*"))


def test_two_imports_cannot_write_one_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_SHOW_EVERY", 0)
    write_jsonl(tmp_path / "in.jsonl")

    def second(_: int) -> None:
        with pytest.raises(EchoError, match="being written by another process"):
            import_([tmp_path / "in.jsonl"], tmp_path / "out.jsonl")

    import_traces("openai", [tmp_path / "in.jsonl"], tmp_path / "out.jsonl", OPTIONS, skip_bad=True, report=second)
    assert (tmp_path / "out.jsonl").is_file()


SLOW = """
import sys, time
from echo_cli.cli.main import main
from echo_cli.traces import importing
importing._SAVE_EVERY = 0
real = importing.trace_line
def slow(trace):
    time.sleep(0.01)
    return real(trace)
importing.trace_line = slow
sys.exit(main())
"""
"""Program that imports at most a hundred traces per second, and saves its state after each."""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_was_stopped_by_a_signal_is_continued_by_the_same_command(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", 400), tmp_path / "out.jsonl"
    words = ["traces", "import", "openai", str(source), "--skip-bad", "-o"]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *words, str(output)], stderr=subprocess.PIPE, text=True)
    state = tmp_path / "out.jsonl.partial.json"
    while not state.exists() or json.loads(state.read_text())["state"]["place"]["number"] < 5:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, told = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert f"{output} is not complete: the same command continues the import" in told.splitlines()
    assert not output.exists()
    assert main([*words, str(tmp_path / "whole.jsonl"), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main([*words, str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**expected, "output": str(output)}
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not state.exists()


def test_a_pipe_is_imported_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "in.jsonl")
    with (tmp_path / "in.jsonl").open("rb") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", type("Stdin", (), {"buffer": file}))
        assert main(["traces", "import", "openai", "-", "-o", str(tmp_path / "out.jsonl")]) == 2
    assert "no messages" in error_of(capsys.readouterr().err)[0]
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl"}
