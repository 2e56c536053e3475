"""What a member answers to LIST: everything, in pieces, nothing left out for the next session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from metad.cluster.listed import Listed
from metad.layers import listing as listing_module
from metad.layers import own_mailbox as own_module
from metad.layers.bench import Bench
from metad.layers.imported_ids import ImportedIds
from metad.layers.logs import LogLayer
from metad.layers.own_mailbox import OwnMailbox
from metad.store.index.rows import Batch
from metad.store.index.tombstones import Origin, Tombstones, keep_tombstones
from metad.store.log import footer, record
from metad.store.log.place import Message, Place
from tests.layers.test_conformance import TestLog as Log

BOX = 7
NOW = 1_700_000_000_000_000
COUNT, STEP = 2_000, 100


@pytest.fixture
def layer() -> Iterator[LogLayer]:
    with Bench(Log()) as bench:
        layer = bench.its_layer
        assert isinstance(layer, LogLayer)
        keep_tombstones(layer.index, Origin(1, 1))
        yield layer


def an_id(us: int) -> bytes:
    return us.to_bytes(8, "big") + bytes(8)


def enter(layer: LogLayer, times: list[int], first: int = 0) -> None:
    messages = []
    for at, us in enumerate(times, first):
        entries = footer.message_entries(an_id(us), at, 50, (record.Recipient(BOX, "", 1000),))
        messages.append(Message(an_id(us), Place(900, at, 50), entries))
    layer.index.apply(Batch(900, 1, 1 << 20, messages, []))


def delete(layer: LogLayer, times: list[int]) -> None:
    ids = b"".join(map(an_id, times))
    layer.index.apply(Batch(900, 1, 1 << 20, [], [record.Deletion(BOX, ids, 77)]))


class Turns:
    """Runs what the mailbox asks the loop for, one turn after the other."""

    def __init__(self, layer: LogLayer, meanwhile: Callable[[int], None]) -> None:
        self._calls: list[Callable[[], object]] = []
        self.answers: list[object] = []
        self.count = 0
        layer.loop = self  # type: ignore[assignment]
        OwnMailbox(layer, Tombstones(layer.index), BOX).list(self.answers.append)
        while self._calls:
            self.count += 1
            meanwhile(self.count)
            self._calls.pop()()

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._calls.append(callback)


def listed(
    layer: LogLayer, meanwhile: Callable[[int], None] = lambda turn: None
) -> tuple[Listed, int]:
    turns = Turns(layer, meanwhile)
    (answer,) = turns.answers
    assert isinstance(answer, Listed)
    return answer, turns.count


def times(packed: bytes, size: int) -> list[int]:
    return [int.from_bytes(packed[at : at + 8], "big") for at in range(0, len(packed), size)]


def test_a_unique_id_that_cannot_be_read_here_is_not_told(
    layer: LogLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another member may know it: an empty one would hide that."""
    monkeypatch.setattr(own_module, "is_imported", lambda message_id: True)
    known = {an_id(NOW): "old-1", an_id(NOW + 1): ""}
    monkeypatch.setattr(ImportedIds, "get", lambda self, number, one: known[one])
    enter(layer, [NOW, NOW + 1])
    assert listed(layer)[0].uids == {an_id(NOW): "old-1"}


@pytest.mark.slow
def test_a_long_list_is_made_in_pieces(layer: LogLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "STEP", STEP)
    monkeypatch.setattr(own_module, "STEP", STEP)
    kept = [NOW + number for number in range(COUNT)]
    dead = [NOW - number for number in range(COUNT, 0, -1)]
    enter(layer, kept)
    delete(layer, dead)
    answer, turns = listed(layer)
    assert times(answer.entries, 20) == kept
    assert times(answer.tombstones, 16) == dead
    assert turns >= 3 * COUNT // STEP


@pytest.mark.slow
@pytest.mark.parametrize("turn", [1, 2])
def test_a_copy_that_comes_meanwhile_leaves_nothing_out(
    layer: LogLayer, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """It may have any id: what was there before the question is in the answer all the same."""
    monkeypatch.setattr(listing_module, "STEP", STEP)
    before = [NOW + 10 * number for number in range(COUNT)]
    enter(layer, before)

    def meanwhile(at: int) -> None:
        if at == turn:
            late = [NOW + 10 * COUNT // 2 + number * 10 + 5 for number in range(20)]
            enter(layer, late, COUNT)

    answer, _ = listed(layer, meanwhile)
    assert set(before) <= set(times(answer.entries, 20))


@pytest.mark.slow
def test_a_message_deleted_meanwhile_is_a_tombstone(
    layer: LogLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_module, "STEP", STEP)
    enter(layer, [NOW + number for number in range(COUNT)])

    def meanwhile(at: int) -> None:
        if at == COUNT // STEP // 2:
            delete(layer, [NOW, NOW + COUNT - 1])

    answer, _ = listed(layer, meanwhile)
    gone = set(times(answer.tombstones, 16))
    assert gone == {NOW, NOW + COUNT - 1}
    assert set(times(answer.entries, 20)) | gone == {NOW + number for number in range(COUNT)}
