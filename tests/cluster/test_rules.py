"""The rules of the code and those of the model say the same, for any view and any answers."""

from __future__ import annotations

from random import Random

import pytest

from metad.cluster import rules, view
from tests.cluster import cluster_model
from tests.cluster.views import make_member, make_view, random_view
from tests.support.sizes import SEED, reached, scaled

ABSENT, ENTERING = view.Membership.ABSENT, view.Membership.ENTERING
MAILBOX = 77
CASES = scaled(2000)


def in_model(one: view.View) -> tuple[cluster_model.World, cluster_model.View]:
    """The same view as the model has it, and a world that asks about it."""
    states = {member.number: str(member.state) for member in one.members}
    healed = [member.number for member in one.members if member.healed]
    world = cluster_model.World(0, 2)
    world.accept = one.alone == "accept"
    return world, cluster_model.View(one.epoch, states, healed, one.copies, one.read_copies)


def some(random: Random, numbers: tuple[int, ...]) -> set[int]:
    share = random.random()
    return {number for number in numbers if random.random() < share}


@pytest.mark.slow
def test_a_view_names_the_same_members() -> None:
    random = Random(f"{SEED} members")
    for _ in range(CASES):
        one = random_view(random)
        _, model = in_model(one)
        assert list(one.active) == model.active
        assert sorted(one.counting) == sorted(model.counting)
        assert sorted(one.keeping) == sorted(model.keeping)
        assert list(one.entering) == model.entering
        assert list(one.unhealed) == model.unhealed
        assert one.short == model.short


@pytest.mark.slow
def test_where_mail_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(f"{SEED} expected")
    for _ in range(CASES):
        one = random_view(random)
        line = one.line(MAILBOX)
        monkeypatch.setattr(cluster_model, "_score", [*line, *range(100)].index)
        _, model = in_model(one)
        assert list(line) == model.line
        maker = random.randint(1, 12)
        message_id = bytes(8) + maker.to_bytes(2, "big") + bytes(6)
        assert list(one.expected(MAILBOX, message_id)) == model.expected((1, maker))


@pytest.mark.slow
def test_the_rules_are_the_model_s() -> None:
    random = Random(f"{SEED} rules")
    said: dict[str, set[bool]] = {"write": set(), "read": set(), "delete": set()}
    for _ in range(CASES):
        one = random_view(random)
        world, model = in_model(one)
        word = random.random() < 0.5
        got = some(random, one.active + one.entering)
        assert rules.enough(one, got) == world.enough(model, got)
        assert list(rules.also(one)) == world.also(model)
        durable = world.enough(model, got) and got.issuperset(world.also(model))
        assert rules.is_durable(one, got) == durable
        heard, confirmed = some(random, one.active), some(random, one.entering)
        silent = set(model.entering) - set(model.unhealed) - confirmed
        listed = world.complete(model, len(heard), len(silent), word)
        assert rules.may_list(one, heard, confirmed, has_word=word) == listed
        deleted = world.confirmed(model, got, word)
        assert rules.deletion_confirmed(one, got, has_word=word) == deleted
        for what, was in zip(said, (durable, listed, deleted), strict=True):
            said[what].add(was)
    assert all(both == {False, True} for both in said.values())
    reached("cluster: random views, rules compared with the model's", CASES)


# -- the table of what users get, two nodes

TWO = make_view(make_member(1), make_member(2))
ALONE = make_view(make_member(1), make_member(2, ABSENT), epoch=2, alone="accept")


def test_two_nodes_write_on_both_or_not_at_all() -> None:
    assert rules.is_durable(TWO, {1, 2})
    assert not rules.is_durable(TWO, {1})


def test_two_nodes_of_which_one_is_down_list_with_a_word() -> None:
    assert rules.may_list(TWO, {1, 2}, (), has_word=False)
    assert rules.may_list(TWO, {1}, (), has_word=True)
    assert not rules.may_list(TWO, {1}, (), has_word=False)


def test_a_deletion_is_on_both_of_two() -> None:
    assert rules.deletion_confirmed(TWO, {1, 2}, has_word=False)
    assert not rules.deletion_confirmed(TWO, {1}, has_word=True)


def test_one_that_is_alone_and_accepts_writes_one_copy() -> None:
    assert rules.is_durable(ALONE, {1})
    assert rules.may_list(ALONE, {1}, (), has_word=True)
    assert rules.deletion_confirmed(ALONE, {1}, has_word=True)


def test_who_enters_beside_one_that_is_alone_is_written_to() -> None:
    entering = make_view(make_member(1), make_member(2, ENTERING), alone="accept")
    assert not rules.is_durable(entering, {1})
    assert rules.is_durable(entering, {1, 2})
    assert rules.takes_part(entering, 2)
    assert not rules.serves(entering, 2)


def test_a_removed_member_takes_no_part() -> None:
    removed = make_view(make_member(1), make_member(2, view.Membership.REMOVED, healed=True))
    assert not rules.takes_part(removed, 2)
    assert not rules.takes_part(removed, 3)
