"""The identity of a store: its id, secret and node number; and the paths of its parts.

DATA/store.json is written once, when the store is made, and read by every program that opens it.
The secret is also in every log header, so that losing a single file loses no mail.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from metad.errors import DataError
from metad.system.osio import Osio, read_file, write_file

NODES = 1 << 16
# Members of a cluster have numbers that follow each other, from the first one's: none that a
# cluster of this store has had is as far from its number as this.
APART = 256
_UNREADABLE = {errno.EIO, errno.EUCLEAN, errno.EBADMSG}
FORMAT = 1
CLUSTERED = 2  # the format of a clustered store: a program that knows no tombstones refuses it


class UnreadableStoreError(DataError):
    """store.json is there, but the disk cannot read it, or it makes no sense.  `what`: in short."""

    remedy = "start the hub, or restore the file from a backup"

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


@dataclass(frozen=True, slots=True)
class Store:
    """The identity of one store, and its paths as strings."""

    data: Path
    store_id: bytes
    secret: bytes
    node: int
    logs: str
    index: str
    locks: str
    quarantine: str
    spool: str
    clustered: bool = False


def make_store(
    data: Path, store_id: bytes, secret: bytes, node: int, *, clustered: bool = False
) -> Store:
    """`spool`: where large messages wait, in unlinked files, until they are complete.

    `clustered`: the index keeps tombstones for the other members of a cluster.
    """
    logs, index, locks, quarantine, spool = (
        str(data / name) for name in ("logs", "index", "locks", "quarantine", "spool")
    )
    return Store(
        data, store_id, secret, node, logs, index, locks, quarantine, spool, clustered=clustered
    )


def refuse_newer(osio: Osio, data: Path) -> None:
    """For what is written beside a store: raises DataError if a newer release made it."""
    with suppress(UnreadableStoreError, OSError):
        if (data / "store.json").exists():
            open_store(osio, data)


def open_store(osio: Osio, data: Path) -> Store:
    """The store in `data`.  Raises DataError if it is missing, UnreadableStoreError, OSError."""
    path = data / "store.json"
    try:
        fields = json.loads(read_file(osio, str(path)))
        if fields["format"] > CLUSTERED:
            raise DataError(
                f"{path}: format {fields['format']} is newer than this program",
                remedy="install the release of metad that wrote it",
            )
        return make_store(
            data,
            bytes.fromhex(fields["store_id"]),
            bytes.fromhex(fields["secret"]),
            int(fields["node"]),
            clustered=fields["format"] == CLUSTERED,
        )
    except FileNotFoundError:
        raise DataError(
            f"{path}: no store here",
            remedy="name the data directory by --data; metad start makes a new store",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableStoreError(f"{path}: damaged: {error}") from None
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        raise UnreadableStoreError(f"{path}: cannot be read: {error.strerror}") from None


def open_or_make_store(osio: Osio, data: Path) -> Store:
    """The store in `data`, made if there is none.  Raises DataError, OSError."""
    for name in ("logs", "index", "locks", "quarantine", "spool", "run"):
        try:
            osio.mkdir(str(data / name))
        except FileExistsError:
            continue
    if not (data / "store.json").exists():
        if any(name.endswith(".log") for name in osio.listdir(str(data / "logs"))):
            raise DataError(
                f"{data}: there are logs but no store.json", remedy="restore it from a backup"
            )
        write_identity(osio, make_store(data, secrets.token_bytes(16), secrets.token_bytes(32), 1))
    return open_store(osio, data)


def fresh_node(known: Collection[int]) -> int:
    """A node number apart from all known ones.  Random, not the next number: two that are drawn
    for copies of one store are two nodes."""
    near = {number for one in known for number in range(one - APART, one + APART + 1)}
    free = set(range(1, NODES - APART)) - near or set(range(1, NODES)) - set(known)
    return secrets.choice(tuple(free))


def write_identity(osio: Osio, store: Store) -> None:
    """Write store.json, durably.  Raises OSError."""
    fields = {
        "format": CLUSTERED if store.clustered else FORMAT,
        "store_id": store.store_id.hex(),
        "secret": store.secret.hex(),
        "node": store.node,
    }
    text = json.dumps(fields, indent=1) + "\n"
    write_file(osio, os.path.join(store.data, "store.json"), text.encode())
