"""How a node of a cluster stands, as its first worker notes it in shared memory.

    cells    what
    0        when it was noted, CLOCK_BOOTTIME in ns; 0: not yet
    1-2      why new mail is refused, and since when
    3-4      why logins are refused, and since when
    5        which mail is short of copies
    6-7      the active members, and those of them that are reached, this node included
    8        the members to which there is a link
    9        1: enough others are reached to hold all copies without this node
    10-15    members that do not answer, that are absent, that may have mail which no other has

`metad.cluster.standing` finds it, `metad.monitor` shows it: so this module knows no view.

Rules of this file:

* The time is 0 while the others are written, so that a reader takes none of two moments.
* Whatever the cells hold, reading them gives some standing, or none.
* Times are Unix seconds.  Of the members of one kind, the first `MOST` are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

CELLS = 16
MOST = 8
_NUMBER_BITS = 16
_A_CELL = 4  # numbers in a cell
_NUMBERS = 10
# Older than this, it says nothing: the worker that notes it each second is dead or hangs.
FRESH_S = 5.0


class Obstacle(IntEnum):
    """Why a node takes no new mail, or no logins."""

    NONE = 0
    OLD_DISK = 1  # the others refuse it (metad.cluster.old_disks)
    REMOVED = 2
    ABSENT = 3
    ENTERING = 4
    FEW = 5  # too few members answer
    AWAY = 6  # members that are away may have mail that no other has
    NO_WORD = 7  # it may be cut off, and etcd does not confirm its view


class Short(IntEnum):
    """Which mail has fewer copies than it should."""

    NONE = 0
    NEW = 1  # too few members are active
    OLD = 2  # it is being copied
    AWAY = 3  # too many members are away


class Standing(NamedTuple):
    """`suffice`: enough others are reached to hold all copies without this node."""

    mail: Obstacle = Obstacle.NONE
    mail_since: int = 0
    logins: Obstacle = Obstacle.NONE
    logins_since: int = 0
    short: Short = Short.NONE
    active: int = 0
    reached: int = 0
    linked: int = 0
    suffice: bool = False
    silent: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()
    unhealed: tuple[int, ...] = ()


def write(cells: memoryview, standing: Standing, now_ns: int) -> None:
    """By one process of the node.  `now_ns`: CLOCK_BOOTTIME."""
    cells[0] = 0
    for at, value in enumerate(standing[:9], 1):
        cells[at] = int(value)
    packed = [cell for numbers in standing[9:] for cell in _pack(numbers)]
    for at, cell in enumerate(packed, _NUMBERS):
        cells[at] = cell
    cells[0] = now_ns


def read(cells: memoryview, now_ns: int) -> Standing | None:
    """None: none was noted lately."""
    at, *values = cells
    if not at or cells[0] != at or abs(now_ns - at) > FRESH_S * 1e9:
        return None
    mail, mail_since, logins, logins_since, short, active, reached, linked, suffice = values[:9]
    pairs = (_unpack(values[first : first + 2]) for first in range(_NUMBERS - 1, CELLS - 1, 2))
    silent, absent, unhealed = pairs
    return Standing(
        _obstacle(mail), mail_since, _obstacle(logins), logins_since,
        Short(short) if short < len(Short) else Short.NONE,
        active, reached, linked, bool(suffice), silent, absent, unhealed,
    )  # fmt: skip


def _obstacle(value: int) -> Obstacle:
    return Obstacle(value) if value < len(Obstacle) else Obstacle.NONE


def _pack(numbers: Iterable[int]) -> list[int]:
    first = [*numbers, *[0] * MOST][:MOST]
    return [
        sum(number << _NUMBER_BITS * place for place, number in enumerate(first[at : at + _A_CELL]))
        for at in range(0, MOST, _A_CELL)
    ]


def _unpack(cells: Sequence[int]) -> tuple[int, ...]:
    mask = (1 << _NUMBER_BITS) - 1
    found = [cell >> _NUMBER_BITS * place & mask for cell in cells for place in range(_A_CELL)]
    return tuple(number for number in found if number)


def nodes(numbers: Sequence[int]) -> str:
    """ "node 2", "nodes 2 and 3", "nodes 2, 3 and 4"."""
    *most, last = map(str, numbers)
    return f"nodes {', '.join(most)} and {last}" if most else f"node {last}"
