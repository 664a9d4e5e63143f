"""The command line's surface: help, one-line errors with a tip, exit codes, and only the result on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import COMMAND, error_of, rows, train, train_words

from echo_cli.cli.main import SPIN_SETTINGS, limit_spinning, main
from echo_cli.config.loader import configs_folder, find_config, load_config

COMMANDS = (
    *("train", "sweep-lambda", "eval-heldout", "inspect", "report", "dream", "plot"),
    *("export", "bench", "shell-hook", "pool", "env", "traces"),
)


def _fails(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> tuple[str, str]:
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    return error_of(captured.err)


def _run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, env={**os.environ, **environment})


def test_help_lists_every_command_on_one_whole_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    listed = captured.out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert all(line.endswith(".") and "..." not in line and len(line) <= 80 for line in listed)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, option]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"Usage: echo-cli {command} ")
    assert "..." not in captured.out.partition("Options:")[2]
    assert captured.err == ""


def test_no_command_prints_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: echo-cli ") and "error" not in captured.err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("echo-cli 0.")


@pytest.mark.parametrize(
    ("words", "tip"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train", "--stps", "3"], "did you mean --steps?"),
        (["train", "--config", "toyy"], "did you mean 'toy'?"),
        (["train", "--config", "toy-gpro"], "did you mean 'toy-grpo'?"),
        (["train", "optim.lrr=1"], "did you mean 'optim.lr'?"),
        (["sweep-lambda", "0", "--stps", "3"], "did you mean --steps?"),
        (["sweep-lambda", "0", "--stps=3"], "did you mean --steps?"),
        (["eval-heldout", "x", "--rollout", "3"], "did you mean --rollouts?"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(words: list[str], tip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _fails(capsys, *words)[1] == tip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--steps", "2", "steps=400"], "--steps and steps=400 both set steps"),
        (["train", "output_dir=a", "--output-dir", "a"], "--output-dir and output_dir=a both set output_dir"),
        (["train", "--lambda", "0.1", "objective.world_model_coeff=1"], "--lambda and objective.world_model_coeff=1"),
        (["bench", "--device", "cpu", "device=auto"], "--device and device=auto both set device"),
    ],
)
def test_an_option_and_an_override_of_one_key_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error, tip = _fails(capsys, *words)
    assert message in error and tip == "give one of them"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--steps"], "Option '--steps' requires an argument."),
        (["train", "--steps", "0"], "'steps' is 0"),
        (["train", "--steps", "-3"], "'steps' is -3"),
        (["train", "--steps", "many"], "'steps' is \"many\""),
        (["train", "--steps", ""], "'steps' is null"),
        (["train", "--steps", "1.5"], "'steps' is 1.5"),
        (["train", "--seed", "-1"], "'seed' is -1"),
        (["train", "--seed", "9" * 30], "'seed' is 9"),
        (["train", "--lambda", "-1"], "λ is -1"),
        (["train", "--lambda", "nan"], "λ is nan"),
        (["train", "--lambda", "1e400"], "λ is 1e400"),
        (["train", "--lambda", ""], "'' is not a λ value"),
        (["train", "--lambda", "high"], "'high' is not a λ value"),
        (["train", "--device", "tpu"], "'device' is \"tpu\""),
        (["train", "--config", ""], "no config named ''"),
        (["train", "--config", "nowhere.yaml"], "config file nowhere.yaml does not exist"),
        (["train", "--run-name", "a/b"], "'a/b' is not a run name"),
        (["train", "--run-name", ".."], "'..' is not a run name"),
        (["train", "--run-name", ""], "'run_name' is \"\""),
        (["train", "--output-dir", ""], "'output_dir' is \"\""),
        (["train", "--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
        (["train", "toy"], "'toy' is not an override"),
        (["eval-heldout"], "name one RUN, or two runs with --compare RUN_A RUN_B"),
        (["eval-heldout", "nowhere"], "nowhere does not exist"),
        (["eval-heldout", "nowhere", "--step", "two"], "Invalid value for '--step'"),
        (["eval-heldout", "nowhere", "--rollouts", "-1"], "Invalid value for '--rollouts'"),
        (["eval-heldout", "nowhere", "--checkpoint", "good"], "no checkpoint 'good'"),
        (["plot"], "Missing argument 'RUN'."),
        (["plot", "nowhere"], "nowhere does not exist"),
        (["report"], "Missing argument 'RUN'."),
        (["report", "nowhere"], "nowhere does not exist"),
        (["report", "nowhere", "--checkpoint", "good"], "no checkpoint 'good'"),
        (["eval-heldout", "nowhere", "threads=1"], "'threads=1' is a config override"),
        (["eval-heldout", "--compare", "a", "b", "threads=1"], "'threads=1' is a config override"),
        (["plot", "nowhere", "seed=1"], "'seed=1' is a config override"),
        (["report", "nowhere", "seed=1"], "'seed=1' is a config override"),
        (["export", "nowhere", "seed=1", "-o", "x"], "Got unexpected extra argument"),
        (["report", "nowhere", "--episodes", "-1"], "Invalid value for '--episodes'"),
        (["shell-hook"], "Missing argument 'bash|zsh|fish'."),
        (["shell-hook", "tcsh"], ""),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, tip = _fails(capsys, *words)
    assert message in found
    assert tip
    assert list(tmp_path.iterdir()) == []


def test_terminal_escapes_in_a_mistake_are_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    message, _ = _fails(capsys, "train", "\x1b[31mred\u202e")
    assert "\\x1b[31mred\\u202e" in message


def test_dry_run_prints_the_config_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dry-run", "--json", "--output-dir", str(tmp_path / "o"), "optim.lr=1e-5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["config"]["optim"]["lr"] == 1e-5
    assert printed["plan"]["run directory"] == str(tmp_path / "o" / "toy-seed0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [path.stem for path in sorted(configs_folder().glob("*.yaml"))])
def test_the_dry_run_of_a_shipped_config_is_a_config(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", name, "--dry-run"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "printed.yaml") == load_config(find_config(name))


def test_plot_prints_the_files_it_wrote(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(finished), "-o", str(tmp_path)]) == 0
    assert [Path(line).suffix for line in capsys.readouterr().out.splitlines()] == [".png", ".svg", ".csv"]
    assert main(["plot", str(finished), "-o", str(tmp_path), "--json"]) == 0
    assert all(Path(path).is_file() for path in json.loads(capsys.readouterr().out).values())


def test_a_picture_that_cannot_be_drawn_costs_no_run_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # its import fails
    assert train(tmp_path / "run", "--steps", "1", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "finished"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
    assert captured.err.count("no picture: cannot import matplotlib") == 1 and "Traceback" not in captured.err
    assert main(["eval-heldout", str(tmp_path / "run"), "--rollouts", "0", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["figure"] is None
    assert captured.err.count("no picture: cannot import matplotlib") == 1


def test_colours_are_left_out_on_request_and_in_a_pipe() -> None:
    for environment in ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, {}):
        done = _run("--help", **environment)
        assert done.returncode == 0
        assert "\x1b[3" not in done.stdout and "\x1b[9" not in done.stdout


def test_an_output_that_cannot_show_a_letter_gets_its_code() -> None:
    done = _run("train", "--dry-run", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "\\u03bb" in done.stdout


def test_a_closed_pipe_leaves_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run([*COMMAND, "train", "--dry-run"], stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "train", "--dry-run"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert error_of(done.stderr)[0] == "standard output: No space left on device"


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>/dev/full", "<&- 2>&-"])
def test_a_run_goes_on_without_a_stderr(redirection: str, tmp_path: Path) -> None:
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    words = train_words(tmp_path / "run", "--steps", "1", "--json")
    done = subprocess.run([*shell, *COMMAND, *words], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "finished"  # stdout has no line that was meant for stderr
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1]  # nor has any file of the run


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    done = _run("train", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")


def test_ctrl_c_while_a_command_is_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "heldout/env_ce": 1.0}\n')
    done = _run("plot", str(tmp_path / "run"), PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")


@pytest.mark.parametrize(
    "own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "200"}, {"OMP_NUM_THREADS": "2"}]
)
def test_threads_spin_briefly_unless_the_user_says_how_long(own: dict[str, str]) -> None:
    environment = dict(own)
    limit_spinning(environment)
    assert environment == (own | SPIN_SETTINGS if "OMP_NUM_THREADS" in own else own)


@pytest.mark.parametrize("place", ["torch", "server"])
def test_threads_spin_briefly_where_torch_is_imported_and_in_a_started_server(place: str, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    record = f"import json, os; json.dump(dict(os.environ), open({str(seen)!r}, 'w')); os._exit(1)"
    if place == "torch":
        (tmp_path / "torch.py").write_text(record)
    server = json.dumps({"kind": "process", "command": [sys.executable, "-c", record, "{port}"]})
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    words = ["env", "check", "sandbox", f"environment.provider={server}"]
    done = subprocess.run([*COMMAND, *words], capture_output=True, env=environment | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode in (1, 2), done.stderr
    assert {name: json.loads(seen.read_text()).get(name) for name in SPIN_SETTINGS} == SPIN_SETTINGS


def test_help_and_usage_errors_load_no_heavy_library() -> None:
    heavy = "{'torch', 'scipy', 'matplotlib', 'tokenizers'}"
    start = "import sys; from echo_cli.cli.main import main; main(sys.argv[1:])"
    code = f"{start}; sys.exit(bool({heavy} & set(sys.modules)))"
    commands = [[], *([name] for name in COMMANDS)]
    helps = [[*words, "--help"] for words in commands]
    for words in (*helps, ["sweep-lambda"], ["train", "--lambda", "x"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True)
        assert done.returncode == 0, words
