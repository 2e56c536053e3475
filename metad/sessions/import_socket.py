"""Storing the messages of `metad mail import`, in the hub's own process.

A Unix socket per worker, DATA/run/import-SLOT, for the hub's owner and root.  For each message the
client sends one line of JSON and then `size` octets in wire format (dots stuffed, CR LF, the final
dot line included).  It need not wait for the answers, which are sent in order.

    -> {"mailbox": 2, "address": "ann@x.org", "sender": "", "uid": "1a", "time_us": 0, "size": 3}
    -> .
    <- {"id": "0006…"}  or  {"error": "…", "exit_code": 65}  or  {…, "exit_code": 75, "remedy": "…"}

Rules of this file:

* The input is checked like any foreign input: a body that would be two messages on the wire is
  refused.
* A message is acknowledged once the layer has made it durable.  It gets no trace header, and quotas
  do not apply.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

from metad.control import peer_uid, short_path
from metad.errors import EX_DATAERR, EX_TEMPFAIL, RefusedError, UnknownUserError
from metad.layers.base import Envelope, Incoming, Recipient
from metad.protocol.address import AddressError, parse_mailbox
from metad.protocol.dots import END_LINE, Counter, EndFinder
from metad.sessions.context import WorkerContext
from metad.system.shared_memory import Cell
from metad.users.account import POSTMASTER

LINE = 8192
# Unanswered messages of one client; beyond that, reading is paused.
UNDER_WAY = 256
# RFC 1939 section 7.
_UID = re.compile(r"[!-~]{1,70}", re.ASCII)
_SEPARATORS = (",", ":")


class Announced(NamedTuple):
    """The line before a message, checked."""

    mailbox: int
    address: str
    sender: str
    uid: str
    time_us: int
    size: int

    @classmethod
    def parse(cls, line: bytes) -> Announced:
        """Raises ValueError."""
        found = json.loads(line)
        if not isinstance(found, dict) or set(found) != set(cls._fields):
            raise ValueError("not the line in front of a message")
        one = cls(**found)
        for value in (one.mailbox, one.time_us, one.size):
            if type(value) is not int or not 0 <= value < 1 << 62:
                raise ValueError("not a number in range")
        if one.uid and not (isinstance(one.uid, str) and _UID.fullmatch(one.uid)):
            raise ValueError("a unique id with characters that RFC 1939 does not allow")
        for address in filter(None, (one.address, one.sender)):
            if address.lower() != POSTMASTER:
                parse_mailbox(address)
        if one.size < len(END_LINE):
            raise ValueError("a message without its final dot line")
        return one


class Message:
    """One incoming message."""

    def __init__(self, context: WorkerContext, announced: Announced) -> None:
        self._context = context
        self._announced = announced
        self.left = announced.size
        self._counter = Counter()
        self._end = EndFinder()
        self._at = 0
        self._ended_at = -1
        self._incoming: Incoming | None = None
        self._error: Exception | None = None
        # A message is stored whole in a log, and may take up to a quarter of it.
        most = context.config.store.log_size // 4
        try:
            if announced.size > most:
                raise ValueError(
                    f"a message of {announced.size:,} bytes; the maximum is {most:,}, a quarter of "
                    "store.log_size"
                )
            if context.users.by_id(announced.mailbox) is None:
                raise UnknownUserError(f"there is no mailbox {announced.mailbox}")
            self._incoming = context.layer.begin()
        except Exception as error:
            self._error = error

    def feed(self, piece: bytes) -> None:
        self.left -= len(piece)
        self._counter.feed(piece)
        if self._ended_at < 0:
            found = self._end.find(piece, 0)
            self._ended_at = self._at + found if found >= 0 else -1
        self._at += len(piece)
        if self._incoming is None or self._error is not None:
            return
        try:
            self._incoming.write(piece)
        except Exception as error:
            self._error = error

    def commit(self, answer: Answer) -> None:
        """The message is complete."""
        error = self._error or self._fault()
        if error is None and self._incoming is not None:
            try:
                self._incoming.commit(self._envelope(answer), answer.done)
            except Exception as problem:
                error = problem
        if error is not None:
            self.abort()
            answer.refuse(error)

    def _fault(self) -> Exception | None:
        if self._counter.fault is not None:
            return ValueError(f"a bare {self._counter.fault} in the message")
        if self._ended_at != self._announced.size:
            return ValueError("a message that does not end at its announced size")
        return None

    def _envelope(self, answer: Answer) -> Envelope:
        announced, layer = self._announced, self._context.layer
        dots = self._counter.dots - 1
        answer.id = layer.next_import_id() if announced.uid else layer.next_id()
        return Envelope(
            id=answer.id,
            client="import",
            helo="",
            sender=announced.sender,
            recipients=(Recipient(announced.mailbox, announced.address),),
            trace=b"",
            octets=announced.size - dots - 3,
            stuffed=dots,
            uid=announced.uid,
            time_us=announced.time_us,
        )

    def abort(self) -> None:
        if self._incoming is not None:
            with suppress(Exception):
                self._incoming.abort()
            self._incoming = None


class Answer:
    """The answer to one message, at its position in the order."""

    __slots__ = ("_session", "id", "text")

    def __init__(self, session: ImportSession) -> None:
        self._session = session
        self.id = b""
        self.text: dict[str, Any] | None = None

    def done(self, error: RefusedError | None) -> None:
        if self.text is not None:
            return
        if error is not None:
            self.refuse(error)
            return
        self._session.stored()
        self._give({"id": self.id.hex()})

    def refuse(self, error: Exception) -> None:
        """75: a later import may succeed (a reply 4xx of SMTP, a layer's failure); 65: not this
        message."""
        if not isinstance(error, RefusedError | ValueError):
            error = RefusedError(repr(error))
        answer = {"error": str(error) or RefusedError.smtp.text, "exit_code": EX_DATAERR}
        if isinstance(error, RefusedError) and error.smtp.code < 500:
            answer |= {"exit_code": EX_TEMPFAIL, "remedy": error.remedy}
        self._give(answer)

    def _give(self, text: dict[str, Any]) -> None:
        self.text = text
        self._session.answered()


class ImportSession(asyncio.Protocol):
    """One `metad mail import`."""

    _transport: asyncio.Transport

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._buffer = bytearray()
        self._message: Message | None = None
        self._answers: deque[Answer] = deque()
        self._ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._context.sessions.add(self)
        if peer_uid(transport.get_extra_info("socket")) not in (0, os.geteuid()):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._ending:
            self._advance()

    def eof_received(self) -> bool:
        self._end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._message is not None:
            self._message.abort()
            self._message = None
        self._ending = True
        self._context.forget(self)

    # -- the worker's side

    def expire(self, now: float) -> None:
        """The owner's own command has no deadline."""

    def drain(self) -> None:
        self._end()

    def abort(self) -> None:
        self._transport.abort()

    # -- messages

    def _advance(self) -> None:
        while self._buffer and not self._ending:
            if self._message is None and not self._begin():
                return
            message = cast(Message, self._message)
            piece = bytes(self._buffer[: message.left])
            del self._buffer[: len(piece)]
            message.feed(piece)
            if not message.left:
                self._message = None
                answer = Answer(self)
                self._answers.append(answer)
                message.commit(answer)
        if len(self._answers) > UNDER_WAY:
            self._transport.pause_reading()

    def _begin(self) -> bool:
        """Whether a message begins: its line is complete and valid."""
        end = self._buffer.find(b"\n")
        if end < 0 and len(self._buffer) < LINE:
            return False
        try:
            announced = Announced.parse(bytes(self._buffer[: max(end, 0)]))
        except (ValueError, AddressError, TypeError, AttributeError) as error:
            # The beginning of the next message is unknown.
            answer = Answer(self)
            self._answers.append(answer)
            self._end()
            answer.refuse(ValueError(str(error)))
            return False
        del self._buffer[: end + 1]
        self._message = Message(self._context, announced)
        return True

    def stored(self) -> None:
        self._context.row.add(Cell.MESSAGES)

    def answered(self) -> None:
        """Send the answers that are due in order."""
        answers = self._answers
        while answers and (text := answers[0].text) is not None:
            answers.popleft()
            if not self._transport.is_closing():
                self._transport.write(json.dumps(text, separators=_SEPARATORS).encode() + b"\n")
        if self._ending:
            self._end()
        elif len(answers) <= UNDER_WAY // 2 and not self._transport.is_closing():
            self._transport.resume_reading()

    def _end(self) -> None:
        """Stop reading; the connection ends with the last answer."""
        self._ending = True
        if self._message is not None:
            self._message.abort()
            self._message = None
            answer = Answer(self)
            self._answers.append(answer)
            answer.refuse(ValueError("an incomplete message"))
        if not self._answers:
            self._transport.close()


def serve(context: WorkerContext, slot: int) -> asyncio.AbstractServer:
    """Listen on a worker's import socket; one of a dead or retired worker is replaced.

    Raises OSError.
    """
    path = import_path(context.config.data, slot)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        with short_path(path) as short:
            sock.bind(short)
        path.chmod(0o600)
        return context.loop.run_until_complete(
            context.loop.create_unix_server(lambda: ImportSession(context), sock=sock)
        )
    except BaseException:
        sock.close()
        raise


def import_path(data: Path, slot: int) -> Path:
    return data / "run" / f"import-{slot}"
