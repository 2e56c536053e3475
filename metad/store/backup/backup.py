"""Backup of a store, whether or not a hub is running, and restore.

    backup/logs/NNNNNNNN.log   the logs in use; unused octets are holes
    backup/store.json          id, secret, node
    backup/quarantine/         damaged octets, quarantined
    backup/users/data.mdb      (written by metad.cli.backup)
    backup/manifest.json       written last

Rules of this file:

* While a backup copies, no log is freed (metad.store.backup_lock), so no record leaves the logs
  that it has listed.  A backup that hangs for too long loses this lock, and fails.
* A file of the hub is never hard-linked: the log's next life would overwrite the backup.  Backups
  are never modified, so a later one may link to files of an earlier one.
* Active logs are copied up to the last record that verifies.  This includes all mail acknowledged
  before, and the copy is recovered like the log of a killed hub.
* An unreadable place loses only its own data: the rest is copied, and the file is reported.
* The index is a view, and is not copied.
* A restored store gets a new node number, so that no id is assigned twice.  Its identity is written
  last, so that no hub starts on an incomplete store.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from metad.errors import CannotCreateError, DataError, OsError
from metad.store.backup import manifest
from metad.store.backup.manifest import BackupFile, Manifest
from metad.store.backup_lock import pinned
from metad.store.identity import Store, fresh_node, make_store, open_store, write_identity
from metad.store.log import header
from metad.store.log.header import LogHeader
from metad.store.log.salvage import read_past
from metad.store.log.scan import Scanner
from metad.store.log.writer import round_up
from metad.system.osio import Osio

_CANNOT = {errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV, errno.ENOTTY, errno.ENOSYS, errno.EBADF}
_PIECE = 8 << 20


@dataclass(slots=True)
class Done:
    """What a backup or a restore did.  `octets`: copied; `linked`: files taken from `previous`;
    `bad`: incomplete files, and why."""

    files: int = 0
    linked: int = 0
    octets: int = 0
    bad: list[str] = field(default_factory=list)


class Backup:
    """One backup to `target`, a directory that does not exist or is empty."""

    def __init__(
        self,
        osio: Osio,
        store: Store,
        target: Path,
        previous: Path | None = None,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Raises CannotCreateError; and DataError, UnavailableError for a bad `previous`."""
        self._osio = osio
        self._store = store
        self._target = target
        self._report = report
        self._previous = previous
        self._old = manifest.read(osio, str(previous)) if previous else None
        if self._old is not None and self._old.store_id != store.store_id.hex():
            raise DataError(
                f"{previous}: a backup of another store", remedy="leave out --incremental"
            )
        self.done = Done()
        self._files: dict[str, BackupFile] = {}
        self._get_on = _nothing  # to be called when something was read
        make_empty(osio, target)

    def run(self, copy_users: Callable[[Path], None] | None = None) -> Manifest:
        """Raises OSError, LeaseLostError; then the directory has no manifest and is not a backup.

        `copy_users` copies the users database to the given directory.
        """
        for name in ("logs", "quarantine", "users"):
            self._osio.mkdir(str(self._target / name))
        made = int(self._osio.time_ns() // 1_000_000_000)
        with pinned(self._osio, self._store) as pin:
            self._get_on = pin.renew
            self._copy_logs()
            pin.check()
        self._get_on = _nothing
        self._copy_small()
        if copy_users is not None:
            try:
                copy_users(self._target / "users")
                self._enter_file("users/data.mdb")
            except OsError as error:
                self._bad(str(error))
        for name in ("logs", "quarantine", "users"):
            self._osio.fsync_directory(str(self._target / name))
        found = Manifest(self._store.store_id.hex(), self._store.node, made, self._files)
        found.write(self._osio, str(self._target))
        return found

    # -- logs

    def _copy_logs(self) -> None:
        names = sorted(n for n in self._osio.listdir(self._store.logs) if n.endswith(".log"))
        for count, name in enumerate(names, 1):
            self._report(f"log {count} of {len(names)}")
            self._get_on()
            try:
                fd = self._osio.open(os.path.join(self._store.logs, name), os.O_RDONLY)
            except FileNotFoundError:
                continue  # unlinked meanwhile, because it was free
            except OSError as error:
                self._bad(f"logs/{name}: {error.strerror}")
                continue
            try:
                self._copy_log(fd, name)
            finally:
                self._osio.close(fd)

    def _bad(self, text: str) -> None:
        self.done.bad.append(text)
        self._report(f"warning: {text}")

    def _copy_log(self, fd: int, name: str) -> None:
        log = header.read(self._osio, fd, self._store.secret)
        if log is not None and log.state == header.FREE:
            return
        entry = self._entry(fd, f"logs/{name}", log)
        if not self._link(entry):
            self._copy(fd, entry)

    def _entry(self, fd: int, name: str, log: LogHeader | None) -> BackupFile:
        """The part of a log to be copied; all of it if its header is damaged."""
        size = self._osio.fstat(fd).st_size
        if log is None:
            self._report(f"warning: {name} has no good header; copied as it is")
            return BackupFile(name, size, size)
        if log.seal_offset:
            end = round_up(log.seal_offset + log.seal_size, log.align)
            return BackupFile(name, size, end, log.align, log.life, sealed=True)
        scanner = Scanner(self._osio, fd, log)
        for _ in scanner:
            self._get_on()
        # Not its last block: if the log is being sealed, the block would refer to a seal that is
        # not in the copy.
        return BackupFile(name, size, scanner.end, 0, log.life)

    def _link(self, entry: BackupFile) -> bool:
        """Link an unchanged sealed log from the earlier backup."""
        if self._old is None or self._previous is None or not entry.sealed:
            return False
        before = self._old.files.get(entry.name)
        if before is None or replace(before, digest="") != entry:
            return False
        source, target = self._previous / entry.name, self._target / entry.name
        try:
            self._osio.link(str(source), str(target))
        except OSError:
            return False  # another file system: copied from the hub instead
        self._files[entry.name] = before
        self.done.files += 1
        self.done.linked += 1
        return True

    # -- files

    def _copy_small(self) -> None:
        """The identity and the quarantined files."""
        store = self._store  # as it was read: the file may be unreadable meanwhile
        write_identity(
            self._osio, make_store(self._target, store.store_id, store.secret, store.node)
        )
        self._enter_file("store.json")
        names = (f"quarantine/{name}" for name in self._osio.listdir(store.quarantine))
        for name in sorted(names):
            try:
                fd = self._osio.open(str(store.data / name), os.O_RDONLY)
            except OSError as error:
                self._bad(f"{name}: {error.strerror}")
                continue
            try:
                size = self._osio.fstat(fd).st_size
                self._copy(fd, BackupFile(name, size, size))
            finally:
                self._osio.close(fd)

    def _copy(self, fd: int, entry: BackupFile) -> None:
        lost: list[int] = []
        path = str(self._target / entry.name)
        digest = copy_file(self._osio, fd, path, entry, lost, self._get_on)
        if lost:
            self._bad(f"{entry.name}: cannot be read at byte {', '.join(map(str, lost[:9]))}")
        self._enter(replace(entry, digest=digest))

    def _enter_file(self, name: str) -> None:
        """A file in the backup that metad did not write."""
        fd = self._osio.open(str(self._target / name), os.O_RDONLY)
        try:
            self._osio.fsync(fd)
            size = self._osio.fstat(fd).st_size
            entry = BackupFile(name, size, size)
            self._enter(replace(entry, digest=manifest.digest(self._osio, fd, entry)))
        finally:
            self._osio.close(fd)

    def _enter(self, entry: BackupFile) -> None:
        self._files[entry.name] = entry
        self.done.files += 1
        self.done.octets += sum(stop - start for start, stop in entry.extents())


def _nothing() -> None:
    """No lease is to be renewed."""


def make_empty(osio: Osio, target: Path) -> None:
    """Make the directory `target`, or use it if it is empty.  Raises CannotCreateError."""
    try:
        osio.mkdir(str(target))
        # Permission to write there does not imply permission to read and sync; then its creator has
        # synced it.
        with suppress(PermissionError):
            osio.fsync_directory(str(target.parent))
    except FileExistsError:
        if not target.is_dir() or osio.listdir(str(target)):
            raise CannotCreateError(
                f"{target}: not an empty directory", remedy="name a new one"
            ) from None
    except OSError as error:
        raise CannotCreateError.of(error, target) from None


def copy_file(
    osio: Osio,
    source: int,
    path: str,
    entry: BackupFile,
    lost: list[int],
    get_on: Callable[[], None] = lambda: None,
) -> str:
    """Copy the part that `entry` describes to a new file, durably.  Returns the digest of the copy.

    Unreadable places are added to `lost`.  `get_on` is called after each piece.  Raises OSError.
    """
    target = osio.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        if not _cloned(osio, source, target):
            osio.truncate(target, entry.size)
            for start, stop in entry.extents():
                for at in range(start, stop, _PIECE):
                    _copy_extent(osio, source, target, range(at, min(at + _PIECE, stop)), lost)
                    get_on()
        osio.fsync(target)
        get_on()
        return manifest.digest(osio, target, entry)
    finally:
        osio.close(target)


def _cloned(osio: Osio, source: int, target: int) -> bool:
    try:
        osio.clone(source, target)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def _copy_extent(osio: Osio, source: int, target: int, extent: range, lost: list[int]) -> None:
    at, stop = extent.start, extent.stop
    while at < stop:
        count = min(_PIECE, stop - at)
        try:
            done = osio.copy_range(source, target, count, at)
        except OSError as error:
            if error.errno not in (*_CANNOT, errno.EIO):
                raise
            data = read_past(osio, source, count, at, lost)
            done = osio.pwrite(target, data, at) if data else 0
        if not done:
            raise OSError(errno.EIO, f"the file ends at {at}, not at {stop}")
        at += done


def restore(
    osio: Osio,
    backup: Path,
    data: Path,
    report: Callable[[str], None] = lambda text: None,
    *,
    partial: bool = False,
) -> Done:
    """Make the data directory `data` from a backup; every file is checked against its digest.

    Missing or damaged files are reported.  `partial` accepts them: all records of a log that verify
    are served, and a damaged users database is left out.

    Raises UnavailableError, DataError (damaged: no hub would start on what is left),
    CannotCreateError, OSError.
    """
    found = manifest.read(osio, str(backup))
    make_empty(osio, data)
    done = Done()
    for name in ("logs", "index", "locks", "quarantine", "spool", "run", "users"):
        osio.mkdir(str(data / name))
    for count, entry in enumerate(found.files.values(), 1):
        report(f"file {count} of {len(found.files)}")
        if entry.name != "store.json":
            try:
                _restore_file(osio, backup, data, entry)
            except DataError as error:
                done.bad.append(str(error))
                report(f"warning: {error}")
                continue
            done.files += 1
            done.octets += sum(stop - start for start, stop in entry.extents())
    if done.bad and not partial:
        more = f" (and {len(done.bad) - 1} more)" if len(done.bad) > 1 else ""
        raise DataError(f"{done.bad[0]}{more}", remedy="--partial restores what is good")
    for name in ("logs", "quarantine", "users"):
        osio.fsync_directory(str(data / name))
    _restore_identity(osio, backup, data, found)
    return done


def _restore_file(osio: Osio, backup: Path, data: Path, entry: BackupFile) -> None:
    try:
        source = osio.open(str(backup / entry.name), os.O_RDONLY)
    except FileNotFoundError:
        raise DataError(f"{backup / entry.name}: missing") from None
    except OSError as error:
        raise DataError(f"{backup / entry.name}: cannot be read: {error.strerror}") from None
    try:
        size = osio.fstat(source).st_size
        if size != entry.size:
            copy_file(osio, source, str(data / entry.name), BackupFile(entry.name, size, size), [])
            raise DataError(f"{backup / entry.name}: damaged: not the size that was copied")
        digest = copy_file(osio, source, str(data / entry.name), entry, [])
    finally:
        osio.close(source)
    if entry.life and not entry.sealed:
        _complete_header(osio, str(data / entry.name))
    if digest != entry.digest:
        if entry.name.startswith("users/"):
            osio.unlink(str(data / entry.name))
        raise DataError(f"{backup / entry.name}: damaged: not what was copied")


def _complete_header(osio: Osio, path: str) -> None:
    """Write the last header of a log that was in use: the backup does not contain it.  Raises
    OSError."""
    fd = osio.open(path, os.O_RDWR)
    try:
        secret = header.own_secret(osio, fd)
        log = header.read(osio, fd, secret) if secret else None
        if log is not None and not log.seal_offset:
            header.write_last(osio, fd, log)
            osio.fsync(fd)
    finally:
        osio.close(fd)


def _restore_identity(osio: Osio, backup: Path, data: Path, found: Manifest) -> None:
    """Make it the same store with another node number, durably."""
    entry = found.files.get("store.json")
    if entry is None:
        raise DataError(f"{backup}: no store.json in the manifest", remedy="restore another backup")
    fd = osio.open(str(backup / entry.name), os.O_RDONLY)
    try:
        if manifest.digest(osio, fd, entry) != entry.digest:
            raise DataError(
                f"{backup / entry.name}: damaged: not what was copied",
                remedy="restore another backup",
            )
    finally:
        osio.close(fd)
    old = open_store(osio, backup)
    write_identity(osio, make_store(data, old.store_id, old.secret, fresh_node([old.node])))
