"""Lines from a stream of octets, however it is cut; bounded, and O(n) in total.

Rules of this file:

* Only CR LF ends a line (RFC 5321 section 2.3.8).  A CR, LF or NUL anywhere else makes its line
  invalid: no part of it is ever taken for a line.
* The search position is remembered: a slow sender never makes us search twice.
* A bad line is reported once, as soon as it is certainly bad, and its rest is dropped.  So a client
  that ends its lines with a bare LF gets an error at once instead of waiting.

`LooseLineBuffer` also accepts LF alone as a line end, for clients that the operator lists.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Final

_CRLF: Final = b"\r\n"
_CR: Final = 13
_LF: Final = 10
_NUL: Final = 0

# Octets of one bad line that are dropped before it counts as a flood: as much as one read of a
# socket may bring.
DISCARD_LIMIT: Final = 262_144


class Fault(enum.Enum):
    """Why there is no line."""

    BARE = "a bare CR, a bare LF or a NUL in the line"
    LONG = "the line is too long"
    FLOOD = "a bad line does not end"


class LineBuffer:
    """Octets received; `data[position:end]` are not used yet.

    `limit`: the longest line, in octets without its CR LF.  `dropping`: `position` is inside a line
    already reported, whose rest is dropped.  `searched`: no line end begins before this offset.
    """

    __slots__ = ("_dropped", "_limit", "data", "dropping", "end", "position", "searched")
    _END: ClassVar[bytes] = _CRLF

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
        """Append octets.  Copies only what is still unused."""
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
        """Keep nothing: everything is used."""
        self.data = b""
        self.position = self.end = self.searched = 0

    def compact(self) -> None:
        """Copy the unused part out of its buffer, which may be large."""
        if self.position:
            self.data = self.data[self.position : self.end]
            self.searched = max(0, self.searched - self.position)
            self.position = 0
            self.end = len(self.data)

    def line(self) -> bytes | Fault | None:
        """The next line without its CR LF; None: it is incomplete."""
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
        # No CR LF begins this early, so an LF here is bare.
        if data.find(b"\n", searched, start + self._limit + 1) >= 0:
            self.dropping = True
            return Fault.BARE
        if end >= 0 or len(data) - start > self._limit + 1:
            self.dropping = True
            return Fault.LONG
        self.searched = max(start, len(data) - 1)  # the last octet may be the CR of a CR LF
        return None

    def _drop(self, end: int) -> bytes | Fault | None:
        """Drop the rest of a bad line, then continue with the next one."""
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
        self.position = end + len(self._END)
        self._dropped = 0
        self.dropping = False
        return self.line()


class LooseLineBuffer(LineBuffer):
    """Accepts LF alone as a line end too."""

    __slots__ = ()
    _END = b"\n"

    def line(self) -> bytes | Fault | None:
        """The next line without its line end; None: it is incomplete."""
        data, start = self.data, self.position
        end = data.find(b"\n", max(start, self.searched))
        length = (end if end >= 0 else len(data)) - start - (end > start and data[end - 1] == _CR)
        if self.dropping:
            return self._drop(end)
        if length > self._limit + (end < 0):  # the last octet may be the CR of a CR LF
            self.dropping = True
            return Fault.LONG
        if end < 0:
            self.searched = len(data)
            return None
        self.position = end + 1
        line = data[start : start + length]
        return Fault.BARE if _CR in line or _NUL in line else line
