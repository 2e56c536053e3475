"""The header of a log file, kept twice: in its first and in its last block.

    offset size
         0    8  magic "metadlog"
         8    2  format version, 1
        10    1  state: 1 active (or sealed), 2 free
        11    1  generation: 0 for mail as it came, g+1 for survivors of generation g
        12    4  log number
        16    8  life
        24    8  size of the file
        32    4  alignment of groups
        36    4  node number
        40   16  store id
        56   32  the store's secret
        88    8  predecessor: its life (0 if there is none to speak of)
        96    8  predecessor: where it ends
       104    8  offset of the seal (0: not sealed; only the last block ever says otherwise)
       112    4  size of the seal record
       116    4  reserved, 0
       120   16  check: BLAKE2b of octets 0 to 119, keyed with the secret

Little-endian.  Each copy fills one block of `align` octets, the rest is zero.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import NamedTuple

from metad.store.log.alignment import ALIGNS
from metad.store.log.salvage import read_past
from metad.system.osio import Osio

MAGIC = b"metadlog"
VERSION = 1
ACTIVE, FREE = 1, 2
_FIELDS = struct.Struct("<8sHBBIQQII16s32sQQQII")
CHECK_SIZE = 16
_SECRET = slice(56, 88)
HEADER_SIZE = _FIELDS.size + CHECK_SIZE


class LogHeader(NamedTuple):
    """What one log file says about itself."""

    state: int
    generation: int
    number: int
    life: int
    size: int
    align: int
    node: int
    store_id: bytes
    secret: bytes
    predecessor_life: int = 0
    predecessor_end: int = 0
    seal_offset: int = 0
    seal_size: int = 0

    def pack(self) -> bytes:
        """One block of `align` octets."""
        fields = _FIELDS.pack(
            MAGIC, VERSION, self.state, self.generation, self.number, self.life, self.size,
            self.align, self.node, self.store_id, self.secret, self.predecessor_life,
            self.predecessor_end, self.seal_offset, self.seal_size, 0,
        )  # fmt: skip
        return (fields + _check(fields, self.secret)).ljust(self.align, b"\0")


def _check(fields: bytes, secret: bytes) -> bytes:
    return hashlib.blake2b(fields, key=secret, digest_size=CHECK_SIZE).digest()


def parse(block: bytes, secret: bytes) -> LogHeader | None:
    """The header in `block`, or None if it does not verify under the store's secret."""
    if len(block) < HEADER_SIZE or block[:8] != MAGIC:
        return None
    fields = block[: _FIELDS.size]
    if not hmac.compare_digest(_check(fields, secret), block[_FIELDS.size : HEADER_SIZE]):
        return None
    (
        _, version, state, generation, number, life, size, align, node, store_id, its_secret,
        predecessor_life, predecessor_end, seal_offset, seal_size, _,
    ) = _FIELDS.unpack(fields)  # fmt: skip
    if version != VERSION:
        return None
    return LogHeader(
        state, generation, number, life, size, align, node, store_id, its_secret,
        predecessor_life, predecessor_end, seal_offset, seal_size,
    )  # fmt: skip


def read(osio: Osio, fd: int, secret: bytes) -> LogHeader | None:
    """The header of an open log, from whichever copies verify.

    Only the last block records a seal, so the two copies are merged: the copy with the greater life
    wins (a header is rewritten first block first); in the same life, the sealed one wins.
    """
    return merged(*copies(osio, fd, secret))


def merged(first: LogHeader | None, last: LogHeader | None) -> LogHeader | None:
    """What two copies say together."""
    if first is None or last is None:
        return first or last
    if first.life != last.life:
        return max(first, last, key=lambda copy: copy.life)
    if FREE in (first.state, last.state):
        return first._replace(state=FREE)
    return last if last.seal_offset else first


def is_half_free(first: LogHeader | None, last: LogHeader | None) -> bool:
    """Whether the log is free and only one copy says so: the sync of that one may have failed."""
    free = [copy is not None and copy.state == FREE for copy in (first, last)]
    found = merged(first, last)
    return found is not None and found.state == FREE and not all(free)


def copies(osio: Osio, fd: int, secret: bytes) -> tuple[LogHeader | None, LogHeader | None]:
    """The first and the last one; None for one that does not verify."""
    size = osio.fstat(fd).st_size
    first = parse(read_past(osio, fd, 4096, 0), secret)
    return first, _read_last(osio, fd, size, secret)


def _read_last(osio: Osio, fd: int, size: int, secret: bytes) -> LogHeader | None:
    for align in ALIGNS:
        if size >= align:
            found = parse(read_past(osio, fd, align, size - align), secret)
            if found is not None and found.align == align:  # else it may be the first one
                return found
    return None


def write_first(osio: Osio, fd: int, header: LogHeader) -> None:
    """Write the first copy.  Raises OSError; a short write is one."""
    _write(osio, fd, header, 0)


def write_last(osio: Osio, fd: int, header: LogHeader) -> None:
    _write(osio, fd, header, header.size - header.align)


def rewrite(osio: Osio, fd: int, header: LogHeader) -> None:
    """Replace both copies, durably and one after the other.  Raises OSError.

    Never both under one sync: a power cut may destroy every sector being written, and a log must
    have one good header at all times.
    """
    write_first(osio, fd, header)
    osio.fdatasync(fd)
    write_last(osio, fd, header)
    osio.fdatasync(fd)


def _write(osio: Osio, fd: int, header: LogHeader, offset: int) -> None:
    if osio.pwrite(fd, header.pack(), offset) != header.align:
        raise OSError(f"short write of a log header at {offset}")


def own_secret(osio: Osio, fd: int) -> bytes | None:
    """The secret in the header of the log open at `fd`, if the header verifies under it."""
    size = osio.fstat(fd).st_size
    for at in (0, *(size - align for align in ALIGNS)):
        block = read_past(osio, fd, HEADER_SIZE, at) if at >= 0 else b""
        secret = block[_SECRET]
        if len(secret) == 32 and parse(block, secret) is not None:
            return secret
    return None


def log_path(directory: str, number: int) -> str:
    return os.path.join(directory, f"{number:08d}.log")
