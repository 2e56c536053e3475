"""What a walk reads of a message that lies here, also in copies for different mailboxes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from metad.cluster.answers import INTERNAL
from metad.cluster.copies import unpack_copy
from metad.cluster.walking import Missing
from metad.layers.walked_mail import WalkedMail
from tests.store.test_clustered import place_of, spoil, spread
from tests.support.collector_kit import collect_all, fill_log, make_collector
from tests.support.store_kit import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data", clustered=True) as kit:
        kit.start()
        yield kit


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def mail(kit: StoreKit, lines: list[str]) -> WalkedMail:
    layer: Any = SimpleNamespace(
        log=SimpleNamespace(reader=kit.reader, index=kit.index, loop=kit.loop),
        streaming=SimpleNamespace(piece=1 << 20),
    )
    thread: Any = SimpleNamespace(put=lambda job: job())
    return WalkedMail(layer, thread, lines.append)


def named(copy: Any) -> list[int]:
    return [one.mailbox for one in unpack_copy(b"".join(copy)).recipients]


def test_each_copy_is_sent_by_itself(kit: StoreKit, mail: WalkedMail) -> None:
    one = spread(kit)
    for mailboxes in ([1, 3], [3, 1]):
        found = mail._read(one, mailboxes)
        assert not isinstance(found, Missing)
        assert (named(found.copy), found.left) == (mailboxes[:1], mailboxes[1:])


def test_a_damaged_copy_keeps_no_other_one_back(
    kit: StoreKit, mail: WalkedMail, lines: list[str]
) -> None:
    one = spread(kit)
    spoil(kit, place_of(kit, one, 1))
    found = mail._read(one, [1, 3])
    assert not isinstance(found, Missing)
    assert (named(found.copy), found.left, lines) == ([3], [1], [])
    assert mail._read(one, [1]) is Missing.DAMAGED
    (line,) = lines
    assert line.startswith("warning: not sent to another node: ")


def test_what_was_deleted_meanwhile_is_gone(
    kit: StoreKit, mail: WalkedMail, lines: list[str]
) -> None:
    one = spread(kit)
    kit.delete(1, [one])
    kit.delete(3, [one])
    fill_log(kit, mailbox=8)
    collect_all(kit, make_collector(kit))
    assert (mail._read(one, [1, 3]), lines) == (Missing.GONE, [])


def test_a_walk_hears_of_an_index_that_cannot_be_read_and_of_a_bug(
    kit: StoreKit, mail: WalkedMail, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Exception] = [ValueError("a bug"), lmdb.ReadersFullError("no reader")]

    def fail(_message_id: bytes) -> int:
        raise failures.pop()

    monkeypatch.setattr(kit.reader, "size", fail)
    got: list[Any] = []
    mail.send(2, bytes(16), [1], got.append)
    with pytest.raises(ValueError, match="a bug"):
        mail.send(2, bytes(16), [1], got.append)
    kit.loop.run()
    assert got == [INTERNAL, INTERNAL]
    assert lines == ["warning: not sent to another node: index: no reader"]
