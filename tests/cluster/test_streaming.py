"""A message that streams to a member while it arrives; the test is the member."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from xxhash import xxh3_128_digest

from metad.budget import Budget
from metad.cluster.answers import Answer, Answered, EpochChanged, Refused
from metad.cluster.asking import FULL
from metad.cluster.frames import Kind
from metad.cluster.streaming import (
    PATIENCE_S,
    REWINDS,
    WINDOW,
    Stream,
    Streaming,
    pack_size,
    unpack_drop,
    unpack_part,
    unpack_store,
)
from metad.errors import ClusterError
from tests.cluster.test_mail import DONE, LOST, THREE, FakePeers

PIECE = 10


class Source:
    def __init__(self) -> None:
        self.data = b""
        self.fails = False

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, at: int, most: int) -> bytes:
        if self.fails:
            raise OSError(5, "broken")
        return self.data[at : at + most]


class World:
    """A stream to node 2.  `has`: what node 2 has got."""

    def __init__(self, memory: int = 1000) -> None:
        self.peers = FakePeers(THREE)
        self.budget = Budget(memory)
        self.later: list[Callable[[], None]] = []
        self.source = Source()
        self.failed: list[Answer] = []
        self.answers: list[Answer] = []
        shared = Streaming(
            self.peers, self.budget, lambda seconds, call: self.later.append(call), PIECE
        )
        self.stream = Stream(shared, 2, self.source, self.failed.append)
        self.has = b""

    def arrive(self, octets: int) -> None:
        start = len(self.source.data)
        self.source.data += bytes((start + at) % 251 for at in range(octets))
        self.stream.more()

    def end(self) -> None:
        self.stream.store((b"copy",), self.answers.append)

    @property
    def on_their_way(self) -> list[tuple[int, bytes]]:
        return [unpack_part(one[2])[1:] for one in self.peers.asked if one[1] == Kind.PART]

    def take(self, answer: Answer | None = None) -> None:
        """The member gets the oldest part and answers; or something else becomes of it."""
        if answer is None:
            at, data = self.on_their_way[0]
            if at == len(self.has):
                self.has += data
            answer = Answered(pack_size(len(self.has)))
        self.peers.answer(2, answer, Kind.PART)

    def take_all(self) -> None:
        while self.on_their_way:
            self.take()

    def tick(self) -> None:
        due, self.later = self.later, []
        for call in due:
            call()

    @property
    def store(self) -> tuple[int, bytes, bytes]:
        (body,) = [one[2] for one in self.peers.asked if one[1] == Kind.STORE]
        return unpack_store(body)[1:]

    @property
    def dropped(self) -> bool:
        return any(one[1] == Kind.DROP for one in self.peers.asked)

    def is_whole(self) -> bool:
        data = self.source.data
        return self.has == data and self.store == (len(data), xxh3_128_digest(data), b"copy")


def test_whole_pieces_go_while_it_arrives_and_the_rest_at_its_end() -> None:
    world = World()
    world.arrive(9)
    assert not world.on_their_way
    world.arrive(14)
    assert [at for at, _ in world.on_their_way] == [0, 10]
    world.take_all()
    assert not world.answers
    world.end()
    world.take_all()
    assert world.is_whole()
    world.peers.answer(2, DONE, Kind.STORE)
    assert world.answers == [DONE]
    assert not world.failed
    assert world.budget.used == 0


def test_few_parts_are_on_their_way_and_they_count() -> None:
    world = World()
    world.arrive(100)
    assert len(world.on_their_way) == WINDOW
    assert world.budget.used == WINDOW * PIECE
    world.take()
    assert len(world.on_their_way) == WINDOW
    world.take_all()
    assert world.budget.used == 0


@pytest.mark.parametrize("answer", [EpochChanged(), FULL])
def test_a_part_that_was_not_carried_out_goes_again(answer: Answer) -> None:
    world = World()
    world.arrive(35)
    world.take()
    world.take(answer)
    world.take()  # a gap for the member: it tells what it has
    world.end()
    world.tick()
    world.take_all()
    assert world.is_whole()


def test_a_part_that_came_although_the_epoch_changed_does_not_come_twice() -> None:
    world = World()
    world.arrive(30)
    world.has += world.on_their_way[0][1]
    world.take(EpochChanged())
    world.take()
    world.take()
    world.end()
    world.take_all()
    assert world.is_whole()


def test_a_stream_that_breaks_again_and_again_ends() -> None:
    world = World()
    world.arrive(10)
    for _ in range(REWINDS):
        world.take(EpochChanged())
        assert not world.failed
    world.take(EpochChanged())
    assert len(world.failed) == 1
    assert world.dropped
    assert world.budget.used == 0


@pytest.mark.parametrize("answer", [LOST, Refused("no space"), Answered(b"?"), DONE])
@pytest.mark.parametrize("ended", [False, True])
def test_a_member_that_fails_ends_it_once(answer: Answer, ended: bool) -> None:
    world = World()
    world.arrive(35)
    if ended:
        world.end()
    world.take(answer)
    world.take_all()
    outcome = world.answers if ended else world.failed
    assert len(outcome) == 1
    assert not isinstance(outcome[0], Answered)
    assert not (world.failed if ended else world.answers)
    assert not world.stream.is_open
    assert world.dropped
    assert world.budget.used == 0


def test_a_member_that_has_lost_what_it_had_ends_it() -> None:
    """The link is another one, and leads to another process."""
    world = World()
    world.arrive(20)
    world.take_all()
    world.has = b""
    world.arrive(10)
    world.take()
    assert len(world.failed) == 1


def test_a_source_that_cannot_be_read_ends_it() -> None:
    world = World()
    world.source.fails = True
    world.arrive(10)
    assert "broken" in str(world.failed)
    assert world.budget.used == 0


def test_without_memory_it_waits_for_more_of_the_message() -> None:
    world = World(memory=25)
    assert world.budget.take(20)
    world.arrive(20)
    assert not world.on_their_way
    assert not world.later
    world.budget.give_back(20)
    world.arrive(1)
    assert len(world.on_their_way) == 1  # the second would use the half of small messages
    world.take_all()
    assert world.has == world.source.data[:20]


def test_after_its_end_it_waits_so_long_and_no_longer() -> None:
    world = World(memory=25)
    assert world.budget.take(25)
    world.arrive(20)
    world.end()
    for _ in range(3):
        world.tick()
        world.peers.time += PATIENCE_S / 4
    world.budget.give_back(25)
    world.tick()
    world.take_all()
    assert world.is_whole()
    world = World(memory=25)
    assert world.budget.take(25)
    world.arrive(20)
    world.end()
    world.peers.time += PATIENCE_S + 0.1
    world.tick()
    assert "no room" in str(world.answers)
    assert not world.later


def test_an_end_for_which_the_link_had_no_room_goes_again() -> None:
    world = World()
    world.arrive(10)
    world.end()
    world.take_all()
    world.peers.answer(2, FULL, Kind.STORE)
    assert not world.answers
    world.tick()
    assert world.is_whole()


def test_a_link_that_refuses_at_once_is_not_asked_for_ever() -> None:
    world = World()

    def request(member: int, kind: Any, parts: Any, answered: Any, patience: float) -> None:
        asked.append(kind)
        answered(FULL)

    asked: list[int] = []
    world.peers.request = request  # type: ignore[method-assign, assignment]
    world.arrive(100)
    assert asked == [Kind.PART]
    world.end()
    assert len(asked) == 2
    world.tick()
    assert len(asked) == 3


def test_an_end_under_another_epoch_is_for_the_caller() -> None:
    world = World()
    world.arrive(10)
    world.end()
    world.take_all()
    world.peers.answer(2, EpochChanged(), Kind.STORE)
    assert world.answers == [EpochChanged()]
    assert world.dropped


def test_what_is_not_wanted_is_told() -> None:
    world = World()
    world.arrive(30)
    world.stream.drop()
    world.stream.drop()
    world.take_all()
    (drop,) = [one[2] for one in world.peers.asked if one[1] == Kind.DROP]
    assert unpack_drop(drop) == unpack_part(b"\0\0\0\1" + bytes(9))[0]
    for _ in range(3):
        world.peers.answer(2, EpochChanged(), Kind.DROP)
    assert not world.dropped
    assert not world.failed
    assert world.budget.used == 0
    fresh = World()
    fresh.stream.drop()
    assert not fresh.peers.asked


@pytest.mark.parametrize("body", [b"", bytes(12), bytes(3)])
@pytest.mark.parametrize("unpack", [unpack_part, unpack_store, unpack_drop])
def test_what_is_none_of_it_is_refused(unpack: Callable[[bytes], object], body: bytes) -> None:
    with pytest.raises(ClusterError):
        unpack(body)
