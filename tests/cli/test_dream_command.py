"""`dream`: commands through a pipe, scores of held-out pairs, and one-line errors."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback_server import Behaviour, Incident, loopback_server
from tiny_run import COMMAND, error_of, rows, start, train

from echo_cli.cli.display.dream import lines_beside, print_event
from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.environments.worlds import open_worlds
from echo_cli.evaluation.dream.scoring import edit_similarity
from echo_cli.evaluation.dream.session import Answer
from echo_cli.evaluation.evaluator import expert_pools
from echo_cli.evaluation.loaded_run import build_policy
from echo_cli.runs.directory import open_run
from echo_cli.runs.pools import Pool
from echo_cli.statistics import ratio, ratio_difference
from echo_cli.trajectory import write_trajectories

Dream = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dream(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dream:
    """A function that runs `dream RUN WORDS` with lines on stdin and returns exit code, stdout and stderr."""

    def dreamt(run: Path, *words: str, lines: str = "") -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = main(["dream", str(run), *words])
        return code, *capsys.readouterr()

    return dreamt


@pytest.fixture(scope="module")
def heldout_pool(finished: Path) -> Pool:
    config = load_config(finished / "config.yaml")
    with open_worlds(config) as worlds:
        return expert_pools(config, worlds, build_policy(config)[0])["heldout"]


@pytest.fixture(scope="module")
def explored(finished: Path, heldout_pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose record says that training has executed every third held-out command."""
    run = shutil.copytree(finished, tmp_path_factory.mktemp("explored") / "explored")
    pairs = sorted(heldout_pool.pairs)[::3]
    rows = [{"step": 1, "command": command, "output": output, "exit_code": 0} for command, output in pairs]
    with (run / "observations.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
    return run


@pytest.fixture(scope="module")
def scored(explored: Path) -> dict[str, Any]:
    words = ("--score", "99", "--max-tokens", "12", "--checkpoint", "latest", "--json")
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        assert main(["dream", str(explored), *words]) == 0
    assert err.getvalue() == ""
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def exchanged(out: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(out)["exchanges"]
    return found


# --- Commands --------------------------------------------------------------------------------------------------------


def test_commands_through_a_pipe_are_answered_twice(finished: Path) -> None:
    run = start("dream", str(finished), stdin=-1)
    out, err = run.communicate("ls /\n\nfrob \x1b[31m\nexit\nls /srv\n")
    best = open_run(finished).checkpoints.best_step()
    assert (run.returncode, err) == (0, f"finished, step {best}, task w0-000-key; exit or Ctrl-D ends the session\n")
    assert out.startswith("| task: what is the quota of pebble?\n$ ls /\n  predicted:\n")
    first, second = out.split("$ ls /\n")[1].split("$ frob \\x1b[31m\n")
    real = first.split("  real:\n")[1]
    assert [line[4:] for line in real.splitlines()[:-1]] == ["etc", "srv", "var"]
    assert "command not found" in second and "[exit 127]" in second
    assert "edit similarity 0." in second and "\x1b" not in out and "/srv" not in second


def test_an_episode_that_ends_is_begun_again(finished: Path, dream: Dream) -> None:
    code, out, _ = dream(finished, "--json", "--task", "w0-001-key_named", lines="ls /\nanswer: 1\nls /\n")
    found = json.loads(out)
    assert code == 0 and found["task"] == "w0-001-key_named"
    assert len(found["openings"]) == 2 and found["openings"][0] == found["openings"][1]
    assert found["notices"] == ["the episode is over: answered, reward 0; the next command begins it again"]
    first, answer, again = found["exchanges"]
    assert first == again
    assert (answer["actual"], answer["exact_match"]) == ("", False)
    assert first["edit_similarity"] == edit_similarity(first["predicted"], first["actual"])
    assert first["exit_code"] == 0


def test_the_turns_of_an_episode_run_out(finished: Path, dream: Dream) -> None:
    _, out, _ = dream(finished, lines="ls /\n" * 6)
    assert out.count("[the episode is over: turn_cap, reward 0; the next command begins it again]\n| task:") == 1
    assert out.count("$ ls /\n") == 6


def test_a_closed_loop_goes_on_after_its_own_replies(finished: Path, dream: Dream) -> None:
    lines = "head -n 2 /etc/lynx.yaml\nls /\n"
    opened = exchanged(dream(finished, "--json", lines=lines)[1])
    closed = exchanged(dream(finished, "--json", "--closed-loop", lines=lines)[1])
    assert closed[0] == opened[0] and not closed[0]["exact_match"]
    assert [entry["actual"] for entry in closed] == [entry["actual"] for entry in opened]
    longer = exchanged(dream(finished, "--json", "--closed-loop", "--max-tokens", "90", lines=lines)[1])
    assert len(longer[0]["predicted"]) > len(closed[0]["predicted"])


def test_a_sampled_reply_depends_on_its_seed_alone(finished: Path, dream: Dream) -> None:
    def said(*words: str) -> str:
        text: str = exchanged(dream(finished, "--json", *words, lines="head -n 4 /etc/lynx.yaml\n")[1])[0]["predicted"]
        return text

    assert said("--temperature", "1") == said("--temperature", "1") != said("--temperature", "1", "--seed", "1")
    assert said() == said("--seed", "1")


def test_whoever_has_read_enough_sees_no_traceback(finished: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        words = [*COMMAND, "dream", str(finished)]
        done = subprocess.run(words, input="ls\n" * 3, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[1:] == []


def test_a_closed_stdin_has_no_commands(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["dream", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exchanges"] == []


def test_what_is_typed_need_not_be_text(finished: Path) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "wb", 0) as typist, open(theirs, "rb+", 0) as terminal:
        words = [*COMMAND, "dream", str(finished), "--json"]
        locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        process = subprocess.Popen(
            words, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **locale}
        )
        typist.write(b"cat \xff\xc3\xa9\n\x04")
        out, err = process.communicate()
    assert process.returncode == 0, err.decode()
    assert len(json.loads(out)["exchanges"]) == 1  # and nothing else on stdout: the prompt is on stderr
    assert err.decode().splitlines()[-1].startswith("$ ")


def test_a_command_without_room_is_refused(finished: Path, dream: Dream) -> None:
    code, out, _ = dream(finished, lines=f"ls {'/x' * 400}\nls /\n")
    assert code == 0
    assert "[the command has " in out and out.endswith("did not end by itself\n")


def test_the_tasks_are_listed(finished: Path, dream: Dream) -> None:
    tasks = json.loads(dream(finished, "--list-tasks", "--json")[1])["tasks"]
    assert tasks[0] == {"id": "w0-000-key", "split": "heldout", "family": "key"}
    assert {task["split"] for task in tasks} == {"heldout", "validation", "train"}
    assert "w0-001-key_named" in dream(finished, "--list-tasks")[1]
    code, _, err = dream(finished, "--list-tasks", "--closed-loop")
    assert code == 2 and "--closed-loop has no effect with --list-tasks" in str(err)


def test_lines_in_both_texts_stand_beside_each_other() -> None:
    assert lines_beside("a\nb\nd\n", "a\nc\nd\ne\n") == [("a", "a"), ("b", "c"), ("d", "d"), (None, "e")]
    assert lines_beside("", "x\n") == [(None, "x")]


def test_a_wide_terminal_has_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer("ls", "etc\nnone\n", "etc\n\x1b[2Jsrv\n", True, False, 0.5, 0, 2)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(columns: str) -> list[str]:
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr(sys, "stdout", Terminal())
        print_event(answer, None)
        text: str = sys.stdout.getvalue()  # type: ignore[attr-defined]
        return text.splitlines()

    wide = shown("120")
    assert [line.split() for line in wide[:3]] == [
        ["predicted", "real"],
        ["etc", "etc"],
        ["none", "!", "\\x1b[2Jsrv"],
    ]
    assert all(len(line) <= 120 for line in wide)
    assert shown("80")[:3] == ["  predicted:", "    etc", "  ! none"]
    assert wide[-1] == "  edit similarity 0.500; exit status 0, real 2"


# --- Scores ----------------------------------------------------------------------------------------------------------


def test_a_score_is_over_what_training_has_not_executed(scored: dict[str, Any], explored: Path) -> None:
    executed = {(row["command"], row["output"]) for row in open_run(explored).read_observations(4)}
    replies = scored["replies"]
    assert scored["novel_pairs"] + scored["seen_pairs"] == len(replies) == 42
    assert scored["scored"] == {"novel": scored["novel_pairs"], "seen": scored["seen_pairs"]}
    assert scored["seen_pairs"] == 14
    assert all(reply["novel"] is ((reply["command"], reply["actual"]) not in executed) for reply in replies)


def test_estimates_are_means_with_intervals_over_trajectories(scored: dict[str, Any]) -> None:
    (everything,) = [group for group in scored["groups"] if group["group"] == "all"]
    novel = [reply for reply in scored["replies"] if reply["novel"]]
    assert everything["replies"] == len(novel)
    owners = sorted({reply["trajectory"] for reply in novel})
    counts = [sum(reply["trajectory"] == owner for reply in novel) for owner in owners]

    def sums(when: str, name: str) -> list[float]:
        return [float(sum(r[when][name] for r in novel if r["trajectory"] == owner)) for owner in owners]

    for name in ("exact_match", "edit_similarity", "ended", "exit_status", "edit_similarity_at_length"):
        before, after = sums("before", name), sums("after", name)
        for found, wanted in (
            (everything["before"], ratio(before, counts)),
            (everything["after"], ratio(after, counts)),
            (everything["difference"], ratio_difference(before, after, counts)),
        ):
            assert wanted is not None
            assert found[name]["value"] == pytest.approx(wanted.value)
    for reply in scored["replies"]:
        for when in ("before", "after"):
            at_length = edit_similarity(reply[when]["text_at_length"], reply["actual"])
            assert reply[when]["edit_similarity_at_length"] == pytest.approx(at_length)
    commands = [group for group in scored["groups"] if group["group"] == "command"]
    assert sum(group["replies"] for group in commands) == len(novel)


def test_fewer_pairs_are_the_first_of_the_seeds_order(scored: dict[str, Any], explored: Path, dream: Dream) -> None:
    def asked(found: dict[str, Any]) -> list[str]:
        return [reply["command"] for reply in found["replies"] if reply["novel"]]

    words = ("--max-tokens", "4", "--checkpoint", "latest", "--json")
    few = json.loads(dream(explored, "--score", "3", *words)[1])
    assert asked(few) == asked(scored)[:3]
    other = json.loads(dream(explored, "--score", "3", *words, "--seed", "1")[1])
    assert asked(other) != asked(few)
    start = json.loads(dream(explored, "--score", "3", *words[:2], "--json", "--checkpoint", "0")[1])
    assert all(reply["before"] == reply["after"] for reply in start["replies"]) and start["seen_pairs"] == 0


def test_the_table_of_a_score(explored: Path, dream: Dream) -> None:
    code, out, err = dream(explored, "--score", "4", "--max-tokens", "12", "--checkpoint", "latest")
    assert (code, err) == (0, "")
    for text in ("all novel pairs: 4 replies", "initial policy", "edit similarity", "exit status", "order of seed 0"):
        assert text in out
    assert "grep:" not in out
    broken = dream(explored, "--score", "4", "--max-tokens", "12", "--checkpoint", "latest", "--breakdown")[1]
    assert "grep:" in broken and "pairs that training executed: 4 replies" in broken


def test_another_pool_is_scored(finished: Path, tmp_path: Path, dream: Dream) -> None:
    pool = tmp_path / "wrong-turns"
    build = ["pool", "build", str(pool), "--config", "toy-files", "--actor", "explorer"]
    assert main([*build, "environment.toy_terminal.world_seeds=[7]", "rollout.explorer_commands=2"]) == 0
    found = json.loads(dream(finished, "--score", "6", "--max-tokens", "8", "--pool", str(pool), "--json")[1])
    assert found["pool"] == "wrong-turns" and found["scored"]["novel"] == 6


def test_a_run_that_learns_where_outputs_end_ends_its_replies(finished: Path, tmp_path: Path, dream: Dream) -> None:
    words = "use_rl=false world_model_coeff=1 env_normalization=token_mean end_of_output=true".split()
    words = ["rollout.tasks_per_step=0", "rollout.explorers=24", *(f"objective.{word}" for word in words)]
    words += ["optim.lr=6e-3", "optim.warmup_steps=1", "evaluation.every=8", "checkpoint.every=8"]
    run = tmp_path / "ends"
    assert train(run, "--steps", "8", *words) == 0
    first, last = rows(run)[0], rows(run)[-1]
    assert last["train/end_tokens"] == 48 < last["train/env_tokens"]
    assert last["heldout/end_ce"] < first["heldout/end_ce"] / 2
    without = rows(finished)[0]
    assert without["heldout/env_ce"] == pytest.approx(first["heldout/env_ce"], abs=1e-6)
    assert {key for key in first if "/end_" in key} and not {key for key in without if "/end_" in key}

    code, out, _ = dream(run, "--score", "8", "--max-tokens", "60", "--checkpoint", "latest", "--json")
    (group,) = [group for group in json.loads(out)["groups"] if group["group"] == "all"]
    assert code == 0 and group["before"]["ended"]["value"] == 0 and group["after"]["ended"]["value"] >= 0.9
    (answer,) = exchanged(dream(run, "--checkpoint", "latest", "--json", lines="head -n 2 /etc/lynx.yaml\n")[1])
    assert answer["ended"]  # at its own length, without --max-tokens


# --- What is not there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        (["--checkpoint", "9"], "no checkpoint of step 9", "0, 1, 2, 3, 4"),
        (["--checkpoint", "all"], "no checkpoint 'all'", "best, latest or a step"),
        (["--task", "w0-001-key-named"], "no task 'w0-001-key-named'", "did you mean w0-001-key_named?"),
        (["--temperature", "-1"], "--temperature is -1.0", "give 0 or a positive number"),
        (["--score", "3", "--closed-loop"], "--closed-loop has no effect with --score", "greedy"),
        (["--breakdown"], "--breakdown has no effect without --score", "--score N"),
        (["--score", "0"], "Invalid value for '--score'", ""),
        (["--score", "3", "--pool", "nowhere"], "nowhere", ""),
    ],
)
def test_what_is_not_there_is_an_error(words: list[str], message: str, tip: str, finished: Path, dream: Dream) -> None:
    code, out, err = dream(finished, *words)
    assert (code, out) == (2, "")
    found = error_of(err)
    assert message in found[0] and tip in found[1]


@pytest.fixture(scope="module")
def elsewhere(finished: Path, heldout_pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that copies the finished run with a stored held-out pool and an environment at a URL."""

    def moved(url: str) -> Path:
        run = shutil.copytree(finished, tmp_path_factory.mktemp("moved") / "moved")
        settings = yaml.safe_load((run / "config.yaml").read_text())
        settings["environment"] = {
            "url": url,
            "retry_s": 0.2,
            "prompt": "$ ",
            "tasks": {"items": [{"instruction": word, "steps": 9} for word in "oak elm ash yew fir fig".split()]},
            "action": {"template": {"command": "{text}"}},
            "observation": [{"path": "output", "channel": "stdout"}],
            "explorer": ["look"],
        }
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        write_trajectories(run / "pool_heldout.jsonl", heldout_pool.trajectories)
        return run

    return moved


def test_a_kept_pool_is_scored_without_an_environment(elsewhere: Callable[[str], Path], dream: Dream) -> None:
    run = elsewhere("http://127.0.0.1:9")
    code, out, _ = dream(run, "--score", "2", "--max-tokens", "4", "--json")
    assert code == 0 and json.loads(out)["scored"]["novel"] == 2
    code, out, err = dream(run, "--allow-environment", lines="ls\n")
    assert (code, out) == (1, "")
    assert "127.0.0.1:9" in error_of(err)[0]


def test_a_lost_session_gets_one_line(elsewhere: Callable[[str], Path], dream: Dream) -> None:
    incident = Incident("close", at=2, value=1011, connections=(0, 1, 2))
    with loopback_server(Behaviour(incidents=(incident,))) as server:
        code, out, _ = dream(elsewhere(server.url), "--json", "--allow-environment", lines="one\ntwo\nthree\n")
    assert code == 0
    found = json.loads(out)
    assert [entry["command"] for entry in found["exchanges"]] == ["one", "three"]
    assert [entry["actual"] for entry in found["exchanges"]] == ["1: one\n", "1: three\n"]
    assert all(entry["exit_code"] is None for entry in found["exchanges"])
    (notice,) = found["notices"]
    assert notice.startswith("the environment lost the session: ") and notice.endswith("begins the episode again")
