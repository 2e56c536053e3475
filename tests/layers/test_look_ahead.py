"""A client that fetches messages in order: their places are looked up together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from metad.layers import logs
from metad.layers.base import Maildrop
from metad.layers.bench import Bench
from metad.layers.logs import LogLayer
from metad.store.log.place import Place
from metad.store.reader import Reader
from tests.layers.test_conformance import TestLog as Log

COUNT = 70


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many places were looked up each time."""
    found: list[int] = []
    real = Reader.look_ahead

    def look_ahead(self: Reader, ids: Iterable[bytes]) -> list[Place | None]:
        wanted = list(ids)
        found.append(len(wanted))
        return real(self, wanted)

    monkeypatch.setattr(Reader, "look_ahead", look_ahead)
    return found


def fetched(drop: Maildrop, numbers: Iterable[int]) -> list[bytes]:
    """The last line of each message."""
    lines = []
    for number in numbers:
        parts = drop.fetch(number, 1 << 20)
        chunks: Sequence[object] = parts if isinstance(parts, Sequence) else list(parts)
        lines.append(b"".join(map(bytes, chunks)).split(b"\r\n")[-3])  # type: ignore[arg-type]
    return lines


@pytest.mark.slow
def test_one_look_for_many_and_each_gets_its_own(looked: list[int]) -> None:
    with Bench(Log()) as bench:
        assert isinstance(bench.its_layer, LogLayer)
        for number in range(1, COUNT + 1):
            bench.put([2], b"Subject: x\r\n\r\n%d\r\n" % number)
        drop = bench.open(2)
        wanted = [b"%d" % number for number in range(1, COUNT + 1)]
        assert fetched(drop, range(1, COUNT + 1)) == wanted
        rest = COUNT - 1
        assert looked == [logs.LOOK_AHEAD, logs.LOOK_AHEAD, rest - 2 * logs.LOOK_AHEAD]
        drop.close()


def test_who_jumps_about_looks_up_no_others(looked: list[int]) -> None:
    with Bench(Log()) as bench:
        for number in range(1, 9):
            bench.put([2], b"Subject: x\r\n\r\n%d\r\n" % number)
        drop = bench.open(2)
        assert fetched(drop, [8, 3, 3, 1, 6]) == [b"8", b"3", b"3", b"1", b"6"]
        assert looked == []
        assert fetched(drop, [7, 8]) == [b"7", b"8"]
        assert looked == [2]
        drop.close()
