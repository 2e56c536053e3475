"""fsck: silent about every good store, and a line for every fault in a log."""

from __future__ import annotations

import itertools
import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from metad.errors import DataError
from metad.store.backup_lock import pinned
from metad.store.fsck import grouping, log_check
from metad.store.fsck.repair import repair
from metad.store.gc.collector import NotCollectableError
from metad.store.log.header import FREE, log_path
from metad.store.log.scan import find_seal
from metad.store.log.writer import Footer, round_up, seal
from metad.system.osio import Osio
from tests.support.collector_kit import collect, make_collector, sealed
from tests.support.fsck_kit import (
    assert_clean,
    drop_entries,
    flip,
    fsck,
    headers,
    last_message,
    spoil_index,
    stopped,
    work,
)
from tests.support.osio_kit import SEED, FakeClock, KitOsio, scaled
from tests.support.sizes import sized
from tests.support.store_kit import SECRET, StoreKit

# -- good stores


def test_an_empty_store_is_clean(kit: StoreKit) -> None:
    assert assert_clean(kit).logs == 0
    kit.start()
    kit.stop()
    assert assert_clean(kit).compared


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("end", ["crash", "stop"])
def test_a_store_is_clean_after_every_end_and_start(tmp_path: Path, seed: int, end: str) -> None:
    with StoreKit(tmp_path) as kit:
        for turn in range(3):
            kit.start(2)
            work(kit, seed * 10 + turn)
            live = len({each for box in range(4) for each, _ in kit.listing(box)})
            kit.stop() if end == "stop" else kit.crash()
            summary = assert_clean(kit)
            assert summary.compared
            assert (summary.messages, summary.notes) == (live, [])
            kit.recover()
            kit.crash()
            assert assert_clean(kit).messages == live


def test_a_store_without_an_index_is_clean_and_says_so(kit: StoreKit) -> None:
    stopped(kit)
    kit.drop_index()
    summary = assert_clean(kit)
    assert not summary.compared
    assert summary.notes == ["index: there is none; the next start rebuilds it"]
    kit.boot = "boot-2"
    kit.start()
    kit.crash()
    kit.boot = "boot-3"
    assert "was rebooted" in assert_clean(kit).notes[0]


def test_checksums_only_leaves_the_index_out(kit: StoreKit) -> None:
    stopped(kit)
    spoil_index(kit, lambda txn, index: txn.drop(index.tables.places, delete=False))
    summary = assert_clean(kit, compare=False)
    assert summary.records > 20
    assert not summary.compared
    assert fsck(kit)[0]


@pytest.mark.slow
def test_a_tail_that_is_not_entered_yet_is_a_note(kit: StoreKit) -> None:
    """As after kill -9 of a hub whose index was behind its logs."""
    kit.start(2)
    work(kit, 3)
    path = Path(kit.store.index) / "data.mdb"
    before = path.read_bytes()
    work(kit, 4)
    kit.crash()
    path.write_bytes(before)
    summary = assert_clean(kit)
    assert summary.compared
    assert len(summary.notes) >= 2
    assert all("the next start enters the rest" in note for note in summary.notes)
    kit.recover()
    kit.open_index()
    assert kit.check() > 0
    kit.crash()
    assert assert_clean(kit).notes == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["taken", "copied", "moved", "freeing", "freed", "dropped", "forgotten", "released"]
)
def test_a_store_is_clean_wherever_its_collector_was_cut_short(kit: StoreKit, point: str) -> None:
    kit.start(2)
    work(kit, 6, 80)
    hits = 0

    def failpoint(name: str) -> None:
        nonlocal hits
        hits += name == point
        if hits == 2:
            raise KeyboardInterrupt

    collector = make_collector(kit, failpoint)
    with pytest.raises(KeyboardInterrupt):
        collect(collector, sealed(kit))
    kit.crash()
    assert assert_clean(kit).compared
    kit.recover()
    kit.crash()
    assert_clean(kit)


def test_a_collected_store_is_clean(kit: StoreKit) -> None:
    kit.start(2)
    work(kit, 7, 80)
    collector = make_collector(kit)
    collect(collector, sealed(kit))
    work(kit, 8)
    collector.close()
    kit.stop()
    assert assert_clean(kit).compared


