"""Nodes of a cluster in one process: real layers, stores, sockets and TLS, on one loop."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

from metad.cluster import transport
from metad.cluster.certificates import Pair, make_ca, make_member
from metad.cluster.identity import CA, CA_KEY, MEMBER, MEMBER_KEY, VIEW, directory, own_fingerprint
from metad.cluster.view import Member, Membership, View
from metad.cluster.view_file import ViewFile
from metad.config.model import StoreConfig
from metad.errors import BehindError, MailboxInUseError, RefusedError
from metad.layers.base import LayerContext, Maildrop, NotAtHandError
from metad.layers.bench import make_envelope, private_area, stuff
from metad.layers.cluster import ClusterLayer
from metad.store import hub_time, identity
from metad.store.index.index import Index
from metad.store.index.tombstones import Origin, keep_tombstones
from metad.system.osio import Osio

CLUSTER = "c" * 32
SECONDS = 30.0


class Node:
    """One node, with one worker.  `port` stays its own over restarts."""

    def __init__(self, bench: ClusterBench, number: int, ca: Pair) -> None:
        self._bench = bench
        self.number = number
        self.data = bench.place / f"node{number}"
        self.data.mkdir()
        self.reports: list[str] = []
        self._make_store()
        place = directory(self.data)
        place.mkdir()
        own = make_member(ca, number)
        for name, text in (
            (CA, ca.certificate), (CA_KEY, ca.key), (MEMBER, own.certificate), (MEMBER_KEY, own.key)
        ):  # fmt: skip
            (place / name).write_text(text)
        self.host = f"127.0.0.{number + 1}"
        sock = self._listen(0)
        self.port = sock.getsockname()[1]
        sock.close()
        self.is_up = False

    def _make_store(self) -> None:
        secret = bytes([self.number]) * 32
        store = identity.make_store(self.data, bytes(16), secret, self.number, clustered=True)
        (self.data / "logs").mkdir()
        identity.write_identity(Osio(), store)
        identity.open_or_make_store(Osio(), self.data)
        index = Index(store.index)
        keep_tombstones(index, Origin(self.number, 1))
        index.close()

    def _listen(self, port: int) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.host, port))
        sock.listen(64)
        sock.setblocking(False)
        return sock

    @property
    def member(self) -> Member:
        fingerprint = own_fingerprint(directory(self.data))
        return Member(
            self.number, f"{self.host}:{self.port}", fingerprint, Membership.ACTIVE, healed=False
        )

    def keep(self, view: View) -> None:
        ViewFile(Osio(), str(directory(self.data) / VIEW)).keep(view)

    # -- its life

    def start(self) -> None:
        self._area, semaphore = private_area()
        hub_time.begin(Osio(), self._area, 0)
        context = LayerContext(
            data=self.data,
            settings=StoreConfig(layer="log", log_size=8 << 20),
            area=self._area,
            semaphore=semaphore,
            row=self._area.process(1),
            loop=self._bench.loop,
            report=self.reports.append,
            hostname="hub.example.org",
        )
        self.layer = ClusterLayer()
        self.layer.start(context)
        self._socket = self._listen(self.port)
        self.layer.serve_peers(self._socket)
        self.is_up = True

    def stop(self) -> None:
        """As a node that is switched off: nothing answers there."""
        if self.is_up:
            self.is_up = False
            self.layer.stop()
            self._socket.close()
            self._bench.turn()

    def cut(self, *members: int) -> None:
        """Requests of this node to those members fail, until it is cut from none."""
        peers: Any = self.layer.peers
        if not hasattr(peers, "cut"):
            peers.cut, real = set(), peers.request

            def request(member: int, kind: Any, parts: Any, answered: Any, patience: float) -> None:
                if member in peers.cut:
                    from metad.cluster.answers import LinkFailed

                    answered(LinkFailed("cut"))
                else:
                    real(member, kind, parts, answered, patience)

            peers.request = request
        peers.cut = set(members)

    # -- mail

    def send(self, mailboxes: Sequence[int], message: bytes) -> RefusedError | None:
        """The answer to a message: None is a 250."""
        envelope = make_envelope(self.layer, mailboxes, message)
        return self._bench.wait(lambda done: self.layer.deliver(envelope, stuff(message), done))

    def stream(self, mailboxes: Sequence[int], message: bytes) -> RefusedError | None:
        """The same for a message that comes in pieces."""
        incoming = self.layer.begin_for(mailboxes)
        wire = stuff(message)
        for at in range(0, len(wire), 1 << 20):
            incoming.write(wire[at : at + (1 << 20)])
        envelope = make_envelope(self.layer, mailboxes, message)
        return self._bench.wait(lambda done: incoming.commit(envelope, done))

    def try_open(self, mailbox: int) -> Maildrop:
        """A session's mailbox.  Raises what the session would get."""
        outcome = self._bench.wait(lambda done: self.layer.open_later(mailbox, done))
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, Maildrop)
        return outcome

    def open(self, mailbox: int) -> Maildrop:
        """The same; a mailbox in use is waited for, as a session waits.  If the listing took too
        long, as on a busy machine, it is tried again, as by a client."""
        found: list[Maildrop] = []

        def is_open() -> bool:
            with suppress(MailboxInUseError, BehindError):
                found.append(self.try_open(mailbox))
            return bool(found)

        self._bench.until(is_open, "the mailbox is free")
        return found[0]

    def text(self, drop: Maildrop, number: int) -> bytes:
        """A message as RETR sends it.  Raises RefusedError."""
        while True:
            try:
                return b"".join(bytes(one) for one in drop.fetch(number, 1 << 20))
            except NotAtHandError:
                error = self._bench.wait(lambda done: drop.bring(number, done))
                if error is not None:
                    raise error from None

    def texts(self, mailbox: int) -> list[bytes]:
        drop = self.open(mailbox)
        try:
            return [self.text(drop, number) for number in range(1, len(drop) + 1)]
        finally:
            drop.close()

    def listing(self, mailbox: int) -> list[tuple[str, int]]:
        """UIDL and LIST."""
        drop = self.open(mailbox)
        try:
            return [(drop.uid(one), drop.size(one)) for one in range(1, len(drop) + 1)]
        finally:
            drop.close()

    def delete(self, mailbox: int, *numbers: int) -> RefusedError | None:
        """The answer to QUIT after DELE of these."""
        drop = self.open(mailbox)
        try:
            return self._bench.wait(lambda done: drop.delete(numbers, done))
        finally:
            drop.close()


