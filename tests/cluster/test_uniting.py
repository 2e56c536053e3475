"""The union of several lists, in pieces: what a set would give, whatever the pieces are."""

from __future__ import annotations

from random import Random

import pytest

from metad.cluster import uniting
from metad.cluster.listed import Listed
from metad.cluster.uniting import PIECE, Union
from metad.errors import ClusterError
from tests.support.sizes import SEED, scaled

from .test_mail import an_id, entry


def a_list(numbers: set[int], dead: set[int] = frozenset()) -> Listed:  # type: ignore[assignment]
    return Listed(b"".join(map(entry, sorted(numbers))), b"".join(map(an_id, sorted(dead))))


def made(own: Listed, *others: Listed) -> tuple[Union, int]:
    """The union with nodes 2, 3 ..., and its steps."""
    union = Union(own, dict(enumerate(others, 2)))
    return union, 1 + len(list(union.steps()))


def test_the_union_is_that_of_sets_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(f"{SEED} uniting")
    for _ in range(scaled(100)):
        monkeypatch.setattr(uniting, "PIECE", random.choice([1, 2, 3, 7, 500]))
        has, dead = ([{random.randrange(60) for _ in range(random.randrange(most))}
                      for _ in range(3)] for most in (40, 20))  # fmt: skip
        if random.random() < 0.3:
            has[1] = has[2] = has[0]
        union, _ = made(*map(a_list, has, dead))
        want = sorted(set[int]().union(*has) - set[int]().union(*dead))
        assert union.entries == b"".join(map(entry, want))
        assert union.octets == sum(int.from_bytes(entry(one)[16:], "big") for one in want)
        far = [one for one in want if one not in has[0]]
        assert union.holders == {
            an_id(one): [number for number in (2, 3) if one in has[number - 1]] for one in far
        }


def test_a_long_list_takes_as_many_steps_as_it_has_pieces() -> None:
    many = set(range(10 * PIECE))
    assert made(a_list(many), a_list(many))[1] == 10
    assert made(a_list(set()), a_list(many), a_list(set(), many))[1] == 10
    assert made(a_list(set()), a_list(set()))[1] == 1


def test_unique_ids_of_all_members_count() -> None:
    own = a_list({1, 2})._replace(uids={an_id(1): "one"})
    union, _ = made(own, a_list({1, 2})._replace(uids={an_id(2): "two"}))
    assert union.uids == {an_id(1): "one", an_id(2): "two"}


@pytest.mark.parametrize("size", [1, 2, 500])
@pytest.mark.parametrize("torn", ["entries", "tombstones"])
def test_a_list_in_another_order_is_an_error(
    size: int, torn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uniting, "PIECE", size)
    make = entry if torn == "entries" else an_id
    packed = make(1) + make(3) + make(2) + make(4)
    wrong = Listed(packed) if torn == "entries" else Listed(b"", packed)
    with pytest.raises(ClusterError, match="not in the order"):
        made(a_list({1}), wrong)


def test_whatever_the_order_is_it_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(f"{SEED} order")
    monkeypatch.setattr(uniting, "PIECE", 5)
    errors = 0
    for _ in range(scaled(200)):
        lists = [Listed(b"".join(entry(random.randrange(90)) for _ in range(12))) for _ in range(2)]
        try:
            made(*lists)
        except ClusterError:
            errors += 1
    assert errors
