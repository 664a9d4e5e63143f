"""Episodes on this machine: each has a copy of its task's files, and a shell under bubblewrap or as a plain process."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from echo_cli.config.terminal import TerminalLimits
from echo_cli.environments.openenv.provider_limits import excess_of, processes_below
from echo_cli.environments.terminal.sandbox import Sandbox, find_sandbox, give, no_groups
from echo_cli.environments.terminal.session_processes import kill_session
from echo_cli.environments.terminal.shell import Shell
from echo_cli.environments.terminal.site import BASH, CannotPlay, environ_of
from echo_cli.environments.terminal.tasks.dockerfile import HOME, NeedsDocker, Recipe, Run
from echo_cli.environments.terminal.tasks.requirements import recipe_of
from echo_cli.environments.terminal.tasks.task_files import inside, make_files, size_of
from echo_cli.environments.terminal.tasks.task_folder import TerminalTask
from echo_cli.environments.terminal.verifier import VerifierFault, reward_of

_MIB = 2**20
_MOST_FILES = 20_000
_POLL_SECONDS = 0.05
_CHECK_SECONDS = 0.25
_TAIL_CHARS = 200
_TESTS, _LOGS = "/tests", "/logs/verifier"


class LocalSite:
    """The folders of a run's episodes, below one temporary folder that `close` removes.

    Args:
        isolated: whether shells run under bubblewrap; otherwise they have the rights of this user.

    Raises:
        EchoError: bubblewrap is wanted and does not work.
    """

    def __init__(self, isolated: bool, limits: TerminalLimits) -> None:
        self._sandbox = find_sandbox(isolated)
        self._limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="echo-terminal-")
        Path(self._folder.name).chmod(0o711)  # the users of episodes go through it to their own folders
        self._made: dict[str, tuple[Recipe, Path]] = {}

    def prepare(self, task: TerminalTask) -> None:
        """Make the files of a task, from which each of its episodes gets a copy.

        Raises:
            CannotPlay: the files cannot be made here.
        """
        root = Path(tempfile.mkdtemp(prefix="files", dir=self._folder.name))
        try:
            recipe = recipe_of(task)
            limits = task.limits.within(self._limits)

            def run(step: Run) -> str | None:
                episode = LocalEpisode(self._sandbox, task, recipe, root, limits)
                return episode.run_step(step.command, step.workdir, task.limits.build_s)

            make_files(recipe, task.environment, root, run)
        except NeedsDocker as error:
            raise CannotPlay(f"needs Docker: {error}") from None
        except OSError as error:
            raise CannotPlay(f"its files cannot be copied: {error.strerror}") from None
        self._made[task.name] = (recipe, root)

    def begin(self, task: TerminalTask) -> LocalEpisode:
        """Return a new episode with a copy of the task's files."""
        recipe, files = self._made[task.name]
        folder = tempfile.TemporaryDirectory(prefix="e", dir=self._folder.name)
        root = Path(folder.name)
        shutil.copytree(files, root, symlinks=True, dirs_exist_ok=True)
        return LocalEpisode(self._sandbox, task, recipe, root, task.limits.within(self._limits), folder)

    def close(self) -> None:
        self._folder.cleanup()


