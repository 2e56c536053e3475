"""mbox files: their messages (RFC 4155), and new ones (mboxrd).

Rules of this file:

* A message begins at a whole separator line, "From ADDRESS DATE", at the beginning of the file or
  after an empty line.  A line of text such as "From now on we meet at ten." is not one.
* The internal message that UW-IMAP and Alpine put first in a folder is left out.
"""

from __future__ import annotations

import calendar
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from metad.cli.mail.foreign import (
    Foreign,
    Item,
    Note,
    Reached,
    SourceItem,
    foreign,
    sender_of,
    shown,
)
from metad.errors import CannotCreateError, DataError, OsError

# From a@b Sat Jan  3 01:05:34 1996, with the time zones that programs put before or after the
# year, and UUCP's "remote from".
_SEPARATOR = re.compile(
    rb"From (?:(.*?) +)?"
    rb"((?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +"
    rb"(?:(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +[0-9]{1,2}"
    rb"|[0-9]{1,2} +(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec))"
    rb" +[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?"
    rb"(?: +[A-Z][A-Za-z]{1,4}| +[-+][0-9]{4}){0,2} +[0-9]{4})"
    rb"(?: +[-+]?[0-9]{4}| +[A-Z][A-Za-z]{1,4}){0,2}(?: +remote from .*)?[ \t]*\r?\n?"
)
_MONTH = re.compile(r"\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b")
_DAY = re.compile(r"(?<![0-9:])([0-9]{1,2})(?![0-9:])")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")
_ZONE = re.compile(r"([-+])([0-9]{2})([0-9]{2})")
_YEAR = re.compile(r"(?<![-+0-9])([0-9]{4})(?![0-9])")
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_QUOTED_FROM = re.compile(rb"(?m)^>(>*From )")
_UIDL = re.compile(rb"(?im)^X-UIDL:[ \t]*([!-~]{1,70})[ \t]*\r?$")
_INTERNAL = re.compile(rb"(?im)^Subject:[ \t]*DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA")


def read_mbox(path: Path) -> Iterator[SourceItem]:
    """Every message of an mbox file.  Raises DataError (not an mbox file) and OsError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            yield from _messages(shown(path), file, os.fstat(fd).st_size)
    except OSError as error:
        raise OsError.of(error, shown(path)) from None


def _messages(name: str, file: IO[bytes], size: int) -> Iterator[SourceItem]:
    held: list[bytes] = []
    start, after_blank = 0, True
    for number, line in enumerate(file, 1):
        if after_blank and line.startswith(b"From ") and _SEPARATOR.fullmatch(line):
            if start:
                yield _message(f"{name}:{start}", held)
                yield Reached(file.tell(), size)
            held, start = [], number
        elif not start and line.strip():
            raise DataError(
                f"{name}:{number}: not an mbox file: no separator line",
                remedy="for a directory of files give maildir:DIR",
            )
        after_blank = not line.strip(b"\r\n")
        held.append(line)
    if start:
        yield _message(f"{name}:{start}", held)


def _message(place: str, held: list[bytes]) -> Item:
    if held[-1].strip(b"\r\n") == b"" and len(held) > 1:
        held = held[:-1]  # the empty line between two messages
    octets = _QUOTED_FROM.sub(rb"\1", b"".join(held[1:]))
    header = re.split(rb"\r?\n\r?\n", octets, maxsplit=1)[0]
    if _INTERNAL.search(header):
        return Note(f"{place}: the folder's internal message, not imported")
    separator = _SEPARATOR.fullmatch(held[0])
    sender = sender_of(separator[1] or b"") if separator else ""
    when = parse_date(separator[2].decode("ascii", "replace")) if separator else 0
    uidl = _UIDL.search(header)
    return foreign(place, octets, uidl[1].decode() if uidl else "", when, sender)


def parse_date(text: str) -> int:
    """Microseconds since the epoch of a separator's date (UTC without an offset); 0 if invalid."""
    month, clock, years = _MONTH.search(text), _CLOCK.search(text), _YEAR.findall(text)
    if not month or not clock or not years:
        return 0
    day = _DAY.search(text.replace(clock[0], " ").replace(years[-1], " "))
    if not day:
        return 0
    zone = _ZONE.search(text)
    try:
        fields = (int(years[-1]), _MONTHS.index(month[1]) + 1, int(day[1]),
                  int(clock[1]), int(clock[2]), int(clock[3] or 0))  # fmt: skip
        time.strptime("{} {} {} {} {} {}".format(*fields), "%Y %m %d %H %M %S")
        seconds = calendar.timegm((*fields, 0, 0, 0))
    except (ValueError, OverflowError):
        return 0
    if zone:
        offset = int(zone[2]) * 3600 + int(zone[3]) * 60
        seconds -= offset if zone[1] == "+" else -offset
    return max(seconds, 0) * 1_000_000


class MboxWriter:
    """A new mbox file (mboxrd).  Raises CannotCreateError if it exists."""

    def __init__(self, path: Path) -> None:
        try:
            # Opened with the caller's rights, before the command becomes the hub's owner.
            self._directory = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        except OSError as error:
            raise CannotCreateError.of(error, shown(path)) from None

    def write(self, message: Foreign) -> None:
        when = time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime(message.time_us // 1_000_000))
        sender = message.sender or "MAILER-DAEMON"
        body = message.octets.replace(b"\r\n", b"\n")
        self._file.write(b"From %b %b\n" % (sender.replace(" ", "_").encode(), when.encode()))
        self._file.write(re.sub(rb"(?m)^(>*From )", rb">\1", body) + b"\n")

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.fsync(self._directory)
        os.close(self._directory)
