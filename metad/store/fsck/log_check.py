"""One log checked by reading it: both headers, every record's checksum, the seal and its footer.

Rules of this file:

* It only reads, and trusts nothing: the footer is compared with the records.
* Data beyond a log's end (the rest of an earlier life) has no meaning and is not checked.
* `findings` are lines for an operator, one for each fault.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import NamedTuple

from metad.store.identity import Store
from metad.store.ids import is_imported
from metad.store.log import footer, header, record
from metad.store.log.header import FREE, LogHeader, log_path
from metad.store.log.salvage import read_past
from metad.store.log.scan import Damage, Found, Scanner, Seal, find_seal
from metad.store.log.tail import TailReader, entries_from, entries_of
from metad.store.log.writer import round_up
from metad.system.osio import Osio

_STEP = 1 << 20
_SHOWN = 3
_TRIES = 3  # a header may be read while it is being rewritten


class Headers(NamedTuple):
    """What a log file says about itself.  `bad`: the blocks of header copies that do not verify;
    `foreign`: they verify, but not under this store's secret."""

    number: int
    log: LogHeader | None
    bad: tuple[Damage, ...] = ()
    findings: tuple[str, ...] = ()
    foreign: bool = False


class LogExtent(NamedTuple):
    """How much of a log counts.  `stop`: its writer failed, and its successor ends it here;
    `watermark`: the index has it up to here; `written`: a process may be writing to it."""

    stop: int | None = None
    watermark: int = 0
    written: bool = False


@dataclass(slots=True)
class Checked:
    """A log that was read.  `entries`: the footer entries that a rebuild of the index would use;
    `uids`: unique ids of imported messages, by message id."""

    log: LogHeader
    sealed: bool = False
    end: int = 0
    records: int = 0
    octets: int = 0
    entries: bytes = b""
    uids: list[tuple[bytes, bytes]] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    unreadable: bool = False  # some of it

    def is_damaged(self, offset: int) -> bool:
        return any(stretch.start <= offset < stretch.end for stretch in self.damage)


def log_numbers(osio: Osio, store: Store) -> list[int]:
    """The numbers of the existing log files.  Raises OSError."""
    stems = [name[:-4] for name in osio.listdir(store.logs) if name.endswith(".log")]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


# -- headers


