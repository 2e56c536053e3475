"""The users of a cluster between etcd and the mirrors of two nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from metad.cluster import etcd_json
from metad.cluster.directory_keys import Identity
from metad.cluster.etcd_json import EtcdError
from metad.errors import ClusterError, DataError, UsersLostError
from metad.system.backoff import Backoff
from metad.users import etcd_rows, rows, user_directory
from metad.users.account import POSTMASTER_ID, pack_record
from metad.users.mirrored import MirroredUsers
from metad.users.rows import Change, Position
from tests.support.etcd_fake import FakeEtcd
from tests.support.user_nodes import (
    ANN,
    BOB,
    CAT,
    IDENTITY,
    KEYS,
    Node,
    cluster,
    level,
    until,
    write_directory,
)
from tests.support.user_rows import everything


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_directory, "AGAIN", Backoff(0.01, 0.01))


def row_key(address: str) -> str:
    return KEYS.users + rows.row_key(address.encode()).decode()


@pytest.mark.slow
def test_what_was_uploaded_and_what_changes_holds_on_both(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, FakeEtcd()) as (one, two):
            assert two.users.verify(ANN, b"secret")
            bob = await two.call("add", BOB, b"hidden")
            assert bob.id == POSTMASTER_ID + 2
            await until(lambda: level(one, two))
            await one.call("set_password", BOB, b"changed")
            await until(lambda: two.users.verify(BOB, b"changed") is not None)
            await one.call("remove", ANN)
            await until(lambda: level(one, two))
            assert everything(one.users) == everything(two.users)
            assert not one.lines + two.lines

    asyncio.run(test())


def test_two_add_the_same_address_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, FakeEtcd()) as (one, two):
            found = await asyncio.gather(
                one.call("add", BOB, b"1"), two.call("add", BOB, b"2"), return_exceptions=True
            )
            errors = [one for one in found if isinstance(one, BaseException)]
            assert [type(one) for one in errors] == [DataError]
            assert "a user has this address already" in str(errors[0])
            await until(lambda: level(one, two))
            assert everything(one.users) == everything(two.users)

    asyncio.run(test())


@pytest.mark.slow
def test_many_commands_at_once_number_every_mailbox_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, FakeEtcd()) as (one, two):
            names = [f"u{number}@example.test" for number in range(12)]
            both = zip(names, (one, two) * 6, strict=True)
            found = await asyncio.gather(*(node.call("add", name) for name, node in both))
            assert len({account.id for account in found}) == len(names)
            await until(lambda: level(one, two))
            assert everything(one.users) == everything(two.users)

    asyncio.run(test())


def test_after_a_compaction_all_rows_come_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            await two.stop()
            await one.call("add", BOB)
            await one.call("remove", ANN)
            etcd.compact()
            await one.call("add", CAT)
            two.start()
            await until(lambda: two.users.account(CAT) is not None)
            assert two.users.account(ANN) is None
            await until(lambda: level(one, two))
            assert everything(one.users) == everything(two.users)

    asyncio.run(test())


def test_many_rows_are_read_in_ranges_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with cluster(tmp_path, FakeEtcd()) as (one, two):
            names = [f"u{number}@example.test" for number in range(60)]
            await two.stop()
            entries = [(name, None) for name in names]
            await asyncio.to_thread(lambda: list(one.users.add_many(entries)))
            await one.call("set_alias", "all@example.test", names[:3])
            await one.call("remove", ANN)
            monkeypatch.setattr(etcd_rows, "PAGE", 20)
            two.users.follow(empty=True)
            two.start()
            await until(lambda: level(one, two))
            assert everything(one.users) == everything(two.users)
            assert not two.lines

    asyncio.run(test())


def test_a_watch_that_is_lost_within_a_revision_begins_with_all_of_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            await one.stop()
            etcd.cuts = 1
            row = etcd.state.rows[row_key(ANN)].value
            number, record, _ = rows.read_row(ANN.encode(), row)
            renamed = rows.account_row(number, pack_record(record | {"address": BOB}))
            token = f"{KEYS.users}last/1"
            etcd.write({token: b"t", row_key(BOB): renamed, row_key(ANN): None})
            await until(lambda: etcd.cuts == 0 and two.users.account(BOB) is not None)
            assert two.users.account(ANN) is None
            one.start()

    asyncio.run(test())


def test_a_compaction_alone_costs_no_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            await two.stop()
            for number in range(3):
                etcd.write({KEYS.pulse(1): b"%d" % number})
            etcd.compact()
            monkeypatch.setattr(MirroredUsers, "reload", None)
            two.start()
            await one.call("add", BOB)
            await until(lambda: two.users.account(BOB) is not None)

    asyncio.run(test())


def test_without_etcd_a_change_is_refused_and_nothing_else(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            etcd.stop()
            with pytest.raises(ClusterError, match="does not answer"):
                await one.call("add", BOB)
            assert one.users.verify(ANN, b"secret")
            assert one.users.account(BOB) is None
            await until(lambda: bool(one.directory.error))
            etcd.start()
            await until(lambda: not one.directory.error)
            await one.call("add", BOB)
            await until(lambda: two.users.account(BOB) is not None)
            assert len(one.lines) == 2

    asyncio.run(test())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_is_looked_up(tmp_path: Path, when: str) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):

            def fault(now: str) -> None:
                if now == when:
                    etcd.fault = lambda _: None
                    raise EtcdError("lost")

            etcd.fault = fault
            if when == "before":
                with pytest.raises(EtcdError, match="lost"):
                    await one.call("add", BOB)
                assert one.users.account(BOB) is None
            else:
                await one.call("add", BOB)
                await until(lambda: two.users.account(BOB) is not None)

    asyncio.run(test())


def test_a_wiped_etcd_removes_no_user_and_takes_no_change(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            before = everything(one.users)
            etcd.write(dict.fromkeys(etcd.state.rows))
            with pytest.raises(ClusterError):
                await one.call("add", BOB)
            await until(lambda: len(one.lines) >= 1)
            await two.stop()
            two.start()
            await until(lambda: bool(two.directory.error))
            assert everything(one.users) == everything(two.users) == before

    asyncio.run(test())


def test_a_rolled_back_etcd_is_not_followed(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            old = etcd.snapshot()
            await one.call("remove", ANN)
            await until(lambda: level(one, two))
            etcd.stop()
            await until(lambda: bool(two.directory.error))
            etcd.start(old)
            await until(lambda: "has gone back" in two.directory.error)
            assert two.users.account(ANN) is None
            assert two.distrusted[0] == (IDENTITY, two.directory.error)
            two.identity = None  # the directory says so
            with pytest.raises(ClusterError, match="not trusted"):
                await two.call("add", BOB)

    asyncio.run(test())


def test_a_mirror_that_moves_on_while_etcd_answers_shows_no_rollback(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            read = etcd.read

            async def late(*requests: Any) -> Any:
                found = await read(*requests)
                await one.call("add", BOB)
                await until(lambda: two.directory.position.revision > found.revision)
                return found

            etcd.read = late  # type: ignore[method-assign]
            found = await two.directory._look(IDENTITY)
            etcd.read = read  # type: ignore[method-assign]
            assert found.revision < two.directory.position.revision
            assert two.distrusted == []

    asyncio.run(test())


def test_a_directory_of_a_new_generation_is_reloaded(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            await one.call("add", BOB)
            await until(lambda: level(one, two))
            etcd.write(dict.fromkeys(etcd.state.rows))
            one.identity = two.identity = None
            await one.stop()
            newer = Identity(IDENTITY.id, 2)
            etcd.write({row_key(CAT): rows.alias_row((ANN,))})  # of an earlier day
            await write_directory(etcd, one, newer)
            one.identity = two.identity = newer
            one.start()
            await one.call("add", "dan@example.test")
            await until(lambda: two.users.account("dan@example.test") is not None)
            assert two.users.account(BOB)
            assert two.users.account(CAT) is None
            assert everything(one.users) == everything(two.users)

    asyncio.run(test())


def test_no_number_is_given_again_by_an_etcd_that_lost_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, _):
            given = await one.call("add", BOB)
            await one.stop()
            etcd.write({f"{KEYS.users}next": b"2"})
            one.start()
            await until(lambda: etcd.state.rows[f"{KEYS.users}next"].value != b"2")
            assert (await one.call("add", CAT)).id > given.id

    asyncio.run(test())


def test_a_node_that_was_off_gives_no_number_of_an_etcd_that_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 1 does not trust etcd.  Node 2 has seen no later state, so it does."""
    monkeypatch.setattr(user_directory, "LISTEN_S", 0.05)

    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            old = etcd.snapshot()
            await two.stop()
            given = await one.call("add", BOB)
            etcd.stop()
            one.identity, one.distrusts = None, True
            etcd.start(old)
            number = etcd.state.rows[f"{KEYS.users}next"].value
            await until(lambda: etcd.state.rows[f"{KEYS.users}next"].value != number)
            two.start()
            assert (await two.call("add", CAT)).id > given.id

    asyncio.run(test())


