"""The records that wait for a commit, and how many of them form one group.

Rules of this file:

* Group bounds: 900 records, 1 MiB, 4,000 index rows; a spooled message is a group of its own.
* The bound on rows limits the index transaction: a QUIT with 225,000 deletions used to be a single
  one, and held the index's write lock for 0.6 s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from metad.store.log.encode import Append, sizes
from metad.store.log.footer import ENTRY_SIZE

GROUP_OCTETS = 1 << 20
GROUP_RECORDS = 900
GROUP_ROWS = 4000
_GROUP_ENTRIES = GROUP_ROWS * ENTRY_SIZE


class Loop(Protocol):
    """What the committer needs of an event loop."""

    def call_soon(self, callback: Callable[[], object]) -> object: ...
    def call_later(self, delay: float, callback: Callable[[], object]) -> object: ...
    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> object: ...


def take_group(waiting: deque[Append]) -> list[Append]:
    """Take the next group from the left end of `waiting`, as far as the bounds allow."""
    if len(waiting) <= GROUP_RECORDS and not [one for one in waiting if one.parts is None]:
        octets, entries = sizes(waiting)
        if octets <= GROUP_OCTETS and entries <= _GROUP_ENTRIES:  # all of them: the usual case
            everything = list(waiting)
            waiting.clear()
            return everything
    return _as_many_as_fit(waiting)


def _as_many_as_fit(waiting: deque[Append]) -> list[Append]:
    """The first records that the bounds allow, one at least."""
    group: list[Append] = []
    octets = entries = 0
    while waiting and len(group) < GROUP_RECORDS:
        item = waiting[0]
        octets += item.size
        entries += item.entries_size
        spooled = item.parts is None
        if group and (octets > GROUP_OCTETS or entries > _GROUP_ENTRIES or spooled):
            break
        group.append(waiting.popleft())
        if spooled:
            break
    return group
