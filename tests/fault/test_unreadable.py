"""An unreadable sector loses only its own data: reliability row 19, over restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store.fsck.fsck import Fsck, Plan
from metad.store.log import header
from metad.store.log.header import LogHeader, log_path
from metad.store.log_table import LogState
from metad.system.osio import Osio
from tests.support.collector_kit import collect, fill_log, make_collector, sealed
from tests.support.osio_kit import BLOCK, KitOsio
from tests.support.sizes import reached
from tests.support.store_kit import StoreKit

PLACES = ("first header", "last header", "both headers", "seal", "record", "group of a tail")


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data", KitOsio(), align=BLOCK, size=128 * 1024) as made:
        made.start()
        yield made


def read_header(kit: StoreKit, number: int) -> LogHeader:
    fd = Osio().open(log_path(kit.store.logs, number), 0)
    try:
        found = header.read(Osio(), fd, kit.store.secret)
    finally:
        Osio().close(fd)
    assert found is not None
    return found


def spoil(kit: StoreKit, number: int, where: str, place: int) -> None:
    log = read_header(kit, number)
    path = log_path(kit.store.logs, number)
    if where in ("first header", "both headers"):
        kit.osio.spoil(path, 0)
    if where in ("last header", "both headers"):
        kit.osio.spoil(path, log.size - 1)
    if where == "seal":
        kit.osio.spoil(path, log.seal_offset)
    if where in ("record", "group of a tail"):
        kit.osio.spoil(path, place)


@pytest.mark.parametrize("index", ["kept", "removed"])
@pytest.mark.parametrize("where", PLACES)
def test_a_hub_starts_and_serves_the_rest(kit: StoreKit, where: str, index: str) -> None:
    ids = [kit.put([1], b"%d " % n + bytes(700)).id for n in range(8)]
    open_log = kit.index.places(ids[0])[0].log
    if where != "group of a tail":
        filled = fill_log(kit, size=5000)
        (open_log,) = sealed(kit)
        ids += filled
    victim = ids[4]
    place = kit.index.places(victim)[0]
    assert place.log == open_log
    kit.crash()
    spoil(kit, open_log, where, place.offset)
    if index == "removed":
        kit.drop_index()
    for _ in range(2):  # it stays unreadable
        kit.start()
        listed = {each for each, _ in kit.listing(1)}
        for each in ids:
            if each != victim or where not in ("record", "group of a tail"):
                assert each in listed
                kit.stored(each)
        assert kit.put([2], b"new").acked
        reached("row 19, unreadable places: started and served", 1)
        kit.crash()
        if index == "removed":
            kit.drop_index()


@pytest.mark.parametrize("where", PLACES[:-1])
def test_fsck_names_what_cannot_be_read(kit: StoreKit, where: str) -> None:
    ids = fill_log(kit, size=5000)
    (number,) = sealed(kit)
    place = kit.index.places(ids[2])[0]
    kit.stop()
    spoil(kit, number, where, place.offset)
    lines: list[str] = []
    Fsck(kit.osio, kit.store, Plan(kit.boot), lines.append).run()
    assert any(line.startswith(f"log {number}: ") for line in lines), lines


@pytest.mark.parametrize("where", PLACES[:-1])
def test_a_collection_loses_nothing_that_can_be_read(kit: StoreKit, where: str) -> None:
    ids = fill_log(kit, size=5000)
    (number,) = sealed(kit)
    kit.delete(1, ids[::2])
    place = kit.index.places(ids[1])[0]
    spoil(kit, number, where, place.offset)
    collector = make_collector(kit)
    if where == "record":  # it may become readable later
        with pytest.raises(OSError, match="error"):
            collect(collector, [number])
        assert kit.table.row(number).state == LogState.SEALED
    elif where == "both headers":
        return
    else:
        collect(collector, [number])
        kit.check()
    for each in ids[3::2]:
        kit.stored(each)
