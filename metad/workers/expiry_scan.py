"""Whose mail has to go: too old by its user's expiry, or of a user who was removed.

One walk looks at every mailbox that has mail, a hundred at a time, and asks the users database
whose it is:

    a user's       what is older than his expiry goes (his own, his domain's, everybody's)
    a removed one's  all that came before the removal and a day after it: sessions were under way
    nobody's       is kept, and said: a users database that is lost or older must not cost mail

Rules of this file:

* Age is hub time; but where that is ahead of the clock, the clock counts.  A machine that begins
  with a clock years ahead has some minutes to be set right in, and deletes nothing.
* The database is opened for a walk: what was put in its place meanwhile is seen by the next one.
* What fails ends the walk; the next one begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator
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

# A walk costs some 15 us per mailbox: of a million, some 15 seconds of a processor.
EVERY_SECONDS = 3600.0
FIRST_SECONDS = 600.0
# Mailboxes that were in use are looked at again after this time, so many of them.
AGAIN_SECONDS = 60.0
MOST_AGAIN = 1000
PIECE = 100
# After a removal mail may still come: by transactions that had begun.
GRACE_SECONDS = 86_400
SHOWN = 5


@dataclass(slots=True)
class Orphans:
    """Mailboxes with mail that nobody has: how many, and the first of them."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def note(self, number: int) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(number)

    def __str__(self) -> str:
        return ", ".join(map(str, self.first)) + (", …" if self.count > SHOWN else "")


class ExpiryScan:
    """The walks of one process.  `figures` are those since its start."""

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
        # Mailboxes with mail that nobody has, at the last walk.
        self.unknown = 0
        self._next = FIRST_SECONDS
        self._again = 0.0

    def close(self) -> None:
        self._locks.close()

    # -- when

    def steps(self, now: float) -> Iterator[Step]:
        """What is due `now`, in seconds since this process began: a walk, a second look, or
        nothing."""
        if now >= self._next:
            yield from self.walk(now)
        elif self._expiry.in_use and now >= self._again:
            yield from self._look_again(now)

    def walk(self, now: float) -> Iterator[Step]:
        """All mailboxes.  Raises MetadError (no users database, no log), OSError, lmdb.Error."""
        self._next = now + EVERY_SECONDS
        self._again = now + AGAIN_SECONDS
        self._expiry.in_use.clear()
        unknown = Orphans()
        with_mail = (number for number, usage in self._index.usages() if usage.messages)
        yield from self._look_at(with_mail, unknown)
        self._say_unknown(unknown)

    def _look_again(self, now: float) -> Iterator[Step]:
        self._again = now + AGAIN_SECONDS
        numbers = list(islice(self._expiry.in_use, MOST_AGAIN))
        self._expiry.in_use.clear()
        yield from self._look_at(iter(numbers), Orphans())

    def _look_at(self, numbers: Iterator[int], unknown: Orphans) -> Iterator[Step]:
        with UserDatabase(self._users) as users:
            while piece := list(islice(numbers, PIECE)):
                yield Step.LOOKED
                yield from self._expiry.steps(self._due(users, piece, unknown))

    # -- who

    def _due(self, users: UserDatabase, numbers: list[int], unknown: Orphans) -> list[Due]:
        """What has to go of these mailboxes; `unknown` hears of those that nobody has."""
        found: list[Due] = []
        now = self._now()
        for number, owner in zip(numbers, users.owners(numbers), strict=True):
            if isinstance(owner, Removed):
                found.append(Due(number, (owner.time + GRACE_SECONDS) * 1_000_000))
            elif owner is None:
                unknown.note(number)
            else:
                seconds = self._policies.expiry(owner)
                if seconds:
                    found.append(Due(number, now - seconds * 1_000_000))
        return found

    def _now(self) -> int:
        """Microseconds.  Ids were made of hub time."""
        return min(self._clock.now_us(), self._osio.time_ns() // 1000)

    def _say_unknown(self, unknown: Orphans) -> None:
        """Once for each change."""
        if unknown.count and unknown.count != self.unknown:
            self._report(
                f"warning: the mail of {unknown.count} mailboxes is nobody's by the users "
                f"database, and is kept: {unknown}"
            )
        self.unknown = unknown.count
