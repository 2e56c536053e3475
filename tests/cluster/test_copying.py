"""Rule Write, whatever answers come in which order, and the requests that carry the copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest

from metad.cluster import copy_requests, rules
from metad.cluster.answers import Answer, Answered, EpochChanged, LinkFailed, Refused
from metad.cluster.copies import MOST_TOGETHER, pack_copy, pack_places, unpack_copies, unpack_copy
from metad.cluster.copy_requests import CopyRequests
from metad.cluster.copying import Copying
from metad.cluster.frames import PIECE, Kind
from metad.cluster.view import View
from metad.errors import ClusterError, RefusedError
from metad.store.log import record
from tests.cluster.test_mail import DONE, LOST, TWO, FakePeers
from tests.cluster.views import random_view
from tests.support.sizes import SEED, reached, scaled

CASES = scaled(3000)
Ask = tuple[int, tuple[int, ...], View, Callable[[Answer], None]]


class Write(Copying):
    """One message of node 1; `asked` are its requests without an answer."""

    def __init__(self, peers: FakePeers, mailboxes: Sequence[int]) -> None:
        super().__init__(peers, mailboxes)
        self.asked: list[Ask] = []
        self.steps: list[object] = []
        self.outcome: list[str | None] = []
        self.has: set[tuple[View, int, int]] = set()  # view, mailbox, member
        self.due: list[Callable[[], None]] = []
        self.start()

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self.steps.append(seconds)
        self.due.append(call)

    def _send(
        self, member: int, mailboxes: Sequence[int], answered: Callable[[Answer], None]
    ) -> None:
        named = tuple(sorted(mailboxes))
        self.steps.append((member, named))
        self.asked.append((member, named, self._peers.view(), answered))

    def _finish(self, reason: str | None) -> None:
        self.steps.append(reason)
        self.outcome.append(reason)

    def answer(self, which: int, answer: Answer) -> None:
        self.asked.sort(key=lambda one: one[:2])
        member, mailboxes, view, answered = self.asked.pop(which)
        if isinstance(answer, Answered):
            self.has |= {(view, mailbox, member) for mailbox in mailboxes}
        answered(answer)


def play(view: View, mailboxes: Sequence[int], random: Random, *, changes: bool) -> Write:
    """Answers in any order until the end; `changes`: the view may change, too."""
    peers = FakePeers(view)
    write = Write(peers, mailboxes)
    is_own_due = True
    while not write.outcome and (is_own_due or write.asked or write.due):
        luck = random.random()
        if changes and luck < 0.15:
            peers.adopt()
        elif is_own_due and (luck < 0.4 or not write.asked):
            is_own_due = False
            stored = random.random() < 0.8
            write.own_done(None if stored else RefusedError("full"))
        elif write.due and (luck > 0.9 or not write.asked):
            write.due.pop()()
        elif write.asked:
            answers: list[Answer] = [DONE, DONE, DONE, LOST, Refused("no space for mail")]
            if changes:
                answers.append(EpochChanged())
            write.answer(random.randrange(len(write.asked)), random.choice(answers))
    return write


def some_view(random: Random) -> View:
    """A random one in which node 1 takes mail."""
    while 1 not in (view := random_view(random)).active:
        pass
    return view


def some_mailboxes(random: Random) -> list[int]:
    return random.sample(range(1, 200), random.choice((1, 1, 2, 5)))


@pytest.mark.slow
def test_an_end_comes_once_and_250_only_if_enough_members_have_it_under_one_view() -> None:
    random = Random(f"{SEED} write")
    ends = {True: 0, False: 0}
    for _ in range(CASES):
        view, mailboxes = some_view(random), some_mailboxes(random)
        write = play(view, mailboxes, random, changes=True)
        assert len(write.outcome) == 1
        accepted = write.outcome[0] is None
        ends[accepted] += 1
        if accepted:
            now = write._peers.view()
            own = {1} if write._own else set()
            for mailbox in mailboxes:
                got = own | {one for at, box, one in write.has if (at, box) == (now, mailbox)}
                assert rules.is_durable(now, got), (now, got)
    assert min(ends.values()) > CASES // 20
    reached("cluster: messages with any answers", CASES)


@pytest.mark.slow
def test_counting_confirmations_comes_to_the_same_as_looking_at_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = Random(f"{SEED} lines")
    counted = 0
    for case in range(CASES):
        view, mailboxes = some_view(random), some_mailboxes(random)
        seed = f"{SEED} {case}"
        one = play(view, mailboxes, Random(seed), changes=False)
        counted += rules.first_peers(view, 1, mailboxes) is not None
        with monkeypatch.context() as patch:
            patch.setattr(rules, "first_peers", lambda *_: None)
            other = play(view, mailboxes, Random(seed), changes=False)
        assert one.steps == other.steps
    assert counted > CASES // 3


def test_late_answers_of_an_earlier_try_count_for_nothing_even_under_one_view() -> None:
    """Three copies: one peer that answers twice is not two."""
    view = View("0" * 32, 5, TWO.members, 2, 2, "refuse")
    peers = FakePeers(view)
    write = Write(peers, (7,))
    ((_, _, _, first),) = write.asked
    first(EpochChanged())  # asked again, under the same view
    assert len(write.asked) == 2
    first(DONE)
    write.own_done(None)
    assert not write.outcome
    write.asked[1][3](DONE)
    assert write.outcome == [None]


# --- Requests -------------------------------------------------------------------------------------


class Timers:
    """Calls what is due when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds == copy_requests.WAIT_S
        self.due.append(call)

    def pass_time(self) -> None:
        due, self.due = self.due, []
        for call in due:
            call()


