"""Reading: verified before the first octet, from whichever place is good."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metad.errors import DamagedError
from metad.store import reader
from metad.store.log import files as log_files
from metad.store.log import header
from metad.store.log.place import Place
from metad.store.log_table import LogState
from metad.store.reader import Reader, Stored
from metad.system.osio import Osio
from tests.support.collector_kit import collect, fill_log, make_collector
from tests.support.oracle import Ledger
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import Sent, StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path, KitOsio()) as made:
        made.start()
        yield made


def spoil(kit: StoreKit, sent: Sent, at: int) -> None:
    place = kit.index.places(sent.id)[0]
    fd = os.open(header.log_path(kit.store.logs, place.log), os.O_RDWR)
    old = os.pread(fd, 1, place.offset + at)
    os.pwrite(fd, bytes([old[0] ^ 1]), place.offset + at)
    os.close(fd)


def streamed(kit: StoreKit, message_id: bytes) -> bytes:
    first, *pieces = kit.reader.stream(message_id)
    assert isinstance(first, Stored)
    assert not first.body
    return b"".join(pieces)  # type: ignore[arg-type]


def test_a_message_is_read_as_it_was_stored(kit: StoreKit) -> None:
    sent = kit.put([1], b"0123456789" * 50)
    assert bytes(kit.stored(sent.id).body) == b"0123456789" * 50
    assert kit.reader.size(sent.id) == kit.index.places(sent.id)[0].size
    assert streamed(kit, sent.id) == b"0123456789" * 50


def test_a_message_is_streamed_in_bounded_pieces(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PIECE_GIVEN", 100)
    sent = kit.put([1], bytes(range(256)) * 3)
    pieces = list(kit.reader.stream(sent.id))[1:]
    assert max(map(len, pieces)) == 100
    assert b"".join(pieces) == bytes(range(256)) * 3  # type: ignore[arg-type]


@pytest.mark.slow
def test_no_spoiled_byte_of_a_record_is_ever_handed_out(kit: StoreKit) -> None:
    sent = kit.put([1], b"x" * 40)
    size = kit.index.places(sent.id)[0].size
    for at in range(size):
        spoil(kit, sent, at)
        with pytest.raises(DamagedError):
            kit.stored(sent.id)
        with pytest.raises(DamagedError):
            streamed(kit, sent.id)
        spoil(kit, sent, at)
    assert bytes(kit.stored(sent.id).body) == b"x" * 40


def test_damage_of_one_message_leaves_the_others(kit: StoreKit) -> None:
    sent = [kit.put([1], b"%d" % n * 300) for n in range(5)]
    spoil(kit, sent[2], 100)
    for n in (0, 1, 3, 4):
        assert bytes(kit.stored(sent[n].id).body) == b"%d" % n * 300


def test_an_unknown_message_is_damage_not_silence(kit: StoreKit) -> None:
    with pytest.raises(DamagedError):
        kit.stored(bytes(16))
    with pytest.raises(DamagedError):
        kit.reader.size(bytes(16))
    with pytest.raises(DamagedError):
        list(kit.reader.stream(bytes(16)))


def test_a_wrong_place_hands_out_nothing(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = kit.put([1], b"a" * 50), kit.put([1], b"b" * 50)
    other = kit.index.places(two.id)
    monkeypatch.setattr(kit.index, "places", lambda _id: other)
    with pytest.raises(DamagedError):
        kit.stored(one.id)
    with pytest.raises(DamagedError):
        streamed(kit, one.id)


def test_a_deletion_record_is_never_a_message(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = kit.put([1], b"a")
    start = kit.writers[0].committer.writer.end
    gone = kit.delete(1, [one.id])
    places = [kit.index.places(one.id)[0]._replace(offset=start, size=72 + 1 + 16)]
    monkeypatch.setattr(kit.index, "places", lambda _id: places)
    with pytest.raises(DamagedError):
        kit.stored(gone.id)
    with pytest.raises(DamagedError):
        streamed(kit, gone.id)


def test_the_second_place_is_read_when_the_first_is_bad(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = kit.put([1], b"a" * 50)
    good = kit.index.places(sent.id)[0]
    both = [good._replace(offset=good.offset + 512), good]
    monkeypatch.setattr(kit.index, "places", lambda _id: both)
    assert bytes(kit.stored(sent.id).body) == b"a" * 50
    assert streamed(kit, sent.id) == b"a" * 50


def test_a_log_that_is_gone_is_damage(kit: StoreKit) -> None:
    sent = kit.put([1], b"a")
    kit.reader.close()
    Path(header.log_path(kit.store.logs, kit.index.places(sent.id)[0].log)).unlink()
    with pytest.raises(DamagedError):
        kit.stored(sent.id)
    with pytest.raises(DamagedError):
        list(kit.reader.stream(sent.id))


def test_a_read_error_is_damage_and_passes(kit: StoreKit) -> None:
    sent = kit.put([1], b"a")
    kit.osio.faults = Faults("pread", 1, persistent=True)
    with pytest.raises(DamagedError):
        kit.stored(sent.id)
    kit.osio.faults = Faults("pread", 1)
    assert bytes(kit.stored(sent.id).body) == b"a"


def test_what_is_not_in_memory_is_left_to_a_thread(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = kit.put([1], b"a")

    def would_wait(*_args: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(kit.osio, "preadv", would_wait)
    assert kit.reader.read_now(sent.id) is None


def test_a_reused_log_is_opened_again(kit: StoreKit) -> None:
    """The reader had the log open in its earlier life."""
    old = kit.put([1], b"old")
    kept = Reader(Osio(), kit.store, kit.index)
    assert kept.read(old.id).body == b"old"
    number = kit.index.places(old.id)[0].log
    kit.crash()
    fd = os.open(header.log_path(kit.store.logs, number), os.O_RDWR)
    log = header.read(kit.osio, fd, kit.store.secret)
    assert log is not None
    log_files.mark_free(kit.osio, fd, log)
    os.close(fd)
    kit.drop_index()
    kit.ledger = Ledger()
    kit.start()
    sent = kit.put([1], b"new")
    while kit.index.places(sent.id)[0].log != number:
        sent = kit.put([1], b"x" * 3000)
    kept._index = kit.index
    found = kept.read(sent.id)
    assert found is not None
    assert bytes(found.body) in (b"new", b"x" * 3000)
    kept.close()


def test_a_message_moved_to_a_reused_log_is_read(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place is looked up twice: the first one is gone, and the second one's log was opened in
    its earlier life."""
    sent = kit.put([1], b"a" * 50)
    good = kit.index.places(sent.id)[0]
    answers = iter([[good._replace(log=99)], [good]])
    kit.reader._open[good.log] = kit.reader._log(good.log)._replace(life=1, seed=1)
    monkeypatch.setattr(kit.index, "places", lambda _id: next(answers))
    assert bytes(kit.stored(sent.id).body) == b"a" * 50


