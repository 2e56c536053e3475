"""What another member tells of deletions, read."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from metad.cluster.marks import Heard
from metad.errors import ClusterError
from metad.layers.tombstone_pull import _answer, _vector
from metad.store.index.tombstones import Origin, Tombstone

ORIGIN = Origin(2, 7)
MARK = Heard(bytes(8), 1, 1).pack()
ROW = (7, bytes(16), 5)
INFINITY = float("inf")


def packed(vector: Any = ((*ORIGIN, 9),), lacking: Any = (*ORIGIN, 5, (ROW,))) -> bytes:
    body: bytes = msgpack.packb((MARK, vector, lacking))
    return body


def test_an_answer_is_read_as_it_was_told() -> None:
    found = _answer(packed())
    assert (found.vector, found.origin, found.upto) == ({ORIGIN: 9}, ORIGIN, 5)
    assert found.found == [Tombstone(7, bytes(16), ORIGIN, 5)]
    assert _answer(packed(lacking=None)).upto == 0


@pytest.mark.parametrize(
    "row",
    [(1 << 32, bytes(16), 5), (-1, bytes(16), 5), (INFINITY, bytes(16), 5), (7, 16, 5),
     (7, "x" * 16, 5), (7, bytes(15), 5), (7, bytes(16), -1), (7, bytes(16), INFINITY)],
)  # fmt: skip
def test_a_tombstone_that_no_row_can_hold_is_refused(row: Any) -> None:
    with pytest.raises(ClusterError):
        _answer(packed(lacking=(*ORIGIN, 5, (row,))))


@pytest.mark.parametrize(
    "lacking", [(1 << 16, 7, 5, (ROW,)), (2, -1, 5, (ROW,)), (2, 7, INFINITY, (ROW,))]
)
def test_an_origin_that_cannot_be_is_refused(lacking: Any) -> None:
    with pytest.raises(ClusterError):
        _answer(packed(lacking=lacking))


@pytest.mark.parametrize("vector", [((2, 7, INFINITY),), ((2, 7, -1),), ((-1, 7, 9),), ((2, 7),)])
def test_a_vector_that_cannot_be_is_refused(vector: Any) -> None:
    with pytest.raises(ClusterError):
        _vector(msgpack.packb(vector))
    with pytest.raises(ClusterError):
        _answer(packed(vector=vector))
