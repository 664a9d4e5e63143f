"""The sandbox as an OpenEnv-shaped environment: `reset`, `step`, `state`, `close`."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from sandbox_env.files import Sandbox, generate
from sandbox_env.isolation import Wanted, find_isolation
from sandbox_env.models import SandboxAction, SandboxObservation, SandboxState
from sandbox_env.shell import run

_ANSWER = re.compile(r"answer:? +(?! )(.*)")
_FILE_TIME = 1_700_000_000
"""Modification time of every file, seconds since 1970, so that `ls -l` prints the same in every episode."""


class SandboxEnvironment:
    """One episode at a time: `reset` creates a folder with generated files, `step` runs one line in it.

    Every line runs in a new bash: files persist, `cd` and variables do not. `answer X` or `answer: X` ends the episode
    with reward 1.0 if X is right, else 0.0.

    Args:
        timeout_s: time limit of a line, seconds.
        max_output: maximum number of characters shown of stdout, and of stderr.
        isolation: `bubblewrap` demands isolation of the lines, `none` forbids it, `auto` takes it where it works.

    Raises:
        IsolationError: bubblewrap is demanded and does not work.
    """

    def __init__(self, timeout_s: float = 5.0, max_output: int = 4000, isolation: Wanted = "auto") -> None:
        self.timeout_s = timeout_s
        self.max_output = max_output
        self.isolation = find_isolation(isolation)
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def reset(self, seed: int = 0, episode_id: str | None = None) -> SandboxObservation:
        """Start an episode in a new folder with the files of `seed`; the last episode's folder is removed."""
        self.close()
        self._sandbox = generate(seed)
        self._folder = tempfile.TemporaryDirectory(prefix="sandbox-")
        _write(self._sandbox, Path(self._folder.name))
        self._seed, self._step_count, self._done = seed, 0, False
        self._episode_id = episode_id or f"seed {seed}"
        return SandboxObservation(instruction=self._sandbox.question)

    def step(self, action: SandboxAction) -> SandboxObservation:
        """Run one line, or score an answer.

        Raises:
            RuntimeError: before `reset` and after the episode's end, or bubblewrap has failed.
        """
        folder = self._current_folder()
        if self._done:
            raise RuntimeError("the episode is over: call reset() first")
        self._step_count += 1
        line = action.command.strip()
        if answer := _ANSWER.fullmatch(line):
            self._done = True
            return SandboxObservation(done=True, reward=float(answer.group(1) == self._sandbox.answer))
        result = run(line, folder, timeout_s=self.timeout_s, limit=self.max_output, isolation=self.isolation)
        notices = []
        if result.exit_code is None:
            notices.append(f"[stopped after {self.timeout_s:g} s]\n")
        if result.cut:
            notices.append(f"[output cut at {self.max_output} characters]\n")
        return SandboxObservation(result.stdout, result.stderr, result.exit_code, notice="".join(notices))

    @property
    def state(self) -> SandboxState:
        """State of the episode. Raises RuntimeError before `reset`."""
        self._current_folder()
        return SandboxState(self._episode_id, self._step_count, self._seed)

    def close(self) -> None:
        """Remove the episode's folder with everything in it."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _current_folder(self) -> Path:
        if self._folder is None:
            raise RuntimeError("call reset() first")
        return Path(self._folder.name)


def _write(sandbox: Sandbox, folder: Path) -> None:
    for name, text in sandbox.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (_FILE_TIME, _FILE_TIME))
