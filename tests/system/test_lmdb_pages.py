"""The pages of an LMDB file: each in one tree or free, whatever the list of free ones says."""

from __future__ import annotations

import random
from pathlib import Path

import lmdb
import pytest

from metad.system import lmdb_pages
from metad.system.osio import Osio

PAGE = 4096


@pytest.fixture
def environment(tmp_path: Path) -> lmdb.Environment:
    return lmdb.open(str(tmp_path), map_size=1 << 30, max_dbs=4, sync=False)


def wrong(env: lmdb.Environment) -> str | None:
    return lmdb_pages.why_wrong(Osio(), f"{env.path()}/data.mdb")


def fill(env: lmdb.Environment, seed: int, rows: int) -> None:
    """Short and long rows in two tables, some of them removed: trees of three levels, a list of
    free pages that is longer than a page."""
    dice = random.Random(seed)
    for table in (b"one", b"two"):
        handle = env.open_db(table)
        with env.begin(handle, write=True) as txn:
            for _ in range(rows):
                txn.put(dice.randbytes(20), dice.randbytes(dice.choice([8, 300, 9000])))
        with env.begin(handle, write=True) as txn, txn.cursor() as cursor:
            for _ in range(rows * 2 // 3):
                cursor.set_range(dice.randbytes(2)) and cursor.delete()


def put(data: bytearray, at: int, piece: bytes) -> None:
    data[at : at + len(piece)] = piece


@pytest.mark.slow
def test_a_good_file_has_every_page_once(environment: lmdb.Environment) -> None:
    assert wrong(environment) is None
    for seed in range(4):
        fill(environment, seed, 1500)
        assert wrong(environment) is None
    with environment.begin(environment.open_db(b"one"), write=True) as txn:
        txn.drop(environment.open_db(b"one", txn), delete=False)
    assert wrong(environment) is None


def test_a_list_of_free_pages_of_another_moment_is_found(environment: lmdb.Environment) -> None:
    """The trees are whole, so no walk through them sees it; the next transactions destroy them."""
    path = Path(environment.path()) / "data.mdb"
    fill(environment, 1, 300)
    before = path.read_bytes()
    fill(environment, 2, 300)
    environment.close()
    now = path.read_bytes()
    fd = Osio().open(str(path), 0)
    meta = lmdb_pages.newest_meta(Osio(), fd)
    Osio().close(fd)
    assert meta is not None
    old = [lmdb_pages.parse_meta(before[at : at + PAGE]) for at in (0, PAGE)]
    free = max((one for one in old if one), key=lambda one: one.transaction)
    target = bytearray(now)
    tree = slice(lmdb_pages.FREE_TREE, lmdb_pages.FREE_TREE + 48)
    newest, its_old = (each.transaction % 2 * PAGE for each in (meta, free))
    put(target, newest + tree.start, before[its_old:][tree])
    put(target, free.free.root * PAGE, before[free.free.root * PAGE :][:PAGE])
    path.write_bytes(target)
    assert lmdb_pages.why_wrong(Osio(), str(path)) is not None


@pytest.mark.slow
def test_any_page_of_the_list_or_of_branches_that_is_spoiled_is_found(
    environment: lmdb.Environment,
) -> None:
    fill(environment, 3, 2000)
    path = Path(environment.path()) / "data.mdb"
    environment.close()
    good = path.read_bytes()
    branches = [
        at for at in range(2 * PAGE, len(good), PAGE)
        if int.from_bytes(good[at + 10 : at + 12], "little") == 1
        and int.from_bytes(good[at : at + 8], "little") == at // PAGE
    ]  # fmt: skip
    found = 0
    for at in branches:
        path.write_bytes(good[:at] + bytes(PAGE) + good[at + PAGE :])
        found += lmdb_pages.why_wrong(Osio(), str(path)) is not None
    assert found >= 2  # the others are free, or of an earlier version


@pytest.mark.parametrize("data", [b"", b"x" * 10_000, bytes(20_000)])
def test_of_what_is_not_lmdb_nothing_is_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert lmdb_pages.why_wrong(Osio(), str(path)) is None