def read_headers(osio: Osio, store: Store, number: int) -> Headers | None:
    """Both headers of a log, or the header that its records imply; None: the file is gone."""
    try:
        fd = osio.open(log_path(store.logs, number), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        for _ in range(_TRIES):
            found = _headers(osio, store, number, fd)
            if not found.findings:
                break
        return found
    finally:
        osio.close(fd)


def _headers(osio: Osio, store: Store, number: int, fd: int) -> Headers:
    size = osio.fstat(fd).st_size
    log = header.read(osio, fd, store.secret)
    if log is None:
        return _without_header(osio, store, number, fd)
    findings = [f"log {number}: {text}" for text in _contradictions(store, number, size, log)]
    bad = []
    for name, at in (("first", 0), ("last", max(size - log.align, 0))):
        block = read_past(osio, fd, log.align, at)
        copy = header.parse(block, store.secret)
        if copy is None or copy.pack() != block:
            bad.append(Damage(at, at + len(block)))
            findings.append(f"log {number}: the {name} header is damaged")
    return Headers(number, log, tuple(bad), tuple(findings))


def _contradictions(store: Store, number: int, size: int, log: LogHeader) -> list[str]:
    found = []
    if log.number != number:
        found.append(f"its header is that of log {log.number}")
    if log.size != size:
        found.append(f"the file has {size} bytes, its header says {log.size}")
    if log.store_id != store.store_id:
        found.append("it is of another store")
    return found


def _without_header(osio: Osio, store: Store, number: int, fd: int) -> Headers:
    """No copy verifies: it is another store's, or damaged; then the records show the life."""
    if header.own_secret(osio, fd) is not None:
        text = f"log {number}: it is of another store, or the secret in store.json is damaged"
        return Headers(number, None, (), (text,), foreign=True)
    log = TailReader(osio, store, lambda _: None).header(number)
    text = "both headers are damaged" + ("" if log else ", and no record verifies")
    size = osio.fstat(fd).st_size
    bad = (Damage(0, min(512, size)), Damage(max(size - 512, 0), size))
    return Headers(number, log, bad, (f"log {number}: {text}",))


# -- records


def check_log(osio: Osio, store: Store, log: LogHeader, bound: LogExtent) -> Checked:
    """Read a log that is not free.  Raises OSError if it cannot be read."""
    if log.state == FREE:
        raise ValueError(f"log {log.number} is free")
    fd = osio.open(log_path(store.logs, log.number), os.O_RDONLY)
    try:
        return _LogCheck(osio, fd, log, bound).run()
    finally:
        osio.close(fd)


class _LogCheck:
    """The check of one open log."""

    def __init__(self, osio: Osio, fd: int, log: LogHeader, bound: LogExtent) -> None:
        self._osio = osio
        self._fd = fd
        self._log = log
        self._bound = bound
        self._done = Checked(log)
        self._entries: list[bytes] = []
        self._after = log.align  # where the last good record ends
        self._sequence: int | None = 0

    def run(self) -> Checked:
        done = self._done
        seal = self._seal()
        done.sealed = seal is not None or self._bound.stop is not None
        stop = self._stop(seal)
        scanner = Scanner(self._osio, self._fd, self._log, 0, stop)
        for item in scanner:
            if isinstance(item, Damage):
                self._damage(*item)
                self._sequence = None
            else:
                self._take(item)
        done.end = scanner.end if stop is None else stop
        self._check_rest(max(done.end, self._bound.watermark) if stop is None else stop)
        done.entries = self._believed(seal)
        self._name_damage()
        return done

    def _say(self, text: str) -> None:
        self._done.findings.append(f"log {self._log.number}: {text}")

    def _seal(self) -> Seal | None:
        log = self._log
        if not log.seal_offset or self._bound.stop is not None:
            return None
        seal = find_seal(self._osio, self._fd, log)
        stop = log.seal_offset + log.seal_size
        if seal is None:
            self._say("its seal is damaged")
        elif not self._is_zero(stop, round_up(stop, log.align)):
            self._say("the padding behind its seal is damaged")
        return seal

    def _stop(self, seal: Seal | None) -> int | None:
        """The end of the log, if known."""
        bound, log = self._bound, self._log
        if bound.stop is not None:
            return bound.stop
        if seal is not None:
            return seal.end
        if bound.written:
            return max(bound.watermark, log.align)
        return log.seal_offset or None

    def _take(self, found: Found) -> None:
        done, head = self._done, found.header
        if self._sequence not in (None, head.sequence):
            self._say(f"at {found.offset} is record {head.sequence}, not {self._sequence}")
        self._sequence = head.sequence + 1
        self._after = found.offset + head.size
        done.records += 1
        done.octets += head.size
        try:
            self._entries.append(entries_of(found))
            if head.kind == record.MESSAGE and is_imported(head.id):
                uid = record.unpack_envelope(found.envelope).uid
                done.uids.append((head.id, uid.encode()))
        except ValueError as error:
            self._say(f"the record at {found.offset} cannot be understood: {error}")

    def _check_rest(self, end: int) -> None:
        """Check that only padding, and no more than a group needs, lies between the last good
        record and the log's end."""
        after = self._after
        if after < end and not (
            end <= round_up(after, self._log.align) and self._is_zero(after, end)
        ):
            self._damage(after, end)

    def _damage(self, start: int, end: int) -> None:
        """Note a damaged range; correct padding before it does not count."""
        group = round_up(start, self._log.align)
        if group < end and self._is_zero(start, group):
            start = group
        self._done.damage.append(Damage(start, end))

    def _is_zero(self, start: int, stop: int) -> bool:
        while start < stop:
            data = read_past(self._osio, self._fd, min(_STEP, stop - start), start)
            if not data or any(data):
                return False
            start += len(data)
        return True

    # -- the footer

    def _believed(self, seal: Seal | None) -> bytes:
        """The entries that a rebuild uses: the footer's where it covers the records, else
        theirs."""
        read = b"".join(self._entries)
        if seal is None:
            return read
        covered = entries_from(read, seal.covers_from)
        if covered != self._undamaged(seal.entries):
            self._say("its footer disagrees with its records")
        return read[: len(read) - len(covered)] + seal.entries

    def _undamaged(self, entries: bytes) -> bytes:
        done, step = self._done, footer.ENTRY_SIZE
        if not done.damage:
            return entries
        each = (entries[at : at + step] for at in range(0, len(entries), step))
        return b"".join(e for e in each if not done.is_damaged(int.from_bytes(e[20:24], "big")))

    def _why(self, start: int, end: int) -> str:
        try:
            for at in range(start, end, _STEP):
                self._osio.pread(self._fd, min(_STEP, end - at), at)
        except OSError:
            self._done.unreadable = True
            return "cannot be read"
        return "do not verify"

    def _name_damage(self) -> None:
        """A line for each damaged range, with the messages that the footer lists there."""
        done = self._done
        for start, end in done.damage:
            text = f"bytes {start} to {end} {self._why(start, end)}"
            names = dict.fromkeys(
                entry.id.hex()
                for entry in footer.unpack(done.entries)
                if start <= entry.offset < end and entry.kind == record.MESSAGE
            )
            if names:
                more = ", …" if len(names) > _SHOWN else ""
                text += f" (message {', '.join(list(names)[:_SHOWN])}{more})"
            self._say(text)
