"""Message ids and hub time.

A message id is 16 octets, big-endian: hub time (8, microseconds), node (2), the low bits of the
log's life (2), the sequence in that life (4).  Ids sort by time and are unique: hub time never runs
back within a store, lives are unique within a store, and node numbers are
unique among the stores of a cluster (a restore changes the node number).

The first bit of the sequence means that the message brought its own unique id, which its record and
the index hold; such a message id is never shown.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from metad.system.osio import Osio

ID_SIZE = 16
NO_ID = bytes(ID_SIZE)
_ID = struct.Struct(">QHHI")
_TIME = struct.Struct(">Q")

_SEQUENCE = (1 << 31) - 1
_IMPORTED = 1 << 31
_IMPORTED_OCTET = 12


def is_imported(message_id: bytes) -> bool:
    """Whether the message has a unique id from another server."""
    return message_id[_IMPORTED_OCTET] > 127


def time_of(message_id: bytes) -> int:
    """Hub time of an id, in microseconds since the epoch."""
    microseconds: int = _TIME.unpack_from(message_id)[0]
    return microseconds


class HubClock:
    """Hub time: the boot-time clock plus an offset that all processes of a hub share.

    All processes share CLOCK_BOOTTIME, which continues during suspend, so ids of different workers
    are in one order, whatever happens to the wall clock.  The master moves the offset forward
    (metad.store.hub_time).
    """

    def __init__(self, osio: Osio, offset: int | memoryview) -> None:
        """`offset` in ns, or the shared cell that holds it (`SharedArea.clock_cell`)."""
        self.boottime_ns = osio.boottime_ns
        self.cell: Sequence[int] = [offset] if isinstance(offset, int) else offset

    def now_us(self) -> int:
        return (self.boottime_ns() + self.cell[0]) // 1000


class IdMaker:
    """Makes the ids of one log's life, strictly increasing even if the clock stands still."""

    def __init__(self, clock: HubClock, node: int) -> None:
        self._boottime_ns = clock.boottime_ns
        self._cell = clock.cell
        self._node = node
        self._life = 0
        self._sequence = 0
        self._last_us = 0

    def start_life(self, life: int) -> None:
        self._life = life & 0xFFFF
        self._sequence = 0

    def next_imported(self) -> bytes:
        """The next id, for a message that brings its own unique id."""
        made = _ID.unpack(self.next())
        return _ID.pack(*made[:3], made[3] | _IMPORTED)

    def next(self) -> bytes:
        now = (self._boottime_ns() + self._cell[0]) // 1000
        if now <= self._last_us:
            now = self._last_us + 1
        self._last_us = now
        self._sequence = (self._sequence + 1) & _SEQUENCE
        return _ID.pack(now, self._node, self._life, self._sequence)
