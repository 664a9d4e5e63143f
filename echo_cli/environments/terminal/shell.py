"""A bash session on a pseudo-terminal, in which the echo, the output and the prompt of every command are told apart.

The shell itself marks their boundaries, as terminals with shell integration ask for: with escape sequences of OSC 133
in its prompts. Each holds a random word of this session, so that no output can be taken for a boundary by accident.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from echo_cli.environments.openenv.provider_limits import processes_below
from echo_cli.environments.terminal.quoting import UNTYPABLE, quoted
from echo_cli.environments.terminal.reading import FLOOD_BYTES, Ran, Reading
from echo_cli.environments.terminal.sandbox import no_groups
from echo_cli.environments.terminal.session_processes import kill_session, waits_for_input

_START_SECONDS = 20.0
_PROMPT_SECONDS = 0.5
_TICK_SECONDS = 0.1
_LIMIT_SECONDS = 0.25
_GRACE_SECONDS = 1.0
_IDLE_SECONDS = 0.3
_READ_BYTES = 2**16
_MOST_TYPED = 1000
"""Maximum length of a line that is typed as it is, bytes. A terminal's line holds 4,095."""
_MOST_ENDS = 3

# The command's own streams may be redirected (`exec >file`), so the boundary of its end is written to the terminal.
_START = (
    "stty -onlcr -echoctl cols 80 rows 24 2>/dev/null; set +o history +H; shopt -u promptvars; "
    "__echo_cli() {{ local status=$?; printf '\\033]133;D;{word};%d\\007' \"$status\" >/dev/tty; "
    "PS0=$'\\033]133;C;{word}\\007' PS2=$'\\033]133;P;{word}\\007' PS1={prompt}$'\\033]133;B;{word}\\007'; }}; "
    "PROMPT_COMMAND=__echo_cli; readonly PROMPT_COMMAND; readonly -f __echo_cli"
)


class ShellError(Exception):
    """A shell that does not start."""


