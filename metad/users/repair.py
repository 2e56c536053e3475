"""Repairs a damaged users database at a start: its readable part becomes the database.

    users/data.mdb damaged -> its rows, as far as they can be read -> users/salvaged/data.mdb
      -> the damaged file to quarantine/, the new one in its place

Rules of this file:

* The database is the only copy of its accounts, so nothing is discarded: the damaged file stays in
  quarantine/.
* Accounts may be missing afterwards, so it is marked as lost: mail for unknown users gets 451 until
  it is restored, or until `metad user accept-loss`.
* LMDB writes one of two meta pages after everything else is on the disk.  If a power cut destroys
  that page, the other one has every acknowledged change, and its pages are unchanged.
* A table is read from both ends, each in a child: one bad page loses only its own rows.
* A mirror of etcd reads all rows again.
* In a cluster without etcd the journal of changes becomes empty.  A copy then takes all users from
  its source again.  The source keeps its lineage: the copies keep the users that are lost here.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import lmdb
import msgpack

from metad.errors import DataError
from metad.system import lmdb_pages
from metad.system.osio import Osio
from metad.system.trial import in_child, reason_in_child
from metad.users import journal
from metad.users.account import from_record, unpack_record
from metad.users.lmdb_env import (
    DIRECTORY,
    FORMAT,
    ID,
    LOST,
    MAP_SIZE,
    MEMBERS,
    META,
    SPARE_TABLES,
    TABLES,
)  # fmt: skip

SECONDS = 1.0  # for the trial; bad pages that it does not reach are found when they are used
_LOOK_EVERY = 4096
_FILE = "data.mdb"
# A cursor that meets a bad page fails its transaction, and may report only that.
_DAMAGE = (
    lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.BadTxnError,
)  # fmt: skip


def repair_users(osio: Osio, users: Path, quarantine: Path) -> list[str]:
    """Repair the database in `users` if it is damaged.  Returns a message for the operator.

    No hub uses it meanwhile.  Raises OSError, lmdb.Error.
    """
    path = users / _FILE
    shutil.rmtree(users / "salvaged", ignore_errors=True)  # from an interrupted start
    if not path.exists():
        return []
    told = []
    if lmdb_pages.restore_meta(osio, str(path)):
        _mark_lost(users)
        told.append(
            "one of the two meta pages of the users database was damaged and is restored from the "
            "other; the last change before may be missing"
        )
    reason = reason_in_child(lambda: _why_damaged(osio, users))
    if reason is not None:
        told.append(_salvage(osio, users, quarantine, reason))
    return told


def _why_damaged(osio: Osio, users: Path) -> str | None:
    """Read every page, or as many as time allows."""
    until = time.monotonic() + SECONDS
    try:
        env = _open(users)
        # A command may be changing it, so the pages are compared inside a transaction without
        # changes.
        with env.begin(write=True) as txn:
            wrong = lmdb_pages.why_wrong(osio, str(users / _FILE))
            txn.abort()
        if wrong is not None:
            return wrong
        for table in (*_tables(env), *_journal(env)):
            for count, _ in enumerate(_rows(env, table)):
                if not count % _LOOK_EVERY and time.monotonic() > until:
                    return None
    except _DAMAGE as error:
        return str(error)
    except (lmdb.Error, OSError):  # a full disk, say: it is no better or worse than before
        return None
    return None


def _open(users: Path, *, create: bool = False) -> lmdb.Environment:
    return lmdb.open(
        str(users), map_size=MAP_SIZE, max_dbs=len(TABLES) + SPARE_TABLES, create=create, mode=0o600
    )


def _tables(env: lmdb.Environment) -> Iterator[bytes]:
    """The existing ones."""
    for name in (*TABLES, MEMBERS):
        with suppress(lmdb.NotFoundError):
            env.open_db(name, create=False, dupsort=name == MEMBERS)
            yield name


def _journal(env: lmdb.Environment) -> Iterator[bytes]:
    """The table of changes, in a cluster."""
    with suppress(lmdb.NotFoundError):
        env.open_db(journal.CHANGES, create=False)
        yield journal.CHANGES


def _rows(env: lmdb.Environment, name: bytes, *, backwards: bool = False) -> Iterator[Any]:
    """All rows of a table.  LMDB may take a bad page for one with few rows or none: raises
    lmdb.CorruptedError then, too."""
    table = env.open_db(name, create=False, dupsort=name == MEMBERS)
    count = 0
    with env.begin(table) as txn, txn.cursor() as cursor:
        rows = cursor.iterprev() if backwards else cursor.iternext()
        for count, row in enumerate(rows, 1):  # noqa: B007 - the last one is needed
            yield row
        expected = txn.stat(table)["entries"]
    if count != expected:
        raise lmdb.CorruptedError(f"{count} of {expected} rows of {name.decode()} can be read")


# -- salvage


def _salvage(osio: Osio, users: Path, quarantine: Path, reason: str) -> str:
    """Make a database from the readable rows.  Returns a message for the operator."""
    aside = users / "salvaged"
    aside.mkdir(mode=0o700)
    with _open(aside, create=True) as env:
        tables = {name: env.open_db(name, dupsort=name == MEMBERS) for name in (*TABLES, MEMBERS)}
        whole = True
        for name, table in tables.items():
            whole &= _copy_table(users, env, name, table)
        with env.begin(tables[META], write=True) as txn:
            _note_loss(txn, tables[META])
            if txn.get(journal.LINEAGE) is not None:
                env.open_db(journal.CHANGES, txn)
            accounts = txn.stat(tables[b"accounts"])["entries"]
            if accounts and txn.get(b"format") is None:
                _remake_meta(txn, tables[b"accounts"])
            has_format = txn.get(b"format") is not None
        env.sync(True)
    kept = _set_aside(osio, users, quarantine)
    if has_format:
        osio.rename(str(aside / _FILE), str(users / _FILE))
    for directory in (aside, users, quarantine):
        osio.fsync_directory(str(directory))
    shutil.rmtree(aside)
    with suppress(OSError):
        osio.unlink(str(users / "lock.mdb"))
    found = f"{accounts} accounts are" if has_format else "no accounts are"
    return (
        f"the users database was damaged ({reason}): {found} kept, "
        f"{'all' if whole else 'as many as could be read'}; "
        f"the damaged file is {kept.parent.name}/{kept.name}"
    )


def _set_aside(osio: Osio, users: Path, quarantine: Path) -> Path:
    """Move the damaged file away.  Returns its new path."""
    name = f"users-{int(time.time())}.mdb"
    for kept in (quarantine / name, users / name):
        try:
            osio.rename(str(users / _FILE), str(kept))
            return kept
        except OSError as error:
            # A confined process cannot move it to another directory before Linux 5.19.
            if error.errno != errno.EXDEV:
                raise
    raise OSError(errno.EXDEV, f"{users / _FILE} cannot be renamed")


def _remake_meta(txn: Any, accounts: Any) -> None:
    """Fill the table "meta" from the accounts, in a separate transaction."""
    greatest = unkeyed = 0
    for key, raw in txn.cursor(accounts):
        greatest = max(greatest, ID.unpack(key)[0])
        with suppress(DataError, KeyError):
            unkeyed += from_record(greatest, unpack_record(raw)).unkeyed
    txn.put(b"secret", secrets.token_bytes(32))
    txn.put(b"next", ID.pack(greatest + 1))
    txn.put(b"unkeyed", ID.pack(unkeyed))
    txn.put(b"format", msgpack.packb(FORMAT))


def _copy_table(users: Path, env: lmdb.Environment, name: bytes, table: Any) -> bool:
    """Copy a table from both ends.  Returns whether all of it was readable from one end."""
    for backwards in (False, True):
        rows = msgpack.Unpacker(use_list=False)

        def take(data: bytes, rows: msgpack.Unpacker = rows) -> None:
            rows.feed(data)
            with env.begin(table, write=True) as txn:
                for key, value in rows:
                    with suppress(lmdb.BadValsizeError):  # not a row
                        txn.put(key, value)

        def tell(out: BinaryIO, *, backwards: bool = backwards) -> None:
            with suppress(lmdb.NotFoundError):
                for row in _rows(_open(users), name, backwards=backwards):
                    out.write(msgpack.packb(row))

        if in_child(tell, take) == 0:
            return True
    return False


def _mark_lost(users: Path) -> None:
    with _open(users) as env:
        meta = env.open_db(META, create=False)
        with env.begin(meta, write=True) as txn:
            _note_loss(txn, meta)


def _note_loss(txn: Any, meta: Any) -> None:
    """Unknown users get 451 from now on; a cluster's copy until it has all users again."""
    txn.put(LOST, b"%d" % time.time(), db=meta)
    if txn.get(DIRECTORY, db=meta) is not None:
        txn.put(DIRECTORY, msgpack.packb(("", 0)), db=meta)
    if journal.source(txn, meta):
        journal.put_lineage(txn, meta, journal.Lineage())
