"""Dockerfiles that need no Docker: files to copy, commands to run in the task's folder, variables, packages.

A shell without Docker has the programs of this machine in place of an image's. So a Dockerfile can be followed if its
image is a plain system, its packages are installed here, and it changes only folders of its own.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

APP = "/app"
"""Working directory of a task without a Dockerfile."""
HOME = "/root"

_TBENCH = "ghcr.io/laude-institute/t-bench"
"""Base images of Terminal-Bench: a plain system with tmux and asciinema."""
_PLAIN_IMAGES = ("debian", "ubuntu", "bash", "buildpack-deps", "busybox", "scratch", f"{_TBENCH}/ubuntu-24-04")
_PYTHON_IMAGES = ("python", f"{_TBENCH}/python-3-13")
_SYSTEM = frozenset("bin boot dev etc lib lib32 lib64 libx32 logs proc run sbin sys tests tmp usr var".split())
"""Folders below / that belong to the system, or to every shell, and not to a task."""
_NO_EFFECT = {"LABEL", "CMD", "ENTRYPOINT", "EXPOSE", "STOPSIGNAL", "MAINTAINER", "HEALTHCHECK", "SHELL", "ARG"}
_INSTALL = re.compile(r"(?:[A-Z_]+=\S* )*(?:sudo )?apt(?:-get)? (?:-\S+ )*install\b(.*)", re.DOTALL)
_TIDY = re.compile(
    r"(?:sudo )?(?:apt(?:-get)? (?:-\S+ )*(?:update|clean|autoremove)\b.*|rm -rf /var/lib/apt/lists/\*?)", re.DOTALL
)
_PIP = re.compile(r"(?:sudo )?(?:python3? -m )?pip3? install\b(.*)", re.DOTALL)
_PIP_OPTIONS = {
    "--no-cache-dir",
    "--break-system-packages",
    "--upgrade",
    "-U",
    "--quiet",
    "-q",
    "--root-user-action=ignore",
}
_REQUIREMENT = re.compile(r"(?P<name>\w[\w.-]*)(?:\[[\w,.-]*\])?(?:[<>=!~]=?[\w.*,<>=!~]*)?")
_PYTHON_LINK = re.compile(r"ln -sf? /usr/bin/python3(?:\.\d+)? /usr/bin/python")
_DOCUMENT = re.compile(r"(?<!<)<<-?\s*(?P<quote>[\"']?)(?P<mark>\w+)(?P=quote)")
_MKDIR = re.compile(r"\bmkdir ([^;&|\n]*)")
_ARCHIVE = re.compile(r"\.(tar|tgz|tar\.\w+)$")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class NeedsDocker(Exception):
    """A Dockerfile that cannot be followed without Docker; the text is the part that needs it."""


@dataclass(frozen=True)
class Copy:
    """Files of the build context to copy. `sources` are patterns; `target` is absolute, a folder if it ends in /."""

    sources: tuple[str, ...]
    target: str
    mode: int | None = None


@dataclass(frozen=True)
class Run:
    """A command of bash, run in the folder `workdir`."""

    command: str
    workdir: str


@dataclass
class Recipe:
    """How to make a task's files.

    `packages` are those of Debian that it needs, `python_packages` those of Python, `programs` other programs.
    """

    workdir: str = APP
    steps: list[Copy | Run] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    packages: list[str] = field(default_factory=list)
    python_packages: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)

    @property
    def roots(self) -> list[str]:
        """Names of the folders below / that belong to the task, sorted; the home folder is one of them."""
        paths = [self.workdir, HOME, *(step.target for step in self.steps if isinstance(step, Copy))]
        runs = [step for step in self.steps if isinstance(step, Run)]
        paths += [step.workdir for step in runs]
        made = [word for step in runs for found in _MKDIR.finditer(step.command) for word in found.group(1).split()]
        own = {word.split("/")[1] for word in made if re.match(r"/\w", word)} - _SYSTEM
        return sorted(own | {path.split("/")[1] for path in paths if path.strip("/")})


def read_dockerfile(text: str | None) -> Recipe:
    """Return the recipe of a Dockerfile, or of a task without one: its files are copied to /app.

    Raises:
        NeedsDocker: the Dockerfile cannot be followed without Docker.
    """
    if text is None:
        return Recipe(steps=[Copy((".",), f"{APP}/")])
    recipe, workdir, seen_from = Recipe(workdir="/"), "/", False
    for word, rest in _instructions(text):
        if word == "FROM":
            if seen_from:
                raise NeedsDocker("its Dockerfile has several stages")
            seen_from = True
            _take_image(recipe, rest)
        elif word == "WORKDIR":
            workdir = posixpath.normpath(posixpath.join(workdir, _expand(rest, recipe.environ).strip('"')))
            recipe.workdir = workdir
        elif word in ("COPY", "ADD"):
            step = _copy(rest, workdir, recipe.environ)
            if word == "ADD" and any(_ARCHIVE.search(source) for source in step.sources):
                raise NeedsDocker("its Dockerfile's ADD of an archive")
            recipe.steps.append(step)
        elif word == "ENV":
            recipe.environ |= _variables(rest, recipe.environ)
        elif word == "RUN":
            _take_run(recipe, rest, workdir)
        elif word == "USER":
            if rest.strip() not in ("root", "0"):
                raise NeedsDocker(f"its Dockerfile's USER {rest.strip()}")
        elif word not in _NO_EFFECT:
            raise NeedsDocker(f"its Dockerfile's {word}")
    _check_folders(recipe)
    return recipe


def _check_folders(recipe: Recipe) -> None:
    if recipe.workdir == "/":
        raise NeedsDocker("its Dockerfile's working directory, /")
    for root in recipe.roots:
        if root in _SYSTEM:
            raise NeedsDocker(f"its Dockerfile writes below /{root}")


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions, with continued lines joined and their here-documents."""
    joined, open_line = "", False
    lines = iter(text.splitlines())
    for line in lines:
        if line.lstrip().startswith("#") or (open_line and not line.strip()):
            continue
        joined, open_line = joined + line, line.rstrip().endswith("\\")
        if open_line:
            joined = joined.rstrip()[:-1]
            continue
        if joined.strip():
            word, _, rest = joined.strip().partition(" ")
            yield word.upper(), "\n".join([rest.strip(), *_documents(rest, lines)])
        joined = ""
    if joined.strip():
        word, _, rest = joined.strip().partition(" ")
        yield word.upper(), rest.strip()