@pytest.mark.parametrize("read", [lambda kit, sent: bytes(kit.stored(sent).body), streamed])
def test_a_message_that_is_moved_after_each_look_is_no_damage(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch, read: Callable[[StoreKit, bytes], bytes]
) -> None:
    """Found by the simulator, seed 49023: a worker so slow that the collector moved the message
    twice between a look and the read took it for damaged."""
    sent = fill_log(kit)[0]
    text = read(kit, sent)
    looks, real = 0, kit.index.places

    def places(message_id: bytes) -> list[Place]:
        nonlocal looks
        looks += 1
        found = real(message_id)
        if looks <= 4:
            collector = make_collector(kit)
            collect(collector, [found[0].log])
            collector.close()
            kit.reader.close()  # what it has open might be read as before
        return found

    monkeypatch.setattr(kit.index, "places", places)
    assert read(kit, sent) == text
    assert looks == 5


def test_few_logs_stay_open(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_OPEN", 2)
    for _ in range(60):
        kit.put([1], b"x" * 2500)
    for each, _ in kit.listing(1):
        kit.stored(each)
    assert len([s for s in kit.table.rows() if s.state == LogState.SEALED]) > 2
    assert len(kit.reader._open) <= 2


def test_a_log_that_is_gone_is_closed(kit: StoreKit) -> None:
    """Its blocks are free only then, and a full disk needs them."""
    sent = [kit.put([1], b"x" * 2500).id for _ in range(20)]
    for each in sent:
        kit.stored(each)
    gone = kit.index.places(sent[0])[0].log
    left = set(kit.reader._open) - {gone}
    assert left
    kit.reader.close_unlinked()
    assert set(kit.reader._open) == left | {gone}
    os.unlink(header.log_path(kit.store.logs, gone))
    fd = kit.reader._open[gone].fd
    kit.reader.close_unlinked()
    assert set(kit.reader._open) == left
    assert fd not in kit.osio.names


def test_a_stream_keeps_the_next_life_away(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BUFFER", 100)
    sent = kit.put([1], b"x" * 1000)
    number = kit.index.places(sent.id)[0].log
    log = kit.writers[0].committer.writer.log
    stream = kit.reader.stream(sent.id)
    next(stream)
    next(stream)
    other = os.open(header.log_path(kit.store.logs, number), os.O_RDWR)
    assert not log_files.try_reader_lock(other, exclusive=True)
    stream.close()  # type: ignore[attr-defined]
    assert log_files.try_reader_lock(other, exclusive=True)
    os.close(other)
    assert log.number == number


def test_a_stream_does_not_read_a_log_that_begins_its_next_life(kit: StoreKit) -> None:
    """The process that reuses the file holds the lock: data read now may be overwritten at any
    moment."""
    sent = kit.put([1], b"x" * 1000)
    other = os.open(header.log_path(kit.store.logs, kit.index.places(sent.id)[0].log), os.O_RDWR)
    assert log_files.try_reader_lock(other, exclusive=True)
    with pytest.raises(DamagedError):
        list(kit.reader.stream(sent.id))
    os.close(other)
    assert streamed(kit, sent.id) == b"x" * 1000


def test_reading_leaves_no_descriptor_open(kit: StoreKit) -> None:
    sent = [kit.put([1], b"x" * 100) for _ in range(3)]
    kit.stored(sent[0].id)
    streamed(kit, sent[1].id)
    before = dict(kit.osio.names)
    streamed(kit, sent[2].id)
    assert kit.osio.names == before
    kit.reader.close()
    assert len(kit.osio.names) < len(before)


def test_a_hint_spares_the_index(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [kit.put([1], b"%d" % number * 50) for number in range(3)]
    places = kit.reader.look_ahead([each.id for each in sent])
    monkeypatch.setattr(kit.index, "places", None)
    for number, (each, place) in enumerate(zip(sent, places, strict=True)):
        found = kit.reader.read_now(each.id, place)
        assert found is not None
        assert bytes(found.body) == b"%d" % number * 50


def test_a_wrong_hint_costs_a_look_up_and_nothing_else(kit: StoreKit) -> None:
    one, two = kit.put([1], b"one" * 50), kit.put([1], b"two" * 50)
    place, other = kit.reader.look_ahead([one.id, two.id])
    assert place is not None
    hints = [
        other,
        place._replace(offset=place.offset + 8),
        place._replace(log=99),
        place._replace(size=9),
    ]
    for hint in hints:
        found = kit.reader.read_now(one.id, hint)
        assert found is not None
        assert bytes(found.body) == b"one" * 50


def test_there_is_no_hint_for_what_is_nowhere(kit: StoreKit) -> None:
    sent = kit.put([1], b"x")
    assert [place is None for place in kit.reader.look_ahead([bytes(16), sent.id])] == [True, False]