def test_a_directory_that_was_not_read_yet_or_is_of_others_is_left_alone(tmp_path: Path) -> None:
    """Of a node that starts, or was removed."""

    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            await two.stop()
            two.identity = None
            two.users.raise_numbers(99)
            reads: list[object] = []
            read = etcd.read

            async def counted(*requests: Any) -> Any:
                reads.append(requests)
                return await read(*requests)

            cast(Any, two).etcd = SimpleNamespace(read=counted)
            two.start()
            await one.call("add", BOB)  # takes many turns
            assert reads == []

    asyncio.run(test())


def test_a_new_node_of_an_etcd_without_all_users_does_not_refuse_any(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()):
            etcd.write({f"{KEYS.users}whole": None, row_key(ANN): None})
            three = Node(tmp_path / "3", 3, etcd)
            three.start()
            await until(lambda: "does not have all users" in three.directory.error)
            with pytest.raises(UsersLostError):
                three.users.expand(ANN)
            await three.stop()
            three.users.close()

    asyncio.run(test())


def test_rows_edited_in_etcd_are_reported_to_who_changes_them(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, _):
            etcd.write({row_key(ANN): None})
            await until(lambda: bool(one.lines))
            assert one.lines == [f"warning: users: {ANN} is missing in etcd, and stays here"]
            with pytest.raises(ClusterError, match="are not those of this node"):
                await one.call("set_password", ANN, b"changed")

    asyncio.run(test())


