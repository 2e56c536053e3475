"""A simulator that finds nothing is suspect: each seeded bug is caught by one of CI's seeds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.plan import make_plan
from tests.sim.shrink import why
from tests.sim.test_sim import SEEDS
from tests.support.children import in_child
from tests.support.sizes import reached, some


def seeds(mutant: Mutant) -> Iterator[int]:
    """All of CI's, beginning with the one that caught it last."""
    yield mutant.seed
    yield from (seed for seed in range(SEEDS) if seed != mutant.seed)


def catch(mutant: Mutant) -> str:
    """What the first seed that sees the bug says; runs in a child, which has the bug."""
    try:
        mutant.apply()
    except LookupError as error:
        return f"the text is not there: {error}"
    for seed in seeds(mutant):
        if reason := why(make_plan(seed)):
            return f"caught by seed {seed}: {reason}"
    return "no seed sees it"


@pytest.mark.parametrize("mutant", some(MUTANTS), ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_hub_that_lacks_a_rule_is_caught(mutant: Mutant) -> None:
    verdict = in_child(lambda: catch(mutant))
    assert verdict.startswith("caught by seed"), verdict
    reached("row 21, seeded bugs: caught", 1)


def test_there_are_enough_of_them() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 8
