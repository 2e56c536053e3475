"""The arguments of MAIL, RCPT and BDAT (RFC 5321 sections 4.1.1.2, 4.1.1.3 and 4.1.2).

Rules of this file:

* Octets in; a value out, or the Reply to the bad command.  Nothing raises.
* A pattern for the usual form is tried first, the whole grammar only if it fails.
* Of the obsolete forms, RFC 5321 requires source routes (appendix C).  Beyond it, as Postfix does:
  a sender without a domain and, unless `strict`, blanks after the colon and no angle brackets.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from metad.errors import Reply
from metad.protocol.address import (
    LABEL_LIMIT,
    LOCAL_LIMIT,
    AddressError,
    parse_local,
    parse_mailbox,
)
from metad.protocol.smtp.events import MailFrom, RcptTo

MAIL_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: MAIL FROM:<address>")
RCPT_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: RCPT TO:<address>")
BDAT_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: BDAT count [LAST]")
_BAD_SENDER: Final = Reply(501, "5.1.7", "Bad sender address syntax")
_BAD_RECIPIENT: Final = Reply(501, "5.1.3", "Bad recipient address syntax")
_BAD_PARAMETER: Final = Reply(501, "5.5.4", "Bad parameter syntax")
_UNSUPPORTED: Final = Reply(555, "5.5.4", "Unsupported option")
_NOT_UTF8: Final = Reply(553, "5.6.7", "Address requires SMTPUTF8")  # RFC 6531 section 3.5
_BINARY: Final = Reply(501, "5.5.4", "BODY=BINARYMIME is not supported")

# A domain is runs of letters and digits, with one dot or some hyphens between them: so nothing is
# matched twice.  `has_long_part` checks the limits.  A group of several items is never possessive:
# one that fails in its middle keeps what it has matched, in Python before 3.11.5.
_ADDRESS: Final = (
    rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++)*"
    rb"@[A-Za-z0-9]++(?:(?:\.|-++)[A-Za-z0-9]++)*"
)
_REST: Final = rb"(?: ++(.++))?"
# Whole lines in the usual form: one match frames and checks them (see `Smtp`).
QUICK_MAIL: Final = re.compile(
    rb"(?:MAIL FROM|mail FROM):<(" + _ADDRESS + rb"|)>"
    rb"(?: (?:SIZE|size)=([0-9]{1,20}))?(?: BODY=(?:8BITMIME|7BIT))?\r\n"
)
QUICK_RCPT: Final = re.compile(rb"(?:RCPT TO|rcpt TO):<(" + _ADDRESS + rb")>\r\n")
_PLAIN_MAIL: Final = re.compile(rb"(?i:FROM): *+<(" + _ADDRESS + rb"|)>" + _REST)
_PLAIN_RCPT: Final = re.compile(rb"(?i:TO): *+<(" + _ADDRESS + rb")>" + _REST)
# An address of this length has no part that is too long.
SHORT: Final = LABEL_LIMIT

# A path ends at the first ">" outside quotes.
_PATH: Final = rb'<((?:[^<>"\\\x00-\x20\x7f]|"(?:[^"\\]|\\.)*+")*+)>'
_ANY_MAIL: Final = re.compile(rb"(?i:FROM): *+" + _PATH + _REST, re.DOTALL)
_ANY_RCPT: Final = re.compile(rb"(?i:TO): *+" + _PATH + _REST, re.DOTALL)
_NAKED: Final = rb"([^<>\x00-\x20\x7f]++)"
_NAKED_MAIL: Final = re.compile(rb"(?i:FROM): *+" + _NAKED + _REST, re.DOTALL)
_NAKED_RCPT: Final = re.compile(rb"(?i:TO): *+" + _NAKED + _REST, re.DOTALL)
_ROUTE: Final = re.compile(r"@[^@:,]+(?:,@[^@:,]+)*:")

# RFC 5321 section 4.1.2: esmtp-param; RFC 6531 section 3.3 lets values hold UTF-8.
_PARAMETER: Final = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\x80-\xff]+))?")
_SIZE: Final = re.compile(rb"[0-9]{1,20}")  # RFC 1870 section 6.1: at most 20 digits
_BDAT: Final = re.compile(rb"([0-9]{1,20})(?: ++((?i:LAST)))?")


class Chunk(NamedTuple):
    """BDAT: the number of octets that follow, and whether they are the last of the message."""

    octets: int
    last: bool


def has_long_part(address: bytes) -> bool:
    """Whether a part of an address in the usual form may be beyond its limit."""
    if len(address) <= SHORT:
        return False
    domain = address.rpartition(b"@")[2]
    return len(address) > LOCAL_LIMIT or max(map(len, domain.split(b"."))) > LABEL_LIMIT


def parse_mail(argument: bytes, *, strict: bool = False) -> MailFrom | Reply:
    """`FROM:<address> [SIZE=n] [BODY=7BIT|8BITMIME] [SMTPUTF8]`."""
    if strict and argument[5:6] != b"<":
        return MAIL_SYNTAX
    match = _PLAIN_MAIL.fullmatch(argument)
    if match is None or has_long_part(match[1]):
        return _mail_the_long_way(argument)
    address, parameters = match.groups()
    if parameters is None:
        return MailFrom(address.decode(), None, False)
    return _with_parameters(address.decode(), parameters)


def parse_rcpt(argument: bytes, *, utf8: bool, strict: bool = False) -> RcptTo | Reply:
    """`TO:<address>`; `utf8`: MAIL had SMTPUTF8."""
    if strict and argument[3:4] != b"<":
        return RCPT_SYNTAX
    match = _PLAIN_RCPT.fullmatch(argument)
    if match is None or has_long_part(match[1]):
        return _rcpt_the_long_way(argument, utf8)
    address, parameters = match.groups()
    if parameters is not None:
        return _UNSUPPORTED
    return RcptTo(address.decode())


def parse_bdat(argument: bytes) -> Chunk | None:
    """`count [LAST]` (RFC 3030 section 2); None: something else."""
    match = _BDAT.fullmatch(argument)
    return None if match is None else Chunk(int(match[1]), match[2] is not None)


def _mail_the_long_way(argument: bytes) -> MailFrom | Reply:
    match = _ANY_MAIL.fullmatch(argument) or _NAKED_MAIL.fullmatch(argument)
    if match is None:
        return MAIL_SYNTAX
    address = _path(match[1])
    if address is None or not (_is_mailbox(address) or _is_local(address)):
        return _BAD_SENDER
    mail = _with_parameters(address, match[2] or b"")
    if isinstance(mail, MailFrom) and not (mail.utf8 or address.isascii()):
        return _NOT_UTF8
    return mail


def _rcpt_the_long_way(argument: bytes, utf8: bool) -> RcptTo | Reply:
    match = _ANY_RCPT.fullmatch(argument) or _NAKED_RCPT.fullmatch(argument)
    if match is None:
        return RCPT_SYNTAX
    address = _path(match[1])
    # RFC 5321 section 4.1.1.3: <postmaster>, in any case, needs no domain.
    if address is None or not (_is_mailbox(address) or address.lower() == "postmaster"):
        return _BAD_RECIPIENT
    if match[2] is not None:
        return _UNSUPPORTED
    if not (utf8 or address.isascii()):
        return _NOT_UTF8
    return RcptTo(address)


def _path(octets: bytes) -> str | None:
    """The address in a path, its source route dropped; None: it is not UTF-8."""
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        return None
    route = _ROUTE.match(text)
    return text[route.end() :] if route else text


def _is_mailbox(address: str) -> bool:
    try:
        parse_mailbox(address)
    except AddressError:
        return False
    return True


def _is_local(address: str) -> bool:
    try:
        parse_local(address)
    except AddressError:
        return False
    return True


def _with_parameters(sender: str, octets: bytes) -> MailFrom | Reply:
    """The parameters of MAIL, each at most once (RFC 5321 section 4.1.1.11)."""
    size: int | None = None
    seen: set[bytes] = set()
    for word in octets.split():
        match = _PARAMETER.fullmatch(word)
        if match is None:
            return _BAD_PARAMETER
        keyword, value = match[1].upper(), match[2]
        check = _PARAMETERS.get(keyword)
        if check is None:
            return _UNSUPPORTED
        refusal = check(value)
        if refusal is not None or keyword in seen:
            return refusal or _BAD_PARAMETER
        seen.add(keyword)
        if keyword == b"SIZE":
            size = int(value)
    return MailFrom(sender, size, b"SMTPUTF8" in seen)


def _check_size(value: bytes | None) -> Reply | None:
    return None if value is not None and _SIZE.fullmatch(value) else _BAD_PARAMETER


def _check_body(value: bytes | None) -> Reply | None:
    body = (value or b"").upper()
    if body == b"BINARYMIME":  # RFC 3030 section 3: not announced, so refused by name
        return _BINARY
    return None if body in {b"7BIT", b"8BITMIME"} else _BAD_PARAMETER


def _check_utf8(value: bytes | None) -> Reply | None:
    return None if value is None else _BAD_PARAMETER


_PARAMETERS: Final = {b"SIZE": _check_size, b"BODY": _check_body, b"SMTPUTF8": _check_utf8}
