"""A node's part in the directory: its lease, etcd's word, the view, and members that are away.

    every 2 s   renew the lease -> read identity, view and leases -> check -> adopt -> word
    a watch     wakes it when the view changes
    propose     read and check, compare and swap, adopt

Rules of this file:

* One of these at a time, so that what was read is never compared with what was learned after it.
* Word is kept only if the lease was renewed first, and the reading shows that it is still ours: no
  member has made a view in between in which this node is absent.
* Nothing is written into a directory that is not trusted (metad.cluster.seen), except that it is
  not, and the number of the next mailbox (metad.users.user_directory).
* No mail waits for any of this.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

from metad.cluster import absence, etcd_json, seen
from metad.cluster.absence import Absences, leaving
from metad.cluster.current_view import CurrentView
from metad.cluster.directory_keys import Found, Identity, Keys, as_found, read_directory
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import EtcdError, Outcome, missing, puts, reads, unchanged
from metad.cluster.seen import Seen, SeenFile
from metad.cluster.view import Membership, View
from metad.cluster.word import Word
from metad.errors import ClusterError
from metad.limits import CLUSTER_LEASE, CLUSTER_PULSE, CLUSTER_ROUND
from metad.system.backoff import Backoff

AGAIN = Backoff(0.1, 2.0)  # seconds until a watch that was lost is begun again
GAP = 5 * CLUSTER_ROUND
ELSEWHERE = "change users on another node; metad cluster status shows why"
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DirectoryNode:
    """What a directory needs of its node.  Cells: `frozen`, since when it is not trusted;
    `trusted`, which etcd is; `refused`, since when etcd refuses.  `clock_ns`: CLOCK_BOOTTIME;
    `takes_part`: whether it is not refused (cluster.old_disks)."""

    number: int
    start: bytes
    current: CurrentView
    seen: SeenFile
    word: Word
    frozen: memoryview
    trusted: memoryview
    refused: memoryview
    absent_after: float
    clock_ns: Callable[[], int]
    report: Report
    takes_part: Callable[[], bool] = lambda: True


class Directory:
    """Raises ClusterError, OSError when made, if what it has seen cannot be read."""

    def __init__(self, etcd: Etcd, node: DirectoryNode) -> None:
        self.etcd = etcd
        self.node = node
        self.keys = Keys(node.current.get().cluster)
        self.found: Found | None = None
        self.wake = asyncio.Event()
        self._seen: Seen | None = node.seen.load()
        self._lock = asyncio.Lock()
        self._lease = 0
        self._absences = Absences(node.absent_after, GAP)
        self._pulsed_ns = 0
        self._answered_ns = 0
        self._error = ""
        self._is_elsewhere = False
        self._show_frozen()

    @property
    def frozen(self) -> str:
        """Why the directory is not trusted; "": it is."""
        if self._is_elsewhere:
            return seen.ELSEWHERE
        return self._seen.frozen if self._seen is not None else ""

    @property
    def remedy(self) -> str:
        return seen.ELSEWHERE_REMEDY if self._is_elsewhere else seen.REMEDY

    @property
    def trusted(self) -> Identity | None:
        """Which directory in etcd is trusted; None: none, or it was not read yet."""
        known = self._seen
        if known is None or self.frozen or not known.id or self.found is None:
            return None
        return Identity(known.id, known.generation)

    def view(self) -> View:
        """The view in force.  Raises ClusterError, OSError."""
        return self.node.current.get()

    def leased(self) -> Collection[int]:
        """The members that had a lease at the last reading."""
        return self.found.alive if self.found is not None else ()

    def check(self) -> None:
        """Raises ClusterError unless the directory is trusted."""
        if self.frozen:
            raise ClusterError(f"the directory is not trusted: {self.frozen}; {self.remedy}")

    @property
    def distrusts(self) -> bool:
        """Whether the directory is not trusted by this node, which is a member."""
        return bool(self.frozen) and self.node.takes_part() and self._belongs()

    async def distrust(self, identity: Identity, reason: str) -> None:
        """Something else has shown that this directory was set back.  Raises ClusterError."""
        async with self._lock:
            if self._seen is None or self.trusted != identity:
                return
            try:
                self._note(replace(self._seen, frozen=reason))
            except OSError as error:
                raise ClusterError(f"{error.filename or seen.NAME}: {error.strerror}") from None

    def check_member(self) -> None:
        """Raises ClusterError unless this node takes part: its users may be old ones."""
        if not self.node.takes_part():
            raise ClusterError("this node no longer takes part in the cluster", remedy=ELSEWHERE)
        if not self._belongs():
            raise ClusterError("this node was removed from the cluster", remedy=ELSEWHERE)

    # -- rounds

    async def run(self) -> None:
        """Rounds, for ever; a watch makes them come at once."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._watch())
            both.create_task(self._rounds())

    async def _rounds(self) -> None:
        while True:
            self.wake.clear()
            await self.round()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLUSTER_ROUND):
                    await self.wake.wait()

    async def _watch(self) -> None:
        """Wake the rounds when the view changes.  One that begins wakes them too: what was missed
        meanwhile is read."""
        failures = 0
        while True:
            try:
                changes = self.etcd.watch(self.keys.view, f"{self.keys.view}\0", 0)
                async with aclosing(changes):
                    async for _ in changes:
                        failures = 0
                        self.wake.set()
            except EtcdError:  # a round reports it if etcd does not answer
                failures += 1
                await asyncio.sleep(AGAIN.delay(failures))

    async def round(self) -> None:
        """Whatever goes wrong is reported, once."""
        try:
            async with self._lock:
                await self._round()
        except (ClusterError, OSError) as error:
            if not self._error:
                self.node.report(f"warning: cluster: {error}; mail goes on")
            self._error = str(error)
            if isinstance(error, etcd_json.EtcdRefusesError):
                self.node.refused[0] = self.node.refused[0] or int(time.time())
            return
        self.node.refused[0] = 0
        if self._error:
            self._error = ""
            self.node.report("cluster: etcd answers again")

    async def _round(self) -> None:
        """Raises ClusterError, OSError."""
        if not self.node.takes_part():
            await self._leave()
            return
        sent_ns = self.node.clock_ns()
        renewed = await self._renew()
        found = await self._read()
        if self.frozen:
            self.node.word.clear()
            self._absences.forget()
            await self._warn(found)
            return
        own = found.alive.get(self.node.number)
        if renewed and own is not None and own.lease == self._lease:
            self.node.word.keep(sent_ns, found.epoch)
        elif self._belongs():
            await self._register(found)
        await self._pulse(found)
        await self._mark_absent(found)

    async def _warn(self, found: Found) -> None:
        """Tell the others in etcd itself.  One that was off has seen less than this node."""
        known, identity, row = self._seen, found.identity, found.identity_row
        if known is None or identity is None or row is None or self._is_elsewhere:
            return
        if self.distrusts and found.set_back < identity.generation <= known.generation:
            await self.etcd.transact(
                [unchanged(self.keys.identity, row.mod)],
                [puts(self.keys.set_back, b"%d" % known.generation)],
            )

    async def _leave(self) -> None:
        """A node that is refused has no word.  Its lease ends, and others mark it absent: of two
        nodes with one number, the other has the lease to itself."""
        self.node.word.clear()
        self._lease = 0
        self._absences.forget()
        await self._read()

    async def _renew(self) -> bool:
        """Whether our lease has been there all the time, and still is."""
        if self._lease and not await self.etcd.keep_alive(self._lease):
            self._lease = 0
        return bool(self._lease)

    def _belongs(self) -> bool:
        member = self.view().member(self.node.number)
        return member is not None and member.state is not Membership.REMOVED

    async def _register(self, found: Found) -> None:
        """A lease, from which the next round has word."""
        lease = self._lease or await self.etcd.grant(CLUSTER_LEASE)
        key = self.keys.alive(self.node.number)
        outcome = await self.etcd.transact(
            as_found(self.keys, found), [puts(key, self.node.start.hex().encode(), lease)]
        )
        self._lease = lease
        if outcome.succeeded:
            self.wake.set()

    async def _pulse(self, found: Found) -> None:
        now_ns = self.node.clock_ns()
        known = self._seen
        if known is None or (self._pulsed_ns and now_ns - self._pulsed_ns < CLUSTER_PULSE * 1e9):
            return
        count = max(known.pulse, found.pulse or 0) + 1
        identity = found.identity_row
        outcome = await self.etcd.transact(
            [unchanged(self.keys.identity, identity.mod if identity else 0)],
            [puts(self.keys.pulse(self.node.number), str(count).encode())],
        )
        if outcome.succeeded:
            self._pulsed_ns = now_ns
            self._note(replace(known, pulse=count, revision=max(known.revision, outcome.revision)))

    async def _mark_absent(self, found: Found) -> None:
        """Propose to go on without the first of those that have been away for long enough."""
        view = self.view()
        now = self.node.clock_ns() / 1e9
        for number in self._absences.look(view, found.alive, now):
            following = absence.without(view, number, self.node.number)
            if following is not None and view.digest == (found.view and found.view.digest):
                await self._swap(found, following)
                self.node.report(f"cluster: epoch {following.epoch}: node {number} is absent")
                self.wake.set()
                return

    # -- reading

    async def _read(self) -> Found:
        """Read, check, and adopt a newer view.  Raises ClusterError, OSError."""
        before = self.view()
        found = await read_directory(self.etcd, self.keys, self.node.number)
        self._answered_ns = self.node.clock_ns()
        self.found = found
        self._note_elsewhere(is_elsewhere=seen.is_elsewhere(self._seen, found))
        if self._is_elsewhere:
            return found
        looked = seen.look(self._seen, found, before.epoch)
        if not looked.frozen and found.epoch == before.epoch and found.view != before:
            looked = replace(looked, frozen=f"etcd has another view of epoch {before.epoch}")
        if looked.frozen:
            self._note(looked)
            return found
        if found.view is not None and found.epoch > self.view().epoch:
            self.node.current.adopt(found.view)
        known = self._seen
        if known is None or replace(looked, revision=known.revision) != known:
            self._note(looked)
        else:
            self._seen = looked
        return found

    def _note(self, known: Seen) -> None:
        """Make it durable, then rely on it.  Raises OSError."""
        was = self.frozen
        if known != self._seen:
            self.node.seen.keep(known)
        self._seen = known
        self._show_frozen()
        self._report_frozen(was)

    def _note_elsewhere(self, *, is_elsewhere: bool) -> None:
        was, self._is_elsewhere = self.frozen, is_elsewhere
        self._show_frozen()
        self._report_frozen(was)

    def _report_frozen(self, was: str) -> None:
        if self.frozen and self.frozen != was:
            self.node.report(
                f"warning: cluster: the directory is not trusted: {self.frozen}; mail goes on, "
                f"but neither the view nor users can be changed: {self.remedy}"
            )
        elif was and not self.frozen:
            self.node.report("cluster: the directory is trusted again")

    def _show_frozen(self) -> None:
        cell = self.node.frozen
        cell[0] = (cell[0] or int(time.time())) if self.frozen else 0
        known = self._seen
        self.node.trusted[0] = known.etcd if known is not None and not self.frozen else 0

    # -- changing the view

    async def propose(self, view: View) -> None:
        """Make `view` the cluster's, and use it here.  Raises ClusterError, OSError."""
        async with self._lock:
            found = await self._read()
            self.check()
            await self._swap(found, view)
        self.wake.set()

    async def _swap(self, found: Found, view: View) -> None:
        """Raises ClusterError, OSError."""
        if found.view is None or view.cluster != found.view.cluster:
            raise ClusterError("the view is of another cluster")
        if view.digest != found.view.digest:
            if view.epoch != found.epoch + 1:
                raise ClusterError(f"epoch {view.epoch} is late: the cluster has {found.epoch}")
            await self._compare_and_swap(found, found.view, view)
        self.node.current.adopt(view)
        if self._seen is not None:
            self._note(replace(self._seen, epoch=max(self._seen.epoch, view.epoch)))

    async def _compare_and_swap(self, found: Found, old: View, view: View) -> None:
        compare = as_found(self.keys, found)
        compare += [missing(self.keys.alive(number)) for number in leaving(old, view)]
        try:
            outcome = await self.etcd.transact(
                compare,
                [puts(self.keys.view, view.encode())],
                [reads(self.keys.view)],
            )
            is_there = outcome.succeeded or _has(outcome, view)
        except EtcdError:  # it may have succeeded
            is_there = _has(await self.etcd.read(reads(self.keys.view)), view)
            if not is_there:
                raise
        if not is_there:
            raise ClusterError(
                "the view has changed meanwhile, or a node that should be off still has a lease",
                remedy="wait 15 seconds after it ended, and give the command again",
            )

    # -- showing

    def status(self) -> dict[str, Any]:
        """For `metad cluster status`."""
        now_ns, found = self.node.clock_ns(), self.found
        age = self.node.word.age_s(now_ns)
        return {
            "frozen": self.frozen,
            "remedy": self.remedy if self.frozen else "",
            "error": self._error,
            "endpoint": self.etcd.endpoint,
            "answered_s": (now_ns - self._answered_ns) / 1e9 if self._answered_ns else None,
            "word_s": age,
            "epoch": found.epoch if found else 0,
            "revision": found.revision if found else 0,
            "generation": self._seen.generation if self._seen else 0,
            "alive": sorted(found.alive) if found else [],
            "away_s": {str(one): age for one, age in self._absences.ages(now_ns / 1e9).items()},
        }


def _has(outcome: Outcome, view: View) -> bool:
    rows = outcome.found[0] if outcome.found else ()
    return bool(rows) and rows[0].value == view.encode()
