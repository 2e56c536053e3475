"""The store's protocol searched to its end, and what the search catches (docs/store-model.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.store_failures import Hub
from tests.model.store_model import search
from tests.model.store_mutants import GATE, KILL, MUTANTS, Mutant, find
from tests.model.store_rules import RULES
from tests.model.store_state import MESSAGES, Left
from tests.support.sizes import SCALE, reached, some

PAGE = Path(__file__).parents[2] / "docs" / "store-model.md"
ANY_ONE = Left(1, 1, 1, 1, 1, 1, 1)
ANY_TWO = Left(2, 2, 2, 2, 2, 2, 2)
# Logs, failures, messages that are deleted; and the states that there are.
SMALL = [(3, Left(), MESSAGES, 6_590), (3, Left(1, syncs=1), (0,), 2_639)]
WHOLE = [
    (3, ANY_TWO, (0,), 1_231_722),
    (4, ANY_ONE, (0,), 207_911),
    (3, Left(3, cuts=2, unread=1), (0,), 34_316),
    (3, Left(3, cuts=1, syncs=1, unread=1), (0,), 31_101),
]
LONG = [
    (3, ANY_ONE, MESSAGES, 424_398),
    (3, Left(3, kills=1, cuts=1, unread=1), (0,), 321_972),
    (4, Left(3, cuts=1, syncs=1, unread=1), (0,), 143_790),
]
# The same of a member of a cluster: a copy of the message comes when it is deleted already.
CLUSTERED = [(Left(), 6_267), (Left(1, cuts=1), 32_738)]
CLUSTERED_LONG = [(Left(1, kills=1), 324_729)]
SEARCHES = SMALL + (WHOLE if SCALE else []) + (LONG if SCALE > 1 else [])


@pytest.mark.long
@pytest.mark.parametrize(("logs", "left", "deleted", "states"), SEARCHES)
def test_no_order_of_steps_and_failures_breaks_a_promise(logs, left, deleted, states):
    found = search(Hub(deletable=deleted), logs, left)
    reached("store model: states", found.states)
    assert not found.wrong, str(found)
    assert found.states == states


@pytest.mark.long
@pytest.mark.parametrize(
    ("left", "states"),
    CLUSTERED[:1] + (CLUSTERED[1:] if SCALE else []) + (CLUSTERED_LONG if SCALE > 1 else []),
)
def test_no_copy_that_comes_late_brings_a_message_back(left, states):
    found = search(Hub(clustered=True), 3, left)
    reached("store model: states", found.states)
    assert not found.wrong, str(found)
    assert found.states == states


@pytest.mark.long
@pytest.mark.parametrize("mutant", some(MUTANTS), ids=lambda mutant: mutant.name)
def test_a_store_that_lacks_a_rule_is_caught(mutant: Mutant):
    if mutant.is_slow and not SCALE:
        pytest.skip("in full runs")
    found = find(mutant)
    assert found.wrong, mutant.name
    assert any(mutant.way in step for step in found.trace), str(found)
    assert found.steps == len(found.trace) == mutant.steps, str(found)
    reached("store model: mutants caught", 1)


@pytest.mark.skipif(SCALE <= 1, reason="METAD_TEST_SCALE above 1")
@pytest.mark.parametrize("rule", GATE)
def test_one_half_of_the_gate_is_enough_for_one_kill(rule):
    found = search(Hub(frozenset({rule})), 4, KILL)
    assert not found.wrong, str(found)


def test_every_rule_is_lacked_by_a_mutant():
    assert {rule for mutant in MUTANTS for rule in mutant.off} == RULES.keys()


def test_the_page_names_each_mutant_and_the_length_of_its_counterexample():
    text = PAGE.read_text(encoding="utf-8")
    for mutant in MUTANTS:
        assert f"| {mutant.name} | {mutant.steps} |" in text
    for _, _, _, states in SMALL + WHOLE + LONG:
        assert f"{states:,}" in text
    for _, states in CLUSTERED + CLUSTERED_LONG:
        assert f"{states:,}" in text
