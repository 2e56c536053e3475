"""Message ids and hub time.

A message id is 16 octets, big-endian: hub time (8, microseconds), node (2), the low bits of the
log's life (2), the sequence in that life (4).  Ids sort by time; nobody else makes the same one:
hub time never runs back within a store, lives are unique within a store, and node numbers are
unique among the stores of a cluster (a restore changes the node number).

The first bit of the sequence says that the message came with a unique id of its own, which its
record and the index have; such an id is never shown.
"""

from __future__ import annotations

import struct

from metad.system.osio import Osio

ID_SIZE = 16
NO_ID = bytes(ID_SIZE)
_ID = struct.Struct(">QHHI")


_SEQUENCE = (1 << 31) - 1
_IMPORTED = 1 << 31
_IMPORTED_OCTET = 12


def is_imported(message_id: bytes) -> bool:
    """Whether the message has a unique id of another server."""
    return message_id[_IMPORTED_OCTET] > 127


def time_of(message_id: bytes) -> int:
    """Hub time of an id, in microseconds since the epoch."""
    return int.from_bytes(message_id[:8], "big")


class HubClock:
    """Hub time: the monotonic clock plus an offset that the master fixed at start.

    All processes of a hub share the offset (CLOCK_MONOTONIC is one for the machine), so ids of
    different workers are in one order, whatever is done to the wall clock.
    """

    def __init__(self, osio: Osio, offset_ns: int) -> None:
        self.monotonic_ns = osio.monotonic_ns
        self.offset_ns = offset_ns

    def now_us(self) -> int:
        return (self.monotonic_ns() + self.offset_ns) // 1000


def clock_offset(osio: Osio, greatest_id_us: int) -> int:
    """Offset in ns that puts hub time at the real time or just above every id made so far."""
    now = max(osio.time_ns(), (greatest_id_us + 1) * 1000)
    return now - osio.monotonic_ns()


class IdMaker:
    """Makes the ids of one log's life, strictly increasing even if the clock stands still."""

    def __init__(self, clock: HubClock, node: int) -> None:
        self._monotonic_ns = clock.monotonic_ns
        self._offset_ns = clock.offset_ns
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
        now = (self._monotonic_ns() + self._offset_ns) // 1000
        if now <= self._last_us:
            now = self._last_us + 1
        self._last_us = now
        self._sequence = (self._sequence + 1) & _SEQUENCE
        return _ID.pack(now, self._node, self._life, self._sequence)
