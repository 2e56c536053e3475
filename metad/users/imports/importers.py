"""Files of other programs, line by line: passwd and shadow, CSV, Dovecot's passwd-file, Postfix's
virtual maps.

Rules of this file:

* Every line gives an ImportEntry, a BadLine that names file and line, or nothing (comments, system
  users).  No line stops the import, and no part of a bad line is used.
* Lines end only in LF, not in Unicode's other separators; one longer than LINE is bad.
* A name without a domain is in the given domain; without one it is bad.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

from metad.errors import DataError, MetadError, OsError
from metad.users.imports import import_entries
from metad.users.imports.import_entries import NO_SECRET, BadLine, ImportEntry, Secret
from metad.users.imports.import_values import CELLS, NUMBER

LINE = 64 * 1024
# Users below are the system's own (login.defs UID_MIN); 65534 is nobody.
LEAST_UID, NOBODY_UID = 1000, 65534

Found = Iterator[ImportEntry | BadLine]


class Text(NamedTuple):
    """An open file, because the hub's owner may not be allowed to open it."""

    name: str
    file: IO[bytes]


class Source(NamedTuple):
    """The file to be read, and how to read it."""

    text: Text
    domain: str | None = None
    shadow: Text | None = None
    least_uid: int = LEAST_UID


def read(kind: str, source: Source) -> Found:
    """All entries of a file in the format `kind`.  Raises OsError, DataError (no such header)."""
    return FORMATS[kind].read(source)


def _lines(text: Text) -> Iterator[tuple[str, str | BadLine]]:
    """(file:line, text) of every line, without its end."""
    readline = text.file.readline
    number = 0
    try:
        while raw := readline(LINE + 1):
            number += 1
            place = f"{text.name}:{number}"
            yield place, _decoded(place, raw, readline)
    except OSError as error:
        raise OsError(f"{text.name}: {error.strerror}") from None


def _decoded(place: str, raw: bytes, more: Callable[[int], bytes]) -> str | BadLine:
    if len(raw) > LINE:
        while raw and not raw.endswith(b"\n"):
            raw = more(LINE)
        return BadLine(place, f"longer than {LINE:,} bytes")
    if place.endswith(":1"):
        raw = raw.removeprefix(codecs.BOM_UTF8)  # Excel writes one
    try:
        return raw.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        return BadLine(place, "not UTF-8")


def _each(text: Text, make: Callable[[str, str], ImportEntry | None]) -> Found:
    """`make(place, line)` for every line that is not a comment; its errors become bad lines."""
    for place, line in _lines(text):
        if isinstance(line, BadLine):
            yield line
        elif line.strip() and not line.startswith("#"):
            try:
                entry = make(place, line)
            except MetadError as error:
                yield BadLine(place, str(error))
                continue
            if entry is not None:
                yield entry


def _full(name: str, domain: str | None) -> str:
    if "@" in name:
        return name
    if domain is None:
        raise DataError(f"{name!a} has no domain: say which by --domain")
    return f"{name}@{domain}"


def _usable(read: Callable[[str], Secret], text: str) -> tuple[Secret | None, str]:
    """A secret; or none, and why it cannot be used: then the account is made without a login."""
    try:
        return read(text), ""
    except DataError as error:
        return None, str(error)


# An address may have a quoted local part, with blanks and commas in it (RFC 5321 4.1.2).
_ADDRESS = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^\s,"])+')


def split_addresses(text: str) -> list[str]:
    """Addresses separated by blanks and commas."""
    return _ADDRESS.findall(text)


# --- passwd and shadow ----------------------------------------------------------------------------


def _read_passwd(source: Source) -> Found:
    if source.domain is None:
        raise DataError("users of the system have no domain: say which by --domain")
    shadow: dict[str, tuple[Secret | None, str]] = {}
    if source.shadow is not None:
        for found in _each(source.shadow, _shadow_line):
            if isinstance(found, BadLine):
                yield found
            else:
                shadow[found.address] = found.secret, found.no_login

    def line(place: str, text: str) -> ImportEntry | None:
        fields = text.split(":")
        if len(fields) != 7 or not NUMBER.fullmatch(fields[2]):
            raise DataError("a line of passwd has seven fields, the third a number")
        name, password = fields[:2]
        if int(fields[2]) < source.least_uid or int(fields[2]) == NOBODY_UID:
            return None
        if password == "x":  # noqa: S105
            secret, why = shadow.get(name, (NO_SECRET, ""))
        else:
            secret, why = _usable(import_entries.hashed, password)
        return ImportEntry(place, f"{name}@{source.domain}", secret, no_login=why)

    yield from _each(source.text, line)


