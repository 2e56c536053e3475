"""The sort layer: each recipient's message into a Maildir, for another server to serve.

    tmp/NAME written and fsynced -> renamed to new/NAME,S=...,W=... -> new/ fsynced -> 250

The files have LF line ends and no stuffed dots.  S is the size of the file, W its size with CR LF,
as Dovecot reads them.

Rules of this file:

* `done(None)` is called after the fsync of every file and of every directory that got one.  Under
  load, many messages share the sync of a directory.
* A message that cannot be stored in all of its Maildirs is stored in none: files already renamed
  are removed, and the client retries.
* The template determines the path of a mailbox.  An address that would lead elsewhere is refused:
  no component is ever ".", "..", empty, or has a "/" that is not from the template.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import queue
import string
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metad.errors import NoSpaceError, RefusedError, Reply, SyncFailedError
from metad.layers.base import Done, Envelope, Incoming, Layer, LayerContext, Maildrop
from metad.layers.spool import SpooledIncoming
from metad.layers.texts import unstuffed
from metad.protocol.trace import in_front
from metad.store.ids import HubClock, IdMaker
from metad.system.osio import Buffer, Osio

TEMPLATE = "{domain}/{local}"
# Messages in a batch, which share directory syncs; threads that write and sync their files.
BATCH = 256
THREADS = 8
# Paths and existing Maildirs that a worker remembers.
REMEMBERED = 100_000
# NAME_MAX of all common file systems.
COMPONENT = 255
_FIELDS = {"address", "domain", "local", "id", "hash"}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class UnsafeAddressError(RefusedError):
    """An address that cannot be a directory name."""

    smtp = Reply(550, "5.1.1", "User unknown")
    ours = False


class NotServedError(RefusedError):
    pop3 = "[SYS/PERM] mail is served by another server"
    ours = False


class Places:
    """The path of the Maildir of a mailbox: root and template."""

    def __init__(self, root: Path, template: str) -> None:
        """Raises ValueError, which names the fault in the template."""
        self.root = root
        self._template = template
        names = {name for _, name, _, _ in _parsed(template) if name is not None}
        if not (names & {"address", "id"} or names >= {"local", "domain"}):
            raise ValueError("template: two mailboxes would be one: name {address}, {id}, or both "
                             "{local} and {domain}")  # fmt: skip
        self.directory(1, "x@y")

    def directory(self, mailbox: int, address: str) -> str:
        """Raises UnsafeAddressError, or ValueError if the template itself leads elsewhere."""
        local, _, domain = address.rpartition("@")
        digest = hashlib.blake2b(address.encode(), digest_size=1).hexdigest()
        values = {"address": address, "domain": domain or "localhost", "local": local or domain,
                  "id": str(mailbox), "hash": digest}  # fmt: skip
        for value in values.values():
            if "/" in value or not value.isprintable() or value in {"", ".", ".."}:
                raise UnsafeAddressError(f"{address!a}: no directory can have this name")
        parts = self._template.format_map(values).split("/")
        if any(part in {"", ".", ".."} for part in parts):
            raise ValueError("template: must be a relative path without . and ..")
        if any(len(part.encode()) > COMPONENT for part in parts):
            raise UnsafeAddressError(f"{address!a}: too long for the name of a directory")
        return os.path.join(self.root, *parts)


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        found = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template: {error}") from None
    for _, name, spec, conversion in found:
        if name is not None and (name not in _FIELDS or spec or conversion):
            allowed = ", ".join(sorted(f"{{{one}}}" for one in _FIELDS))
            raise ValueError(f"template: {{{name}}}: there are {allowed}")
    if not template.isprintable():
        raise ValueError("template: must be printable")
    return found


class SortLayer(Layer):
    """Delivers mail to Maildirs below `root`."""

    name = "sort"

    @classmethod
    def check_options(cls, options: Mapping[str, Any], data: Path) -> dict[str, Any]:
        root = options.get("root", str(data / "maildirs"))
        template = options.get("template", TEMPLATE)
        for name in options:
            if name not in {"root", "template"}:
                raise ValueError(f"{name}: unknown key; there are root and template")
        if not isinstance(root, str) or not root.startswith("/") or not root.isprintable():
            raise ValueError("root: must be an absolute path")
        if not isinstance(template, str):
            raise ValueError("template: must be a string")
        Places(Path(root), template)
        return {"root": root, "template": template}

    @classmethod
    def directories(cls, options: Mapping[str, Any]) -> list[Path]:
        return [Path(options["root"])]

    def start(self, context: LayerContext) -> None:
        self.osio = Osio()
        self.budget = context.budget
        self.spool = str(context.data / "spool")
        self._ids = IdMaker(HubClock(self.osio, context.area.clock_cell), context.row.index)
        options = context.options or self.check_options({}, context.data)
        self._places = Places(Path(options["root"]), options["template"])
        self._places.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._address_of = context.address_of
        self._known: dict[int, str] = {}
        self._loop = context.loop
        self._sorter = Sorter(self.osio, context.hostname)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sort", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join()
        self._sorter.close()

    def next_id(self) -> bytes:
        return self._ids.next()

    def check_mailbox(self, mailbox: int) -> None:
        self.directory(mailbox)

    def begin(self) -> Incoming:
        return SortIncoming(self)

    def open_mailbox(self, mailbox: int) -> Maildrop:
        raise NotServedError

    def directory(self, mailbox: int) -> str:
        """The Maildir of a mailbox, which never changes.  Raises RefusedError."""
        found = self._known.get(mailbox)
        if found is None:
            address = self._address_of(mailbox)
            if address is None:
                raise RefusedError(f"mailbox {mailbox} has no address")
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = self._known[mailbox] = self._places.directory(mailbox, address)
        return found

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def _run(self) -> None:
        """The thread: all waiting messages are one batch."""
        while (job := self._jobs.get()) is not None:
            batch = [job]
            last = False
            with suppress(queue.Empty):
                while len(batch) < BATCH and not last:
                    more = self._jobs.get_nowait()
                    last = more is None
                    if more is not None:
                        batch.append(more)
            self._sorter.deliver(batch)
            for one in batch:
                self._loop.call_soon_threadsafe(one.finish, one.error)
            if last:
                return


class SortIncoming(SpooledIncoming):
    """One incoming message for one or more Maildirs."""

    __slots__ = ("_layer",)

    def __init__(self, layer: SortLayer) -> None:
        super().__init__(layer.osio, layer.spool, layer.budget)
        self._layer = layer

    def commit(self, envelope: Envelope, done: Done) -> None:
        layer = self._layer
        wanted = [(layer.directory(one.mailbox), one.address) for one in envelope.recipients]
        layer.submit(Job(envelope, self, wanted, self.finished(done)))

    def chunks(self) -> Iterator[Buffer]:
        return iter(self.parts) if self.in_memory else self.pieces()


@dataclass(slots=True)
class Job:
    """A message for one or more Maildirs (directory, address as given in RCPT)."""

    envelope: Envelope
    body: SortIncoming
    wanted: list[tuple[str, str]]
    finish: Callable[[RefusedError | None], None]
    files: list[Delivery] = field(default_factory=list)
    error: RefusedError | None = None


@dataclass(slots=True)
class Delivery:
    """One file of a message: its present path and its final one."""

    job: Job
    maildir: str
    address: str
    name: str
    tmp: str = ""
    new: str = ""


class Sorter:
    """Delivers batches of messages to Maildirs.  Used by one thread at a time."""

    def __init__(self, osio: Osio, hostname: str) -> None:
        self._osio = osio
        # maildir(5): a name cannot contain "/" or ":".
        self._host = hostname.replace("/", "\\057").replace(":", "\\072")
        self._numbers = itertools.count(1)
        self._there: set[str] = set()
        self._threads = ThreadPoolExecutor(THREADS, "maildir")

    def close(self) -> None:
        self._threads.shutdown(wait=True)

    def deliver(self, jobs: list[Job]) -> None:
        """Set `error` of each message that is not durably in all of its Maildirs."""
        files = [
            Delivery(job, maildir, address, self._name())
            for job in jobs
            for maildir, address in job.wanted
        ]
        for one in files:
            one.job.files.append(one)
        # Only this thread makes directories; several threads write and sync files.
        for one in files:
            self._try(one, self._prepare)
        self._each(files, self._write)
        for one in files:
            self._try(one, self._rename)
        self._sync_directories(files)
        for job in jobs:
            if job.error is not None:
                self._withdraw(job)

    def _name(self) -> str:
        """maildir(5): unique by time, process and a number within it, on this host."""
        now = time.time_ns()
        seconds, rest = divmod(now // 1000, 1_000_000)
        return f"{seconds}.M{rest}P{os.getpid()}Q{next(self._numbers)}.{self._host}"

    def _try(self, one: Delivery, step: Callable[[Delivery], None]) -> None:
        """Run a step for a file whose message has not failed; an error fails the message."""
        if one.job.error is not None:
            return
        try:
            step(one)
        except OSError as error:
            no_room = error.errno in _NO_ROOM
            one.job.error = NoSpaceError(str(error)) if no_room else SyncFailedError(str(error))
        except Exception as error:
            one.job.error = RefusedError(f"{error!r}")

    def _each(self, files: list[Delivery], step: Callable[[Delivery], None]) -> None:
        if len(files) == 1:
            self._try(files[0], step)
            return
        list(self._threads.map(lambda one: self._try(one, step), files))

    def _prepare(self, one: Delivery) -> None:
        """The Maildir, created if missing; it may have been removed since it was last seen."""
        maildir = one.maildir
        if maildir in self._there and os.path.isdir(maildir):
            return
        for part in ("tmp", "new", "cur"):
            self._make(os.path.join(maildir, part))
        if len(self._there) >= REMEMBERED:
            self._there.clear()
        self._there.add(maildir)

    def _make(self, path: str) -> None:
        """Create a directory and its parents, each durable in its own parent."""
        try:
            self._osio.mkdir(path)
        except FileExistsError:
            return
        except FileNotFoundError:
            self._make(os.path.dirname(path))
            self._make(path)
            return
        self._osio.fsync_directory(os.path.dirname(path))

    def _write(self, one: Delivery) -> None:
        osio, envelope = self._osio, one.job.envelope
        one.tmp = os.path.join(one.maildir, "tmp", one.name)
        fd = osio.open(one.tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        size = 0
        try:
            for piece in _content(one):
                if osio.pwrite(fd, piece, size) != len(piece):
                    raise OSError(errno.ENOSPC, "short write", one.tmp)
                size += len(piece)
            osio.fsync(fd)
        finally:
            osio.close(fd)
        octets = len(in_front(envelope.sender, one.address)) + len(envelope.trace) + envelope.octets
        one.name = f"{one.name},S={size},W={octets}"

    def _rename(self, one: Delivery) -> None:
        new = os.path.join(one.maildir, "new", one.name)
        self._osio.rename(one.tmp, new)
        one.new = new

    def _sync_directories(self, files: list[Delivery]) -> None:
        """Sync each directory once; a message is stored only if all of its directories are
        synced."""
        wanted: dict[str, list[Delivery]] = {}
        for one in files:
            if one.new:
                wanted.setdefault(os.path.dirname(one.new), []).append(one)

        def sync(item: tuple[str, list[Delivery]]) -> None:
            def step(_: Delivery) -> None:
                self._osio.fsync_directory(item[0])

            good = [one for one in item[1] if one.job.error is None]
            if not good:
                return
            self._try(good[0], step)
            error = good[0].job.error
            for other in good[1:] if error is not None else ():
                other.job.error = error

        list(self._threads.map(sync, wanted.items()))

    def _withdraw(self, job: Job) -> None:
        for one in job.files:
            for path in filter(None, (one.new, "" if one.new else one.tmp)):
                with suppress(OSError):
                    self._osio.unlink(path)


def _content(one: Delivery) -> Iterator[bytes]:
    """The content of a file: Return-Path, Delivered-To, our trace and the message, with LF."""
    envelope = one.job.envelope
    head = in_front(envelope.sender, one.address) + envelope.trace
    yield head.replace(b"\r\n", b"\n")
    yield from unstuffed(one.job.body.chunks(), lf=True)
