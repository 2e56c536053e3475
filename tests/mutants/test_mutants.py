"""Reliability row 18: a fault test that has never failed is suspect.  Each seeded bug is put into a
forked child, where the test named with it must fail."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from tests.mutants.mutants import MUTANTS, Mutant
from tests.support.sizes import reached, some

TESTS = Path(__file__).parent.parent
CAUGHT, SURVIVED, NOT_THERE = 1, 0, 77
WITNESS_SEED = "1999"

TRIED = some(MUTANTS, 4)  # each costs half a second of CPU


def kept(name: str) -> bool:
    """Modules that took nothing from the good program at import."""
    return name.startswith("tests.mutants") or name.endswith("conftest")


def verdict(mutant: Mutant | None, test: str) -> int:
    """Run one test in a child with the bug.  Returns pytest's exit code."""
    child = os.fork()
    if not child:
        code = NOT_THERE
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            # The outer pytest's import hook would compile every test module again.
            sys.meta_path = [h for h in sys.meta_path if "Rewriting" not in type(h).__name__]
            # Whether a short campaign meets a bug is a matter of luck: use a fixed seed.
            os.environ["METAD_TEST_SEED"] = WITNESS_SEED
            os.environ.pop("METAD_TEST_SCALE", None)
            # The smallest example is not needed.
            settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate])
            settings.load_profile("mutants")
            for name in [
                name for name in sys.modules if name.startswith("tests.") and not kept(name)
            ]:
                del sys.modules[name]  # what they took from the good program at import
            if mutant is not None:
                mutant.apply()
            options = [
                "-x",
                "-q",
                "--assert=plain",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:faulthandler",
            ]
            code = int(pytest.main([*options, str(TESTS / test)]))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.long
@pytest.mark.parametrize("mutant", TRIED, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_every_seeded_bug_is_caught(mutant: Mutant) -> None:
    code = verdict(mutant, mutant.caught_by)
    reached("row 18, seeded bugs: caught", int(code == CAUGHT))
    assert code != NOT_THERE, f"{mutant.where} has no {mutant.old!r} any more: rewrite the bug"
    assert code != SURVIVED, f"{mutant.caught_by} does not see it"
    assert code == CAUGHT, f"{mutant.caught_by} could not be run: {code}"


def test_without_a_bug_the_witnesses_pass() -> None:
    """Witnesses that run nowhere else; the others are part of the suite."""
    assert verdict(None, "mutants/witness.py") == 0


def test_there_are_enough_of_them() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25
