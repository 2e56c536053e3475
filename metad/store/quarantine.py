"""Damaged octets set aside, each stretch in a file of its own below quarantine/."""

from __future__ import annotations

import os

from metad.osio import Osio
from metad.store.header import LogHeader
from metad.store.identity import Store
from metad.store.scan import Damage


def set_aside(osio: Osio, store: Store, fd: int, log: LogHeader, damage: Damage) -> str:
    """Copy a damaged stretch of the log open at `fd`, durably; the file's name.  Raises OSError."""
    name = f"{log.number:08d}-{log.life}-{damage.start}.damaged"
    out = osio.open(os.path.join(store.quarantine, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        data = osio.pread(fd, damage.end - damage.start, damage.start)
        if osio.pwrite(out, data, 0) != len(data):
            raise OSError(f"short write to quarantine/{name}")
        osio.fsync(out)
    finally:
        osio.close(out)
    osio.fsync_directory(store.quarantine)
    return name
