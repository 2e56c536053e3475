"""The users of a cluster with etcd, changed on two nodes."""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path

import pytest

from metad.cluster import local
from metad.errors import DataError, MetadError, NoSuchUserError, UnavailableError
from metad.users import rows
from metad.users.account import Policy
from metad.users.database import UserDatabase
from metad.users.directory_users import OvertakenError
from metad.users.imports import importers
from metad.users.imports.import_apply import Transfer
from metad.users.imports.import_entries import ImportEntry
from metad.users.journal import MirrorError
from metad.users.rows import Change
from tests.support.sizes import SEED
from tests.support.user_rows import Node, RowStore, account_of, everything

ANN, BOB, CAT = "ann@example.test", "bob@example.test", "cat@example.test"


@pytest.fixture
def store() -> RowStore:
    made = RowStore()
    made.write((rows.SECRET, b"s" * 32), (rows.NEXT, b"2"), (rows.WHOLE, b""))
    return made


@pytest.fixture
def nodes(tmp_path: Path, store: RowStore) -> Iterator[tuple[Node, Node]]:
    found = Node(tmp_path / "one", store), Node(tmp_path / "two", store)
    for node in found:
        node.reload()
    yield found
    for node in found:
        node.close()  # again, in some tests


def check_same(one: Node, two: Node) -> None:
    for node in (one, two):
        node.catch_up()
    mine, theirs = everything(one.users), everything(two.users)
    for found in (mine, theirs):  # each node has its own postmaster
        found["records"] = found["records"][1:]  # type: ignore[index]
    assert mine == theirs
    assert not one.wrong
    assert not two.wrong


