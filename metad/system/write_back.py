"""Whether the kernel failed to write a file back to the disk, which it reports only on request.

After a failure the kernel considers the pages clean and may drop them; later reads return the
disk's contents.  fsync(2) would report it, but would write everything first.
"""

from __future__ import annotations

import ctypes
import errno

_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_WAIT_BEFORE = 1
_NOWHERE = 1 << 50
# Errors that say nothing about the disk: not a file, or no such call in the kernel or file system.
_CANNOT_TELL = (errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EPERM)


def write_back_failed(fd: int) -> bool:
    """Whether a write-back of the file failed since `fd` was opened or last checked.

    sync_file_range(2) on a range beyond any file: it neither writes nor waits.
    """
    if _sync_file_range(fd, _NOWHERE, 1, _WAIT_BEFORE) == 0:
        return False
    return ctypes.get_errno() not in _CANNOT_TELL