class LocalEpisode:
    """One episode: a copy of the task's files, a shell, and the task's tests. Its methods block."""

    def __init__(
        self,
        sandbox: Sandbox,
        task: TerminalTask,
        recipe: Recipe,
        root: Path,
        limits: TerminalLimits,
        folder: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self._sandbox, self._task, self._recipe, self._limits = sandbox, task, recipe, limits
        self._root, self._folder = root, folder
        self._user = sandbox.new_user()
        self._shell: Shell | None = None
        give(root, self._user)

    def open_shell(self, prompt: str) -> Shell:
        """Start the shell of the episode.

        Raises:
            ShellError: it does not start.
        """
        words = self._words(BASH, self._recipe.workdir)
        shell = Shell(words, self._environ(), prompt, lambda: self._excess(shell.process_id), user=self._user)
        self._shell = shell
        shell.start()
        return shell

    def verify(self) -> float:
        """End the shell, run the task's tests and return their reward.

        Raises:
            VerifierFault: the tests do not end, exceed a limit, cannot run, or give no reward.
        """
        if self._shell is not None:
            self._shell.close()
        with tempfile.TemporaryDirectory(prefix="echo-terminal-") as folder:
            # A copy: the user of the episode may not reach the task's own folder.
            tests, logs = Path(folder) / "tests", Path(folder) / "logs"
            shutil.copytree(self._task.tests, tests, symlinks=True)
            logs.mkdir()
            give(Path(folder), self._user)
            is_local = self._sandbox.program is None
            at, into = (str(tests), str(logs)) if is_local else (_TESTS, _LOGS)
            environ = {**self._environ(), **self._task.test_environ, "LOGS_DIR": into, "TESTS_DIR": at}
            words = self._words(["bash", f"{at}/test.sh"], self._recipe.workdir, {_LOGS: logs}, {_TESTS: tests})
            status, said = self._finish(words, environ, self._task.limits.verifier_s)
            if status is None:
                raise VerifierFault(f"the tests of {self._task.name} were stopped: {said}")
            return reward_of(logs, status, self._task.name, said)

    def run_step(self, command: str, workdir: str, timeout_s: float) -> str | None:
        """Run a command on the task's files; return why it failed, or None."""
        words = self._words(["bash", "-c", command], workdir)
        status, said = self._finish(words, self._environ(), timeout_s)
        return None if status == 0 else said or f"exit status {status}"

    def close(self) -> None:
        """Kill the episode's processes and remove its files."""
        if self._shell is not None:
            self._shell.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _environ(self) -> dict[str, str]:
        home = HOME if self._sandbox.program is not None else str(inside(self._root, HOME))
        return environ_of(self._task, self._recipe.environ, home)

    def _words(
        self,
        command: Sequence[str],
        workdir: str,
        more: Mapping[str, Path] | None = None,
        read_only: Mapping[str, Path] | None = None,
    ) -> list[str]:
        """Return `command` as it runs in the sandbox, with more folders than the task's own."""
        place = workdir if self._sandbox.program is not None else str(inside(self._root, workdir))
        folders = {f"/{name}": self._root / name for name in self._recipe.roots}
        return self._sandbox.words(command, self._limits, {**folders, **(more or {})}, place, read_only)

    def _finish(self, words: Sequence[str], environ: dict[str, str], timeout_s: float) -> tuple[int | None, str]:
        """Run a program to its end.

        Returns:
            Its exit status and the last line that it printed; or None and the reason, if it was stopped.
        """
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                words,
                env=environ,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                user=self._user,
                group=self._user,
                extra_groups=no_groups(self._user),
            )
            try:
                stopped = self._wait(process, timeout_s)
            finally:
                kill_session(process)
            output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL_CHARS))
            lines = output.read().decode(errors="replace").strip().splitlines()
        return (None, stopped) if stopped else (process.returncode, lines[-1] if lines else "")

    def _wait(self, process: subprocess.Popen[bytes], timeout_s: float) -> str:
        """Wait for a process; return "" if it has ended, or why it must be stopped."""
        begun = checked = time.monotonic()
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
                return ""
            now = time.monotonic()
            if now - begun > timeout_s:
                return f"they took longer than {timeout_s:g} s"
            if now - checked > _CHECK_SECONDS:
                checked = now
                if (excess := self._excess(process.pid)) is not None:
                    return excess

    def _excess(self, process_id: int | None) -> str | None:
        """Return the limit that the episode exceeds, or None."""
        below = [] if process_id is None else processes_below(process_id)
        excess = excess_of(below, self._limits.processes, self._limits.memory_mb)
        if excess is not None:
            return excess
        size, files = size_of(self._root, _MOST_FILES)
        if files > _MOST_FILES:
            return f"it has more than {_MOST_FILES} files"
        if size > self._limits.disk_mb * _MIB:
            return f"its files take {size / _MIB:.0f} MiB, over limits.disk_mb {self._limits.disk_mb}"
        return None
