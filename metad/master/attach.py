"""Connecting a command with the workers: `metad who`, `metad kick`, `metad trace`.

    command --{"command": "attach"}--> master --one end of a socket pair--> each worker
            <--the other ends, in the order of the reply's list--

Rules of this file:

* The master reads nothing of the traffic between them and waits for neither side: a worker that
  hangs only leaves its connection unanswered.
* Access is checked once, by the control socket: a process of the hub itself is refused there.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from metad.control import Connection
from metad.master.children import Child, ChildTable
from metad.system.shared_memory import Role


def reply(connection: Connection, children: ChildTable) -> None:
    """Give the command a connection to each worker that has begun to serve."""
    facts: list[dict[str, Any]] = []
    with contextlib.ExitStack() as opened:
        descriptors: list[int] = []
        for child in sorted(children.of(Role.WORKER), key=lambda one: (one.slot, one.pid)):
            end = opened.enter_context(_connected(child)) if child.ready else None
            if end is not None:
                descriptors.append(end.fileno())
                facts.append({"slot": child.slot, "pid": child.pid, "generation": child.generation})
        connection.reply_with({"workers": facts}, descriptors)


def _connected(child: Child) -> contextlib.AbstractContextManager[socket.socket | None]:
    """Our end of a new connection with a worker; None: it is dying.

    A worker that hangs with a full queue gets none either, but its end is closed, so the command
    sees that it does not answer.
    """
    if child.channel is None:
        return contextlib.nullcontext()
    end, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with other, contextlib.suppress(OSError):
        socket.send_fds(child.channel, [b"A"], [other.fileno()])
    return end
