"""The POP3 machine as data: its states, what each command does in each, what an argument may be.

Rules of this file:

* Data and pure functions only; `Pop3` is the machine that walks this table.
* A command that is not in a state's rows does not exist there.  Each has a *check* (parses its
  argument, or raises ArgumentError), a *proceed* (the method of Pop3 that does it, given what the
  check returned) and the states that can follow.
* The machine takes every next state from here, and the diagram in docs/protocols.md is made from
  here (tools/diagrams).
* A new command is a row here and a method there.

RFC 1939 (commands), RFC 2449 (CAPA), RFC 2595 (STLS), RFC 5034 (AUTH), RFC 6856 (UTF8, LANG).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from metad.protocol.pop3.languages import is_tag

# Octets of queued answers at which the machine waits until they are taken: otherwise 10,000
# pipelined LISTs of a full maildrop, 60 kB of input, would produce gigabytes at once.
OUTPUT_LIMIT: Final = 262_144
# Ten digits are enough for any message number or line count of RFC 1939.
_DIGITS: Final = 10


class State(enum.Enum):
    """RFC 1939 section 3; CHALLENGE is AUTHORIZATION while a SASL response is expected; in CLOSED
    nothing more is read."""

    __hash__ = object.__hash__  # Enum's own is Python code, and each command looks up its state
    AUTHORIZATION = enum.auto()
    CHALLENGE = enum.auto()
    TRANSACTION = enum.auto()
    UPDATE = enum.auto()
    CLOSED = enum.auto()


class ArgumentError(ValueError):
    """The argument is invalid for the command; `str()` is the text after `-ERR `."""


def nothing(argument: bytes) -> None:
    """No argument.  Blanks at the end of a line are ignored everywhere except in PASS."""
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
    """UTF-8 text without control characters.

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
        raise ArgumentError("not a language tag")
    return tag or None


class Rule(NamedTuple):
    """One row.  None stands for the row's own state.

    `done`: the state that follows the command, or the session's yes to it; `refused`: the one that
    follows the session's no; `challenge`: the one that follows a message of a SASL exchange.
    """

    check: Callable[[bytes], Any]
    proceed: str  # a method of Pop3
    done: State | None = None
    refused: State | None = None
    challenge: State | None = None


def _as_it_is(line: bytes) -> bytes:
    return line


# These two are not verbs, because no verb has a blank in it.
RESPONSE: Final = b"SASL response"
END: Final = b"end of QUIT"

_AUTHORIZATION, _CHALLENGE, _TRANSACTION, _UPDATE, _CLOSED = State
COMMANDS: Final[dict[State, dict[bytes, Rule]]] = {
    State.AUTHORIZATION: {
        b"USER": Rule(user_name, "_user_command"),
        b"PASS": Rule(password, "_pass_command", _TRANSACTION, _AUTHORIZATION),
        b"AUTH": Rule(mechanism, "_auth", _TRANSACTION, _AUTHORIZATION, _CHALLENGE),
        b"CAPA": Rule(nothing, "_capa"),
        b"STLS": Rule(nothing, "_stls"),
        b"UTF8": Rule(nothing, "_utf8_command"),
        b"LANG": Rule(language, "_lang"),
        b"QUIT": Rule(nothing, "_leave", _CLOSED),
    },
    State.CHALLENGE: {  # its lines are SASL responses, not commands
        RESPONSE: Rule(_as_it_is, "_response", _TRANSACTION, _AUTHORIZATION, _CHALLENGE),
    },
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
        b"QUIT": Rule(nothing, "_quit", _UPDATE),
    },
    State.UPDATE: {
        END: Rule(nothing, "quit_done", _CLOSED, _CLOSED),
    },
    State.CLOSED: {},
}
# Commands that need the listing of the maildrop.
LISTED: Final = frozenset((b"LIST", b"UIDL", b"RETR", b"TOP", b"DELE"))
VERBS: Final = frozenset(verb for rows in COMMANDS.values() for verb in rows if b" " not in verb)
