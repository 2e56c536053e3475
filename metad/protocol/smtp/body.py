"""An incoming message, piece by piece: by DATA, or in chunks by BDAT.

Rules of this file:

* Raw octets in, wire octets out (see dots.py); the counts and the refusal, if any, at the end.
* The result does not depend on the cuts.  A message that will be refused is still read and counted
  to its end, so that the reply cannot depend on them.
* The output is canonical: each line that begins with a dot begins with two, and the message ends in
  a line of one.
* A message that is complete in the input and has nothing unusual takes the fast path, `whole`.

`refusal` is "too large" before "bare line end", because beyond the limit nothing is checked.  RFC
5321 section 2.3.8 forbids bare CR and LF, RFC 5322 section 4.1 NUL; bare line ends, if accepted,
are used to smuggle mail.
"""

from __future__ import annotations

from typing import Final

from metad.errors import Reply
from metad.protocol.dots import (
    END_LINE,
    TERMINATOR,
    Counter,
    DotRemover,
    EndFinder,
    LooseEndFinder,
    Repairer,
    Stuffer,
)
from metad.protocol.headers import MBOX_SEPARATORS, HeaderScanner, MboxLine, look_at
from metad.protocol.smtp.events import EndOfMessage
from metad.protocol.smtp.table import TOO_LARGE

# A developer who sees this sends lines that end in LF; an operator has an appliance that does.
_ADVICE: Final = (
    "the client sends lines as a text file has them; end them in <CR><LF>, or list the client in "
    "smtp.repair_networks"
)
_BARE: Final = {
    "<LF>": Reply(550, "5.5.2", f"bare <LF> received; {_ADVICE}"),
    "<CR>": Reply(550, "5.5.2", f"bare <CR> received; {_ADVICE}"),
    "<NUL>": Reply(550, "5.5.2", "bare <NUL> received"),
}
# Makes a NamedTuple from a complete tuple, at half the cost of calling its class.
_new: Final = tuple.__new__
_CRLF: Final = b"\r\n"
_LINE_WITH_DOT: Final = b"\r\n."
_STUFFED_DOT: Final = b"\r\n.."
_DOT: Final = ord(".")
_CR: Final = 13
_LF: Final = 10
_NUL: Final = 0


def whole(data: bytes, start: int, limit: int) -> EndOfMessage | None:
    """The message by DATA that lies complete in `data` from `start`, with its counts.

    None if it does not end there, or has anything that needs a closer look.  `limit`: octets.
    """
    end = data.find(_LINE_WITH_DOT, start)
    if end < 0 or data[start] == _DOT:  # incomplete, or the first line begins with a dot
        return None
    dots = 0
    if not data.startswith(_CRLF, end + 3):  # not the final line: search on, and count
        end = data.find(TERMINATOR, end)
        if end < 0:
            return None
        dots = data.count(_LINE_WITH_DOT, start, end)
        if dots != data.count(_STUFFED_DOT, start, end):
            return None
    body = data[start : end + 5]
    octets = len(body) - dots - 3
    bare = body.replace(_CRLF, b"")
    if _CR in bare or _LF in bare or _NUL in bare or octets > limit:
        return None
    starts_with_header, received = look_at(body)
    if not starts_with_header and body.startswith(MBOX_SEPARATORS):
        return None
    return _new(EndOfMessage, (octets, dots, starts_with_header, received, body))


class _Body:
    """The common part of DATA and BDAT."""

    __slots__ = ("_counter", "_headers", "_opening")

    def __init__(self) -> None:
        self._opening = MboxLine()
        self._counter = Counter()
        self._headers = HeaderScanner()

    @property
    def octets(self) -> int:
        """A lower bound of the message so far, unstuffed."""
        # The final line has three octets, of which one counts among the dots.
        return self._counter.octets - self._counter.dots - 2

    @property
    def refusal(self) -> Reply | None:
        """Why the message is refused, as far as known."""
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

    def _count(self, piece: bytes, *, final: bool) -> bytes:
        piece = self._opening.feed(piece, final=final)
        self._counter.feed(piece)
        self._headers.feed(piece)
        return piece


class DataBody(_Body):
    """A message by DATA."""

    __slots__ = ("_dots", "_finder", "_held", "_limit", "_repairer")

    def __init__(self, limit: int, *, repair: bool, loose: bool) -> None:
        """`loose`: the final dot line may end in LF alone; only with `repair`."""
        super().__init__()
        self._limit = limit
        self._finder = LooseEndFinder() if loose else EndFinder()
        self._dots = DotRemover()
        self._repairer = Repairer(double_lone_dots=True) if repair else None
        self._held = b""  # raw octets that may be part of the final dot line; only for repair

    @property
    def refusal(self) -> Reply | None:
        return TOO_LARGE if self.octets > self._limit else super().refusal

    def take(self, data: bytes, start: int) -> tuple[bytes, int, bool]:
        """Read from `data[start:]`.  Returns wire octets, the offset after the input used, and
        whether it ended."""
        end = self._finder.find(data, start)
        stop = end if end >= 0 else len(data)
        piece = data[start:stop]
        if self._repairer is not None:
            piece = self._repair(self._repairer, piece, ended=end >= 0)
        piece = self._dots.feed(piece, final=end >= 0)
        return self._count(piece, final=end >= 0), stop, end >= 0

    def _repair(self, repairer: Repairer, piece: bytes, *, ended: bool) -> bytes:
        text = self._held + piece
        if ended:
            self._held = b""
            return repairer.feed(text[: text.rindex(b".")], final=True) + END_LINE
        self._held = text[-4:]
        return repairer.feed(text[:-4])


class ChunkedBody(_Body):
    """A message by BDAT.  `received`: octets of its chunks, as received.

    Its size is checked as each chunk is announced, before it is read.
    """

    __slots__ = ("_repairer", "_stuffer", "received")

    def __init__(self, *, repair: bool) -> None:
        super().__init__()
        self.received = 0
        self._stuffer = Stuffer()
        self._repairer = Repairer(double_lone_dots=False) if repair else None

    def take(self, piece: bytes, *, final: bool) -> bytes:
        """The next octets; `final`: the message ends with them.  Returns wire octets."""
        self.received += len(piece)
        if self._repairer is not None:
            piece = self._repairer.feed(piece, final=final)
        wire = self._count(self._stuffer.feed(piece), final=final)
        if not final:
            return wire
        # The only octets ever added to a body: its last line's end, if it has none.
        ending = END_LINE if self._counter.at_line_start else TERMINATOR
        return wire + self._count(ending, final=True)
