"""The former contents of a free log: its records verify until its next life begins."""

from __future__ import annotations

from metad.store.log.footer import ENTRY_SIZE
from metad.store.log.header import LogHeader
from metad.store.log.scan import Damage, Scanner
from metad.store.log.tail import entries_of
from metad.system.osio import Osio


def ids_in_freed(osio: Osio, fd: int, log: LogHeader) -> list[bytes] | None:
    """The ids of all messages that records of the log refer to; None if damage may hide some.

    Reads the log once, which is better than reading the whole index.  Raises OSError.
    """
    scanner = Scanner(osio, fd, log)
    found: set[bytes] = set()
    count = following = 0
    for item in scanner:
        if isinstance(item, Damage):
            return None
        count, following = count + 1, item.header.sequence + 1
        entries = entries_of(item)
        found.update(entries[at + 4 : at + 20] for at in range(0, len(entries), ENTRY_SIZE))
    has_end = scanner.at > scanner.end  # the record that replaced the seal
    return list(found) if has_end and count == following else None