def test_a_large_alias_holds_on_both_nodes(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, FakeEtcd()) as (one, two):
            names = [f"u{number}@example.test" for number in range(80)]
            await asyncio.to_thread(lambda: list(one.users.add_many((n, None) for n in names)))
            await one.call("set_alias", "all@example.test", names)
            await until(lambda: two.users.alias("all@example.test") is not None)

    asyncio.run(test())


PREFIX = KEYS.users
LAST: dict[str, bytes | None] = {PREFIX + "last/1": b"token"}  # as every change of users writes
CASES: dict[str, tuple[dict[str, bytes | None], bool]] = {
    "nothing": ({}, True),
    "another row": ({PREFIX + "d": b"2", **LAST}, True),
    "another key": ({KEYS.view: b"2"}, True),
    "a present row was written": ({PREFIX + "a": b"2", **LAST}, False),
    "a present row was deleted": ({PREFIX + "a": None, **LAST}, False),
    "an absent row was written": ({PREFIX + "b": b"2", **LAST}, False),
    "the next number was written": ({PREFIX + "c": b"2", **LAST}, False),
    "an earlier row of many": ({PREFIX + "m7": b"2", **LAST}, False),
}


@pytest.mark.parametrize("many", [0, 200])
@pytest.mark.parametrize("case", CASES)
def test_a_change_holds_only_if_its_rows_are_as_they_were(case: str, many: int) -> None:
    written, holds = CASES[case]
    more = [f"m{number}" for number in range(many)]
    if many and case == "another row":
        holds = False  # any change is one too many
    if not many and case == "an earlier row of many":
        holds = True

    async def test() -> None:
        etcd = FakeEtcd()
        rows_there = ["a", "c", "d", *more]
        etcd.write({PREFIX + name: b"1" for name in rows_there})
        there = tuple(name.encode() for name in ("a", *more))
        now = Position("", etcd.state.revision)
        change = Change(now, there, (b"b",), (b"c", b"never"), ((b"e", b"1"),))
        etcd.write(written)
        compare = etcd_rows.compare(PREFIX, change)
        outcome = await etcd.transact(compare, etcd_rows.writes(PREFIX, change))
        assert outcome.succeeded is holds

    asyncio.run(test())


def test_many_comparisons_are_one_of_the_few_rows_that_every_change_writes() -> None:
    """etcd reads each row that it compares while it carries the transaction out."""
    there = tuple(b"m%d" % number for number in range(200))
    (one,) = etcd_rows.compare(PREFIX, Change(Position("", 7), there, (), (), ()))
    assert (one["key"], one["range_end"]) == (
        etcd_json.text(PREFIX + "last/"),
        etcd_json.text(PREFIX + "last0"),
    )


def test_what_is_not_a_change_is_refused() -> None:
    at = ["", 1]
    for bad in (None, [], [at, 2, 3, 4, 5, 6], [1, *[[]] * 5], [at, [], [], [], [[b"a"]], []]):
        with pytest.raises(ClusterError):
            Change.decode(bad)
    with pytest.raises(ClusterError, match="too many"):
        Change.decode([at, [], [], [], [[b"%d" % n, b""] for n in range(200)], []])
