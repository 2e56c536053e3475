"""TOP: cut a stored message after its header and some lines of its body.

Rules of this file:

* Wire octets in (dots stuffed, in pieces of any size, with the final dot line), wire octets out,
  complete with a final dot line.  Nothing is unstuffed: a lone dot is always the end.
* Each octet is examined once, whatever the pieces are; at most four are remembered.

RFC 1939 section 7, TOP: the header, the blank line, and n lines of the body.
"""

from __future__ import annotations

from typing import Final

_BLANK: Final = b"\r\n\r\n"
_END: Final = b"\r\n.\r\n"
_FINAL: Final = b".\r\n"


class TopCutter:
    """Takes the message's octets until `done`.  `lines`: how many of the body, 0 or more."""

    __slots__ = ("_in_header", "_lines", "_tail", "done")

    def __init__(self, lines: int) -> None:
        self.done = False
        self._lines = lines
        self._in_header = True
        # The last octets returned, for a pattern that spans two pieces.  A message that begins with
        # CR LF has an empty header, hence the line end before its first octet.
        self._tail = b"\r\n"

    def cut(self, piece: bytes) -> bytes:
        """The part of the next piece that belongs to the answer.  Sets `done` at the end."""
        start = 0
        if self._in_header:
            start = self._header_end(piece)
        end = len(piece) if self._in_header else self._body_end(piece, start)
        cut_short = not self._in_header and self._lines == 0
        given = piece[:end]
        self._tail = (self._tail + given[-len(_END) :])[-len(_END) :]
        if self._tail == _END:  # the message's own end: fewer lines than requested
            self.done = True
        elif cut_short:
            self.done = True
            return given + _FINAL
        return given

    def _header_end(self, piece: bytes) -> int:
        """The offset after the blank line, if it ends in this piece."""
        seam = self._tail[-3:]
        joint = seam + piece[:3]
        at = joint.find(_BLANK)
        if at >= 0:
            self._in_header = False
            return at + len(_BLANK) - len(seam)
        at = piece.find(_BLANK)
        if at >= 0:
            self._in_header = False
            return at + len(_BLANK)
        return len(piece)

    def _body_end(self, piece: bytes, start: int) -> int:
        """The offset after the last requested line, or the end of the piece."""
        wanted = self._lines
        present = piece.count(b"\n", start)
        if present < wanted:
            self._lines -= present
            return len(piece)
        self._lines = 0
        rest = piece[start:].split(b"\n", wanted)[-1] if wanted else piece[start:]
        return len(piece) - len(rest)
