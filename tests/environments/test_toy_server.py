"""The toy terminal as an OpenEnv server: a real process on loopback, accessed through its socket."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import rows, train, weights
from websockets.sync.client import ClientConnection, connect

import toy_terminal_env
from echo_cli.cli.main import main
from echo_cli.evaluation import loaded_run
from toy_terminal_env.environment import ToyTerminalEnvironment, world_and_tasks
from toy_terminal_env.models import ToyTerminalAction, ToyTerminalObservation, ToyTerminalState
from toy_terminal_env.scripted import expert_actions, mistaken_action, searching_actions
from toy_terminal_env.tasks import FAMILIES_OF
from toy_terminal_env.world import Kind

SESSIONS, TURNS = 8, 3
COMMAND = [sys.executable, "-m", "toy_terminal_env.server"]
TOKEN = "test-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
_, TASKS = world_and_tasks(0)


def started(stderr: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server; provide its process and URL."""
    with stderr.open("w") as file:
        process = subprocess.Popen(
            [*COMMAND, "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env={**os.environ, "ECHO_SERVER_TOKEN": TOKEN},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("toy_terminal_env on http://127.0.0.1:"), stderr.read_text()
    return process, line.split()[-1]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Provide a server for the whole module; Ctrl-C must end it with nothing on stderr."""
    stderr = tmp_path_factory.mktemp("server") / "stderr"
    process, url = started(stderr, "--max-sessions", str(SESSIONS), "--max-turns", str(TURNS))
    try:
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(20)
        finally:
            process.kill()
    assert (code, stderr.read_text()) == (130, "")


def opened(url: str) -> ClientConnection:
    return connect(url.replace("http://", "ws://") + "/ws", compression=None, additional_headers=HEADERS)


def ask(session: ClientConnection, kind: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """Send one request and return the whole reply."""
    session.send(json.dumps({"type": kind} if data is None else {"type": kind, "data": data}))
    return json.loads(session.recv(timeout=20))


def reset(session: ClientConnection, **arguments: Any) -> dict[str, Any]:
    return ask(session, "reset", arguments)


def step(session: ClientConnection, command: str) -> dict[str, Any]:
    return ask(session, "step", {"command": command})


def error(reply: dict[str, Any]) -> tuple[str, str]:
    assert reply["type"] == "error", reply
    return reply["data"]["code"], reply["data"]["message"]


def on_the_wire(observation: ToyTerminalObservation) -> dict[str, Any]:
    """Return OpenEnv's message for an observation."""
    own = asdict(observation)
    reward, done = own.pop("reward"), own.pop("done")
    return {"type": "observation", "data": {"observation": {"metadata": {}, **own}, "reward": reward, "done": done}}


def request(url: str, data: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of a GET, or of a POST if there is `data`."""
    body = None if data is None else json.dumps(data).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, {"Content-Type": "application/json", **HEADERS}), timeout=20
        ) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


# --- Episodes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "family"), [(kind, family) for kind, of in FAMILIES_OF.items() for family in of])
def test_episodes_over_the_socket_are_those_in_process(url: str, kind: Kind, family: str) -> None:
    rng, (world, tasks) = random.Random(family), world_and_tasks(0, kind)
    task = next(task for task in tasks.values() if task.family == family)
    mistakes = [mistaken_action(world, rng) for _ in range(8)]
    scripts = [
        expert_actions(task),
        searching_actions(world, task, rng),
        [*mistakes, "", "cat '", "echo é ∀ \x1b[31m \x00", "ls " + "x" * 2000, "answer: ∀"],
        ["cat " + " ".join(world.files)] * 4,  # reaches the turn cap
    ]
    environment = ToyTerminalEnvironment()
    with opened(url) as session:
        for script in scripts:
            turns = max(4, len(script))
            chosen: dict[str, Any] = {"task_id": task.task_id, "max_turns": turns, "kind": kind}
            expected = environment.reset(0, "e", **chosen)
            assert reset(session, seed=0, episode_id="e", **chosen) == on_the_wire(expected)
            for command in script:
                expected = environment.step(ToyTerminalAction(command))
                assert step(session, command) == on_the_wire(expected)
                assert ask(session, "state") == {"type": "state", "data": asdict(environment.state)}
            assert expected.done


def test_sessions_at_the_same_time_do_not_mix(url: str) -> None:
    chosen = [(seed, task.task_id) for seed in (0, 7) for task in list(world_and_tasks(seed)[1].values())[:3]]
    commands = ["ls /etc", "cat /srv/registry.csv", "wc /srv/registry.csv", "answer: 1"]
    with ExitStack() as stack:
        pairs = [(stack.enter_context(opened(url)), ToyTerminalEnvironment()) for _ in chosen]
        for (seed, task_id), (session, environment) in zip(chosen, pairs, strict=True):
            expected = environment.reset(seed, task_id=task_id, max_turns=9)
            assert reset(session, seed=seed, task_id=task_id, max_turns=9) == on_the_wire(expected)
        for command in commands:
            for session, _ in pairs:  # all requests are sent before the first answer is read
                session.send(json.dumps({"type": "step", "data": {"command": command}}))
            for session, environment in pairs:
                expected = environment.step(ToyTerminalAction(command))
                assert json.loads(session.recv(timeout=20)) == on_the_wire(expected)


def test_turns_are_the_resets_or_else_the_servers(url: str) -> None:
    with opened(url) as session:
        reset(session)
        assert [step(session, "ls /")["data"]["done"] for _ in range(TURNS)] == [False] * (TURNS - 1) + [True]
        reset(session, max_turns=1)
        assert step(session, "ls /")["data"]["done"]


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_what_the_environment_refuses_is_an_execution_error_and_the_session_lives_on(url: str) -> None:
    with opened(url) as session:
        assert error(step(session, "ls /")) == ("EXECUTION_ERROR", "call reset() first")
        reset(session, seed=0, max_turns=2)
        assert not step(session, "ls /")["data"]["done"]
        assert error(reset(session, seed=0, task_id="nope")) == ("EXECUTION_ERROR", "world 0 has no task 'nope'")
        code, message = error(reset(session, seed=500, kind="machine"))
        assert code == "EXECUTION_ERROR" and message.startswith("no machine has the seed 500")
        assert error(reset(session, max_turns=0)) == ("EXECUTION_ERROR", "max_turns must be at least 1, not 0")
        assert step(session, "ls /")["data"]["done"]
        assert error(step(session, "ls /")) == ("EXECUTION_ERROR", "the episode is over: call reset() first")
        assert reset(session)["type"] == "observation"


def test_what_has_another_type_is_a_validation_error_and_the_session_lives_on(url: str) -> None:
    with opened(url) as session:
        for arguments in (
            {"seed": "0"},
            {"seed": 1.5},
            {"seed": True},
            {"task_id": 1},
            {"max_turns": [1]},
            {"kind": "ship"},
        ):
            assert error(reset(session, **arguments))[0] == "VALIDATION_ERROR"
        reset(session)
        for action in ({}, {"command": 1}, {"command": "ls", "more": 1}):
            assert error(ask(session, "step", action))[0] == "VALIDATION_ERROR"
        assert ask(session, "state")["data"]["step_count"] == 0
        assert step(session, "ls /")["data"]["observation"]["stdout"] == "etc\nsrv\nvar\n"


def test_there_are_as_many_sessions_as_were_asked_for(url: str) -> None:
    with ExitStack() as stack:
        sessions: list[ClientConnection] = []
        give_up = time.monotonic() + 20
        while len(sessions) < SESSIONS:  # the server may still be closing sessions of earlier tests
            session = stack.enter_context(opened(url))
            if reset(session)["type"] == "observation":
                sessions.append(session)
            assert time.monotonic() < give_up
        with opened(url) as one_too_many:
            assert error(json.loads(one_too_many.recv(timeout=20)))[0] == "CAPACITY_REACHED"
        assert {step(session, "ls /")["type"] for session in sessions} == {"observation"}
        sessions[0].close()
        while True:
            with opened(url) as another:
                if reset(another)["type"] == "observation":
                    break
            assert time.monotonic() < give_up


# --- HTTP ------------------------------------------------------------------------------------------------------------


def test_metadata_and_schemas_are_filled_in(url: str) -> None:
    status, metadata = request(f"{url}/metadata")
    assert (status, metadata["name"], metadata["version"]) == (200, "toy_terminal_env", toy_terminal_env.__version__)
    assert metadata["description"].startswith("A deterministic, read-only terminal")
    assert metadata["readme_content"].startswith("# toy_terminal_env\n")
    _, schemas = request(f"{url}/schema")
    for name, own in (
        ("action", ToyTerminalAction),
        ("observation", ToyTerminalObservation),
        ("state", ToyTerminalState),
    ):
        assert set(schemas[name]["properties"]) - {"metadata"} == {field.name for field in fields(own)}


def test_a_plain_request_has_no_episode_and_is_told_so(url: str) -> None:
    assert request(f"{url}/reset", {"seed": 0})[1]["observation"]["instruction"]
    assert request(f"{url}/reset", {"task_id": "nope"}) == (400, {"detail": "world 0 has no task 'nope'"})
    assert request(f"{url}/step", {"action": {"command": "ls"}}) == (400, {"detail": "call reset() first"})
    assert request(f"{url}/state")[1] == {"episode_id": None, "step_count": 0, "world_seed": None, "task_id": None}


@pytest.mark.slow
def test_openenvs_own_validation_passes(url: str) -> None:
    # The validator sends no headers of its own.
    code = f"""
import requests
from functools import partial
from openenv.cli.__main__ import app
requests.get, requests.post = (partial(call, headers={HEADERS!r}) for call in (requests.get, requests.post))
app()
"""
    command = [sys.executable, "-c", code, "validate", "--url", url, "--level", "runtime"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verdict: PASS" in done.stdout and "FAIL" not in done.stdout


# --- The client ------------------------------------------------------------------------------------------------------


def test_the_client_plays_in_synchronous_code(url: str) -> None:
    from toy_terminal_env.client import ToyTerminalEnv
    from toy_terminal_env.wire import ToyTerminalWireAction, ToyTerminalWireObservation

    task = next(task for task in TASKS.values() if task.family == "key")
    with ToyTerminalEnv(base_url=url, headers=HEADERS).sync() as env:
        result = env.reset(seed=0, task_id=task.task_id, max_turns=2)
        assert (result.observation.instruction, result.reward, result.done) == (task.question, None, False)
        with pytest.raises(RuntimeError, match=r"no task 'nope' \(code: EXECUTION_ERROR\)"):
            env.reset(seed=0, task_id="nope")
        result = env.step(ToyTerminalWireAction(command="ls /"))
        assert result.observation == ToyTerminalWireObservation(stdout="etc\nsrv\nvar\n", exit_code=0)
        result = env.step(ToyTerminalWireAction(command=f"answer: {task.answer}"))
        assert (result.reward, result.done) == (1.0, True)
        assert (result.observation.reward, result.observation.done) == (1.0, True)
        state = env.state()
        assert (state.task_id, state.world_seed, state.step_count) == (task.task_id, 0, 2)


def test_the_client_plays_several_sessions_in_asynchronous_code(url: str) -> None:
    from toy_terminal_env.client import ToyTerminalEnv
    from toy_terminal_env.wire import ToyTerminalWireAction

    async def reward(answer: str) -> float | None:
        async with ToyTerminalEnv(base_url=url, headers=HEADERS) as env:
            await env.reset(seed=0)
            assert not (await env.step(ToyTerminalWireAction(command="ls /etc"))).done
            return (await env.step(ToyTerminalWireAction(command=f"answer: {answer}"))).reward

    async def rewards(*answers: str) -> list[float | None]:
        return await asyncio.gather(*map(reward, answers))

    right = next(task.answer for task in TASKS.values() if task.split == "train")
    assert asyncio.run(rewards(right, "no", right)) == [1.0, 0.0, 1.0]


def test_the_wires_types_have_the_fields_and_defaults_of_the_models() -> None:
    from toy_terminal_env import wire

    for own, pydantic in (
        (ToyTerminalAction, wire.ToyTerminalWireAction),
        (ToyTerminalObservation, wire.ToyTerminalWireObservation),
        (ToyTerminalState, wire.ToyTerminalWireState),
    ):
        assert set(pydantic.model_fields) - {"metadata"} == {field.name for field in fields(own)}
    assert wire.ToyTerminalWireObservation().model_dump(exclude={"metadata"}) == asdict(ToyTerminalObservation())


def test_the_manifests_app_takes_its_options_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = yaml.safe_load((Path(toy_terminal_env.__file__).parent / "openenv.yaml").read_text(encoding="utf-8"))
    module, _, name = manifest["app"].partition(":")
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setenv("MAX_CONCURRENT_ENVS", "none")
    with pytest.raises(SystemExit):
        importlib.import_module(module)
    monkeypatch.setenv("MAX_CONCURRENT_ENVS", "2")
    assert "/ws" in {getattr(route, "path", "") for route in getattr(importlib.import_module(module), name).routes}


# --- The process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "http"], "argument --port: 'http' is not a whole number from 0 to 65535"),
        (["--port", "65536"], "argument --port: '65536' is not a whole number from 0 to 65535"),
        (["--max-sessions", "0"], "argument --max-sessions: '0' is not a whole number of at least 1"),
        (["--max-turns", "-1"], "argument --max-turns: '-1' is not a whole number of at least 1"),
        (["--workers", "2"], "unrecognized arguments: --workers 2"),
    ],
)
def test_a_bad_argument_is_one_line(arguments: list[str], message: str) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def test_a_bad_environment_variable_is_one_line() -> None:
    environment = {**os.environ, "MAX_CONCURRENT_ENVS": "many"}
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "'many' is not a whole number of at least 1" in done.stderr


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run([*COMMAND, "--port", str(port)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"error: cannot listen on 127.0.0.1:{port}: Address already in use\n")


def test_without_openenv_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "openenv.py").write_text("raise ModuleNotFoundError(\"No module named 'openenv'\", name='openenv')")
    path = os.pathsep.join([str(tmp_path), str(Path(toy_terminal_env.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([*COMMAND, "--port", "0"], capture_output=True, text=True, timeout=60, env=environment)
    error, tip = done.stderr.splitlines()
    assert (done.returncode, error) == (1, "error: No module named 'openenv'")
    assert tip.startswith(("  tip: bash ", f"  tip: {sys.executable} -m pip install ")) and "openenv" in tip


@pytest.mark.slow
def test_sigterm_ends_the_server_and_its_sessions_in_order(tmp_path: Path) -> None:
    process, url = started(tmp_path / "stderr")
    try:
        with opened(url) as session:
            reset(session)
            process.terminate()
            with pytest.raises(Exception, match="1012"):  # "service restart"
                session.recv(timeout=20)
        assert process.wait(20) == -signal.SIGTERM
    finally:
        process.kill()
    assert (tmp_path / "stderr").read_text() == ""


@pytest.mark.slow
def test_a_run_over_the_socket_is_the_run_in_process(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "--config toy evaluation.heldout_rollouts=1 environment.sessions=3 environment.batch_wait_s=60".split()
    words += [
        "environment.toy_terminal.families=[setting]"
    ]  # one of the default's two: held-out tasks are played twice
    assert train(tmp_path / "here", *words) == 0
    monkeypatch.setenv("ECHO_SERVER_TOKEN", TOKEN)
    there = [f"environment.url={url}", "environment.headers.Authorization=Bearer ${ECHO_SERVER_TOKEN}"]
    capsys.readouterr()
    assert train(tmp_path / "there", *words, *there) == 0
    assert "train: the environment's description: A deterministic, read-only terminal" in capsys.readouterr().err
    assert rows(tmp_path / "here") == rows(tmp_path / "there")
    assert weights(tmp_path / "here", 2) == weights(tmp_path / "there", 2)
    for log in ("trajectories.jsonl", "observations.jsonl"):
        assert (tmp_path / "here" / log).read_bytes() == (tmp_path / "there" / log).read_bytes()

    def measured(name: str) -> object:
        capsys.readouterr()
        assert main(["eval-heldout", str(tmp_path / name), "--rollouts", "0", "--step", "1", "--json"]) == 0
        return [{**entry, "run": ""} for entry in json.loads(capsys.readouterr().out)["measurements"]]

    here = measured("here")
    # The run on a server keeps its pools: it is measured without the server.
    monkeypatch.setattr(loaded_run, "open_worlds", lambda *_: pytest.fail("the environment was opened"))
    assert measured("there") == here
