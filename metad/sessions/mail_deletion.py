"""`metad mail delete` in a worker: the effect of DELE and QUIT, without a POP3 session.

Rules of this file:

* It takes the mailbox's lock, like a session: if the mailbox is in use, the request is refused.
* Messages are named by their unique ids, so none is confused with a later one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from metad import limits
from metad.errors import RefusedError
from metad.layers.base import Maildrop
from metad.sessions.context import WorkerContext
from metad.system.shared_memory import Cell

IDS_PER_LINE = 25  # in the log


class MailDeletion:
    """One request: {"mailbox": number, "address": …, "uids": […]}.  `answer` is called once, with
    {"deleted": […], "missing": […]} or {"refused": reason}."""

    def __init__(
        self,
        context: WorkerContext,
        request: dict[str, Any],
        answer: Callable[[dict[str, Any]], None],
    ) -> None:
        """Raises KeyError, TypeError and ValueError for an invalid request."""
        self._context = context
        self._answer = answer
        self._mailbox = int(request["mailbox"])
        self._address = str(request["address"])
        self._uids = {str(one) for one in request["uids"]}
        self._drop: Maildrop | None = None
        self._asked_ns = time.monotonic_ns()
        self._until = context.loop.time() + limits.BEHIND_PATIENCE

    def begin(self) -> None:
        """Open the mailbox, once all mail acknowledged before the request is in the index."""
        loop, layer = self._context.loop, self._context.layer
        if layer.opens_later:
            layer.open_later(self._mailbox, self._opened)
            return
        if loop.time() < self._until and layer.is_behind(self._mailbox, self._asked_ns):
            loop.call_later(limits.BEHIND_RETRY_MOST, self.begin)
            return
        outcome: Maildrop | Exception
        try:
            outcome = layer.open_mailbox(self._mailbox)
        except Exception as error:
            outcome = error
        self._opened(outcome)

    def _opened(self, outcome: Maildrop | Exception) -> None:
        if isinstance(outcome, Exception):  # a layer's
            self._finish({"refused": getattr(outcome, "pop3", repr(outcome))})
            return
        self._drop = outcome
        try:
            steps = outcome.list_messages()
        except Exception as error:
            self._finish({"refused": getattr(error, "pop3", repr(error))})
        else:
            self._list_on(outcome, steps)

    def _list_on(self, drop: Maildrop, steps: Iterator[None]) -> None:
        """Other sessions get their turn between pieces of the listing."""
        try:
            next(steps)
        except StopIteration:
            self._delete(drop)
        except Exception as error:
            self._finish({"refused": getattr(error, "pop3", repr(error))})
        else:
            self._context.loop.call_soon(self._list_on, drop, steps)

    def _delete(self, drop: Maildrop) -> None:
        numbers = {drop.uid(one): one for one in range(1, len(drop) + 1)}
        found = {uid: numbers[uid] for uid in self._uids if uid in numbers}
        chosen = sorted(found.values())

        def done(error: RefusedError | None) -> None:
            if error is not None:
                self._finish({"refused": str(error)})
                return
            uids = [drop.uid(one) for one in chosen]
            self._log(uids)
            self._context.row.add(Cell.DELETED, len(uids))
            self._finish({"deleted": uids, "missing": sorted(self._uids - set(uids))})

        try:
            drop.delete(chosen, done)
        except Exception as error:  # a layer's
            self._finish({"refused": repr(error)})

    def _log(self, uids: list[str]) -> None:
        for at in range(0, len(uids), IDS_PER_LINE):
            fields = {"user": self._address, "ids": ",".join(uids[at : at + IDS_PER_LINE])}
            self._context.log.event("mail", "deleted by command", fields)

    def _finish(self, result: dict[str, Any]) -> None:
        drop, self._drop = self._drop, None
        if drop is not None:
            drop.close()
        self._answer(result)
