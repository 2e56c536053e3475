"""A layer's environment in a worker, for its tests (metad.layers.testing): its own loop, shared
memory and data directory.

Rule of this file: only the interface of a layer is used, and nothing is left behind.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import posix_ipc

from metad.config.model import StoreConfig
from metad.errors import RefusedError
from metad.layers.base import Done, Envelope, Incoming, Layer, LayerContext, Maildrop, Recipient
from metad.store import hub_time
from metad.store.identity import open_or_make_store
from metad.system.osio import Osio
from metad.system.shared_memory import SharedArea

SECONDS = 30.0
TRACE = b"Received: from client.example.org\r\n\tby hub.example.org; now\r\n"
SENDER = "sender@client.example.org"
_serial = 0


class Suite(Protocol):
    """What a bench needs to know about its tests."""

    @property
    def layer(self) -> type[Layer]: ...
    @property
    def options(self) -> Mapping[str, Any]: ...

    def prepare(self, context: LayerContext) -> None: ...


class BenchLoop:
    """The part of an event loop that a layer may use.  It runs while a test waits."""

    def __init__(self) -> None:
        self._ready: deque[Callable[[], object]] = deque()
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._wake = threading.Condition()

    def call_soon(self, callback: Callable[[], object]) -> None:
        with self._wake:
            self._ready.append(callback)
            self._wake.notify()

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        with self._wake:
            self._later.append((time.monotonic() + delay, callback))
            self._wake.notify()

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> None:
        self.call_soon(lambda: callback(*args))

    def run_until(self, done: Callable[[], bool]) -> None:
        """Run callbacks until `done()`; AssertionError after SECONDS."""
        deadline = time.monotonic() + SECONDS
        while not done():
            demand(time.monotonic() < deadline, "the request was not done in time")
            with self._wake:
                now = time.monotonic()
                due = [one for one in self._later if one[0] <= now]
                self._later = [one for one in self._later if one[0] > now]
                self._ready.extend(callback for _, callback in due)
                if not self._ready:
                    self._wake.wait(0.001 if self._later else 0.05)
                ready, self._ready = self._ready, deque()
            for callback in ready:
                callback()


class Bench:
    """A layer's environment in a worker, in its own directory."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self.data = Path(tempfile.mkdtemp(prefix="metad-layer-"))
        self.loop = BenchLoop()
        self.reports: list[str] = []
        self.layer: Layer | None = None

    def __enter__(self) -> Bench:
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.data)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.layer is not None:
                self.stop()
        finally:
            shutil.rmtree(self.data)

    def start(self) -> None:
        suite = self._suite
        open_or_make_store(Osio(), self.data)
        area, semaphore = private_area()
        hub_time.begin(Osio(), area, 0)
        context = LayerContext(
            data=self.data,
            settings=StoreConfig(layer=suite.layer.name, log_size=32 << 20),
            area=area,
            semaphore=semaphore,
            row=area.process(1),
            loop=self.loop,
            report=self.reports.append,
            hostname="hub.example.org",
            options=suite.layer.check_options(suite.options, self.data),
            address_of=lambda mailbox: f"user{mailbox}@example.org",
        )
        suite.prepare(context)
        layer = suite.layer()
        layer.start(context)
        self.layer = layer

    def stop(self) -> None:
        layer, self.layer = self.its_layer, None
        layer.stop()

    def restart(self) -> None:
        """Like stopping and starting a hub."""
        self.stop()
        self.start()

    @property
    def its_layer(self) -> Layer:
        if self.layer is None:
            raise AssertionError("the layer is not started")
        return self.layer

    # -- mail

    def open(self, mailbox: int) -> Maildrop:
        """Open a mailbox and list its messages, including all acknowledged before."""
        asked_ns = time.monotonic_ns()
        self.loop.run_until(lambda: not self.its_layer.is_behind(mailbox, asked_ns))
        drop = self.its_layer.open_mailbox(mailbox)
        while not drop.is_listed:
            for _ in drop.list_messages():
                pass
        return drop

    def send(self, mailboxes: Sequence[int], message: bytes, pieces: int = 0) -> Sent:
        """Deliver a message, whole or in pieces of `pieces` octets, without waiting for the
        result."""
        layer = self.its_layer
        incoming = layer.begin()
        wire = stuff(message)
        step = pieces or len(wire)
        for at in range(0, len(wire), step):
            incoming.write(wire[at : at + step])
        sent = Sent(incoming)
        envelope = self.envelope(mailboxes, message)
        with sent.handing_over():
            incoming.commit(envelope, sent.done)
        return sent

    def envelope(self, mailboxes: Sequence[int], message: bytes) -> Envelope:
        """The envelope that a worker would make for `message`."""
        return make_envelope(self.its_layer, mailboxes, message)

    def put(self, mailboxes: Sequence[int], message: bytes, pieces: int = 0) -> None:
        """Deliver a message that must be accepted."""
        sent = self.send(mailboxes, message, pieces)
        self.loop.run_until(lambda: sent.calls > 0)
        demand(sent.error is None, f"a message was refused: {sent.error}")

    def delete(self, drop: Maildrop, numbers: Sequence[int]) -> None:
        sent = Sent(None)
        with sent.handing_over():
            drop.delete(numbers, sent.done)
        self.loop.run_until(lambda: sent.calls > 0)
        demand(sent.error is None, f"a deletion was refused: {sent.error}")


class Sent:
    """A delivered message: how many answers it got, and the last one."""

    def __init__(self, incoming: Incoming | None) -> None:
        self.incoming = incoming
        self.calls = 0
        self.error: RefusedError | None = None
        self.thread: int | None = None
        self._within = False

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        """During the call that receives `done`, which must not call it."""
        self._within = True
        yield
        self._within = False

    @property
    def done(self) -> Done:
        def called(error: RefusedError | None) -> None:
            demand(not self._within, "done was called within the call that got it")
            self.calls += 1
            self.error = error
            self.thread = threading.get_ident()

        return called


def make_envelope(layer: Layer, mailboxes: Sequence[int], message: bytes) -> Envelope:
    """What a worker has asked of a layer before a message, and the envelope that it would make."""
    layer.check_space()
    layer.transaction_started()
    for mailbox in mailboxes:
        layer.check_mailbox(mailbox)
    recipients = tuple(Recipient(one, f"user{one}@example.org") for one in mailboxes)
    dots = len(re.findall(rb"(?m)^\.", message))
    return Envelope(
        layer.next_id(), "192.0.2.1", "client.example.org", SENDER, recipients, TRACE,
        len(message), dots,
    )  # fmt: skip


def demand(so: bool, otherwise: str) -> None:
    """Like `assert`, which -O would remove."""
    if not so:
        raise AssertionError(otherwise)


def stuff(message: bytes) -> bytes:
    """The wire format of a message of whole lines (RFC 5321 section 4.5.2)."""
    return re.sub(rb"(?m)^\.", b"..", message) + b".\r\n"


def private_area() -> tuple[SharedArea, posix_ipc.Semaphore]:
    """Private shared memory, which ends with this process."""
    global _serial
    _serial += 1
    name = f"/metad-layer-{os.getpid()}-{_serial}"
    semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=1)
    semaphore.unlink()
    return SharedArea.unnamed(), semaphore
