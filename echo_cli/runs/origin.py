"""Origin of a run: whether this user made its config on this machine, and consent to act on a config from elsewhere.

A run directory holds an HMAC-SHA256 over the bytes of its config.yaml. The key is the user's own: it is made once, in
the state folder of this machine, and is never written anywhere else. A run that was copied from another user or
machine, or whose config was edited since, has no valid mark.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from echo_cli.config.effects import Effects
from echo_cli.config.section import NO_GRANTS, Grants
from echo_cli.errors import EchoError
from echo_cli.files import write_atomic
from echo_cli.text import escape_unprintable

CONFIG, MARK = "config.yaml", "origin"
_KEY_BYTES = 32
_PURPOSE = b"echo-cli run config\0"


def write_config(run: Path, text: str) -> None:
    """Write config.yaml of a run and mark it as made here; without a usable key, the run has no mark.

    Raises:
        EchoError: the run directory cannot be written.
    """
    data = text.encode()
    try:
        mark = _mark(_key(), data)
    except OSError:
        (run / MARK).unlink(missing_ok=True)
    else:
        write_atomic(run / MARK, f"{mark}\n".encode())
    write_atomic(run / CONFIG, data)


def is_made_here(run: Path) -> bool:
    """Return whether this user wrote the run's config.yaml, as it is, on this machine."""
    try:
        mark, data = (run / MARK).read_bytes().strip(), (run / CONFIG).read_bytes()
        return hmac.compare_digest(mark, _mark(_read_key(_key_path()), data).encode())
    except OSError:
        return False


def unmarked_line(run: Path) -> str | None:
    """Return why a run that was just written is not marked as made here; None if it is marked."""
    if is_made_here(run):
        return None
    try:
        _key()
    except OSError as error:
        reason = f"{escape_unprintable(error.filename or 'the key')}: {error.strerror}"
    else:
        reason = f"{MARK} cannot be read"
    return f"the run is not marked as made here ({reason}): commands will ask before they act on its config"


@dataclass(frozen=True)
class Consent:
    """Rule by which a command acts on the config of a run. By default, runs from elsewhere are refused."""

    allowed: bool = False
    """Whether the command line allows the environment of a run from elsewhere."""
    grants: Grants = NO_GRANTS
    say: Callable[[str], object] = lambda _: None
    """Callback with the line of effects before they happen."""
    ask: Callable[[str], bool] = lambda _: False
    """Callback that puts the line to the person and returns the answer; False without a terminal."""

    def obtain(self, effects: Effects, run: Path | None = None) -> None:
        """Announce `effects`; if they come from a run that was made elsewhere, they need to be allowed first.

        Args:
            run: the run whose config has the effects; None for a config of the command line.

        Raises:
            EchoError: they are not allowed.
        """
        if not effects:
            return
        if run is None or self.allowed or is_made_here(run):
            self.say(f"this command {effects}")
            return
        whose = f"{escape_unprintable(run)} was not made by you on this machine, or its config was edited"
        line = f"{whose}; this command {effects}"
        if not self.ask(line):
            raise EchoError(line, "read its config.yaml; if you trust what it names, add --allow-environment")


NO_CONSENT = Consent()


def _mark(key: bytes, config: bytes) -> str:
    return hmac.new(key, _PURPOSE + config, "sha256").hexdigest()


def _key_path() -> Path:
    """Return the path of the user's key.

    Raises:
        OSError: there is no home folder.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):
        return Path(state) / "echo-cli" / "key"
    try:
        return Path.home() / ".local" / "state" / "echo-cli" / "key"
    except RuntimeError as error:
        raise OSError(0, str(error), "~") from None


def _key() -> bytes:
    """Return the user's key; make it if there is none.

    Raises:
        OSError: it cannot be made, or is not usable.
    """
    path = _key_path()
    try:
        return _read_key(path)
    except FileNotFoundError:
        pass
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = path.with_name(f".key-{secrets.token_hex(8)}")
    try:
        with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(made, path)  # whole and exclusive: of several processes, one makes the key
    except FileExistsError:
        pass
    finally:
        made.unlink(missing_ok=True)
    return _read_key(path)


def _read_key(path: Path) -> bytes:
    """Return the key.

    Raises:
        OSError: it does not exist, another user can read or has written it, or it is damaged.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(0, "not a file of this user alone (chmod 600)", str(path))
        key = file.read(_KEY_BYTES + 1)
    if len(key) != _KEY_BYTES:
        raise OSError(0, f"not a key of {_KEY_BYTES} bytes: delete it", str(path))
    return key
