"""A damaged users database loses only what is unreadable, and the start continues."""

from __future__ import annotations

import errno
import random
import re
import shutil
from pathlib import Path

import lmdb
import pytest

from metad.errors import UsersLostError
from metad.system import lmdb_pages
from metad.system.osio import Osio
from metad.users.database import UserDatabase
from metad.users.repair import repair_users
from tests.support.sizes import SEED, reached, scaled

PAGE = 4096
COUNT = 400


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A data directory with users, an alias, and no hub."""
    data = tmp_path / "good"
    (data / "quarantine").mkdir(parents=True)
    with UserDatabase(data / "users", create=True) as users:
        for made in users.add_many((f"u{n}@x.test", b"secret") for n in range(COUNT)):
            assert made.id  # type: ignore[union-attr]
        users.remove("u7@x.test")
        users.set_alias("all@x.test", ["u1@x.test", "u2@x.test"])
    return data


def damaged(good: Path, change: object = None, at: int = -1, page: bytes = b"") -> Path:
    """A copy of it, with another page or another length."""
    data = good.parent / "bad"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(good, data)
    path = data / "users" / "data.mdb"
    octets = path.read_bytes()
    if at >= 0:
        octets = octets[: at * PAGE] + page + octets[(at + 1) * PAGE :]
    path.write_bytes(change(octets) if callable(change) else octets)
    return data


def start(data: Path) -> list[str]:
    return repair_users(Osio(), data / "users", data / "quarantine")


def addresses(data: Path) -> set[str]:
    with UserDatabase(data / "users", create=True) as users:
        return {account.address for account in users.accounts()}


def test_a_good_database_is_left_alone(good: Path) -> None:
    before = (good / "users" / "data.mdb").read_bytes()
    assert start(good) == []
    assert (good / "users" / "data.mdb").read_bytes() == before
    assert start(good.parent / "nothing") == []


def test_a_restored_and_compacted_database_is_good(good: Path) -> None:
    target = good.parent / "backup"
    target.mkdir()
    with lmdb.open(str(good / "users"), readonly=True) as env:
        env.copy(str(target), compact=True)
    shutil.copy(target / "data.mdb", good / "users" / "data.mdb")
    assert start(good) == []


@pytest.mark.slow
def test_any_page_that_is_spoiled_costs_what_lay_in_it(good: Path) -> None:
    """Regression: exit code 65 at every start, or a start killed by SIGBUS."""
    everyone = addresses(good)
    pages = (good / "users" / "data.mdb").stat().st_size // PAGE
    dice = random.Random(SEED)
    noticed = 0
    for at in dice.sample(range(pages), min(pages, scaled(12))):
        for page in (bytes(PAGE), dice.randbytes(PAGE)):
            data = damaged(good, at=at, page=page)
            told = start(data)
            noticed += bool(told)
            lost = everyone - addresses(data)
            assert lmdb_pages.why_wrong(Osio(), str(data / "users" / "data.mdb")) is None
            with UserDatabase(data / "users") as users:
                assert bool(users.lost) is bool(told)
                for address in lost:
                    with pytest.raises(UsersLostError):
                        users.resolve(address)
                if told and "quarantine/" in told[0]:
                    assert list((data / "quarantine").glob("users-*.mdb"))
                assert not lost or told
                users.reserve(0)
                assert users.add("new@x.test").id > COUNT
            assert start(data) == []
            reached("row 23, users databases with a bad page: started", 1)
    assert noticed


@pytest.mark.slow
def test_a_bad_leaf_costs_the_users_in_it_and_no_others(good: Path) -> None:
    everyone = addresses(good)
    octets = (good / "users" / "data.mdb").read_bytes()
    leaves = {}
    for at in range(0, len(octets), PAGE):
        found = set(re.findall(r"u\d+@x\.test", octets[at : at + PAGE].decode("latin-1")))
        if octets[at + 10] == 2 and len(found) > 5:
            leaves[at // PAGE] = found
    cost, tables = 0, []
    for at, its in leaves.items():
        data = damaged(good, at=at, page=bytes(PAGE))
        told = start(data)
        lost = everyone - addresses(data)
        if lost == everyone:
            tables.append(at)
            continue
        assert lost <= its
        assert bool(told) >= bool(lost)
        cost += len(lost)
    assert cost
    assert len(tables) <= 1  # the page that says where the tables are


@pytest.mark.parametrize("pages", [1, 2, 5, 20])
def test_a_database_that_is_cut_short_keeps_what_is_there(good: Path, pages: int) -> None:
    data = damaged(good, lambda octets: octets[: pages * PAGE])
    assert start(data)
    with UserDatabase(data / "users", create=True) as users:
        users.reserve(COUNT)
        assert users.lost or pages < 2


@pytest.mark.parametrize("octets", [b"no database\n" * 1000, b"", bytes(PAGE * 3)])
def test_what_is_no_database_is_set_aside(good: Path, octets: bytes) -> None:
    data = damaged(good, lambda _: octets)
    told = start(data)
    with UserDatabase(data / "users", create=True) as users:
        if octets:
            assert "no accounts are kept" in told[0]
            (kept,) = (data / "quarantine").glob("users-*.mdb")
            assert kept.read_bytes() == octets
        assert users.lost  # its numbers were given


def test_the_damaged_file_stays_beside_it_where_it_cannot_be_moved(good: Path) -> None:
    class Confined(Osio):
        def rename(self, old: str, new: str) -> None:
            if Path(old).parent.name != Path(new).parent.name and "quarantine" in new:
                raise OSError(errno.EXDEV, "another directory")
            super().rename(old, new)

    data = damaged(good, lambda octets: octets[: 3 * PAGE])
    (told,) = repair_users(Confined(), data / "users", data / "quarantine")
    (kept,) = (data / "users").glob("users-*.mdb")
    assert told.endswith(f"the damaged file is users/{kept.name}")
    assert kept.stat().st_size == 3 * PAGE


def test_a_database_of_a_newer_format_is_left_alone(good: Path) -> None:
    with lmdb.open(str(good / "users"), max_dbs=16) as env:
        meta = env.open_db(b"meta")
        with env.begin(meta, write=True) as txn:
            txn.put(b"format", b"\x63")
    before = (good / "users" / "data.mdb").read_bytes()
    assert start(good) == []
    assert (good / "users" / "data.mdb").read_bytes() == before
