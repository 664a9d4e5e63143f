"""Task folders in Harbor's format: what is read, what is missing, what is refused, rewards and solutions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from terminal_sites import opened, outputs, play, settings_of, write_task

from echo_cli.config.effects import effects_of
from echo_cli.config.loader import load_config
from echo_cli.config.terminal import Runtime, TerminalConfig, TerminalLimits
from echo_cli.environments.faults import EnvironmentFault
from echo_cli.environments.terminal.client import open_site
from echo_cli.environments.terminal.tasks.dockerfile import Copy, NeedsDocker, Run, read_dockerfile
from echo_cli.environments.terminal.tasks.requirements import missing_of
from echo_cli.environments.terminal.tasks.solution import expert_lines
from echo_cli.environments.terminal.tasks.task_folder import read_task
from echo_cli.environments.terminal.tasks.task_set import TerminalTasks, load_terminal_tasks
from echo_cli.environments.terminal.verifier import VerifierFault, parse_reward, reward_of
from echo_cli.environments.worlds import list_tasks
from echo_cli.errors import EchoError
from sandbox_env.isolation import find_isolation

COMMIT = "a" * 40
TERMINAL_BENCH = """
schema_version = "1.1"
artifacts = []

[task]
name = "terminal-bench/some-task"
keywords = ["build"]

[metadata]
category = "software-engineering"
tags = ["build"]

[verifier]
timeout_sec = 900.0

[agent]
timeout_sec = 90

[environment]
build_timeout_sec = 600.0
docker_image = "someone/some-task:20251031"
cpus = 1
memory = "2G"
storage_mb = 10240
gpus = 0
allow_internet = true
mcp_servers = []

[verifier.env]

[environment.env]