class ClusterBench:
    """A cluster of so many nodes, all up."""

    def __init__(self, count: int, copies: int = 2, entering: int = 0) -> None:
        """`entering`: the number of a node that has just joined the others, with nothing."""
        self.place = Path(tempfile.mkdtemp(prefix="metad-cluster-"))
        self._written = 0
        self.loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self.loop)
        ca = make_ca(CLUSTER)
        self.nodes = [Node(self, number, ca) for number in range(1, count + 1)]
        members = tuple(node.member for node in self.nodes)
        self.view = View(CLUSTER, 1, members, copies, copies, "refuse")
        if entering:
            fresh = self.view.with_member(entering, state=Membership.ENTERING, healed=True)
            self.view = View(CLUSTER, 1, fresh, copies, copies, "refuse")

    def __enter__(self) -> ClusterBench:
        self._count_writes()
        for node in self.nodes:
            node.keep(self.view)
            node.start()
        return self

    def __exit__(self, *_: object) -> None:
        kind: Any = transport._Connection
        kind.write = self._real_write
        for node in self.nodes:
            node.stop()
        self.turn()
        self.loop.close()
        shutil.rmtree(self.place)

    def turn(self) -> None:
        """Let the loop do what is due."""
        self.loop.run_until_complete(asyncio.sleep(0))

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"never: {what}"
            self.loop.run_until_complete(asyncio.sleep(0.001))

    def wait(self, begin: Callable[[Callable[[Any], None]], object]) -> Any:
        """Begin something; what its `done` gets."""
        outcome: list[Any] = []
        begin(outcome.append)
        self.until(lambda: bool(outcome), "an answer")
        assert len(outcome) == 1
        return outcome[0]

    @property
    def views(self) -> list[View]:
        return [node.layer.peers.view() for node in self.nodes if node.is_up]

    def settle(self) -> View:
        """Let seconds pass until all that are up are active and have walked in one view."""
        deadline = time.monotonic() + SECONDS
        while True:
            before = self.views
            self.tick()
            self.loop.run_until_complete(asyncio.sleep(0.02))
            view, up = before[0], [node for node in self.nodes if node.is_up]
            walked = {node.layer.walked[0] for node in up}
            whole = set(view.active).issuperset(node.number for node in up)
            same = self.views == before == [view] * len(up) and view.copies == view.read_copies
            if whole and same and walked == {view.epoch} and view.alone == "refuse":
                return view
            assert time.monotonic() < deadline, f"it does not settle: {self.views}"

    def bytes_written(self) -> int:
        """By all links so far, before TLS."""
        return self._written

    def _count_writes(self) -> None:
        kind: Any = transport._Connection
        write = self._real_write = kind.write

        def counting(connection: Any, data: bytes) -> None:
            self._written += len(data)
            write(connection, data)

        kind.write = counting

    def tick(self) -> None:
        """The second passes in every worker."""
        for node in self.nodes:
            if node.is_up:
                node.layer.tick()
