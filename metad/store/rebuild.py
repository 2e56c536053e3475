"""The whole index from the logs' footer entries, in bounded memory.

    entries of every log ─▶ spool ─▶ parts by id ─▶ places, in id order ──────────▶ LMDB
                                        │
                                        └─▶ surviving entries by mailbox, sorted ─▶ LMDB

Rules of this file:

* Everything that speaks of one message (its copies, its recipients, its deletions) has its id, so
  it is in one part: what survives is decided there, whatever order the logs were read in.
* A copy counts as a place as long as it lies in a log; the first place is that in the younger life.
* A second process prepares parts while this one loads them; a small store needs no second.
* The new index is made beside the old one and takes its place by rename.
"""

from __future__ import annotations

import bisect
import itertools
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import msgpack

from metad.store.bulk import ENTRY_ROW, Loader, Row
from metad.store.footer import ENTRY_SIZE
from metad.store.index import LogCounts, Place, pack_places
from metad.store.record import MESSAGE

PART_ENTRIES = 200_000
SAMPLE_EVERY = 997
FORK_FROM = 300_000
PROGRESS_SECONDS = 2.0
_CHUNK = struct.Struct("<II")
_FIELDS = struct.Struct(">4s16s8s4sB3x")
_PLACE_ROW = struct.Struct(">16sII8s")

Report = Callable[[str], None]


class Source(NamedTuple):
    """One log: its number, life and end, and the footer entries of all its records."""

    number: int
    life: int
    end: int
    entries: bytes


@dataclass(slots=True)
class Work:
    """The working directory and what is known of the whole."""

    directory: str
    logs: dict[int, Source] = field(default_factory=dict)
    total: int = 0
    ids: list[bytes] = field(default_factory=list)
    mailboxes: list[bytes] = field(default_factory=list)

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)


class Prepared(NamedTuple):
    """One part, ready to be loaded; `live` are messages and octets per log."""

    places: bytes
    odd: list[Row]
    live: dict[int, tuple[int, int]]


def rebuild(index: str, sources: Iterable[Source], report: Report) -> None:
    """Replace the index at `index` by one made of `sources`.  Raises OSError, lmdb.Error."""
    fresh = f"{index}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    work = Work(f"{fresh}/work")
    os.makedirs(work.directory, 0o700)
    _spool(work, sources)
    loader = Loader(fresh)
    try:
        _load(work, loader, report)
    finally:
        loader.close()
    shutil.rmtree(work.directory)
    old = f"{index}.old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.isdir(index):
        os.rename(index, old)
    os.rename(fresh, index)
    shutil.rmtree(old, ignore_errors=True)


# -- spool: all entries in one file, with samples of ids and mailboxes


def _spool(work: Work, sources: Iterable[Source]) -> None:
    step = SAMPLE_EVERY * ENTRY_SIZE
    with open(work.path("spool"), "wb") as out:
        for source in sources:
            entries = source.entries
            out.write(_CHUNK.pack(source.number, len(entries)) + entries)
            work.logs[source.number] = source._replace(entries=b"")
            work.total += len(entries) // ENTRY_SIZE
            for at in range(0, len(entries), step):
                work.ids.append(entries[at + 4 : at + 20])
                work.mailboxes.append(entries[at : at + 4])


def _bounds(samples: list[bytes], parts: int) -> list[bytes]:
    """Where to cut, so that the parts are about equal."""
    ordered = sorted(samples)
    step = len(ordered) / parts
    return sorted({ordered[int(number * step)] for number in range(1, parts)} if ordered else ())


def _chunks(path: str) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        while head := file.read(_CHUNK.size):
            number, size = _CHUNK.unpack(head)
            yield number, file.read(size)


def _split(work: Work, bounds: list[bytes]) -> None:
    """Cut the spool into parts by id."""
    files = [open(work.path(f"part-{n}"), "wb") for n in range(len(bounds) + 1)]
    try:
        for number, data in _chunks(work.path("spool")):
            entries = [data[at : at + ENTRY_SIZE] for at in range(0, len(data), ENTRY_SIZE)]
            entries.sort(key=_id_of)
            cuts = [0, *(bisect.bisect_left(entries, b, key=_id_of) for b in bounds), len(entries)]
            for file, (low, high) in zip(files, itertools.pairwise(cuts), strict=True):
                if low < high:
                    some = b"".join(entries[low:high])
                    file.write(_CHUNK.pack(number, len(some)) + some)
    finally:
        for file in files:
            file.close()
    os.unlink(work.path("spool"))


_id_of = itemgetter(slice(4, 20))


# -- one part: what survives


def _prepare(work: Work, part: int, bounds: list[bytes]) -> Prepared:
    """Decide a part; its surviving entries go to the files of their mailboxes."""
    rows: list[tuple[bytes, int, bytes, int, bytes, bytes]] = []
    path = work.path(f"part-{part}")
    for number, data in _chunks(path):
        rows += [
            (message_id, kind, mailbox, number, place, octets)
            for mailbox, message_id, place, octets, kind in _FIELDS.iter_unpack(data)
        ]
    os.unlink(path)
    rows.sort()
    decided = _Decision(work)
    decided.run(rows)
    decided.survivors.sort()
    _append_survivors(work, decided.survivors, bounds)
    live = {number: (m, o) for number, (m, o) in decided.live.items()}
    return Prepared(b"".join(decided.places), decided.odd, live)


