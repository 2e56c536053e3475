"""Copies the last, possibly unsynced, group of an unsealed log into a successor log.

After a failed sync the kernel considers the pages clean: they can be read, a second sync succeeds,
and a power cut still loses them.  No writer continues after a failed sync, so only the last group
may exist in the page cache alone.  Recovery cannot tell whether it was acknowledged.  It is kept,
including its deletions, but in another log.

Rules of this file:

* The successor gets its name only when its contents and its seal are durable.  Its header ends the
  old log before that group: until the name exists nothing has changed, and afterwards nothing at
  the old place counts.
* The old file is only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metad.store.identity import Store
from metad.store.log import files as log_files
from metad.store.log import record
from metad.store.log.header import ACTIVE, LogHeader, log_path
from metad.store.log.scan import Found, Scanner
from metad.store.log.tail import Tail, entries_of
from metad.store.log.writer import LogWriter, round_up, seal_room
from metad.store.log_table import Allocation
from metad.system.osio import Osio

_PART = 900  # buffers of one write; IOV_MAX is 1,024


class Ended(NamedTuple):
    """A log that ends at `end`, and the records after it that still count."""

    log: LogHeader
    end: int
    records: Sequence[Found] = ()


class Successor(NamedTuple):
    """A log that holds the last group of another one, and ends that one."""

    log: LogHeader
    tail: Tail


def write_successor(osio: Osio, store: Store, ended: Ended, given: Allocation) -> Successor:
    """Make the log `given`, which ends another one and has its last records.

    Raises OSError, LogBusyError; then there is no such log.
    """
    old = ended.log
    records = _moved(ended)
    octets = sum(each.header.size for each in records)
    entries = b"".join(map(entries_of, records))
    end = old.align + round_up(octets, old.align)
    new = LogHeader(
        state=ACTIVE, generation=old.generation, number=given.number, life=given.life,
        size=end + seal_room(len(entries), old.align) + old.align, align=old.align,
        node=store.node, store_id=store.store_id, secret=store.secret,
        predecessor_life=old.life, predecessor_end=ended.end,
    )  # fmt: skip

    def fill(out: int) -> None:
        writer = LogWriter(osio, out, new, sync=False)  # the seal's sync covers everything
        buffers = [_encode(writer, each) for each in records]
        parts = [buffers[at : at + _PART] for at in range(0, len(buffers), _PART)]
        writer.append(parts, octets, entries)
        writer.seal()

    if not given.fresh:  # a free one, of another size
        fd = log_files.lock_free(osio, store.logs, new, given.old_life)
        osio.unlink(log_path(store.logs, given.number))
        osio.close(fd)
    osio.close(log_files.create(osio, store.logs, new, fill))
    return Successor(new, Tail(new.number, entries, end))


def read_ended(osio: Osio, fd: int, log: LogHeader, tail: Tail) -> Ended:
    """The log open at `fd`, to be ended before its unsynced group.  Raises OSError."""
    if not tail.unsynced:
        return Ended(log, tail.end)
    scanner = Scanner(osio, fd, log, tail.unsynced, tail.end)
    # Damage was quarantined when the tail was read.
    records = [
        found._replace(payload=memoryview(bytes(found.payload)))
        for found in scanner
        if isinstance(found, Found)
    ]
    return Ended(log, tail.unsynced, records)


def _moved(ended: Ended) -> list[Found]:
    """The records with the offsets that they will have."""
    at = ended.log.align
    moved: list[Found] = []
    for found in ended.records:
        moved.append(found._replace(offset=at))
        at += found.header.size
    return moved


def _encode(writer: LogWriter, found: Found) -> bytes:
    head, data = found.header, bytes(found.payload)
    payload = record.digest_whole(data, head.envelope_size, writer.seed)
    return writer.make_header(head.kind, head.id, payload) + data
