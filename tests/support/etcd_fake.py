"""An etcd without a process: revisions, transactions, watches, compaction, a wipe, a rollback.

It takes the requests that `metad.cluster.etcd_json` makes.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from metad.cluster.etcd_json import (
    Change,
    Changes,
    CompactedError,
    EtcdError,
    Json,
    Outcome,
    Reading,
    Row,
    end_of_prefix,
)

MOST = 128


@dataclass
class State:
    revision: int = 1
    compacted: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    history: list[list[Change]] = field(default_factory=list)


class FakeEtcd:
    """What `metad.cluster.etcd.Etcd` offers.  `fault`: called before a transaction is carried out,
    and once more after it; it may raise EtcdError."""

    def __init__(self) -> None:
        self.state = State()
        self.is_up = True
        self.transactions = 0
        self.cuts = 0  # watches that will be lost after their next fragment
        self.fault: Callable[[str], None] = lambda when: None
        self._moved = asyncio.Event()

    # -- requests

    async def prefix(self, prefix: str, revision: int = 0, page: int = 3) -> AsyncIterator[Reading]:
        """Of the newest revision alone."""
        self._answer()
        if revision and revision <= self.state.compacted:
            raise CompactedError(0)
        found = self._range(prefix, end_of_prefix(prefix))
        for at in range(0, max(1, len(found)), page):
            await asyncio.sleep(0)
            more = at + page < len(found)
            yield Reading(revision or self.state.revision, found[at : at + page], more)

    async def read(self, *requests: Json) -> Outcome:
        self._answer()
        return Outcome(True, self.state.revision, self._reads(requests))

    async def transact(
        self, compare: Sequence[Json], then: Sequence[Json], otherwise: Sequence[Json] = ()
    ) -> Outcome:
        self._answer()
        assert max(len(compare), len(then), len(otherwise)) <= MOST
        await asyncio.sleep(0)
        self.fault("before")
        self._answer()
        self.transactions += 1
        holds = all(map(self._holds, compare))
        branch = then if holds else otherwise
        self._write(branch)
        outcome = Outcome(holds, self.state.revision, self._reads(branch))
        self.fault("after")
        return outcome

    async def watch(self, first: str, end: str, revision: int) -> AsyncGenerator[Changes, None]:
        self._answer()
        if revision <= self.state.compacted:
            raise CompactedError(self.state.compacted)
        yield Changes(self.state.revision, ())
        while True:
            moved = self._moved
            found = [one for made in self.state.history for one in made if one.mod >= revision]
            revision = found[-1].mod + 1 if found else revision
            seen = [one for one in found if first <= one.key < end]
            for at, one in enumerate(seen, 1):  # in fragments, whatever their revisions
                yield Changes(self.state.revision, [one], more=at < len(seen))
                self._cut()
            await moved.wait()
            self._answer()

    # -- what happens to it

    def write(self, rows: dict[str, bytes | None]) -> None:
        """As an operator could, with etcdctl."""
        self._apply(rows)

    def compact(self) -> None:
        """Watches that are open go on."""
        self.state.compacted = self.state.revision
        self.state.history.clear()

    def stop(self) -> None:
        self.is_up = False
        self._wake()

    def start(self, state: State | None = None) -> None:
        """`state`: of another day."""
        self.state = state or self.state
        self.is_up = True

    def snapshot(self) -> State:
        return deepcopy(self.state)

    # -- inside

    def _answer(self) -> None:
        if not self.is_up:
            raise EtcdError("etcd does not answer")

    def _cut(self) -> None:
        if self.cuts:
            self.cuts -= 1
            raise EtcdError("the watch is lost")

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def _range(self, first: str, end: str) -> list[Row]:
        return [self.state.rows[key] for key in sorted(self.state.rows) if first <= key < end]

    def _reads(self, requests: Sequence[Json]) -> list[list[Row]]:
        found = []
        for request in requests:
            if wanted := request.get("request_range"):
                key = _text(wanted["key"])
                end = _text(wanted["range_end"]) if "range_end" in wanted else key + "\0"
                found.append(self._range(key, end))
        return found

    def _holds(self, compare: Json) -> bool:
        key = _text(compare["key"])
        end = _text(compare["range_end"]) if "range_end" in compare else key + "\0"
        rows = self._range(key, end)
        target, result = compare["target"], compare["result"]
        if target == "VALUE":
            return bool(rows) and rows[0].value == b64decode(compare["value"])
        if target == "VERSION":
            assert compare["version"] == "0"
            return bool(rows) is (result == "GREATER")
        wanted = int(compare["mod_revision"])
        mods = [row.mod for row in rows] or [0]
        return all(mod < wanted if result == "LESS" else mod == wanted for mod in mods)

    def _write(self, requests: Sequence[Json]) -> None:
        rows: dict[str, bytes | None] = {}
        for request in requests:
            put, gone = request.get("request_put"), request.get("request_delete_range")
            if put is not None or gone is not None:
                key = _text((put or gone or {})["key"])
                assert key not in rows, "duplicate key given in txn request"
                rows[key] = b64decode(put["value"]) if put is not None else None
        if rows:
            self._apply(rows)

    def _apply(self, rows: dict[str, bytes | None]) -> None:
        mod = self.state.revision + 1
        changes = []
        for key, value in rows.items():
            row = None if value is None else Row(key, value, mod)
            if row is not None:
                self.state.rows[key] = row
            elif self.state.rows.pop(key, None) is None:
                continue
            changes.append(Change(key, row, mod))
        if changes:
            self.state.revision = mod
            self.state.history.append(changes)
            self._wake()


def _text(data: str) -> str:
    return b64decode(data).decode()
