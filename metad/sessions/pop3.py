"""A POP3 session on the loop: passes the machine's events to users and layer.

Rules of this file:

* Nothing blocks here: a message that is not in the page cache is read in a thread.
* At most one message is held for a client that does not read, and less when memory is short.
* A dropped connection deletes nothing: only the machine's Quit leads to a deletion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from metad import limits
from metad.errors import DamagedError, RefusedError
from metad.layers.base import Maildrop, NotAtHandError
from metad.protocol.pop3.machine import (
    Event,
    ListMessages,
    Login,
    Pop3,
    Pop3Settings,
    Quit,
    Retrieve,
    ScramLogin,
    ScramUser,
    StartTls,
    Top,
)
from metad.sessions.client import Client
from metad.sessions.connection import Service
from metad.sessions.pop3_login import Pop3Login
from metad.sessions.pop3_transfer import Pieces, Transfer
from metad.system.osio import Buffer
from metad.system.shared_memory import Cell

# Unique ids in one line of the log.
IDS_PER_LINE = 25
TOO_MANY = b"-ERR [SYS/TEMP] too many connections\r\n"


@dataclass(frozen=True, slots=True)
class Pop3Service(Service):
    """A listener for POP3.  `settings(plaintext, tls)`: whether passwords are accepted in the
    clear, whether TLS is active."""

    settings: Callable[[bool, bool], Pop3Settings]
    plaintext: str

    def settings_for(self, client: Client, *, tls: bool) -> Pop3Settings:
        near = self.plaintext == "loopback" and client.near
        return self.settings(tls or near or self.plaintext == "always", tls)

    def make(self, client: Client | None = None) -> Pop3Session:
        return Pop3Session(self, client)


@dataclass(slots=True)
class Figures:
    """What a session did, for its line in the log: numbers of messages and octets."""

    top: int = 0
    retr: int = 0
    retr_octets: int = 0
    deleted: int = 0
    deleted_octets: int = 0


class Pop3Session(Pop3Login):
    """One connection."""

    __slots__ = ("_began", "_figures", "_last", "_progress", "_transfer")
    _service: Pop3Service

    def __init__(self, service: Pop3Service, client: Client | None = None) -> None:
        super().__init__(service, client)
        self._began = 0.0
        self._figures = Figures()
        self._transfer: Transfer | None = None  # the message being sent in pieces
        # As of the last check of the deadlines: commands answered, octets not yet sent, and when
        # either last changed.
        self._progress = (0, 0)
        self._last = self._context.now

    # -- the transport's side

    def _set_up(self, client: Client, *, secure: bool) -> None:
        self._machine = Pop3(self._service.settings_for(client, tls=secure), tls=secure)

    def _start(self) -> None:
        self._began = self._context.now
        self._machine.start()

    def _tls_started(self) -> None:
        client = cast(Client, self._known)
        self._machine.tls_started(self._service.settings_for(client, tls=True))

    def data_received(self, data: bytes) -> None:
        self._machine.receive(data)
        if self._busy:
            self._count_held()
        else:
            self._go_on()

    def _gone(self) -> None:
        super()._gone()
        self._log_session()
        if not self._busy:
            self._close_drop()
        self._machine.fail("connection lost")

    # -- the worker's side

    def expire(self, now: float) -> None:
        """A command, or octets read by the client, count as progress; half a command does not."""
        progress = (self._machine.commands, self._transport.get_write_buffer_size())
        if self._busy or progress != self._progress:
            self._progress = progress
            self._last = now
        elif now - self._last > self._patience():
            self._fail("session timed out")

    def _patience(self) -> int:
        """Seconds without progress."""
        if self._paused and self._context.limiter.is_crowded:
            return limits.CROWDED_GRACE
        return limits.POP3_IDLE if self._machine.authorized else limits.POP3_LOGIN_IDLE

    @property
    def _may_drain(self) -> bool:
        return not self._machine.authorized

    # -- events

    def _go_on(self) -> None:
        """Process all pending events, then write all answers at once."""
        machine = self._machine
        while not self._busy and not self._paused:
            if self._transfer is not None:
                self._read_pieces(self._transfer)
                break
            event = machine.next_event()
            if event is None:
                if machine.full:
                    self._let_others_go_on()
                break
            self._carry_out(event)
        self._flush()

    def _let_others_go_on(self) -> None:
        """Much is answered and more is waiting: write it, and give other sessions their turn."""
        self._flush()
        if not (self._ended or self._paused):
            self._busy = True
            self._context.loop.call_soon(self._turn_comes)

    def _turn_comes(self) -> None:
        self._busy = False
        if self._ended or self._transport.is_closing():
            self._close_drop()
        else:
            self._go_on()

    def _flush(self) -> None:
        machine = self._machine
        if machine.output:
            self._transport.writelines(machine.take_output())
        if machine.closed:
            self._close_drop()
            self._end(abrupt=machine.abrupt)
        elif self._busy or self._paused or self._holds:
            self._count_held()

    @property
    def _is_blocked(self) -> bool:
        return self._busy or self._paused or self._transfer is not None

    def _carry_out(self, event: Event) -> None:
        if isinstance(event, Retrieve):
            self._fetch(event.number, top=False)
        elif isinstance(event, Login):
            self._login(event)
        elif isinstance(event, Quit):
            self._quit(event)
        elif isinstance(event, Top):
            self._fetch(event.number, top=True)
        elif isinstance(event, ListMessages):
            self._list_on(cast(Maildrop, self._drop).list_messages())
        elif isinstance(event, ScramUser):
            self._scram_user(event)
        elif isinstance(event, ScramLogin):
            self._scram_login(event)
        elif isinstance(event, StartTls):
            # The +OK is the last answer in the clear.
            self._flush()
            self._start_tls()

    # -- messages

    def _list_on(self, steps: Iterator[None]) -> None:
        """Make the next piece of the listing; other sessions get their turn between pieces."""
        try:
            next(steps)
        except StopIteration:
            self._machine.listed()
        except Exception as error:  # a layer's error: it affects only this command
            self._log(f"no listing: {error}")
            self._machine.refused(getattr(error, "pop3", RefusedError.pop3))
        else:
            self._busy = True
            self._context.loop.call_soon(self._next_piece_of_listing, steps)

    def _next_piece_of_listing(self, steps: Iterator[None]) -> None:
        self._busy = False
        if self._ended or self._transport.is_closing():
            self._close_drop()
        else:
            self._list_on(steps)
            self._go_on()

    def _fetch(self, number: int, *, top: bool) -> None:
        """Answer RETR or TOP: at once if the message is in memory, otherwise in pieces."""
        drop = cast(Maildrop, self._drop)
        short = self._context.backpressure.is_short
        try:
            message = drop.fetch(number, limits.PIECE_GIVEN if short else limits.MESSAGE_GIVEN)
        except NotAtHandError:
            self._bring(number, top=top)
            return
        except Exception as error:
            self._refuse(number, error)
            return
        if not isinstance(message, Sequence):
            self._read_pieces(Transfer(message, number, top=top))
        elif top:
            self._machine.top([bytes(chunk) for chunk in message])
            self._figures.top += 1
        else:
            self._send(number, message)

    def _bring(self, number: int, *, top: bool) -> None:
        """Fetch a message after the layer has loaded it from elsewhere."""
        drop = cast(Maildrop, self._drop)
        self._busy = True

        def done(error: RefusedError | None) -> None:
            self._busy = False
            self._last = self._context.now
            if self._ended or self._transport.is_closing():
                self._close_drop()
                return
            if error is None:
                self._fetch(number, top=top)
            else:
                self._refuse(number, error)
            self._go_on()

        drop.bring(number, done)

    def _send(self, number: int, message: Sequence[Buffer]) -> None:
        self._machine.message(cast(Sequence[bytes], message))
        self._count_retrieved(number)

    def _count_retrieved(self, number: int) -> None:
        octets = cast(Maildrop, self._drop).size(number)
        self._figures.retr += 1
        self._figures.retr_octets += octets
        row = self._context.row
        row.add(Cell.RETRIEVED)
        row.add(Cell.RETRIEVED_OCTETS, octets)

    def _refuse(self, number: int, error: Exception) -> None:
        text = error.pop3 if isinstance(error, RefusedError) else RefusedError.pop3
        if not isinstance(error, RefusedError) or isinstance(error, DamagedError):
            self._context.row.add(Cell.DAMAGED)  # not: the node that has it does not answer
        if isinstance(error, DamagedError):
            self._context.row[Cell.DAMAGED_LOG] = error.log
        self._log(f"message {number}: {error}")
        self._machine.refused(text)

    def _read_pieces(self, transfer: Transfer) -> None:
        """Read the next pieces of a message in a thread, then send them."""
        context = self._context
        self._transfer = transfer
        self._busy = True

        def run() -> None:
            outcome: Pieces | Exception
            try:
                outcome = transfer.read()
            except Exception as error:
                outcome = error
            context.loop.call_soon_threadsafe(self._pieces_read, transfer, outcome)

        context.threads.submit(run)

    def _pieces_read(self, transfer: Transfer, outcome: Pieces | Exception) -> None:
        self._busy = False
        if self._transport.is_closing():
            self._close_drop()
        elif isinstance(outcome, Pieces):
            self._last = self._context.now
            if transfer.give(self._machine, outcome):
                self._end_transfer()
                if transfer.top:
                    self._figures.top += 1
                else:
                    self._count_retrieved(transfer.number)
            self._flush()
            self._go_on()
        elif transfer.has_begun:
            # Part of a message is sent and its log cannot be read: only hanging up tells the
            # client.
            self._log(f"message {transfer.number}: {outcome}")
            self._transport.abort()
        else:
            self._end_transfer()
            if isinstance(outcome, NotAtHandError):
                self._bring(transfer.number, top=transfer.top)
            else:
                self._refuse(transfer.number, outcome)
            self._go_on()

    def _end_transfer(self) -> None:
        """Release the log from which a message is read in pieces."""
        transfer, self._transfer = self._transfer, None
        if transfer is not None:
            transfer.close()

    # -- the end

    def _quit(self, event: Quit) -> None:
        drop = cast(Maildrop, self._drop)
        self._busy = True

        def done(error: RefusedError | None) -> None:
            self._busy = False
            if error is None:
                self._reason = "logged out"
                self._log_deleted(drop, event.deleted)
                self._machine.quit_done()
            else:
                self._reason = f"deletions failed: {error}"
                self._machine.quit_failed()
            self._close_drop()
            if not self._transport.is_closing():
                self._go_on()

        try:
            drop.delete(event.deleted, done)
        except Exception as error:
            done(RefusedError(f"{error!r}"))

    def _close_drop(self) -> None:
        self._end_transfer()
        super()._close_drop()

    # -- the log

    def _log_deleted(self, drop: Maildrop, numbers: Sequence[int]) -> None:
        """Count deletions that are durable, and log their unique ids."""
        if not numbers:
            return
        self._context.row.add(Cell.DELETED, len(numbers))
        self._figures.deleted += len(numbers)
        self._figures.deleted_octets += sum(map(drop.size, numbers))
        for at in range(0, len(numbers), IDS_PER_LINE):
            ids = ",".join(map(drop.uid, numbers[at : at + IDS_PER_LINE]))
            self._context.log.event("pop3", "deleted", self._who() | {"ids": ids})

    def _log_session(self) -> None:
        """Every session is logged in one line, however it ends, except a proxy's health check."""
        if self._service.proxied and not self._machine.commands:
            return
        figures = self._figures
        done = {
            "top": figures.top,
            "retr": f"{figures.retr}/{figures.retr_octets}",
            "del": f"{figures.deleted}/{figures.deleted_octets}",
            "seconds": round(self._context.now - self._began),
            "reason": self._reason,
        }
        log = self._context.log
        if self._mechanism == "none":  # never tried to log in: no failure of the client
            log.limited(self._network, "pop3", "session", self._who() | done)
        else:
            log.event("pop3", "session", self._who() | done)
