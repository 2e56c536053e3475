"""The LMDB environment of the users database: create, open, check, translate its errors.

Rules of this file:

* One object per process and path (LMDB's rule), opened after the fork only.
* Creating it is one transaction: two simultaneous commands make one database, and a crash makes
  none.
* The format number is checked first; a database of a newer format is refused and not changed.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import lmdb._envid  # a late import would fail when a checkout below /root is out of reach
import msgpack

from metad import limits
from metad.errors import SPACE, DataError, MetadError, NoSpaceError, OsError, UnavailableError
from metad.system.osio import Osio
from metad.users.account import (
    DAMAGED,
    POSTMASTER,
    POSTMASTER_ID,
    Account,
    pack_entry,
    pack_record,
)
from metad.users.id_allocator import IdAllocator
from metad.users.journal import CHANGES, JournaledTransaction, MirrorError, refuse_mirror

FORMAT = 1
# One constant for all processes: address space, not memory; room for some 30 million accounts.
MAP_SIZE = 16 * limits.GIB
MAX_READERS = 1024
# Octets of a key: LMDB's own limit.
MAX_KEY = 511

ID = struct.Struct(">Q")
# In the table "meta": how many accounts have passwords of each kind (login_kinds.py).
KINDS = b"kinds"
# Users existed once, and this database was made without them: in "meta" until the loss is accepted.
LOST = b"lost"
# Whose etcd has the users, and the revision that is here: in "meta" of a cluster's mirror.
DIRECTORY = b"directory"
META = b"meta"
TABLES = (META, b"addresses", b"accounts", b"domains", b"removed")
# Made when it is first missed: databases from before there were aliases do not have it.
MEMBERS = b"members"
SPARE_TABLES = 8

Self = TypeVar("Self", bound="Environment")


class Environment:
    """The open environment and its tables, as attributes for subclasses."""

    def __init__(
        self,
        path: Path | str,
        *,
        create: bool = False,
        iterations: int = limits.SCRAM_ITERATIONS,
    ) -> None:
        """`iterations`: the PBKDF2 iteration count of new keys."""
        self.path = Path(path)
        self.iterations = iterations
        self._translated = Translated(self.path)
        self._numbers = IdAllocator(self.path)
        if create:
            _make_directory(self.path)
        elif not (self.path / "data.mdb").exists():
            raise self._missing()
        with self._translated:
            self._env = lmdb.open(
                str(self.path), map_size=MAP_SIZE, max_dbs=len(TABLES) + SPARE_TABLES,
                max_readers=MAX_READERS, mode=0o600, create=create,
            )  # fmt: skip
        try:
            with self._translated:
                self._open_tables(create)
        except BaseException:
            self._env.close()
            raise

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._env.close()

    def _missing(self) -> UnavailableError:
        return UnavailableError(
            f"{self.path}: there is no users database yet", remedy="metad user add makes it"
        )

    def _open_tables(self, create: bool) -> None:
        if create:
            self._initialise()
        self._meta = self._table(META)
        with self._env.begin(self._meta) as txn:
            self._check_format(txn.get(b"format"))
            self._secret = bytes(txn.get(b"secret", b""))
            # Whether these users are those of an etcd (metad.users.rows).
            self.in_directory = txn.get(DIRECTORY) is not None
        tables = [self._table(name) for name in TABLES[1:]]
        self._addresses, self._accounts, self._domains, self._removed = tables
        try:
            self._members = self._env.open_db(MEMBERS, dupsort=True, create=False)
        except lmdb.NotFoundError:
            self._members = self._env.open_db(MEMBERS, dupsort=True)
        # Where the users are those of a cluster (metad.users.journal).
        self.changes_table: Any = None
        with suppress(lmdb.NotFoundError):
            self.changes_table = self._env.open_db(CHANGES, create=False)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """A write transaction for a change of users.  Raises MirrorError."""
        if self.in_directory:
            raise MirrorError(
                "the users of this cluster are in etcd", remedy="metad user changes them there"
            )
        if self.changes_table is not None:  # not after waiting for a copy that is taken over
            with self._translated, self._env.begin(self._meta) as txn:
                refuse_mirror(txn, self._meta)
        with self._translated, self._env.begin(write=True) as txn:
            if self.changes_table is None:
                yield txn
                return
            numbers = {id(table): number for number, table in self.numbered_tables.items()}
            journal = JournaledTransaction(txn, numbers, self._meta, self.changes_table)
            yield journal
            journal.finish()

    @contextmanager
    def _writing_here(self) -> Iterator[Any]:
        """A write transaction for what concerns this node alone, where users are in etcd."""
        if self.in_directory:
            with self._translated, self._env.begin(write=True) as txn:
                yield txn
        else:
            with self._writing() as txn:
                yield txn

    # What a cluster's mirror (metad.users.mirror) works with.

    @property
    def env(self) -> lmdb.Environment:
        return self._env

    @property
    def translated(self) -> Translated:
        return self._translated

    @property
    def numbered_tables(self) -> dict[int, Any]:
        """The tables as a journal numbers them; 0 is "meta"."""
        tables = (
            self._meta, self._addresses, self._accounts, self._domains, self._removed,
            self._members,
        )  # fmt: skip
        return dict(enumerate(tables))

    def keep_changes(self) -> None:
        """Have a table of changes, for this process and those that open the database later."""
        if self.changes_table is None:
            with self._translated:
                self.changes_table = self._env.open_db(CHANGES)

    def _table(self, name: bytes) -> Any:
        try:
            return self._env.open_db(name, create=False)
        except lmdb.NotFoundError:
            raise self._missing() from None

    def _check_format(self, raw: bytes | None) -> None:
        try:
            found = msgpack.unpackb(raw or b"")
        except (ValueError, msgpack.UnpackException):
            found = None
        if not isinstance(found, int):
            raise DataError(f"{self.path}: not a users database", remedy=DAMAGED)
        if found > FORMAT:
            raise DataError(
                f"{self.path}: the users database has format {found}, made by a newer metad; "
                f"this one knows {FORMAT}",
                remedy="install the release of metad that made it",
            )

    def _initialise(self) -> None:
        """Create all tables and the postmaster, in one transaction, unless they exist."""
        with self._env.begin(write=True) as txn:
            meta = self._env.open_db(META, txn)
            if txn.get(b"format", db=meta) is not None:
                return
            addresses, accounts, *_ = (self._env.open_db(name, txn) for name in TABLES[1:])
            txn.put(b"secret", secrets.token_bytes(32), db=meta)
            txn.put(b"next", ID.pack(POSTMASTER_ID + 1), db=meta)
            txn.put(KINDS, msgpack.packb({}), db=meta)
            txn.put(b"format", msgpack.packb(FORMAT), db=meta)
            if self._had_users():
                txn.put(LOST, b"%d" % time.time(), db=meta)
            put_postmaster(txn, addresses, accounts)
        osio = Osio()
        for directory in (self.path, self.path.parent):
            osio.fsync_directory(str(directory))

    def _had_users(self) -> bool:
        """Whether numbers were assigned before this database was made, or whether that is unknown
        and there may be mail."""
        try:
            return self._numbers.next() > POSTMASTER_ID + 1
        except (DataError, OsError):
            return True


def put_postmaster(txn: Any, addresses: Any, accounts: Any) -> None:
    """The account that every database has."""
    account = Account(POSTMASTER_ID, POSTMASTER)
    txn.put(POSTMASTER.encode(), pack_entry(account), db=addresses)
    record = {"address": POSTMASTER, "created": int(time.time()), "builtin": True}
    txn.put(ID.pack(POSTMASTER_ID), pack_record(record), db=accounts)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OsError.of(error, path) from None


class Translated:
    """A context that translates LMDB's errors into ours; the only place that does."""

    __slots__ = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, lmdb.Error):
            raise self.ours(error) from None

    def ours(self, error: lmdb.Error) -> MetadError:
        if isinstance(error, lmdb.DiskError):
            return NoSpaceError(f"{self.path}: {error}", remedy=SPACE)
        if isinstance(error, lmdb.MapFullError):
            return NoSpaceError(f"{self.path}: {error}", remedy="try again after metad user remove")
        if isinstance(error, lmdb.CorruptedError | lmdb.InvalidError | lmdb.PageNotFoundError):
            return DataError(f"{self.path}: the users database is damaged: {error}", remedy=DAMAGED)
        if isinstance(error, lmdb.VersionMismatchError):
            return DataError(
                f"{self.path}: the users database is of another LMDB: {error}",
                remedy="give it to the release of metad that made it",
            )
        return OsError(f"{self.path}: {error}")
