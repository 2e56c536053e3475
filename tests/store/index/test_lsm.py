"""The levels of the mailboxes: callers see one table, wherever entries are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metad.store.index.lsm import Lsm, pack_usage
from metad.store.usage import Usage

Model = dict[tuple[int, int], int]  # mailbox and id: octets
BOUNDS = [(1,), (3,), (20,), (2, 7)]


@pytest.fixture
def env(tmp_path: Path) -> Iterator[lmdb.Environment]:
    with lmdb.open(str(tmp_path / "env"), max_dbs=8, sync=False) as made:
        yield made


def box(number: int) -> bytes:
    return number.to_bytes(4, "big")


def an_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def add(env: lmdb.Environment, levels: Lsm, *entries: tuple[int, int, int]) -> None:
    """Mailbox, id and octets of each."""
    with env.begin(write=True) as txn:
        levels.add(txn, [(box(m) + an_id(n), o.to_bytes(4, "big")) for m, n, o in entries])


def remove(env: lmdb.Environment, levels: Lsm, mailbox: int, *ids: int) -> set[int]:
    with env.begin(write=True) as txn:
        gone = levels.remove(txn, box(mailbox), map(an_id, ids))
    assert len(set(gone)) == len(gone)
    return {int.from_bytes(each, "big") for each in gone}


def rows_of(env: lmdb.Environment, levels: Lsm) -> list[dict[bytes, bytes]]:
    """The rows of each level, of which each must have the usage of its own entries and no other."""
    with env.begin() as txn:
        found = [dict(txn.cursor(table)) for table in levels.tables]
    for rows in found:
        usage: dict[bytes, tuple[int, int]] = {}
        for key, value in rows.items():
            if len(key) == 20:
                octets, messages = usage.get(key[:4], (0, 0))
                usage[key[:4]] = (octets + int.from_bytes(value, "big"), messages + 1)
        said = {key: value for key, value in rows.items() if len(key) == 4}
        assert said == {key: pack_usage(*its) for key, its in usage.items()}
    return found


def compare(env: lmdb.Environment, levels: Lsm, model: Model) -> None:
    """What the levels say is what the model says, and no entry is in two of them."""
    entries = [key for rows in rows_of(env, levels) for key in rows if len(key) == 20]
    assert sorted(entries) == sorted(box(m) + an_id(n) for m, n in model)
    usages = {}
    with env.begin() as txn:
        for mailbox in {m for m, _ in model} | {0, 99}:
            its = sorted((n, o) for (m, n), o in model.items() if m == mailbox)
            expected = b"".join(an_id(n) + o.to_bytes(4, "big") for n, o in its)
            assert levels.listing(txn, box(mailbox)) == expected
            usage = Usage(sum(o for _, o in its), len(its))
            assert levels.usage(txn, box(mailbox)) == usage
            assert levels.oldest(txn, box(mailbox), 3) == [an_id(n) for n, _ in its[:3]]
            if its:
                usages[box(mailbox)] = usage
            for number, _ in its:
                assert levels.has(txn, box(mailbox) + an_id(number))
        assert not levels.has(txn, box(0) + an_id(10**6))
        assert list(levels.usages(txn, b"\0")) == sorted(usages.items())
        assert levels.greatest_mailbox(txn) == max(usages, default=b"")


steps = st.one_of(
    st.tuples(
        st.just("add"),
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60), st.integers(0, 2**32 - 1))),
    ),
    st.tuples(st.just("remove"), st.tuples(st.integers(0, 5), st.sets(st.integers(1, 60)))),
    st.tuples(st.just("hint"), st.binary(max_size=30)),
)


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bounds=st.sampled_from(BOUNDS), work=st.lists(steps, max_size=30))
def test_the_levels_are_as_one_dict(
    tmp_path_factory: pytest.TempPathFactory, bounds: tuple[int, ...], work: list[Any]
) -> None:
    model: Model = {}
    with lmdb.open(str(tmp_path_factory.mktemp("env")), max_dbs=8, sync=False) as env:
        levels = Lsm(env, bounds)
        for what, value in work:
            if what == "add":
                new = {(m, n): o for m, n, o in value if (m, n) not in model}
                add(env, levels, *((m, n, o) for (m, n), o in new.items()))
                model |= new
            elif what == "remove":
                mailbox, ids = value
                there = {n for n in ids if (mailbox, n) in model}
                assert remove(env, levels, mailbox, *ids) == there
                for number in there:
                    del model[mailbox, number]
            else:
                with env.begin(write=True) as txn:
                    txn.put(b"swept\0", value)
            compare(env, levels, model)


@pytest.mark.slow
def test_no_level_but_the_last_grows_much_beyond_its_bound(env: lmdb.Environment) -> None:
    levels = Lsm(env, (40, 200))
    for number in range(1, 1500):
        add(env, levels, (number * 7919 % 331, number, 1))
        sizes = list(map(len, rows_of(env, levels)))
        assert sizes[0] <= 40 + 20
        assert sizes[1] <= 200 + 2 * 20
    assert sizes[2] > 1000


def test_a_sweep_takes_the_oldest_of_a_large_mailbox_first(env: lmdb.Environment) -> None:
    levels = Lsm(env, (12,))
    for number in range(1, 40):
        add(env, levels, (7, number, number))
    young, old = rows_of(env, levels)
    young.pop(box(7))
    assert max(old) < min(young)
    compare(env, levels, {(7, number): number for number in range(1, 40)})


def test_mail_that_is_fetched_soon_never_leaves_the_youngest_level(env: lmdb.Environment) -> None:
    levels = Lsm(env, (50,))
    for number in range(1, 400):
        add(env, levels, (number % 30, number, 1))
        if number > 20:
            assert remove(env, levels, (number - 20) % 30, number - 20) == {number - 20}
    young, old = rows_of(env, levels)
    assert len(young) == 2 * 20
    assert not old


def test_a_transaction_that_fails_moves_nothing(env: lmdb.Environment) -> None:
    levels = Lsm(env, (6,))
    for number in range(1, 6):
        add(env, levels, (number, number, 1))
    before = rows_of(env, levels)

    def fail() -> None:
        with env.begin(write=True) as txn:
            levels.add(txn, [(box(n) + an_id(n), b"\0\0\0\1") for n in range(10, 30)])
            assert txn.stat(levels.tables[1])["entries"] > 0
            raise lmdb.Error("no")

    with pytest.raises(lmdb.Error):
        fail()
    assert rows_of(env, levels) == before
    for number in range(10, 30):
        add(env, levels, (number, number, 1))
    numbers = [*range(1, 6), *range(10, 30)]
    compare(env, levels, {(number, number): 1 for number in numbers})


def test_removing_what_is_not_there_writes_nothing(env: lmdb.Environment) -> None:
    levels = Lsm(env, (6,))
    for number in range(1, 20):
        add(env, levels, (1, number, 1))
    before = env.info()["last_txnid"], rows_of(env, levels)
    with env.begin() as txn:  # which could not write
        assert levels.remove(txn, box(1), [an_id(77), an_id(78)]) == []
        assert levels.remove(txn, box(2), [an_id(1)]) == []
    assert (env.info()["last_txnid"], rows_of(env, levels)) == before
