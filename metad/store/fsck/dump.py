"""The contents of one log file, record by record; needs only the file and the store's secret.

Rules of this file:

* Everything shown is verified; other ranges are shown as damage, with their offsets.
* Facts are plain JSON values.  Octets become text, one character each (ISO 8859-1), because bodies
  may use any character set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metad.errors import DataError
from metad.store.identity import make_store
from metad.store.ids import time_of
from metad.store.log import header, record
from metad.store.log.footer import ENTRY_SIZE
from metad.store.log.header import FREE, LogHeader
from metad.store.log.scan import Damage, Found, Scanner, find_seal
from metad.store.log.tail import TailReader
from metad.system.osio import Osio

STATES = {header.ACTIVE: "active", header.FREE: "free"}
_KINDS = {record.MESSAGE: "message", record.DELETION: "deletion", record.RELEASED: "released"}
Fact = dict[str, Any]


def dump_log(osio: Osio, path: Path, secret: bytes | None, *, bodies: bool) -> Iterator[Fact]:
    """Yields the header of the log, each record, damage, and the seal; `what` names the kind.

    `secret`: the store's; None: the one in the log's own header.  Raises DataError if nothing in
    the file verifies, OSError.
    """
    fd = osio.open(str(path), os.O_RDONLY)
    try:
        log = _log(osio, path, fd, secret)
        yield {"what": "header", **_header(log)}
        if log.state != FREE:
            yield from _records(osio, fd, log, bodies)
    finally:
        osio.close(fd)


def _log(osio: Osio, path: Path, fd: int, secret: bytes | None) -> LogHeader:
    known = secret or header.own_secret(osio, fd)
    if known is None:
        raise DataError(
            f"{path}: both headers are damaged: the store's secret is needed",
            remedy="restore store.json from a backup",
        )
    found = header.read(osio, fd, known)
    if found is None and path.stem.isascii() and path.stem.isdigit():
        store = replace(make_store(path.parent, bytes(16), known, 0), logs=str(path.parent))
        found = TailReader(osio, store, lambda _: None).header(int(path.stem))
    if found is None:
        raise DataError(
            f"{path}: no log that this secret opens",
            remedy="restore the store.json that belongs to it",
        )
    return found


def _header(log: LogHeader) -> Fact:
    facts = log._asdict()
    del facts["secret"]
    facts["state"] = "sealed" if log.seal_offset else STATES.get(log.state, str(log.state))
    facts["store_id"] = log.store_id.hex()
    return facts


def _records(osio: Osio, fd: int, log: LogHeader, bodies: bool) -> Iterator[Fact]:
    seal = find_seal(osio, fd, log)
    stop = seal.end if seal is not None else log.seal_offset or None
    scanner = Scanner(osio, fd, log, 0, stop)
    for item in scanner:
        yield _damage(item) if isinstance(item, Damage) else _record(item, bodies)
    end = scanner.end
    if stop is not None and end < stop:
        yield _damage(Damage(end, stop))
        end = stop
    if seal is not None:
        entries = len(seal.entries) // ENTRY_SIZE
        yield {
            "what": "seal", "offset": log.seal_offset, "size": log.seal_size,
            "covers_from": seal.covers_from, "entries": entries,
        }  # fmt: skip
    elif log.seal_offset:
        yield _damage(Damage(log.seal_offset, log.seal_offset + log.seal_size))
    yield {"what": "end", "offset": end}


def _damage(damage: Damage) -> Fact:
    return {"what": "damage", "offset": damage.start, "size": damage.end - damage.start}


def _record(found: Found, bodies: bool) -> Fact:
    head = found.header
    facts: Fact = {
        "what": _KINDS.get(head.kind, f"kind {head.kind}"),
        "offset": found.offset,
        "size": head.size,
        "sequence": head.sequence,
        "id": head.id.hex(),
        "id_time_us": time_of(head.id),
    }
    try:
        if head.kind == record.MESSAGE:
            facts |= _message(found, bodies)
        elif head.kind == record.DELETION:
            facts |= _deletion(found)
        elif head.kind == record.RELEASED:
            facts["records"] = record.unpack_released(found.body)
    except ValueError as error:
        facts["unreadable"] = str(error)
    return facts


def _message(found: Found, bodies: bool) -> Fact:
    envelope = record.unpack_envelope(found.envelope)
    facts = envelope._asdict()
    facts["recipients"] = [
        {"mailbox": one.mailbox, "address": one.address, "bytes": one.octets}
        for one in envelope.recipients
    ]
    if not envelope.uid:
        del facts["uid"]
    if bodies:
        facts["body"] = str(found.body, "latin-1")
    return facts


def _deletion(found: Found) -> Fact:
    deletion = record.unpack_deletion(found.envelope, found.body)
    return {"mailbox": deletion.mailbox, "ids": [each.hex() for each in deletion.each()]}


# -- for people


def line_of(fact: Fact) -> str:
    """A fact as one line: offset, kind, contents.  It has no terminal control characters."""
    rest = {key: value for key, value in fact.items() if key not in _IN_FRONT}
    if "id_time_us" in rest:
        rest["id_time_us"] = _moment(rest["id_time_us"])
    if "recipients" in rest:
        rest["recipients"] = [f"{r['mailbox']}:{r['address']}" for r in rest["recipients"]]
    front = f"{fact.get('offset', 0):>10} {fact['what']:<8}"
    return front + "".join(f" {key}={_cell(value)}" for key, value in rest.items())


_IN_FRONT = ("what", "offset", "body")


def _cell(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if text.isprintable() else ascii(text)[1:-1]


def _moment(us: int) -> str:
    try:
        return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="microseconds")
    except (OverflowError, ValueError, OSError):
        return str(us)


def body_octets(body: str, *, terminal: bool) -> bytes:
    """A body for printing: as it lies in the log, but harmless to a terminal."""
    if not terminal:
        return body.encode("latin-1")
    lines = body.removesuffix("\r\n").split("\r\n")
    shown = ("".join(c if " " <= c <= "~" or c == "\t" else "." for c in line) for line in lines)
    return "".join(f"{line}\n" for line in shown).encode()
