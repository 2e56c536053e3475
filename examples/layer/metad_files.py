"""A layer for metad: every message a file of its own, one directory per mailbox.

    root/2/000660f9….mail     one message in wire format, Return-Path and Delivered-To in front

The worked example of docs/layers.md: small, whole, and it passes metad.layers.testing.  It is not
quick: a sync per message and recipient.

    [store]
    layer = "files"
    [layer]
    root = "/var/lib/metad-files"      (not set: "files" in metad's data directory)
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from metad.errors import DamagedError, MailboxInUseError, NoSpaceError, SyncFailedError
from metad.layers.base import Done, Envelope, Incoming, Layer, LayerContext, Maildrop
from metad.store.ids import HubClock, IdMaker
from metad.system.osio import Osio

SUFFIX = ".mail"
THREADS = 4


class FilesLayer(Layer):
    """One of these in every worker; several workers use the same directories."""

    name = "files"

    @classmethod
    def check_options(cls, options: Mapping[str, Any], data: Path) -> dict[str, Any]:
        root = options.get("root", str(data / "files"))
        if set(options) - {"root"}:
            raise ValueError("the only setting is root")
        if not isinstance(root, str) or not root.startswith("/"):
            raise ValueError("root: must be an absolute path")
        return {"root": root}

    @classmethod
    def directories(cls, options: Mapping[str, Any]) -> list[Path]:
        return [Path(options["root"])]

    def start(self, context: LayerContext) -> None:
        self.osio = Osio()
        self.root = Path(context.options["root"])
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Rows are one per process: so no two workers make the same id.
        self._ids = IdMaker(HubClock(self.osio, context.area.clock_cell), context.row.index)
        self._loop = context.loop
        # Nothing may block the worker's loop, and a sync does.
        self._threads = ThreadPoolExecutor(THREADS, "files")

    def stop(self) -> None:
        self._threads.shutdown(wait=True)

    def next_id(self) -> bytes:
        return self._ids.next()

    def begin(self) -> Incoming:
        return FilesIncoming(self)

    def open_mailbox(self, mailbox: int) -> Maildrop:
        return FilesMaildrop(self, mailbox)

    def directory(self, mailbox: int) -> Path:
        return self.root / str(mailbox)

    def off_the_loop(self, work: Any, done: Done) -> None:
        """Do `work` in a thread; `done` on the loop, with the error that it deserves."""

        def run() -> None:
            error: SyncFailedError | NoSpaceError | None = None
            try:
                work()
            except OSError as failure:
                error = SyncFailedError(str(failure))
            self._loop.call_soon_threadsafe(done, error)

        self._threads.submit(run)


class FilesIncoming(Incoming):
    """A message in memory until it is complete."""

    def __init__(self, layer: FilesLayer) -> None:
        self._layer = layer
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def commit(self, envelope: Envelope, done: Done) -> None:
        body = envelope.trace + b"".join(self._chunks)
        self._layer.off_the_loop(lambda: self._store(envelope, body), done)

    def abort(self) -> None:
        self._chunks = []

    def _store(self, envelope: Envelope, body: bytes) -> None:
        """All or none: what is there of a message that failed is removed again."""
        made: list[Path] = []
        try:
            for mailbox, address in envelope.recipients:
                head = f"Return-Path: <{envelope.sender}>\r\nDelivered-To: {address}\r\n"
                made.append(self._file(mailbox, envelope.id, head.encode() + body))
        except OSError:
            for path in made:
                path.unlink(missing_ok=True)
            raise

    def _file(self, mailbox: int, message_id: bytes, octets: bytes) -> Path:
        """Written aside, synced, renamed, and the directory synced: then it is there for good."""
        osio = self._layer.osio
        directory = self._layer.directory(mailbox)
        if not directory.is_dir():
            directory.mkdir(exist_ok=True)
            osio.fsync_directory(str(directory.parent))
        path = directory / f"{message_id.hex()}{SUFFIX}"
        aside = path.with_suffix(".new")
        with aside.open("wb") as file:
            file.write(octets)
            file.flush()
            osio.fsync(file.fileno())
        osio.rename(str(aside), str(path))
        osio.fsync_directory(str(directory))
        return path


class FilesMaildrop(Maildrop):
    """A mailbox in one session.  The lock is the kernel's: it goes with the worker that dies."""

    def __init__(self, layer: FilesLayer, mailbox: int) -> None:
        self._layer = layer
        directory = layer.directory(mailbox)
        directory.mkdir(exist_ok=True)
        self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise MailboxInUseError from None
        # The listing is frozen here; ids sort by time.
        self._files = sorted(directory.glob(f"*{SUFFIX}"))
        self._sizes = [_size(path.read_bytes()) for path in self._files]

    @property
    def octets(self) -> int:
        return sum(self._sizes)

    def __len__(self) -> int:
        return len(self._files)

    def size(self, number: int, /) -> int:
        return self._sizes[number - 1]

    def uid(self, number: int, /) -> str:
        return self._files[number - 1].stem

    def fetch(self, number: int, most: int, /) -> Iterator[bytes]:
        """An iterator: the file may have to be read from the disk, so not on the loop."""
        try:
            yield self._files[number - 1].read_bytes()
        except OSError as error:
            raise DamagedError(str(error)) from None

    def delete(self, numbers: Sequence[int], done: Done) -> None:
        paths = [self._files[number - 1] for number in numbers]

        def remove() -> None:
            for path in paths:
                path.unlink(missing_ok=True)
            if paths:
                self._layer.osio.fsync_directory(str(paths[0].parent))

        self._layer.off_the_loop(remove, done)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _size(wire: bytes) -> int:
    """Octets as POP3 counts them: without the dots that only the wire has, and the final line."""
    stuffed = wire.count(b"\r\n..") + wire.startswith(b"..")
    return len(wire) - stuffed - len(b".\r\n")
