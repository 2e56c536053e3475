"""The index opened and tried where a bad page does no harm: in a child.

LMDB reads its file through a map: a torn or truncated one may end the process by SIGBUS, SIGSEGV or
an abort.  The child walks through all tables, as far as that takes no longer than some seconds.

Rules of this file:

* Nothing is written to the index.  What the child finds, or how it ends, is the reason for a
  rebuild.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import lmdb

from metad.errors import MetadError
from metad.store.index.index import Index
from metad.store.index.rows import unpack_places, unpack_references

SECONDS = 2.0  # for the walk; pages that it did not reach are found when they are used
_LOOK_EVERY = 4096


def why_damaged(path: str, disagreement: Callable[[], str | None]) -> str | None:
    """None if the index stood the trial; `disagreement` is asked in the child.  Raises OSError."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(path, disagreement, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        reason = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"reading it ended the process ({signal.Signals(-code).name})"
    return reason or (f"reading it failed (exit code {code})" if code else None)


def _child(path: str, disagreement: Callable[[], str | None], writer: int) -> None:
    code = 1
    try:
        # No words of LMDB's, no traceback and no core file.
        with suppress(OSError):  # a confined process, or one in a chroot, has no /dev/null
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        reason = _why(path, disagreement)
        os.write(writer, (reason or "").encode()[:4096])
        code = 0
    finally:
        os._exit(code)


def _why(path: str, disagreement: Callable[[], str | None]) -> str | None:
    try:
        return disagreement() or _walk(path, time.monotonic() + SECONDS)
    except (lmdb.Error, MetadError, OSError, ValueError) as error:
        return f"it is damaged: {error}"


def _walk(path: str, until: float) -> str | None:
    """Every page, or as many as there is time for; live counts as the rows have them."""
    index = Index(path, readonly=True)
    try:
        counts = index.logs()
        live = dict.fromkeys(counts, 0)
        with index.reading() as txn:
            for count, (_, value) in enumerate(txn.cursor(index.tables.places)):
                row = bytes(value)
                places = unpack_places(row)
                if unpack_references(row) and places:
                    live[places[0].log] = live.get(places[0].log, 0) + 1
                if not count % _LOOK_EVERY and time.monotonic() > until:
                    return None
            for number, found in live.items():
                if number not in counts or counts[number].live_messages != found:
                    return f"its counts of log {number} are wrong"
            return _walk_mailboxes(index, txn, until)
    finally:
        index.close()


def _walk_mailboxes(index: Index, txn: lmdb.Transaction, until: float) -> str | None:
    for table in index.tables.mailboxes:
        last = b""
        for count, key in enumerate(txn.cursor(table).iternext(values=False)):
            if bytes(key) <= last:
                return "its rows are out of order"
            last = bytes(key)
            if not count % _LOOK_EVERY and time.monotonic() > until:
                return None
    return None
