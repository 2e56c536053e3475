"""Which view follows: the code changes a view as the model does, over random views."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from random import Random

import pytest

from metad.cluster.alone import alone_with_etcd
from metad.cluster.draining import answer_drain, draining, kept
from metad.cluster.entering import MemberState, next_view
from metad.cluster.removing import Removal, without
from metad.cluster.view import Membership, View
from metad.errors import ClusterError
from tests.cluster import cluster_model
from tests.cluster.cluster_model import LEASE, Node, World
from tests.cluster.test_mail import view_of
from tests.cluster.views import random_view
from tests.support.sizes import SEED, reached, scaled

CASES = scaled(2000)
NOW = 100
Outcome = tuple[dict[int, str], frozenset[int], int, int]


class Dice(Random):
    """Each of the model's choices is the one that makes it act; of numbers, `chosen`."""

    chosen = 0

    def random(self) -> float:
        return 0.0

    def choice(self, numbers: list[int]) -> int:  # type: ignore[override]
        return self.chosen if self.chosen in numbers else numbers[0]


def model_of(one: View) -> cluster_model.View:
    states = {member.number: str(member.state) for member in one.members}
    healed = [member.number for member in one.members if member.healed]
    return cluster_model.View(one.epoch, states, healed, one.copies, one.read_copies)


def world_of(one: View, answering: set[int], with_etcd: set[int]) -> World:
    """Those that answer reach each other; the others are cut off.  Nothing is missing anywhere."""
    world = World(0, 2)
    world.accept = one.alone == "accept"
    world.view = model_of(one)
    world.nodes = {number: Node(number, world.view, NOW) for number in world.view.states}
    world.cut = {
        frozenset((a, b))
        for a in world.nodes
        for b in world.nodes
        if a not in answering or b not in answering
    }
    world.etcd_cut = set(world.nodes) - with_etcd
    world.random = Dice()
    world.now, world.depth = NOW, 1
    return world


def outcome_of(one: View) -> Outcome:
    model = model_of(one)
    return model.states, model.healed, model.write, model.read


def changes(one: View, answering: set[int], with_etcd: set[int]) -> Iterator[Outcome]:
    """What the model may make of this view, by its rules Enter, Heal, Drain and Set copies."""

    def tried(act: Callable[[World], None], etcd: set[int], chosen: int = 0) -> Iterator[Outcome]:
        world = world_of(one, answering, etcd)
        world.random.chosen = chosen  # type: ignore[attr-defined]
        old = world.view
        act(world)
        if world.view is not old:
            yield world.view.states, world.view.healed, world.view.write, world.view.read

    for number in one.entering:  # each decides for itself there
        yield from tried(World.enter, with_etcd & {number})
    for number in one.those(Membership.ABSENT):
        yield from tried(World.come_back, with_etcd & answering & {number})
    active = with_etcd & answering & set(one.active)
    yield from tried(World.heal, active)
    if one.those(Membership.DRAINING):  # otherwise the model begins to drain, as an operator does
        yield from tried(World.drain, active)
    if answering.issuperset(one.active) and (one.copies <= 2 or one.copies != one.read_copies):
        # The code lowers no copies, and raises them when all active members answer.
        yield from tried(World.set_copies, active, 2)


@pytest.mark.slow
def test_a_view_changes_as_in_the_model() -> None:
    random = Random(f"{SEED} changes")
    made: dict[str, int] = {}
    for _ in range(CASES):
        one = random_view(random, most=5)
        if one.copies < one.read_copies:
            continue  # lowering `copies`: no command makes that yet
        numbers = [
            member.number for member in one.members if member.state is not Membership.REMOVED
        ]
        answering = {number for number in numbers if random.random() < 0.9}
        with_etcd = {number for number in answering if random.random() < 0.8}
        if not set(one.keeping) & with_etcd:
            continue  # in the model no draining member decides
        states = {
            number: MemberState(one.epoch, {(1, 1): 5}, number in with_etcd) for number in answering
        }
        following = next_view(one, states)
        allowed = list(changes(one, answering, with_etcd))
        if following is None:
            assert not allowed, (one, states)
            continue
        if following.alone != one.alone:
            made["alone"] = made.get("alone", 0) + 1
            continue  # a setting of the operator's in the model
        assert outcome_of(following) in allowed, (one, following, states)
        kind = _kind(one, following)
        made[kind] = made.get(kind, 0) + 1
    assert made.keys() >= {"entering", "active", "healed", "copies", "read", "removed"}, made
    reached("cluster: changes of a view compared with the model's", sum(made.values()))


