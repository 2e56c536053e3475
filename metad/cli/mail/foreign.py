"""What an import reads: messages of other servers, and items that could not be read.

Rules of this file:

* A message is prepared as it will be stored: CR LF, whole lines, no NUL.  Nothing is changed except
  what POP3 cannot carry.  Return-Path and Delivered-To at its head become its envelope, from which
  every RETR restores them.
* One bad item never ends an import: its reader yields a `BadItem` and continues.
* An intentional omission is a `Note`: an import drops nothing silently.
"""

from __future__ import annotations

import os
import re
import time
from typing import NamedTuple

from metad.protocol.address import AddressError, parse_mailbox
from metad.protocol.dots import Repairer

_UID = re.compile(r"[!-~]{1,70}", re.ASCII)  # RFC 1939 section 7


class Foreign(NamedTuple):
    """A message of another server.  `time_us`: when it arrived there, 0 if unknown."""

    place: str
    octets: bytes
    uid: str = ""
    time_us: int = 0
    sender: str = ""
    address: str = ""


class BadItem(NamedTuple):
    """A message that could not be read, and why."""

    place: str
    reason: str


class Note(NamedTuple):
    """Something that was not imported on purpose."""

    text: str


class Reached(NamedTuple):
    """How much of the source has been read: messages of a directory or server, bytes of a file."""

    done: int
    total: int


Item = Foreign | BadItem | Note
SourceItem = Item | Reached


def shown(name: str | bytes | os.PathLike[str]) -> str:
    """A file name for messages: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def foreign(
    place: str, octets: bytes, uid: str = "", time_us: int = 0, sender: str = ""
) -> Foreign:
    """A message as it will be stored.  A time before 1970 or in the future is unknown."""
    clean = Repairer(double_lone_dots=False).feed(octets, final=True).replace(b"\0", b"\x80")
    if clean and not clean.endswith(b"\r\n"):
        clean += b"\r\n"
    address = ""
    clean, path = _take(clean, b"return-path:")
    if path is not None:
        sender = _decoded_address(path.strip().strip(b"<>"))
        clean, delivered = _take(clean, b"delivered-to:")
        address = _decoded_address(delivered.strip()) if delivered is not None else ""
    known = 0 < time_us <= time.time_ns() // 1000
    uid = uid if _UID.fullmatch(uid) else ""
    return Foreign(place, clean, uid, time_us if known else 0, sender, address)


def _take(octets: bytes, name: bytes) -> tuple[bytes, bytes | None]:
    """The message without its first field, and the field's value, if it is `name` on one line."""
    end = octets.find(b"\r\n") + 2
    first = octets[: end - 2]
    if end < 2 or first[: len(name)].lower() != name or octets[end : end + 1] in (b" ", b"\t"):
        return octets, None
    return octets[end:], first[len(name) :]


def _decoded_address(octets: bytes) -> str:
    """An address that is valid in an envelope; otherwise empty."""
    try:
        text = octets.decode()
        parse_mailbox(text)
    except (UnicodeDecodeError, AddressError):
        return ""
    return text


def sender_of(octets: bytes) -> str:
    """The sender on an mbox separator, if it is an address; otherwise empty."""
    return _decoded_address(octets)
