"""Files and folders that are opened and made without following a symbolic link of another user.

In a folder that others can write to, another user may plant a link under the name of an output, or swap a folder of
its path for a link, so that our file lands on a file of ours. Links of this user and of root are followed. The path
is opened folder by folder, each relative to the one before, so that nothing can be swapped between check and use.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""Flags that open a folder as the start of other paths; with O_PATH, it need not be readable."""
_MOST_LINKS = 40
"""Maximum number of links in a path, as in Linux."""


@contextmanager
def folder_of(path: Path, *, follow: bool = True) -> Iterator[tuple[int, str]]:
    """Yield a descriptor of the folder that contains `path`, and the name of `path` in that folder.

    Args:
        follow: whether to follow a link at `path` itself; if so, the yielded name is no link.

    Raises:
        OSError: a folder does not exist or cannot be searched, or a link on the way belongs to another user.
    """
    anchor, *parts = path.absolute().parts
    pending, links = parts[::-1], 0
    folder = os.open(anchor, _SEARCH)
    try:
        while True:
            name = pending.pop() if pending else "."
            kind = _kind(name, folder, must_exist=bool(pending))
            if kind is not None and stat.S_ISLNK(kind.st_mode) and (pending or follow):
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                if kind.st_uid not in (0, os.geteuid()):
                    raise PermissionError(errno.EPERM, f"'{name}' is a symbolic link of another user", str(path))
                target = PurePath(os.readlink(name, dir_fd=folder))
                pending += [part for part in target.parts[::-1] if part != target.anchor]
                inner = os.open(target.anchor or ".", _SEARCH, dir_fd=folder)
            elif not pending:
                yield folder, name
                return
            else:
                inner = os.open(name, _SEARCH | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
    finally:
        os.close(folder)


def opener(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file, as the `opener` of `open`; a missing file is made if `flags` say so."""
    with folder_of(Path(path)) as (folder, name):
        return os.open(name, flags | os.O_NOFOLLOW, 0o666, dir_fd=folder)


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """Make a folder and its missing parents, unless it exists.

    Args:
        mode: permission bits of the folder itself, if it is made; the process's umask clears some.

    Raises:
        OSError: the folder cannot be made, or a link on the way belongs to another user.
    """
    if not path.parent.is_dir():
        make_folder(path.parent)
    with folder_of(path) as (folder, name), suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=folder)
    if not path.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _kind(name: str, folder: int, *, must_exist: bool) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        if must_exist:
            raise
        return None
