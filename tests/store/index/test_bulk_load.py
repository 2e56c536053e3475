"""Bulk loading: pieces cut anywhere give the table that one piece gives."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from metad.store.ids import NO_ID
from metad.store.index.bulk_load import ENTRY_ROW, Loader
from metad.store.index.index import Index
from metad.store.index.rows import LogCounts
from metad.store.log.place import Place
from metad.store.usage import Usage

SIZES = {1: 1, 2: 30, 3: 2, 70000: 17, 70001: 1}  # mailbox: how many messages


def rows() -> list[bytes]:
    return [
        mailbox.to_bytes(4, "big") + n.to_bytes(16, "big") + (mailbox % 7 + n).to_bytes(4, "big")
        for mailbox, count in SIZES.items()
        for n in range(1, count + 1)
    ]


def made(path: Path) -> Loader:
    path.mkdir()  # LMDB would make it with the mode of its files, which only root can enter
    return Loader(str(path))


def load(path: Path, pieces: list[bytes]) -> dict[bytes, bytes]:
    loader = made(path)
    for piece in pieces:
        loader.entries(piece)
    loader.finish({1: LogCounts(5, 512, 1, 2)})
    loader.close()
    index = Index(str(path))
    try:
        with index.reading() as txn, txn.cursor(index.tables.mailboxes[-1]) as cursor:
            return {bytes(key): bytes(value) for key, value in cursor}
    finally:
        index.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_mailbox_may_be_cut_anywhere(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    every = rows()
    cuts = [0, *sorted(rng.choices(range(len(every) + 1), k=seed * 2)), len(every)]
    pieces = [b"".join(every[a:b]) for a, b in itertools.pairwise(cuts)]
    table = load(tmp_path / "cut", pieces)
    assert table == load(tmp_path / "whole", [b"".join(every)])
    assert len(table) == len(every) + len(SIZES)


def test_usage_is_what_lies_in_the_mailbox(tmp_path: Path) -> None:
    load(tmp_path / "index", rows())  # a piece per entry
    index = Index(str(tmp_path / "index"))
    expected = {
        mailbox: Usage(sum(mailbox % 7 + n for n in range(1, count + 1)), count)
        for mailbox, count in SIZES.items()
    }
    found = dict(index.usages())
    index.close()
    assert found == expected


def test_logs_and_places_are_loaded(tmp_path: Path) -> None:
    loader = made(tmp_path / "index")
    one, two = (n.to_bytes(16, "big") for n in (1, 2))
    loader.places(one + b"".join(n.to_bytes(4, "big") for n in (1, 3, 512, 700, 0, 0, 0)))
    odd = b"".join(n.to_bytes(4, "big") for n in (1, 3, 1536, 9, 2, 512, 9))
    loader.odd_places([(two, odd)])
    loader.finish({3: LogCounts(9, 4096, 2, 709)})
    loader.close()
    index = Index(str(tmp_path / "index"))
    assert index.places(one) == [Place(3, 512, 700)]
    assert index.places(two) == [Place(3, 1536, 9), Place(2, 512, 9)]
    assert index.logs() == {3: LogCounts(9, 4096, 2, 709)}
    assert index.places(NO_ID) == []
    index.close()
    assert len(rows()[0]) == ENTRY_ROW
