"""How a node of a cluster stands, through shared memory and back."""

from __future__ import annotations

from random import Random

import pytest

from metad.system import node_standing
from metad.system.node_standing import Obstacle, Short, Standing, nodes
from tests.support.sizes import SEED

NOW = 1_000_000_000_000
FULL = Standing(
    mail=Obstacle.FEW, mail_since=1_700_000_000,
    logins=Obstacle.NO_WORD, logins_since=1_700_000_001,
    short=Short.AWAY, active=3, reached=1, linked=2, suffice=True,
    silent=(2, 65_535), absent=(4, 5, 6, 7, 8), unhealed=(1, 2, 3, 4, 5, 6, 7, 9),
)  # fmt: skip


@pytest.fixture
def cells() -> memoryview:
    return memoryview(bytearray(8 * node_standing.CELLS)).cast("Q")


@pytest.mark.parametrize("standing", [Standing(), FULL])
def test_what_is_noted_is_read(cells: memoryview, standing: Standing) -> None:
    assert node_standing.read(cells, NOW) is None
    node_standing.write(cells, standing, NOW)
    assert node_standing.read(cells, NOW + 1) == standing


def test_more_members_than_there_is_room_for_are_left_out(cells: memoryview) -> None:
    node_standing.write(cells, FULL._replace(silent=tuple(range(1, 20))), NOW)
    found = node_standing.read(cells, NOW)
    assert found is not None
    assert found.silent == tuple(range(1, 1 + node_standing.MOST))
    assert found.absent == FULL.absent


def test_what_is_old_is_not_known(cells: memoryview) -> None:
    node_standing.write(cells, FULL, NOW)
    later = NOW + int(node_standing.FRESH_S * 1e9)
    assert node_standing.read(cells, later) == FULL
    assert node_standing.read(cells, later + 1) is None


def test_a_reader_between_two_writes_takes_neither() -> None:
    """The writer is stopped after each cell."""

    class Stopped(Exception):
        pass

    class Cells(list[int]):
        left = 1 << 30

        def __setitem__(self, at: object, value: object) -> None:
            if not self.left:
                raise Stopped
            self.left -= 1
            super().__setitem__(at, value)  # type: ignore[index, call-overload]

    cells = Cells([0] * node_standing.CELLS)
    node_standing.write(cells, Standing(), NOW)  # type: ignore[arg-type]
    seen = set()
    for stop in range(node_standing.CELLS + 2):
        cells.left = stop
        try:
            node_standing.write(cells, FULL, NOW + 1)  # type: ignore[arg-type]
        except Stopped:
            pass
        seen.add(node_standing.read(cells, NOW + 2))  # type: ignore[arg-type]
        cells.left = 1 << 30
        node_standing.write(cells, Standing(), NOW)  # type: ignore[arg-type]
    assert seen == {None, Standing(), FULL}


def test_garbage_gives_some_standing(cells: memoryview) -> None:
    random = Random(SEED)
    found = 0
    for _ in range(500):
        for at in range(node_standing.CELLS):
            cells[at] = random.getrandbits(64)
        cells[0] = NOW
        standing = node_standing.read(cells, NOW)
        assert standing is not None
        assert isinstance(standing.mail, Obstacle)
        assert isinstance(standing.short, Short)
        found += 1
    assert found


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((2,), "node 2"), ((2, 3), "nodes 2 and 3"), ((2, 3, 4), "nodes 2, 3 and 4")],
)
def test_nodes_are_named(numbers: tuple[int, ...], text: str) -> None:
    assert nodes(numbers) == text