def copy_of(number: int, size: int = 10) -> list[bytes]:
    envelope = record.Envelope(1, "192.0.2.1", "h", "s@x", (record.Recipient(7, "u@x", size),))
    packed = record.pack_envelope(envelope)
    return pack_copy(number.to_bytes(16, "big"), "", packed, (b"t" * size,))


class Sender:
    def __init__(self) -> None:
        self.peers = FakePeers(TWO)
        self.timers = Timers()
        self.lines: list[str] = []
        self.requests = CopyRequests(self.peers, self.timers.later, self.lines.append)
        self.answers: dict[int, list[Answer]] = {}

    def add(self, number: int, member: int = 2, size: int = 10) -> None:
        got = self.answers[number] = []
        self.requests.add(member, copy_of(number, size), got.append)

    def numbers(self) -> list[tuple[int, list[int]]]:
        """Member and messages of each request that has no answer."""
        found = []
        for member, kind, body, _ in self.peers.asked:
            assert kind == Kind.COPY
            ids = [one.id for one in unpack_copies(body) if not isinstance(one, ClusterError)]
            found.append((member, [int.from_bytes(one, "big") for one in ids]))
        return found


def test_copies_of_a_moment_go_in_one_request() -> None:
    sender = Sender()
    for number in range(5):
        sender.add(number)
    sender.add(5, member=3)
    assert sender.numbers() == []
    assert sender.requests.flush()
    assert sender.numbers() == [(2, [0, 1, 2, 3, 4]), (3, [5])]
    assert not sender.requests.flush()
    sender.peers.answer(2, DONE)
    sender.peers.answer(3, LOST)
    assert sender.answers == {**{number: [DONE] for number in range(5)}, 5: [LOST]}


def test_a_copy_waits_no_longer_than_its_time() -> None:
    sender = Sender()
    sender.add(1)
    sender.requests.flush()
    sender.add(2)
    assert len(sender.timers.due) == 2
    first, second = sender.timers.due
    first()  # it was for the first round
    assert sender.numbers() == [(2, [1])]
    second()
    assert sender.numbers() == [(2, [1]), (2, [2])]


def test_a_member_may_store_some_of_a_request() -> None:
    sender = Sender()
    for number in range(4):
        sender.add(number)
    sender.requests.flush()
    sender.peers.answer(2, Answered(pack_places([1, 3])))
    kinds = [type(sender.answers[number][0]) for number in range(4)]
    assert kinds == [Answered, Refused, Answered, Refused]


def test_an_answer_that_raises_costs_no_other_message_its_own() -> None:
    def fail(_answer: Answer) -> None:
        raise ValueError("a bug")

    sender = Sender()
    sender.requests.add(2, copy_of(1), fail)
    sender.add(2)
    sender.requests.flush()
    sender.peers.answer(2, DONE)
    assert sender.answers == {2: [DONE]}
    assert sender.lines == ["panic: after the answer to a copy: ValueError('a bug')"]


