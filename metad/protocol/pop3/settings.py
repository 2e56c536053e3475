"""The settings shared by POP3 sessions of one kind of connection, and what CAPA announces of them.

Rules of this file:

* Data and pure functions only.
* Before login a capability describes any user; after login, that user.

RFC 2449 (CAPA, RESP-CODES, EXPIRE, LOGIN-DELAY), RFC 2595 (STLS), RFC 3206 (AUTH-RESP-CODE),
RFC 5034 (AUTH), RFC 6856 (UTF8, LANG).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from metad import limits
from metad.protocol.pop3.events import Personal

FOR_ALL: Final = Personal()


@dataclass(frozen=True, slots=True)
class Pop3Settings:
    """What a session may do, and its name.  Make it once per kind of connection.

    `plaintext`: whether a password may cross this connection in plain text (USER, SASL PLAIN).
    `stls`, `scram`: whether these are offered. `common`: capabilities that hold for every user;
    `expire_differs`: some keep mail longer; `login_delay_differs`: some may log in more often.
    `errors`: unknown, misplaced or malformed commands that end the session (Dovecot: 20).
    `login_commands`: commands allowed before a login. `masters`: users who may open any mailbox, in
    lower case.
    """

    hostname: str
    plaintext: bool
    implementation: str = "metad"
    errors: int = 20
    stls: bool = False
    scram: bool = False
    common: Personal = FOR_ALL
    expire_differs: bool = False
    login_delay_differs: bool = False
    login_commands: int = limits.POP3_LOGIN_COMMANDS
    masters: frozenset[str] = frozenset()
    greeting: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # No <...>: an angle bracket here would announce APOP (RFC 1939 section 7).
        object.__setattr__(self, "greeting", f"+OK metad ready at {self.hostname}\r\n".encode())


def mechanisms(settings: Pop3Settings) -> list[str]:
    """The SASL mechanisms offered on this connection."""
    found = ["SCRAM-SHA-256"] if settings.scram else []
    return [*found, "PLAIN"] if settings.plaintext else found


def _sasl(settings: Pop3Settings, _: Personal | None) -> str | None:
    names = mechanisms(settings)
    return " ".join(["SASL", *names]) if names else None


def _user(settings: Pop3Settings, _: Personal | None) -> str | None:
    return "USER" if settings.plaintext else None


def _stls(settings: Pop3Settings, personal: Personal | None) -> str | None:
    return "STLS" if settings.stls and personal is None else None


def _expire(settings: Pop3Settings, personal: Personal | None) -> str | None:
    """RFC 2449 section 6.7: before login the shortest of all users, and whether it differs."""
    days = (personal or settings.common).expire
    differs = " USER" if personal is None and settings.expire_differs else ""
    return f"EXPIRE {'NEVER' if days is None else days}{differs}"


def _login_delay(settings: Pop3Settings, personal: Personal | None) -> str | None:
    """RFC 2449 section 6.5: before login the longest of all users, and whether it differs."""
    seconds = (personal or settings.common).login_delay
    differs = " USER" if personal is None and settings.login_delay_differs else ""
    return f"LOGIN-DELAY {seconds}{differs}" if seconds or differs else None


# RFC 2449 section 6, RFC 2595 section 4, RFC 6856: a line, or a function that makes it from the
# settings and the user's own values (None: before login).  Only STLS vanishes at login.
CAPABILITIES: Final[tuple[str | Callable[[Pop3Settings, Personal | None], str | None], ...]] = (
    "TOP",
    "UIDL",
    "RESP-CODES",
    "AUTH-RESP-CODE",
    "PIPELINING",
    _expire,
    _login_delay,
    _user,
    _sasl,
    _stls,
    "UTF8 USER",
    "LANG",
)


def capabilities(settings: Pop3Settings, personal: Personal | None) -> list[str]:
    """The lines of the answer to CAPA (RFC 2449 section 5); `personal`: None before login."""
    found = [c if isinstance(c, str) else c(settings, personal) for c in CAPABILITIES]
    return [*filter(None, found), f"IMPLEMENTATION {settings.implementation}"]
