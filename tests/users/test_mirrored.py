"""What a mirror does with rows of etcd: in any order, missing, or contradictory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.errors import DataError, UnknownUserError, UsersLostError
from metad.users import mirrored, rows
from metad.users.account import Policy, pack_record
from metad.users.database import UserDatabase
from metad.users.mirrored import MirroredUsers
from metad.users.rows import Position, Row
from tests.support.sizes import SEED, scaled
from tests.support.user_rows import Node, RowStore, account_of, everything

ANN, BOB, CAT = "ann@example.test", "bob@example.test", "cat@example.test"
LIST = "list@example.test"
BASICS: tuple[Row, ...] = ((rows.SECRET, b"s" * 32), (rows.NEXT, b"9"), (rows.WHOLE, b""))


def alias_of(address: str, *members: str) -> Row:
    return rows.row_key(address.encode()), rows.alias_row(members)


def removed(number: int, address: str) -> Row:
    return rows.removed_key(number), pack_record({"address": address, "time": 1_800_000_000})


@pytest.fixture
def store() -> RowStore:
    return RowStore()


@pytest.fixture
def node(tmp_path: Path, store: RowStore) -> Iterator[Node]:
    made = Node(tmp_path / "one", store)
    yield made
    made.close()


def test_until_all_users_are_here_an_unknown_one_gets_451(node: Node, store: RowStore) -> None:
    with pytest.raises(UsersLostError):
        node.users.expand(ANN)
    store.write(account_of(2, ANN), *BASICS)
    node.reload()
    assert node.users.resolve(ANN).id == 2
    with pytest.raises(UnknownUserError):
        node.users.expand(BOB)
    assert node.mirror.next_number == 9
    assert node.mirror.position() == Position("id", store.revision)


def test_a_node_that_joins_has_no_users_of_its_own(tmp_path: Path) -> None:
    with UserDatabase(tmp_path / "users", create=True, iterations=4096) as users:
        users.add(ANN, b"secret")
        users.add(BOB)
        users.set_policy(BOB, Policy(expiry=90))
        users.set_alias(LIST, [ANN, BOB])
    with MirroredUsers(tmp_path / "users") as mirror:
        mirror.follow(empty=True)
        assert not list(mirror.accounts())
        assert not list(mirror.aliases())
        assert mirror.domains(9) == []
        assert mirror.extremes() == (0, 0)
        assert mirror.account("postmaster")
        with pytest.raises(UsersLostError):
            mirror.expand(ANN)


def test_rows_without_the_last_of_an_upload_are_not_all(node: Node, store: RowStore) -> None:
    store.write(account_of(2, ANN))
    with pytest.raises(DataError, match="does not have all users"):
        node.reload()
    assert node.mirror.position() == Position()
    with pytest.raises(UsersLostError):
        node.users.expand(BOB)


def test_missing_is_not_removed(node: Node, store: RowStore) -> None:
    store.write(account_of(2, ANN), account_of(3, BOB), alias_of(LIST, ANN), *BASICS)
    node.reload()
    before = everything(node.users)
    keys = [rows.row_key(one.encode()) for one in (ANN, LIST)]
    store.write(*((key, None) for key in keys))
    node.catch_up()
    assert node.wrong == [f"{one} is missing in etcd, and stays here" for one in (ANN, LIST)]
    node.reload()
    store.rows.clear()
    store.write(*BASICS)
    node.reload()
    assert everything(node.users) == before
    assert not list(node.users.removed())
    store.write(removed(2, ANN), (rows.REMOVED_ALIAS + LIST.encode(), b"1"))
    node.catch_up()
    assert node.users.account(ANN) is None
    assert node.users.alias(LIST) is None
    assert [number for number, *_ in node.users.removed()] == [2]


def test_what_was_removed_stays_removed(node: Node, store: RowStore) -> None:
    store.write(account_of(2, ANN), *BASICS)
    node.reload()
    store.write(removed(2, ANN), (rows.row_key(ANN.encode()), None))
    node.catch_up()
    store.write(account_of(2, ANN))
    node.catch_up()
    assert node.wrong == [f"{ANN}, mailbox 2, was removed here and is in etcd"]
    assert node.users.account(ANN) is None
    store.write(account_of(3, ANN))
    node.catch_up()
    assert node.users.resolve(ANN).id == 3


def test_a_number_keeps_its_account(node: Node, store: RowStore) -> None:
    store.write(account_of(2, ANN), *BASICS)
    node.reload()
    key, _ = account_of(2, BOB)
    record = {"address": BOB, "created": 1}
    store.write((key, rows.account_row(2, pack_record(record))))
    node.catch_up()
    assert node.wrong == [f"mailbox 2 is {ANN} here and {BOB} in etcd"]
    assert node.users.account(BOB) is None
    assert node.users.resolve(ANN).id == 2


def test_two_users_of_one_second_and_one_number_are_no_rename(node: Node, store: RowStore) -> None:
    """As two copies of etcd would give it; a user who is renamed keeps what was drawn for him."""

    def born(address: str, made: bytes) -> Row:
        record = {"address": address, "created": 1, "made": made}
        return rows.row_key(address.encode()), rows.account_row(2, pack_record(record))

    store.write(born(ANN, b"one"), *BASICS)
    node.reload()
    store.write(born(BOB, b"other"))
    node.catch_up()
    assert node.wrong == [f"mailbox 2 is {ANN} here and {BOB} in etcd"]
    assert node.users.account(BOB) is None
    store.write(born("anna@example.test", b"one"))
    node.catch_up()
    assert node.users.resolve("anna@example.test").id == 2


@pytest.mark.parametrize(
    "row",
    [
        (rows.row_key(ANN.encode()), b""),
        (rows.row_key(ANN.encode()), b"\xc1"),
        (rows.row_key(ANN.encode()), rows.account_row(2, b"\x01")),
        (rows.row_key(ANN.encode()), rows.account_row(2, pack_record({"address": BOB}))),
        (rows.row_key(ANN.encode()), rows.account_row(2, b"\x81\x91\x01\x02")),  # a list as key
        (b"row/cd\xc3\xbc", rows.alias_row((BOB,))),  # the address begins within a character
        (rows.row_key(b"al@"), rows.alias_row((BOB,))),
        (rows.REMOVED + b"x", b""),
        (rows.NEXT, b"-1"),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out(node: Node, store: RowStore, row: Row) -> None:
    store.write(account_of(3, CAT), *BASICS)
    node.reload()
    before = everything(node.users)
    store.write(row)
    node.catch_up()
    node.reload()
    assert len(node.wrong) == 2
    assert everything(node.users) == before


@pytest.mark.long
@pytest.mark.slow
def test_rows_of_random_bytes_do_no_harm(node: Node, store: RowStore) -> None:
    choose = random.Random(SEED)
    store.write(account_of(3, CAT), alias_of(LIST, CAT), *BASICS)
    node.reload()
    good = [account_of(4, ANN, quota=1, scram=[4096, b"s", b"k", b"v"]), alias_of(BOB, CAT)]
    good += [removed(9, ANN), (rows.NEXT, b"12"), (rows.SECRET, b"s" * 32)]
    bad_record = pack_record({"address": ANN, "quota": "x", "expiry": 1 << 63})
    strange: list[Row] = [
        (rows.row_key(ANN.encode()), rows.account_row(5, bad_record)),
        (rows.ROW, good[0][1]),
        (rows.ROW + b"00/" + b"x" * 600, good[1][1]),
        (rows.row_key(ANN.encode()), rows.alias_row(("x" * 600,))),
        (rows.row_key(ANN.encode()), rows.alias_row(("",))),
        (rows.REMOVED_ALIAS, b""),
        (rows.REMOVED_ALIAS + b"x" * 600, b""),
        (rows.NEXT, b"9" * 15),
        (rows.SECRET, b"s" * 65),
    ]
    for _ in range(scaled(300)):
        key, value = choose.choice(good)
        octets = bytearray(value or b"")
        octets[choose.randrange(len(octets))] = choose.randrange(256)
        strange.append((key, bytes(octets[: choose.randrange(len(octets)) + 1])))
    for row in strange:
        store.write(row)
        node.catch_up()
        store.write((row[0], None))
        node.catch_up()
        store.write(row)
        node.mirror.follow(empty=False)
        node.reload()
        assert node.users.resolve(CAT).id == 3
        assert len(list(node.users.accounts())) <= 4
        assert len(list(node.users.removed())) <= 1
        assert node.users.imitate_check("unknown@example.test", b"x") is None
    assert node.wrong


def test_an_address_may_go_from_one_account_to_another(node: Node, store: RowStore) -> None:
    store.write(account_of(2, ANN), account_of(3, BOB), *BASICS)
    node.reload()
    store.write(account_of(2, BOB), account_of(3, ANN))
    node.reload(page=1)
    assert (node.users.resolve(ANN).id, node.users.resolve(BOB).id) == (3, 2)
    store.write(alias_of(ANN, BOB), account_of(3, CAT))
    node.reload(page=1)
    assert (node.users.resolve(ANN).id, node.users.resolve(CAT).id) == (2, 3)
    assert node.users.named_by(BOB) == [ANN]
    assert not node.wrong
    assert node.users.domains(9) == ["example.test"]
    store.write(removed(2, BOB), removed(3, CAT), (rows.REMOVED_ALIAS + ANN.encode(), b"1"))
    node.catch_up()
    assert node.users.domains(9) == []


def test_an_alias_that_comes_before_its_members_is_linked(node: Node, store: RowStore) -> None:
    store.write(alias_of("a@example.test", f"z+tag@{'example.test'}", "m@example.test"), *BASICS)
    store.write(account_of(2, "z@example.test"), alias_of("m@example.test", "z@example.test"))
    node.reload(page=1)
    assert set(node.users.named_by("z@example.test")) == {"a@example.test", "m@example.test"}


def test_many_rows_come_in_pieces_and_unknown_users_get_451_meanwhile(
    node: Node, store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrored, "MOST_PENDING", 10)
    numbers = random.Random(SEED).sample(range(2, 200), 95)
    store.write(*(account_of(number, f"u{number}@example.test") for number in numbers), *BASICS)
    node.users.accept_loss()
    reload = node.mirror.reload(Position("id", store.revision))
    found = sorted((key, kept.value) for key, kept in store.rows.items())
    reload.add(found[:60])
    with pytest.raises(UsersLostError):
        node.users.expand(ANN)
    reload.add(found[60:])
    assert node.mirror.position() == Position()
    reload.finish()
    assert len(list(node.users.accounts())) == 95
    with pytest.raises(UnknownUserError):
        node.users.expand(ANN)


def test_a_reload_that_changes_little_leaves_unknown_users_unknown(
    node: Node, store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(*(account_of(n, f"u{n}@example.test") for n in range(2, 99)), *BASICS)
    node.reload()
    monkeypatch.setattr(mirrored, "MOST_PENDING", 10)
    store.write(account_of(100, ANN))
    reload = node.mirror.reload(Position("id", store.revision))
    reload.add(sorted((key, kept.value) for key, kept in store.rows.items()))
    with pytest.raises(UnknownUserError):
        node.users.expand(BOB)
    reload.finish()
    assert node.users.resolve(ANN).id == 100
