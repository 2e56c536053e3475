"""What must hold, at every moment and at the end: tests.support.oracle, and more.

every moment    the row of a log names the living process that writes to it
each login      nothing is listed that a QUIT acknowledged as deleted before; everything that
                was in the index is there; what is listed can be fetched, as it was sent
after quiet     every acknowledged message; fsck is clean; a rebuilt index is the same one,
                places included, so no copy is unknown to it; backups hold what they must
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from metad.store.log import header
from metad.store.log.header import log_path
from metad.store.log_table import LogState, LogTable
from metad.system.osio import Osio
from tests.support.oracle import Ledger, digest, show

if TYPE_CHECKING:
    from metad.store.log.writer import LogWriter
    from tests.sim.hub import Hub
    from tests.sim.process import Process


class Seen(NamedTuple):
    """Before a login: what it must list, what it must not, and what was in the index."""

    must: set[bytes]
    gone: set[tuple[int, bytes]]
    visible: set[bytes]
    flips: int
    flipped: bool


class Judge:
    """Of one hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.ledger = Ledger()
        # Acknowledged: a session that begins now waits until the index has it.
        self.visible: set[bytes] = set()
        # The index is wrong for the moment; and how often it became so.
        self.flipped = False
        self.flips = 0
        # When each message was sent, in microseconds of the wall clock; mailboxes without a user.
        self.times: dict[bytes, int] = {}
        self.removed: set[int] = set()
        hub.judge = self
        self._looks = 0
        hub.sim.on_switch.append(self.look)

    # -- reports

    def sent(self, message_id: bytes, body: bytes, boxes: tuple[int, ...]) -> None:
        self.times[message_id] = self._hub.clock.real // 1000
        self.ledger.apply(("sent", (message_id, body, boxes)))
        self.deleting([(box, message_id) for box in boxes if box in self.removed])

    def acknowledged(self, message_id: bytes, *, lagging: bool) -> None:
        self._hub.sim.note(f"{message_id.hex()} is acknowledged")
        self.ledger.apply(("acked", [message_id]))
        if not lagging:
            self.visible.add(message_id)

    def deleting(self, pairs: Iterable[tuple[int, bytes]]) -> None:
        self.ledger.apply(("deleting", pairs))

    def deleted(self, pairs: list[tuple[int, bytes]]) -> None:
        for box, message_id in pairs:
            self._hub.sim.note(f"{message_id.hex()} is deleted from {box}")
        self.ledger.apply(("deleted", pairs))

    def expiring(self, box: int, before: int) -> None:
        """Mail may be deleted if it is old enough by its id and by the clock at its arrival."""
        limit = max(before, 0).to_bytes(8, "big")
        old = [one for one in self.known(box) if one[:8] < limit and self.times[one] < before]
        self.deleting([(box, one) for one in old])

    def remove(self, box: int) -> None:
        """The user is gone, and all mail will be, including later arrivals."""
        self.removed.add(box)
        self.deleting([(box, one) for one in self.known(box)])

    def flip(self) -> None:
        """The index is about to become wrong."""
        self.flipped = True
        self.flips += 1

    def index_is_new(self) -> None:
        """A power cut: the next start rebuilds it, so its faults no longer matter."""
        self.flipped = False

    # -- what is known

    def known(self, box: int) -> list[bytes]:
        return [one for one, (_, boxes) in self.ledger.sent.items() if box in boxes]

    def acknowledged_in(self, box: int) -> set[bytes]:
        return self.ledger.must_have(box)

    def visible_entries(self) -> list[tuple[int, bytes]]:
        return [
            (box, one)
            for one in self.visible
            for box in self.ledger.sent[one][1]
            if (box, one) not in self.ledger.deleting
        ]

    # -- sessions

    def before_login(self, box: int) -> Seen:
        """What a login now must list, and must not."""
        self.visible -= self._hub.refused_by_index
        visible = {one for one in self.visible if box in self.ledger.sent[one][1]}
        return Seen(
            self.ledger.must_have(box) & visible, set(self.ledger.deleted), visible, self.flips,
            self.flipped,
        )  # fmt: skip

    def listed(self, box: int, ids: list[bytes], left: set[bytes], seen: Seen) -> None:
        """`left`: entries that the session leaves for the next one, because something arrived in
        between (metad.layers.listing)."""
        assert ids == sorted(set(ids)), f"mailbox {box} is not in order: {show(ids)}"
        left = left | self._hub.refused_by_index  # maybe while this session waited for it
        back = [one for one in ids if (box, one) in seen.gone]
        assert not back, f"mailbox {box} lists what was deleted: {show(back)}"
        strange = [one for one in ids if box not in self.ledger.sent.get(one, (b"", ()))[1]]
        assert not strange, f"mailbox {box} lists what was not sent: {show(strange)}"
        missing = {
            one for one in seen.must - set(ids) - left if (box, one) not in self.ledger.deleting
        }
        # The index may be new by now, but was wrong when this session looked.
        is_right = not self.flipped and not seen.flipped and self.flips == seen.flips
        assert not is_right or not missing, f"mailbox {box} lacks {show(missing)}"
        # A message that is missing while its deletion is under way is permanently gone.
        if is_right:
            lacking = seen.visible - set(ids) - left
            self.ledger.deleted |= self.ledger.deleting & {(box, one) for one in lacking}

    def fetched(self, message_id: bytes, body: bytes) -> None:
        assert digest(body) == self.ledger.sent[message_id][0], f"{message_id.hex()} is another one"

    # -- every moment

    def look(self) -> None:
        """Rows name their writers.  Not checked at every step, which would cost too much."""
        self._looks += 1
        if self._looks % 8:
            return
        for worker in self._hub.workers():
            self._look_at(worker, worker.layer.committer.writer)
        collector = self._hub.collector()
        if collector is not None and collector.begun:
            for chain in collector.survivors._chains.values():
                self._look_at(collector, chain.writer)

    @cached_property
    def _table(self) -> LogTable:
        """To read from, in every life of the hub."""
        return self._hub.table()

    def _look_at(self, process: Process, writer: LogWriter | None) -> None:
        if writer is None or writer.poisoned:
            return
        row = self._table.row(writer.number)
        found = (row.owner, row.state, row.life)
        assert found == (process.row.index + 1, LogState.ACTIVE, writer.life), (
            f"{process.name} writes to log {writer.number} in life {writer.life}, it is {row}"
        )

    def _written(self) -> set[int]:
        """The logs that a process has open for writing, now or next."""
        sources = [worker.log.source for worker in self._hub.workers()]
        collector = self._hub.collector()
        if collector is not None and collector.begun:
            sources += [chain._allocator for chain in collector.survivors._chains.values()]
        writers = [one for source in sources for one in (source._active, source._ready)]
        return {one.number for one in writers if one is not None}

    def look_at_table(self) -> None:
        """At rest: each row agrees with its log."""
        hub = self._hub
        owners = {process.row.index + 1 for process in hub.processes}
        written = self._written()
        for row in hub.table().rows():
            if row.state == LogState.COLLECTING and hub.sim.faults.hits:
                continue  # what could not be written to is left alone until the next start
            assert row.state != LogState.PREPARING, f"{row} is left: no thread makes it"
            fd = os.open(log_path(hub.store.logs, row.number), os.O_RDONLY)
            try:
                log = header.read(Osio(), fd, hub.store.secret)
            finally:
                os.close(fd)
            assert log is not None, f"log {row.number} has no header"
            if row.state == LogState.SEALED and hub.sim.faults.hits and log.state == header.FREE:
                continue  # the sync that should have made it free failed
            assert row.life == log.life, f"{row} is in another life: {log}"
            assert (row.state == LogState.FREE) == (log.state == header.FREE), f"{row} is not {log}"
            assert row.state != LogState.ACTIVE or hub.sim.faults.hits or row.number in written, (
                f"{row} is left: no writer has it"
            )
            is_owned = row.state == LogState.ACTIVE
            assert is_owned == (row.owner in owners), f"{row} has the wrong owner"
