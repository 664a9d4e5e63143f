"""A `docker` whose containers are folders in which bubblewrap runs real commands, and which records its arguments.

Its folder is the program's folder: `images/` and `containers/` have a file system for each, and `asked` has one JSON
list per line. An image has the system's programs and, from a build, the files that its Dockerfile copies to /app.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(sys.argv[0]).parent
IMAGES, CONTAINERS = HERE / "images", HERE / "containers"
VALUED = {"--name", "--security-opt", "--cap-drop", "--network", "--entrypoint", "--env", "--memory", "--pids-limit"}
VALUED |= {"--cpus", "--ulimit", "--log-driver", "--log-opt"}
SYSTEM = [name for name in ("usr", "bin", "lib", "lib64", "sbin", "etc") if Path(f"/{name}").exists()]


def parsed(words: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the options with their values, and the words that follow them."""
    options: list[tuple[str, str]] = []
    while words and words[0].startswith("-"):
        name = words.pop(0)
        options.append((name, words.pop(0) if name in VALUED else ""))
    return options, words


def build(words: list[str]) -> int:
    tag, folder = words[words.index("--tag") + 1], Path(words[-1])
    if "BROKEN" in (folder / "Dockerfile").read_text():
        print("Step 2/2 : RUN BROKEN\nERROR: exit code: 127", file=sys.stderr)
        return 1
    image = IMAGES / tag.replace(":", "_")
    files = folder / "files" if (folder / "files").is_dir() else folder
    shutil.copytree(files, image / "app", dirs_exist_ok=True)
    print("sha256:0031")
    return 0


def pull(name: str) -> int:
    if name.startswith("missing"):
        print(f"Error response from daemon: manifest for {name} not found", file=sys.stderr)
        return 1
    (IMAGES / name.replace(":", "_").replace("/", "_") / "app").mkdir(parents=True)
    return 0


def run(words: list[str]) -> int:
    options, rest = parsed(words)
    root = CONTAINERS / dict(options)["--name"]
    shutil.copytree(IMAGES / rest[0].replace(":", "_").replace("/", "_"), root)
    for name in ("tmp", "root", "proc", "dev", *SYSTEM):
        (root / name).mkdir(exist_ok=True)
    print("c0ffee")
    return 0


def execute(words: list[str]) -> int:
    options, (name, *command) = parsed(words)
    root = CONTAINERS / name
    if not root.is_dir():
        print(f"Error: No such container: {name}", file=sys.stderr)
        return 1
    bwrap = ["bwrap", "--unshare-all", "--bind", str(root), "/"]
    for each in SYSTEM:
        bwrap += ["--ro-bind", f"/{each}", f"/{each}"]
    bwrap += ["--proc", "/proc", "--dev", "/dev", "--chdir", "/app", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin"]
    for option, value in options:
        if option == "--env":
            bwrap += ["--setenv", *value.split("=", 1)]
    if ("--interactive", "") in options:
        os.execvp("bwrap", [*bwrap, *command])
    return subprocess.run([*bwrap, *command], check=False).returncode


def copy(source: str, target: str) -> int:
    name, _, path = target.partition(":")
    into = CONTAINERS / name / path.lstrip("/")
    shutil.copytree(source, into, dirs_exist_ok=True)
    return 0


def main(verb: str, rest: list[str]) -> int:
    with (HERE / "asked").open("a") as asked:
        asked.write(json.dumps([verb, *rest]) + "\n")
    if verb == "image":
        return int(not (IMAGES / rest[-1].replace(":", "_").replace("/", "_")).is_dir())
    if verb == "rm":
        shutil.rmtree(CONTAINERS / rest[-1], ignore_errors=True)
        return 0
    if verb == "cp":
        return copy(*rest)
    if verb == "pull":
        return pull(rest[-1])
    return {"version": lambda _: 0, "build": build, "run": run, "exec": execute}[verb](rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
