"""The writer of a log: groups, room for the seal, poison, zeros ahead."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store.log import files as log_files
from metad.store.log import footer, header, record
from metad.store.log.header import ACTIVE, LogHeader
from metad.store.log.scan import Scanner, find_seal
from metad.store.log.writer import LogWriter, round_up
from tests.support.osio_kit import Faults, KitOsio

SECRET = b"s" * 32
SIZE = 64 * 1024


def make(path: Path, osio: KitOsio, align: int = 512, size: int = SIZE) -> LogWriter:
    new = LogHeader(ACTIVE, 0, 1, 1000, size, align, 1, b"i" * 16, SECRET)
    return LogWriter(osio, log_files.create(osio, str(path), new), new)


@pytest.fixture
def osio() -> Iterator[KitOsio]:
    made = KitOsio(faults=Faults())
    yield made
    made.close_all()


def append(writer: LogWriter, body: bytes, recipients: int = 1) -> bytes:
    payload = record.digest_payload(b"e", [body], writer.seed)
    record_id = writer.sequence.to_bytes(16, "big")
    head = writer.make_header(record.MESSAGE, record_id, payload)
    boxes = tuple(record.Recipient(m, "", len(body)) for m in range(recipients))
    size = len(head) + 1 + len(body)
    entries = footer.message_entries(record_id, writer.end, size, boxes)
    writer.append([[head + b"e", body]], size, entries)
    return entries


def scanned(writer: LogWriter, osio: KitOsio) -> list[bytes]:
    return [bytes(f.body) for f in Scanner(osio, writer.fd, writer.log)]


@pytest.mark.parametrize("align", [512, 4096])
def test_each_group_starts_on_a_boundary(tmp_path: Path, osio: KitOsio, align: int) -> None:
    writer = make(tmp_path, osio, align)
    for size in (0, 1, align - 73, align - 72, align, 3 * align):
        assert writer.end % align == 0
        append(writer, b"x" * size)
    assert [len(b) for b in scanned(writer, osio)] == [
        0,
        1,
        align - 73,
        align - 72,
        align,
        3 * align,
    ]


def test_an_append_is_synced_before_it_returns(tmp_path: Path, osio: KitOsio) -> None:
    writer = make(tmp_path, osio)
    before = len(osio.syncs)
    append(writer, b"x")
    assert len(osio.syncs) == before + 1


def test_without_sync_nothing_is_synced(tmp_path: Path, osio: KitOsio) -> None:
    made = make(tmp_path, osio)
    writer = LogWriter(osio, made.fd, made.log, sync=False)
    before = len(osio.syncs)
    append(writer, b"x")
    assert len(osio.syncs) == before


def test_a_group_in_several_parts_is_one_group(tmp_path: Path, osio: KitOsio) -> None:
    writer = make(tmp_path, osio)
    body = [b"a" * 700, b"b" * 600, b"c" * 17]
    payload = record.digest_payload(b"e", body, writer.seed)
    head = writer.make_header(record.MESSAGE, bytes(16), payload)
    size = len(head) + 1 + sum(map(len, body))
    writer.append([[head + b"e"], *[[part] for part in body]], size, b"")
    assert writer.end == 512 + round_up(size, 512)
    append(writer, b"next")
    assert scanned(writer, osio) == [b"".join(body), b"next"]


def test_a_group_of_another_size_than_announced_poisons(tmp_path: Path, osio: KitOsio) -> None:
    writer = make(tmp_path, osio)
    with pytest.raises(OSError, match="announced"):
        writer.append([[b"x" * 10]], 11, b"")
    assert writer.poisoned
    assert writer.end == 512


def test_a_full_log_can_always_be_sealed(tmp_path: Path, osio: KitOsio) -> None:
    for recipients in (1, 3, 40):
        directory = tmp_path / str(recipients)
        directory.mkdir()
        writer = make(directory, osio)
        entries = b""
        size = record.HEADER_SIZE + 1 + 300
        while writer.fits(size, recipients * footer.ENTRY_SIZE):
            entries += append(writer, b"x" * 300, recipients)
        assert writer.room() < size + recipients * footer.ENTRY_SIZE + 512
        end = writer.end
        writer.seal()
        log = header.read(osio, writer.fd, SECRET)
        assert log is not None
        assert log.seal_offset + log.seal_size <= SIZE - 512
        seal = find_seal(osio, writer.fd, log)
        assert seal is not None
        assert (seal.end, seal.covers_from, seal.entries) == (end, 512, entries)


@pytest.mark.parametrize(("kind", "short"), [("write", False), ("write", True), ("sync", False)])
def test_a_failed_append_poisons_and_leaves_the_end(
    tmp_path: Path, osio: KitOsio, kind: str, short: bool
) -> None:
    writer = make(tmp_path, osio)
    append(writer, b"good")
    end, syncs = writer.end, len(osio.syncs)
    osio.faults = Faults(kind, 1, short=short)
    with pytest.raises(OSError):
        append(writer, b"bad")
    assert writer.poisoned
    assert writer.end == end
    failed = len(osio.syncs)
    with pytest.raises(OSError, match="failed earlier"):
        append(writer, b"more")
    assert len(osio.syncs) == failed <= syncs + 1
    assert len(writer.entries) == footer.ENTRY_SIZE


def test_a_sealed_log_takes_nothing_more(tmp_path: Path, osio: KitOsio) -> None:
    writer = make(tmp_path, osio)
    append(writer, b"x")
    writer.seal()
    with pytest.raises(OSError, match="failed earlier"):
        append(writer, b"y")


def test_the_successor_says_where_a_poisoned_log_ends(tmp_path: Path, osio: KitOsio) -> None:
    broken = make(tmp_path, osio)
    append(broken, b"x")
    (tmp_path / "next").mkdir()
    successor = make(tmp_path / "next", osio)
    successor.state_predecessor(broken)
    found = header.read(osio, successor.fd, SECRET)
    assert found is not None
    assert (found.predecessor_life, found.predecessor_end) == (1000, broken.end)
    assert osio.syncs[-1][1]


def test_a_statement_that_cannot_be_synced_poisons_the_successor(
    tmp_path: Path, osio: KitOsio
) -> None:
    broken = make(tmp_path, osio)
    (tmp_path / "next").mkdir()
    successor = make(tmp_path / "next", osio)
    osio.faults = Faults("sync", 1)
    with pytest.raises(OSError):
        successor.state_predecessor(broken)
    assert successor.poisoned


# -- zeros ahead of the tail


def big(tmp_path: Path, osio: KitOsio) -> LogWriter:
    writer = make(tmp_path, osio, size=2 << 20)
    writer.zero_from_here()
    return writer


def test_zeros_are_written_ahead_as_far_as_asked(tmp_path: Path, osio: KitOsio) -> None:
    writer = big(tmp_path, osio)
    os.pwrite(writer.fd, b"\xff" * (1 << 20), 512)
    steps = 0
    while writer.zero_step(600_000):
        steps += 1
    assert steps == 3
    assert not any(os.pread(writer.fd, 3 * 256 * 1024, 512))
    assert os.pread(writer.fd, 1, 512 + 3 * 256 * 1024) == b"\xff"


def test_zeros_stop_before_the_last_header(tmp_path: Path, osio: KitOsio) -> None:
    writer = big(tmp_path, osio)
    while writer.zero_step(1 << 30):
        pass
    assert header.read(osio, writer.fd, SECRET) == writer.log
    assert header.parse(os.pread(writer.fd, 512, (2 << 20) - 512), SECRET) is not None


def test_zeros_never_touch_mail_that_overtook_them(tmp_path: Path, osio: KitOsio) -> None:
    writer = big(tmp_path, osio)
    append(writer, b"x" * 700_000)
    while writer.zero_step(1 << 30):
        pass
    assert scanned(writer, osio) == [b"x" * 700_000]


def test_a_reused_log_is_not_zeroed(tmp_path: Path, osio: KitOsio) -> None:
    assert not make(tmp_path, osio).zero_step(1 << 30)


def test_zeros_do_not_follow_a_seal(tmp_path: Path, osio: KitOsio) -> None:
    writer = big(tmp_path, osio)
    append(writer, b"x")
    writer.seal()
    assert not writer.zero_step(1 << 30)


def test_a_failed_sync_of_zeros_poisons_the_log(tmp_path: Path, osio: KitOsio) -> None:
    """The kernel reports a failed write-back once per descriptor and marks the pages clean: a
    later sync of the same file could succeed without the mail on the disk."""
    writer = big(tmp_path, osio)
    append(writer, b"good")
    osio.faults = Faults("sync", 1, error=errno.EIO)
    with pytest.raises(OSError):
        writer.zero_step(1 << 30)
    failed = len(osio.syncs)
    with pytest.raises(OSError):
        append(writer, b"after")
    assert len(osio.syncs) == failed
