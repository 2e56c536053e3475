"""Lines out of a stream of octets, however it is cut; bounded, and O(n) in all.

Rules of this file:

* Only CR LF ends a line (RFC 5321 section 2.3.8).  A CR, LF or NUL anywhere else spoils the
  line that it is in: nothing before or behind it on that line is ever seen as a line.
* How far the buffer was searched is remembered: a slow sender never makes us search twice.
* A bad line is reported once, as soon as that is certain, and its rest is dropped unseen.
  So a client that ends its lines with a bare LF learns it at once instead of waiting.
"""

from __future__ import annotations

import enum
from typing import Final

_CRLF: Final = b"\r\n"
_CR: Final = 13
_LF: Final = 10
_NUL: Final = 0

# Octets of one bad line that are dropped before the line is called a flood.  Precedent: none
# needs as much; it is what one read of a socket may bring.
DISCARD_LIMIT: Final = 262_144


class Fault(enum.Enum):
    """Why there is no line."""

    BARE = "a bare CR, a bare LF or a NUL in the line"
    LONG = "the line is too long"
    FLOOD = "a bad line does not end"


class LineBuffer:
    """Octets received; `data[position:end]` are those that nobody has used yet.

    `limit`: the longest line, in octets without its CR LF.  `dropping`: `position` is within a line
    already reported, whose rest nobody is to see.  `searched`: no CR LF begins before this offset.
    """

    __slots__ = ("_dropped", "_limit", "data", "dropping", "end", "position", "searched")

    def __init__(self, limit: int) -> None:
        self.data = b""
        self.position = 0
        self.end = 0
        self._limit = limit
        self.searched = 0
        self.dropping = False
        self._dropped = 0

    def __len__(self) -> int:
        return self.end - self.position

    def push(self, data: bytes) -> None:
        """Append what came.  Copies only what is still unused."""
        position = self.position
        if position == self.end:
            self.data = data
            self.searched = 0
        else:
            self.data = self.data[position:] + data
            self.searched -= position
        self.position = 0
        self.end = len(self.data)

    def forget(self) -> None:
        """Keep nothing of what was used, which is all."""
        self.data = b""
        self.position = self.end = self.searched = 0

    def line(self) -> bytes | Fault | None:
        """The next line without its CR LF; None: it is not complete."""
        data, start = self.data, self.position
        searched = self.searched
        end = data.find(_CRLF, start if start > searched else searched)
        if end < 0 or end - start > self._limit or self.dropping:
            return self._odd(end)
        self.position = end + 2
        line = data[start:end]
        if _CR in line or _LF in line or _NUL in line:  # integers: six times as fast as octets
            return Fault.BARE
        return line

    def _odd(self, end: int) -> bytes | Fault | None:
        """No line yet, or a bad one; `end`: the offset of the next CR LF, or -1."""
        if self.dropping:
            return self._drop(end)
        data, start = self.data, self.position
        searched = max(start, self.searched)
        # No CR LF begins this early, so an LF here is a bare one.
        if data.find(b"\n", searched, start + self._limit + 1) >= 0:
            self.dropping = True
            return Fault.BARE
        if end >= 0 or len(data) - start > self._limit + 1:
            self.dropping = True
            return Fault.LONG
        self.searched = max(start, len(data) - 1)  # the last octet may be the CR of a CR LF
        return None

    def _drop(self, end: int) -> bytes | Fault | None:
        """Drop the rest of a bad line, then go on with the next one."""
        data, start = self.data, self.position
        stop = end
        if end < 0:  # keep the last octet if it may be the CR of the CR LF
            stop = len(data) - data.endswith(b"\r", start)
        self._dropped += stop - start
        self.position = stop
        if self._dropped > DISCARD_LIMIT:
            return Fault.FLOOD
        if end < 0:
            return None
        self.position = end + 2
        self._dropped = 0
        self.dropping = False
        return self.line()
