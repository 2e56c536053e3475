"""The actions of the SMTP commands, except those that lead to a message (message.py).

Rules of this file:

* `argument` has no surrounding blanks; `row` is the table's, with the state that follows.
* A handler gives the event that the session must handle, or None.
"""

from __future__ import annotations

from metad import limits
from metad.errors import Reply
from metad.protocol.smtp import table as states
from metad.protocol.smtp.arguments import parse_mail, parse_rcpt
from metad.protocol.smtp.base import Row
from metad.protocol.smtp.events import Aborted, Event, StartTls
from metad.protocol.smtp.message import MessageIntake
from metad.protocol.smtp.table import State


class Commands(MessageIntake):
    """An action `x` of the table is the method `_do_x`."""

    __slots__ = ()

    def _do_refuse(self, _argument: bytes, row: Row) -> Event | None:
        self._refuse(row.reply)
        return None

    def _do_say(self, _argument: bytes, row: Row) -> Event | None:
        self._say_idly(row.reply)
        return None

    def _do_help(self, _argument: bytes, _row: Row) -> Event | None:
        self._say_idly(self._settings.help)
        return None

    def _do_verify(self, _argument: bytes, _row: Row) -> Event | None:
        self._say_idly(states.CANNOT_VERIFY)
        return None

    def _do_http(self, _argument: bytes, row: Row) -> Event | None:
        self._end(row.reply)
        return None

    def _do_quit(self, _argument: bytes, _row: Row) -> Event | None:
        self._end(states.BYE)
        return None

    def _do_helo(self, argument: bytes, row: Row) -> Event | None:
        if self._idles():
            return None
        self._say(self._settings.helo)
        return self._greeted(argument, row.done, extended=False)

    def _do_ehlo(self, argument: bytes, row: Row) -> Event | None:
        if self._idles():
            return None
        settings = self._settings
        self.output.append(settings.ehlo_tls if self.tls else settings.ehlo)
        return self._greeted(argument, row.done, extended=True)

    def _do_reset(self, _argument: bytes, row: Row) -> Event | None:
        if self._idles():
            return None
        self._say(states.OK)
        return self._give_up(row.done)

    def _do_start_tls(self, _argument: bytes, _row: Row) -> Event | None:
        if len(self._lines):
            self._end(states.AFTER_START_TLS)
            return None
        self._say(states.START_TLS)
        self._due = StartTls(states.START_TLS)
        return self._due

    def _do_mail(self, argument: bytes, _row: Row) -> Event | None:
        mail = parse_mail(argument, strict=self._settings.strict)
        if isinstance(mail, Reply):
            self._refuse(mail)
            return None
        if mail.size is not None and mail.size > self._settings.message_size:
            self._refuse(states.TOO_LARGE)
            return None
        self.utf8 = mail.utf8
        self._due = mail
        return mail

    def _do_rcpt(self, argument: bytes, _row: Row) -> Event | None:
        rcpt = parse_rcpt(argument, utf8=self.utf8, strict=self._settings.strict)
        if isinstance(rcpt, Reply):
            self._refuse(rcpt)
            return None
        if self.accepted >= self._settings.recipients:
            self._refuse_excess()
            return None
        self._due = rcpt
        return rcpt

    def _refuse_excess(self) -> None:
        """A client may send a long list in one group; only an excessive one counts."""
        self._excess += 1
        self._say(states.TOO_MANY_RECIPIENTS)
        self.refusals.append((self._line, states.TOO_MANY_RECIPIENTS, True))
        if self._excess > limits.RECIPIENT_OVERSHOOT:
            self._idles()

    def _say_idly(self, reply: Reply) -> None:
        """Reply to a command that leads to no message."""
        if not self._idles():
            self._say(reply)

    def _greeted(self, helo: bytes, state: State, *, extended: bool) -> Event | None:
        """EHLO ends a transaction, as RSET does (RFC 5321 section 4.1.4)."""
        self.helo = helo
        self.greetings += 1
        self.extended = extended
        return self._give_up(state)

    def _give_up(self, state: State) -> Event | None:
        """Forget the transaction; if a message was begun, the session must know."""
        begun = self._state.message
        self._forget(state)
        return Aborted(None) if begun else None
