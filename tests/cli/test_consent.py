"""Runs from elsewhere: commands that look do nothing, and commands that act ask before they do what the config says."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from loopback_server import Behaviour, loopback_server
from tiny_run import COMMAND, error_of

from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.environments.worlds import open_worlds
from echo_cli.evaluation.evaluator import expert_pools
from echo_cli.evaluation.loaded_run import build_policy
from echo_cli.runs.origin import is_made_here
from echo_cli.trajectory import write_trajectories

SECRET = "s3cret-of-mine"
ESCAPE = "\x1b[2J"
MARKER = "import os, pathlib; pathlib.Path(os.environ['MARKER']).write_text(os.environ.get('TOKEN', ''))\n"
ACTING = {
    "eval-heldout": "eval-heldout RUN --rollouts 1",
    "compare": "eval-heldout --compare RUN RUN --rollouts 1",
    "dream": "dream RUN",
    "train": "train --resume --output-dir DIR --run-name RUNNAME --steps 9",
    "pool": "pool build POOL --actor RUN",
}
LOOKING = (
    "eval-heldout RUN --rollouts 0 --output PICTURE",
    "dream RUN --score 2 --max-tokens 4",
    "dream RUN --list-tasks",
    "inspect RUN",
    "inspect RUN --episode 1 --checkpoint latest",
    "plot RUN --output PICTURE",
    "report RUN --output PAGE",
    "export RUN --output MODEL",
    "traces export RUN --to echo --output TRACES",
    "train --resume --output-dir DIR --run-name RUNNAME --steps 9 --dry-run",
)

COUNTING = """
threads: 1
environment:
  url: http://127.0.0.1:1
  tasks: {items: [{instruction: oak}, {instruction: elm, split: heldout}, {instruction: yew, split: validation}]}
  action: {template: {command: "{text}"}}
  observation: [{path: output}]
  explorer: [look, count again]
  reward: {none: zero}
rollout: {tasks_per_step: 1, group_size: 2, explorers: 1}
evaluation: {every: 1, pass_every: 9, heldout_rollouts: 1, validation_rollouts: 0}
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that the code of others writes if it runs; evil.py in the current folder does so when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "marker"
    monkeypatch.setenv("MARKER", str(path))
    monkeypatch.setenv("MY_TOKEN", SECRET)
    (tmp_path / "evil.py").write_text(MARKER)
    yield path
    sys.modules.pop("evil", None)


