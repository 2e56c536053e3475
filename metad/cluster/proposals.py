"""How a member's wish to change the view becomes the cluster's view.

    without etcd   the node adopts the view at once; the links carry it to the others
    with etcd      the directory process compares and swaps it there, then adopts it

Rules of this file:

* `done` is called once.  "": the view is the cluster's and in force here; otherwise why it is not.
  If an answer was lost, it may be so all the same.
* After a refusal the caller looks at the view in force and decides afresh: another member may have
  made another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from metad.cluster.local import request
from metad.cluster.view import View
from metad.errors import ClusterError
from metad.limits import CLUSTER_PROPOSAL

Done = Callable[[str], None]


class Proposals(Protocol):
    """`compares`: of two proposals for one epoch, one is refused.  Then any active member may
    propose."""

    compares: bool

    def propose(self, view: View, done: Done) -> None:
        """Make `view`, of the epoch after today's, the cluster's."""


class DirectProposals:
    """Without etcd.  `adopt` raises ClusterError, OSError.  `done` is called before it returns."""

    compares = False

    def __init__(self, adopt: Callable[[View], None]) -> None:
        self._adopt = adopt

    def propose(self, view: View, done: Done) -> None:
        try:
            self._adopt(view)
        except OSError as error:
            done(error.strerror or str(error))
        except ClusterError as error:
            done(str(error))
        else:
            done("")


class DirectoryProposals:
    """Over the socket of the directory process.  `done` is called in a later turn of the loop."""

    compares = True

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Path) -> None:
        self._loop = loop
        self._socket = socket
        self._tasks: set[asyncio.Task[None]] = set()

    def propose(self, view: View, done: Done) -> None:
        task = self._loop.create_task(self._ask(view, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, view: View, done: Done) -> None:
        try:
            message = {"op": "propose", "view": view.encode()}
            await request(self._socket, message, CLUSTER_PROPOSAL)
        except ClusterError as error:
            done(str(error))
        else:
            done("")
