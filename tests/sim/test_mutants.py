"""A simulator that finds nothing is suspect: each seeded bug is caught by one of CI's seeds."""

from __future__ import annotations

import pytest

from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.plan import make_plan
from tests.sim.shrink import why
from tests.sim.test_sim import SEEDS
from tests.support.sizes import reached, some


def run(seed: int) -> None:
    """Raises AssertionError whatever a hub with the bug raises."""
    assert not (reason := why(make_plan(seed))), reason


@pytest.mark.parametrize("mutant", some(MUTANTS), ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_hub_that_lacks_a_rule_is_caught(mutant: Mutant) -> None:
    verdict = mutant.verdict(range(SEEDS), run)
    assert verdict.startswith("caught by seed"), verdict
    reached("row 21, seeded bugs: caught", 1)


def test_there_are_enough_of_them() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 8
