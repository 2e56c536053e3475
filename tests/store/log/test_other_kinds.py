"""Records of a later release: read as records, ignored, never taken for damage or for mail."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store.fsck.dump import dump_log
from metad.store.gc.collector import NotCollectableError
from metad.store.log import footer, record
from metad.store.log.header import log_path
from metad.store.log_table import LogState
from metad.system.osio import Osio
from tests.support.agreement import assert_rebuild_is_same
from tests.support.collector_kit import collect, fill_log, make_collector, sealed
from tests.support.fsck_kit import assert_clean, fsck
from tests.support.store_kit import SECRET, StoreKit

ITS_ID = b"\x07" * 16
BODY = struct.pack("<QQ", 1000, 512) * 2


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data") as kit:
        kit.start()
        yield kit


def write(kit: StoreKit, kind: int) -> int:
    """As a later release would: a group with a record of that kind.  The number of its log."""
    writer = kit.writers[0].committer.writer
    assert writer is not None
    payload = record.digest_whole(BODY, 0, writer.seed)
    data = writer.make_header(kind, ITS_ID, payload) + BODY
    entry = footer.other_entry(ITS_ID, writer.end, len(data), kind)
    writer.append([[data]], len(data), entry)
    return writer.number


def mail_around(kit: StoreKit, kind: int) -> int:
    """Messages and a deletion, before and behind."""
    first, second = kit.put([1, 2], b"one").id, kit.put([1], b"two").id
    number = write(kit, kind)
    kit.put([2], b"three")
    kit.delete(1, [first])
    assert second
    return number


@pytest.mark.parametrize("kind", [record.RELEASED, 6, record.LAST_KIND])
@pytest.mark.parametrize("end", ["stop", "crash"])
def test_every_reader_ignores_it(kit: StoreKit, kind: int, end: str) -> None:
    mail_around(kit, kind)
    kit.writers[0].committer.enter_now()
    kit.stop() if end == "stop" else kit.crash()
    kit.recover()
    assert_clean(kit)
    assert_rebuild_is_same(kit)
    kit.open()
    assert kit.check() == 3
    assert kit.index.places(ITS_ID) == []
    assert not any("damage" in line for line in kit.reports)
    kit.crash()


@pytest.mark.parametrize("kind", [record.RELEASED, record.LAST_KIND])
@pytest.mark.parametrize("footer_is_good", [True, False])
def test_a_log_that_has_one_is_not_collected(
    kit: StoreKit, kind: int, footer_is_good: bool
) -> None:
    number = mail_around(kit, kind)
    fill_log(kit)
    assert number in sealed(kit)
    if not footer_is_good:
        spoil_seal(kit, number)
    with pytest.raises(NotCollectableError, match="later release"):
        collect(make_collector(kit), [number])
    assert kit.table.row(number).state == LogState.SEALED
    assert not any("panic" in line for line in kit.reports)
    kit.check()


def spoil_seal(kit: StoreKit, number: int) -> None:
    """The log has to be read, record by record."""
    path = Path(log_path(kit.store.logs, number))
    facts = list(dump_log(Osio(), path, SECRET, bodies=False))
    (seal,) = [fact for fact in facts if fact["what"] == "seal"]
    with path.open("r+b") as file:
        file.seek(seal["offset"])
        file.write(b"trash")


def test_a_dump_shows_what_it_is(kit: StoreKit) -> None:
    for kind in (record.RELEASED, 9):
        number = mail_around(kit, kind)
    kit.stop()
    path = Path(log_path(kit.store.logs, number))
    facts = list(dump_log(Osio(), path, SECRET, bodies=False))
    whats = [fact["what"] for fact in facts]
    assert "damage" not in whats
    assert (whats.count("released"), whats.count("kind 9")) == (1, 1)
    assert facts[whats.index("released")]["records"] == [(1000, 512), (1000, 512)]


def test_a_released_record_that_is_none_is_unreadable_in_a_dump() -> None:
    with pytest.raises(ValueError, match="not a released record"):
        record.unpack_released(b"x" * 17)


@pytest.mark.parametrize("kind", [0, record.LAST_KIND + 1, 255])
def test_any_other_kind_is_damage(kit: StoreKit, kind: int) -> None:
    mail_around(kit, kind)
    kit.writers[0].committer.enter_now()
    kit.crash()
    kit.drop_index()
    kit.recover()
    assert any("are damaged" in line for line in kit.reports)
    lines, _ = fsck(kit)
    assert lines
    kit.open()
    assert kit.check() == 3
    kit.crash()
