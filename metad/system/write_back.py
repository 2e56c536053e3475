"""Whether the kernel could write a file back to the disk: it tells only those that ask.

After a failure the kernel takes the pages for clean and may drop them: what is read then is what
the disk has.  fsync(2) would tell, and write everything first.
"""

from __future__ import annotations

import ctypes
import errno

_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_WAIT_BEFORE = 1
_NOWHERE = 1 << 50
# What says nothing of the disk: not a file, or a kernel or file system without the call.
_CANNOT_TELL = (errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EPERM)


def write_back_failed(fd: int) -> bool:
    """Whether a write to the file failed behind its writer's back since `fd` was opened, or asked
    about.

    sync_file_range(2) for a stretch that no file has: it neither writes nor waits.
    """
    if _sync_file_range(fd, _NOWHERE, 1, _WAIT_BEFORE) == 0:
        return False
    return ctypes.get_errno() not in _CANNOT_TELL
