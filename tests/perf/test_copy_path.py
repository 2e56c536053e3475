"""perf.copy_path: all three stores take every message, and counts repeat."""

from __future__ import annotations

import pytest

from perf import copy_path

SIDES = ("alone", "taking", "copied")


def test_each_side_is_measured() -> None:
    found = copy_path.measure(3, 20, counts=False)
    assert all(found[side] > 0 for side in SIDES)


def test_instructions_are_nearly_the_same_each_time() -> None:
    one, other = (copy_path.measure(2, 10, counts=True) for _ in range(2))
    for side in SIDES:
        assert one[side] == pytest.approx(other[side], rel=0.05)
    assert one["taking"] > one["alone"] > 0