[solution.env]
"""


def test_a_task_of_terminal_bench_2_is_read(tmp_path: Path) -> None:
    canary = "<!-- some canary GUID 1 -->\n# another CANARY\n"
    task = read_task(
        write_task(tmp_path, {"task.toml": TERMINAL_BENCH, "instruction.md": f"{canary}\nDo it.\n"}), "some"
    )
    assert (task.instruction, task.family, task.split) == ("Do it.\n", "software-engineering", None)
    assert (task.image, task.allows_network, task.demands) == ("someone/some-task:20251031", True, ())
    limits = task.limits
    assert (limits.agent_s, limits.verifier_s, limits.memory_mb, limits.disk_mb) == (90.0, 900.0, 2048, 10240)
    assert limits.within(TerminalLimits()) == TerminalLimits()
    lower = read_task(write_task(tmp_path, {"task.toml": "[environment]\nmemory_mb = 64\nstorage = '8M'\n"}), "some")
    assert lower.limits.within(TerminalLimits()) == TerminalLimits(memory_mb=64, disk_mb=8)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"task.toml": "version = "}, r"task\.toml is not TOML: "),
        (
            {"task.toml": "[agent]\ntimeout_sec = 'long'\n"},
            r"agent\.timeout_sec is long, not a number \(.*\.toml\)",
        ),
        ({"task.toml": "metadata = 3\n"}, r"metadata is 3, not a table"),
        ({"task.toml": "[metadata]\nsplit = 'test'\n"}, r"metadata\.split is test, not one of train, validation"),
        ({"task.toml": "[environment]\nmemory = 'much'\n"}, r"environment\.memory is much, not a size"),
        ({"task.toml": "[environment.env]\nA = 1\n"}, r"environment\.env is .*, not a table of texts"),
        ({"tests/test.sh": ""}, r"the task folder .* has no tests/test\.sh"),
        ({"instruction.md": ""}, r"the task folder .* has no instruction\.md"),
    ],
)
def test_a_folder_that_is_no_task_is_one_line(files: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(EchoError, match=message) as caught:
        load_terminal_tasks(TerminalConfig(folder=str(write_task(tmp_path / "a", files))))
    assert caught.value.exit_code == 2 and caught.value.tip


def test_folders_are_found_at_any_depth_and_have_unique_names(tmp_path: Path) -> None:
    config = TerminalConfig(folder=str(tmp_path))
    with pytest.raises(EchoError, match="no task folder below"):
        load_terminal_tasks(config)
    write_task(tmp_path / "x" / "y" / "b")
    write_task(tmp_path / "a")
    write_task(tmp_path / "a" / "environment" / "inner")
    write_task(tmp_path / ".git" / "hidden")
    assert list(load_terminal_tasks(config).tasks) == ["a", "b"]
    assert list(load_terminal_tasks(TerminalConfig(folder=str(tmp_path / "a"))).tasks) == ["a"]
    write_task(tmp_path / "z" / "a")
    with pytest.raises(EchoError, match="two task folders have the same name"):
        load_terminal_tasks(config)
    with pytest.raises(EchoError, match="does not exist"):
        load_terminal_tasks(TerminalConfig(folder=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("runtime", "files", "missing"),
    [
        ("bwrap", {}, None),
        ("process", {}, None),
        ("docker", {}, "needs an image or a Dockerfile"),
        ("bwrap", {"steps/1/instruction.md": "x"}, "needs several steps, which are not supported"),
        ("docker", {"environment/docker-compose.yaml": "x"}, "needs several containers (docker-compose), which are"),
        ("bwrap", {"task.toml": "[environment]\ngpus = 1\n"}, "needs a GPU"),
        (
            "bwrap",
            {"task.toml": "[environment.env]\nKEY = '${API_KEY}'\n"},
            "needs API_KEY of this machine's environment",
        ),
        ("bwrap", {"task.toml": TERMINAL_BENCH}, "needs Docker: its image someone/some-task:20251031"),
        ("docker", {"task.toml": TERMINAL_BENCH}, None),
        ("bwrap", {"environment/Dockerfile": "FROM ghcr.io/a/b:1\n"}, "needs Docker: its image ghcr.io/a/b:1"),
        (
            "bwrap",
            {"environment/Dockerfile": "FROM debian\nRUN pip install -r x.txt\nWORKDIR /app\n"},
            "needs Docker: its Dockerf",
        ),
        (
            "bwrap",
            {"environment/Dockerfile": "FROM debian\nWORKDIR /etc\n"},
            "needs Docker: its Dockerfile writes below /etc",
        ),
        (
            "bwrap",
            {"environment/Dockerfile": "FROM debian\nRUN apt-get install -y nonesuch-0\nWORKDIR /app\n"},
            "needs the package nonesuch-0",
        ),
        (
            "docker",
            {"task.toml": TERMINAL_BENCH, "tests/test.sh": "apt-get install -y curl\n"},
            "needs the network: tests/",
        ),
        ("bwrap", {"tests/test.sh": "uvx pytest /tests\n"}, "needs the network: tests/test.sh has uvx"),
        (
            "bwrap",
            {"solution/solve.sh": "wget https://example.org/a\n"},
            "needs the network: solution/solve.sh has wget",
        ),
        ("bwrap", {"tests/test.sh": "curl http://localhost:80\n# uvx\n"}, None),
        ("bwrap", {"tests/test.sh": "tmux -V \n"}, None),
        (
            "process",
            {"tests/test.sh": "cat /app/answer.txt\n"},
            "needs runtime bwrap or docker: tests/test.sh names the path",
        ),
        ("process", {"tests/test.sh": 'echo 1 > "${LOGS_DIR:-/logs/verifier}/reward.txt"\n'}, None),
        (
            "process",
            {"environment/Dockerfile": "FROM debian\nWORKDIR /app\nCOPY . /data/\n"},
            "needs runtime bwrap or docker",
        ),
    ],
)
def test_what_a_task_needs_is_found_before_it_is_played(
    runtime: Runtime, files: dict[str, str], missing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None if name == "nonesuch-0" else f"/usr/bin/{name}")
    found = missing_of(read_task(write_task(tmp_path, files), "a"), TerminalConfig(folder="x", runtime=runtime))
    assert found is None if missing is None else (found or "").startswith(missing), found


def test_python_packages_of_a_dockerfile_are_looked_for_on_this_machine(tmp_path: Path) -> None:
    text = """
        FROM ghcr.io/laude-institute/t-bench/ubuntu-24-04:20250624
        RUN apt-get update && apt-get install -y bash && \\
            ln -s /usr/bin/python3 /usr/bin/python && rm -rf /var/lib/apt/lists/*
        RUN pip3 install --no-cache-dir --break-system-packages none_such.0==8.4.1 'pandas[all]>=2,<3'
        RUN mkdir -p /data/in /output /tmp
        WORKDIR /app
    """
    recipe = read_dockerfile(text)
    assert (recipe.packages, recipe.programs) == (["bash"], ["python"])
    assert recipe.python_packages == ["none_such.0", "pandas"]
    assert recipe.steps == [Run("mkdir -p /data/in /output /tmp", "/")]
    assert recipe.roots == ["app", "data", "output", "root"]
    task = read_task(write_task(tmp_path, {"environment/Dockerfile": text}), "a")
    assert missing_of(task, TerminalConfig(folder="x")) == "needs the Python package none_such.0"


def test_a_program_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    task = read_task(write_task(tmp_path, {"tests/test.sh": "python3 check.py\n"}), "a")
    assert missing_of(task, TerminalConfig(folder="x")) == "needs the program python3"


def test_tasks_that_lack_something_are_left_out_with_a_count(tmp_path: Path) -> None:
    write_task(tmp_path / "whole", {"solution/solve.sh": "echo 42 > answer.txt\n"})
    for name in ("one", "two"):
        write_task(tmp_path / name, {"tests/test.sh": "uvx pytest\n"})
    write_task(tmp_path / "fails", {"environment/Dockerfile": "FROM debian\nWORKDIR /app\nRUN echo no luck && false\n"})
    with opened(settings_of(tmp_path)) as (source, tasks):
        assert [task.task_id for task in tasks.splits.train] == ["whole"]
        assert source.describe().notices == (
            "warning: 3 terminal tasks of 4 left out",
            "left out: one, two: needs the network: tests/test.sh has uvx",
            "left out: fails: needs Docker: its Dockerfile's RUN echo no luck && false fails here: no luck",
        )
        assert play(source, "whole", tasks.actions["whole"])[1] == 1.0
    for name in ("whole", "fails"):
        write_task(tmp_path / name, {"tests/test.sh": "uvx pytest\n"})
    with pytest.raises(EchoError, match=r"no terminal task of .* can be played: fails needs the network") as caught:
        list_tasks(load_config("toy", [f"environment.terminal.folder={tmp_path}"]))
    assert caught.value.exit_code == 2


def test_rare_reasons_share_a_line() -> None:
    left_out = {"a": "no luck", **{f"b{number:02}": f"reason {number}" for number in range(44)}, "c": "no luck"}
    first, frequent, *others, last = TerminalTasks({}, left_out).notices()
    assert first == "warning: 46 terminal tasks of 46 left out"
    assert frequent == "left out: a, c: no luck" and len(others) == 39
    assert last == "left out: 5 more, for 5 other reasons"


def test_a_dockerfile_is_followed() -> None:
    text = """
        # syntax
        FROM --platform=linux/amd64 docker.io/library/python:3.12-slim AS base
        ENV A=1 B="two words"
        ENV C three
        RUN apt-get update && \\
            # a comment
            DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends git=1:2 jq \\
            && rm -rf /var/lib/apt/lists/* && echo done > /app/state
        WORKDIR /app
        WORKDIR sub
        COPY --chmod=600 a.txt b.txt ./
        COPY ["c d.txt", "/data/$A"]
        RUN ["sh", "-c", "exit 0"]
        CMD ["bash"]
    """
    recipe = read_dockerfile(text)
    assert (recipe.workdir, recipe.packages, recipe.programs) == ("/app/sub", ["git", "jq"], ["python3"])
    assert recipe.environ == {"A": "1", "B": "two words", "C": "three"}
    assert recipe.steps == [
        Run("echo done > /app/state", "/"),
        Copy(("a.txt", "b.txt"), "/app/sub/", 0o600),
        Copy(("c d.txt",), "/data/1"),
        Run("sh -c 'exit 0'", "/app/sub"),
    ]
    assert recipe.roots == ["app", "data", "root"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("FROM alpine\n", "its image alpine"),
        ("FROM debian\nFROM debian\n", "several stages"),
        ("FROM debian\nCOPY --from=x a b\n", "COPY --from=x"),
        ("FROM debian\nCOPY ../a /app/\n", "COPY ../a"),
        ("FROM debian\nCOPY <<EOF /app/a\nNAME: x\nEOF\n", "COPY <<EOF"),
        ("FROM debian\nRUN <<EOF\nNAME: x\nEOF\n", "RUN <<EOF"),
        ("FROM debian\nADD https://example.org/a /app/\n", "COPY https"),
        ("FROM debian\nADD a.tar.gz /app/\n", "ADD of an archive"),
        ("FROM debian\nUSER www\n", "USER www"),
        ("FROM debian\nVOLUME /x\n", "VOLUME"),
        ("FROM debian\nRUN --mount=type=cache x\n", "RUN --mount"),
        ("FROM debian\nCOPY a /usr/bin/a\nWORKDIR /app\n", "writes below /usr"),
        ("FROM debian\n", "working directory, /"),
    ],
)
def test_a_dockerfile_that_needs_docker_says_which_part(text: str, why: str) -> None:
    with pytest.raises(NeedsDocker, match=why):
        read_dockerfile(text)


def test_files_and_variables_are_those_of_the_dockerfile(tmp_path: Path) -> None:
    dockerfile = "FROM debian\nENV NAME=value\nWORKDIR /srv/sub\nCOPY . .\nCOPY --chmod=640 a.txt /data/b.txt\n"
    run = "RUN tr a-z A-Z < a.txt > upper && ln -s upper link\n"
    folder = write_task(tmp_path / "task", {"environment/Dockerfile": dockerfile + run, "environment/a.txt": "text\n"})
    (folder / "environment" / "a.txt").chmod(0o664)
    with opened(settings_of(folder)) as (source, _):
        listed, text, modes = outputs(
            source, "task", ["pwd; ls -1", "cat link /data/b.txt; echo $NAME", "stat -c %a a.txt /data/b.txt"]
        )
    assert listed == "/srv/sub\na.txt\nlink\nupper\n"
    assert text == "TEXT\ntext\nvalue\n"
    assert modes == "644\n640\n"


def test_here_documents_and_made_folders_are_those_of_the_dockerfile(tmp_path: Path) -> None:
    document = "RUN cat > 'a b' <<'EOF' && cat <<< done >> 'a b'\nNAME: $x && y;\n# no comment\nEOF\n"
    text = f"FROM ubuntu\nRUN mkdir -p /solution /data/in\nWORKDIR /srv/app\n{document}COPY notes /srv/app/\n"
    folder = write_task(tmp_path / "task", {"environment/Dockerfile": text, "environment/notes": "keep\n"})
    with opened(settings_of(folder)) as (source, _):
        shown, listed = outputs(source, "task", ["cat 'a b' notes", "touch /solution/x /data/in/y; ls /solution"])
    assert shown == "NAME: $x && y;\n# no comment\ndone\nkeep\n"
    assert listed == "x\n"


def test_an_episode_changes_no_other_episode(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", {"environment/notes": "keep\n"})
    with opened(settings_of(folder)) as (source, _):
        play(source, "task", ["rm notes; echo 42 > answer.txt; mkdir locked; chmod 000 locked"])
        assert outputs(source, "task", ["ls; cat notes"]) == ["notes\nkeep\n"]
        assert play(source, "task", [])[1] == 0.0


@pytest.mark.parametrize(
    ("name", "text", "reward"),
    [
        ("reward.txt", " 0.5\n", 0.5),
        ("reward.txt", "-1", -1.0),
        ("reward.json", "0.25", 0.25),
        ("reward.json", '{"reward": 1, "style": 0.5, "by": {"x": 1}}', 1.0),
        ("reward.json", '{"score": 0.75, "why": "x"}', 0.75),
    ],
)
def test_a_reward_file_is_read(name: str, text: str, reward: float, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert reward_of(tmp_path, 1, "a") == reward
    (tmp_path / "reward.txt").write_text("0")
    assert reward_of(tmp_path, 0, "a") == 0.0  # reward.txt comes first


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("reward.txt", ""),
        ("reward.txt", "passed"),
        ("reward.txt", "nan"),
        ("reward.json", "{"),
        ("reward.json", "[1]"),
        ("reward.json", "true"),
        ("reward.json", '{"a": 1, "b": 2}'),
        ("reward.json", '{"reward": null}'),
        ("reward.json", "[" * 100_000),
    ],
)
def test_a_reward_file_without_a_number_is_a_fault_and_no_zero(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(VerifierFault):
        parse_reward(name, text, "a")
    (tmp_path / name).write_text(text)
    with pytest.raises(VerifierFault):
        reward_of(tmp_path, 0, "a")


def test_without_a_reward_file_the_exit_status_counts(tmp_path: Path) -> None:
    assert reward_of(tmp_path, 0, "a") == 1.0
    assert reward_of(tmp_path, 1, "a") == 0.0
    for status in (126, 127, 137, -9):
        with pytest.raises(VerifierFault, match="did not run"):
            reward_of(tmp_path, status, "a")


def test_a_link_as_reward_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "reward.txt").symlink_to(tmp_path / "one")
    with pytest.raises(VerifierFault, match="not a file that can be read"):
        reward_of(tmp_path, 0, "a")


def test_tests_that_hang_or_cannot_run_are_faults(tmp_path: Path) -> None:
    slow = "[verifier]\ntimeout_sec = 0.3\n"
    write_task(tmp_path / "hangs", {"task.toml": slow, "tests/test.sh": "sleep 100\n"})
    write_task(tmp_path / "broken", {"tests/test.sh": "nonesuch\n"})
    with opened(settings_of(tmp_path)) as (source, _):
        with pytest.raises(EnvironmentFault, match=r"the tests of hangs were stopped: they took longer than 0\.3 s"):
            play(source, "hangs", ["exit"])
        with pytest.raises(EnvironmentFault, match=r"the tests of broken did not run: .*command not found"):
            play(source, "broken", ["exit"])


def test_the_limits_of_a_task_end_its_episode(tmp_path: Path) -> None:
    toml = "[agent]\ntimeout_sec = 0.3\n[metadata]\nmax_turns = 3\nmax_output_chars = 5\ncommand_timeout_sec = 0.2\n"
    folder = write_task(tmp_path / "task", {"task.toml": toml})
    with opened(settings_of(folder)) as (source, tasks):
        assert tasks.splits.train[0].max_turns == 3
        answers, _ = play(source, "task", ["echo 123456789", "sleep 9", "sleep 9", "echo never"])
    shown = [(answer.observation["output"], answer.observation["notice"], answer.done) for answer in answers]
    assert shown[:2] == [("12345", "output cut at 5 characters", False), ("\n", "interrupted after 0.2 s", False)]
    assert len(shown) == 3 and shown[2][2] and "the task's 0.3 s are over" in shown[2][1]


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        (
            "#!/bin/bash\nset -euo pipefail\n\n# look\nls -l\ncat a | wc -l\nexit 0\n",
            ["ls -l", "cat a | wc -l", "exit"],
        ),
        ("awk '{print $1}' a\n", ["awk '{print $1}' a", "exit"]),
        ("echo a \\\n  b\n", ["eval $'echo a \\\\\\n  b'", "exit"]),
        ("cat > x <<'E'\nit's\nE\nls\n", ["eval $'cat > x <<\\'E\\'\\nit\\'s\\nE'", "ls", "exit"]),
        ("for i in 1 2; do\n  echo $i\ndone\n", ["eval $'for i in 1 2; do\\n  echo $i\\ndone'", "exit"]),
        ("cp /solution/a .\n", []),
        ('cd "$(dirname "$0")"\n', []),
        ("echo 'open\n", []),
        ("# nothing\n", []),
    ],
)
def test_a_solution_becomes_one_command_a_line(script: str, lines: list[str]) -> None:
    assert list(expert_lines(script)) == lines
    for line in lines[:-1]:
        assert subprocess.run(["bash", "-n"], input=line, text=True, check=False).returncode == 0


def test_a_git_repository_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    origin = tmp_path / "origin"
    write_task(origin / "tasks" / "a")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "tasks"]):
        subprocess.run(["git", *words], cwd=origin, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=origin, check=True, capture_output=True, text=True)
    git = {"url": f"file://{origin}", "revision": done.stdout.strip(), "path": "tasks"}
    config = TerminalConfig.model_validate({"git": git})
    with pytest.raises(EchoError, match="is not on this machine"):
        load_terminal_tasks(config)
    assert list(load_terminal_tasks(config, may_fetch=True).tasks) == ["a"]
    (origin / ".git").rename(tmp_path / "gone")
    assert list(load_terminal_tasks(config).tasks) == ["a"]
    other = config.model_copy(update={"git": config.git.model_copy(update={"revision": COMMIT})})  # type: ignore[union-attr]
    with pytest.raises(EchoError, match="git cannot fetch the terminal tasks") as caught:
        load_terminal_tasks(other, may_fetch=True)
    assert caught.value.exit_code == 1
    assert not [path for path in (tmp_path / "cache" / "echo-cli" / "tasks").iterdir() if "fetching" in path.name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["environment.terminal.runtime=bwrap"], "sets neither folder nor git"),
        (
            [
                "environment.terminal.folder=a",
                "environment.terminal.git={url: 'https://x/y', revision: " + COMMIT + "}",
            ],
            "both",
        ),
        (
            ["environment.terminal.folder=a", "environment.terminal.network=true"],
            "network has no effect with runtime bwrap",
        ),
        (
            ["environment.terminal.folder=a", "environment.tasks.seeds=3"],
            "environment.tasks has no effect with terminal",
        ),
        (["environment.terminal.git={url: 'https://u:passw0rd@x/y', revision: " + COMMIT + "}"], "credentials"),
        (["environment.terminal.git={url: 'ext::sh -c x', revision: " + COMMIT + "}"], "git.url"),
        (["environment.terminal.git={url: 'https://x/y', revision: main}"], "git.revision"),
        (["environment.terminal.folder=a", "environment.terminal.runtime=podman"], "environment.terminal.runtime"),
    ],
)
def test_a_wrong_section_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(EchoError, match=message):
        load_config("toy", words)


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ("bwrap", "under bubblewrap"),
        ("docker", "in containers of Docker"),
        ("process", "with the rights of this user, which is no security boundary"),
    ],
)
def test_every_start_says_what_a_shell_runs_in(runtime: str, said: str) -> None:
    config = load_config("terminal", [f"environment.terminal.runtime={runtime}"])
    assert str(effects_of(config)) == f"starts shells for the tasks of terminal_tasks {said}"


def test_bubblewrap_that_does_not_work_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    find_isolation.cache_clear()
    try:
        with pytest.raises(EchoError, match=r"runtime is bwrap, and bubblewrap \(bwrap\) is not installed") as caught:
            open_site(settings_of(write_task(tmp_path / "a")))
    finally:
        find_isolation.cache_clear()
    assert "no security boundary" in caught.value.tip
