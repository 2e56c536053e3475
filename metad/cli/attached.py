"""Commands that talk to every worker of a running hub.

Rules of this file:

* A command waits for a worker no longer than it allows: the other workers' answers are shown, and
  those that did not answer are named.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metad import limits
from metad.control_client import SILENCE, Client
from metad.errors import UnavailableError

_READ = 256 * limits.KIB
_MOST = 253  # descriptors in one message: SCM_MAX_FD of Linux
ANSWER_SECONDS = 5.0
ENDS_WITHIN = 2.0


class _Attaching(Client):
    """A control connection that keeps the descriptors received with the reply."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self.descriptors: list[int] = []

    def _receive(self) -> bytes:
        data, descriptors, _, _ = socket.recv_fds(self._sock, _READ, _MOST, socket.MSG_CMSG_CLOEXEC)
        self.descriptors += descriptors
        return data


@dataclass
class Worker:
    """A worker and the connection to it."""

    slot: int
    pid: int
    sock: socket.socket
    input: bytearray = field(default_factory=bytearray)

    @property
    def name(self) -> str:
        return f"worker {self.slot} (pid {self.pid})"

    def lines(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The complete lines, `data` included."""
        self.input += data
        *whole, rest = bytes(self.input).split(b"\n")
        self.input = bytearray(rest)
        for line in whole:
            yield json.loads(line)


def _attach(data: Path) -> list[Worker]:
    """A connection to each worker of the hub.  Raises UnavailableError."""
    client = _Attaching(data)
    with client:
        reply = client.request("attach")
    socks = [socket.socket(fileno=one) for one in client.descriptors]
    pairs = zip(reply["workers"], socks, strict=True)
    return [Worker(one["slot"], one["pid"], sock) for one, sock in pairs]


class Workers:
    """Connections to all workers of the hub on `data`.  Raises UnavailableError if none runs."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self.workers = _attach(data)
        if not self.workers:
            raise UnavailableError("no worker is serving yet", remedy="try again in a moment")
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for one in self.workers:
            one.sock.close()

    def send(self, request: dict[str, Any], *, first: bool = False) -> None:
        """Send each worker the same request, or only the `first` one."""
        line = json.dumps(request).encode() + b"\n"
        for one in self.workers[:1] if first else self.workers:
            self._send(one, line)

    def _send(self, one: Worker, line: bytes) -> None:
        one.sock.settimeout(ANSWER_SECONDS)
        with suppress(OSError):  # it has ended; reading will show that
            one.sock.sendall(line)
        one.sock.setblocking(False)
        self._selector.register(one.sock, selectors.EVENT_READ, one)

    def look_again(self, request: dict[str, Any]) -> None:
        """Send the request to workers that have started since; if the hub does not answer now, the
        next call asks again."""
        known = {key.data.pid for key in self._selector.get_map().values()}
        with suppress(UnavailableError):
            for one in _attach(self._data):
                if one.pid in known:
                    one.sock.close()
                    continue
                self.workers.append(one)
                self._send(one, json.dumps(request).encode() + b"\n")

    def hear(self, seconds: float) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        """Answers that arrive within `seconds`; None: that worker has finished its answer."""
        for key, _ in self._selector.select(max(0.0, seconds)):
            worker: Worker = key.data
            try:
                data = worker.sock.recv(_READ)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            for line in worker.lines(data):
                yield worker, line
            if not data:
                self._selector.unregister(worker.sock)
                yield worker, None

    def answers(self, deadline: float) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        """What arrives by `deadline` (monotonic seconds), as from `hear`; each second of silence is
        told.  Raises UnavailableError if a worker reports an error."""
        told = False
        try:
            while self.open and (left := deadline - time.monotonic()) > 0:
                heard = False
                for worker, line in self.hear(min(left, SILENCE)):
                    heard = True
                    if line is not None and "error" in line:
                        raise UnavailableError(f"{worker.name}: {line['error']}")
                    yield worker, line
                if not heard:
                    Client.tell_silence("the workers", deadline - time.monotonic())
                    told = True
        finally:
            if told:
                Client.tell_silence("the workers", 0)

    @property
    def open(self) -> bool:
        """Whether any worker has not finished its answer."""
        return bool(self._selector.get_map())


def ask_all(
    data: Path,
    request: dict[str, Any],
    took: Callable[[dict[str, Any]], None],
    seconds: float = ANSWER_SECONDS,
) -> list[str]:
    """Send a request to every worker and pass on the answers.  Returns the workers that were too
    slow.

    A worker that ends meanwhile, as old ones do after a reload, has no sessions.
    """
    with Workers(data) as workers:
        workers.send(request)
        silent = {one.pid: one.name for one in workers.workers}
        deadline = time.monotonic() + seconds
        for worker, line in workers.answers(deadline):
            if line is None:
                if worker.pid in silent and _has_ended(worker.pid):
                    del silent[worker.pid]
                continue
            if line.get("end"):
                silent.pop(worker.pid, None)
            took(line)
    return list(silent.values())


def _has_ended(pid: int) -> bool:
    """Whether a process that has closed its socket has ended, or ends in a moment."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], ENDS_WITHIN)[0])
    finally:
        os.close(descriptor)


def ask_one(data: Path, request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
    """A worker's answer; None: it ended, or did not answer in time."""
    with Workers(data) as workers:
        workers.send(request, first=True)
        deadline = time.monotonic() + seconds
        return next((line for _, line in workers.answers(deadline) if line is not None), None)
