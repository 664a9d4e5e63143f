"""Episodes in containers of Docker: the task's own image, one container for each episode."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
from pathlib import Path

from echo_cli.config.environment import ProviderLimits
from echo_cli.config.terminal import TerminalLimits
from echo_cli.environments.faults import fault_line
from echo_cli.environments.openenv.provider_kinds import docker_environment, require_docker, run_docker
from echo_cli.environments.openenv.provider_limits import docker_limits
from echo_cli.environments.terminal.shell import Shell, ShellError
from echo_cli.environments.terminal.site import BASH, CannotPlay, environ_of
from echo_cli.environments.terminal.tasks.dockerfile import HOME
from echo_cli.environments.terminal.tasks.task_folder import TerminalTask
from echo_cli.environments.terminal.verifier import JSON, TEXT, VerifierFault, parse_reward, status_reward

_TESTS, _LOGS = "/tests", "/logs/verifier"
_CALL_SECONDS = 60.0
_MARGIN_SECONDS = 3600
"""Time after which the container of a run that was killed ends itself, beyond the episode's own limits, seconds."""
_MOST_BYTES = 2**16


class DockerSite:
    """The images of a run's tasks, and the containers of its episodes.

    Raises:
        EchoError: Docker does not answer.
    """

    def __init__(self, limits: TerminalLimits, network: bool) -> None:
        require_docker()
        self._limits, self._network = limits, network
        self._images: dict[str, str] = {}

    def prepare(self, task: TerminalTask) -> None:
        """Pull the task's image, or build it from its Dockerfile, unless this machine has it.

        Raises:
            CannotPlay: Docker cannot; the text has its last line.
        """
        image = task.image or f"echo-terminal:{_digest(task.environment)}"
        if run_docker("image", "inspect", image).returncode != 0:
            if task.image is not None:
                self._call(task, f"its image {image}", "pull", "--quiet", image)
            else:
                self._call(task, "its Dockerfile", "build", "--quiet", "--tag", image, str(task.environment))
        self._images[task.name] = image

    def begin(self, task: TerminalTask) -> DockerEpisode:
        """Return a new episode in a container of its own."""
        network = self._network and task.allows_network
        return DockerEpisode(task, self._images[task.name], task.limits.within(self._limits), network)

    def close(self) -> None:
        """Keep the images: the next run needs them."""

    def _call(self, task: TerminalTask, what: str, *words: str) -> None:
        try:
            done = run_docker(*words, timeout_s=task.limits.build_s)
        except subprocess.TimeoutExpired:
            raise CannotPlay(f"{what} was not made within {task.limits.build_s:g} s") from None
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or ["no reason given"]
            raise CannotPlay(f"{what} cannot be made: {fault_line(said[-1])}")


class DockerEpisode:
    """One container. Its methods block."""

    def __init__(self, task: TerminalTask, image: str, limits: TerminalLimits, network: bool) -> None:
        self._task, self._name = task, f"echo-{secrets.token_hex(8)}"
        self._environ = environ_of(task, {}, HOME)
        del self._environ["PATH"]  # the image's own
        seconds = task.limits.agent_s + task.limits.verifier_s + _MARGIN_SECONDS
        words = ["run", "--detach", "--rm", "--init", "--name", self._name, "--security-opt", "no-new-privileges"]
        words += ["--cap-drop", "NET_RAW", *([] if network else ["--network", "none"])]
        bounds = ProviderLimits(
            memory_mb=limits.memory_mb, processes=limits.processes, file_mb=limits.disk_mb, cpus=task.limits.cpus
        )
        words += [*docker_limits(bounds), "--entrypoint", "sleep", image, f"{seconds:.0f}"]
        started = run_docker(*words)
        self._failed = "" if started.returncode == 0 else fault_line(started.stderr or "no reason given")
        self._shell: Shell | None = None

    def open_shell(self, prompt: str) -> Shell:
        """Start the shell in the container.

        Raises:
            ShellError: the container or its shell does not start.
        """
        if self._failed:
            raise ShellError(f"docker cannot start the container: {self._failed}")
        if self._task.image is not None and self._task.environment.is_dir():
            self._copy_context()
        words = ["docker", "exec", "--interactive", "--tty", *_variables(self._environ), self._name, *BASH]
        self._shell = Shell(words, docker_environment(), prompt, sees_processes=False)
        self._shell.start()
        return self._shell

    def verify(self) -> float:
        """End the shell, run the task's tests in the container and return their reward.

        Raises:
            VerifierFault: the tests do not end, cannot run, or give no reward.
        """
        if self._shell is not None:
            self._shell.close()
        fresh = f"rm -rf {_TESTS} {_LOGS} && mkdir -p {_LOGS}"
        self._done("exec", self._name, "sh", "-c", fresh)
        self._done("cp", str(self._task.tests), f"{self._name}:{_TESTS}")
        environ = {**self._environ, **self._task.test_environ, "LOGS_DIR": _LOGS, "TESTS_DIR": _TESTS}
        words = ["exec", *_variables(environ), self._name, "bash", f"{_TESTS}/test.sh"]
        try:
            tests = run_docker(*words, timeout_s=self._task.limits.verifier_s)
        except subprocess.TimeoutExpired:
            limit = self._task.limits.verifier_s
            raise VerifierFault(f"the tests of {self._task.name} took longer than {limit:g} s") from None
        for name in (TEXT, JSON):
            read = f"test -e {_LOGS}/{name} || exit 3; head -c {_MOST_BYTES} {_LOGS}/{name}"
            found = run_docker("exec", self._name, "sh", "-c", read)
            if found.returncode == 0:
                return parse_reward(name, found.stdout, self._task.name)
        lines = (tests.stdout + tests.stderr).strip().splitlines()
        return status_reward(tests.returncode, self._task.name, lines[-1] if lines else "")

    def close(self) -> None:
        """Remove the container with all that runs in it."""
        if self._shell is not None:
            self._shell.close()
        run_docker("rm", "--force", self._name)

    def _copy_context(self) -> None:
        """Copy the files beside a prebuilt image to its working directory, unless there is a Dockerfile."""
        folder = self._task.environment
        if not (folder / "Dockerfile").is_file():
            asked = run_docker("exec", self._name, "pwd")
            run_docker("cp", f"{folder}/.", f"{self._name}:{asked.stdout.strip() or '/'}")

    def _done(self, *words: str) -> None:
        done = run_docker(*words, timeout_s=_CALL_SECONDS)
        if done.returncode != 0:
            raise VerifierFault(f"the tests of {self._task.name} cannot be copied: {fault_line(done.stderr)}")


def _variables(environ: dict[str, str]) -> list[str]:
    return [word for name, value in environ.items() for word in ("--env", f"{name}={value}")]


def _digest(folder: Path) -> str:
    """Return a short hash of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_mode & 0o111}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
