"""Command lines of echo-cli, each in a forked process on a terminal of its own, with a record of what each did.

    with watched_commands(folder, secrets={"HF_TOKEN": "…"}) as watched:
        seen = watched.run("plot", "runs/a", cwd=folder)
        seen.code, seen.output   # exit code, and the bytes that the terminal received
        seen.started             # command lines of started processes
        seen.connected           # addresses of connections and look-ups
        seen.imported            # modules that were imported, and files whose code was executed
        seen.written             # files that were opened for writing, made, renamed or removed; of a file that was
                                 # opened from its folder's descriptor, the name alone

The record comes from an audit hook (`sys.addaudithook`), which Python code can neither avoid nor remove. Rust and C++
raise no audit events; their work is seen by `changed_files`, and by the `Recorder` to which the proxy variables send
every request. The libraries are imported once, before the forks, so a command takes a fraction of a second.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socketserver
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 240.0
"""Seconds after which a command is killed; the exit code of a killed command is None.

A command takes a few seconds, and many times that on a busy machine. A test's own limit is higher.
"""

_PROCESS = {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "os.forkpty"}
_NETWORK = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
_CHANGE = {
    **{"os.rename": ((0, 2), (1, 3)), "os.link": ((1, 3),), "os.symlink": ((1, 2),), "os.truncate": ((0, None),)},
    **{"os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.mkdir": ((0, 2),), "os.chmod": ((0, 2),)},
}
"""Events that change files, with the indices of each changed path and of the descriptor of the folder it begins at."""
_CODE = {"pickle.find_class", "ctypes.dlopen"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Seen:
    """What a command did."""

    code: int | None
    output: bytes
    peak_mb: float
    """Peak memory of the process, MB, without its children."""
    started: tuple[str, ...]
    connected: tuple[str, ...]
    imported: tuple[str, ...]
    written: tuple[str, ...]

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace").replace("\r\n", "\n")


class WatchedCommands:
    """Handle of the process that forks the commands, made by `watched_commands`."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._orders = 0

    def run(self, *words: str, cwd: Path, stdin: str = "", until: Path | None = None) -> Seen:
        """Run `echo-cli WORDS` in the folder `cwd`; its stdin is a file with the given text.

        Args:
            until: folder; the command is killed once it has a file.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders += 1
        order = {"number": self._orders, "words": words, "cwd": str(cwd), "stdin": stdin}
        order["until"] = None if until is None else str(until)
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = {"number": 0}
        while answer.pop("number") != self._orders:  # the test of an earlier command may have ended before its answer
            line = self._process.stdout.readline()
            assert line, f"the process that forks commands has ended: {(self._folder / 'watched.log').read_text()}"
            answer = json.loads(line)
        return Seen(
            **{name: tuple(answer.pop(name)) for name in ("started", "connected", "imported", "written")},
            output=answer.pop("output").encode("latin-1"),
            **answer,
        )


@contextmanager
def watched_commands(folder: Path, environment: Mapping[str, str]) -> Iterator[WatchedCommands]:
    """Start the process that forks commands.

    Args:
        folder: folder of the process's log.
        environment: all environment variables of the commands.
    """
    with (folder / "watched.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=dict(environment),
            cwd=folder,
        )
        try:
            yield WatchedCommands(process, folder)
        finally:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.wait(30)
            process.stdout.close()


def changed_files(before: Mapping[Path, str], folder: Path) -> list[Path]:
    """Return the files of `folder` that are new or differ from the snapshot `before`."""
    return [path for path, digest in snapshot(folder).items() if before.get(path) != digest]


def snapshot(folder: Path) -> dict[Path, str]:
    """Return what changes whenever a file is written, for every file below `folder`: inode, size and time of change."""
    found = {}
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory, name)
            with suppress(FileNotFoundError):  # a process of the last command may still remove some
                status = path.lstat()
                found[path] = f"{status.st_ino} {status.st_size} {status.st_ctime_ns}"
    return found


class Recorder:
    """An HTTP server on loopback that records each connection and request, and has nothing."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        """Requests with their headers and bodies, and `connection` for each connection."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _recording(self))
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _recording(recorder: Recorder) -> type[socketserver.BaseRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            recorder.requests.append("connection")
            super().setup()

        def _answer(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 2**20))
            recorder.requests.append(f"{self.command} {self.path}\n{self.headers}{body.decode('latin-1')}")
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_HEAD = do_PUT = do_CONNECT = do_OPTIONS = _answer

        def log_message(self, *_: object) -> None:
            pass

    return Handler


# The process that forks commands.


