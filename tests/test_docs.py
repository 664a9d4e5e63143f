"""Documentation: links and named files exist, shell commands are valid, the first pages stay short."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from loopback import environment, free_port

from echo_cli.cli.main import app, main
from echo_cli.cli.shell_hook import shell_hook
from echo_cli.config.loader import configs_folder, load_config

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for folder in ("docs", "envs", "configs", "echo_cli") for page in (ROOT / folder).rglob("*.md")),
    ]
)
MOST_LINES = {"README.md": 200, "CONTRIBUTING.md": 100}

SHELL = {"bash", "sh"}
LANGUAGES = SHELL | {"console", "json", "python", "text", "yaml"}
"""`bash` and `sh` blocks are lines to type; `console` blocks have such lines after `$ `, with their output."""

BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=")
"""A word of a command line that overrides a key of the config."""
DRY_RUNS = {"train", "sweep-lambda"}
FOLDERS = (ROOT, ROOT / "echo_cli", ROOT / "echo_cli" / "training" / "trackers", ROOT / "envs" / "toy_terminal_env")
"""Folders that paths of source files in the documentation may be relative to, besides the page's own folder."""
OUR_FOLDERS = {"configs", "docs", "envs", "scripts", "tests"}
TEXTS = {"", ".json", ".py", ".yaml"}
TOY_LAMBDA = f"(toy: {load_config('toy').objective.world_model_coeff:g})"


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def _anchors(page: Path) -> set[str]:
    """Return the URL fragments of a page's headings, in GitHub's form."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", _prose(page), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        repeats = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.add(f"{slug}-{repeats}" if repeats else slug)
    return found


def _blocks(page: Path) -> list[tuple[str, str]]:
    return [(language, text) for _, language, text in BLOCK.findall(page.read_text(encoding="utf-8"))]


def _command_lines(page: Path) -> list[str]:
    """Return the shell lines that a reader types, with continued lines joined, and an export before `;` by itself."""
    lines: list[str] = []
    for language, text in _blocks(page):
        joined = text.replace("\\\n", " ").splitlines()
        if language in SHELL:
            lines += [line.strip() for line in joined if line.strip() and not line.lstrip().startswith("#")]
        elif language == "console":
            lines += [line.removeprefix("$ ") for line in joined if line.startswith("$ ")]
    return [part for line in lines for part in (line.split("; ", 1) if line.startswith("export ") else [line])]


def _ours(line: str) -> Iterator[list[str]]:
    """Yield the words after `echo-cli` of each echo-cli command in a line."""
    words = shlex.split(line, comments=True)
    while words:
        end = words.index("|") if "|" in words else len(words)
        command, words = words[:end], words[end + 1 :]
        if command[0] == "echo-cli":
            yield command[1:]


def _parsed(words: Sequence[str]) -> tuple[list[str], typer.Context]:
    """Return the name of the command and its parsed arguments; an unknown option raises an exception."""
    command: Any = typer.main.get_command(app)
    name: list[str] = []
    rest = list(words)
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"no command echo-cli {shlex.join(words)}"
        name.append(rest.pop(0))
        command = command.commands[name[-1]]
    return name, command.make_context(" ".join(["echo-cli", *name]), rest, obj=list(words))


def _check_ours(words: Sequence[str]) -> None:
    """Check an echo-cli command line: its command, options and overrides."""
    _, context = _parsed(words)
    arguments = [word for value in context.params.values() if isinstance(value, list | tuple) for word in value]
    assert not [word for word in arguments if str(word).startswith("--")], "unknown options"  # a sweep accepts them
    named = str(context.params.get("config") or "toy")
    config = configs_folder() / f"{named}.yaml"
    assert config.is_file() or named.endswith(".yaml"), f"no shipped config is called {named}"
    overrides = [word for word in arguments if OVERRIDE.match(str(word))]
    if overrides and config.is_file() and not context.params.get("model"):
        load_config(config, overrides)


def _trainings(page: Path) -> list[list[str]]:
    """Return the command lines of a page that train, except those with a config or traces of the reader's own."""
    lines = [words for line in _command_lines(page) for words in _ours(line) if words and words[0] in DRY_RUNS]
    own = re.compile(r"mine\.yaml|traces\.path=|--dry-run|outputs/")
    return [words for words in lines if not own.search(shlex.join(words))]


