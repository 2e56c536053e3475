"""A mailbox as this node has it: its lock and its list, for a session here or on another member."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import lmdb

from metad import limits
from metad.cluster.listed import Listed
from metad.errors import BehindError, RefusedError
from metad.layers.imported_ids import ImportedIds
from metad.layers.listing import STEP, Listing, WholeListing
from metad.layers.logs import LogLayer
from metad.store.ids import is_imported
from metad.store.index.tombstones import Tombstones

Done = Callable[[Listed | RefusedError], None]


class OwnMailbox:
    """One mailbox, for one session."""

    def __init__(self, log: LogLayer, tombstones: Tombstones, mailbox: int) -> None:
        self._log = log
        self._tombstones = tombstones
        self._mailbox = mailbox

    def lock(self) -> bool:
        return self._log.locks.acquire(self._mailbox)

    def unlock(self) -> None:
        self._log.locks.release(self._mailbox)

    def list(self, done: Done) -> None:
        """Everything that this node acknowledged before this call: mail, copies and deletions."""
        now = self._log.osio.monotonic_ns()
        self._list_since(now, now + int(limits.BEHIND_PATIENCE * 1e9), done)

    def _list_since(self, asked_ns: int, until_ns: int, done: Done) -> None:
        log = self._log
        try:
            if log.is_behind(self._mailbox, asked_ns):
                if log.osio.monotonic_ns() > until_ns:
                    done(BehindError())
                else:
                    again = partial(self._list_since, asked_ns, until_ns, done)
                    log.loop.call_later(limits.BEHIND_RETRY, again)
                return
            if log.pending.may_have(self._mailbox):
                done(RefusedError("the index lacks deletions of this mailbox"))
                return
            self._go_on(self._steps(done), done)
        except lmdb.Error as error:
            done(RefusedError(f"index: {error}"))

    def _steps(self, done: Done) -> Iterator[None]:
        """Entries before tombstones: a message deleted between the two is in both."""
        log, mailbox = self._log, self._mailbox
        listing = WholeListing(log.index, mailbox)
        yield from listing.steps()
        imported = ImportedIds(log, listing, is_complete=mailbox in log.complete_mailboxes)
        yield from imported.complete_index()
        uids: dict[bytes, str] = {}
        for first in range(1, listing.messages + 1, STEP):
            uids |= _uids(imported, listing, range(first, min(first + STEP, listing.messages + 1)))
            yield
        dead: list[bytes] = []
        while piece := self._tombstones.of_mailbox(mailbox, dead[-1] if dead else b"", STEP):
            dead += piece
            yield
        done(Listed(bytes(listing.packed), b"".join(dead), uids))

    def _go_on(self, steps: Iterator[None], done: Done) -> None:
        """Others get their turn between two pieces of a long listing."""
        try:
            next(steps)
        except StopIteration:
            return
        except lmdb.Error as error:
            done(RefusedError(f"index: {error}"))
        else:
            self._log.loop.call_soon(partial(self._go_on, steps, done))


def _uids(imported: ImportedIds, listing: Listing, numbers: range) -> dict[bytes, str]:
    """The unique ids that can be read here."""
    found = {}
    for number in numbers:
        message_id = listing.id(number)
        uid = imported.get(number, message_id) if is_imported(message_id) else None
        if uid:  # another member may know one that is lost here
            found[message_id] = uid
    return found
