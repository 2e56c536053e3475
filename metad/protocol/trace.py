"""Trace headers, which the hub puts before a message (RFC 5321 section 4.4).

Rules of this file:

* Octets out; each header ends in its CR LF, and is folded before column 79 if possible.
* Nothing from a client is copied unless its syntax is safe in a header.
* No DNS, no clock: addresses and seconds are arguments.

`origin` is the same for a whole session between two EHLOs, and `date` for a whole second: the
caller should cache both, so that a message costs only the rest.
"""

from __future__ import annotations

import functools
import re
import time
from typing import Final

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)
# RFC 5321 section 4.1.2: Domain (with the underscore that many hosts have) or address-literal.
_LABEL: Final = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HELO: Final = re.compile(
    rb"(?=.{1,255}\Z)(?:%b(?:\.%b)*+\.?|\[[0-9.]+\]|\[IPv6:[0-9A-Fa-f:.]+\])" % (_LABEL, _LABEL)
)
_CONTROLS: Final = dict.fromkeys((*range(32), 127))


def origin(helo: bytes, address: str, hostname: str, with_protocol: str) -> bytes:
    """The beginning of a Received: header, up to "id".

    `helo`: as the client sent it; one that is not a domain or address literal is replaced by the
    literal of its address.  `address`: the client's IP address, "" on a Unix socket.
    """
    literal = _literal(address)
    name = helo if _HELO.fullmatch(helo) else literal or b"localhost"
    peer = b" (%b)" % literal if literal else b""
    return b"Received: from %b%b\r\n\tby %b with %b id " % (
        name,
        peer,
        hostname.encode(),
        with_protocol.encode(),
    )


def received(origin: bytes, message_id: str, date: bytes, recipient: str | None) -> bytes:
    """The Received: header of a message.

    `recipient`: only if the transaction has exactly one, as given in RCPT; otherwise the others
    would learn of it (RFC 5321 section 7.2).
    """
    name = message_id.encode()
    if recipient is None:
        return b"".join((origin, name, b";\r\n\t", date, b"\r\n"))
    address = recipient.encode() if recipient.isprintable() else _clean(recipient)
    return b"".join((origin, name, b"\r\n\tfor <", address, b">;\r\n\t", date, b"\r\n"))


@functools.lru_cache(maxsize=4)
def date(seconds: int) -> bytes:
    """RFC 5322 section 3.3 date-time in UTC of whole seconds since the epoch."""
    year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(seconds)
    return (
        f"{_DAYS[weekday]}, {day} {_MONTHS[month - 1]} {year:04}"
        f" {hour:02}:{minute:02}:{second:02} +0000"
    ).encode()


def return_path(sender: str) -> bytes:
    """`Return-Path:`, which begins a delivered message; "" is the null path."""
    return b"Return-Path: <%b>\r\n" % _clean(sender)


def delivered_to(address: str) -> bytes:
    """`Delivered-To:`, with the address as given in RCPT."""
    return b"Delivered-To: %b\r\n" % _clean(address)


def in_front(sender: str, address: str) -> bytes:
    """The lines sent before the stored message."""
    return return_path(sender) + delivered_to(address)


def _literal(address: str) -> bytes:
    """RFC 5321 section 4.1.3: [192.0.2.1], [IPv6:2001:db8::1]."""
    if not address:
        return b""
    bare = address.partition("%")[0]  # no zone: it means nothing elsewhere
    return f"[IPv6:{bare}]".encode() if ":" in bare else f"[{bare}]".encode()


def _clean(address: str) -> bytes:
    """An address from SMTP has no control characters; they are removed from any other address
    here."""
    if not address.isprintable():
        address = address.translate(_CONTROLS)
    return address.encode("utf-8", "replace")


# Octets of `in_front` without its two addresses, whose UTF-8 must be added.  Addresses in the store
# are without control characters, which `in_front` would leave out.
IN_FRONT_SIZE: Final = len(in_front("", ""))
