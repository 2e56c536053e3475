"""No later session, in any worker, sees messages whose deletion QUIT acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from metad.errors import NoSpaceError, RefusedError
from metad.layers.logs import LogLayer
from metad.store.log_table import LogState
from metad.store.mailbox_locks import MailboxLocks
from metad.store.pending_deletions import PendingDeletions
from tests.support.osio_kit import KitOsio
from tests.support.store_kit import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path, KitOsio()) as made:
        made.start(2)
        yield made


def break_index(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise lmdb.DiskError("index")

    monkeypatch.setattr(kit.index, "apply", fail)


def worker(kit: StoreKit, slot: int) -> Any:
    """The log layer as worker `slot` has it, as far as opening a mailbox goes."""
    layer = LogLayer.__new__(LogLayer)
    layer.pending = kit.writers[slot].pending
    layer.locks = MailboxLocks(kit.osio, kit.store.locks)
    layer.complete_mailboxes = set()
    layer.index = kit.index
    layer.complete_mailboxes = set()
    layer.committer = SimpleNamespace(is_behind=lambda mailbox: False)  # type: ignore[assignment]
    return layer


def test_another_worker_does_not_list_what_a_lagging_index_still_has(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [kit.put([7], b"%d" % number).id for number in range(3)]
    break_index(kit, monkeypatch)
    assert kit.delete(7, ids).acked
    for slot in (0, 1):
        with pytest.raises(RefusedError):
            worker(kit, slot).open_mailbox(7)
    assert len(worker(kit, 1).open_mailbox(8)) == 0
    monkeypatch.undo()
    kit.writers[0].committer.catch_up()
    kit.run()
    assert len(worker(kit, 1).open_mailbox(7)) == 0
    assert kit.check() == 0


def test_it_is_known_before_the_deletion_is_acknowledged(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = kit.put([7], b"x")
    break_index(kit, monkeypatch)
    seen: list[bool] = []
    real = kit.ledger.apply

    def apply(note: Any) -> None:
        if note[0] == "deleted":
            seen.append(kit.writers[1].pending.may_have(7))
        real(note)

    monkeypatch.setattr(kit.ledger, "apply", apply)
    kit.delete(7, [sent.id])
    assert seen == [True]


def test_the_row_of_a_dead_worker_keeps_it_until_it_is_cleared(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The master clears a row when recovery has entered what the worker left."""
    sent = kit.put([7], b"x")
    break_index(kit, monkeypatch)
    kit.delete(7, [sent.id])
    other = PendingDeletions(kit.area, 5)
    other.publish({8})
    assert other.may_have(7)
    kit.area.process(0).clear()
    assert not other.may_have(7)
    assert other.may_have(8)
    assert other.may_have(8 + 1024)  # shares its bit: the error is on the safe side


def test_a_worker_that_ends_while_the_index_lags_leaves_its_log_to_recovery(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed, the log would belong to no process, and its row would be cleared at once."""
    sent = kit.put([7], b"x")
    writer = kit.writers[0]
    break_index(kit, monkeypatch)
    kit.delete(7, [sent.id])
    writer.source.stop(writer.committer.stop())
    mine = kit.table.owned_by(0)
    assert [row.state for row in mine] == [LogState.ACTIVE]
    assert kit.writers[1].pending.may_have(7)


def test_no_full_log_is_sealed_while_the_index_lacks_something_of_it(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.put([7], b"x")
    break_index(kit, monkeypatch)
    sent = [kit.put([7], b"x" * 7000) for _ in range(12)]
    assert isinstance(sent[-1].error, NoSpaceError)
    assert LogState.SEALED not in [row.state for row in kit.table.rows()]
    monkeypatch.undo()
    kit.writers[0].committer.catch_up()
    kit.run()
    assert kit.put([7], b"x" * 7000).acked
    kit.check()
