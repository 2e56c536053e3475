"""The users of a simulated hub, and the scan that deletes old and orphaned mail.

Mailboxes are accounts: number 1 is postmaster's, the others are made at first.  One account may be
removed: the next scan deletes its mail, including later arrivals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from metad.config.parse import parse
from metad.store.gc.expiry import Due
from metad.users.database import UserDatabase
from metad.users.policy import Policies
from metad.workers.expiry_scan import ExpiryScan, Orphans
from tests.sim.plan import BOXES

if TYPE_CHECKING:
    from tests.sim.collector import CollectorProcess

LAST = BOXES  # the account that may be removed
CONFIG = """
hostname = "hub.example"
[users]
expiry = "1d"
"""


@cache
def policies() -> Policies:
    return Policies(parse(CONFIG, None, Path("/nowhere"), {}))


def address(box: int) -> str:
    return f"u{box}@example.org"


def make_users(path: Path) -> None:
    """Accounts whose ids are the numbers of the mailboxes."""
    with UserDatabase(path, create=True) as users:
        for box in range(2, BOXES + 1):
            assert users.add(address(box)).id == box


def remove_last(path: Path) -> None:
    with UserDatabase(path) as users:
        users.remove(address(LAST))


class Scan(ExpiryScan):
    """The real scan.  `expiring` is told what it is about to delete."""

    expiring: Callable[[Due], None]

    def _due(self, users: UserDatabase, numbers: list[int], orphans: Orphans) -> list[Due]:
        found = super()._due(users, numbers, orphans)
        for due in found:
            self.expiring(due)
        return found


def make_scan(process: CollectorProcess) -> Scan:
    hub = process.hub
    scan = Scan(hub.data / "users", policies(), process.tools, process.clock)
    scan.clock_is_suspect = lambda: hub.area.clock_suspect
    scan.expiring = lambda due: hub.judge.expiring(due.mailbox, due.before)
    return scan
