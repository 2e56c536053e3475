"""Views for tests: made by hand, and random ones."""

from __future__ import annotations

from random import Random

from metad.cluster.view import Member, Membership, View

CLUSTER = "c0ffee00" * 4


def make_member(
    number: int, state: Membership = Membership.ACTIVE, *, healed: bool = False, weight: int = 100
) -> Member:
    fingerprint = f"{number:064x}"
    return Member(number, f"127.0.0.{number % 250 + 1}:7525", fingerprint, state, healed, weight)


def make_view(
    *members: Member, epoch: int = 1, copies: int = 2, read: int = 0, alone: str = "refuse"
) -> View:
    return View(CLUSTER, epoch, members, copies, read or copies, alone)


def random_view(random: Random, most: int = 7) -> View:
    """Any members in any state, also those that no history leads to."""
    numbers = sorted(random.sample(range(1, 12), random.randint(1, most)))
    states = [*Membership, Membership.ACTIVE, Membership.ACTIVE, Membership.ACTIVE]
    weights = random.choice([(100,), (100, 200, 350)])
    members = [
        make_member(
            number,
            random.choice(states),
            healed=random.random() < 0.5,
            weight=random.choice(weights),
        )
        for number in numbers
    ]
    copies, read = random.choice([(1, 1), (2, 2), (2, 2), (3, 3), (2, 1), (2, 3), (3, 2)])
    alone = random.choice(["refuse", "accept"])
    return make_view(*members, epoch=random.randint(1, 99), copies=copies, read=read, alone=alone)