@pytest.mark.slow
def test_many_parts_say_what_one_part_says(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(kit)
    whole = assert_clean(kit)
    monkeypatch.setattr(grouping, "ROWS_PER_PART", 100)
    assert assert_clean(kit) == whole
    spoil_index(kit, drop_entries)
    assert len(fsck(kit)[0]) >= whole.messages


def test_nothing_is_changed_and_no_descriptor_is_left(kit: StoreKit) -> None:
    stopped(kit)
    names = [kit.store.logs, kit.store.index, kit.store.quarantine]
    before = {path: path.read_bytes() for name in names for path in Path(name).iterdir()}
    fds = set(os.listdir("/proc/self/fd"))
    assert_clean(kit)
    assert set(os.listdir("/proc/self/fd")) == fds
    after = {path: path.read_bytes() for name in names for path in Path(name).iterdir()}
    before.pop(Path(kit.store.index) / "lock.mdb")  # who reads is entered there
    after.pop(Path(kit.store.index) / "lock.mdb")
    assert after == before


# -- while a hub runs


def hub(data: Path, ready: int, parent: int) -> None:
    """In a child: work and collect until killed, or alone."""
    with StoreKit(data) as kit:
        kit.start(2)
        os.write(ready, b"1")
        collector = make_collector(kit)
        for turn in itertools.count():
            if os.getppid() != parent:
                return
            work(kit, turn, 20)
            for box in range(4):  # leave a few
                if ids := [each for each, _ in kit.listing(box)][:-15]:
                    kit.delete(box, ids)
            for number in sealed(kit)[:-8]:
                with suppress(NotCollectableError):
                    for step, _ in enumerate(collector.collect(number)):
                        if step == turn % 7:
                            work(kit, turn, 1)


@pytest.mark.slow
def test_there_is_no_false_alarm_beside_a_working_hub_and_collector(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        try:
            hub(tmp_path, writer, parent)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"1"
        kit = StoreKit(tmp_path)
        seen: set[tuple[int, int]] = set()
        looks = sized(20, 40)
        for _ in range(50 * looks):
            if len(seen) == looks:
                break
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            with pinned(Osio(), kit.store):
                summary = assert_clean(kit, running=True)
            seen.add((summary.records, summary.octets))
        assert len(seen) == looks  # it worked all the while
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
    assert_clean(kit)


# -- damaged logs


def written(kit: StoreKit, number: int) -> list[range]:
    """The octets of a log that are significant."""
    log = headers(kit, number)
    ends = [range(log.align), range(log.size - log.align, log.size)]
    if log.state == FREE:
        return ends
    return [*ends, range(log.align, round_up(log.seal_offset + log.seal_size, log.align))]


@pytest.mark.slow
def test_every_flipped_bit_of_a_log_is_found_and_none_that_means_nothing(tmp_path: Path) -> None:
    kit = StoreKit(tmp_path, KitOsio(clock=FakeClock()), size=8192)
    stopped(kit, count=12)
    kit.drop_index()
    meant = {number: written(kit, number) for number in log_check.log_numbers(Osio(), kit.store)}
    inside = [(n, at) for n, ranges in meant.items() for each in ranges for at in each]
    outside = [
        (n, at) for n, ranges in meant.items() for at in range(8192)
        if not any(at in each for each in ranges)
    ]  # fmt: skip
    rng = random.Random(SEED)
    some = [(*one, True) for one in rng.sample(inside, min(scaled(350), len(inside)))]
    some += [(*one, False) for one in rng.sample(outside, min(scaled(30), len(outside)))]
    for number, at, is_found in some:
        bit = rng.randrange(8)
        flip(log_path(kit.store.logs, number), at, bit)
        lines, _ = fsck(kit, compare=False)
        where = f"log {number}, octet {at}, bit {bit}, seed {SEED}"
        assert bool(lines) == is_found, where
        assert all(f"log {number}" in line for line in lines), where
        flip(log_path(kit.store.logs, number), at, bit)
    assert_clean(kit)


def test_damage_names_the_message_and_the_index_is_not_blamed(kit: StoreKit) -> None:
    number, entry = last_message(stopped(kit))
    flip(log_path(kit.store.logs, number), entry.offset + 80, 0)
    lines, summary = fsck(kit)
    end = round_up(entry.offset + entry.size, 512)
    assert lines == [
        f"log {number}: bytes {entry.offset} to {end} do not verify (message {entry.id.hex()})"
    ]
    assert summary.compared


def test_the_last_small_record_of_a_block_is_not_taken_for_padding(kit: StoreKit) -> None:
    kit.start()
    for _ in range(2):  # one group: the second begins within the first one's block
        kit.submit([1], b"x")
    kit.run()
    kit.stop()
    _, second = last_message(kit)
    assert 512 < second.offset < 1024
    flip(log_path(kit.store.logs, 1), second.offset, 0)
    lines, _ = fsck(kit)
    name = second.id.hex()
    assert lines == [f"log 1: bytes {second.offset} to 1024 do not verify (message {name})"]


def test_a_block_that_was_never_written_is_found(kit: StoreKit) -> None:
    number, entry = last_message(stopped(kit))
    with open(log_path(kit.store.logs, number), "r+b") as file:
        file.seek(entry.offset)
        file.write(bytes(entry.size))
    assert any("do not verify" in line for line in fsck(kit)[0])


def test_a_truncated_log_is_found(kit: StoreKit) -> None:
    stopped(kit)
    os.truncate(log_path(kit.store.logs, 1), 20000)
    lines, _ = fsck(kit)
    assert "log 1: the file has 20000 bytes, its header says 32768" in lines
    assert "log 1: the last header is damaged" in lines


def test_a_log_that_is_not_there_is_found(kit: StoreKit) -> None:
    stopped(kit)
    kit.osio.unlink(log_path(kit.store.logs, 1))
    lines, _ = fsck(kit)
    assert any("log 1 has" in line and "is not there" in line for line in lines)


def test_a_log_without_headers_is_read_by_its_records(kit: StoreKit) -> None:
    stopped(kit)
    path = log_path(kit.store.logs, 1)
    with open(path, "r+b") as file:
        file.write(bytes(512))
        file.seek(-512, os.SEEK_END)
        file.write(bytes(512))
    lines, summary = fsck(kit)
    assert lines == ["log 1: both headers are damaged"]
    assert summary.compared
    with open(path, "wb") as file:
        file.truncate(32768)
    assert "log 1: both headers are damaged, and no record verifies" in fsck(kit)[0]


def test_the_wrong_secret_is_reported_and_nothing_is_repaired(kit: StoreKit) -> None:
    stopped(kit)
    before = sorted(os.listdir(kit.store.logs))
    path = kit.data / "store.json"
    path.write_text(path.read_text().replace(SECRET.hex(), SECRET[::-1].hex()))
    other = StoreKit(kit.data)
    lines, summary = fsck(other)
    assert "log 1: it is of another store, or the secret in store.json is damaged" in lines
    with pytest.raises(DataError):
        repair(Osio(), other.store, "boot", summary, lines.append)
    assert sorted(os.listdir(kit.store.logs)) == before


def test_a_footer_that_says_something_else_is_found(kit: StoreKit) -> None:
    stopped(kit)
    log = headers(kit, 1)
    fd = os.open(log_path(kit.store.logs, 1), os.O_RDWR)
    found = find_seal(Osio(), fd, log)
    assert found is not None
    lying = found.entries[:-36] + found.entries[:36]
    seal(Osio(), fd, log, found.end, Footer(lying, 99, found.covers_from))
    os.close(fd)
    assert "log 1: its footer disagrees with its records" in fsck(kit)[0]


def test_a_log_that_cannot_be_read_is_named_and_the_rest_is_checked(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(kit)
    real = Osio.pread

    def pread(self: Osio, fd: int, count: int, offset: int) -> bytes:
        if count > 512 and os.readlink(f"/proc/self/fd/{fd}").endswith("00000001.log"):
            raise OSError(5, "Input/output error")
        return real(self, fd, count, offset)

    logs = assert_clean(kit).logs
    monkeypatch.setattr(Osio, "pread", pread)
    lines, summary = fsck(kit)
    assert any(line.startswith("log 1:") and "cannot be read" in line for line in lines)
    assert summary.logs == logs
    assert not [line for line in lines if line.startswith("index: message")]
