"""The sizes of campaigns, their random seed, and the results of a run.

Rules of this file:

* METAD_TEST_SCALE is the one switch.  Without it a campaign has a developer's size; with a number,
  that multiple of CI's size (docs/testing.md).
* Randomness depends on METAD_TEST_SEED and the test itself, never on the order of the tests or the
  process that runs them.
* A campaign reports its results; the end of the run shows the sums (conftest.py).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

SEED = int(os.environ.get("METAD_TEST_SEED", "1999"))
SCALE = float(os.environ.get("METAD_TEST_SCALE") or 0)  # 0: the developer's sizes

T = TypeVar("T")

_said: list[tuple[str, int | str]] = []


def sized(small: int, full: int) -> int:
    """A developer's size, or CI's at the scale of this run."""
    return max(small, round(full * SCALE))


def scaled(count: int) -> int:
    """Like `sized`, for a campaign without its own size in CI: ten times as much."""
    return sized(count, 10 * count)


def some(items: Sequence[T], one_in: int = 3) -> list[T]:
    """In CI all; a developer's run has one in so many, others with each seed, in their order."""
    if SCALE:
        return list(items)
    picked = random.Random(SEED).sample(range(len(items)), -(-len(items) // one_in))
    return [items[at] for at in sorted(picked)]


def is_drawn(name: str, one_in: int = 4) -> bool:
    """Whether this long test runs: in CI each, in a developer's run one in so many, by the seed."""
    return bool(SCALE) or not random.Random(f"{SEED} {name}").randrange(one_in)


def reached(what: str, count: int) -> None:
    """Report `count` more results of a campaign ("power cut: states recovered and judged")."""
    _said.append((what, count))


def noted(what: str, figure: str) -> None:
    """Report a figure for people, which no test asserts."""
    _said.append((what, figure))


def taken() -> list[tuple[str, int | str]]:
    """The reports since the last call."""
    said = _said[:]
    _said.clear()
    return said


def summary(said: Iterable[tuple[str, int | str]]) -> list[str]:
    """A line for each sum, and for each figure."""
    sums: dict[str, int] = {}
    figures = []
    for what, value in said:
        if isinstance(value, int):
            sums[what] = sums.get(what, 0) + value
        else:
            figures.append(f"{what}: {value}")
    return [f"{what}: {count:,}" for what, count in sorted(sums.items())] + sorted(figures)
