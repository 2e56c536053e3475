"""New directories that root makes for another user."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_directory(path: Path, owner: os.stat_result | None) -> int:
    """A new, empty directory, mode 0700, given to `owner`; its descriptor.  Raises OSError.

    It is made, opened and chowned through its parent's descriptor, and only if the opened directory
    is the one made: another user may own the parent and swap names meanwhile.
    """
    parent = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.mkdir(path.name, 0o700, dir_fd=parent)
        fd = os.open(path.name, _DIRECTORY, dir_fd=parent)
    finally:
        os.close(parent)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700 or os.listdir(fd):
            raise PermissionError(1, "another program has replaced the new directory", str(path))
        if owner is not None and owner.st_uid != os.geteuid():
            os.fchown(fd, owner.st_uid, owner.st_gid)
    except BaseException:
        os.close(fd)
        raise
    return fd
