"""A worker's answers to `metad who`, `metad kick`, `metad trace` and `metad mail delete`.

The master passes a connection over the worker's channel (metad.master.attach).  The command sends
one line of JSON and gets lines of JSON, the last with "end".

Rules of this file:

* Nothing is stored for it: facts are read from the sessions on request.
* Sessions are shown a few at a time, so that thousands of them do not hold up mail.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, cast

from metad.sessions.connection import Connection
from metad.sessions.context import WorkerContext
from metad.sessions.facts import Selection, connections, facts
from metad.sessions.mail_deletion import MailDeletion
from metad.sessions.watch import Follower, Watch

PIECE = 50  # sessions in one turn of the loop
_LINE = 65_536
_DESCRIPTORS = 4


class Inspectors:
    """Accepts the connections that the master passes."""

    def __init__(self, context: WorkerContext, channel: socket.socket) -> None:
        self._context = context
        self._channel = channel
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watch = Watch(context)
        context.loop.add_reader(channel.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(
                self._channel, 64, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, descriptors = b"", []
        if not data:  # the master is gone, and this process will end in a moment
            self._context.loop.remove_reader(self._channel.fileno())
        for one in descriptors:
            self._begin(socket.socket(fileno=one))

    def _begin(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        loop = self._context.loop
        task = loop.create_task(
            loop.connect_accepted_socket(lambda: Inspector(self._context, self._watch), sock)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Inspector(asyncio.Protocol):
    """One command.  It is not a session, so it does not keep a worker from ending."""

    _transport: asyncio.Transport

    def __init__(self, context: WorkerContext, watch: Watch) -> None:
        self._context = context
        self._watch = watch
        self._follower: Follower | None = None
        self._input = b""
        self._lines: Iterator[dict[str, Any]] = iter(())
        self._paused = False
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._begun:
            return
        self._input += data
        line, end, _ = self._input.partition(b"\n")
        if end:
            self._begun = True
            self._begin(line)
        elif len(self._input) > _LINE:
            self._transport.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            self._watch.remove(follower)

    def _send(self, line: dict[str, Any]) -> bool:
        """For a follower: send a line.  Returns whether the command keeps up."""
        if self._paused or self._transport.is_closing():
            return False
        self._transport.write(json.dumps(line).encode() + b"\n")
        return True

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._follower is None:
            self._go_on()

    def _begin(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            if request["command"] == "delete":
                MailDeletion(self._context, request, self._answer).begin()
                return
            if request["command"] == "trace":
                self._follower = Follower(request, self._send)
                self._watch.add(self._follower)
                return
            sessions = Selection.parse(request).choose(connections(self._context))
            self._lines = {"who": self._who, "kick": self._kick}[request["command"]](sessions)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            self._lines = iter([{"end": True, "error": f"not a request: {error!r}"}])
        self._go_on()

    def _answer(self, answer: dict[str, Any]) -> None:
        self._lines = iter([answer | {"end": True}])
        self._go_on()

    def _go_on(self) -> None:
        """Send the next few lines; other sessions get their turn before the next ones."""
        if self._paused or self._transport.is_closing():
            return
        lines = list(islice(self._lines, PIECE))
        self._transport.write(b"".join(json.dumps(one).encode() + b"\n" for one in lines))
        if lines and not lines[-1].get("end"):
            self._context.loop.call_soon(self._go_on)
        else:
            self._transport.close()

    def _who(self, sessions: Iterable[Connection]) -> Iterator[dict[str, Any]]:
        shown = 0
        for one in sessions:
            if not one._lost:
                shown += 1
                yield facts(one)
        known = len(connections(self._context))
        yield {"end": True, "connecting": max(0, self._context.limiter.connections - known)}

    def _kick(self, sessions: Iterable[Connection]) -> Iterator[dict[str, Any]]:
        for one in sessions:
            if one._lost:
                continue
            found = facts(one)
            self._context.log.event("worker", "kicked", _logged(found))
            one.kick()
            yield found
        yield {"end": True}


def _logged(found: dict[str, Any]) -> dict[str, object]:
    return {key: found[key] for key in ("session", "protocol", "client", "user", "state")}
