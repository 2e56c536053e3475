"""Writes the users of this node into etcd: when a cluster begins, and when etcd has lost them.

Rules of this file:

* Nothing changes users meanwhile: the hub is stopped, or no directory in etcd is trusted.
* "whole" comes last.  An upload that was interrupted is repeated.
* A node that may lack users uploads nothing.
* Rows that this node does not have are deleted: they are of an earlier day.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final

from metad.cluster import etcd_json
from metad.cluster.directory_keys import Identity, Keys
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import EtcdError, Json
from metad.errors import ClusterError, DataError
from metad.system.backoff import Backoff
from metad.users import etcd_rows, rows
from metad.users.mirrored import MirroredUsers

ROWS: Final = 100
# Transactions at once, and attempts of each: to write a row again does no harm.
AT_ONCE: Final = 8
TRIES: Final = 12
AGAIN: Final = Backoff(0.2, 5.0)


class Upload:
    """`users` of the node `number`.  `write` suits metad.cluster.restoring."""

    def __init__(
        self,
        users: MirroredUsers,
        number: int,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._users = users
        self._number = number
        self._progress = progress
        self._revision = 0

    async def write(self, etcd: Etcd, keys: Keys) -> None:
        """Write all rows.  Raises ClusterError, DataError, OsError."""
        if self._users.lost:
            raise ClusterError("not all users are on this node; use another one")
        self._revision = await upload(etcd, keys, self._number, self._users, self._progress)

    def follow(self, identity: Identity) -> None:
        """The users here are the mirror of what was written, which is this directory.  Not while
        a hub runs: it reads all rows."""
        self._users.stand_at(etcd_rows.position(identity, self._revision))


async def upload(
    etcd: Etcd,
    keys: Keys,
    number: int,
    users: MirroredUsers,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Returns the revision at which all rows are there."""
    prefix = keys.users
    await _keep_numbers(etcd, prefix, users)
    await _delete(etcd, f"{prefix}whole")
    await _delete_others(etcd, prefix, users)
    count = 0
    source = rows.in_parts(users.all_rows(), ROWS, lambda row: len(row[0]) + len(row[1]))
    while pieces := list(islice(source, AT_ONCE)):
        await asyncio.gather(*(_write(etcd, _puts(prefix, piece)) for piece in pieces))
        count += sum(map(len, pieces))
        progress(count)
    last = etcd_json.puts(f"{prefix}last/{number}", secrets.token_bytes(8))
    return await _write(etcd, [etcd_json.puts(prefix + rows.WHOLE.decode(), b""), last])


async def _keep_numbers(etcd: Etcd, prefix: str, users: MirroredUsers) -> None:
    """The next number never falls: others may have raised it above what this node knows."""
    found = await etcd.read(etcd_json.reads(prefix + rows.NEXT.decode()))
    for row in found.found[0]:
        with suppress(DataError):  # it is replaced
            users.raise_next(rows.read_number(row.value))


def _puts(prefix: str, piece: list[tuple[bytes, bytes]]) -> list[Json]:
    return [etcd_json.puts(prefix + key.decode(), value) for key, value in piece]


async def _write(etcd: Etcd, requests: list[Json]) -> int:
    """Raises EtcdError."""
    for failures in range(1, TRIES):
        try:
            return (await etcd.transact([], requests)).revision
        except EtcdError:
            await asyncio.sleep(AGAIN.delay(failures))
    return (await etcd.transact([], requests)).revision


async def _delete(etcd: Etcd, key: str) -> None:
    await _write(etcd, [etcd_json.deletes(key)])


async def _delete_others(etcd: Etcd, prefix: str, users: MirroredUsers) -> None:
    async for page in etcd_rows.everything(etcd, prefix):
        others = [row.key for row in page if not users.has_row(row.key[len(prefix) :].encode())]
        for piece in _pieces(others):
            await _write(etcd, [etcd_json.deletes(key) for key in piece])


def _pieces(keys: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(keys), ROWS):
        yield keys[at : at + ROWS]
