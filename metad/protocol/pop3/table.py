"""The tables of POP3: states, commands, what an argument may be, what is announced.

Rules of this file:

* Data and pure functions only; `pop3.Pop3` is the machine that walks these tables.
* A command that is not in the table of its state does not exist there.  Each has a *check*
  (what its argument must be: parses it, or raises ArgumentError) and a *proceed* (the method
  of Pop3 that does it, given what the check returned).
* A new command is a row here and a method there.

RFC 1939 (commands), RFC 2449 (CAPA, RESP-CODES, EXPIRE, LOGIN-DELAY), RFC 2595 (STLS), RFC 3206
(AUTH-RESP-CODE), RFC 5034 (AUTH), RFC 6856 (UTF8, LANG).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from metad import limits
from metad.limits import POP3_COMMAND_LINE as COMMAND_LIMIT
from metad.limits import SASL_RESPONSE as RESPONSE_LIMIT
from metad.protocol.pop3.events import Personal
from metad.protocol.pop3.languages import is_tag

__all__ = [
    "COMMANDS",
    "COMMAND_LIMIT",
    "RESPONSE_LIMIT",
    "Pop3Settings",
    "State",
    "capabilities",
]

# Answers queued before the machine stops to be emptied: else 10,000 pipelined LISTs of a full
# maildrop, 60 kB of input, would ask for gigabytes at once.
OUTPUT_LIMIT: Final = 262_144
# Ten digits hold any message number or line count that RFC 1939 clients can mean.
_DIGITS: Final = 10


class State(enum.Enum):
    """RFC 1939 section 3; CHALLENGE is AUTHORIZATION while a SASL response is expected."""

    __hash__ = object.__hash__  # Enum's own is Python code, and each command looks its state up
    AUTHORIZATION = enum.auto()
    CHALLENGE = enum.auto()
    TRANSACTION = enum.auto()
    UPDATE = enum.auto()


class ArgumentError(ValueError):
    """The argument is not what the command takes; `str()` is the text after `-ERR `."""


def nothing(argument: bytes) -> None:
    """No argument.  Blanks at the end of a line are forgiven everywhere but in PASS."""
    if argument.strip(b" "):
        raise ArgumentError("this command takes no argument")


def number(argument: bytes) -> int:
    """One decimal number; nothing else that int() would take (signs, underscores, blanks)."""
    digits = argument.rstrip(b" ")
    if not digits.isdigit() or len(digits) > _DIGITS:
        raise ArgumentError("a message number is needed")
    return int(digits)


def optional_number(argument: bytes) -> int | None:
    return number(argument) if argument.strip(b" ") else None


def number_and_lines(argument: bytes) -> tuple[int, int]:
    """TOP: message number and a non-negative count of lines, one space between."""
    first, _, second = argument.rstrip(b" ").partition(b" ")
    try:
        return number(first), number(second)
    except ArgumentError:
        raise ArgumentError("TOP needs a message number and a number of lines") from None


def user_name(argument: bytes) -> str:
    """UTF-8 text without control characters (NUL never gets here: pop3_lines).

    Inner blanks belong to it: a quoted local part may have them.
    """
    try:
        name = argument.rstrip(b" ").decode()
    except UnicodeDecodeError:
        name = ""
    if not name or not name.isprintable():
        raise ArgumentError("a user name is needed")
    return name


def password(argument: bytes) -> bytes:
    """Everything after `PASS `, blanks too (RFC 1939 section 7)."""
    if not argument:
        raise ArgumentError("a password is needed")
    return argument


def mechanism(argument: bytes) -> tuple[bytes, bytes | None]:
    """AUTH: (mechanism in upper case or b"", initial response still in base64 or None)."""
    name, space, initial = argument.rstrip(b" ").partition(b" ")
    return name.upper(), initial if space else None


def language(argument: bytes) -> str | None:
    """LANG: a language tag, "*" or nothing (RFC 6856 section 3)."""
    tag = argument.strip(b" ").decode("ascii", "replace")
    if tag and tag != "*" and not is_tag(tag):
        raise ArgumentError("that is no language tag")
    return tag or None


class Rule(NamedTuple):
    check: Callable[[bytes], Any]
    proceed: str  # a method of Pop3


COMMANDS: Final[dict[State, dict[bytes, Rule]]] = {
    State.AUTHORIZATION: {
        b"USER": Rule(user_name, "_user_command"),
        b"PASS": Rule(password, "_pass_command"),
        b"AUTH": Rule(mechanism, "_auth"),
        b"CAPA": Rule(nothing, "_capa"),
        b"STLS": Rule(nothing, "_stls"),
        b"UTF8": Rule(nothing, "_utf8_command"),
        b"LANG": Rule(language, "_lang"),
        b"QUIT": Rule(nothing, "_leave"),
    },
    State.CHALLENGE: {},  # its lines are SASL responses, not commands
    State.TRANSACTION: {
        b"STAT": Rule(nothing, "_stat"),
        b"LIST": Rule(optional_number, "_list"),
        b"UIDL": Rule(optional_number, "_uidl"),
        b"RETR": Rule(number, "_retr"),
        b"TOP": Rule(number_and_lines, "_top"),
        b"DELE": Rule(number, "_dele"),
        b"RSET": Rule(nothing, "_rset"),
        b"NOOP": Rule(nothing, "_noop"),
        b"CAPA": Rule(nothing, "_capa"),
        b"LANG": Rule(language, "_lang"),
        b"QUIT": Rule(nothing, "_quit"),
    },
    State.UPDATE: {},
}
VERBS: Final = frozenset(verb for commands in COMMANDS.values() for verb in commands)


FOR_ALL: Final = Personal()


@dataclass(frozen=True, slots=True)
class Pop3Settings:
    """What a session is allowed and called.  Make it once per kind of connection, not each time.

    plaintext: whether a password may cross this connection readably (USER, SASL PLAIN).
    stls, scram: whether these are offered.
    expire: what holds for every user; `expire_differs`: some have more; likewise login_delay,
    of which some have less.
    errors: how many unknown, misplaced or malformed commands end the session (Dovecot: 20).
    login_commands: how many commands there may be before a login.
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
    """RFC 2449 section 6.7: before login the least of all users', and that it differs."""
    days = (personal or settings.common).expire
    differs = " USER" if personal is None and settings.expire_differs else ""
    return f"EXPIRE {'NEVER' if days is None else days}{differs}"


def _login_delay(settings: Pop3Settings, personal: Personal | None) -> str | None:
    """RFC 2449 section 6.5: before login the most of all users', and that it differs."""
    seconds = (personal or settings.common).login_delay
    differs = " USER" if personal is None and settings.login_delay_differs else ""
    return f"LOGIN-DELAY {seconds}{differs}" if seconds or differs else None


# RFC 2449 section 6, RFC 2595 section 4, RFC 6856: a tag with what belongs to it, or what says
# that for a connection and the user logged in (None: nobody is).  Only STLS vanishes at login.
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
