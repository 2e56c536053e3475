"""Landlock (landlock(7)): a process permanently gives up all files outside some directories.

Open files stay open.  Network: the process can make no listener and, unless it is allowed, no TCP
connection; inherited sockets keep working.  Without Landlock in the kernel nothing changes, and
`metad status` shows it.

Rule of this file: call it in a single-threaded process with no_new_privs set, before it opens
files.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_VERSION = 1
_RULE_PATH_BENEATH = 1
# landlock.h: how many of the access rights to files each version of the interface knows.
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_MOST_FS_RIGHTS = 16  # from version 5 on
_READ_FILE = 1 << 2
_BIND, _CONNECT = 1, 2  # from version 4 on: of TCP
_SCOPES = 0b11  # from version 6 on: abstract unix sockets, signals

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """The version of Landlock in this kernel; 0: it has none, or it is off."""
    found: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION)
    return max(found, 0)


def confine(directories: Iterable[Path], *, connects: bool = False) -> int:
    """Allow only what is below `directories`, and TCP connections if it `connects`.

    A file among them may be read.

    Returns the version in force; 0: none.  Raises OSError.
    """
    found = version()
    if not found:
        return 0
    rights = (1 << _FS_RIGHTS.get(found, _MOST_FS_RIGHTS)) - 1
    ruleset = _ruleset(found, rights, _BIND if connects else _BIND | _CONNECT)
    try:
        for directory in directories:
            _allow(ruleset, directory, rights)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return found


def _ruleset(found: int, rights: int, net: int) -> int:
    fields = [rights, *([net] if found >= 4 else []), *([_SCOPES] if found >= 6 else [])]
    packed = struct.pack(f"{len(fields)}Q", *fields)
    return _call(_CREATE_RULESET, packed, ctypes.c_size_t(len(packed)), 0)


def _allow(ruleset: int, directory: Path, rights: int) -> None:
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights = _READ_FILE
        # struct landlock_path_beneath_attr is packed: 12 octets.
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "landlock")
    return result
