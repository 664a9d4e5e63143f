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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from echo_cli.config.effects import Effects
from echo_cli.config.section import NO_GRANTS, Grants
from echo_cli.errors import EchoError
from echo_cli.files import read_text, write_atomic
from echo_cli.symlinks import folder_of, make_folder
from echo_cli.text import escape_unprintable

CONFIG, MARK = "config.yaml", "origin"
_KEY_BYTES = 32
_MARK_BYTES = 64
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


def config_text(run: Path) -> str:
    """Return the text of a run's config.yaml.

    Raises:
        EchoError: it cannot be read, or is not UTF-8.
    """
    return read_text(run / CONFIG, "config", "give a run directory created by `train`")


def is_made_here(run: Path, text: str | None = None) -> bool:
    """Return whether this user wrote the run's config.yaml on this machine.

    Args:
        text: the config as it was read, so that no other one can take its place in between; None to read it now.
    """
    try:
        data = (run / CONFIG).read_bytes() if text is None else text.encode()
        with open(os.open(run / MARK, _READ), "rb") as file:
            mark = file.read(_MARK_BYTES + 2).strip() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
        return hmac.compare_digest(mark, _mark(_read_key(_key_path()), data).encode())
    except OSError:
        return False


def unmarked_line(run: Path) -> str | None:
    """Return why a run that was just written is not marked as made here; None if it is marked."""
    if is_made_here(run):
        return None
    reason = _fault(_key) or f"{MARK} cannot be read"
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
    text: str | None = None
    """Text of the run's config from which the effects were found; None to read it again."""

    def obtain(self, effects: Effects, run: Path | None = None) -> None:
        """Announce `effects`; if they come from a run that was made elsewhere, they need to be allowed first.

        Only --fetch-model lets a run's hub model be fetched, so that needs no second word.

        Args:
            run: the run whose config has the effects; None for a config of the command line.

        Raises:
            EchoError: they are not allowed.
        """
        if not effects:
            return
        if run is None or self.allowed or not replace(effects, may_fetch=()) or is_made_here(run, self.text):
            self.say(f"this command {effects}")
            return
        reason = "was not made by you on this machine, or its config was edited"
        if (fault := _fault(lambda: _read_key(_key_path()))) is not None:
            reason = f"cannot be told from a run of others without the key ({fault})"
        line = f"{escape_unprintable(run)} {reason}; this command {effects}"
        if not self.ask(line):
            raise EchoError(line, "read its config.yaml; if you trust what it names, add --allow-environment")


NO_CONSENT = Consent()

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _fault(read_key: Callable[[], object]) -> str | None:
    """Return why the key cannot be used, in one line; None if it can, or if none has been made."""
    try:
        read_key()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{escape_unprintable(error.filename or 'the key')}: {error.strerror}"
    return None


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
    with _naming(path):
        make_folder(path.parent, mode=0o700)
        with folder_of(path, follow=False) as (folder, name):
            made = f".key-{secrets.token_hex(8)}"
            try:
                with open(os.open(made, _MAKE, 0o600, dir_fd=folder), "wb") as file:
                    file.write(secrets.token_bytes(_KEY_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
                # Whole and exclusive: of several processes, one makes the key.
                with suppress(FileExistsError):
                    os.link(made, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(made, dir_fd=folder)
    return _read_key(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the whole path in an OSError about a name relative to a folder."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _read_key(path: Path) -> bytes:
    """Return the key.

    Raises:
        OSError: it does not exist, is a link, another user can read or has written it, or it is damaged.
    """
    with _naming(path), folder_of(path, follow=False) as (folder, name):
        descriptor = os.open(name, _READ, dir_fd=folder)
    with open(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(0, "not a file of this user alone (chmod 600)", str(path))
        key = file.read(_KEY_BYTES + 1)
    if len(key) != _KEY_BYTES:
        raise OSError(0, f"not a key of {_KEY_BYTES} bytes: delete it", str(path))
    return key