def _main() -> None:
    sys.path.remove(str(Path(__file__).parent))
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    _import_everything()
    for line in orders:
        order = json.loads(line)
        answers.write(json.dumps({"number": order["number"], **_watched(order)}) + "\n")
        answers.flush()


def _import_everything() -> None:
    """Import what commands import, so that each fork has it."""
    import importlib
    import pkgutil

    import echo_cli

    importlib.import_module("transformers.models.auto.modeling_auto")
    importlib.import_module("transformers.models.qwen3.modeling_qwen3")
    for name in (
        "openenv.core.env_server.interfaces",
        "peft",
        "rich.console",
        "rich.table",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "scipy.stats",
    ):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(echo_cli.__path__, "echo_cli."):
        if module.name.rpartition(".")[2] not in ("__main__", "host", "tensorboard", "trackio", "wandb"):
            importlib.import_module(module.name)


def _watched(order: Mapping[str, Any]) -> dict[str, Any]:
    """Fork one command, and return what it did."""
    with tempfile.TemporaryFile("w+b") as events, tempfile.TemporaryFile("w+") as stdin:
        stdin.write(order["stdin"])
        stdin.flush()
        stdin.seek(0)
        terminal, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        child = os.fork()
        if child == 0:
            os.close(terminal)
            _become(order, (stdin.fileno(), theirs, theirs), events.fileno())
        os.close(theirs)
        output, status, usage = _drained(terminal, child, order["until"])
        os.close(terminal)
        events.seek(0)
        found = [json.loads(line) for line in events.read().decode(errors="surrogateescape").splitlines()]
    seen: dict[str, Any] = {kind: [] for kind in ("started", "connected", "imported", "written")}
    for kind, what in found:
        if what not in seen[kind]:
            seen[kind].append(what)
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return {"code": code, "output": output.decode("latin-1"), "peak_mb": usage / 1024, **seen}


def _drained(terminal: int, child: int, until: str | None) -> tuple[bytes, int | None, int]:
    """Return the output of `child`, its wait status (None if it was killed) and its peak memory, KB."""
    deadline, output, ended = time.monotonic() + LIMIT_S, bytearray(), None
    while ended is None:
        ready, _, _ = select.select([terminal], [], [], 0.02)
        if ready:
            output += _read(terminal)
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            ended = (status, usage.ru_maxrss)
        elif time.monotonic() > deadline or (until is not None and os.listdir(until)):
            os.killpg(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            ended = (None, usage.ru_maxrss)
    while select.select([terminal], [], [], 0)[0] and (more := _read(terminal)):
        output += more
    return bytes(output), *ended


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 2**16)
    except OSError:  # the other side is closed
        return b""


def _become(order: Mapping[str, Any], streams: Sequence[int], events: int) -> None:
    """Turn this fork into `echo-cli WORDS`; never returns."""
    code = 70
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.set_inheritable(events, False)
        os.chdir(order["cwd"])
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.argv = ["echo-cli", *order["words"]]
        from echo_cli.__main__ import main

        sys.addaudithook(_hook(events))
        code = main()
        sys.stdout.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _hook(events: int) -> Any:
    """Return an audit hook that writes what `Seen` lists to the file `events`."""
    ours = tuple({str(ROOT / "echo_cli"), str(ROOT / "envs"), sys.prefix, sys.base_prefix, *_package_folders()})

    def record(kind: str, what: object) -> None:
        os.write(events, json.dumps([kind, str(what)]).encode() + b"\n")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITES)
            if writes and not isinstance(path, int):  # a descriptor was opened by another event
                record("written", os.fsdecode(path))
        elif event == "exec":
            file = getattr(arguments[0], "co_filename", "")
            if not file.startswith(ours) and not file.startswith("<"):
                record("imported", file)
        elif event == "import":
            record("imported", arguments[0])
        elif event in _PROCESS:
            record("started", f"{event} {arguments[:2]}")
        elif event in _NETWORK:
            if not isinstance(arguments[-1], str | bytes):  # a path is a socket of this machine's file system
                record("connected", f"{event} {arguments[1:] if event.startswith('socket.c') else arguments}")
        elif event in _CHANGE:
            for path, folder in _CHANGE[event]:
                record("written", _whole(arguments[path], None if folder is None else arguments[folder]))
        elif event in _CODE:
            record("imported", f"{event} {arguments}")

    return hook


def _whole(path: Any, folder: int | None) -> str:
    """Return the absolute form of a path that begins at a folder's descriptor, or at the working directory."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    begins = os.getcwd() if folder is None or folder < 0 else os.readlink(f"/proc/self/fd/{folder}")
    return os.path.join(begins, os.fsdecode(path))


def _package_folders() -> list[str]:
    return [path for path in sys.path if path.endswith("site-packages")]


if __name__ == "__main__":
    _main()
