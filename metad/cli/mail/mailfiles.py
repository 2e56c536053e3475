"""Messages out of mbox files and Maildirs, and into them.

Rules of this file:

* A message is handed on as it will be stored: CR LF, whole lines, no NUL; what had to be changed
  for that is only what POP3 cannot carry.  Return-Path and Delivered-To at its head become its
  envelope, from which they come back with every RETR.
* Unique ids are kept where they are known: a Maildir's from Dovecot's list, an mbox's from X-UIDL.
"""

from __future__ import annotations

import calendar
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from metad.errors import CannotCreateError, DataError, OsError
from metad.protocol.address import AddressError, parse_mailbox
from metad.protocol.dots import Repairer
from metad.system.osio import Osio

UIDLIST = "dovecot-uidlist"
# Dovecot's pop3_uidl_format: its default since ever.
UIDL_FORMAT = "%08Xu%08Xv"
_UID = re.compile(r"[!-~]{1,70}", re.ASCII)


class Foreign(NamedTuple):
    """A message of another server.  `time_us`: when that took it, 0 if it is not known."""

    place: str
    octets: bytes
    uid: str = ""
    time_us: int = 0
    sender: str = ""
    address: str = ""


def foreign(
    place: str, octets: bytes, uid: str = "", time_us: int = 0, sender: str = ""
) -> Foreign:
    """A message as it will be stored."""
    clean = Repairer(double_lone_dots=False).feed(octets, final=True).replace(b"\0", b"\x80")
    if clean and not clean.endswith(b"\r\n"):
        clean += b"\r\n"
    address = ""
    clean, path = _take(clean, b"return-path:")
    if path is not None:
        sender = _address(path.strip().strip(b"<>"))
        clean, delivered = _take(clean, b"delivered-to:")
        address = _address(delivered.strip()) if delivered is not None else ""
    return Foreign(place, clean, uid if _UID.fullmatch(uid) else "", time_us, sender, address)


def _take(octets: bytes, name: bytes) -> tuple[bytes, bytes | None]:
    """The message without its first field, and the field's value, if it is `name` on one line."""
    end = octets.find(b"\r\n") + 2
    first = octets[: end - 2]
    if end < 2 or first[: len(name)].lower() != name or octets[end : end + 1] in (b" ", b"\t"):
        return octets, None
    return octets[end:], first[len(name) :]


def _address(octets: bytes) -> str:
    """An address that can stand in an envelope, or none."""
    try:
        text = octets.decode()
        parse_mailbox(text)
    except (UnicodeDecodeError, AddressError):
        return ""
    return text


# --- mbox -----------------------------------------------------------------------------------------

_FROM = re.compile(rb"From (\S*) +(.{10,40}?)\r?\n")
_QUOTED_FROM = re.compile(rb"(?m)^>(>*From )")
_DATES = ("%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S %Y %z", "%a %b %d %H:%M %Y")


def read_mbox(path: Path) -> Iterator[Foreign]:
    """Every message of an mbox file (mboxrd: one ">" less before quoted From lines)."""
    try:
        with path.open("rb") as file:
            yield from _messages(str(path), file)
    except OSError as error:
        raise OsError(f"{path}: {error.strerror}") from None


def _messages(name: str, file: IO[bytes]) -> Iterator[Foreign]:
    held: list[bytes] = []
    start, blank = 0, True
    for number, line in enumerate(file, 1):
        if line.startswith(b"From ") and blank:
            if start:
                yield _mbox_message(f"{name}:{start}", held)
            held, start = [], number
        elif not start and line.strip():
            raise DataError(f"{name}:{number}: this is no mbox file")
        blank = not line.strip(b"\r\n")
        held.append(line)
    if start:
        yield _mbox_message(f"{name}:{start}", held)


def _mbox_message(place: str, held: list[bytes]) -> Foreign:
    if held[-1].strip(b"\r\n") == b"" and len(held) > 1:
        held = held[:-1]  # the blank line between two messages
    head = _FROM.match(held[0])
    octets = _QUOTED_FROM.sub(rb"\1", b"".join(held[1:]))
    sender = _address(head[1]) if head else ""
    when = _date(head[2].decode("ascii", "replace")) if head else 0
    header = octets.partition(b"\n\n")[0].partition(b"\r\n\r\n")[0]
    uidl = re.search(rb"(?im)^X-UIDL:[ \t]*([!-~]{1,70})[ \t]*\r?$", header)
    return foreign(place, octets, uidl[1].decode() if uidl else "", when, sender)


def _date(text: str) -> int:
    """Microseconds since the epoch of a From line's date; 0 if it is none."""
    for form in _DATES:
        try:
            return calendar.timegm(time.strptime(text.strip(), form)) * 1_000_000
        except (ValueError, OverflowError):
            continue
    return 0


class MboxWriter:
    """A new mbox file (mboxrd).  Raises CannotCreateError: it is there already."""

    def __init__(self, path: Path) -> None:
        try:
            # Through the caller's rights, before a command becomes the hub's owner.
            self._directory = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        except OSError as error:
            raise CannotCreateError(f"{path}: {error.strerror}") from None

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


# --- Maildir --------------------------------------------------------------------------------------

