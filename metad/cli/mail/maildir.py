"""Maildirs: the messages of an inbox, and new ones with Dovecot's list of unique ids.

Rules of this file:

* All file operations go through descriptors of directories and follow no link: the owner of a
  Maildir may change it while root reads or writes it.
* A file that cannot be read is one bad item; files that Dovecot compressed are decompressed.
"""

from __future__ import annotations

import bz2
import lzma
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from metad import limits
from metad.cli.mail.foreign import (
    BadItem,
    Foreign,
    Item,
    Note,
    Reached,
    SourceItem,
    foreign,
    shown,
)
from metad.cli.mail.uidlist import UIDLIST, ListedFile, base_name, read_uidlist
from metad.errors import CannotCreateError, DataError, OsError
from metad.system.directories import make_directory

_PARTS = ("cur", "new")
# Maximum size of a decompressed message: a quarter of a log.
_LARGEST = limits.MAX_LOG_SIZE // 4
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# zlib and bz2 plugins of Dovecot, and its other formats, which Python cannot read.
_UNREADABLE = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "LZ4", b"Dovecot-LZ4": "LZ4"}


class Part(NamedTuple):
    """An open directory of a Maildir and the names in it."""

    fd: int
    path: str
    names: list[str]


def read_maildir(path: Path, uidl_format: str) -> Iterator[SourceItem]:
    """Every message of the inbox, in the order of Dovecot's list, then by name.

    Raises DataError (no Maildir) and OsError.
    """
    try:
        top = os.open(path, _DIRECTORY)
    except OSError as error:
        raise OsError.of(error, shown(path)) from None
    parts: list[Part] = []
    try:
        parts = _open_parts(top, path)
        known = read_uidlist(top, shown(path), uidl_format)
        files = [(part, name) for part in parts for name in part.names]
        files.sort(key=lambda file: _order(file[1], known))
        for done, (part, name) in enumerate(files):
            yield Reached(done, len(files))
            yield from _message(part, name, known.get(base_name(name)))
        yield from _subfolders(top, path)
    except OSError as error:
        raise OsError.of(error, shown(path)) from None
    finally:
        for fd in (top, *(part.fd for part in parts)):
            os.close(fd)


def _open_parts(top: int, path: Path) -> list[Part]:
    """cur and new; a Maildir that was copied without its empty directories may lack one."""
    parts = []
    for name in _PARTS:
        with suppress(FileNotFoundError):
            fd = os.open(name, _DIRECTORY, dir_fd=top)
            names = [one for one in os.listdir(fd) if not one.startswith(".")]
            parts.append(Part(fd, shown(path / name), names))
    if not parts:
        raise DataError(
            f"{shown(path)}: not a Maildir: it has neither cur nor new",
            remedy="name the directory that has them",
        )
    return parts


def _message(part: Part, name: str, known: ListedFile | None) -> Iterator[Item]:
    place = f"{part.path}/{shown(name)}"
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                     dir_fd=part.fd)  # fmt: skip
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return
            octets = decompressed(file.read(_LARGEST + 1))
    except OSError as error:
        yield BadItem(place, error.strerror or str(error))
        return
    except ValueError as error:
        yield BadItem(place, str(error))
        return
    when = int(found.st_mtime) * 1_000_000
    yield foreign(place, octets, known.uid if known else "", when)


class Decompressor(Protocol):
    """The common interface of zlib, bz2 and lzma."""

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


# Magic bytes -> how to decompress what follows.  No header field begins with any of them.
_FORMATS: dict[bytes, Callable[[], Decompressor]] = {
    b"\x1f\x8b\x08": lambda: zlib.decompressobj(31),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
}


def decompressed(octets: bytes) -> bytes:
    """A message as it was delivered, whether Dovecot has compressed it or not.

    Raises ValueError: a format that cannot be read, damaged, or too large.
    """
    for magic, name in _UNREADABLE.items():
        if octets.startswith(magic):
            raise ValueError(f"compressed with {name}: decompress it first")
    for magic, make in _FORMATS.items():
        if octets.startswith(magic):
            octets = _inflate(make(), octets)
            break
    if len(octets) > _LARGEST:
        raise ValueError(f"larger than {_LARGEST:,} bytes")
    return octets


def _inflate(decompressor: Decompressor, octets: bytes) -> bytes:
    try:
        result = decompressor.decompress(octets, _LARGEST + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise ValueError(f"damaged compressed file: {error}") from None
    if not decompressor.eof and len(result) <= _LARGEST:
        raise ValueError("damaged compressed file: it ends too early")
    return result


def _subfolders(top: int, path: Path) -> Iterator[Note]:
    """POP3 has one folder, the inbox: the others are reported, not imported."""
    names = []
    for name in sorted(os.listdir(top)):
        if name.startswith(".") and name not in (".", ".."):
            with suppress(OSError):
                if stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                    names.append(shown(name))
    if names:
        listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")
        yield Note(f"{shown(path)}: {len(names)} subfolders not imported: {listed}")


def _order(name: str, known: dict[str, ListedFile]) -> tuple[float, int, str]:
    found = known.get(base_name(name))
    if found is not None:
        return found.number, 0, ""
    seconds = name.partition(".")[0]
    number = int(seconds) if seconds.isascii() and seconds.isdigit() else 0
    return float("inf"), number, name


class MaildirWriter:
    """A new Maildir, with Dovecot's list of the unique ids."""

    def __init__(self, path: Path, owner: os.stat_result | None = None) -> None:
        """`owner`: whose data is exported, if the command will become that user.

        Raises CannotCreateError.
        """
        self._path = shown(path)
        self._number = 0
        self._list: list[str] = []
        self._fds: dict[str, int] = {}
        try:
            self._top = make_directory(path, owner)
        except OSError as error:
            raise CannotCreateError.of(error, self._path) from None

    def _directory(self, name: str) -> int:
        """Created at the first message, when the command has become the owner."""
        if name not in self._fds:
            os.mkdir(name, 0o700, dir_fd=self._top)
            self._fds[name] = os.open(name, _DIRECTORY, dir_fd=self._top)
        return self._fds[name]

    def write(self, message: Foreign) -> None:
        self._number += 1
        body = message.octets.replace(b"\r\n", b"\n")
        seconds, micro = divmod(message.time_us, 1_000_000)
        sizes = f"S={len(body)},W={len(message.octets)}"
        name = f"{seconds}.M{micro}P{os.getpid()}Q{self._number}.metad,{sizes}"
        try:
            tmp, cur = self._directory("tmp"), self._directory("cur")
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=tmp)
            with os.fdopen(fd, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(fd)
            os.utime(name, (seconds, seconds), dir_fd=tmp, follow_symlinks=False)
            os.rename(name, f"{name}:2,", src_dir_fd=tmp, dst_dir_fd=cur)
        except OSError as error:
            raise OsError.of(error, f"{self._path}/{name}") from None
        self._list.append(f"{self._number} P{message.uid} :{name}\n")

    def close(self) -> None:
        head = f"3 V{int(time.time())} N{self._number + 1} G{os.urandom(16).hex()}\n"
        try:
            for part in ("tmp", "cur", "new"):
                os.fsync(self._directory(part))
            fd = os.open(UIDLIST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._top)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write("".join([head, *self._list]))
                file.flush()
                os.fsync(fd)
            os.fsync(self._top)
        except OSError as error:
            raise OsError.of(error, self._path) from None
        finally:
            for fd in (self._top, *self._fds.values()):
                os.close(fd)
