"""Whole runs against a loopback server that is killed, restarted, full, slow or gone: no training step is lost."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from threading import Thread

import pytest
import yaml
from loopback_server import CONNECT, Behaviour, Counting, Incident, LoopbackServer, loopback_server
from tiny_run import error_of, observations, rows, start, weights

from echo_cli.cli.main import main
from echo_cli.errors import EchoError
from echo_cli.runs.directory import open_run
from echo_cli.training.rows import dropped_groups_line
from echo_cli.trajectory import read_trajectories

CONFIG = {
    "steps": 3,
    "threads": 1,
    "environment": {
        "tasks": {"items": [{"instruction": word, "steps": 2} for word in "oak elm ash yew fir fig bay box".split()]},
        "action": {"template": {"command": "{text}"}},
        "observation": [{"path": "output", "channel": "stdout"}],
        "explorer": ["look", "count again", "what now"],
        "reward": {"none": "zero"},
        "retry_s": 3.0,
        "step_timeout_s": 2.0,
    },
    "rollout": {"tasks_per_step": 2, "group_size": 2, "explorers": 2, "explorer_commands": 2},
    "optim": {"lr": 1e-3},
    "evaluation": {"every": 3, "pass_every": 3, "heldout_rollouts": 1, "validation_rollouts": 1},
    "checkpoint": {"every": 1, "keep": 9},
}


class Another(Counting):
    """A copy of the world under another name."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "counting.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "environment": {"url": "http://127.0.0.1:1", **CONFIG["environment"]}}))
    return path


def words(config: Path, run: Path, server: LoopbackServer, *more: str) -> list[str]:
    return [
        *("train", "--config", str(config), "--output-dir", str(run.parent), "--run-name", run.name),
        f"environment.url={server.url}",
        *more,
    ]


def train(config: Path, run: Path, server: LoopbackServer, *more: str) -> int:
    return main(words(config, run, server, *more))


def total(run: Path, key: str) -> int:
    return sum(row[f"environment/{key}"] for row in rows(run))


def test_a_run_on_a_server_learns_from_its_observations(config: Path, tmp_path: Path) -> None:
    with loopback_server(Behaviour(capacity=4)) as server:
        assert train(config, tmp_path / "run", server) == 0
        assert server.episodes == len({event["connection"] for event in server.events("reset")})
    metrics = rows(tmp_path / "run")
    assert [row["step"] for row in metrics] == [0, 1, 2, 3]
    assert metrics[3]["heldout/env_ce"] < metrics[0]["heldout/env_ce"]
    assert all(row["train/reward"] is not None and row["train/env_tokens"] > 0 for row in metrics[1:])
    record = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert record["environment"] == {"name": "Counting", "sessions": 4}
    (heldout,) = (tmp_path / "run").glob("pool_heldout.jsonl")
    shown = [s.text for t in read_trajectories(heldout) for s in t.segments if s.role.name == "ENV_OUTPUT"]
    assert shown and all(text.startswith(("1: ", "2: ")) for text in shown)


