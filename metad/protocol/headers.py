"""What the hub must know about a message's header, found while the message arrives.

Rules of this file:

* The result does not depend on the cuts; memory is bounded.
* Wire octets are read as they are: a stuffed dot cannot make or break a relevant field name.

The first line (RFC 5322 section 2.2) tells whether a trace header can be put right before it; the
number of Received: fields tells whether the message is in a loop (RFC 5321 section 6.3).
"""

from __future__ import annotations

import re
from typing import Final

# RFC 5322 section 2.1.1: a line has at most 998 octets, so a field name has fewer.
_FIRST_LIMIT: Final = 1_000
_END: Final = b"\r\n\r\n"
_RECEIVED: Final = b"\r\nreceived:"
MBOX_SEPARATORS: Final = (b"From ", b">From ")
_MBOX_FIELD: Final = b"X-Mailbox-Line: "

# RFC 5322 section 2.2 (name), section 4.5.3 (blanks before the colon); or the empty line.
_FIELD: Final = re.compile(rb"[!-9;-~]++[ \t]*+:|\r\n")
_UNDECIDED: Final = re.compile(rb"[!-9;-~]*+[ \t]*+|\r")


def look_at(body: bytes) -> tuple[bool, int]:
    """For a complete message: whether its first line is a header field or the empty line, and the
    number of Received: fields in its header."""
    starts_with_header = _FIELD.match(body, 0, _FIRST_LIMIT) is not None
    if body.startswith(b"\r\n"):
        return starts_with_header, 0
    end = body.find(_END)
    header = b"\r\n" + (body[:end] if end >= 0 else body).lower()
    return starts_with_header, header.count(_RECEIVED)


class MboxLine:
    """Turns an mbox separator ("From alice@… Sat Nov …") that begins a message into a header field.

    Careless programs send an mbox entry unchanged.  Its first line is not a header field, so
    everything after it would become body.  The field is the one that Postfix makes.
    """

    __slots__ = ("_decided", "_held")

    def __init__(self) -> None:
        self._held = b""
        self._decided = False

    def feed(self, piece: bytes, *, final: bool) -> bytes:
        """The octets of the message, held back until its beginning is certain."""
        if self._decided:
            return piece
        text = self._held + piece
        if not final and any(len(text) < len(s) and s.startswith(text) for s in MBOX_SEPARATORS):
            self._held = text
            return b""
        self._decided = True
        return _MBOX_FIELD + text if text.startswith(MBOX_SEPARATORS) else text


class HeaderScanner:
    """Does the same as `look_at` for a message that arrives in pieces."""

    __slots__ = ("_done", "_first", "_tail", "received")

    def __init__(self) -> None:
        self.received = 0
        self._first = b""
        self._tail = b"\r\n"  # the last octets, fewer than a pattern has
        self._done = False  # the header has ended

    def feed(self, piece: bytes) -> None:
        if self._done:
            return
        room = _FIRST_LIMIT - len(self._first)
        if room and _UNDECIDED.fullmatch(self._first):
            self._first += piece[:room]
        text = self._tail + piece
        end = text.find(_END)
        self._done = end >= 0
        header = (text[:end] if self._done else text).lower()
        self.received += header.count(_RECEIVED)
        self._tail = text[1 - len(_RECEIVED) :]

    @property
    def starts_with_header(self) -> bool:
        return _FIELD.match(self._first, 0, _FIRST_LIMIT) is not None
