"""Children that do one job of the store and exit: recovery, and closing the index.

An exception is reported to the master as the reason of their failure (metad.workers.child).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lmdb

from metad.errors import EX_OK, MetadError
from metad.loglines import LogLines
from metad.store import hub_time
from metad.store.identity import open_store
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.store.log_table import LogTable, Semaphore
from metad.store.recovery.hub import Recovery
from metad.system.osio import Osio
from metad.system.shared_memory import Cell, ProcessRow, SharedArea
from metad.users.database import UserDatabase
from metad.users.repair import repair_users

LOST = (
    "the users database was missing; mail for unknown users gets 451 until it is restored, or "
    "until metad user accept-loss says that they are not to come back; a node of a cluster gets "
    "its users from the others"
)


@dataclass(frozen=True, slots=True)
class RecoverySetup:
    """The parameters of such a child."""

    data: Path
    area: SharedArea
    semaphore: Semaphore
    boot: str
    log_as_json: bool = False


def recover_hub(setup: RecoverySetup, row: ProcessRow) -> int:
    """Before the first worker: every log recovered, the index usable, the table filled."""
    osio, log = Osio(), LogLines(as_json=setup.log_as_json)
    table = LogTable(setup.area, setup.semaphore, row)
    store = open_store(osio, setup.data)
    for text in repair_users(osio, setup.data / "users", Path(store.quarantine)):
        log.line("recovery", f"warning: {text}")
    with UserDatabase(setup.data / "users", create=True) as users:
        recovery = Recovery(osio, store, lambda text: log.line("recovery", text))
        newest = recovery.run(table, setup.boot)
        row.add(Cell.DAMAGED, recovery.damaged)
        hub_time.begin(osio, setup.area, newest)
        # No new user gets a number that has mail, whatever the origin of the database.
        index = Index(store.index)
        users.reserve(index.greatest_mailbox())
        index.close()
        if users.lost:
            log.line("recovery", f"warning: {LOST}")
    return EX_OK


def recover_process(setup: RecoverySetup, row: ProcessRow, dead: int) -> int:
    """The logs of a process that died; `dead` is its row."""
    osio, log = Osio(), LogLines(as_json=setup.log_as_json)
    table = LogTable(setup.area, setup.semaphore, row)
    recovery = Recovery(osio, open_store(osio, setup.data), lambda text: log.line("recovery", text))
    recovery.recover_process(table, dead)
    row.add(Cell.DAMAGED, recovery.damaged)
    return EX_OK


def close_index(setup: RecoverySetup) -> int:
    """After the last worker: the index is synced and marked clean.

    If that fails (a full disk), it stays marked dirty, and the next start handles it.
    """
    osio = Osio()
    try:
        store = open_store(osio, setup.data)
        index = Index(store.index)
        index.sync()
        index.close()
        index_state.mark(osio, store.index, setup.boot, clean=True)
    except (MetadError, OSError, lmdb.Error) as error:
        log = LogLines(as_json=setup.log_as_json)
        log.line("recovery", f"warning: the index is not marked as clean: {error}")
    return EX_OK