def test_every_kind_of_change_holds_on_the_other_node(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    assert one.users.add(ANN, b"secret").id == 2
    two.catch_up()
    assert two.users.verify(ANN, b"secret")
    assert two.users.add(BOB, b"hidden").id == 3
    one.catch_up()
    one.users.set_password(BOB, b"changed")
    two.catch_up()
    assert two.users.verify(BOB, b"changed")
    assert not two.users.verify(BOB, b"hidden")
    two.users.set_alias("all@example.test", [ANN, BOB])
    one.catch_up()
    one.users.rename(ANN, CAT)
    two.catch_up()
    alias = two.users.alias("all@example.test")
    assert alias is not None
    assert alias.members == (CAT, BOB)
    two.users.set_policy(CAT, Policy(quota=1000, expiry=90))
    two.users.set_disabled(BOB, disabled=True)
    check_same(one, two)
    one.users.remove_alias("all@example.test")
    one.users.remove(CAT)
    check_same(one, two)
    assert [(number, address) for number, address, _ in two.users.removed()] == [(2, CAT)]
    assert two.users.account(CAT) is None


def test_of_two_who_add_an_address_at_once_one_gets_an_error(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    one.before = lambda: (two.users.add(ANN, b"theirs"), None)[1]
    with pytest.raises(DataError, match="a user has this address already"):
        one.users.add(ANN, b"mine")
    assert one.users.verify(ANN, b"theirs")
    check_same(one, two)


def test_of_two_who_add_others_at_once_each_gets_a_number(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    one.before = lambda: (two.users.add(BOB), None)[1]
    assert one.users.add(ANN).id == 3
    check_same(one, two)
    assert two.users.account(BOB).id == 2  # type: ignore[union-attr]


def test_a_password_set_on_a_removed_user_does_not_bring_it_back(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    one.users.add(ANN, b"secret")
    two.catch_up()
    one.before = lambda: (two.users.remove(ANN), None)[1]
    with pytest.raises(NoSuchUserError):
        one.users.set_password(ANN, b"changed")
    check_same(one, two)


def test_an_alias_made_at_once_keeps_its_member(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    one.users.add(ANN)
    one.users.add(BOB)
    two.catch_up()
    one.before = lambda: (two.users.set_alias("all@example.test", [ANN, BOB]), None)[1]
    with pytest.raises(DataError, match="named by the aliases"):
        one.users.remove(ANN)
    check_same(one, two)


def test_an_alias_can_be_removed_and_its_address_given_to_a_user(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    one.users.add(ANN)
    one.users.set_alias(BOB, [ANN])
    one.users.remove_alias(BOB)
    two.catch_up()
    two.users.add(BOB)
    one.catch_up()
    one.users.set_alias(CAT, [BOB])
    one.users.remove_alias(CAT)
    one.users.set_alias(CAT, [ANN])
    check_same(one, two)
    two.reload()
    check_same(one, two)


def test_changes_of_parts_made_at_once_all_hold(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    for name in (ANN, BOB, CAT):
        one.users.add(name)
    two.catch_up()
    one.before = lambda: (two.users.change_policy(ANN, {"quota": 1000}), None)[1]
    one.users.change_policy(ANN, {"expiry": 90})
    one.before = lambda: (two.users.change_alias("all@example.test", lambda _: [ANN]), None)[1]
    one.users.change_alias("all@example.test", lambda old: [*old, BOB])
    check_same(one, two)
    account, alias = two.users.account(ANN), two.users.alias("all@example.test")
    assert account is not None
    assert (account.policy.quota, account.policy.expiry) == (1000, 90)
    assert alias is not None
    assert alias.members == (ANN, BOB)


def test_one_who_is_always_overtaken_gives_up(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes

    def overtaken(change: object) -> None:
        raise OvertakenError("overtaken")

    one.users._propose = overtaken
    with pytest.raises(OvertakenError):
        one.users.add(ANN)


def test_a_refused_change_leaves_nothing(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    before = everything(one.users), one.store.revision
    with pytest.raises(DataError):
        one.users.set_alias(BOB, [ANN])
    with pytest.raises(NoSuchUserError):
        one.users.remove(ANN)
    assert (everything(one.users), one.store.revision) == before


def test_a_change_too_large_for_a_transaction_is_refused(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    one.users.add(ANN)
    one.users.add(BOB)
    for number in range(rows.MOST_WRITES):
        one.users.set_alias(f"list{number}@example.test", [ANN, BOB])
    with pytest.raises(DataError, match="more than a cluster takes"):
        one.users.remove(ANN, force=True)
    check_same(one, two)


def test_a_change_of_too_many_bytes_is_refused(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = nodes
    long = f"{'a' * 100}@example.test"
    one.users.add(ANN)
    one.users.add(long)
    for number in range(3):
        one.users.set_alias(f"list{number}@example.test", [ANN, long])
    monkeypatch.setattr(rows, "MOST_OCTETS", 350)
    with pytest.raises(DataError, match="more than a cluster takes"):
        one.users.remove(ANN, force=True)
    one.users.remove_alias("list0@example.test")
    one.users.remove(ANN, force=True)
    check_same(one, two)


def test_a_part_of_an_import_fits_in_a_frame(
    nodes: tuple[Node, Node], store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aliases with different members: the names of all these are compared, too."""
    one, two = nodes
    names = [f"{number:070}@example.test" for number in range(10_000)]
    store.write(*(account_of(2 + number, name) for number, name in enumerate(names)))
    one.catch_up()
    frames: list[int] = []
    propose = one.propose

    def sent(change: Change) -> None:
        frames.append(len(local._encode({"op": "users", "change": change})))
        propose(change)

    monkeypatch.setattr(one.users, "_propose", sent)
    done = Transfer(one.users)
    done.run(
        ImportEntry("f:1", f"list{at}@example.test", members=tuple(names[at : at + 250]))
        for at in range(0, len(names), 250)
    )
    assert (done.outcome.added, done.outcome.bad) == (40, [])
    assert max(frames) > rows.MOST_OCTETS
    check_same(one, two)


def test_before_all_users_are_here_nothing_is_changed(tmp_path: Path, store: RowStore) -> None:
    node = Node(tmp_path / "one", store)
    with pytest.raises(UnavailableError, match="not on this node yet"):
        node.users.add(ANN)
    node.close()


def test_a_plain_database_of_a_cluster_refuses_changes(
    tmp_path: Path, nodes: tuple[Node, Node]
) -> None:
    nodes[0].users.add(ANN)
    nodes[0].close()
    with UserDatabase(tmp_path / "one" / "users") as users:
        with pytest.raises(MirrorError, match="etcd"):
            users.add(BOB)
        assert users.account(ANN)


def test_keys_made_at_a_login_stay_on_the_node(nodes: tuple[Node, Node], store: RowStore) -> None:
    one, two = nodes
    source = "{SHA}" + b64encode(sha1(b"secret").digest()).decode()
    with one.users.transaction(write=True) as txn:
        one.users.insert(txn, ANN, {"hash": source, "password_version": 1})
    two.catch_up()
    revision = store.revision
    assert one.users.verify(ANN, b"secret")
    assert one.users.every_login_has_keys()
    assert not two.users.every_login_has_keys()
    assert store.revision == revision
    one.reload()
    assert one.users.every_login_has_keys()
    two.users.set_disabled(ANN, disabled=True)
    two.users.set_disabled(ANN, disabled=False)
    one.catch_up()
    assert one.users.every_login_has_keys()
    two.users.set_password(ANN, b"changed")
    one.catch_up()
    assert not one.users.verify(ANN, b"secret")
    check_same(one, two)


def test_an_import_reaches_the_other_node(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    one, two = nodes
    text = "address,members\n" + "".join(f"user{n}@example.test,\n" for n in range(200))
    text += "".join(f"list{n}@example.test,user{n}@example.test\n" for n in range(100))
    path = tmp_path / "users.csv"
    path.write_text(text)
    one.before = lambda: (two.users.add(ANN), None)[1]
    for added, unchanged in ((300, 0), (0, 300)):
        with path.open("rb") as file:
            transfer = Transfer(one.users)
            transfer.run(importers.read("csv", importers.Source(importers.Text("-", file))))
        assert not transfer.outcome.bad
        assert (transfer.outcome.added, transfer.outcome.unchanged) == (added, unchanged)
    check_same(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_random_changes_on_both_leave_the_same_users(nodes: tuple[Node, Node], number: int) -> None:
    one, two = nodes
    choose = random.Random(SEED + number)
    names = [f"{name}@{domain}.test" for name in ("a", "b", "c", "a+x") for domain in ("x", "y")]
    for _ in range(300):
        node, other = choose.sample(nodes, 2)
        if choose.random() < 0.3:
            node.before = lambda other=other: _change(choose, other, names)  # type: ignore[misc]
        _change(choose, node, names)
        if choose.random() < 0.5:
            other.catch_up()
    check_same(one, two)
    two.mirror.follow(empty=True)
    two.reload()
    check_same(one, two)
    numbers = [one.id for one in one.users.accounts()]
    assert len(set(numbers)) == len(numbers)


def _change(choose: random.Random, node: Node, names: list[str]) -> None:
    users, (name, other, third) = node.users, choose.sample(names, 3)
    changes = (
        lambda: users.add(name),
        lambda: users.add(name, b"secret"),
        lambda: users.remove(name, force=choose.random() < 0.5),
        lambda: users.rename(name, other),
        lambda: users.set_alias(name, [other, third]),
        lambda: users.set_alias("@x.test", [other]),
        lambda: users.remove_alias(name, force=choose.random() < 0.5),
        lambda: users.set_disabled(name, disabled=choose.random() < 0.5),
    )
    try:
        choose.choice(changes)()
    except OvertakenError:
        raise
    except MetadError:
        pass
