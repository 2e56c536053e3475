"""Logging in: USER and PASS, and the SASL exchanges of AUTH (RFC 1939, RFC 5034).

Rules of this file:

* One attribute, `_responder`, holds the mechanism in use: it takes the client's next message.
* Every refusal for wrong credentials is the same and does not reveal which of them is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from metad.protocol import sasl, scram
from metad.protocol.pop3.base import Pop3Base
from metad.protocol.pop3.events import Drop, Event, Login, Personal, ScramLogin, ScramUser
from metad.protocol.pop3.marks import Maildrop
from metad.protocol.pop3.settings import mechanisms

# RFC 3206 section 6: every refusal for wrong credentials carries [AUTH].
AUTH_FAILED: Final = "[AUTH] authentication failed"
NO_PLAINTEXT: Final = "plaintext authentication is refused on this connection"


class Authentication(Pop3Base):
    """The commands of AUTHORIZATION that lead to a login, and the answers to their events."""

    __slots__ = ()

    def _user_command(self, name: str) -> None:
        if self._settings.plaintext:
            self._user = name
            self._ok("send the password")
        else:
            self._refuse(NO_PLAINTEXT)

    def _pass_command(self, password: bytes) -> Login | None:
        user = self._user
        if user is None:
            self._refuse("USER comes first" if self._settings.plaintext else NO_PLAINTEXT)
            return None
        self._user = None
        return self._login(user, user, password)

    def _auth(self, argument: tuple[bytes, bytes | None]) -> Event | None:
        mechanism, initial = argument
        settings = self._settings
        if not mechanism:  # in no RFC, but many clients send it (answered like Dovecot)
            names = "".join(f"{name}\r\n" for name in mechanisms(settings))
            self._say(b"+OK\r\n%b.\r\n" % names.encode())
            return None
        if mechanism == b"PLAIN" and not settings.plaintext:
            self._refuse(NO_PLAINTEXT)
            return None
        responder = _MECHANISMS.get(mechanism)
        if responder is None or (mechanism == b"SCRAM-SHA-256" and not settings.scram):
            self._refuse("unknown authentication mechanism")
            return None
        self._user = None
        self._responder = responder.__get__(self)
        if initial is None:
            self._challenge(b"")
            return None
        return self._exchange(initial, sasl.decode_initial)

    def _response(self, line: bytes) -> Event | None:
        return self._exchange(line, sasl.decode)

    def _exchange(self, text: bytes, decode: Callable[[bytes], bytes]) -> Event | None:
        """Pass the client's next message to the mechanism."""
        try:
            return self._responder(decode(text))
        except sasl.SaslError as error:
            self._state = self._row.refused
            self._error(str(error))
            return None

    def _challenge(self, message: bytes, responder: Any = None) -> None:
        """Send a message of the exchange; the next line is the response to it."""
        self._state = self._row.challenge
        if responder is not None:
            self._responder = responder
        self._say(b"+ %b\r\n" % sasl.encode(message))

    def _plain(self, message: bytes) -> Event | None:
        return self._login(*sasl.plain(message))

    def _login(self, mailbox: str, user: str, password: bytes) -> Login:
        mailbox, master = self._acting(mailbox, user)
        return Login(mailbox, password, master)

    def _acting(self, mailbox: str, user: str) -> tuple[str, str | None]:
        """The mailbox to open, and the master user who opens it, or None.

        Only a master user may open the mailbox of another, and may write "mailbox*master" for both,
        as with Dovecot.
        """
        if mailbox == user and self._settings.masters:
            name, star, master = user.rpartition("*")
            if star and name and master.lower() in self._settings.masters:
                return name, master
        if mailbox == user:
            return user, None
        if user.lower() not in self._settings.masters:
            raise sasl.SaslError("one user cannot act for another")
        return mailbox, user

    def _scram_first(self, message: bytes) -> Event | None:
        exchange = self._scram = scram.Exchange(message)
        _, master = self._acting(exchange.mailbox, exchange.user)
        return ScramUser(master or exchange.user)

    def _scram_final(self, message: bytes) -> Event | None:
        exchange = self._scram
        if not exchange.is_proven(message):
            return self._scram_login(proven=False)
        self._challenge(exchange.server_final, self._scram_end)
        return None

    def _scram_end(self, message: bytes) -> Event | None:
        """RFC 5034 section 4: an empty line shows that the client has seen our proof."""
        if message:
            raise sasl.SaslError("not a SCRAM message")
        return self._scram_login(proven=True)

    def _scram_login(self, *, proven: bool) -> ScramLogin:
        mailbox, master = self._acting(self._scram.mailbox, self._scram.user)
        return ScramLogin(mailbox, proven, master)

    def login_ok(self, drop: Drop, personal: Personal | None = None) -> None:
        """Answers Login and ScramLogin: the session has its maildrop.

        `personal`: this user's own capabilities, if different from those of all users.
        """
        if self._answer(Login, ScramLogin):
            self._state = self._row.done
            self._personal = personal or self._settings.common
            self._maildrop = Maildrop(drop)
            self._summary()

    def login_failed(self, text: str = AUTH_FAILED) -> None:
        """Answers Login, ScramUser and ScramLogin; the client may try again.

        `text` begins with its response code.
        """
        if self._answer(Login, ScramUser, ScramLogin):
            self._state = self._row.refused
            self._refuse(text)

    def scram_keys(self, keys: scram.Keys, nonce: bytes) -> None:
        """Answers ScramUser; `nonce`: printable ASCII without commas, random."""
        if self._answer(ScramUser):
            self._challenge(self._scram.server_first(keys, nonce), self._scram_final)


_MECHANISMS: Final[dict[bytes, Any]] = {
    b"PLAIN": Authentication._plain,
    b"SCRAM-SHA-256": Authentication._scram_first,
}
