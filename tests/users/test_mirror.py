"""The users of one node as another node has them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from metad.errors import UnavailableError, UnknownUserError, UsersLostError
from metad.users import journal
from metad.users.account import MAX_ID, Policy
from metad.users.database import UserDatabase
from metad.users.journal import Lineage, MirrorError
from metad.users.mirror import BLOCK, Position, UserMirror

ANN, BOB = "ann@example.test", "bob@example.test"


@pytest.fixture
def one(tmp_path: Path) -> Iterator[UserDatabase]:
    """The directory of node 1, with users from before the cluster."""
    with UserDatabase(tmp_path / "one" / "users", create=True, iterations=4096) as users:
        users.add(ANN, b"secret")
        UserMirror(users).lead(1)
        yield users


@pytest.fixture
def two(tmp_path: Path) -> Iterator[UserDatabase]:
    """Node 2, which has just joined."""
    with UserDatabase(tmp_path / "two" / "users", create=True, iterations=4096) as users:
        UserMirror(users).follow(1, empty=True)
        yield users


@pytest.fixture(autouse=True)
def _places(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir(exist_ok=True)


def rows(users: UserDatabase) -> list[tuple[int, bytes, bytes]]:
    """All of it, but for whose it is."""
    found = []
    with users.env.begin() as txn:
        for number, table in users.numbered_tables.items():
            with txn.cursor(table) as cursor:
                found += [(number, bytes(key), bytes(value)) for key, value in cursor]
    return [one for one in found if one[1] != journal.MIRROR]


def copy(source: UserDatabase, mirror: UserDatabase) -> None:
    """A whole copy, page by page."""
    here = UserMirror(source)
    with UserMirror(mirror).replacing(1) as replacement:
        first, some, position = here.page(Position())
        replacement.add(some)
        while position is not None:
            _, some, position = here.page(position)
            replacement.add(some)
        changes = here.changes(first.revision)
        assert changes is not None
        replacement.finish(first, changes)


def catch_up(source: UserDatabase, mirror: UserDatabase) -> None:
    while True:
        (_, revision), _ = UserMirror(mirror).lineage()
        changes = UserMirror(source).changes(revision)
        assert changes is not None
        if not changes:
            return
        UserMirror(mirror).apply(changes)


def test_until_the_first_copy_an_unknown_user_may_be_one(two: UserDatabase) -> None:
    with pytest.raises(UsersLostError):
        two.expand(ANN)


def test_a_copy_has_every_user_and_its_number(one: UserDatabase, two: UserDatabase) -> None:
    bob = one.add(BOB, b"hidden")
    copy(one, two)
    assert two.account(BOB) == bob
    assert two.verify(ANN, b"secret") == one.account(ANN)
    with pytest.raises(UnknownUserError):
        two.expand("cat@example.test")
    assert UserMirror(two).lineage() == (Lineage(1, 1), 1)
    assert rows(one) == rows(two)


def test_every_kind_of_change_follows(one: UserDatabase, two: UserDatabase) -> None:
    copy(one, two)
    one.add(BOB, b"hidden")
    one.set_password(ANN, b"changed")
    one.set_alias("all@example.test", [ANN, BOB])
    one.set_policy(BOB, Policy(expiry=5000))
    one.set_disabled(BOB, disabled=True)
    one.rename(ANN, "anna@example.test")
    one.set_alias("all@example.test", ["anna@example.test"])
    one.remove(BOB)
    one.remove_alias("all@example.test")
    catch_up(one, two)
    assert rows(one) == rows(two)
    assert two.verify("anna@example.test", b"changed")
    assert [address for _, address, _ in two.removed()] == [BOB]


def test_a_copy_is_changed_by_its_source_alone(one: UserDatabase, two: UserDatabase) -> None:
    copy(one, two)
    for change in (
        lambda: two.add(BOB),
        lambda: two.set_password(ANN, b"other"),
        lambda: two.set_alias("all@example.test", [ANN]),
        lambda: two.remove(ANN),
    ):
        with pytest.raises(MirrorError, match="users are changed on node 1"):
            change()
    assert isinstance(MirrorError(""), UnavailableError)
    assert rows(one) == rows(two)


@pytest.mark.slow
def test_what_changes_while_it_is_copied(one: UserDatabase, two: UserDatabase) -> None:
    dice = random.Random(1999)
    list(one.add_many((f"user{number}@example.test", None) for number in range(9000)))
    here = UserMirror(one)
    with UserMirror(two).replacing(1) as replacement:
        first, some, position = here.page(Position())
        replacement.add(some)
        pages = 1
        while position is not None:
            for _ in range(20):
                number = dice.randrange(9000)
                name = f"user{number}@example.test"
                if one.account(name):
                    one.remove(name) if dice.random() < 0.5 else one.set_disabled(name, True)
                else:
                    one.add(name)
            _, some, position = here.page(position)
            replacement.add(some)
            pages += 1
        changes = here.changes(first.revision)
        assert changes is not None
        replacement.finish(first, changes)
    assert pages > 3
    catch_up(one, two)
    assert rows(one) == rows(two)


def test_a_copy_that_breaks_off_changes_nothing(one: UserDatabase, two: UserDatabase) -> None:
    copy(one, two)
    before = rows(two)
    one.add(BOB)
    with UserMirror(two).replacing(1) as replacement:
        replacement.add(UserMirror(one).page(Position())[1])
    assert rows(two) == before


def test_revisions_are_made_once_and_in_order(one: UserDatabase, two: UserDatabase) -> None:
    copy(one, two)
    for name in (BOB, "cat@example.test"):
        one.add(name)
    changes = UserMirror(one).changes(0)
    assert changes is not None
    mirror = UserMirror(two)
    mirror.apply(changes[1:])  # the first is missing
    assert mirror.lineage()[0].revision == 0
    mirror.apply(changes)
    mirror.apply(changes)
    assert mirror.lineage()[0].revision == 2
    assert rows(one) == rows(two)


def test_a_mirror_that_lacks_revisions_that_are_not_kept_gets_a_whole_copy(
    one: UserDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "KEPT", 3)
    for number in range(6):
        one.add(f"user{number}@example.test")
    assert UserMirror(one).changes(1) is None
    kept = UserMirror(one).changes(3)
    assert kept is not None
    assert [revision for revision, _ in kept] == [4, 5, 6]


def test_a_copy_may_take_over_and_gives_no_number_twice(
    one: UserDatabase, two: UserDatabase
) -> None:
    bob = one.add(BOB)
    one.remove(BOB)
    copy(one, two)
    UserMirror(two).lead(7)
    cat = two.add("cat@example.test")
    assert cat.id > bob.id
    assert UserMirror(two).lineage() == (Lineage(7, 1), 0)
    UserMirror(one).follow(2)
    with pytest.raises(MirrorError, match="node 2"):
        one.add("dan@example.test")


def test_nodes_that_go_on_alone_give_no_number_that_another_one_gave(
    one: UserDatabase, two: UserDatabase
) -> None:
    """Node 2 has not heard of Bob, and then both take changes while their link is cut."""
    copy(one, two)
    given = [one.add(BOB).id]
    UserMirror(two).go_on_alone(7, 1, 2)
    given += [two.add(BOB).id, one.add("cat@example.test").id]
    UserMirror(one).go_on_alone(7, 0, 2)
    given += [one.add("dan@example.test").id, two.add("dan@example.test").id]
    UserMirror(two).go_on_alone(8, 1, 2)
    given.append(two.add("eve@example.test").id)
    assert len(set(given)) == len(given)
    assert [number // BLOCK % 2 for number in given] == [0, 1, 0, 0, 1, 1]
    copy(two, one)
    UserMirror(one).go_on_alone(9, 0, 2)
    assert one.add("fay@example.test").id > max(given)


def test_the_last_numbers_are_given_without_a_block(one: UserDatabase) -> None:
    one.reserve(MAX_ID - 2)
    UserMirror(one).go_on_alone(7, 0, 2)
    assert one.add(BOB).id == MAX_ID - 1


def test_a_database_that_is_in_no_cluster_keeps_no_changes(tmp_path: Path) -> None:
    with UserDatabase(tmp_path / "users", create=True, iterations=4096) as users:
        users.add(ANN)
        with pytest.raises(lmdb.NotFoundError):
            users.env.open_db(journal.CHANGES, create=False)