def _shadow_line(place: str, text: str) -> ImportEntry:
    fields = text.split(":")
    if len(fields) != 9:
        raise DataError("a line of shadow has nine fields")
    secret, why = _usable(import_entries.hashed, fields[1])
    return ImportEntry(place, fields[0], secret, no_login=why)


# --- Dovecot's passwd-file ------------------------------------------------------------------------

_STORAGE = re.compile(r"([0-9]{1,15})([bBkKmMgGtT]?)[bB]?", re.ASCII)
_UNITS = {"": 1024, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _read_dovecot(source: Source) -> Found:
    def line(place: str, text: str) -> ImportEntry:
        fields = text.split(":", 7)
        password = fields[1] if len(fields) > 1 else ""
        extra = fields[7].split() if len(fields) > 7 else []
        secret, why = _usable(import_entries.dovecot, password) if password else (NO_SECRET, "")
        if "nologin" in extra or "nologin=y" in extra:
            secret = NO_SECRET
        address = _full(fields[0], source.domain)
        return ImportEntry(place, address, secret, _dovecot_quota(extra), no_login=why)

    yield from _each(source.text, line)


def _dovecot_quota(extra: list[str]) -> dict[str, Any]:
    """The rule for all mailboxes, "*:storage=1G:messages=1000", of Dovecot 2.3 and earlier, and
    quota_storage_size, quota_message_count of 2.4."""
    found: dict[str, Any] = {}
    for one in extra:
        name, _, value = one.removeprefix("userdb_").partition("=")
        if name == "quota_rule" and value.startswith("*:"):
            for part in value[2:].split(":"):
                found |= _limit(*part.partition("=")[::2])
        elif name == "quota_storage_size":
            found |= _limit("storage", value)
        elif name == "quota_message_count":
            found |= _limit("messages", value)
    return found


def _limit(name: str, value: str) -> dict[str, int]:
    storage = _STORAGE.fullmatch(value)
    if name in {"storage", "bytes"} and storage:
        unit = 1 if name == "bytes" and not storage[2] else _UNITS[storage[2].lower()]
        return {"quota": int(storage[1]) * unit}
    if name == "messages" and NUMBER.fullmatch(value):
        return {"messages": int(value)}
    if name in {"ignore", "noenforcing"}:
        return {"quota": 0, "messages": 0} if name == "ignore" else {}
    raise DataError(f"the quota {name!a}={value!a} cannot be read here")


# --- Postfix's maps -------------------------------------------------------------------------------


def _logical_lines(text: Text) -> Iterator[tuple[str, str | BadLine]]:
    """postconf(5): a line that begins with white space continues the one before."""
    held: tuple[str, str] | None = None
    for place, line in _lines(text):
        if isinstance(line, BadLine):
            yield place, line
        elif line.strip() and not line.lstrip().startswith("#"):
            if line[0] in " \t" and held is not None:
                held = held[0], f"{held[1]} {line.strip()}"
                continue
            if held is not None:
                yield held
            held = place, line
    if held is not None:
        yield held


def _read_virtual(source: Source) -> Found:
    for place, line in _logical_lines(source.text):
        if isinstance(line, BadLine):
            yield line
            continue
        try:
            entry = _virtual_line(place, line, source.domain)
        except MetadError as error:
            yield BadLine(place, str(error))
            continue
        if entry is not None:
            yield entry


def _virtual_line(place: str, line: str, domain: str | None) -> ImportEntry | None:
    name, *members = split_addresses(line) or [""]
    if not members:
        raise DataError("an address without members")
    if "@" not in name and "." in name and not any("@" in member for member in members):
        return None  # the declaration of a domain: metad serves a domain if it has addresses
    for member in members:
        if member.startswith(("|", "/", ":", '"|', '"/')):
            raise DataError(f"{member!a}: metad delivers to mailboxes, not to programs and files")
        if member.startswith("@"):
            raise DataError(f"{member!a}: a whole domain cannot be a member")
    full = tuple(_full(member, domain) for member in members)
    return ImportEntry(place, name if name.startswith("@") else _full(name, domain), members=full)


def _read_mailboxes(source: Source) -> Found:
    """virtual_mailbox_maps: address, then where Postfix would put its mail."""

    def line(place: str, text: str) -> ImportEntry:
        name = text.replace("\t", " ").partition(" ")[0]
        if name.startswith("@"):
            raise DataError("a catch-all is an alias: metad user alias @domain ADDRESS")
        return ImportEntry(place, _full(name, source.domain), NO_SECRET)

    yield from _each(source.text, line)


# --- CSV ------------------------------------------------------------------------------------------

COLUMNS = (
    "address", "password", "hash", "scram", "quota", "messages", "expiry", "login_delay",
    "disabled", "spam_filter", "spam_mark", "spam_refuse", "members",
)  # fmt: skip


def _read_csv(source: Source) -> Found:
    """The first line names the columns; an empty cell changes nothing."""
    texts: list[str] = []

    def lines() -> Iterator[str]:
        for place, line in _lines(source.text):
            texts[:] = [place]
            # A field that cannot be read becomes a value that no column can hold.
            yield "\0\n" if isinstance(line, BadLine) else f"{line}\n"

    rows = csv.reader(lines(), strict=True)
    header = _header(rows, source.text.name)
    while True:
        try:
            row = next(rows, None)
            if row is None:
                return
            entry = _csv_row(texts[0], dict(zip(header, row, strict=False)), source.domain)
            if len(row) > len(header) or "\0" in "".join(row):
                raise DataError("not UTF-8, too long, or more cells than columns")
        except (csv.Error, MetadError, ValueError) as error:
            yield BadLine(texts[0], str(error))
            continue
        if entry is not None:
            yield entry


def _header(rows: Iterable[list[str]], name: str) -> list[str]:
    try:
        header = [one.strip().lower() for one in next(iter(rows), [])]
    except csv.Error as error:
        raise DataError(f"{name}:1: {error}") from None
    unknown = [one for one in header if one not in COLUMNS]
    if "address" not in header or unknown or len(set(header)) < len(header):
        what = f"there is no column {unknown[0]!a}" if unknown else "the first must name columns"
        raise DataError(f"{name}:1: {what}; they are {', '.join(COLUMNS)}")
    return header


def _csv_row(place: str, row: dict[str, str], domain: str | None) -> ImportEntry | None:
    if not any(row.values()):
        return None
    address = row.get("address", "").strip()
    members = tuple(split_addresses(row.get("members", "")))
    if members:
        name = address if address.startswith("@") else _full(address, domain)
        return ImportEntry(place, name, members=tuple(_full(one, domain) for one in members))
    fields = {
        name: check(row[name].strip()) for name, check in CELLS.items() if row.get(name, "").strip()
    }
    secret, why = _csv_secret(row)
    return ImportEntry(place, _full(address, domain), secret, fields, no_login=why)


def _csv_secret(row: dict[str, str]) -> tuple[Secret | None, str]:
    if row.get("password"):
        if row.get("hash") or row.get("scram"):
            raise DataError("a password both readable and hashed")
        return _usable(import_entries.readable, row["password"])
    source, why = _usable(import_entries.dovecot, row["hash"]) if row.get("hash") else (None, "")
    if row.get("scram"):
        keys, bad = _usable(import_entries.scram, row["scram"])
        if keys is not None:
            known = source or NO_SECRET
            return Secret(known.plain, known.hash, keys.scram), why
        why = why or bad
    return source, why


class Format(NamedTuple):
    """How a file is read, and what it contains: accounts, aliases or both."""

    read: Callable[[Source], Found]
    accounts: bool
    aliases: bool


FORMATS = {
    "passwd": Format(_read_passwd, accounts=True, aliases=False),
    "csv": Format(_read_csv, accounts=True, aliases=True),
    "dovecot": Format(_read_dovecot, accounts=True, aliases=False),
    "virtual": Format(_read_virtual, accounts=False, aliases=True),
    "mailboxes": Format(_read_mailboxes, accounts=True, aliases=False),
}
