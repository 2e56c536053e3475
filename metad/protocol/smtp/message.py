"""The SMTP machine's messages: DATA (RFC 5321) and BDAT (RFC 3030).

Rules of this file:

* A refused chunk is still read to its last octet, and answered then.
* A refused message yields one Aborted, whatever part of it was passed on before.
"""

from __future__ import annotations

from typing import Final

from metad import limits
from metad.errors import Reply
from metad.protocol.smtp import table as states
from metad.protocol.smtp.arguments import BDAT_SYNTAX, Chunk, parse_bdat
from metad.protocol.smtp.base import ANSWERED, Row, SmtpBase
from metad.protocol.smtp.body import ChunkedBody, DataBody, whole
from metad.protocol.smtp.events import Aborted, BodyChunk, EndOfMessage, Event
from metad.protocol.smtp.table import CHUNKS

_CR: Final = 13


class MessageIntake(SmtpBase):
    """The actions that lead to a message, and its readers."""

    __slots__ = ()

    def _do_data(self, _argument: bytes, row: Row) -> Event | None:
        lines = self._lines
        return self._begin_data(row, loose=lines.data[lines.position - 2] != _CR)

    def _begin_data(self, row: Row, *, loose: bool) -> Event | None:
        """`loose`: DATA itself ended in LF alone, so the final dot line may too."""
        self._loose = loose
        self.output.append(states.GO_AHEAD.wire)
        self._state = row.done
        self._reading = MessageIntake._read_data
        return None

    def _do_chunk(self, argument: bytes, row: Row) -> Event | None:
        chunk = self._expect_chunk(argument, row.reply)
        if chunk is None:
            return None
        if not chunk.octets and not chunk.last and self._idles():
            return None
        if self._state is not row.done:  # the first one
            self._state = row.done
            self._chunked = ChunkedBody(repair=self._repair)
        if self._chunked.received + chunk.octets > self._settings.message_size:
            self._refusal = states.TOO_LARGE
            self._reading = MessageIntake._skip_chunk
        else:
            self._reading = MessageIntake._read_chunk
        return None if chunk.octets else self._reading(self)

    def _do_skip_chunk(self, argument: bytes, row: Row) -> Event | None:
        chunk = self._expect_chunk(argument, BDAT_SYNTAX)
        if chunk is None:
            return None
        self._refusal = row.reply
        self._reading = MessageIntake._skip_chunk
        return None if chunk.octets else self._reading(self)

    def _read_data(self) -> Event | None:
        """Read the input available for the message by DATA."""
        lines = self._lines
        body = self._body
        if body is None:
            found = whole(lines.data, lines.position, self._settings.message_size)
            if found is not None:
                lines.position += len(found.rest)
                self._reading = None
                self._due = found
                return found
            body = self._body = DataBody(
                self._settings.message_size, repair=self._repair, loose=self._loose
            )
        wire, lines.position, ended = body.take(lines.data, lines.position)
        refusal = body.refusal
        if ended:
            if refusal is not None:
                return self._refuse_message(refusal, each=True)
            return self._complete(body.end(wire))
        if refusal is not None and body.octets > limits.REFUSED_OCTETS:
            self._end(refusal)
        return BodyChunk(wire) if wire and refusal is None else None

    def _read_chunk(self) -> Event | None:
        """Read the input available for the chunk by BDAT."""
        body = self._chunked
        piece = self._take_of_chunk()
        ended = self._left == 0
        wire = body.take(piece, final=ended and self._last)
        refusal = body.refusal
        if ended:
            self._reading = None
            if refusal is not None:
                return self._refuse_message(refusal, each=self._last)
            if self._last:
                return self._complete(body.end(wire))
            self._say(states.OK)
        return BodyChunk(wire) if wire and refusal is None else None

    def _skip_chunk(self) -> Event | None:
        """Read and discard the input available for a refused chunk."""
        self._take_of_chunk()
        if self._left:
            return None
        self._reading = None
        if self._state is CHUNKS:
            return self._refuse_message(self._refusal, each=self._last)
        self._refuse(self._refusal)
        return None

    def _expect_chunk(self, argument: bytes, reply: Reply) -> Chunk | None:
        chunk = parse_bdat(argument)
        if chunk is None:
            # The end of the chunk is unknown, so nothing after this line can be interpreted.
            self._end(reply)
        elif chunk.octets > limits.REFUSED_OCTETS:
            self._end(states.TOO_LARGE)
            return None
        else:
            self._left, self._last = chunk
        return chunk

    def _take_of_chunk(self) -> bytes:
        lines = self._lines
        piece = lines.data[lines.position : lines.position + self._left]
        lines.position += len(piece)
        self._left -= len(piece)
        return piece

    def _complete(self, end: EndOfMessage) -> Event:
        self._reading = None
        self._due = end
        return end

    def _refuse_message(self, reply: Reply, *, each: bool) -> Event:
        """`each`: this answers the message, so LMTP repeats it for each recipient."""
        repeat = self.accepted if each and self._settings.lmtp else 1
        self.output.extend([reply.wire] * repeat)
        self._forget(ANSWERED[False][self._state])
        self._idles()
        return Aborted(reply)

    @property
    def _repair(self) -> bool:
        return self._settings.bare_line_ends == "repair"
