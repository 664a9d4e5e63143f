"""A `docker` that runs `tiny_server.py` instead of a container, and records its arguments.

Like Docker, it keeps its container running after the requesting process has ended. Its folder is the program's folder,
where the file `asked` has one JSON list per line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(sys.argv[0]).parent
TINY = Path(__file__).parent / "tiny_server.py"


def run(words: list[str]) -> None:
    image = words[-1]
    if image == "missing":
        print("Unable to find image 'missing:latest' locally", file=sys.stderr)
        sys.exit(125)
    host, port, inner = words[words.index("-p") + 1].split(":")
    assert (host, inner) == ("127.0.0.1", "8000")
    name = words[words.index("--name") + 1]
    subprocess.Popen(
        [sys.executable, __file__, "contain", str(HERE), port],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (HERE / "name").write_text(name)
    if "--env-file" in words:
        path = Path(words[words.index("--env-file") + 1])
        (HERE / "env").write_text(json.dumps([oct(path.stat().st_mode), path.read_text()]))
    print("c0ffee")


def contain(folder: Path, port: str) -> None:
    server = subprocess.Popen([sys.executable, str(TINY), port])
    (folder / "pid").write_text(str(server.pid))
    (folder / "exit").write_text(str(server.wait() % 256))


def end() -> None:
    with suppress(ProcessLookupError):
        os.kill(int((HERE / "pid").read_text()), signal.SIGKILL)


def wait() -> None:
    while not (HERE / "exit").exists():
        time.sleep(0.02)
    print((HERE / "exit").read_text())


if __name__ == "__main__":
    verb, rest = sys.argv[1], sys.argv[2:]
    if verb == "contain":
        contain(Path(rest[0]), rest[1])
        sys.exit()
    with (HERE / "asked").open("a") as asked:
        asked.write(json.dumps([verb, *rest]) + "\n")
    if verb == "version" and (HERE / "asleep").exists():
        sys.exit(1)
    if verb == "run":
        run(rest)
    elif verb in ("stop", "rm"):
        end()
    elif verb == "wait":
        wait()
    elif verb == "logs":
        print("from the container")
