"""Quarantine of damaged octets: each range gets its own file below quarantine/."""

from __future__ import annotations

import os

from metad.store.identity import Store
from metad.store.log.header import LogHeader
from metad.store.log.salvage import read_past
from metad.store.log.scan import Damage
from metad.system.osio import Osio

_PIECE = 1 << 20


def quarantine_file(osio: Osio, store: Store, path: str) -> str:
    """Move a whole unrecognised file, durably.  Returns its new name.  Raises OSError."""
    # With its inode number, which no other file has as long as this one exists.
    name = f"{os.path.basename(path)}.{osio.stat(path).st_ino}.unknown"
    osio.rename(path, os.path.join(store.quarantine, name))
    osio.fsync_directory(store.quarantine)
    osio.fsync_directory(os.path.dirname(path))
    return name


def quarantine_range(osio: Osio, store: Store, fd: int, log: LogHeader, damage: Damage) -> str:
    """Copy a damaged range of the log open at `fd`, durably.  Returns the file's name.  Raises
    OSError."""
    name = f"{log.number:08d}-{log.life}-{damage.start}.damaged"
    out = osio.open(os.path.join(store.quarantine, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        at = damage.start
        while data := read_past(osio, fd, min(_PIECE, damage.end - at), at):
            if osio.pwrite(out, data, at - damage.start) != len(data):
                raise OSError(f"short write to quarantine/{name}")
            at += len(data)
        osio.fsync(out)
    finally:
        osio.close(out)
    osio.fsync_directory(store.quarantine)
    return name
