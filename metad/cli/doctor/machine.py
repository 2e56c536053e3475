"""Checks of the machine and of the data: permissions, disk, clock, leftovers, a clone."""

from __future__ import annotations

import ctypes
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from metad.cli.doctor.result import Result, error, ok, warning
from metad.config.model import Config
from metad.errors import OsError
from metad.store import machine
from metad.store.identity import Store, open_store
from metad.store.log_space import needed_space
from metad.system.osio import Osio

SHARED = Path("/dev/shm")  # noqa: S108
MOUNTS = Path("/proc/self/mounts")
# File systems on which locks or syncs may not be reliable.
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "ceph"}
_VOLATILE = {"tmpfs", "ramfs"}
_FEW_INODES = 1000
_OF_RUNNING = {"control", "segment"}  # in DATA/run, until the hub ends by itself
_MOST_OFF = 300.0  # seconds
_UNSYNCHRONISED = 0x40  # STA_UNSYNC of adjtimex(2)
_SIZE_OF_TIMEX = 512
_STATUS = 40  # its offset on 64-bit Linux


# -- permissions


def check_permissions(data: Path) -> Iterator[Result]:
    """Checks that nothing in DATA is readable or writable for others."""
    bad = [path for path in _guarded(data) if _is_open(path)]
    for path in bad:
        yield error("permissions", f"{path} is open to other users", f"chmod go= {path}")
    owner = data.stat().st_uid
    foreign = [path for path in _guarded(data) if path.lstat().st_uid != owner]
    for path in foreign:
        yield error(
            "permissions", f"{path} belongs to uid {path.lstat().st_uid}, {data} to uid {owner}",
            f"chown -R --reference={data} {path}",
        )  # fmt: skip
    if not bad and not foreign:
        yield ok("permissions", f"{data} is its owner's alone")


def _guarded(data: Path) -> list[Path]:
    names = ("logs", "index", "users", "tls", "run", "locks", "quarantine", "store.json")
    found = [data, *(data / name for name in names)]
    tls = data / "tls"
    if tls.is_dir():
        found += tls.iterdir()
    return [path for path in found if path.exists()]


def _is_open(path: Path) -> bool:
    found = path.lstat()
    # A directory may be searchable; its contents are checked separately.
    closed = stat.S_IRWXG | stat.S_IRWXO if not stat.S_ISDIR(found.st_mode) else 0o066
    return bool(found.st_mode & closed)


# -- disk


def check_disk(config: Config, data: Path) -> Iterator[Result]:
    logs = data / "logs"
    place = str(logs if logs.exists() else data)
    osio = Osio()
    free, need = osio.free_space(place), needed_space(osio, place, config.store.log_size)
    text = f"{free:,} bytes are free; new mail is deferred below {need:,}"
    if free <= need:
        yield error("disk", text, "free space, or metad gc --full")
    elif free < need + 4 * config.store.log_size:
        yield warning("disk", f"{text}: four more logs do not fit", "free space, or add some")
    else:
        yield ok("disk", text)
    found = os.statvfs(place)
    if found.f_files and found.f_favail < _FEW_INODES:
        yield error("disk", f"{found.f_favail} inodes are left", "remove files, or grow it")
    kind = file_system(Path(place).resolve())
    if kind in _REMOTE:
        yield error(
            "disk", f"{data} is on {kind}", "move it to a local file system: locks and syncs"
        )
    elif kind in _VOLATILE:
        yield error("disk", f"{data} is on {kind}: a reboot loses all mail", "move it to a disk")


def file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the file system of a path; None if unknown."""
    try:
        lines = [line.split() for line in mounts.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return None
    known = {fields[1].replace("\\040", " "): fields[2] for fields in lines if len(fields) > 2}
    return next((known[str(one)] for one in (path, *path.parents) if str(one) in known), None)


# -- clock


def check_clock(
    hub_time: dict[str, int | bool] | None, status: int | None = None
) -> Iterator[Result]:
    """`hub_time`: from a running hub; `status`: of adjtimex, if not this machine's."""
    found = clock_status() if status is None else status
    if hub_time is not None and hub_time["suspect"]:
        yield error(
            "clock", "it is far ahead of the newest mail, so nothing expires",
            "set it right; if it is right: metad store time --accept",
        )  # fmt: skip
    if found is not None and found & _UNSYNCHRONISED:
        yield warning(
            "clock", "no time server sets it", "timedatectl set-ntp true, or install chrony"
        )
    elif hub_time is None or not hub_time["suspect"]:
        yield ok("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def clock_status() -> int | None:
    """The status word of adjtimex(2), read without changing anything; None if unknown."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(_SIZE_OF_TIMEX)
        if libc.adjtimex(buffer) < 0 or ctypes.sizeof(ctypes.c_long) != 8:
            return None
    except (OSError, AttributeError):
        return None
    return int.from_bytes(buffer.raw[_STATUS : _STATUS + 4], "little")


# -- leftovers


def check_leftovers(store: Store, *, running: bool, shared: Path = SHARED) -> Iterator[Result]:
    """Leftovers of a killed hub.  The next start removes all of them."""
    if running:
        yield ok("leftovers", "not looked for while the hub runs")
        return
    run = Path(store.data) / "run"
    names = sorted(path.name for path in run.glob("*")) if run.is_dir() else []
    names = [name for name in names if name in _OF_RUNNING or name.startswith("import-")]
    if not _OF_RUNNING.intersection(names):
        names = []  # a hub that ends leaves the workers' sockets
    found = [str(run / name) for name in names]
    prefix = f"metad-{store.store_id.hex()[:12]}-"
    if shared.is_dir():
        found += sorted(str(path) for path in shared.iterdir() if prefix in path.name)
    if found:
        yield warning(
            "leftovers", "a hub was killed and left " + ", ".join(found),
            "nothing: the next start removes them",
        )  # fmt: skip
    else:
        yield ok("leftovers", "none")


# -- clone


def check_clone(store: Store, *, running: bool) -> Iterator[Result]:
    """Whether this store was used on another machine, which may still use a copy of it."""
    note = machine.read(Osio(), store)
    here = machine.this_machine(store)
    if note is None:
        yield ok("clone", f"node {store.node}; no hub has noted yet where it ran")
    elif here.is_other(note.machine):
        yield error(
            "clone", f"this store was used on another machine ({note.machine.hostname}); node "
            f"{store.node}",
            "if a hub still runs there, do not start this copy: metad store backup there, metad "
            "store restore here, which gives it another node number; if it was moved, start it",
        )  # fmt: skip
    elif here != note.machine and not running:
        yield warning(
            "clone", f"the machine was called {note.machine.hostname}, now {here.hostname}",
            "nothing if it was renamed; a clone with the same machine-id needs metad store restore",
        )  # fmt: skip
    elif note.before is not None:
        when = time.strftime("%Y-%m-%d", time.gmtime(note.until))
        yield ok("clone", f"moved here from {note.before.hostname} on {when}; node {store.node}")
    else:
        yield ok("clone", f"node {store.node}, this machine's only")


def store_of(data: Path) -> Store | None:
    """The store in `data`; None if there is none yet.  Raises DataError: it is damaged."""
    if not (data / "store.json").exists():
        return None
    try:
        return open_store(Osio(), data)
    except OSError as problem:
        raise OsError.of(problem, data) from None
