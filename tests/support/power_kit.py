"""Power cuts: from recorded changes to the states that a disk may be in afterwards.

Unsynced data may or may not be on the disk, sector by sector and in any order; a sector being
written may be garbage.  A name is certain only after a sync of its directory.  After a *failed*
sync the kernel considers the pages clean: their data may never reach the disk, whatever is synced
later.

Rules of this file:

* The sector is 512 octets, and the only unit that is whole or not.
* The given random source makes all choices, so a state is reproducible.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping

from tests.support.osio_kit import Op

SECTOR = 512
MODES = ("none", "all", "prefix", "suffix", "half", "hole", "one", "trash", "torn")
Write = tuple[int, bytes]


class File:
    """One file: what is durable, what is under way, what a failed sync left undecided."""

    def __init__(self, durable: bytes = b"") -> None:
        self.durable = bytearray(durable)
        self.pending: list[Write] = []
        self.limbo: list[Write] = []

    def write(self, offset: int, data: bytes) -> None:
        """Cut into sectors; an empty piece says how long the file is."""
        end = offset + len(data)
        at = offset
        while at < end:
            stop = min(end, (at // SECTOR + 1) * SECTOR)
            self.pending.append((at, data[at - offset : stop - offset]))
            at = stop
        if not data:
            self.pending.append((offset, b""))

    def truncate(self) -> None:
        self.durable, self.pending, self.limbo = bytearray(), [], []

    def sync(self) -> None:
        for offset, data in self.pending:
            put(self.durable, offset, data)
        if self.limbo:
            synced = {offset // SECTOR for offset, _ in self.pending}
            self.limbo = [each for each in self.limbo if each[0] // SECTOR not in synced]
        self.pending.clear()

    def fail_to_sync(self) -> None:
        self.limbo += self.pending
        self.pending.clear()

    def image(self, rng: random.Random, mode: str) -> bytes:
        """The file after a cut."""
        if not self.pending and not self.limbo:
            return bytes(self.durable)
        data = bytearray(self.durable)
        for source in (self.limbo, self.pending):
            for offset, piece in survivors(source, rng, mode):
                put(data, offset, piece)
        return bytes(data)


def put(data: bytearray, offset: int, piece: bytes) -> None:
    end = offset + len(piece)
    if end > len(data):
        data.extend(bytes(end - len(data)))
    data[offset:end] = piece


def survivors(writes: list[Write], rng: random.Random, mode: str) -> Iterable[Write]:
    """Those of the sectors under way that reached the disk, some perhaps as trash."""
    count = len(writes)
    if mode == "all" or not count:
        return writes
    if mode == "none":
        return []
    at = rng.randrange(count)
    if mode in ("prefix", "torn"):
        kept = writes[:at]
        return [*kept, trash(writes[at], rng)] if mode == "torn" else kept
    if mode == "suffix":
        return writes[at:]
    if mode == "hole":
        return writes[:at] + writes[at + 1 :]
    if mode == "one":
        return [writes[at]]
    kept = [each for each in writes if rng.random() < 0.5]
    if mode == "trash":
        return [trash(each, rng) if rng.random() < 0.3 else each for each in kept]
    return kept


def trash(write: Write, rng: random.Random) -> Write:
    """A sector is trash as a whole, with what lay in it beside the piece that was written."""
    if not write[1]:
        return write
    return write[0] // SECTOR * SECTOR, rng.randbytes(SECTOR)


class Disk:
    """A directory of files that changes are applied to, and that can lose its power."""

    def __init__(self, durable: Mapping[str, bytes] | None = None) -> None:
        self.names = {path: File(data) for path, data in (durable or {}).items()}
        self.durable_names = dict(self.names)
        self.steps: list[Op] = []

    def apply(self, op: Op) -> None:
        file = self.names.get(op.path)
        if op.kind in ("create", "rename", "unlink"):
            self._name(op)
        elif op.kind == "dir-sync":
            self.durable_names = dict(self.names)
            self.steps.clear()
        elif file is None:
            return  # a file without a name any more
        elif op.kind == "write":
            file.write(op.offset, op.data)
        elif op.kind == "size":
            file.write(op.offset, b"") if op.offset else file.truncate()
        elif op.kind == "sync":
            file.sync()
        elif op.kind == "bad-sync":
            file.fail_to_sync()

    def _name(self, op: Op) -> None:
        if op.kind == "create":
            self.names[op.path] = File()
        elif op.kind == "rename":
            self.names[op.path] = self.names.pop(op.data)
        else:
            self.names.pop(op.path, None)
        self.steps.append(op)

    @property
    def settled(self) -> bool:
        """True if nothing is under way: then there is only one state."""
        return not self.steps and not any(f.pending or f.limbo for f in self.names.values())

    def state(self, rng: random.Random, mode: str) -> dict[str, bytes]:
        """Names and contents after a cut at this moment."""
        names = dict(self.durable_names)
        done = {"none": 0, "all": len(self.steps)}.get(mode, rng.randrange(len(self.steps) + 1))
        made = dict(self.names)
        for step in reversed(self.steps):  # the files that renames were about, by their old names
            if step.kind == "rename" and step.path in made:
                made[step.data] = made[step.path]
        for step in self.steps[:done]:
            if step.kind == "create":
                names[step.path] = made.get(step.path) or File()
            elif step.kind == "rename":
                names[step.path] = names.pop(step.data)
            else:
                names.pop(step.path, None)
        return {path: file.image(rng, mode) for path, file in names.items()}


def lay_out(state: Mapping[str, bytes], old: str, new: str) -> None:
    """Put a state's files below `new`, where they lay below `old`.  The directory is emptied."""
    for name in os.listdir(new):
        os.unlink(os.path.join(new, name))
    for path, data in state.items():
        fd = os.open(new + path.removeprefix(old), os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, data)
        os.close(fd)
