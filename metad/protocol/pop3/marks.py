"""The maildrop as one session sees it: the frozen listing without the messages marked as deleted.

Rules of this file:

* Numbers never change; a marked message is skipped in listings and refused by number, and returns
  with RSET (RFC 1939 section 5).  The marks leave only with QUIT.
* A listing is made in pieces, each when the client has taken the last: it may have millions of
  lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from metad.protocol.pop3.events import Drop

# Lines per piece of a listing: about a millisecond.
LINES = 1000


class Maildrop:
    """`drop` is the listing; the marks are kept here."""

    __slots__ = ("_deleted", "_deleted_octets", "drop")

    def __init__(self, drop: Drop) -> None:
        self.drop = drop
        self._deleted: set[int] = set()
        self._deleted_octets = 0

    def fault(self, number: int) -> str | None:
        """Why the message is not available to this session; None: it is."""
        if number in self._deleted:
            return "that message is deleted"
        return None if 1 <= number <= len(self.drop) else "no such message"

    def mark(self, number: int) -> None:
        """Mark a message as deleted; it must have no fault."""
        self._deleted.add(number)
        self._deleted_octets += self.drop.size(number)

    def reset(self) -> None:
        self._deleted.clear()
        self._deleted_octets = 0

    def marked(self) -> list[int]:
        return sorted(self._deleted)

    def totals(self) -> tuple[int, int]:
        """(messages, octets) without those marked."""
        drop = self.drop
        return len(drop) - len(self._deleted), drop.octets - self._deleted_octets

    def sizes(self) -> Iterator[bytes]:
        """The answer to LIST in pieces, between its first and its last line."""
        return self._lines(self.drop.size)

    def uids(self) -> Iterator[bytes]:
        """The same for UIDL."""
        return self._lines(self.drop.uid)

    def _lines(self, value: Callable[[int], object]) -> Iterator[bytes]:
        numbers = iter(self._numbers())
        while piece := list(islice(numbers, LINES)):
            yield "".join([f"{n} {value(n)}\r\n" for n in piece]).encode()

    def _numbers(self) -> Iterable[int]:
        deleted = self._deleted
        every = range(1, len(self.drop) + 1)
        return [n for n in every if n not in deleted] if deleted else every
