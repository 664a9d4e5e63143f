"""What a terminal task needs that is not there, found before any episode: Docker, packages, programs, the network."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache

from echo_cli.config.section import VARIABLE
from echo_cli.config.terminal import TerminalConfig
from echo_cli.environments.terminal.tasks.dockerfile import HOME, NeedsDocker, Recipe, Run, read_dockerfile
from echo_cli.environments.terminal.tasks.task_folder import SOLUTION, TEST, TerminalTask
from sandbox_env.isolation import PATH

_NETWORK = re.compile(
    r"(?m)^[^#\n]*?(?P<use>\bapt(?:-get)? (?:-\S+ )*(?:install|update)\b|\b(?:pip3?|conda|gem|cargo|go|npm|yarn) "
    r"(?:install|ci|get)\b|\buvx?\b|\bgit clone (?:https?|ssh|git)\b|\b(?:curl|wget)\b(?!.*(?:localhost|127\.0\.0\.1)))"
)
_PROGRAMS = re.compile(
    r"(?m)^[^#\n]*?\b(?P<program>pytest|python3|node|ruby|perl|gcc|make|cmake|jq|sqlite3|git|tmux|awk|sed)\b[ \t]"
)
_FOLDERS = r"(?:app|root|tests|logs|solution)"
_ABSOLUTE = re.compile(rf"(?<![\w./:-])/{_FOLDERS}(?![\w-])")
"""A path of Harbor's containers; the default of a variable, `${{LOGS_DIR:-/logs}}`, is none."""


def missing_of(task: TerminalTask, config: TerminalConfig) -> str | None:
    """Return the first thing that a task needs and does not have here, such as `needs a GPU`; None if it can be played.

    Only text is read: nothing of the task runs, and nothing is contacted.
    """
    return next(_missing(task, config), None)


def recipe_of(task: TerminalTask) -> Recipe:
    """Return how to make a task's files without Docker.

    Raises:
        NeedsDocker: they cannot be made.
    """
    path = task.environment / "Dockerfile"
    if not path.is_file() and task.image is not None and not task.environment.is_dir():
        raise NeedsDocker(f"its image {task.image}")
    if not task.environment.is_dir():
        return Recipe()
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    return read_dockerfile(text)


def _missing(task: TerminalTask, config: TerminalConfig) -> Iterator[str]:
    for demand in task.demands:
        yield f"needs {demand}"
    for value in (*task.environ.values(), *task.test_environ.values()):
        if (variable := VARIABLE.search(value)) is not None:
            yield f"needs {variable.group(1)} of this machine's environment, which no shell gets"
    scripts = {name: task.script(name) for name in (TEST, SOLUTION)}
    if not (config.runtime == "docker" and config.network and task.allows_network):
        for name, text in scripts.items():
            if (use := _NETWORK.search(text)) is not None:
                yield f"needs the network: {name} has {use['use']}"
    if config.runtime == "docker":
        if task.image is None and not (task.environment / "Dockerfile").is_file():
            yield "needs an image or a Dockerfile"
        return
    try:
        recipe = recipe_of(task)
    except NeedsDocker as error:
        yield f"needs Docker: {error}"
        return
    yield from _missing_here(recipe, "\n".join(scripts.values()))
    if config.runtime == "process":
        yield from _missing_in_process(recipe, scripts)


def _missing_here(recipe: Recipe, scripts: str) -> Iterator[str]:
    """Yield what a shell with the programs of this machine lacks."""
    for step in recipe.steps:
        if isinstance(step, Run) and (use := _NETWORK.search(step.command)) is not None:
            yield f"needs Docker: its Dockerfile has RUN {use['use']}"
    for package in recipe.packages:
        if not _has_package(package):
            yield f"needs the package {package}"
    for package in recipe.python_packages:
        if not _has_python_package(package):
            yield f"needs the Python package {package}"
    used = {match["program"] for match in _PROGRAMS.finditer(scripts)}
    for program in sorted({*recipe.programs, *used}):
        if shutil.which(program, path=PATH) is None:
            yield f"needs the program {program}"


def _missing_in_process(recipe: Recipe, scripts: dict[str, str]) -> Iterator[str]:
    """Yield the folders that only a runtime with a view of its own of the file system has."""
    others = [root for root in recipe.roots if root not in (recipe.workdir.split("/")[1], HOME.strip("/"))]
    if others:
        yield f"needs runtime bwrap or docker: it has the folder /{others[0]}"
    texts = {**scripts, "Dockerfile": "\n".join(step.command for step in recipe.steps if isinstance(step, Run))}
    for name, text in texts.items():
        if (named := _ABSOLUTE.search(text)) is not None:
            yield f"needs runtime bwrap or docker: {name} names the path {named.group()}"


def _has_package(name: str) -> bool:
    """Return whether a package of Debian is installed, or a program of its name, where there is no dpkg."""
    if shutil.which(name, path=PATH) is not None:
        return True
    query = shutil.which("dpkg-query", path=PATH)
    return query is not None and name in _debian_packages(query)


@cache  # each query takes longer than the reading of a task
def _debian_packages(query: str) -> frozenset[str]:
    return _printed(query, "-W", "-f", "${db:Status-Status} ${Package}\\n", mark="installed ")


def _has_python_package(name: str) -> bool:
    """Return whether the Python of the shells has a package, of any version."""
    python = shutil.which("python3", path=PATH)
    return python is not None and _normalized(name) in map(_normalized, _python_packages(python))


@cache
def _python_packages(python: str) -> frozenset[str]:
    listing = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()), sep='\\n')"
    return _printed(python, "-I", "-c", listing)


def _printed(*command: str, mark: str = "") -> frozenset[str]:
    """Return the lines of a command's output that begin with `mark`, without it."""
    done = subprocess.run(
        command, env={"PATH": PATH, "LC_ALL": "C"}, capture_output=True, text=True, errors="replace", check=False
    )
    return frozenset(line.removeprefix(mark) for line in done.stdout.splitlines() if line.startswith(mark))


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
