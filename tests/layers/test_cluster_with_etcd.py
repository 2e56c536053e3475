"""Whether a worker of a node with etcd has its word: fresh, and of the view that is in force."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from metad.cluster.transport import Links
from metad.cluster.word import Word
from metad.layers.cluster_with_etcd import WordedPeers
from metad.limits import CLUSTER_WORD
from tests.cluster.views import make_member, make_view

TWO = make_view(make_member(1), make_member(2), epoch=5)
SENT = 1_000_000_000_000


def test_a_lone_reader_has_word_while_it_is_fresh_and_of_this_view() -> None:
    cells = memoryview(bytearray(16)).cast("Q")
    word = Word(cells[0:1], cells[1:2])
    now = SENT
    current = TWO
    node = cast(Any, SimpleNamespace(number=1, current_view=lambda: current))
    peers = WordedPeers(node, cast(Links, None), word, lambda: now)
    assert not peers.has_word()
    word.keep(SENT, 5)
    assert peers.has_word()
    now = SENT + int(CLUSTER_WORD * 1e9)
    assert peers.has_word()
    now += 1
    assert not peers.has_word()
    now = SENT
    current = TWO.changed()
    assert not peers.has_word()
    word.keep(SENT, 6)
    assert peers.has_word()
    word.clear()
    assert not peers.has_word()
