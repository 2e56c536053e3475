"""What a free log says about its former contents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store.log import header
from metad.store.log.freed import ids_in_freed
from metad.store.log.header import FREE, log_path
from metad.system.osio import Osio
from tests.support.collector_kit import collect, fill_log, make_collector, sealed
from tests.support.store_kit import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data") as made:
        made.start()
        yield made


def free_log(kit: StoreKit) -> tuple[str, list[bytes], list[int]]:
    """A free log, the ids of its messages, and where its records lie."""
    ids = fill_log(kit)
    kit.delete(1, ids[:2])
    (number,) = sealed(kit)
    places = [kit.index.places(each)[0].offset for each in ids]
    collect(make_collector(kit), [number])
    return log_path(kit.store.logs, number), ids, places


def ask(kit: StoreKit, path: str) -> list[bytes] | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        log = header.read(Osio(), fd, kit.store.secret)
        assert log is not None and log.state == FREE
        return ids_in_freed(Osio(), fd, log)
    finally:
        os.close(fd)


def test_it_names_every_message(kit: StoreKit) -> None:
    path, ids, _ = free_log(kit)
    assert set(ids) <= set(ask(kit, path) or ())


@pytest.mark.parametrize("which", [0, 3, -1])
def test_a_log_that_may_hide_something_does_not_answer(kit: StoreKit, which: int) -> None:
    path, _, places = free_log(kit)
    with open(path, "r+b") as file:
        file.seek(places[which] + 8)
        file.write(bytes(8))
    assert ask(kit, path) is None
