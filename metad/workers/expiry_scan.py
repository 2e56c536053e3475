"""Which mail must be deleted: older than its user's expiry, or of a removed user.

A scan visits every mailbox that has mail, a hundred at a time, and looks up its user:

    a user          mail older than the expiry of the user, the domain or the hub is deleted
    a removed user  all mail that arrived up to a day after the removal is deleted; transactions
                    may have been open
    none            the mail is orphaned: kept, and reported.  A users database that is lost or
                    older must not cost mail

Rules of this file:

* While the clock is not trusted (metad.store.hub_time), nothing expires.
* Age is measured by hub time; if that is ahead of the clock, the clock counts.  So a machine that
  boots with a clock years ahead deletes nothing while its clock is being corrected.
* The database is opened for each scan, which sees a replaced file.
* A failure ends the scan; the next one starts from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from metad.store.gc.copy import Step, Tools
from metad.store.gc.expiry import Due, Expiry
from metad.store.ids import HubClock
from metad.store.mailbox_locks import MailboxLocks
from metad.users.account import Removed
from metad.users.database import UserDatabase
from metad.users.policy import Policies

# A scan takes about 15 us of CPU per mailbox: 15 seconds for a million.
EVERY_SECONDS = 3600.0
FIRST_SECONDS = 600.0
# Mailboxes that were in use are visited again after this time, at most so many of them.
AGAIN_SECONDS = 60.0
MOST_AGAIN = 1000
PIECE = 100
# Mail may still arrive after a removal, in transactions that were open.
GRACE_SECONDS = 86_400
SHOWN = 5


@dataclass(slots=True)
class Orphans:
    """Mailboxes with mail but without a user: how many, and the first of them."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def note(self, number: int) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(number)

    def __str__(self) -> str:
        return ", ".join(map(str, self.first)) + (", …" if self.count > SHOWN else "")


class ExpiryScan:
    """The scans of one process.  `figures`: since its start."""

    def __init__(self, users: Path, policies: Policies, tools: Tools, clock: HubClock) -> None:
        self._users = users
        self._policies = policies
        self._osio = tools.osio
        self._clock = clock
        self._index = tools.index
        self._report = tools.report
        self._locks = MailboxLocks(tools.osio, tools.store.locks)
        self._expiry = Expiry(tools, self._locks)
        self.figures = self._expiry.figures
        # Mailboxes with orphaned mail, as of the last scan.
        self.orphans = 0
        self.clock_is_suspect: Callable[[], int] = lambda: 0
        self._next = FIRST_SECONDS
        self._again = 0.0

    def close(self) -> None:
        self._locks.close()

    # -- when

    def steps(self, now: float) -> Iterator[Step]:
        """What is due `now`, in seconds since this process began: a scan, a second visit of
        mailboxes that were in use, or nothing."""
        if now >= self._next:
            yield from self.scan(now)
        elif self._expiry.in_use and now >= self._again:
            yield from self._visit_again(now)

    def scan(self, now: float) -> Iterator[Step]:
        """All mailboxes.  Raises MetadError (no users database, no log), OSError, lmdb.Error."""
        self._next = now + EVERY_SECONDS
        self._again = now + AGAIN_SECONDS
        self._expiry.in_use.clear()
        if self.clock_is_suspect():
            self._report("warning: nothing expires: the clock is not trusted (metad store time)")
            return
        orphans = Orphans()
        with_mail = (number for number, usage in self._index.usages() if usage.messages)
        yield from self._visit(with_mail, orphans)
        self._report_orphans(orphans)

    def _visit_again(self, now: float) -> Iterator[Step]:
        self._again = now + AGAIN_SECONDS
        numbers = list(islice(self._expiry.in_use, MOST_AGAIN))
        self._expiry.in_use.clear()
        yield from self._visit(iter(numbers), Orphans())

    def _visit(self, numbers: Iterator[int], orphans: Orphans) -> Iterator[Step]:
        with UserDatabase(self._users) as users:
            while piece := list(islice(numbers, PIECE)):
                yield Step.LOOKED
                yield from self._expiry.steps(self._due(users, piece, orphans))

    # -- whose mail

    def _due(self, users: UserDatabase, numbers: list[int], orphans: Orphans) -> list[Due]:
        """What must be deleted of these mailboxes; those without a user go to `orphans`."""
        found: list[Due] = []
        now = self._now()
        for number, owner in zip(numbers, users.owners(numbers), strict=True):
            if isinstance(owner, Removed):
                found.append(Due(number, (owner.time + GRACE_SECONDS) * 1_000_000))
            elif owner is None:
                orphans.note(number)
            else:
                seconds = self._policies.expiry(owner)
                if seconds:
                    found.append(Due(number, now - seconds * 1_000_000))
        return found

    def _now(self) -> int:
        """The limit in microseconds.  Ids contain hub time."""
        return min(self._clock.now_us(), self._osio.time_ns() // 1000)

    def _report_orphans(self, orphans: Orphans) -> None:
        """Report each change once."""
        if orphans.count and orphans.count != self.orphans:
            self._report(
                f"warning: orphaned mail is kept: {orphans.count} mailboxes are not in the users "
                f"database: {orphans}"
            )
        self.orphans = orphans.count
