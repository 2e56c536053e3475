"""Scanning a log: what verifies is found, what lies between is damage, what follows is cut."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metad.store.log import files as log_files
from metad.store.log import header, record, scan
from metad.store.log.header import ACTIVE, LogHeader
from metad.store.log.scan import Damage, Scanner, find_seal
from metad.store.log.writer import LogWriter, round_up
from tests.support.osio_kit import KitOsio

SECRET = b"s" * 32
SIZE = 64 * 1024
_number = 0


class Log:
    """A log under test; bodies are appended, octets are spoiled."""

    def __init__(self, path: Path, align: int = 512, size: int = SIZE) -> None:
        global _number
        _number += 1
        self.osio = KitOsio()
        self.new = LogHeader(ACTIVE, 0, _number, 1000, size, align, 1, b"i" * 16, SECRET)
        fd = log_files.create(self.osio, str(path), self.new)
        self.writer = LogWriter(self.osio, fd, self.new)
        self.places: list[tuple[int, int]] = []

    def append(self, *bodies: bytes) -> None:
        """One group."""
        writer = self.writer
        buffers = []
        at = writer.end
        for body in bodies:
            payload = record.digest_payload(b"e", [body], writer.seed)
            head = writer.make_header(record.MESSAGE, bytes(16), payload)
            buffers.append(head + b"e" + body)
            self.places.append((at, len(buffers[-1])))
            at += len(buffers[-1])
        writer.append([buffers], at - writer.end, b"")

    def spoil(self, offset: int, data: bytes) -> None:
        self.osio.pwrite(self.writer.fd, data, offset)

    def scanner(self, start: int = 0, stop: int | None = None) -> Scanner:
        return Scanner(self.osio, self.writer.fd, self.new, start, stop)

    def scan(self, start: int = 0, stop: int | None = None) -> tuple[list[bytes], list[Damage]]:
        bodies: list[bytes] = []
        damage: list[Damage] = []
        for item in self.scanner(start, stop):
            if isinstance(item, Damage):
                damage.append(item)
            else:
                bodies.append(bytes(item.body))
        return bodies, damage

    def gap(self, number: int) -> Damage:
        """The range damaged with record `number`: from the end of the previous one to the next."""
        start = sum(self.places[number - 1]) if number else self.new.align
        return Damage(start, self.places[number + 1][0])

    def end(self) -> int:
        scanner = self.scanner()
        for _ in scanner:
            pass
        return scanner.end


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path)
    yield made
    made.osio.close_all()


BODIES = [b"a" * 100, b"b" * 700, b"", b"d" * 440, b"e" * 3000]


def test_every_record_is_found(log: Log) -> None:
    for body in BODIES:
        log.append(body)
    log.append(*BODIES)
    assert log.scan() == (BODIES + BODIES, [])
    assert log.end() == log.writer.end


def test_an_empty_log_has_nothing(log: Log) -> None:
    assert log.scan() == ([], [])
    assert log.end() == 512


def test_records_over_window_borders_are_found(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "WINDOW", 600)
    log.append(*BODIES)
    log.append(*BODIES)
    log.spoil(log.places[1][0] + 80, b"\xff")
    bodies, damage = log.scan()
    assert bodies == [BODIES[0], *BODIES[2:], *BODIES]
    assert damage == [log.gap(1)]


def test_the_last_group_begins_where_padding_says(log: Log) -> None:
    """A record that fills its block hides the boundary: then more counts as the last group."""

    def group(start: int = 0) -> int:
        scanner = log.scanner(start)
        for _ in scanner:
            pass
        return scanner.group

    assert group() == 512
    log.append(b"one")
    log.append(b"two", b"three")
    assert group() == log.places[1][0]
    log.append(b"f" * (512 - record.HEADER_SIZE - 1))
    begins = log.places[3][0]
    log.append(b"four", b"five")
    assert group() == begins
    assert group(log.places[4][0]) == log.places[4][0]
    log.append(b"six" * 400, b"seven")
    begins = log.places[6][0]
    assert group() == begins
    log.append(b"eight")
    log.spoil(log.places[6][0] + 10, b"\xff")
    log.spoil(log.places[7][0] + 10, b"\xff")
    assert group() == log.places[3][0]


def test_a_scan_from_the_middle_finds_the_rest(log: Log) -> None:
    for body in BODIES:
        log.append(body)
    assert log.scan(log.places[2][0]) == (BODIES[2:], [])


def test_a_scan_stops_where_it_is_told(log: Log) -> None:
    for body in BODIES:
        log.append(body)
    assert log.scan(0, log.places[3][0]) == (BODIES[:3], [])


def test_a_scan_ends_at_the_seal(log: Log) -> None:
    log.append(*BODIES)
    end = log.writer.end
    log.writer.seal()
    assert log.scan() == (BODIES, [])
    assert log.end() == end


@pytest.mark.parametrize("broken", range(5))
def test_a_spoiled_record_costs_only_itself(log: Log, broken: int) -> None:
    for body in BODIES:
        log.append(body)
    log.append(b"after")
    offset, size = log.places[broken]
    log.spoil(offset + size // 2, b"\x55\xaa")
    bodies, damage = log.scan()
    assert bodies == [*BODIES[:broken], *BODIES[broken + 1 :], b"after"]
    assert damage == [log.gap(broken)]


def test_a_group_of_zeros_in_the_middle_is_damage(log: Log) -> None:
    for body in BODIES:
        log.append(body)
    offset, size = log.places[1]
    log.spoil(offset, bytes(round_up(size, 512)))
    bodies, damage = log.scan()
    assert bodies == [BODIES[0], *BODIES[2:]]
    assert damage == [log.gap(1)]


def test_a_torn_last_group_is_cut_without_damage(log: Log) -> None:
    log.append(b"whole")
    end = log.writer.end
    log.append(b"torn" * 500)
    log.spoil(end + 512, bytes(512))
    assert log.scan() == ([b"whole"], [])
    assert log.end() == end


def test_a_torn_record_before_a_whole_one_of_its_group_is_damage(log: Log) -> None:
    log.append(b"whole")
    end = log.writer.end
    log.append(b"torn" * 500, b"good" * 500)
    log.spoil(end + 512, bytes(512))
    assert log.scan() == ([b"whole", b"good" * 500], [log.gap(1)])


def test_records_of_an_earlier_life_are_not_found(log: Log) -> None:
    for body in BODIES:
        log.append(body)
    log.new = log.new._replace(life=1001)
    assert log.scan() == ([], [])


def test_a_record_inside_a_body_is_not_found(log: Log) -> None:
    """A mailed piece of a log, even of this one with its secret unknown, is only text."""
    other = record.digest_payload(b"e", [b"forged"], 12345)
    forged = record.make_header(record.MESSAGE, 1000, 9, bytes(16), other) + b"eforged"
    log.append(b"x" * 439 + forged + forged)
    log.append(forged)
    offset, _ = log.places[0]
    log.spoil(offset + 3, b"!")
    assert log.scan() == ([forged], [Damage(offset, log.places[1][0])])


def test_a_record_mailed_back_into_its_own_log_counts_once(log: Log) -> None:
    """A true record inside a whole body is skipped with it."""
    log.append(b"true")
    copy = log.osio.pread(log.writer.fd, log.places[0][1], log.places[0][0])
    log.append(copy)
    assert log.scan() == ([b"true", copy], [])


@pytest.mark.slow
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(st.lists(st.lists(st.binary(max_size=900), min_size=1, max_size=4), max_size=6),
       st.integers(0, 2**32), st.sampled_from([512, 4096]))  # fmt: skip
def test_a_spoiled_byte_costs_at_most_one_record(
    tmp_path: Path, groups: list[list[bytes]], seed: int, align: int
) -> None:
    log = Log(tmp_path, align)
    for group in groups:
        log.append(*group)
    log.append(b"last but one")
    log.append(b"last")
    rng = random.Random(seed)
    at = rng.randrange(align, log.places[-1][0])
    old = log.osio.pread(log.writer.fd, 1, at)
    log.spoil(at, bytes([old[0] ^ (1 << rng.randrange(8))]))
    bodies, damage = log.scan()
    expected = [body for group in groups for body in group]
    expected += [b"last but one", b"last"]
    hit = [n for n, (offset, size) in enumerate(log.places) if offset <= at < offset + size]
    for number in hit:
        del expected[number]
    assert bodies == expected
    assert len(damage) == 1  # padding that is no longer zero is damage too, of no record
    log.osio.close_all()


# -- seals


def sealed(log: Log) -> LogHeader:
    log.append(*BODIES)
    log.writer.seal()
    found = header.read(log.osio, log.writer.fd, SECRET)
    assert found is not None
    return found


def test_a_seal_says_the_end(log: Log) -> None:
    seal = find_seal(log.osio, log.writer.fd, sealed(log))
    assert seal is not None
    assert (seal.end, seal.covers_from) == (log.writer.end, 512)


def test_a_log_that_is_not_sealed_has_no_seal(log: Log) -> None:
    log.append(b"x")
    assert find_seal(log.osio, log.writer.fd, log.new) is None


def test_every_spoiled_byte_of_a_seal_is_found(log: Log) -> None:
    its = sealed(log)
    for at in range(its.seal_offset, its.seal_offset + its.seal_size):
        old = log.osio.pread(log.writer.fd, 1, at)
        log.spoil(at, bytes([old[0] ^ 0x10]))
        assert find_seal(log.osio, log.writer.fd, its) is None, f"octet {at}"
        log.spoil(at, old)


@pytest.mark.parametrize(
    "change", [{"seal_offset": 512}, {"seal_size": 80}, {"seal_size": 1 << 20}]
)
def test_a_seal_that_is_not_where_the_header_says_is_none(log: Log, change: dict[str, int]) -> None:
    its = sealed(log)
    assert find_seal(log.osio, log.writer.fd, its._replace(**change)) is None  # type: ignore[arg-type]


def test_a_confirmation_is_a_group_of_its_own(log: Log) -> None:
    """Also behind a record that fills its block, which hides where the next group begins."""
    room = log.new.align - record.HEADER_SIZE - 1
    log.append(b"x" * 100)
    log.append(b"y" * room)
    confirmation = log.writer.end
    payload = record.digest_payload(record.pack_deletion(0), [b""], log.writer.seed)
    head = log.writer.make_header(record.DELETION, bytes(16), payload)
    data = head + record.pack_deletion(0)
    log.writer.append([[data]], len(data), b"")
    scanner = log.scanner()
    assert [one.header.is_confirmation for one in scanner] == [False, False, True]
    assert scanner.group == confirmation
    log.append(b"z" * room)
    behind = log.scanner()
    assert [one.header.is_confirmation for one in behind][-1] is False
    assert confirmation < behind.group