@pytest.fixture(scope="session")
def with_pools(played: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run that has kept its frozen pools, as a run in an environment of others does."""
    run = shutil.copytree(played, tmp_path_factory.mktemp("kept") / "run")
    config = load_config(run / "config.yaml")
    with open_worlds(config) as worlds:
        for name, pool in expert_pools(config, worlds, build_policy(config)[0]).items():
            write_trajectories(run / f"pool_{name}.jsonl", pool.trajectories)
    return run


def foreign(run: Path, place: Path, *overrides: str) -> Path:
    """Return a copy of `run` whose config has overrides, as someone else would hand it on."""
    copy = shutil.copytree(run, place)
    (copy / "config.yaml").write_text(load_config(run / "config.yaml", overrides).to_yaml())
    return copy


def provider(*words: str) -> tuple[str, ...]:
    command = json.dumps([sys.executable, *words, "{port}"])
    env = "environment.provider.env={TOKEN: '${MY_TOKEN}', MARKER: '${MARKER}'}"
    return "environment.provider.kind=process", f"environment.provider.command={command}", env


def words_of(line: str, run: Path, place: Path) -> list[str]:
    names = {"RUN": run, "DIR": run.parent, "RUNNAME": run.name, "POOL": place / "pool", "PICTURE": place / "p.png"}
    names |= {"PAGE": place / "r.html", "MODEL": place / "model", "TRACES": place / "t.jsonl"}
    return [str(names.get(word, word)) for word in line.split()]


@pytest.mark.parametrize("line", LOOKING)
def test_a_command_that_looks_starts_nothing_and_needs_no_word(
    line: str, with_pools: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = foreign(with_pools, tmp_path / "run", *provider("evil.py"))
    assert main(words_of(line, run, tmp_path)) == 0
    captured = capsys.readouterr()
    assert not marker.exists() and SECRET not in captured.out + captured.err
    assert "this command starts" not in captured.err


@pytest.mark.parametrize("command", ACTING)
def test_a_command_that_acts_names_what_a_run_from_elsewhere_would_start_and_starts_it_only_with_a_word(
    command: str, with_pools: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = foreign(with_pools, tmp_path / "run", *provider("evil.py", ESCAPE))
    words = words_of(ACTING[command], run, tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    message, tip = error_of(captured.err)
    python = shlex.quote(sys.executable)
    assert "run was not made by you on this machine" in message and "; this command starts " in message
    assert f"{python} evil.py '\\x1b[2J' '{{port}}' with TOKEN, MARKER set" in message
    assert message.endswith("; sends MY_TOKEN, MARKER")
    assert "--allow-environment" in tip and ESCAPE not in captured.err and SECRET not in captured.err
    assert not marker.exists()
    assert main([*words, "--allow-environment"]) == 1  # the server writes its marker and ends
    said = capsys.readouterr().err
    assert f": this command starts {python} evil.py" in said and "the server has ended" in error_of(said)[0]
    assert marker.read_text() == SECRET


def test_a_class_is_imported_from_the_current_folder_only_with_a_word_for_the_run_and_one_for_the_folder(
    with_pools: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = foreign(with_pools, tmp_path / "run", "environment.object=evil:World", "environment.object_options={a: 1}")
    words = ["eval-heldout", str(run), "--rollouts", "1"]
    assert main([*words, "--import-from", "."]) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert (
        f'this command imports evil:World with {{"a": 1}} (also from {tmp_path}' in message
        and "--allow-environment" in tip
    )
    assert main([*words, "--allow-environment"]) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "module 'evil' not found" in message and "--import-from ." in tip and not marker.exists()
    assert main([*words, "--allow-environment", "--import-from", "."]) == 2
    assert "module 'evil' has no class 'World'" in error_of(capsys.readouterr().err)[0] and marker.exists()
    assert sys.path[-1] == str(tmp_path) and str(tmp_path) not in sys.path[:-1]
    assert main([*words, "--import-from", "evil.py"]) == 2
    assert "evil.py is not a folder" in error_of(capsys.readouterr().err)[0]


@pytest.fixture
def recorder() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The URL of a server on loopback, and the headers of the requests that it has received."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            self.send_error(503)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_url_of_a_run_from_elsewhere_receives_no_variable_without_a_word(
    with_pools: Path,
    marker: Path,
    recorder: tuple[str, list[dict[str, str]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, seen = recorder
    headers = ("environment.headers={Authorization: 'Bearer ${MY_TOKEN}'}", "environment.connect_timeout_s=2.0")
    run = foreign(with_pools, tmp_path / "run", f"environment.url={url}", *headers)
    for line in LOOKING[:3]:
        assert main(words_of(line, run, tmp_path)) == 0, line
    assert main(["dream", str(run)]) == 2
    assert f"this command contacts {url}; sends MY_TOKEN" in error_of(capsys.readouterr().err)[0]
    assert seen == []
    assert main(["dream", str(run), "--allow-environment"]) == 1
    assert seen and {request["Authorization"] for request in seen} == {f"Bearer {SECRET}"}
    assert SECRET not in "".join(capsys.readouterr())


def test_variables_go_over_plain_http_to_loopback_only(marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["environment.url=http://192.0.2.1:8000", "environment.headers={Authorization: 'Bearer ${MY_TOKEN}'}"]
    words = ["env", "check", "toy", *source, "environment.connect_timeout_s=0.1", "environment.retry_s=0.0"]
    assert main(words) == 2
    captured = capsys.readouterr().err
    message, tip = error_of(captured)
    assert "environment.headers would send ${MY_TOKEN} to 192.0.2.1 over plain http" in message
    assert "use https" in tip and "--allow-plain-http" in tip
    assert captured.startswith("env check: this command contacts http://192.0.2.1:8000; sends MY_TOKEN\n")
    assert main([*words, "--allow-plain-http"]) == 1  # TEST-NET-1: nothing answers there
    assert "plain http" not in error_of(capsys.readouterr().err)[0]


def _drain(leader: int) -> None:
    """Read and close a terminal until no process has it open."""
    with suppress(OSError), open(leader, "rb", 0) as terminal:
        while terminal.read(4096):
            pass


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("", False)])
def test_a_person_at_a_terminal_is_asked(
    answer: str, goes_on: bool, with_pools: Path, marker: Path, tmp_path: Path
) -> None:
    foreign(with_pools, tmp_path / "run", *provider("evil.py"))
    (tmp_path / "pydantic.py").write_text(MARKER)  # `python -m` would import it from the current folder
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "train", "--resume", "--output-dir", str(tmp_path), "--run-name", "run", "--steps", "9"],
        stdin=follower,
        stdout=subprocess.DEVNULL,
        stderr=follower,
        cwd=tmp_path,
    )
    os.close(follower)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(leader, 4096)
    assert not marker.exists() and b"this command starts " in shown
    os.write(leader, f"{answer}\n".encode())
    threading.Thread(target=_drain, args=(leader,)).start()  # a full terminal would stop the command
    assert process.wait(60) == (1 if goes_on else 2)
    assert marker.exists() == goes_on


def test_a_run_that_was_made_here_goes_on_until_its_config_is_edited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = tmp_path / "run", tmp_path / "counting.yaml"
    config.write_text(COUNTING)
    words = ["train", "--output-dir", str(tmp_path), "--run-name", "run"]
    with loopback_server(Behaviour(capacity=4)) as server:
        assert main([*words, "--config", str(config), f"environment.url={server.url}", "--steps", "1"]) == 0
        assert f"train: this command contacts {server.url}\n" in capsys.readouterr().err
        assert main([*words, "--resume", "--steps", "2"]) == 0
        assert is_made_here(run) and run.stat().st_mode & 0o777 == 0o700
        assert main(["eval-heldout", str(shutil.copytree(run, tmp_path / "copy")), "--rollouts", "1"]) == 0
        with (run / "config.yaml").open("a") as file:
            file.write("# mine\n")
        assert main([*words, "--resume", "--steps", "3"]) == 2
        assert "its config was edited" in error_of(capsys.readouterr().err)[0]
        assert main([*words, "--resume", "--steps", "3", "--allow-environment"]) == 0
        assert main([*words, "--resume", "--steps", "4"]) == 0  # allowed once, this user goes on with it


def test_the_toy_terminal_needs_no_word_in_a_run_from_elsewhere(
    played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(played, tmp_path / "run")
    (run / "origin").write_text("0" * 64)
    assert not is_made_here(run)
    assert main(["eval-heldout", str(run), "--rollouts", "1"]) == 0
    assert main(["train", "--resume", "--output-dir", str(tmp_path), "--run-name", "run", "--steps", "5"]) == 0
    assert "this " not in capsys.readouterr().err
    assert is_made_here(run)


def test_the_word_for_a_run_from_elsewhere_is_refused_where_no_run_is_continued(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "--allow-environment"]) == 2
    assert "--allow-environment has no effect without --resume" in error_of(capsys.readouterr().err)[0]
