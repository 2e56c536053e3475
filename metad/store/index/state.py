"""Whether the index on disk may be used: the file index/state.

The index is never synced, so after a power cut it may be anything.  It is used only if it was
closed cleanly, or if the machine has not been rebooted since and its file is the same (then the
page cache has every write).  Otherwise it is rebuilt from the logs.

An index of another layout is rebuilt too.  (Layout 1 called the fields of `file` device and inode:
a program that knows only that layout sees a different file, and rebuilds as well.)
"""

from __future__ import annotations

import errno
import json
import os
import struct
from contextlib import suppress

import lmdb

from metad.store.index.rows import DisagreementError
from metad.system.osio import Osio, read_file, write_file

LAYOUT = 4  # 2: the mailboxes in levels; 3: places of deletion records; 4: of all of them
DATA_FILE = "data.mdb"
STATE_FILE = "state"
SUSPECT_FILE = "suspect"
# With less than this free, in bytes, a disk may have been full a moment ago: the largest ballast.
FULL = 16 << 20
# What rows raise that hold what cannot be.
NONSENSE = (DisagreementError, struct.error, OverflowError)
# LMDB's errors for a lack of disk, memory or other resources: the index is as good as before.
_HARMLESS = (
    lmdb.DiskError, lmdb.MapFullError, lmdb.MemoryError, lmdb.ReadersFullError, lmdb.ReadonlyError
)  # fmt: skip


def casts_doubt(error: BaseException) -> bool:
    """Whether an error of the index may mean that its rows or pages are damaged."""
    if not isinstance(error, (lmdb.Error, *NONSENSE)):
        return False
    return not isinstance(error, _HARMLESS) and os.strerror(errno.EDQUOT) not in str(error)


def note_doubt(osio: Osio, directory: str, error: BaseException) -> None:
    """If that error casts doubt on the index, note it durably, if the disk permits."""
    if casts_doubt(error) and not _is_for_want_of_disk(osio, directory, error):
        with suppress(OSError):
            mark_suspect(osio, directory, f"it failed: {error}")


def _is_for_want_of_disk(osio: Osio, directory: str, error: BaseException) -> bool:
    """Whether a transaction failed because the disk is full.

    LMDB calls it an I/O error if a part of its pages could still be written (mdb_page_flush).  What
    was committed before is as it was.  A failed sync is another matter.
    """
    text = str(error)
    if os.strerror(errno.EIO) not in text or "sync" in text:
        return False
    try:
        return osio.free_space(directory) < FULL
    except OSError:
        return False


def mark_suspect(osio: Osio, directory: str, reason: str) -> None:
    """Note durably that the index is suspect: the next start rebuilds it.

    The first reason is kept.  Raises OSError.
    """
    path = os.path.join(directory, SUSPECT_FILE)
    if suspicion(osio, directory) is None:
        write_file(osio, path, reason.encode())


def suspicion(osio: Osio, directory: str) -> str | None:
    """Why the index is suspect, or None."""
    try:
        found = read_file(osio, os.path.join(directory, SUSPECT_FILE))
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"it cannot be read: {error}"
    return found.decode("utf-8", "replace") or "it is suspect"


def boot_id() -> str:
    """An id that changes with every boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def instance(data: str) -> str:
    """Names this boot, and this mount of the file system that has the index.

    A process confined by Landlock cannot read it, and gets it from one that is not confined. Raises
    OSError.
    """
    index = os.path.join(data, "index")
    device = os.stat(index if os.path.isdir(index) else data).st_dev
    return f"{boot_id()} {mount_instance(device)}"


def mount_instance(device: int) -> int:
    """Changes when the file system on `device` is mounted again: then its page cache was lost,
    though the machine was not booted.  0: 0: unknown.

    It is the inode that sysfs made for the mounted file system.  (A mount's own id differs in each
    mount namespace, so every start of a service would look like another mount.)
    """
    try:
        name = os.path.basename(os.readlink(f"/sys/dev/block/{_number(device)}"))
        for kind in os.listdir("/sys/fs"):
            with suppress(OSError):
                return os.stat(f"/sys/fs/{kind}/{name}").st_ino
    except OSError:
        pass
    return 0


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def mark(osio: Osio, directory: str, boot: str, *, clean: bool) -> None:
    """Note the state of the index durably.  Raises OSError.

    Mark it dirty before the first write, and clean only after the environment was synced.
    """
    stat = osio.stat(os.path.join(directory, DATA_FILE))
    file = [stat.st_dev, stat.st_ino]
    fields = {"layout": LAYOUT, "clean": clean, "boot": boot, "file": file}
    write_file(osio, os.path.join(directory, STATE_FILE), json.dumps(fields).encode())


def mark_dirty(osio: Osio, directory: str, boot: str) -> str | None:
    """As `mark`, before the first write.  Where the disk does not take it, the note is removed, so
    that the next start rebuilds; returns the disk's reason.  Raises OSError if that fails too.
    """
    try:
        mark(osio, directory, boot, clean=False)
        return None
    except OSError as error:
        with suppress(FileNotFoundError):
            osio.unlink(os.path.join(directory, STATE_FILE))
        osio.fsync_directory(directory)
        return f"its state cannot be noted, so the next start rebuilds it: {error}"


def why_unusable(osio: Osio, directory: str, boot: str) -> str | None:
    """None if the index may be opened and trusted, otherwise the reason for a rebuild."""
    if (reason := suspicion(osio, directory)) is not None:
        return reason
    try:
        fields = json.loads(read_file(osio, os.path.join(directory, STATE_FILE)))
        stat = osio.stat(os.path.join(directory, DATA_FILE))
    except FileNotFoundError:
        return "there is none"
    except (OSError, ValueError) as error:
        return f"its state cannot be read: {error}"
    if not isinstance(fields, dict):
        return "its state is damaged"
    if fields.get("layout") != LAYOUT:
        return "it has another layout"
    if fields.get("file") != [stat.st_dev, stat.st_ino]:
        return "its file has been replaced"
    if fields.get("clean") is True:
        return None
    return _why_page_cache_is_gone(str(fields.get("boot")), boot)


def _why_page_cache_is_gone(noted: str, now: str) -> str | None:
    """Compare two instances, as `instance` names them."""
    its_boot, _, its_mount = noted.partition(" ")
    boot, _, mount = now.partition(" ")
    if its_boot != boot:
        return "the machine was rebooted while it was in use"
    if its_mount != mount and not {its_mount, mount} & {"", "0"}:  # both are known
        return "its file system was remounted while it was in use"
    return None