class _Decision:
    """What becomes of the messages of one part."""

    def __init__(self, work: Work) -> None:
        self._lives = {number: source.life for number, source in work.logs.items()}
        self.places: list[bytes] = []
        self.odd: list[Row] = []
        self.survivors: list[bytes] = []
        self.live: dict[int, list[int]] = {}

    def run(self, rows: list[tuple[bytes, int, bytes, int, bytes, bytes]]) -> None:
        """`rows` sorted: id, kind (messages first), mailbox, log, place, octets."""
        at, count = 0, len(rows)
        while at < count:
            message_id, kind, mailbox, number, place, octets = rows[at]
            stop = at + 1
            while stop < count and rows[stop][0] == message_id:
                stop += 1
            if stop - at > 1:
                self._several(message_id, rows[at:stop])
            elif kind == MESSAGE:  # by far the most: one recipient, not deleted, one copy
                self.places.append(_PLACE_ROW.pack(message_id, 1, number, place))
                self.survivors.append(mailbox + message_id + octets)
                self._count(number, int.from_bytes(place[4:], "big"))
            at = stop

    def _several(
        self, message_id: bytes, rows: list[tuple[bytes, int, bytes, int, bytes, bytes]]
    ) -> None:
        """Copies, recipients and deletions of one message."""
        gone = {mailbox for _, kind, mailbox, *_ in rows if kind != MESSAGE}
        named: dict[bytes, bytes] = {}
        places: dict[Place, int] = {}
        for _, kind, mailbox, number, place, octets in rows:
            if kind == MESSAGE:
                where = Place(number, *struct.unpack(">II", place))
                places.setdefault(where, 0)
                if mailbox not in gone:
                    named[mailbox] = octets
                    places[where] += 1
        if not places:
            return
        # First a copy that names all of them (metad.store.moves), the youngest of such.
        ordered = sorted(
            places, key=lambda p: (places[p], self._lives[p.log], p.offset), reverse=True
        )
        self.survivors += [mailbox + message_id + octets for mailbox, octets in named.items()]
        value = pack_places(len(named), ordered)
        if len(ordered) == 1:
            self.places.append(message_id + value)
        else:
            self.odd.append((message_id, value))
        if named:
            self._count(ordered[0].log, ordered[0].size)

    def _count(self, number: int, size: int) -> None:
        live = self.live.get(number)
        if live is None:
            live = self.live[number] = [0, 0]
        live[0] += 1
        live[1] += size


def _append_survivors(work: Work, survivors: list[bytes], bounds: list[bytes]) -> None:
    cuts = [0, *(bisect.bisect_left(survivors, bound) for bound in bounds), len(survivors)]
    for bucket, (low, high) in enumerate(itertools.pairwise(cuts)):
        if low < high:
            with open(work.path(f"bucket-{bucket}"), "ab") as file:
                file.write(b"".join(survivors[low:high]))


def _sorted_bucket(work: Work, bucket: int) -> bytes:
    """All surviving entries of some mailboxes, in order."""
    try:
        with open(work.path(f"bucket-{bucket}"), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return b""
    os.unlink(work.path(f"bucket-{bucket}"))
    rows = [data[at : at + ENTRY_ROW] for at in range(0, len(data), ENTRY_ROW)]
    rows.sort()
    return b"".join(rows)


# -- the two processes


def _steps(work: Work) -> Iterator[bytes]:
    """All that is to be loaded, one packed piece after the other."""
    parts = work.total // PART_ENTRIES + 1
    by_id = _bounds(work.ids, parts)
    by_mailbox = _bounds(work.mailboxes, parts)
    _split(work, by_id)
    for part in range(len(by_id) + 1):
        prepared = _prepare(work, part, by_mailbox)
        yield msgpack.packb((0, prepared.places, prepared.odd, prepared.live))
    for bucket in range(len(by_mailbox) + 1):
        yield msgpack.packb((1, _sorted_bucket(work, bucket)))


def _load(work: Work, loader: Loader, report: Report) -> None:
    """Load every step as it comes."""
    live: dict[int, list[int]] = {number: [0, 0] for number in work.logs}
    progress = _Progress(work.total, report)
    steps = _steps_of_child(work) if work.total >= FORK_FROM else _steps(work)
    for packed in steps:
        kind, data, *more = msgpack.unpackb(packed, strict_map_key=False, use_list=False)
        if kind == 0:
            odd, counts = more
            loader.places(data)
            loader.odd_places(odd)
            for number, (messages, octets) in counts.items():
                live[number][0] += messages
                live[number][1] += octets
            progress.add(len(data) // 64)
        else:
            loader.entries(data)
            progress.add(len(data) // 48)
    loader.logs(
        {
            number: LogCounts(source.life, source.end, *live[number])
            for number, source in work.logs.items()
        }
    )


def _steps_of_child(work: Work) -> Iterator[bytes]:
    """The steps, prepared by a child one ahead of us.  Raises OSError if it fails."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as out:
                for step in _steps(work):
                    out.write(len(step).to_bytes(8, "little") + step)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb", 1 << 20) as pipe:
            while head := pipe.read(8):
                yield pipe.read(int.from_bytes(head, "little"))
    finally:
        _, status = os.waitpid(pid, 0)
    if status:
        raise OSError(f"preparing the index failed (exit {os.waitstatus_to_exitcode(status)})")


class _Progress:
    """Says every two seconds how far it is."""

    def __init__(self, total: int, report: Report) -> None:
        self._total = total
        self._report = report
        self._done = 0
        self._next = time.monotonic() + PROGRESS_SECONDS

    def add(self, count: int) -> None:
        self._done = min(self._done + count, self._total)
        if time.monotonic() >= self._next:
            self._next += PROGRESS_SECONDS
            self._report(f"index: {self._done:,} of about {self._total:,} entries")
