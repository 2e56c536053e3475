"""Message bodies on the wire: where they end, how they are counted, how dots are stuffed.

Rules of this file:

* Every class takes a message in pieces of any size, and the result does not depend on the cuts. At
  most four octets are held back or remembered, and no Python loop runs over octets: only find,
  count and replace over whole pieces.
* Only CR LF . CR LF ends a message (RFC 5321 section 4.1.1.4); `LooseEndFinder` is for the few
  clients that may do otherwise.
* "Wire octets" are those of RFC 5321 section 4.5.2 and RFC 1939 section 3: an extra dot precedes
  every line that begins with one, and the message ends in a line of a single dot.

A message begins right after the CR LF of a command line, so for all of these it begins at the start
of a line: an empty message is the final dot line alone.
"""

from __future__ import annotations

import re
from typing import Final

END_LINE: Final = b".\r\n"
TERMINATOR: Final = b"\r\n.\r\n"
_CRLF: Final = b"\r\n"


class EndFinder:
    """Finds the final dot line of a message that arrives in pieces."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = _CRLF  # up to four octets before the next piece

    def find(self, data: bytes, start: int) -> int:
        """Search the piece `data[start:]`: the offset behind the final dot line, or -1."""
        tail = self._tail
        seam = tail + data[start : start + 4]
        at = seam.find(TERMINATOR)
        if at >= 0:
            return start + at + 5 - len(tail)
        at = data.find(TERMINATOR, start)
        if at >= 0:
            return at + 5
        self._tail = (tail + data[max(start, len(data) - 4) :])[-4:]
        return -1


class LooseEndFinder:
    """Finds a line of a single dot, whether it and the line before end in CR LF or in LF alone.

    Only for a client that ended its DATA command in LF alone: from any other, such a line is used
    to smuggle mail.
    """

    __slots__ = ("_tail",)
    _FINAL: Final = re.compile(rb"\n\.\r?\n")

    def __init__(self) -> None:
        self._tail = b"\n"  # up to three octets before the next piece

    def find(self, data: bytes, start: int) -> int:
        """Search the piece `data[start:]`: the offset behind the final dot line, or -1."""
        tail = self._tail
        found = self._FINAL.search(tail + data[start : start + 3])
        if found:
            return start + found.end() - len(tail)
        found = self._FINAL.search(data, start)
        if found:
            return found.end()
        self._tail = (tail + data[max(start, len(data) - 3) :])[-3:]
        return -1


class Counter:
    """Counts wire octets of one message, fed in pieces.

    `octets`: all.  `dots`: lines that begin with a dot, the final one too once it is fed.
    """

    __slots__ = ("_bare_cr", "_bare_lf", "_nul", "_tail", "dots", "octets")

    def __init__(self) -> None:
        self.octets = 0
        self.dots = 0
        self._bare_cr = 0
        self._bare_lf = 0
        self._nul = False
        self._tail = _CRLF  # the last two octets

    def feed(self, piece: bytes) -> None:
        if not piece:
            return
        tail = self._tail
        seam = tail + piece[:2]
        pairs = piece.count(_CRLF) + (seam[1:3] == _CRLF)
        self._bare_cr += piece.count(b"\r") - pairs
        self._bare_lf += piece.count(b"\n") - pairs
        self._nul = self._nul or 0 in piece
        self.dots += piece.count(b"\r\n.") + seam.count(b"\r\n.")
        self.octets += len(piece)
        self._tail = (tail + piece[-2:])[-2:]

    @property
    def fault(self) -> str | None:
        """Which octet makes the message invalid, if any: a bare LF, a bare CR, a NUL.

        A CR that is the last octet so far is not yet a bare one.
        """
        if self._bare_lf:
            return "<LF>"
        if self._bare_cr - (self._tail[1:] == b"\r"):
            return "<CR>"
        return "<NUL>" if self._nul else None

    @property
    def at_line_start(self) -> bool:
        return self._tail == _CRLF


class Stuffer:
    """Stuffs dots into octets that arrive without (BDAT, RFC 3030)."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = _CRLF

    def feed(self, piece: bytes) -> bytes:
        tail = self._tail
        text = tail + piece
        self._tail = text[-2:]
        # The tail is shorter than any pattern, so it never changes.
        return text.replace(b"\r\n.", b"\r\n..")[len(tail) :]


class DotRemover:
    """Deletes the dot of every line that begins with a single dot followed by more.

    The sender of such a line did not stuff its dots, and RFC 5321 section 4.5.2 tells the receiver
    to delete the first dot of any line but the final one.  A POP3 client would show it instead: it
    deletes the first of two dots only (RFC 1939 section 3).
    """

    __slots__ = ("_held", "_tail")
    _LONE: Final = re.compile(rb"(?<=\r\n)\.(?!\.|\r\n)")

    def __init__(self) -> None:
        self._tail = _CRLF  # the last two octets returned
        self._held = b""  # a dot, or a dot and a CR, whose meaning the next octet decides

    def feed(self, piece: bytes, *, final: bool) -> bytes:
        """Wire octets in and out; `final`: the message ends here."""
        text = self._tail + self._held + piece
        keep = 0
        if not final:
            keep = 1 if text.endswith(b"\r\n.") else 2 if text.endswith(b"\r\n.\r") else 0
        self._held = text[len(text) - keep :]
        text = text[: len(text) - keep]
        self._tail = text[-2:]
        return self._LONE.sub(b"", text)[2:] if b"\r\n." in text else text[2:]


class Repairer:
    """Replaces every bare CR and bare LF by CR LF.

    `double_lone_dots`: a line of a single dot, which only such a repair can have made, gets a
    second dot, so that it does not end the message where the sender did not end it.  Feed it only
    the part before the final dot line.
    """

    __slots__ = ("_at_line_start", "_double", "_held")

    _LONE_DOT: Final = re.compile(rb"(?<=\n)\.(?=\r\n)")

    def __init__(self, *, double_lone_dots: bool) -> None:
        self._double = double_lone_dots
        self._held = b""  # a dot or CR whose meaning the next octet decides
        self._at_line_start = True

    def feed(self, piece: bytes, *, final: bool = False) -> bytes:
        """The repaired octets; `final`: this piece is the last, hold nothing back."""
        text = self._held + piece
        self._held = b""
        if not final:
            keep = 2 if text.endswith(b".\r") else int(text.endswith((b".", b"\r")))
            self._held = text[len(text) - keep :]
            text = text[: len(text) - keep]
        if not text:
            return text
        text = text.replace(_CRLF, b"\n").replace(b"\r", b"\n").replace(b"\n", _CRLF)
        if self._double:
            before = b"\n" if self._at_line_start else b" "
            doubled = self._LONE_DOT.sub(b"..", before + text)
            self._at_line_start = text.endswith(b"\n")
            return doubled[1:]
        return text
