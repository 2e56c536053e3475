"""Rebuilds the whole index from the logs' footer entries, in bounded memory.

    entries of every log ─▶ spool ─▶ parts by id ─▶ places, in id order ──────────▶ LMDB
                                        │
                                        └─▶ surviving entries by mailbox, sorted ─▶ LMDB

Rules of this file:

* Everything about one message (its copies, recipients and deletions) has its id, so it is in one
  part: what survives is resolved there, in whatever order the logs were read.
* Parts are about equally large, whatever the mailboxes: one with ten million messages is cut like
  any other.
* A second process prepares parts while this one loads them; a small store needs only one.
* The new index is made beside the old one and takes its place by rename.  Only if the disk is too
  full for both is the old one, which is no longer trusted, removed first.
"""

from __future__ import annotations

import bisect
import itertools
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import msgpack

from metad.store.index.bulk_load import ENTRY_ROW, PLACE_ROW, Loader, Row
from metad.store.index.rows import LogCounts
from metad.store.index.tombstone_rows import Origin
from metad.store.log.footer import ENTRY_SIZE
from metad.store.log.record import DELETION
from metad.store.recovery.resolve import Fields, Resolution, fields_of

PART_ENTRIES = 200_000
SAMPLE_EVERY = 997
FORK_FROM = 300_000
PROGRESS_SECONDS = 2.0
ROOM_PER_ENTRY = 200  # octets: two copies in working files, and the tables
_CUT, _PLACES, _ENTRIES, _FAILED = range(4)
_CHUNK = struct.Struct("<II")

Report = Callable[[str], None]


class Source(NamedTuple):
    """One log: its number, life and end, and the footer entries of all its records."""

    number: int
    life: int
    end: int
    entries: bytes


@dataclass(slots=True)
class Work:
    """The working directory and the state of the whole rebuild."""

    directory: str
    logs: dict[int, Source] = field(default_factory=dict)
    total: int = 0
    ids: list[bytes] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    parent: int = 0
    clustered: bool = False

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def check_parent(self) -> None:
        """In the second process: exit if the parent is gone."""
        if self.parent and os.getppid() != self.parent:
            os._exit(1)


class Prepared(NamedTuple):
    """One part, ready to be loaded; `live` are messages and octets per log, `dead` the mailbox and
    id of each deletion in a clustered store."""

    places: bytes
    odd: list[Row]
    live: dict[int, tuple[int, int]]
    dead: list[bytes]


def rebuild(
    index: str,
    sources: Iterable[Source],
    report: Report,
    origin: Origin | None = None,
    expected: int = 0,
) -> None:
    """Replace the index at `index` by one made of `sources`, about `expected` of them.

    With `origin` it keeps tombstones: each deletion record makes one, numbered by that origin.
    Raises OSError, lmdb.Error; then nothing is left of the new one.
    """
    fresh = f"{index}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _make(fresh, index, sources, report, origin, expected)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    old = f"{index}.old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.isdir(index):
        os.rename(index, old)
    os.rename(fresh, index)
    shutil.rmtree(old, ignore_errors=True)


def _make(
    fresh: str, index: str, sources: Iterable[Source], report: Report, origin: Origin | None,
    expected: int,
) -> None:  # fmt: skip
    """Make the new index at `fresh`."""
    work = Work(f"{fresh}/work", clustered=origin is not None)
    os.makedirs(work.directory, 0o700)
    _spool(work, sources, report, expected)
    if os.path.isdir(index) and _free_space(fresh) < work.total * ROOM_PER_ENTRY:
        report("index: too little space for two; removing the old one first")
        shutil.rmtree(index)
    loader = Loader(fresh, origin)
    try:
        _load(work, loader, report)
    finally:
        loader.close()
    shutil.rmtree(work.directory)


