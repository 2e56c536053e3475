"""LMDB for several simulated processes in one real one, which may open an environment only once.

Rules of this file:

* All openers of a path share one real environment; the last one closes it.
* There is one write transaction at a time.  Others wait in the scheduler, as for LMDB's mutex.
  Begin and commit are switch points; a kill before the commit aborts.
* Read transactions never span a switch point, so they are real.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import lmdb

from metad.store.index import index as index_module
from metad.store.index.index import Index
from tests.sim.scheduler import KilledError
from tests.support.in_process import index_in_process
from tests.support.store_kit import BOUNDS

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.simulation import Simulation

_real_open = lmdb.open


class Shared:
    """One real environment, and its openers."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.handles = 0
        self.writer: WriteTxn | None = None
        self.tables: dict[Any, Any] = {}


class WriteTxn:
    """A write transaction; see above.  Its other calls are the real one's."""

    def __init__(self, handle: Handle, txn: Any) -> None:
        self._handle = handle
        self.txn = txn
        self.get, self.put, self.delete = txn.get, txn.put, txn.delete
        self.cursor, self.stat, self.replace, self.pop = txn.cursor, txn.stat, txn.replace, txn.pop
        self.drop = txn.drop

    def commit(self) -> None:
        handle = self._handle
        if self.txn is None:
            raise KilledError
        if handle.refused():
            self.abort()
            raise lmdb.DiskError("mdb_txn_commit: No space left on device")
        handle.point("commit")
        self.txn.commit()
        self._end()
        handle.point("committed")

    def abort(self) -> None:
        if self.txn is not None:
            self.txn.abort()
            self._end()

    def _end(self) -> None:
        self.txn = None
        self._handle.shared.writer = None

    def __enter__(self) -> WriteTxn:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


class Handle:
    """An environment opened by one simulated process."""

    def __init__(self, sim: Simulation, shared: Shared, path: str) -> None:
        self._sim = sim
        self._path = path
        self.shared = shared
        self.process = sim.current_process
        self._open = True
        shared.handles += 1
        if self.process is not None:
            self.process.handles.append(self)

    def point(self, what: str) -> None:
        if self._sim.scheduler.current is not None:
            self._sim.scheduler.point(f"index {what}")

    def refused(self) -> bool:
        """Whether the next write transaction of the index is to fail."""
        process = self._sim.current_process
        if process is None or not self._path.endswith("/index"):
            return False
        if self._sim.faults.strike(process.role, "index") is None:
            return False
        self._sim.note(f"the index refuses a transaction of {process.name}")
        return True

    def begin(self, *args: Any, write: bool = False, **named: Any) -> Any:
        if not write:
            return self.shared.env.begin(*args, **named)
        self.point("begin")
        self._wait()
        if not self._open:
            raise KilledError
        txn = WriteTxn(self, self.shared.env.begin(*args, write=True, **named))
        self.shared.writer = txn
        return txn

    def _wait(self) -> None:
        shared = self.shared
        if shared.writer is not None:
            self._sim.scheduler.wait(lambda: shared.writer is None)

    def open_db(self, name: Any = None, txn: Any = None, **named: Any) -> Any:
        known = self.shared.tables.get(name)
        if known is not None:
            return known
        if txn is None:
            self._wait()
            made = self.shared.env.open_db(name, **named)
        else:
            made = self.shared.env.open_db(name, getattr(txn, "txn", txn), **named)
        self.shared.tables[name] = made
        return made

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        shared = self.shared
        if self.process is not None:
            self.process.handles.remove(self)
        if shared.writer is not None and shared.writer._handle is self:
            shared.writer.abort()
        shared.handles -= 1
        if not shared.handles:
            self._sim.environments.pop(self._path, None)
            shared.env.close()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shared.env, name)


def make_open(sim: Simulation) -> Callable[..., Handle]:
    """Replaces `lmdb.open`."""

    def open_shared(path: str, **named: Any) -> Handle:
        shared = sim.environments.get(path)
        if shared is None:
            named["readonly"] = False
            shared = sim.environments[path] = Shared(_real_open(path, **named))
        return Handle(sim, shared, path)

    return open_shared


@contextmanager
def installed(sim: Simulation) -> Iterator[None]:
    """While this lasts, metad's environments are simulated, and an index is tried and read in the
    process itself, not in a child."""
    with patch.object(lmdb, "open", make_open(sim)), index_in_process():
        yield


class SimIndex(Index):
    """The index as a simulated process has it open: its write lock waits in the scheduler."""

    def __init__(self, process: Process, path: str) -> None:
        super().__init__(path, BOUNDS)
        self._process = process
        self._scheduler = process.hub.sim.scheduler
        process.indexes.append(self)

    def try_lock(self) -> bool:
        self._scheduler.point("try the index's lock")
        return super().try_lock()

    def lock(self) -> None:
        self._scheduler.point("the index's lock")
        self._scheduler.wait(super().try_lock)

    def unlock(self) -> None:
        if self._process.dead:
            raise KilledError
        super().unlock()
        self._scheduler.point("the index's lock released")

    def release(self) -> None:
        """The process is dead: the kernel drops its lock."""
        fcntl.fcntl(self._write_lock, fcntl.F_OFD_SETLK, index_module._WRITE_UNLOCK)

    def close(self) -> None:
        if self._process.dead:
            return
        self._process.indexes.remove(self)
        super().close()

    def end(self) -> None:
        """Close environments that a dead process left open, at the end of the simulation."""
        super().close()