def _kind(old: View, new: View) -> str:
    if (old.copies, old.read_copies) != (new.copies, new.read_copies):
        return "copies" if old.copies != new.copies else "read"
    for before, after in zip(old.members, new.members, strict=True):
        if before.state is not after.state:
            return str(after.state)
    return "healed"


@pytest.mark.slow
def test_who_is_removed_is_the_model_s() -> None:
    random = Random(f"{SEED} removals")
    seen: set[bool] = set()
    for _ in range(CASES):
        one = random_view(random)
        numbers = [member.number for member in one.members]
        answering = {number for number in numbers if random.random() < 0.8}
        leased = {number for number in numbers if random.random() < 0.3}
        by, number = random.choice(numbers), random.choice(numbers)
        world = world_of(one, answering | {by}, {by})
        for node in world.nodes.values():
            node.word = NOW if node.number in leased else NOW - LEASE - 1
        world.remove([number])
        removed = _without(one, Removal(number, by, answering | {by}, leased))
        assert (removed is not None) == (world.view.epoch != one.epoch)
        seen.add(removed is not None)
        if removed is not None:
            assert outcome_of(removed) == (
                world.view.states, world.view.healed, world.view.write, world.view.read
            )  # fmt: skip
    assert seen == {False, True}
    reached("cluster: removals compared with the model's", CASES)


def _without(one: View, removal: Removal) -> View | None:
    try:
        return without(one, removal)
    except ClusterError:
        return None


@pytest.mark.slow
def test_who_drains_is_the_model_s() -> None:
    random = Random(f"{SEED} draining")
    seen: set[bool] = set()
    for _ in range(CASES):
        one = random_view(random)
        if not one.keeping or one.those(Membership.DRAINING) or one.copies < one.read_copies:
            continue
        by, number = random.choice(one.keeping), random.choice(one.keeping)
        everyone = {member.number for member in one.members}
        world = world_of(one, everyone, {by})
        world.random.chosen = number  # type: ignore[attr-defined]
        world.drain()
        try:
            drains = draining(one, number, by, everyone)
        except ClusterError:
            assert world.view.epoch == one.epoch
            seen.add(False)
        else:
            assert outcome_of(drains) == (
                world.view.states, world.view.healed, world.view.write, world.view.read
            )  # fmt: skip
            assert kept(drains, number, by).members == one.members
            seen.add(True)
    assert seen == {False, True}


THREE = (Membership.ACTIVE, Membership.ACTIVE, Membership.ACTIVE)
DRAINING = Membership.DRAINING


