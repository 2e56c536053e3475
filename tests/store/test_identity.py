"""The number of a store's node."""

from __future__ import annotations

import pytest

from metad.store.identity import APART, NODES, fresh_node


@pytest.mark.parametrize(
    "known", [[], [1], [NODES - 1], [700, 700 + APART, 40_000], range(1, 9_000, 2 * APART + 1)]
)
def test_a_fresh_number_is_apart_from_all_known_ones(known: list[int]) -> None:
    for _ in range(5):
        number = fresh_node(known)
        assert 1 <= number < NODES - APART
        assert all(abs(number - one) > APART for one in known)


def test_if_no_number_is_apart_it_is_one_that_is_free() -> None:
    known = range(1, NODES, APART)
    for _ in range(5):
        number = fresh_node(known)
        assert 1 <= number < NODES
        assert number not in known
