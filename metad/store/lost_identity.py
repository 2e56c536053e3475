"""store.json made again from the headers of the logs, at the start that cannot read it.

Rules of this file:

* Each header repeats the store's id and secret, under a check keyed with that secret.  All logs
  whose header verifies must agree, and there must be one.
* The node number of a header may be an old one: a restore gives the store another.  So the store
  gets a number that no header has, as from a restore: no id made so far has it.
* A node of a cluster has its number from there, so its store.json must come from a backup.
* A file that is missing is not made again: the directory may be an unfinished copy.
* The damaged file keeps a name in quarantine/.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from metad.errors import DataError
from metad.store.identity import (
    Store,
    UnreadableStoreError,
    fresh_node,
    make_store,
    open_or_make_store,
    open_store,
    write_identity,
)
from metad.store.log import header
from metad.store.log.header import LogHeader
from metad.system.osio import Osio

_CLUSTER = "cluster"  # in DATA, of a store that is in a cluster or enters one


def open_at_start(osio: Osio, data: Path) -> tuple[Store, str]:
    """The store, made if there is none, and a warning if store.json was made again.

    Holding DATA/lock.  Raises DataError, OSError.
    """
    try:
        return open_or_make_store(osio, data), ""
    except UnreadableStoreError as error:
        store, nodes = _of_logs(osio, data, error)
        store = make_store(data, store.store_id, store.secret, fresh_node(nodes))
        kept = _keep(osio, store)
        write_identity(osio, store)
        return store, (
            f"{error.what}; made again from the logs' headers, with the new node number "
            f"{store.node}; {kept}"
        )


def open_to_check(osio: Osio, data: Path) -> tuple[Store, str]:
    """The store as the next start will have it, but for its node number, and what is wrong with
    store.json.  Nothing is written.  Raises DataError."""
    try:
        return open_store(osio, data), ""
    except UnreadableStoreError as error:
        store, _ = _of_logs(osio, data, error)
        return store, f"{error.what}; the next start makes it again from the logs' headers"


def _of_logs(osio: Osio, data: Path, error: UnreadableStoreError) -> tuple[Store, set[int]]:
    """What the headers say: a store without a node number, and the node numbers.

    Raises DataError.
    """
    if os.path.lexists(data / _CLUSTER):
        raise DataError(
            f"{error.what}; the number of a node in a cluster is nowhere else: restore the file "
            "from a backup of this node"
        )
    headers = _headers(osio, data)
    known = {(log.store_id, log.secret) for log in headers}
    if len(known) != 1:
        why = "the logs' headers do not agree" if known else "no log has a good header"
        raise DataError(f"{error.what}, and {why}: restore it from a backup")
    (store_id, secret), *_ = known
    return make_store(data, store_id, secret, 0), {log.node for log in headers}


def _headers(osio: Osio, data: Path) -> list[LogHeader]:
    """Those that verify; logs that cannot be read are left out."""
    found = []
    for name in sorted(osio.listdir(str(data / "logs"))):
        if not name.endswith(".log"):
            continue
        with suppress(OSError):
            fd = osio.open(str(data / "logs" / name), os.O_RDONLY)
            try:
                secret = header.own_secret(osio, fd)
                log = header.read(osio, fd, secret) if secret is not None else None
            finally:
                osio.close(fd)
            if log is not None:
                found.append(log)
    return found


def _keep(osio: Osio, store: Store) -> str:
    """Give the damaged file a second name, before its first one is that of the new file."""
    path = str(store.data / "store.json")
    try:
        name = f"store.json.{osio.stat(path).st_ino}.unknown"
        with suppress(FileExistsError):
            osio.link(path, os.path.join(store.quarantine, name))
        osio.fsync_directory(store.quarantine)
    except OSError as error:
        return f"the damaged file could not be kept: {error}"
    return f"the damaged file is quarantine/{name}"
