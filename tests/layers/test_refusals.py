"""Refused mail whose tombstone cannot be stored: it is stored again until it stands."""

from __future__ import annotations

import pytest

from metad.cluster.answers import EpochChanged
from metad.cluster.peers import Peers
from metad.errors import NoSpaceError, RefusedError
from metad.layers import refusals
from metad.layers.base import Done, Envelope, Recipient
from metad.layers.refusals import Refusals
from tests.cluster.test_mail import DONE, TWO, FakePeers, an_id


class Store:
    """Node 1; deletion records wait in `entombing`."""

    def __init__(self) -> None:
        self.others = FakePeers(TWO)
        self.peers: Peers = self.others
        self.entombing: list[tuple[int, bytes, Done]] = []
        self.lines: list[str] = []
        self.answers: list[RefusedError | None] = []
        self.refusals = Refusals(self, self.lines.append)

    def entomb(self, mailbox: int, ids: bytes, done: Done) -> None:
        self.entombing.append((mailbox, ids, done))

    def refuse(self, number: int, *mailboxes: int) -> None:
        recipients = tuple(Recipient(one, "a@b.example") for one in mailboxes)
        envelope = Envelope(an_id(number), "", "", "", recipients, b"", 0, 0)
        self.refusals.refuse(envelope, "too few", self.answers.append)

    def stored(self, error: RefusedError | None = None) -> None:
        found, self.entombing = self.entombing, []
        for _, _, done in found:
            done(error)

    def tick(self) -> list[tuple[int, bytes]]:
        """A second passes: what is stored again."""
        self.refusals.tick()
        return [one[:2] for one in self.entombing]


FULL = NoSpaceError("the disk fails")


def test_the_tombstone_stands_before_the_answer_and_the_others_are_told() -> None:
    store = Store()
    store.refuse(1, 5)
    assert [one[2] for one in store.others.asked] == [b"\0\0\0\5" + an_id(1)]
    assert not store.answers
    store.stored()
    assert [str(one) for one in store.answers] == ["too few"]
    assert store.tick() == []
    store.refusals.stop()
    assert not store.lines


def test_the_others_are_told_again_if_the_view_changes_meanwhile() -> None:
    """Regression: of two mailboxes one node heard, and the message stayed in the other one when the
    disk of the node that had refused it was lost."""
    store = Store()
    store.refuse(1, 5)
    told = store.others.asked[0][:3]
    for _ in range(refusals.TRIES - 1):
        store.others.answer(2, EpochChanged())
        assert [one[:3] for one in store.others.asked] == [told]
    store.others.answer(2, EpochChanged())
    assert store.others.asked == []  # it pulls the tombstone


def test_a_tombstone_that_cannot_be_stored_is_stored_again_until_it_stands() -> None:
    store = Store()
    store.refuse(1, 5, 6)
    store.stored(FULL)
    assert [str(one) for one in store.answers] == ["too few"]
    assert len(store.lines) == 1
    assert "may show until its tombstone can be stored: the disk fails" in store.lines[0]
    for _ in range(3):
        assert sorted(store.tick()) == [(5, an_id(1)), (6, an_id(1))]
        assert len(store.tick()) == 2  # not twice at a time
        store.stored(FULL)
    store.refuse(2, 5)
    store.stored(FULL)
    assert sorted(store.tick()) == [(5, an_id(1) + an_id(2)), (6, an_id(1))]
    store.stored()
    assert store.tick() == []
    assert len(store.answers) == 2
    assert store.lines[1:] == ["tombstones of 3 refused messages are stored now"]


def test_a_worker_that_ends_tells_what_is_lost() -> None:
    store = Store()
    store.refuse(1, 5)
    store.stored(FULL)
    store.refusals.stop()
    assert "tombstones of 1 refused messages could not be stored" in store.lines[-1]


def test_those_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MOST_WAITING", 2)
    store = Store()
    for number in (1, 2, 3):
        store.refuse(number, 5)
    store.stored(FULL)
    assert an_id(1).hex() in store.lines[-1]
    assert store.tick() == [(5, an_id(2) + an_id(3))]
    assert store.others.asked
    store.others.answer(2, DONE)