@pytest.mark.parametrize("body", [b"\x00", b"\x00\x04", b"\xff\xff\x00\x00"])
def test_an_answer_that_makes_no_sense_confirms_nothing(body: bytes) -> None:
    sender = Sender()
    for number in range(4):
        sender.add(number)
    sender.requests.flush()
    sender.peers.answer(2, Answered(body))
    assert all(isinstance(got[0], Refused) for got in sender.answers.values())


def test_a_request_has_so_many_messages_and_bytes_at_most() -> None:
    sender = Sender()
    for number in range(MOST_TOGETHER + 1):
        sender.add(number)
    assert sender.numbers() == [(2, list(range(MOST_TOGETHER)))]
    sender.add(1000, size=PIECE - 100)
    assert sender.numbers()[1:] == [(2, [MOST_TOGETHER])]
    sender.add(1001, size=PIECE)
    assert sender.numbers()[2:] == [(2, [1000])]
    sender.timers.pass_time()
    assert sender.numbers()[3:] == [(2, [1001])]
    assert all(len(body) <= PIECE for _, _, body, _ in sender.peers.asked[:3])


def test_a_message_that_comes_back_at_once_goes_to_another_member_in_time() -> None:
    """The link is down: `answered` is called within `flush`, and sends the message elsewhere."""
    sender = Sender()
    got: list[Answer] = []
    copy = copy_of(1)

    def answered(answer: Answer) -> None:
        got.append(answer)
        sender.requests.add(3, copy, got.append)

    real = sender.peers.request

    def request(member: int, kind: int, parts: Sequence[bytes], told: object, s: float) -> None:
        if member == 2:
            told(LinkFailed("no link"))  # type: ignore[operator]
        else:
            real(member, kind, parts, told, s)  # type: ignore[arg-type]

    sender.peers.request = request  # type: ignore[assignment, method-assign]
    sender.requests.add(2, copy, answered)
    sender.timers.pass_time()
    assert got == [LinkFailed("no link")]
    sender.timers.pass_time()
    assert sender.numbers() == [(3, [1])]


# --- The body of COPY -----------------------------------------------------------------------------


def test_a_message_that_does_not_verify_costs_no_other() -> None:
    parts = [b"".join(copy_of(number)) for number in range(3)]
    parts[1] = parts[1][:-1] + b"?"
    one, bad, other = unpack_copies(b"".join(parts))
    assert isinstance(bad, ClusterError)
    assert not isinstance(one, ClusterError)
    assert not isinstance(other, ClusterError)
    assert (one.id[-1], other.id[-1]) == (0, 2)
    assert one.body == b"t" * 10
    assert one.recipients[0].mailbox == 7


def test_every_flipped_bit_costs_a_message_or_the_request_and_gives_no_other_message() -> None:
    data = b"".join(copy_of(1) + copy_of(2))
    good = unpack_copies(data)
    for at in range(len(data) * 8):
        broken = bytearray(data)
        broken[at // 8] ^= 1 << at % 8
        try:
            found = unpack_copies(bytes(broken))
        except ClusterError:
            continue
        assert any(isinstance(one, ClusterError) for one in found)
        assert all(isinstance(one, ClusterError) or one in good for one in found)


def test_bodies_that_are_no_copies() -> None:
    data = b"".join(copy_of(1))
    for bad in (b"", data[:20], data[:-1], data + b"x", bytes(4) + data, b"\xff" * 60):
        with pytest.raises(ClusterError):
            unpack_copies(bad)
    with pytest.raises(ClusterError, match="too many"):
        unpack_copies(data * (MOST_TOGETHER + 1))
    assert len(unpack_copies(data * MOST_TOGETHER)) == MOST_TOGETHER
    with pytest.raises(ClusterError, match="2 copies"):
        unpack_copy(data * 2)


def test_a_copy_with_an_envelope_of_another_release_is_not_taken() -> None:
    packed = b"\x92\x01\x02"
    bad, good = pack_copy(bytes(16), "", packed, (b"x",)), copy_of(2)
    first, second = unpack_copies(b"".join(bad + good))
    assert isinstance(first, ClusterError)
    assert not isinstance(second, ClusterError)