class Shell:
    """A bash session, started by `start`. Its methods block, and are called from one thread.

    Args:
        command: words that run an interactive bash on the terminal that they inherit.
        environ: variables of the first process.
        prompt: prompt of the shell, literally.
        exceeded: returns the limit that the session exceeds, or None; called about four times per second.
        sees_processes: whether the session's processes are those of this machine, so that one that waits for input
            gets the end of its input.
        user: id of the user that runs the shell; None for this process's own.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        prompt: str = "$ ",
        exceeded: Callable[[], str | None] = lambda: None,
        *,
        sees_processes: bool = True,
        user: int | None = None,
    ) -> None:
        self._command, self._environ, self._prompt, self._exceeded = list(command), dict(environ), prompt, exceeded
        self._sees_processes, self._user = sees_processes, user
        self._word = secrets.token_hex(8)
        self._mark = re.compile(rb"\x1b\]133;([BCDP]);" + self._word.encode() + rb"(?:;(\d+))?\x07")
        self._process: subprocess.Popen[bytes] | None = None
        self._master = -1
        self._buffer = bytearray()
        self._checked_at = 0.0
        self._terminal = 0
        self._stopping = False
        self.ended = False
        """Whether the session has ended, by itself or because it exceeded a limit."""

    @property
    def process_id(self) -> int | None:
        """Id of the session's first process; None before the start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the session and wait for its first prompt.

        Raises:
            ShellError: it ends, or shows no prompt within 20 s; the message has its last output.
        """
        self._master, slave = os.openpty()
        self._terminal = os.fstat(slave).st_rdev
        if self._user is not None:
            os.fchown(slave, self._user, -1)
        try:
            # The first process of a session gets the first terminal that it opens as its controlling terminal.
            opener = ["sh", "-c", 'exec "$@" <>"$0" >&0 2>&1', os.ttyname(slave), *self._command]
            self._process = subprocess.Popen(
                opener,
                env=self._environ,
                cwd="/",
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                user=self._user,
                group=self._user,
                extra_groups=no_groups(self._user),
            )
            started = self._wait_opened()
            if not started:
                self._read(0.0)
        finally:
            os.close(slave)
        os.set_blocking(self._master, False)
        begin = _START.format(word=self._word, prompt=quoted(self._prompt.replace("\\", "\\\\")))
        ran = self._type(begin, _START_SECONDS, _READ_BYTES) if started else None
        if ran is None or ran.exit_code is None:
            said = bytes(self._buffer) if ran is None else ran.output
            self.close()
            lines = [line for line in said.decode(errors="replace").split("\n") if line.strip() and begin not in line]
            lines = lines or ["it shows no prompt"]
            raise ShellError(f"the shell does not start: {lines[-1].strip()}")

    def run(self, line: str, timeout_s: float, limit: int) -> Ran:
        """Type `line`, wait until the shell asks for the next one, and return what happened.

        A line with control characters, or a long one, is typed as `eval` of its quoted text. A command that waits for
        input gets the end of its input. A command that is incomplete, takes longer than `timeout_s` seconds or floods
        the terminal is interrupted.

        Args:
            limit: maximum number of bytes of the output to keep.
        """
        if self.ended:
            return Ran(b"", None, ended=True)
        typed = line.encode(errors="replace").replace(b"\0", b"")
        if len(typed) <= _MOST_TYPED and not UNTYPABLE.search(line):
            return self._type(typed.decode(), timeout_s, limit)
        parts = [line[at : at + _MOST_TYPED // 4] for at in range(0, len(line), _MOST_TYPED // 4)]
        for number, part in enumerate(parts):
            ran = self._type(f"__echo_cli_line{'+' if number else ''}={quoted(part)}", timeout_s, limit)
            if ran.exit_code != 0:
                return ran
        return self._type('eval -- "$__echo_cli_line"', timeout_s, limit)

    def stop(self) -> None:
        """Let a command that runs in another thread be interrupted soon, and the session end with it."""
        self._stopping = True

    def close(self) -> None:
        """Kill the session's processes; those of another session survive where no process namespace holds them."""
        self.ended = True
        if self._process is not None and self._process.returncode is None:
            kill_session(self._process)
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def _wait_opened(self) -> bool:
        """Wait until the first process has opened the terminal: until then, its last closing would end it."""
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError):
                if os.tcgetpgrp(self._master) > 0:
                    return True
            time.sleep(0.002)
        return False

    def _type(self, line: str, timeout_s: float, limit: int) -> Ran:
        """Type a line and read until the shell asks for the next one."""
        typed = line.encode() + b"\n"
        self._buffer.clear()
        reading = Reading(typed, limit, time.monotonic() + timeout_s)
        self._write(typed)
        while True:
            arrived = self._read(_TICK_SECONDS)
            if arrived is None:
                return self._over(reading)
            if self._parse(reading):
                break
            if (why := self._limit()) is not None:
                self.close()
                return reading.result(notice=f"stopped: {why}", ended=True)
            if not arrived and self._waits_for_input(reading):
                continue
            if reading.overdue(time.monotonic()) and not self._interrupt(reading, timeout_s):
                self.close()
                return reading.result(notice=reading.notice, ended=True)
        self._read_prompt(reading)
        return reading.result()

    def _read(self, wait_s: float) -> bytes | None:
        """Wait for output and append it to the buffer; return it, b"" after `wait_s` seconds, and None at the end."""
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        if not poll.poll(wait_s * 1000):
            return b""
        try:
            arrived = os.read(self._master, _READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:  # every process has closed the terminal
            return None
        self._buffer += arrived
        return arrived or None

    def _write(self, typed: bytes) -> None:
        """Type, and read meanwhile: a terminal whose output nobody reads takes no input."""
        while typed:
            try:
                typed = typed[os.write(self._master, typed) :]
            except BlockingIOError:
                if self._read(_TICK_SECONDS) is None:
                    return
            except OSError:
                return

    def _parse(self, reading: Reading) -> bool:
        """Move what has arrived from the buffer to `reading`; return whether the command has ended."""
        while (mark := self._mark.search(self._buffer)) is not None:
            reading.add(bytes(self._buffer[: mark.start()]))
            kind, status = mark.group(1), mark.group(2)
            del self._buffer[: mark.end()]
            if kind == b"C":
                reading.start_output()
            elif kind == b"P" and not reading.notice:
                reading.notice = "the command is incomplete"
                reading.deadline = 0.0
            elif kind == b"D":
                reading.exit_code = int(status or b"0")
                return True
        whole = self._buffer.rfind(b"\x1b")  # a boundary may have arrived in part
        keep = len(self._buffer) if whole < 0 or len(self._buffer) - whole > 64 else whole
        reading.add(bytes(self._buffer[:keep]))
        del self._buffer[:keep]
        return False

    def _read_prompt(self, reading: Reading) -> None:
        deadline = time.monotonic() + _PROMPT_SECONDS
        while (mark := self._mark.search(self._buffer)) is None:
            left = deadline - time.monotonic()
            if left <= 0 or self._read(left) is None:
                break
        reading.prompt = bytes(self._buffer[: mark.start()] if mark is not None else self._buffer)
        self._buffer.clear()

    def _over(self, reading: Reading) -> Ran:
        """Return the last command of a session that has ended."""
        reading.add(bytes(self._buffer))
        self.close()
        return reading.result(notice="", ended=True)

    def _limit(self) -> str | None:
        if self._stopping:
            return "the episode is over"
        now = time.monotonic()
        if now - self._checked_at < _LIMIT_SECONDS:
            return None
        self._checked_at = now
        return self._exceeded()

    def _foreground(self) -> int | None:
        """Return the process group that reads the terminal, if it is one of this machine."""
        with suppress(OSError):
            return os.tcgetpgrp(self._master) or None
        return None

    def _waits_for_input(self, reading: Reading) -> bool:
        """Type the end of input if a command waits for input; return whether it was typed."""
        idle = time.monotonic() - reading.last_arrival
        if idle < _IDLE_SECONDS or reading.ends >= _MOST_ENDS or not (reading.has_started and self._sees_processes):
            return False
        if self._process is None or not waits_for_input(self._process.pid, self._foreground(), self._terminal):
            return False
        reading.ends += 1
        self._write(b"\x04")
        return True

    def _interrupt(self, reading: Reading, timeout_s: float) -> bool:
        """Interrupt the command, harder each time; return False if nothing is left to try."""
        if not reading.notice:
            flooded = reading.size > FLOOD_BYTES
            why = f"after {FLOOD_BYTES >> 20} MiB of output" if flooded else f"after {timeout_s:g} s"
            reading.notice = f"interrupted {why}"
        reading.tries += 1
        reading.deadline = time.monotonic() + _GRACE_SECONDS
        if reading.tries <= 2:
            self._write(reading.interrupted_by(b"\x03" if reading.tries == 1 else b"\x1c"))
            return True
        group = self._foreground()
        if reading.tries > 3 or group is None or self._process is None:
            return False
        below = {process.group for process in processes_below(self._process.pid)}
        with suppress(ProcessLookupError, PermissionError):
            if group in below:
                os.killpg(group, signal.SIGKILL)
        return True
