"""Dropping root and capabilities permanently.

The nanny uses it too, so it imports only the standard library and `metad.errors`.

    root -> become(user, keep) -> [exec] -> drop_capabilities() after the kept ones were used
"""

from __future__ import annotations

import ctypes
import os
import pwd
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metad.errors import ConfigError, NotPermittedError, OsError

# capability.h
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_NET_BIND_SERVICE = 10
CAP_SYS_CHROOT = 18
# prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 47, 2, 4
_CAP_HEADER = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
_CAP_DATA = struct.Struct("6I")  # effective, permitted, inheritable; twice: low 32 bits and high
_MOST_CAPABILITIES = 64
_MOST_ANCESTORS = 64

_libc = ctypes.CDLL(None, use_errno=True)


class Identity(NamedTuple):
    """The user that a process becomes."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_user(name: str) -> Identity:
    """Raises ConfigError if there is no such system user, or it is root."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(
            f"user: no such system user: {name}", remedy=f"useradd --system {name}"
        ) from None
    if found.pw_uid == 0:
        raise ConfigError("user: must not be root")
    groups = tuple(os.getgrouplist(name, found.pw_gid))
    return Identity(name, found.pw_uid, found.pw_gid, groups)


def give_data_to(data: Path, user: Identity) -> None:
    """Create the data directory, owned by `user`.  What it contains is left alone.

    Raises OsError, NotPermittedError.
    """
    try:
        data.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        data.mkdir(mode=0o700, exist_ok=True)
        # By descriptor, and never through a link that another user has just put there.
        fd = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_uid != user.uid:
                if os.listdir(fd):
                    raise NotPermittedError(
                        f"{data}: belongs to a user other than {user.name}",
                        remedy=f"chown -R {user.name} {data}, if its mail is this hub's",
                    )
                os.fchown(fd, user.uid, user.gid)
        finally:
            os.close(fd)
    except OSError as error:
        raise OsError.of(error, error.filename or data) from None


def become(user: Identity, keep: Sequence[int] = ()) -> None:
    """Drop root permanently: groups, group, user and all capabilities except `keep`.

    The kept capabilities survive an exec too (ambient).  Raises OsError.
    """
    try:
        _prctl(_PR_SET_KEEPCAPS, int(bool(keep)))
        for capability in range(_MOST_CAPABILITIES):
            if capability not in keep:
                _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        _set_capabilities(keep)
        for capability in keep:
            _prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, capability)
        no_new_privileges()
    except OSError as error:
        raise OsError.of(error, f"cannot become {user.name}") from None


def drop_capabilities(keep: Sequence[int] = ()) -> None:
    """Drop all capabilities except those of `keep` that it has.  Raises OSError."""
    _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    _set_capabilities(tuple(one for one in keep if has_capability(one)))


def has_capability(capability: int) -> bool:
    """Whether this process can use it now."""
    data = ctypes.create_string_buffer(_CAP_DATA.size)
    if _libc.capget(_CAP_HEADER, data):
        return False
    fields = _CAP_DATA.unpack(data.raw)
    effective: int = fields[0] | fields[3] << 32
    return bool(effective >> capability & 1)


def no_new_privileges() -> None:
    """No program that this process starts can gain privileges (prctl(2))."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def adopt_orphans() -> None:
    """Orphans of this process's descendants become its children, not those of init (prctl(2))."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether `pid` is a descendant of `ancestor`, by /proc; False if that cannot be told."""
    for _ in range(_MOST_ANCESTORS):
        if pid == ancestor:
            return True
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
        if pid <= 1:
            return False
    return False


def die_with_parent(parent: int, signal: int) -> bool:
    """Have the kernel send `signal` when the parent dies.  False: it is dead already.

    Call it after the last change of credentials, which clears the setting.
    """
    _prctl(_PR_SET_PDEATHSIG, signal)
    return os.getppid() == parent


def _set_capabilities(keep: Sequence[int]) -> None:
    mask = sum(1 << one for one in keep)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    if _libc.capset(_CAP_HEADER, _CAP_DATA.pack(low, low, low, high, high, high)):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _prctl(option: int, one: int, two: int = 0) -> None:
    if _libc.prctl(option, one, two, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
