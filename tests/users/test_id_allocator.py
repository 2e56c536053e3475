"""No number is assigned twice, whatever happens to the database."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from metad.errors import DataError, OsError
from metad.users.account import Account, Removed
from metad.users.database import UserDatabase
from metad.users.imports.import_apply import Transfer
from metad.users.imports.import_entries import ImportEntry
from metad.users.lmdb_env import ID


def added(path: Path, *names: str) -> list[int]:
    """The numbers that these get, each in a transaction of its own."""
    with UserDatabase(path, create=True) as users:
        return [users.add(f"{name}@example.org").id for name in names]


@pytest.fixture
def mail(path: Path) -> None:
    """There are logs beside the database."""
    (path.parent / "logs").mkdir()
    (path.parent / "logs" / "00000001.log").touch()


def test_a_lost_database_gives_none_of_its_numbers_again(path):
    first = added(path, "ann", "bob", "cid")
    shutil.rmtree(path)
    second = added(path, "ann", "dan")
    assert min(second) > max(first)


def test_a_database_of_an_earlier_day_goes_on_where_the_later_one_ended(path, tmp_path):
    added(path, "ann")
    shutil.copytree(path, tmp_path / "copy")
    later = added(path, "bob", "cid")
    with UserDatabase(path) as users:
        users.remove("bob@example.org")
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "copy", path)
    again = added(path, "bob")
    assert min(again) > max(later)
    with UserDatabase(path) as users:
        # A mailbox that this database does not know has no owner: its mail is kept.
        assert users.owners(later) == [None, None]


def test_imported_users_too(path):
    with UserDatabase(path, create=True) as users:
        entries = [ImportEntry(f"f:{n}", f"u{n}@example.org") for n in range(5)]
        Transfer(users).run(entries)
        greatest = max(one.id for one in users.accounts())
    shutil.rmtree(path)
    assert added(path, "ann") == [greatest + 1]


def test_a_number_is_in_the_file_before_it_is_given(path, monkeypatch):
    """Killed between the two, a number is left out."""
    (first,) = added(path, "ann")

    def fails(*_):
        raise OSError(5, "cannot")

    with UserDatabase(path) as users:
        with monkeypatch.context() as broken:
            broken.setattr("metad.users.id_allocator.write_file", fails)
            with pytest.raises(OsError, match="numbers"):
                users.add("bob@example.org")
        assert users.account("bob@example.org") is None
        users._numbers.raise_to(first + 10)
        assert users.add("bob@example.org").id == first + 10


def test_without_the_file_and_with_mail_no_number_is_given(path, mail):
    with UserDatabase(path, create=True) as users:
        with pytest.raises(DataError, match=r"numbers.* is missing") as found:
            users.add("ann@example.org")
        assert "start the hub once" in found.value.remedy
        assert users.account("ann@example.org") is None
        users.reserve(41)
        assert users.add("ann@example.org").id == 42


def test_what_has_mail_is_reserved_at_a_start(path):
    added(path, "ann")
    with UserDatabase(path) as users:
        users.reserve(500)
        users.reserve(7)
        assert users.add("bob@example.org").id == 501
        users.reserve(9)
        assert users.add("cid@example.org").id == 502


@pytest.mark.parametrize("text", [b"", b"-7\n", b"x\n", b"1\n2\n"])
def test_a_file_that_is_none_is_refused_and_replaced_by_a_start(path, text):
    (number,) = added(path, "ann")
    (path.parent / "numbers").write_bytes(text)
    with UserDatabase(path) as users:
        with pytest.raises(DataError, match="not a number"):
            users.add("bob@example.org")
        users.reserve(0)
        assert users.add("bob@example.org").id == number + 1


def test_a_file_that_cannot_be_read_says_so(path):
    added(path, "ann")
    (path.parent / "numbers").unlink()
    (path.parent / "numbers").mkdir()
    with UserDatabase(path) as users, pytest.raises(OsError, match="numbers"):
        users.add("bob@example.org")


# --- Whose a mailbox is ---------------------------------------------------------------------------


def test_owners_are_accounts_removed_ones_or_none(users):
    ann, bob = users.add("ann@example.org"), users.add("bob@example.org")
    users.remove("ann@example.org")
    (_, address, when), *_ = users.removed()
    again = users.add("ann@example.org")
    assert users.owners([ann.id, bob.id, again.id, 999]) == [
        Removed("ann@example.org", when), bob, again, None,
    ]  # fmt: skip
    assert address == "ann@example.org"
    assert isinstance(users.owners([1])[0], Account)  # the postmaster
    assert users.owners([]) == []


@pytest.mark.parametrize(
    "raw", [b"", b"\xc1", b"\x80", b"\x01", b"\x82\xa7address\xa1x\xa4time\xa1x"]
)
def test_what_cannot_be_understood_is_nobodys(users, raw):
    ann = users.add("ann@example.org")
    with users.transaction(write=True) as txn:
        txn.put(ID.pack(77), raw, db=users._removed)
        txn.put(ID.pack(ann.id), raw, db=users.accounts_table)
    assert users.owners([77])[0] is None
    assert not isinstance(users.owners([ann.id])[0], Removed)


def test_who_is_both_here_and_removed_is_here(users):
    """It should be impossible, but mail would be at stake."""
    ann = users.add("ann@example.org")
    with users.transaction(write=True) as txn:
        txn.put(ID.pack(ann.id), b"\x82\xa7address\xa1x\xa4time\x01", db=users._removed)
    assert users.owners([ann.id]) == [ann]


def test_an_import_that_changes_nothing_writes_nothing(users):
    entries = [ImportEntry("f:1", "ann@example.org")]
    Transfer(users).run(entries)
    before = users._env.info()["last_txnid"]
    Transfer(users).run(entries)
    assert users._env.info()["last_txnid"] == before
