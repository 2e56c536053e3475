"""Rebuilds the index and quarantines damage, for an operator, while no hub runs.

Rules of this file:

* The caller holds DATA/lock.  No log file is ever removed here, and no mail in it is changed:
  damaged octets are copied to quarantine/, and remain in their log until it is collected.
* A header copy is restored only from the other copy, which verifies.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from metad.errors import DataError, OsError, remedy_for
from metad.store.fsck.fsck import Summary
from metad.store.fsck.log_check import log_numbers, read_headers
from metad.store.identity import Store
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.store.log import files as log_files
from metad.store.log import header, quarantine
from metad.store.log.header import FREE, LogHeader, log_path
from metad.store.recovery.hub import Recovery
from metad.system.osio import Osio

Report = Callable[[str], None]


def repair(osio: Osio, store: Store, boot: str, found: Summary, report: Report) -> None:
    """Repair the damage that a check found.  Raises DataError, OSError, lmdb.Error."""
    _set_aside(osio, store, found, report)
    rebuild_index(osio, store, boot, report)
    for number in found.bad_headers:
        _restore_headers(osio, store, number, report)


def rebuild_index(osio: Osio, store: Store, boot: str, report: Report) -> int:
    """Rebuild the index from the logs and mark it as clean.  Returns the number of logs.

    Logs without a seal get one, as at a start.  Raises DataError if a log does not verify under
    this store's secret.
    """
    recovery = Recovery(osio, store, report)
    _must_be_ours(osio, store)
    plan = recovery.plan_all()
    recovery.rebuild(plan, "as asked")
    index = Index(store.index)
    try:
        index_state.mark(osio, store.index, boot, clean=False)
        index.sync()
    finally:
        index.close()
    index_state.mark(osio, store.index, boot, clean=True)
    return len(plan.logs)


def _must_be_ours(osio: Osio, store: Store) -> None:
    for number in log_numbers(osio, store):
        headers = read_headers(osio, store, number)
        if headers is not None and headers.foreign:
            raise DataError(
                f"{headers.findings[0]}: nothing is changed",
                remedy="restore the store.json that belongs to the logs",
            )


def _set_aside(osio: Osio, store: Store, found: Summary, report: Report) -> None:
    for log, damage in found.damage:
        fd = osio.open(log_path(store.logs, log.number), os.O_RDONLY)
        try:
            name = quarantine.quarantine_range(osio, store, fd, log, damage)
        except OSError as error:
            raise OsError(
                f"log {log.number}: damage cannot be set aside: {error}", remedy=remedy_for(error)
            ) from None
        finally:
            osio.close(fd)
        report(f"log {log.number}: bytes {damage.start} to {damage.end} kept in quarantine/{name}")


def _restore_headers(osio: Osio, store: Store, number: int, report: Report) -> None:
    """Rewrite the copy that does not verify from the one that does.

    Not in a log that is neither sealed nor free: its writer failed, so it must not be written to.
    """
    headers = read_headers(osio, store, number)
    if headers is None or headers.log is None or not headers.bad:
        return
    log = headers.log
    if log.state != FREE and not log.seal_offset:
        return
    fd = log_files.lock_log(osio, store.logs, number)
    try:
        first = any(stretch.start == 0 for stretch in headers.bad)
        last = any(stretch.start != 0 for stretch in headers.bad)
        if first:
            header.write_first(osio, fd, _first_copy(log))
            osio.fdatasync(fd)
        if last:
            header.write_last(osio, fd, log)
            osio.fdatasync(fd)
    finally:
        osio.close(fd)
    report(f"log {number}: its header is restored")


def _first_copy(log: LogHeader) -> LogHeader:
    """Only the last block records the seal."""
    return log._replace(seal_offset=0, seal_size=0)