def _documents(rest: str, lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines of an instruction's here-documents, each with its last line, which is its mark."""
    for match in _DOCUMENT.finditer(rest):
        for line in lines:
            yield line
            if line.strip() == match["mark"]:
                break


def _take_image(recipe: Recipe, rest: str) -> None:
    words = [word for word in rest.split() if not word.startswith("--")]
    image = words[0] if words else ""
    name = image.removeprefix("docker.io/").removeprefix("library/").partition("@")[0].partition(":")[0]
    if name in _PYTHON_IMAGES:
        recipe.programs.append("python3")
    elif name not in _PLAIN_IMAGES:
        raise NeedsDocker(f"its image {image}")


def _take_run(recipe: Recipe, rest: str, workdir: str) -> None:
    """Add a RUN: the packages that it installs, or a command; one that does both is split at `&&`."""
    if rest.startswith(("[", "--", "<<")):
        if not rest.startswith("["):
            raise NeedsDocker(f"its Dockerfile's RUN {rest.split()[0]}")
        try:
            rest = shlex.join(json.loads(rest))
        except (ValueError, TypeError):
            raise NeedsDocker("its Dockerfile's RUN, which is no JSON") from None
    if "\n" in rest:  # a here-document, which bash reads
        recipe.steps.append(Run(f"{rest}\n", workdir))
        return
    parts = [part.strip() for part in re.split(r"&&|;(?![;&])", rest)]
    if not any(_INSTALL.fullmatch(part) or _pip_packages(part) for part in parts):
        recipe.steps.append(Run(rest, workdir))
        return
    others = []
    for part in parts:
        if (install := _INSTALL.fullmatch(part)) is not None:
            recipe.packages += [word.partition("=")[0] for word in install.group(1).split() if not word.startswith("-")]
        elif packages := _pip_packages(part):
            recipe.python_packages += packages
        elif _PYTHON_LINK.fullmatch(part):
            recipe.programs.append("python")
        elif part and not _TIDY.fullmatch(part):
            others.append(part)
    if others:
        recipe.steps.append(Run(" && ".join(others), workdir))


def _pip_packages(command: str) -> list[str]:
    """Return the names of the packages that a command installs with pip, without their versions; [] for another one."""
    install = _PIP.fullmatch(command)
    try:
        words = [word for word in shlex.split(install.group(1)) if word not in _PIP_OPTIONS] if install else []
    except ValueError:
        return []
    found = [_REQUIREMENT.fullmatch(word) for word in words]
    return [match["name"] for match in found if match] if all(found) else []


def _copy(rest: str, workdir: str, environ: Mapping[str, str]) -> Copy:
    mode = None
    while rest.startswith("--"):
        option, _, rest = rest.partition(" ")
        name, _, value = option.partition("=")
        if name == "--chmod" and re.fullmatch("[0-7]{3,4}", value):
            mode = int(value, 8)
        elif name not in ("--chown", "--link"):
            raise NeedsDocker(f"its Dockerfile's COPY {option}")
        rest = rest.lstrip()
    if rest.startswith("<<"):
        raise NeedsDocker(f"its Dockerfile's COPY {rest.split()[0]}")
    try:
        words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
    except ValueError:
        words = []
    if len(words) < 2 or any(re.match(r"\w+://|git@", word) or ".." in word.split("/") for word in words):
        raise NeedsDocker(f"its Dockerfile's COPY {rest}")
    target = _expand(words[-1], environ)
    path = posixpath.normpath(posixpath.join(workdir, target))
    is_folder = target.endswith("/") or target == "." or len(words) > 2
    return Copy(tuple(words[:-1]), f"{path.rstrip('/')}/" if is_folder else path, mode)


def _variables(rest: str, environ: Mapping[str, str]) -> dict[str, str]:
    try:
        words = shlex.split(rest)
    except ValueError:
        raise NeedsDocker(f"its Dockerfile's ENV {rest}") from None
    if words and "=" not in words[0]:
        name, _, value = rest.partition(" ")
        return {name: _expand(value.strip(), environ)}
    pairs = (word.partition("=") for word in words)
    return {name: _expand(value, environ) for name, _, value in pairs}


def _expand(text: str, environ: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: environ.get(match.group(1) or match.group(2), ""), text)