@pytest.mark.parametrize(
    ("states", "removal", "text"),
    [
        (THREE, {"number": 9}, "there is no node 9"),
        ((*THREE, Membership.REMOVED), {"number": 4}, "node 4 is removed already"),
        (THREE, {"number": 1}, "this is node 1; give the command on another node"),
        ((Membership.ABSENT, *THREE), {"number": 2}, "this node is not active"),
        (THREE, {"leased": {3}}, "node 3 has a lease in etcd"),
        (
            THREE,
            {"answering": {1}},
            "node 2 does not answer, and every active node that stays must",
        ),
        ((*THREE, Membership.ACTIVE), {"answering": {1}}, "nodes 2 and 4 do not answer"),
        (THREE[:2], {"number": 2, "leased": {1}}, "1 active node would be left for 2 copies"),
        ((*THREE, Membership.ABSENT), {}, "only nodes 3 and 4 may have some of the mail"),
    ],
)
def test_why_a_node_is_not_removed(
    states: tuple[Membership, ...], removal: dict[str, object], text: str
) -> None:
    facts = {"number": 3, "by": 1, "answering": {1, 2, 3}, "leased": {1, 2}} | removal
    one = view_of(*states)
    with pytest.raises(ClusterError, match=text):
        without(one, Removal(**facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("states", "facts", "text"),
    [
        (THREE, {"number": 9}, "there is no node 9"),
        ((*THREE, Membership.ABSENT), {"number": 4}, "node 4 is absent; only an active node"),
        ((Membership.ABSENT, *THREE), {"number": 2}, "this node is not active"),
        (THREE, {"answering": {1, 2}}, "node 3 does not answer; start it, or .* remove 3"),
        (THREE, {"answering": {1, 3}}, "node 2 does not answer, and every active node must"),
        ((*THREE, DRAINING), {"number": 4}, "node 4 drains already"),
        ((*THREE, DRAINING), {}, "node 4 drains; wait until it is removed"),
        (THREE[:2], {"number": 2}, "1 active node would be left for 2 copies; join another"),
    ],
)
def test_why_a_node_does_not_drain(
    states: tuple[Membership, ...], facts: dict[str, object], text: str
) -> None:
    facts = {"number": 3, "by": 1, "answering": {1, 2, 3, 4}} | facts
    with pytest.raises(ClusterError, match=text):
        draining(view_of(*states), **facts)  # type: ignore[arg-type]


def test_a_node_that_does_not_drain_is_not_kept() -> None:
    with pytest.raises(ClusterError, match="node 3 does not drain"):
        kept(view_of(*THREE), 3, 1)
    with pytest.raises(ClusterError, match="node 9 does not drain"):
        kept(view_of(*THREE), 9, 1)
    with pytest.raises(ClusterError, match="this node is not active"):
        kept(view_of(Membership.ABSENT, *THREE, DRAINING), 5, 1)


class Directory:
    """What a request needs of its node."""

    def __init__(self, view: View) -> None:
        self.current = view

    def view(self) -> View:
        return self.current

    def leased(self) -> set[int]:
        return set()

    async def propose(self, view: View) -> None:
        self.current = view


def test_the_request_of_a_command_to_drain_and_to_keep() -> None:
    directory = Directory(view_of(*THREE))

    def ask(**message: object) -> dict[str, object]:
        return asyncio.run(answer_drain(directory, 1, message))

    assert ask(number=3, answering=[2, 3], cancel=False) == {"epoch": directory.current.epoch}
    assert directory.current.those(DRAINING) == (3,)
    ask(number=3, answering=[], cancel=True)
    assert directory.current.keeping == (1, 2, 3)
    for wrong in ({"number": "3", "answering": []}, {"number": 3}, {}):
        with pytest.raises(ClusterError, match="names no node"):
            ask(**wrong)


def test_what_is_lost_is_the_operators_choice() -> None:
    one = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ABSENT, Membership.ABSENT)
    assert one.unhealed == (3, 4)
    lost = without(one, Removal(3, 1, {1, 2}, {1, 2}, is_lossy=True))
    assert lost.unhealed == (4,)
    assert lost.those(Membership.REMOVED) == (3,)
    last = without(lost.changed(), Removal(2, 1, {1}, {1}, is_lossy=True))
    assert last.active == (1,)
    for removal in (
        Removal(3, 1, {1}, {1}, is_lossy=True),  # node 2 stays and is silent
        Removal(3, 1, {1, 2}, {1, 3}, is_lossy=True),
    ):
        with pytest.raises(ClusterError):
            without(one, removal)


# -- `metad cluster alone` with etcd


def test_one_that_is_left_goes_on_alone() -> None:
    one = view_of(
        Membership.ACTIVE,
        Membership.ACTIVE,
        Membership.ACTIVE,
        Membership.ENTERING,
        Membership.REMOVED,
    )
    then = alone_with_etcd(one, 2)
    assert (then.active, then.alone, then.epoch) == ((2,), "accept", one.epoch + 1)
    assert then.those(Membership.ABSENT) == (1, 3, 4)
    assert set(then.unhealed) >= {1, 3}  # so it takes mail and does not list yet
    left = without(then, Removal(1, 2, {2}, {2}, is_lossy=True))
    assert len(left.unhealed) < len(then.unhealed)


def test_one_that_may_lack_mail_goes_on_alone_only_if_that_is_given_up() -> None:
    one = view_of(Membership.ABSENT, Membership.ACTIVE)
    with pytest.raises(ClusterError, match=r"node 1 is not active .* \(2\)") as found:
        alone_with_etcd(one, 1)
    assert "--lossy" in found.value.remedy
    then = alone_with_etcd(one, 1, is_lossy=True)
    assert (then.active, then.unhealed) == ((1,), ())
    assert then.those(Membership.ABSENT) == (2,)


@pytest.mark.parametrize(
    ("states", "number", "text"),
    [
        ((Membership.ACTIVE,), 1, "there is no other node"),
        ((Membership.ACTIVE, Membership.REMOVED), 1, "there is no other node"),
        ((Membership.ACTIVE, Membership.REMOVED), 2, "node 2 was removed"),
        ((Membership.ACTIVE, Membership.ACTIVE), 3, "node 3 was removed"),
    ],
)
def test_who_does_not_go_on_alone(states: tuple[Membership, ...], number: int, text: str) -> None:
    with pytest.raises(ClusterError, match=text):
        alone_with_etcd(view_of(*states), number)


def test_one_that_goes_on_alone_already() -> None:
    then = alone_with_etcd(view_of(Membership.ACTIVE, Membership.ACTIVE), 1)
    with pytest.raises(ClusterError, match="alone already"):
        alone_with_etcd(then, 1)
