"""A damaged users database loses only what is unreadable, and the start continues."""

from __future__ import annotations

import errno
import random
import re
import shutil
import struct
from pathlib import Path

import lmdb
import pytest

from metad.errors import UsersLostError
from metad.system import lmdb_pages
from metad.system.osio import Osio
from metad.users import passwords
from metad.users.database import UserDatabase
from metad.users.journal import Lineage, MirrorError
from metad.users.mirror import UserMirror
from metad.users.mirrored import MirroredUsers
from metad.users.repair import repair_users
from metad.users.rows import Position
from tests.support.sizes import SEED, reached, scaled

PAGE = 4096
COUNT = 400


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with users, an alias, and no hub."""
    data = tmp_path_factory.mktemp("users") / "good"
    (data / "quarantine").mkdir(parents=True)
    make = passwords.make
    with pytest.MonkeyPatch.context() as patch, UserDatabase(data / "users", create=True) as users:
        patch.setattr(passwords, "make", lambda password, iterations=0: make(password, 10))
        for made in users.add_many((f"u{n}@x.test", b"secret") for n in range(COUNT)):
            assert made.id  # type: ignore[union-attr]
        users.remove("u7@x.test")
        users.set_alias("all@x.test", ["u1@x.test", "u2@x.test"])
    return data


@pytest.fixture
def good(original: Path, tmp_path: Path) -> Path:
    """A copy of it, for this test alone."""
    return Path(shutil.copytree(original, tmp_path / "good"))


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


@pytest.mark.slow
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


@pytest.mark.long
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


def page_of(data: Path, table: bytes) -> int:
    """The root of a table of one leaf."""
    octets = (data / "users" / "data.mdb").read_bytes()
    osio = Osio()
    fd = osio.open(str(data / "users" / "data.mdb"), 0)
    meta = lmdb_pages.newest_meta(osio, fd)
    osio.close(fd)
    assert meta is not None
    assert meta.tables.depth == 1
    start = meta.tables.root * PAGE
    tables = octets[start : start + PAGE]
    at = tables.index(table + b"\0") + len(table)  # a tree begins with zeros
    tree = lmdb_pages.Tree._make(struct.unpack_from("=IHHQQQQQ", tables, at))
    assert tree.depth == 1
    return tree.root


def leaf_header(number: int, flags: int, rows: int) -> bytes:
    """A page that begins like one of LMDB's; the rest of it is zero."""
    return struct.pack("=QHHHH", number, 0, flags, 16 + 2 * rows, PAGE).ljust(PAGE, b"\0")


@pytest.mark.long
@pytest.mark.slow
def test_the_only_leaf_of_a_table_turned_into_a_branch_is_noticed(good: Path) -> None:
    """Regression: the cursor reported its failed transaction, which was taken for no damage."""
    at = page_of(good, b"meta")
    everyone, dice = addresses(good), random.Random(SEED)
    for flags in (0, 1, 2, 3, 0x0BBF, 8, 0x10):
        spoiled = dice.randbytes(10) + struct.pack("=H", flags) + dice.randbytes(PAGE - 12)
        for page in (leaf_header(at, flags, 0), spoiled):
            data = damaged(good, at=at, page=page)
            (told,) = start(data)
            assert "400 accounts are kept" in told, flags
            assert addresses(data) == everyone
            with UserDatabase(data / "users") as users:
                assert users.lost
            assert start(data) == []


@pytest.mark.slow
def test_a_table_with_fewer_rows_than_it_should_have_is_noticed(good: Path) -> None:
    """LMDB reports nothing: it counts the rows of the page and not those of the table."""
    everyone, at = addresses(good), page_of(good, b"meta")
    page = (good / "users" / "data.mdb").read_bytes()[at * PAGE : (at + 1) * PAGE]
    (lower,) = struct.unpack_from("=H", page, 12)
    assert lower == 16 + 2 * 4
    data = damaged(good, at=at, page=page[:12] + struct.pack("=H", lower - 2) + page[14:])
    (told,) = start(data)
    assert "3 of 4 rows of meta can be read" in told
    assert addresses(data) == everyone
    assert start(data) == []


@pytest.mark.slow
@pytest.mark.parametrize("table", [b"meta", b"removed", b"domains", b"members"])
def test_the_leaf_of_another_table_in_place_of_the_only_one_is_noticed(
    good: Path, table: bytes
) -> None:
    everyone = addresses(good)
    other = page_of(good, b"removed" if table == b"domains" else b"domains")
    page = (good / "users" / "data.mdb").read_bytes()[other * PAGE : (other + 1) * PAGE]
    at = page_of(good, table)
    (told,) = start(damaged(good, at=at, page=page))
    assert f"page {at} is another one" in told
    assert addresses(good.parent / "bad") == everyone


def clustered(data: Path, *, copy_of: int) -> None:
    """Users of a cluster: of the node that takes changes, or those of a copy."""
    with UserDatabase(data / "users") as users:
        UserMirror(users).lead(3)
        users.add("new@x.test")
        if copy_of:
            UserMirror(users).follow(copy_of)


@pytest.mark.slow
@pytest.mark.parametrize("copy_of", [0, 1])
@pytest.mark.parametrize("table", [b"changes", b"removed"])
def test_in_a_cluster_the_journal_becomes_empty(good: Path, table: bytes, copy_of: int) -> None:
    clustered(good, copy_of=copy_of)
    assert start(good) == []
    data = damaged(good, at=page_of(good, table), page=bytes(PAGE))
    assert "accounts are kept" in start(data)[0]
    with UserDatabase(data / "users") as users:
        mirror = UserMirror(users)
        assert users.lost
        assert users.changes_table is not None
        # A copy that lacks everything takes all of it; a source goes on where it was.
        expected = Lineage() if copy_of else Lineage(3, 1)
        assert mirror.lineage() == (expected, copy_of)
        if copy_of:
            with pytest.raises(MirrorError):
                users.add("newer@x.test")
        else:
            assert mirror.changes(0) is None
            users.add("newer@x.test")
            assert [revision for revision, _ in mirror.changes(1) or []] == [2]
    assert start(data) == []


def test_a_copy_with_a_restored_meta_page_takes_all_users_again(good: Path) -> None:
    clustered(good, copy_of=1)
    data = damaged(good, at=0, page=bytes(PAGE))
    (told,) = start(data)
    assert "restored from the other" in told
    with UserDatabase(data / "users") as users:
        assert users.lost
        assert UserMirror(users).lineage() == (Lineage(), 1)


def test_a_mirror_of_etcd_reads_all_users_again(good: Path) -> None:
    with MirroredUsers(good / "users") as users:
        users.stand_at(Position("id", 76))
        users.stand_at(Position("id", 77))  # which is lost with the page, perhaps
    data = damaged(good, at=0, page=bytes(PAGE))
    assert start(data)
    with MirroredUsers(data / "users") as users:
        assert users.in_directory
        assert users.lost
        assert users.position() == Position()


@pytest.mark.long
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


@pytest.mark.slow
@pytest.mark.parametrize("pages", [1, 2, 5, 20])
def test_a_database_that_is_cut_short_keeps_what_is_there(good: Path, pages: int) -> None:
    data = damaged(good, lambda octets: octets[: pages * PAGE])
    assert start(data)
    with UserDatabase(data / "users", create=True) as users:
        users.reserve(COUNT)
        assert users.lost or pages < 2


@pytest.mark.slow
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


@pytest.mark.slow
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
