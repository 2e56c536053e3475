"""Giving up root, for good."""

from __future__ import annotations

import ctypes
import os
import pwd
from pathlib import Path

from metad.errors import ConfigError, OsError

PR_SET_NO_NEW_PRIVS = 38


def find_user(name: str) -> pwd.struct_passwd:
    """Raises ConfigError if there is no such system user, or it is root."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"user: there is no system user {name!r}") from None
    if found.pw_uid == 0:
        raise ConfigError("user: the hub does not run as root")
    return found


def give_data_to(data: Path, user: pwd.struct_passwd) -> None:
    """Make the data directory, owned by `user`.  What is in it already is left as it is.

    Raises OsError.
    """
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        data.mkdir(mode=0o700, exist_ok=True)
        if data.stat().st_uid != user.pw_uid:
            if any(data.iterdir()):
                raise OsError(f"{data}: belongs to another user than {user.pw_name}")
            os.chown(data, user.pw_uid, user.pw_gid)
    except OSError as error:
        raise OsError(f"{data}: {error.strerror}") from None


def become(user: pwd.struct_passwd) -> None:
    """Drop root for good: groups, group, user; no way back.  Raises OsError."""
    try:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except OSError as error:
        raise OsError(f"cannot become {user.pw_name}: {error.strerror}") from None
    no_new_privileges()


def no_new_privileges() -> None:
    """No program that this process starts can gain privileges (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
