"""A message on its way in, piece by piece: by DATA, or in chunks by BDAT.

Rules of this file:

* Raw octets in, wire octets out (see dots.py); the counts and the verdict at the end.
* The same for every cut.  The whole of a message is read and counted even when its fate is
  sealed, so that the verdict cannot depend on where it was cut.
* A message that lies whole in the input and has nothing odd goes the short way, `whole`.

The verdict (`refusal`): too large before bare line ends, because its octets are not ours to
judge beyond the limit.  RFC 5321 section 2.3.8 forbids bare CR and LF, RFC 5322 section 4.1
NUL; to let them pass is how mail is smuggled.
"""

from __future__ import annotations

from typing import Final

from metad.errors import Reply
from metad.protocol.dots import END_LINE, TERMINATOR, Counter, EndFinder, Repairer, Stuffer
from metad.protocol.headers import HeaderScanner, look_at
from metad.protocol.smtp.events import EndOfMessage
from metad.protocol.smtp.table import TOO_LARGE

_BARE: Final = {
    name: Reply(550, "5.5.2", f"bare {name} received") for name in ("<LF>", "<CR>", "<NUL>")
}
# A NamedTuple of a tuple that is complete: half the cost of calling its class.
_new: Final = tuple.__new__
_CRLF: Final = b"\r\n"
_LINE_WITH_DOT: Final = b"\r\n."
_DOT: Final = ord(".")
_CR: Final = 13
_LF: Final = 10
_NUL: Final = 0


def whole(data: bytes, start: int, limit: int) -> EndOfMessage | None:
    """The message by DATA that lies whole in `data` from `start`, with its counts.

    None if it does not end there, or has anything that needs a closer look.  `limit`: octets.
    """
    end = data.find(_LINE_WITH_DOT, start)
    if end < 0 or data[start] == _DOT:
        return None
    dots = 0
    if not data.startswith(_CRLF, end + 3):  # not the final line: that one then, and count
        end = data.find(TERMINATOR, end)
        if end < 0:
            return None
        dots = data.count(_LINE_WITH_DOT, start, end)
    body = data[start : end + 5]
    octets = len(body) - dots - 3
    bare = body.replace(_CRLF, b"")
    if _CR in bare or _LF in bare or _NUL in bare or octets > limit:
        return None
    starts_with_header, received = look_at(body)
    return _new(EndOfMessage, (octets, dots, starts_with_header, received, body))


class _Body:
    """What both ways of sending have in common."""

    __slots__ = ("_counter", "_headers")

    def __init__(self) -> None:
        self._counter = Counter()
        self._headers = HeaderScanner()

    @property
    def octets(self) -> int:
        """Of the message so far, unstuffed, at least."""
        # The final line has three octets, of which one counts among the dots.
        return self._counter.octets - self._counter.dots - 2

    @property
    def refusal(self) -> Reply | None:
        """Why the message cannot be taken, as far as it is known."""
        fault = self._counter.fault
        return None if fault is None else _BARE[fault]

    def end(self, rest: bytes) -> EndOfMessage:
        """The counts of the message, which is complete with the wire octets `rest`."""
        return EndOfMessage(
            self.octets,
            self._counter.dots - 1,
            self._headers.starts_with_header,
            self._headers.received,
            rest,
        )

    def _count(self, piece: bytes) -> bytes:
        self._counter.feed(piece)
        self._headers.feed(piece)
        return piece


class DataBody(_Body):
    """A message by DATA."""

    __slots__ = ("_finder", "_held", "_limit", "_repairer")

    def __init__(self, limit: int, *, repair: bool) -> None:
        super().__init__()
        self._limit = limit
        self._finder = EndFinder()
        self._repairer = Repairer(double_lone_dots=True) if repair else None
        self._held = b""  # raw octets that may belong to the final dot line; only for repair

    @property
    def refusal(self) -> Reply | None:
        return TOO_LARGE if self.octets > self._limit else super().refusal

    def take(self, data: bytes, start: int) -> tuple[bytes, int, bool]:
        """Read from `data[start:]`: wire octets, the offset behind what was read, the end."""
        end = self._finder.find(data, start)
        stop = end if end >= 0 else len(data)
        piece = data[start:stop]
        if self._repairer is not None:
            piece = self._repair(self._repairer, piece, ended=end >= 0)
        return self._count(piece), stop, end >= 0

    def _repair(self, repairer: Repairer, piece: bytes, *, ended: bool) -> bytes:
        text = self._held + piece
        if ended:
            self._held = b""
            return repairer.feed(text[: -len(END_LINE)], final=True) + END_LINE
        self._held = text[-4:]
        return repairer.feed(text[:-4])


class ChunkedBody(_Body):
    """A message by BDAT.  `received`: octets of its chunks, as they came.

    Its size is judged by what is announced, before a chunk is read.
    """

    __slots__ = ("_repairer", "_stuffer", "received")

    def __init__(self, *, repair: bool) -> None:
        super().__init__()
        self.received = 0
        self._stuffer = Stuffer()
        self._repairer = Repairer(double_lone_dots=False) if repair else None

    def take(self, piece: bytes, *, final: bool) -> bytes:
        """The next octets; `final`: the message ends with them.  Gives wire octets."""
        self.received += len(piece)
        if self._repairer is not None:
            piece = self._repairer.feed(piece, final=final)
        wire = self._count(self._stuffer.feed(piece))
        if not final:
            return wire
        # The only octets ever added to a body: its last line's end, if it has none.
        ending = END_LINE if self._counter.at_line_start else TERMINATOR
        return wire + self._count(ending)
