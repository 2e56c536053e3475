"""Rule Absent, compared with the model's; and how long a member must have been away."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import pytest

from metad.cluster.absence import Absences, without
from metad.cluster.view import Membership, View
from tests.cluster import cluster_model
from tests.cluster.test_rules import in_model
from tests.cluster.views import make_member, make_view, random_view
from tests.support.sizes import SEED, reached, scaled

CASES = scaled(1000)


def in_the_model(view: View, by: int) -> dict[int, tuple[dict[int, str], frozenset[int]]]:
    """Member -> states and healed ones of the view in which it is absent."""
    world, model = in_model(view)
    made: dict[int, tuple[dict[int, str], frozenset[int]]] = {}

    def swap(_by, old, states, healed):
        ((number, _),) = states.items()
        made[number] = (old.states | states, frozenset(healed))

    for number in view.those(*Membership):
        asked = SimpleNamespace(
            view=model,
            accept=world.accept,
            mutant="",
            at_etcd=lambda active: [by] if by in active else [],
            lease_ended=lambda other, number=number: other == number,
            random=SimpleNamespace(choice=lambda found: found[0]),
            swap=swap,
        )
        cluster_model.World.mark_absent(asked)  # type: ignore[arg-type]
    return made


@pytest.mark.slow
def test_the_rule_is_the_model_s():
    random = Random(f"{SEED} absent")
    outcomes = set()
    for _ in range(CASES):
        view = random_view(random)
        by = random.choice(view.members).number
        wanted = in_the_model(view, by)
        for member in view.members:
            found = without(view, member.number, by)
            assert (found is not None) == (member.number in wanted)
            outcomes.add((member.state, found is not None))
            if found is not None:
                states, healed = wanted[member.number]
                assert {one.number: str(one.state) for one in found.members} == states
                assert {one.number for one in found.members if one.healed} == healed
                assert found.epoch == view.epoch + 1
    serving = {Membership.ACTIVE, Membership.DRAINING, Membership.ENTERING}
    assert {(state, True) for state in serving} <= outcomes
    assert {(state, False) for state in Membership} <= outcomes
    reached("cluster: random views, rule Absent compared with the model's", CASES)


VIEW = make_view(make_member(1), make_member(2), make_member(3))


def test_a_member_must_have_been_away_all_the_time():
    away = Absences(15, 10)
    assert away.look(VIEW, {1, 2}, 100.0) == []
    assert away.look(VIEW, {1, 2}, 109.0) == []
    assert away.look(VIEW, {1, 2, 3}, 110.0) == []
    assert away.look(VIEW, {1, 2}, 112.0) == []
    assert away.look(VIEW, {1, 2}, 120.0) == []
    assert away.look(VIEW, {1}, 126.9) == []
    assert away.look(VIEW, {1}, 127.0) == [3]
    assert away.ages(128.0) == {2: 128.0 - 126.9, 3: 16.0}


def test_after_a_gap_all_begin_again():
    away = Absences(15, 10)
    for now in (100.0, 110.0):
        away.look(VIEW, {1, 2}, now)
    assert away.look(VIEW, {1, 2}, 120.1) == []
    assert away.look(VIEW, {1, 2}, 130.0) == []
    assert away.look(VIEW, {1, 2}, 135.1) == [3]
    away.forget()
    assert away.look(VIEW, {1, 2}, 136.0) == []


def test_those_that_are_out_already_are_not_looked_for():
    view = make_view(
        make_member(1), make_member(2, Membership.ABSENT), make_member(3, Membership.REMOVED)
    )
    away = Absences(15, 100)
    away.look(view, {1}, 1.0)
    assert away.look(view, {1}, 50.0) == []