_UIDLIST_HEAD = re.compile(r"3 V([0-9]{1,10}) .*|3 V([0-9]{1,10})|1 ([0-9]{1,10}) .*", re.ASCII)
_UIDLIST_LINE = re.compile(r"([0-9]{1,10}) ((?:[A-Z]\S* )*):(.*)", re.ASCII)
_CONVERSION = re.compile(r"%(0?[0-9]{0,2})(X?)([uvf%])", re.ASCII)


class Known(NamedTuple):
    """What Dovecot's list says of a file: its number in the mailbox, and its unique id."""

    number: int
    uid: str


def read_maildir(path: Path, uidl_format: str = UIDL_FORMAT) -> Iterator[Foreign]:
    """Every message of a Maildir's inbox, in the order of Dovecot's list, else by their names."""
    try:
        known = _uidlist(path / UIDLIST, uidl_format)
        files = [one for part in ("cur", "new") for one in (path / part).iterdir()]
        files = [one for one in files if one.is_file() and not one.name.startswith(".")]
        for one in sorted(files, key=lambda file: _order(file, known)):
            found = known.get(_base(one.name))
            when = int(one.stat().st_mtime) * 1_000_000
            yield foreign(str(one), one.read_bytes(), found.uid if found else "", when)
    except OSError as error:
        raise OsError(f"{error.filename or path}: {error.strerror}") from None


def _base(name: str) -> str:
    """The name of a message without its flags."""
    return name.partition(":")[0]


def _order(file: Path, known: dict[str, Known]) -> tuple[float, int, str]:
    found = known.get(_base(file.name))
    if found is not None:
        return found.number, 0, ""
    seconds = file.name.partition(".")[0]
    number = int(seconds) if seconds.isascii() and seconds.isdigit() else 0
    return float("inf"), number, file.name


def _uidlist(path: Path, uidl_format: str) -> dict[str, Known]:
    """Dovecot's list of a Maildir; empty if there is none.  Raises DataError."""
    try:
        text = path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return {}
    head, *lines = text.split("\n")
    match = _UIDLIST_HEAD.fullmatch(head)
    if match is None:
        raise DataError(f"{path}:1: not a list of unique ids that can be read here")
    validity = int(next(one for one in match.groups() if one))
    known: dict[str, Known] = {}
    for line in lines:
        # Version 1 has no fields between the number and the name.
        found = _UIDLIST_LINE.fullmatch(line) or re.fullmatch(r"([0-9]{1,10}) ()(.*)", line)
        if found is not None:
            saved = [one[1:] for one in found[2].split() if one.startswith("P")]
            number, name = int(found[1]), _base(found[3])
            uid = saved[0] if saved else _uidl(uidl_format, number, validity, name)
            known[name] = Known(number, uid)
    return known


def _uidl(uidl_format: str, number: int, validity: int, name: str) -> str:
    """A unique id by Dovecot's pop3_uidl_format: %u, %v in any width and base, %f, %%."""

    def one(match: re.Match[str]) -> str:
        width, base, what = match.groups()
        if what in "f%":
            return name if what == "f" else "%"
        # Dovecot's X is hexadecimal in small letters.
        return format(number if what == "u" else validity, width + ("x" if base else "d"))

    return _CONVERSION.sub(one, uidl_format)


class MaildirWriter:
    """A new Maildir, with Dovecot's list of the unique ids."""

    def __init__(self, path: Path, owner: os.stat_result | None = None) -> None:
        """`owner`: whose data is exported, if a command is to become that user.

        Raises CannotCreateError.
        """
        self._path = path
        self._number = 0
        self._list: list[str] = []
        try:
            for one in (path, *(path / part for part in ("tmp", "new", "cur"))):
                one.mkdir(mode=0o700)
                if owner is not None and owner.st_uid != os.geteuid():
                    os.chown(one, owner.st_uid, owner.st_gid)
        except OSError as error:
            raise CannotCreateError(f"{error.filename or path}: {error.strerror}") from None

    def write(self, message: Foreign) -> None:
        self._number += 1
        body = message.octets.replace(b"\r\n", b"\n")
        seconds, micro = divmod(message.time_us, 1_000_000)
        sizes = f"S={len(body)},W={len(message.octets)}"
        name = f"{seconds}.M{micro}P{os.getpid()}Q{self._number}.metad,{sizes}"
        final = self._path / "cur" / f"{name}:2,"
        try:
            with (self._path / "tmp" / name).open("xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.utime(self._path / "tmp" / name, (seconds, seconds))
            (self._path / "tmp" / name).rename(final)
        except OSError as error:
            raise OsError(f"{error.filename}: {error.strerror}") from None
        self._list.append(f"{self._number} P{message.uid} :{name}\n")

    def close(self) -> None:
        head = f"3 V{int(time.time())} N{self._number + 1} G{os.urandom(16).hex()}\n"
        (self._path / UIDLIST).write_text("".join([head, *self._list]), "utf-8")
        for part in ("cur", "."):
            Osio().fsync_directory(str(self._path / part))


Writer = MboxWriter | MaildirWriter


def write_all(writer: Writer, messages: Iterable[Foreign]) -> int:
    """Their number."""
    count = 0
    for message in messages:
        writer.write(message)
        count += 1
    writer.close()
    return count
