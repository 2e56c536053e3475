"""The collector's process walks through the index, and notes what the start did not reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.system.osio import Osio
from tests.support.store_kit import StoreKit
from tests.workers.test_collector_expires import in_time, running


@pytest.mark.slow
def test_damage_that_a_start_did_not_reach_makes_the_index_suspect(tmp_path: Path) -> None:
    with StoreKit(tmp_path) as kit:
        kit.start()
        sent = [kit.put([2, 3], b"%d" % number) for number in range(7)]
        kit.stop()
        kit.recover()
        index = Index(kit.store.index)
        with index.writing() as txn:
            txn.delete(sent[3].id, db=index.tables.places)
        index.close()
        with running(kit):
            assert in_time(lambda: index_state.suspicion(Osio(), kit.store.index) is not None)
        reason = index_state.suspicion(Osio(), kit.store.index) or ""
        assert "mailbox 2 has a message that it knows nothing of" in reason
        kit.start()
        kit.check()