def test_the_environment_is_described_before_anything_is_played_in_it(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = json.dumps({"name": "Counting", "description": "real bash"})
    with loopback_server(Behaviour(http={"/metadata": (200, metadata)})) as server:

        def play(*_: object) -> None:
            assert not server.events("reset")
            raise EchoError("stopped before the pools", "")

        monkeypatch.setattr("echo_cli.training.session.play_pools", play)
        assert train(config, tmp_path / "run", server) == 2
    assert "train: the environment's description: real bash\nerror: stopped before the pools" in capsys.readouterr().err


def test_two_runs_are_the_same_and_so_is_a_resumed_one(config: Path, tmp_path: Path) -> None:
    with loopback_server(Behaviour(capacity=4)) as server:
        for name in ("one", "two"):
            assert train(config, tmp_path / name, server) == 0
        assert train(config, tmp_path / "three", server, "--steps", "1") == 0
        pool = (tmp_path / "three" / "pool_heldout.jsonl").read_bytes()
        assert train(config, tmp_path / "three", server, "--resume") == 0
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    assert weights(tmp_path / "one", 3) == weights(tmp_path / "two", 3) == weights(tmp_path / "three", 3)
    assert observations(tmp_path / "one") == observations(tmp_path / "three")
    assert (tmp_path / "three" / "pool_heldout.jsonl").read_bytes() == pool


MUTE = ("--steps", "1", "environment.action.extract='^RUN (.+)$'")
"""Words of a run whose policy writes no valid action."""


def test_a_policy_without_a_valid_action_is_measured_on_scripted_pools(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with loopback_server(Behaviour(capacity=4)) as server:
        lines = "environment.explorer=['RUN look','RUN count again','RUN what now']"
        assert train(config, run, server, *MUTE, lines, "rollout.explorers=12") == 0
    printed, said = capsys.readouterr()
    for split in ("validation", "heldout"):
        played = list(read_trajectories(run / f"pool_{split}.jsonl"))
        assert played and all(trajectory.source == "explorer" for trajectory in played)
    start, last = rows(run)
    assert start["heldout/env_ce"] is not None and "pool is empty" not in said
    # The world has few pairs, and training executes all of them in its first step.
    assert (last["heldout/novel_pairs"], last["heldout/env_ce"]) == (0, None)
    assert f"held-out env-CE of seen pairs (no pair is novel) {last['heldout/env_ce_seen']:.3f}" in said
    assert "held-out env-CE of seen pairs" in printed and "training has executed every held-out pair" in printed
    summary = open_run(run).read_summary()
    assert summary is not None and summary["heldout"]["last"]["env_ce_seen"] == last["heldout/env_ce_seen"]
    assert f"1,heldout/env_ce_seen,{last['heldout/env_ce_seen']}" in (run / "heldout_env_ce.csv").read_text()
    # Neither command needs the server, which has ended.
    assert main(["eval-heldout", str(run), "--rollouts", "0", "--step", "1"]) == 0
    printed = capsys.readouterr().out
    assert "env-CE of seen pairs, as none is novel" in printed and "training has executed every pair" in printed
    assert main(["report", str(run)]) == 0
    assert "held-out env-CE of seen pairs, as none is novel" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("explorer", []),
        ("random", ["environment.explorer=[]", "rollout.explorers=0"]),
        ("actions", ["environment.tasks.items=[{reset: {steps: 2}, actions: [go, 'RUN on']}, {steps: 3}, {steps: 4}]"]),
    ],
)
def test_a_check_wraps_its_lines_as_the_config_extracts_them(
    script: str, words: list[str], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with loopback_server(Behaviour(capacity=4)) as server:
        extract = "environment.action.extract='RUN (.+)'"
        assert main(["env", "check", str(config), f"environment.url={server.url}", extract, "--json", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["script"] == script and not report["faults"]["bad_actions"]
    assert "refused" not in {warning["name"] for warning in report["warnings"]}
    turns = report["trajectory"]["turns"]
    assert turns and all(turn["command"].startswith("RUN ") and turn["output"] for turn in turns)


def test_a_pool_that_stays_empty_is_said_with_the_key_to_set(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with loopback_server(Behaviour(capacity=4)) as server:
        # Without any observation, λ > 0 is refused at the first step.
        words = ("environment.explorer=[]", "rollout.explorers=0", "objective.world_model_coeff=0")
        assert train(config, tmp_path / "run", server, *MUTE, *words) == 0
    said = capsys.readouterr().err
    for title in ("validation", "held-out"):
        assert f"train: warning: the {title} pool is empty: " in said and "environment.explorer" in said
    assert rows(tmp_path / "run")[0]["heldout/env_ce"] is None


@pytest.mark.parametrize(
    ("incident", "counter"),
    [
        (Incident("close", at=1, value=1011, connections=(14, 15)), "sessions_lost"),
        (Incident("drop", connections=(14,)), "sessions_lost"),
        (Incident("hang", at=2, connections=(14,)), "sessions_lost"),
        (Incident("text", value="garbage", connections=(14,)), "sessions_lost"),
        (Incident("error", CONNECT, {"code": "CAPACITY_REACHED", "message": "full"}, (14,)), "unavailable"),
        (Incident("error", 1, {"code": "EXECUTION_ERROR", "message": "boom"}, (14,)), "errors"),
        (Incident("error", 1, {"code": "VALIDATION_ERROR", "message": "no"}, (14,)), "bad_actions"),
        (Incident("flood", value=20_000_000, connections=(14,)), None),
        (Incident("slow", value=0.5, connections=(14,)), None),
    ],
    ids=lambda value: value.kind + str(value.value)[:24] if isinstance(value, Incident) else "",
)
def test_a_run_survives_what_befalls_one_session(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], incident: Incident, counter: str | None
) -> None:
    with loopback_server(Behaviour(capacity=4, incidents=(incident,))) as server:
        assert train(config, tmp_path / "run", server) == 0
    metrics = rows(tmp_path / "run")
    assert [row["step"] for row in metrics] == [0, 1, 2, 3]
    if counter is None:
        assert all(total(tmp_path / "run", key) == 0 for key in ("sessions_lost", "unavailable", "groups_dropped"))
        return
    assert total(tmp_path / "run", counter) >= 1 and total(tmp_path / "run", "groups_dropped") == 0
    said = capsys.readouterr().err
    assert ("environment at step" in said) == (counter in ("sessions_lost", "unavailable"))


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
def test_a_run_survives_a_restart_of_its_server_and_says_so(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kill: bool
) -> None:
    open_session = Incident("hang", connections=(20,))  # certainly open when the server ends
    with loopback_server(Behaviour(capacity=4, incidents=(open_session,))) as server:

        def interrupt() -> None:
            server.wait_for("step", 1, connection=20)
            server.kill() if kill else server.stop()
            server.restart()

        interruption = Thread(target=interrupt)
        interruption.start()
        assert train(config, tmp_path / "run", server) == 0
        interruption.join()
    metrics = rows(tmp_path / "run")
    assert [row["step"] for row in metrics] == [0, 1, 2, 3]
    assert total(tmp_path / "run", "sessions_lost") + total(tmp_path / "run", "unavailable") >= 1
    assert total(tmp_path / "run", "groups_dropped") == 0
    assert "environment at step" in capsys.readouterr().err


def test_a_server_that_never_returns_ends_the_run_with_a_checkpoint(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    dies = Behaviour(capacity=4, incidents=(Incident("die", at=1, connections=(20,)),))
    with loopback_server(dies) as server:
        assert train(config, run, server, "environment.retry_s=0.5", "checkpoint.every=99") == 1
        message, tip = error_of(capsys.readouterr().err.split("\n", 1)[1])
        assert message.startswith("the environment is not available: ") and "--resume" in tip
        last = rows(run)[-1]["step"]
        assert 0 < last < 3 and (run / "checkpoints" / f"step_{last:06d}").is_dir()
        assert not (run / "summary.json").exists()
        server.restart()
        assert train(config, run, server, "--resume", "environment.retry_s=0.5", "checkpoint.every=99") == 0
    assert [row["step"] for row in rows(run)] == [0, 1, 2, 3]


def test_an_evaluation_that_the_server_did_not_live_to_see_is_made_up_for(config: Path, tmp_path: Path) -> None:
    with loopback_server(Behaviour(capacity=4)) as server:
        assert train(config, tmp_path / "whole", server) == 0
        last = server.connections - 1
    run = tmp_path / "run"
    with loopback_server(Behaviour(capacity=4, incidents=(Incident("die", connections=(last,)),))) as server:
        assert train(config, run, server, "environment.retry_s=0.5", "checkpoint.every=99") == 1
        assert [row["step"] for row in rows(run)] == [0, 1, 2] and (run / "checkpoints" / "step_000003").is_dir()
        server.restart()
        for _ in range(2):  # the second has nothing left to do
            assert train(config, run, server, "--resume", "environment.retry_s=0.5", "checkpoint.every=99") == 0
    assert rows(run) == rows(tmp_path / "whole")
    assert (run / "checkpoints" / "best").read_text() == (tmp_path / "whole" / "checkpoints" / "best").read_text()
    assert (run / "trajectories.jsonl").read_bytes() == (tmp_path / "whole" / "trajectories.jsonl").read_bytes()


def test_a_step_that_loses_every_session_ends_the_run_with_a_checkpoint(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closes = Incident("close", at=1, value=1011, connections=tuple(range(14, 200)))
    with loopback_server(Behaviour(capacity=4, incidents=(closes,))) as server:
        assert train(config, tmp_path / "run", server, "rollout.explorers=0", "checkpoint.every=99") == 1
    message, _ = error_of(capsys.readouterr().err.split("\n", 1)[1])
    last = rows(tmp_path / "run")[-1]["step"]
    assert message == f"the environment lost every session of step {last + 1}"
    assert (tmp_path / "run" / "checkpoints" / f"step_{last:06d}").is_dir()


def test_without_validation_tasks_no_step_is_the_best(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with loopback_server(Behaviour(capacity=4)) as server:
        overrides = ("environment.tasks.validation=0", "environment.tasks.heldout=0.5")
        assert train(config, tmp_path / "run", server, *overrides) == 0
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["checkpoint"] is summary["heldout"]["best"] is None
        printed, said = capsys.readouterr()
        assert "no best step: the validation pool has no (command, output) pair" in printed
        assert "train: warning: the validation pool is empty: it has no tasks" in said
        assert main(["eval-heldout", str(tmp_path / "run"), "--checkpoint", "best"]) == 2
        message, tip = error_of(capsys.readouterr().err)
        assert message.endswith("has no best checkpoint") and tip == "use the latest checkpoint (step 3)"
        for command in (["eval-heldout", "--rollouts", "0"], ["export", "--output", str(tmp_path / "model")]):
            assert main([*command, str(tmp_path / "run")]) == 0
            printed, said = capsys.readouterr()
            assert "no step was chosen on validation: the latest checkpoint is used (step 3)" in said
            assert "step 3" in printed


def test_an_unreachable_server_is_one_line_and_leaves_no_run(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with loopback_server(Behaviour()) as server:
        server.kill()
        assert train(config, tmp_path / "run", server) == 1
    message, _ = error_of(capsys.readouterr().err)
    assert server.url in message and not (tmp_path / "run").exists()


def test_a_run_that_may_not_be_written_or_continued_here_is_refused_before_anything_is_played(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def refusal(*more: str) -> str:
        assert train(config, run, server, *more) == 2
        return error_of(capsys.readouterr().err)[0]

    with loopback_server(Behaviour(capacity=4)) as server:
        assert train(config, run, server, "--steps", "1") == 0
        capsys.readouterr()
        before = len(server.events("http")), server.connections
        assert "already contains a run" in refusal()
        with open_run(run).lock():
            for option in ("--resume", "--overwrite"):
                assert "is locked by another process" in refusal(option)
        assert (len(server.events("http")), server.connections) == before
        server.restart(Behaviour(capacity=4, world=Another))
        assert "was trained in Counting, but this environment is Another" in refusal("--resume")
    assert [row["step"] for row in rows(run)] == [0, 1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("environment.action.template={cmd: '{text}'}", "command"),
        ("environment.observation=[{path: 'output['}]", "output["),
        ("environment.tasks.items=[]", "tasks"),
        ("environment.explorer=[]", "environment.explorer is empty"),
        ("environment.volatile=['(']", "invalid regular expression"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    with loopback_server(Behaviour(capacity=4)) as server:
        assert train(config, tmp_path / "run", server, override) == 2
    error, tip = error_of(capsys.readouterr().err)
    assert message in f"{error} {tip}" and tip
    assert not (tmp_path / "run").exists()


def test_a_server_with_fewer_sessions_than_set_refuses_them_once_and_the_run_goes_on_with_those_it_has(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with loopback_server(Behaviour(capacity=1)) as server:
        assert train(config, tmp_path / "run", server, "environment.sessions=4", "--steps", "2") == 0
        refused = server.connections - server.episodes
    assert 1 <= refused <= 9  # at most a few attempts of three sessions, until the first one is open
    *_, last = rows(tmp_path / "run")
    assert last["environment/unavailable"] == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "sessions: rollouts use" in line]
    assert len(said) == 1 and "grants 1 of 4 sessions" in said[0]


@pytest.mark.parametrize(("none", "dropped"), [("skip", 4), ("zero", 0)])
def test_rollouts_capped_before_any_step_count_as_zero_or_the_run_says_once_that_it_drops_their_groups(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], none: str, dropped: int
) -> None:
    settings = [f"environment.reward.none={none}", "rollout.max_action_tokens=1"]  # explorers give observations
    with loopback_server(Behaviour(capacity=4)) as server:
        assert train(config, tmp_path / "run", server, "--steps", "2", *settings) == 0
    assert total(tmp_path / "run", "groups_dropped") == dropped  # evaluation, which has no RL term, drops none
    assert [row["train/reward"] for row in rows(tmp_path / "run")[1:]] == [0.0 if none == "zero" else None] * 2
    said = [line for line in capsys.readouterr().err.splitlines() if "groups are excluded" in line]
    assert len(said) == (dropped > 0)
    assert all("2 of 2 groups" in line and "environment.reward.none=zero" in line for line in said)


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        ([0, 1], "no"),  # 1 of 10 is a tenth
        ([0, 2], "2 of 10 groups are excluded from the RL term, because they lost a rollout with its session"),
        ([0, 0, 2, 2], "4 of 30"),
        ([0, 2, 0], "no"),  # said after the first step, 2 of 10
        ([0, 2, 0, 0, 9], "no"),
    ],
)
def test_dropped_groups_are_said_at_the_first_step_at_which_they_exceed_a_tenth(dropped: list[int], said: str) -> None:
    counts = [
        {"step": step, "environment/groups_dropped": count, "environment/unrewarded": 0}
        for step, count in enumerate(dropped)
    ]
    line = dropped_groups_line(counts, 10, "skip")
    assert (line is None) if said == "no" else (line is not None and said in line)


@pytest.mark.slow
def test_ctrl_c_during_a_run_on_a_server_saves_and_resumes(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with loopback_server(Behaviour(capacity=4)) as server:
        assert train(config, tmp_path / "whole", server, "--steps", "6") == 0
        before = server.steps
        process = start(*words(config, run, server, "--steps", "6"))
        server.wait_for("step", before + 30)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode in (0, 130), said
        assert train(config, run, server, "--steps", "6", "--resume") == 0
    assert rows(run) == rows(tmp_path / "whole")
