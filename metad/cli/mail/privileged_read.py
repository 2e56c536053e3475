"""Reads files that only root can reach, while the command continues as the hub's owner.

A command that root runs permanently becomes the owner of the data directory.  Before that it forks
a helper that stays root.  For each mailbox the helper forks a reader, which becomes the owner of
the mailbox's files and sends their messages over a pipe:

    command (hub's owner) -- address --> helper (root) -- fork --> reader (owner of the files)
            ^---------------------------- messages ---------------------|

Rules of this file:

* The helper opens no file of a user; it takes an address, not a path, so that the command cannot
  choose what it reads.
* A reader that is root's own (files owned by root) reads as root; every other one has dropped it.
"""

from __future__ import annotations

import os
import struct
import traceback
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

import msgpack

from metad.cli.mail.foreign import BadItem, Foreign, Note, Reached, SourceItem
from metad.cli.mail.sources import Source, owner_of
from metad.errors import EX_SOFTWARE, MetadError

_HEAD = struct.Struct(">BI")
_KINDS: tuple[type[SourceItem], ...] = (Foreign, BadItem, Note, Reached)
_ERROR, _END = 254, 255
_MOST_ADDRESS = 1024


class Reading:
    """Start the helper, while the command is root."""

    def __init__(self, source: Source) -> None:
        requests, self._requests = os.pipe2(os.O_CLOEXEC)
        items, writer = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._requests)
            os.close(items)
            _helper(source, requests, writer)
        os.close(requests)
        os.close(writer)
        self._input = os.fdopen(items, "rb", 1 << 20)

    def read(self, address: str) -> Iterator[SourceItem]:
        """The items of a mailbox.  Raises what their reader raised."""
        data = address.encode()
        os.write(self._requests, struct.pack(">H", len(data)) + data)
        while True:
            head = self._input.read(_HEAD.size)
            if len(head) < _HEAD.size:
                raise MetadError(
                    "the process that reads the messages has died",
                    remedy="run the import again: it skips what is there already",
                )
            kind, size = _HEAD.unpack(head)
            fields = msgpack.unpackb(self._input.read(size))
            if kind == _END:
                return
            if kind == _ERROR:
                error = MetadError(fields[1], remedy=fields[2])
                error.exit_code = fields[0]
                raise error
            yield _KINDS[kind](*fields)

    def close(self) -> None:
        """The helper exits when its pipes are closed."""
        os.close(self._requests)
        self._input.close()
        os.waitpid(self._pid, 0)


def _helper(source: Source, requests: int, writer: int) -> NoReturn:
    """The whole life of the helper."""
    code = 0
    try:
        with os.fdopen(requests, "rb") as lines:
            while len(head := lines.read(2)) == 2:
                address = lines.read(struct.unpack(">H", head)[0]).decode()
                pid = os.fork()
                if pid == 0:
                    _reader(source, address, writer)
                if os.waitpid(pid, 0)[1]:
                    break  # it may have died in the middle of an item
    except BaseException:
        traceback.print_exc()
        code = EX_SOFTWARE
    os._exit(code)


def _reader(source: Source, address: str, writer: int) -> NoReturn:
    """The whole life of a reader."""
    code = 0
    try:
        with os.fdopen(writer, "wb", 1 << 20, closefd=False) as out:
            try:
                _become_owner(source, address)
                for item in source.read(address):
                    _write(out, _KINDS.index(type(item)), tuple(item))
            except MetadError as error:
                _write(out, _ERROR, (error.exit_code, str(error), error.remedy))
            else:
                _write(out, _END, ())
    except BrokenPipeError:
        pass
    except BaseException:
        traceback.print_exc()
        code = EX_SOFTWARE
    os._exit(code)


def _become_owner(source: Source, address: str) -> None:
    """Drop root for the owner of the files.  Raises MetadError, OSError."""
    if source.path is None:
        return
    found = owner_of(source.path(address))
    if found.st_uid == 0:
        return
    os.setgroups([found.st_gid])
    os.setresgid(found.st_gid, found.st_gid, found.st_gid)
    os.setresuid(found.st_uid, found.st_uid, found.st_uid)


def _write(out: BinaryIO, kind: int, fields: tuple[object, ...]) -> None:
    packed = msgpack.packb(fields)
    out.write(_HEAD.pack(kind, len(packed)) + packed)
