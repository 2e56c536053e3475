"""Reading as the caller what is the caller's, while the command goes on as the hub's owner.

A command that root runs becomes the owner of the data directory for good.  What only root may read
(everybody's Maildirs) is then read by a child that was forked before and stays root, and comes
over a pipe.
"""

from __future__ import annotations

import os
import struct
import traceback
from collections.abc import Callable, Iterator

import msgpack

from metad.cli.mail.mailfiles import Foreign
from metad.errors import EX_SOFTWARE, MetadError

_SIZE = struct.Struct(">BI")
_MESSAGE, _ERROR, _END = range(3)


class Reading:
    """The messages of `read()`, read by a child from now on."""

    def __init__(self, read: Callable[[], Iterator[Foreign]]) -> None:
        self._pid = 0
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(read_end)
            _child(read, write_end)
        os.close(write_end)
        self._input = os.fdopen(read_end, "rb", 1 << 20)

    def __iter__(self) -> Iterator[Foreign]:
        """Raises what the reading raised."""
        while True:
            head = self._input.read(_SIZE.size)
            if len(head) < _SIZE.size:
                raise MetadError("the reading of messages ended in the middle")
            kind, size = _SIZE.unpack(head)
            packed = self._input.read(size)
            if kind == _END:
                return
            fields = msgpack.unpackb(packed)
            if kind == _ERROR:
                error = MetadError(fields[1])
                error.exit_code = fields[0]
                raise error
            yield Foreign(*fields)

    def close(self) -> None:
        """The child ends by itself when nobody reads any more."""
        self._input.close()
        os.waitpid(self._pid, 0)


def _child(read: Callable[[], Iterator[Foreign]], write_end: int) -> None:
    """The whole life of the child."""
    try:
        with os.fdopen(write_end, "wb", 1 << 20) as out:
            try:
                for message in read():
                    _write(out, _MESSAGE, tuple(message))
            except MetadError as error:
                _write(out, _ERROR, (error.exit_code, str(error)))
            _write(out, _END, ())
    except BrokenPipeError:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(EX_SOFTWARE)
    os._exit(0)


def _write(out: object, kind: int, fields: tuple[object, ...]) -> None:
    packed = msgpack.packb(fields)
    out.write(_SIZE.pack(kind, len(packed)) + packed)  # type: ignore[attr-defined]