def _free_space(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


# -- spool: all entries in one file, with samples of ids and keys (mailbox and id)


def _spool(work: Work, sources: Iterable[Source], report: Report, expected: int) -> None:
    step = SAMPLE_EVERY * ENTRY_SIZE
    progress = _Progress(report)
    with open(work.path("spool"), "wb") as out:
        for source in sources:
            entries = source.entries
            out.write(_CHUNK.pack(source.number, len(entries)) + entries)
            work.logs[source.number] = source._replace(entries=b"")
            work.total += len(entries) // ENTRY_SIZE
            for at in range(0, len(entries), step):
                work.ids.append(entries[at + 4 : at + 20])
                work.keys.append(entries[at : at + 20])
            share = len(work.logs) / expected if expected else 0.0
            progress.show(f"{len(work.logs)} logs read, {work.total:,} entries", share)


def _bounds(samples: list[bytes], parts: int) -> list[bytes]:
    """Where to cut, to make the parts about equal."""
    ordered = sorted(samples)
    step = len(ordered) / parts
    return sorted({ordered[int(number * step)] for number in range(1, parts)} if ordered else ())


def _chunks(path: str) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        while head := file.read(_CHUNK.size):
            number, size = _CHUNK.unpack(head)
            yield number, file.read(size)


def _split(work: Work, bounds: list[bytes]) -> Iterator[int]:
    """Cut the spool into parts by id; yields how many entries are cut so far."""
    done = 0
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
            done += len(entries)
            yield done
    finally:
        for file in files:
            file.close()
    os.unlink(work.path("spool"))


_id_of = itemgetter(slice(4, 20))


# -- one part: what survives


def _prepare(work: Work, part: int, bounds: list[bytes]) -> Prepared:
    """Resolve a part; its surviving entries go to the files of their mailboxes."""
    rows: list[Fields] = []
    path = work.path(f"part-{part}")
    for number, data in _chunks(path):
        rows += fields_of(number, data)
    os.unlink(path)
    rows.sort()
    resolved = Resolution({number: source.life for number, source in work.logs.items()})
    resolved.run(rows)
    resolved.survivors.sort()
    _append_survivors(work, resolved.survivors, bounds)
    live = {number: (m, o) for number, (m, o) in resolved.live.items()}
    dead = sorted({row[2] + row[0] for row in rows if row[1] == DELETION}) if work.clustered else []
    return Prepared(b"".join(resolved.places), resolved.odd, live, dead)


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
    """Everything to be loaded, one packed piece after another."""
    parts = min(work.total // PART_ENTRIES + 1, _most_parts())
    by_id = _bounds(work.ids, parts)
    by_key = _bounds(work.keys, parts)
    for done in _split(work, by_id):
        yield msgpack.packb((_CUT, done))
    for part in range(len(by_id) + 1):
        prepared = _prepare(work, part, by_key)
        yield msgpack.packb((_PLACES, *prepared))
    for bucket in range(len(by_key) + 1):
        yield msgpack.packb((_ENTRIES, _sorted_bucket(work, bucket)))


def _most_parts() -> int:
    """Each part is an open file while the entries are cut, so a low limit on open files makes parts
    larger."""
    return max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 1)


def _load(work: Work, loader: Loader, report: Report) -> None:
    """Load each step as it arrives."""
    live: dict[int, list[int]] = {number: [0, 0] for number in work.logs}
    progress = _Progress(report)
    entries = messages = 0
    for packed in _steps_of_child(work) if work.total >= FORK_FROM else _steps(work):
        kind, data, *more = msgpack.unpackb(packed, strict_map_key=False, use_list=False)
        if kind == _CUT:
            progress.show(f"{data:,} of {work.total:,} entries sorted", data / max(work.total, 1))
        elif kind == _PLACES:
            odd, counts, dead = more
            loader.places(data)
            loader.odd_places(odd)
            loader.tombstones(dead)
            _add(live, counts)
            messages += len(data) // PLACE_ROW + len(odd)
            text = f"{messages:,} messages of about {work.total:,} entries loaded"
            progress.show(text, messages / max(work.total, 1))
        elif kind == _ENTRIES:
            loader.entries(data)
            entries += len(data) // ENTRY_ROW
            text = f"{messages:,} messages, {entries:,} entries of mailboxes loaded"
            progress.show(text, entries / max(work.total, 1))
        else:
            raise OSError(f"preparing the index failed: {data}")
    loader.finish(
        {
            number: LogCounts(source.life, source.end, *live[number])
            for number, source in work.logs.items()
        }
    )


def _add(live: dict[int, list[int]], counts: dict[int, tuple[int, int]]) -> None:
    for number, (messages, octets) in counts.items():
        live[number][0] += messages
        live[number][1] += octets


def _steps_of_child(work: Work) -> Iterator[bytes]:
    """The steps, prepared by a child one ahead of us.  Raises OSError if it dies."""
    reader, writer = os.pipe()
    work.parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_child(work, writer)
    work.parent = 0
    os.close(writer)
    try:
        with os.fdopen(reader, "rb", 1 << 20) as pipe:
            while head := pipe.read(8):
                yield pipe.read(int.from_bytes(head, "little"))
    finally:
        _, status = os.waitpid(pid, 0)
    if status:
        raise OSError(f"preparing the index failed (exit {os.waitstatus_to_exitcode(status)})")


def _be_child(work: Work, writer: int) -> None:
    """Send every step, and the error that ended them, if any; never returns."""
    code = 1
    try:
        with os.fdopen(writer, "wb") as out:
            try:
                for step in _steps(work):
                    work.check_parent()
                    out.write(len(step).to_bytes(8, "little") + step)
                    out.flush()
            except OSError as error:
                step = msgpack.packb((_FAILED, str(error)))
                out.write(len(step).to_bytes(8, "little") + step)
        code = 0
    finally:
        os._exit(code)


class _Progress:
    """Reports progress every two seconds, with the time that is left of a step."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._began = time.monotonic()
        self._next = self._began + PROGRESS_SECONDS
        self._share = 0.0

    def show(self, how_far: str, share: float = 0.0) -> None:
        """`share` of the step is done; a smaller one than before begins another step."""
        now = time.monotonic()
        if share < self._share:
            self._began = now
        self._share = share
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            rest = (now - self._began) * (1 - share) / share if share else 0.0
            self._report(f"index: {how_far}" + (f", {rest:.0f} s left" if rest >= 1 else ""))
