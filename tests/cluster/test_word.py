"""etcd's word in shared memory, and what this node has seen of the directory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metad.cluster import seen
from metad.cluster.directory_keys import Found, Identity, decode_identity
from metad.cluster.etcd_json import Row
from metad.cluster.seen import Seen, SeenFile, look
from metad.cluster.view import View
from metad.cluster.word import Word
from metad.errors import ClusterError
from metad.system.osio import Osio
from metad.system.shared_memory import SharedArea
from tests.cluster.views import make_member, make_view

NOW = 1_000_000_000_000


class Cells:
    """Two cells that note what is stored, in order."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, int]] = []
        self.at, self.epoch = Cell(self, "at"), Cell(self, "epoch")


class Cell:
    def __init__(self, cells: Cells, name: str) -> None:
        self.cells, self.name, self.value = cells, name, 0

    def __getitem__(self, _: int) -> int:
        return self.value

    def __setitem__(self, _: int, value: int) -> None:
        self.value = value
        self.cells.stored.append((self.name, value))


@pytest.fixture
def word() -> Word:
    cells = memoryview(bytearray(16)).cast("Q")
    return Word(cells[0:1], cells[1:2])


def test_word_is_of_one_epoch_for_ten_seconds(word: Word):
    assert not word.is_good(0, NOW)
    assert word.age_s(NOW) is None
    word.keep(NOW, 5)
    assert word.is_good(5, NOW + 10_000_000_000)
    assert not word.is_good(5, NOW + 10_000_000_001)
    assert not word.is_good(4, NOW)
    assert not word.is_good(6, NOW)
    assert word.age_s(NOW + 1_500_000_000) == 1.5
    word.keep(NOW + 1, 6)
    assert word.is_good(6, NOW + 1)
    word.clear()
    assert not word.is_good(6, NOW + 1)


def test_a_time_never_stands_beside_an_epoch_that_was_read_before():
    cells = Cells()
    word = Word(cells.at, cells.epoch)  # type: ignore[arg-type]
    word.keep(1, 5)
    word.keep(2, 5)
    word.keep(3, 6)
    assert cells.stored == [
        ("at", 0), ("epoch", 5), ("at", 1), ("at", 2), ("at", 0), ("epoch", 6), ("at", 3),
    ]  # fmt: skip


def test_the_cells_of_shared_memory_are_apart():
    area = SharedArea.__new__(SharedArea)
    area.cells = memoryview(bytearray(8 * 32)).cast("Q")
    cells = [area.epoch_cell, area.walked_cell, *area.word_cells, area.frozen_cell]
    for number, cell in enumerate(cells, 1):
        cell[0] = number
    assert [cell[0] for cell in cells] == [1, 2, 3, 4, 5]
    assert area.cells[0] == area.cells[1] == 0


# --- What was seen --------------------------------------------------------------------------------


FIRST = Identity("a", 1)


def found(
    epoch: int | None = 1,
    identity: Identity | None = FIRST,
    revision=10,
    pulse=0,
    set_back=0,
    etcd=0,
) -> Found:
    view: View | None = make_view(make_member(1), epoch=epoch) if epoch is not None else None
    row = Row("/x", b"", 3)
    return Found(
        revision, identity, row if identity else None, view, row if view else None, {}, pulse,
        set_back, etcd,
    )  # fmt: skip


def test_the_first_look_trusts_what_is_there():
    assert look(None, found(), 1) == Seen("a", 1, 10, 1)


@pytest.mark.parametrize(
    ("before", "now", "epoch", "reason"),
    [
        (None, found(None), 1, "no directory"),
        (None, found(1, None), 1, "no directory"),
        (None, found(1), 2, "gone back to epoch 1; this node knows epoch 2"),
        (Seen("a", 1, 10, 1), found(None), 1, "no directory"),
        (Seen("a", 1, 10, 1), found(1, Identity("b", 1)), 1, "another directory"),
        (Seen("a", 2, 10, 1), found(1, Identity("a", 1)), 1, "another directory"),
        (Seen("a", 1, 10, 2), found(1), 1, "gone back to epoch 1; this node knows epoch 2"),
        (Seen("a", 1, 10, 1), found(1), 3, "gone back to epoch 1; this node knows epoch 3"),
        (Seen("a", 1, 11, 1), found(1), 1, "gone back to revision 10 from 11"),
        (Seen("a", 1, 10, 1, 7), found(1, pulse=6), 1, "lost what this node wrote"),
        (Seen("a", 1, 10, 1), found(1, set_back=1), 1, "another node has found that"),
        (None, found(1, set_back=2), 1, "another node has found that"),
    ],
)
def test_what_is_wrong(before, now, epoch, reason):
    after = look(before, now, epoch)
    assert reason in after.frozen
    if before is not None:
        assert look(after, found(9, Identity("a", before.generation), 99, 99), 1) == after
        assert not look(after, found(9, Identity("a", 3), 5), 1).frozen
        assert "gone back" in look(after, found(2, Identity("a", 3), 5), 3).frozen


@pytest.mark.parametrize(
    ("before", "now", "elsewhere"),
    [
        (None, found(etcd=7), False),
        (Seen("a", 1), found(etcd=7), False),  # of a release that did not look
        (Seen("a", 1, etcd=7), found(), False),
        (Seen("a", 1, etcd=7), found(etcd=7), False),
        (Seen("a", 1, etcd=7), found(etcd=8), True),
        (Seen("a", 1, etcd=7), found(None, None, etcd=8), True),
        (Seen("a", 2, etcd=7), found(etcd=8), True),
        (Seen("a", 1, etcd=7), found(1, Identity("a", 2), etcd=8), False),  # restored there
    ],
)
def test_another_etcd(before, now, elsewhere):
    assert seen.is_elsewhere(before, now) is elsewhere


def test_the_etcd_that_is_trusted_is_kept():
    first = look(None, found(etcd=7), 1)
    assert first == Seen("a", 1, 10, 1, etcd=7)
    assert look(first, found(1, Identity("a", 2), etcd=8), 1).etcd == 8
    assert look(first, found(), 1).etcd == 7


def test_a_node_that_never_saw_a_directory_waits_for_it():
    after = look(None, found(None), 1)
    assert after.frozen
    assert look(after, found(1, Identity("a", 1)), 1) == Seen("a", 1, 10, 1)


def test_revision_and_epoch_only_grow():
    after = look(Seen("a", 1, 10, 1, 3), found(5, revision=20, pulse=4), 1)
    assert after == Seen("a", 1, 20, 5, 3)


def test_the_file(tmp_path):
    file = SeenFile(Osio(), str(tmp_path / seen.NAME))
    assert file.load() is None
    one = Seen("a", 2, 3, 4, 5, "why", 1 << 63)
    file.keep(one)
    assert file.load() == one
    old = one.encode().replace(b'"etcd": 9223372036854775808, ', b"")
    (tmp_path / seen.NAME).write_bytes(old)
    assert file.load() == replace(one, etcd=0)
    for bad in (b"", b"[]", b"{}", b'{"id": 1}', one.encode().replace(b"3", b"true")):
        (tmp_path / seen.NAME).write_bytes(bad)
        with pytest.raises(ClusterError, match="damaged"):
            file.load()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"id": "a", "generation": "1"}', b"\xff"])
def test_an_identity_that_is_none(data):
    with pytest.raises(ClusterError, match="cannot be read"):
        decode_identity(data)


def test_an_identity_is_read_as_written():
    one = Identity("abc", 7)
    assert decode_identity(one.encode()) == one
