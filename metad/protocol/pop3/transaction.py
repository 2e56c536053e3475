"""The commands of a session that has its maildrop, and the answers to their events.

Rules of this file:

* A message is streamed as wire octets; only TOP looks into it (top.py).
* Answers to events are ignored after the session was closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from metad.protocol.pop3.auth import Authentication
from metad.protocol.pop3.events import ListMessages, Quit, Retrieve, Top
from metad.protocol.pop3.top import TopCutter

NOT_REMOVED: Final = "[SYS/TEMP] some deleted messages not removed"


class Transaction(Authentication):
    """RFC 1939 sections 5 and 6."""

    __slots__ = ()

    def _stat(self, _: None) -> None:
        self._say(b"+OK %d %d\r\n" % self._maildrop.totals())

    def _list(self, number: int | None) -> None:
        maildrop = self._maildrop
        if number is None:
            self._say(self._language.summary % maildrop.totals())
            self._listing = maildrop.sizes()
        elif self._exists(number):
            self._say(b"+OK %d %d\r\n" % (number, maildrop.drop.size(number)))

    def _uidl(self, number: int | None) -> None:
        maildrop = self._maildrop
        if number is None:
            self._say(b"+OK\r\n")
            self._listing = maildrop.uids()
        elif self._exists(number):
            self._say(f"+OK {number} {maildrop.drop.uid(number)}\r\n".encode())

    def _list_on(self, listing: Iterator[bytes]) -> None:
        """The next piece of an answer to LIST or UIDL, or its end."""
        piece = next(listing, None)
        if piece is None:
            self._listing = None
            piece = b".\r\n"
        self._say(piece)

    def _retr(self, number: int) -> Retrieve | None:
        return Retrieve(number) if self._exists(number) else None

    def _top(self, argument: tuple[int, int]) -> Top | None:
        number, lines = argument
        if not self._exists(number):
            return None
        self._cutter = TopCutter(lines)
        return Top(number, lines)

    def _dele(self, number: int) -> None:
        if self._exists(number):
            self._maildrop.mark(number)
            self._ok("message deleted")

    def _rset(self, _: None) -> None:
        self._maildrop.reset()
        self._summary()

    def _exists(self, number: int) -> bool:
        """Whether the message exists; if not, the client gets an error."""
        fault = self._maildrop.fault(number)
        if fault is not None:
            self._refuse(fault)
        return fault is None

    def _noop(self, _: None) -> None:
        self._say(b"+OK\r\n")

    def _quit(self, _: None) -> Quit:
        self._state = self._row.done
        return Quit(self._maildrop.marked())

    # -- answers ---------------------------------------------------------------------------

    def message(self, chunks: Sequence[bytes]) -> None:
        """Answers Retrieve with the whole message as on the wire, its final dot line included."""
        due = self._due
        if self._answer(Retrieve) and isinstance(due, Retrieve):
            self._say(self._language.octets % self._maildrop.drop.size(due.number))
            self.output += chunks
            self._queued += sum(map(len, chunks))

    def message_begin(self) -> None:
        """Answers Retrieve in pieces: `message_chunk` for each, then `message_end`."""
        self.message(())
        self._streaming = not self.closed

    def message_chunk(self, chunk: bytes) -> None:
        if self._is_streaming():
            self.output.append(chunk)
            self._queued += len(chunk)

    def message_end(self) -> None:
        if self._is_streaming():
            self._streaming = False

    def top(self, chunks: Iterable[bytes]) -> None:
        """Answers Top with the message's next wire octets; call it until `top_done`."""
        if not self._streaming and self._answer(Top):
            self._streaming = True
            self._say(b"+OK\r\n")
        if not self._is_streaming():
            return
        cutter = self._cutter
        if cutter is None:
            raise RuntimeError("no TOP is due, but a RETR")
        for chunk in chunks:
            self.message_chunk(cutter.cut(chunk))
            if cutter.done:
                self._cutter = None
                self.message_end()
                return

    @property
    def top_done(self) -> bool:
        """No more octets are needed for the TOP that is under way."""
        return self._cutter is None

    def listed(self) -> None:
        """Answers ListMessages: the command that needed the listing is carried out."""
        self._answer(ListMessages)

    def refused(self, text: str) -> None:
        """Answers Retrieve, Top or ListMessages, before any octet of the answer: `-ERR text`; the
        session goes on."""
        if self._answer(Retrieve, Top, ListMessages):
            self._cutter = self._waiting = None
            self._refuse(text)

    def quit_done(self) -> None:
        """Answers Quit: the deletions are durable."""
        if self._answer(Quit):
            self._ok("metad signing off")
            self._close()

    def quit_failed(self, text: str = NOT_REMOVED) -> None:
        """Answers Quit: not everything is deleted (RFC 1939 section 6).  The session ends."""
        if self._answer(Quit):
            self._refuse(text)
            self._close()

    def _is_streaming(self) -> bool:
        if not self._streaming and not self.closed:
            raise RuntimeError("no message was begun")
        return self._streaming