def _check_python(words: Sequence[str]) -> None:
    """Check that `python -m MODULE` accepts the given options, or that the script of `python SCRIPT` exists."""
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file()
        return
    done = subprocess.run([sys.executable, "-m", words[1], "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in words[2:] if word.startswith("--"))


def _check_script(path: str) -> None:
    """Check that a script of this repository exists and is valid in its shell's syntax."""
    assert (ROOT / path).is_file(), path
    shell = "fish" if path.endswith(".fish") else "bash"
    if shutil.which(shell):
        done = subprocess.run([shell, "-n", path], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def _check_extras(names: Sequence[str]) -> None:
    """Check that extras of this project exist."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in names), names


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        assert not anchor or anchor in _anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_file_of_ours_that_a_page_names_exists(page: Path) -> None:
    for name in re.findall(r"`([\w./-]+\.\w+)`", _prose(page)):
        if name.endswith(".py") or name.partition("/")[0] in OUR_FOLDERS:
            assert "NAME" in name or any((folder / name).exists() for folder in (page.parent, *FOLDERS)), name


def test_every_page_that_code_and_configs_name_exists() -> None:
    files = [path for folder in ("configs", "echo_cli", "scripts") for path in (ROOT / folder).rglob("*")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.is_file() and path.suffix in TEXTS]
    named = {name for text in texts for name in re.findall(r"docs/[\w-]+\.md", text)}
    assert named and all((ROOT / name).is_file() for name in named), named


def _commands(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every command and every group of echo-cli with its name."""
    if name:
        yield " ".join(name), command
    for part, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*name, part))


@pytest.mark.parametrize(("name", "command"), list(_commands(typer.main.get_command(app))))
def test_every_command_s_help_has_an_example_that_is_one_of_its_command_lines(name: str, command: Any) -> None:
    lines = [line.strip() for line in command.epilog.splitlines() if line.startswith("  ") and "echo-cli " in line]
    assert lines and all(name in line for line in lines)
    for line in lines:
        for words in _ours(line):
            _check_ours(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], ["qwen3-0.6b, qwen3-8b-lora", "objective.world_model_coeff", TOY_LAMBDA, "Continue the run"]),
        (
            ["sweep-lambda"],
            ["toy-own, toy-world-model", "No result depends on it", "Another config, or another number of steps"],
        ),
        (["env", "check"], ["toy-own, toy-world-model"]),
        (["traces", "import"], ["auto (default), echo, asciinema, "]),
        (["plot"], ["heldout_env_ce.png", "Default: the run directory"]),
    ],
    ids=lambda words: words[0],
)
def test_help_says_what_a_newcomer_looks_for(
    words: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(part in text for part in said), text


def test_the_script_with_the_pins_is_what_pages_and_configs_name_for_an_extra() -> None:
    for path in [*PAGES, *(ROOT / "configs").rglob("*.yaml")]:
        text = path.read_text(encoding="utf-8")
        assert "'echo-cli[" not in text, path
        for line in re.findall(r"pip install[^`\n]*\[.*", text):
            assert "-c scripts/constraints.txt" in line, line
        for names in re.findall(r"scripts/setup((?: [a-z]+)+)(?:`|$|  )", text, re.MULTILINE):
            _check_extras(names.split())


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_block_of_code_says_its_language(page: Path) -> None:
    assert {language for language, _ in _blocks(page)} <= LANGUAGES
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(_blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_command_of_ours_in_a_page_has_its_options(page: Path) -> None:
    for line in _command_lines(page):
        for words in _ours(line):
            _check_ours(words)


@pytest.mark.parametrize("page", [page for page in PAGES if page != README and _trainings(page)], ids=_named)
def test_the_plan_of_every_training_in_a_page_can_be_made(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in _trainings(page):
        assert main([*words, "--dry-run", "--json"]) == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_name_that_a_page_imports_from_us_exists(page: Path) -> None:
    for language, text in _blocks(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("echo_cli"):
                for alias in node.names:
                    exec(f"from {node.module} import {alias.name}", {})  # a name or a module: what Python itself finds


@pytest.mark.parametrize("line", _command_lines(README), ids=lambda line: line.partition(" #")[0].strip())
def test_a_command_of_the_readme_runs(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in shlex.split(line, comments=True) if word != "&"]
    program, rest = words[0], words[1:]
    if program == "python":
        _check_python(rest)
    elif program == "export":
        assert len(rest) == 1 and "=" in rest[0]
    elif program in ("bash", "source"):
        _check_script(rest[0])
        if rest[0] == "scripts/setup":
            _check_extras(rest[1:])
    elif program in ("echo", "echo-cli"):  # `echo train` is `echo-cli train` at a prompt with the shell hook
        monkeypatch.chdir(tmp_path)
        _check_ours(rest)
        name, _ = _parsed(rest)
        assert program == "echo-cli" or name[0] in shell_hook("bash")
        assert main([*name, "--help"]) == 0
        if name[0] in DRY_RUNS:
            assert main([*rest, "--dry-run", "--json"]) == 0, capsys.readouterr().err
        assert not list(tmp_path.iterdir())
    else:
        pytest.fail(f"no test knows {program}: add it here")


SMALL_RUN = (
    "--steps 1 rollout.tasks_per_step=1 rollout.group_size=2 rollout.explorers=2 evaluation.validation_rollouts=0 "
    "evaluation.heldout_rollouts=0 threads=1"
).split()
"""Options and overrides that make the README's runs small."""
FEW_TASKS = "environment.toy_terminal.families=[setting]"
"""Override that leaves few tasks to the run that `eval-heldout` plays again."""


def _walk_line(words: Sequence[str]) -> list[str]:
    """Return the arguments of `echo-cli` for a line of the README, with its runs made small."""
    if list(words) == ["bash", "scripts/demo"]:
        script = (ROOT / "scripts" / "demo").read_text(encoding="utf-8").splitlines()[-1]
        words = ["echo-cli", *shlex.split(script.partition("echo-cli ")[2].replace('"$@"', "")), FEW_TASKS]
    if words[0] not in ("echo", "echo-cli"):
        return []
    small = shlex.join(words[1:]).replace("--rollouts 4", "--rollouts 1")
    small = small.replace("0 0.005 0.05 --seeds 0 1 2", "0 0.05 --seeds 0")
    return [*shlex.split(small), *(SMALL_RUN if words[1] in DRY_RUNS else [])]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_readme_work_in_its_order_from_a_clean_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run every line of the README in its order in one folder, each run at a small size."""
    monkeypatch.chdir(tmp_path)
    servers: list[subprocess.Popen[str]] = []
    port = str(free_port())
    ran = []
    try:
        for line in _command_lines(README):
            words = [word for word in shlex.split(line, comments=True) if word != "&"]
            if words[0] == "export":
                monkeypatch.setenv(*words[1].split("=", 1))
            elif words[0] == "python" and line.partition("#")[0].rstrip().endswith("&"):
                command = [sys.executable, *words[1:], "--port", port]
                servers.append(subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True))
                stdout = servers[-1].stdout
                assert stdout is not None and "http" in stdout.readline()  # printed once it answers
            elif arguments := [word.replace(":8000", f":{port}") for word in _walk_line(words)]:
                assert main(arguments) == 0, f"{line}\n{capsys.readouterr().err}"
                ran.append(arguments[0])
    finally:
        for server in servers:
            server.terminate()
            server.wait()
    assert servers and {"train", "plot", "sweep-lambda", "eval-heldout", "env"} <= set(ran)


def test_a_line_of_the_readme_has_no_comment_which_zsh_would_pass_on_as_words() -> None:
    assert not [line for line in _command_lines(README) if "#" in line]


def test_the_readme_shows_commands_of_every_kind() -> None:
    programs = {shlex.split(line, comments=True)[0] for line in _command_lines(README)}
    assert {"bash", "source", "echo", "echo-cli"} <= programs


@pytest.mark.parametrize("name", MOST_LINES)
def test_the_first_pages_stay_short(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= MOST_LINES[name]


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT / "docs"], ids=_named)
def test_the_index_leads_to_every_page(page: Path) -> None:
    index = ROOT / "docs" / "index.md"
    assert page == index or f"]({page.name})" in _prose(index)
