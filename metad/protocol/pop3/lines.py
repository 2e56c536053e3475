"""Command lines from a stream of octets, bounded, and O(n) however it is cut.

Rules of this file:

* A line is returned without its line end; a bad line raises, once, and is skipped.
* The position where the search for a line end stopped is remembered.  Of an overlong line, no more
  is kept than the maximum length.

A line ends in CR LF or, as with Dovecot, in LF alone: docs/decisions.md argues why that is safe.
"""

from __future__ import annotations

from typing import Final

# An overlong line is read to its end and answered, unless it is endless.
DISCARD_LIMIT: Final = 65_536
# From a longer buffer, the unused part is copied out, so a session that waits for its client keeps
# little.
KEPT: Final = 4_096
_NUL: Final = 0
_CR: Final = 13


class LineError(ValueError):
    """A bad line; the next one may be good.  `str()` is the text after `-ERR `."""


class EndlessLineError(LineError):
    """A line longer than any legitimate one; reading on is pointless."""


class LineReader:
    """`feed` octets, then `next_line` until it is None, or until it `is_empty`."""

    __slots__ = ("_discarded", "_input", "_position", "_searched", "is_empty")

    def __init__(self) -> None:
        self._input = b""
        self._position = 0  # start of the next line in _input
        self._searched = 0  # _input has no line end before this
        self._discarded = 0  # octets of the present line already dropped
        self.is_empty = True  # everything fed was returned

    @property
    def buffered(self) -> int:
        """Octets fed but not yet returned."""
        return len(self._input) - self._position

    def feed(self, data: bytes) -> None:
        position = self._position
        if position == len(self._input):
            self._input = data
            self._searched = 0
        else:
            self._input = self._input[position:] + data
            self._searched -= position
        self._position = 0
        self.is_empty = False

    def clear(self) -> None:
        self._input = b""
        self._position = self._searched = self._discarded = 0
        self.is_empty = True

    def next_line(self, limit: int) -> bytes | None:
        """The next line; None: more is needed.  `limit`: octets with the line end."""
        start = self._position
        end = self._input.find(b"\n", self._searched)
        if end < 0:
            self._need_more(limit)
            return None
        line = self._input[start:end]
        length = self._discarded + end + 1 - start
        self._discarded = 0
        self._skip_to(end + 1)
        if length > limit:
            raise _too_long(length)
        if line.endswith(b"\r"):
            line = line[:-1]
        if _NUL in line or _CR in line:  # integers: six times as fast as octets
            raise LineError("a line with a NUL or bare CR")
        return line

    def _need_more(self, limit: int) -> None:
        self._searched = len(self._input)
        waiting = self._searched - self._position
        if waiting > limit:
            self._discarded += waiting
            waiting = 0
            self._skip_to(self._searched)
        elif self._position and self._searched > KEPT:
            self._input = self._input[self._position :]
            self._searched -= self._position
            self._position = 0
        if self._discarded + waiting > DISCARD_LIMIT:
            raise _too_long(self._discarded + waiting)

    def _skip_to(self, end: int) -> None:
        """Everything before `end` is used.  A session that waits for its client keeps none of
        it."""
        if end == len(self._input):
            self._input = b""
            end = 0
            self.is_empty = True
        self._position = self._searched = end


def _too_long(length: int) -> LineError:
    kind = EndlessLineError if length > DISCARD_LIMIT else LineError
    return kind("line too long")
