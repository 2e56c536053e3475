"""Writes the users of this node into etcd: when a cluster begins, and when etcd has lost them.

Rules of this file:

* Nothing changes users meanwhile: the hub is stopped, or no directory in etcd is trusted.
* "whole" comes last.  An upload that was interrupted is repeated.
* Rows that this node does not have are deleted: they are of an earlier day.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from metad.cluster import etcd_json
from metad.cluster.directory_keys import Identity, Keys
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import EtcdError, Json
from metad.users import rows
from metad.users.mirrored import MirroredUsers
from metad.users.rows import Position

ROWS: Final = 100
# Transactions at once, and attempts of each: to write a row again does no harm.
AT_ONCE: Final = 4
TRIES: Final = 3


async def upload(
    etcd: Etcd,
    keys: Keys,
    number: int,
    users: MirroredUsers,
    identity: Identity,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Write all rows; the users here are the mirror of `identity` afterwards, which the caller
    writes next.  `number`: this node.  Returns how many rows there are.

    Raises ClusterError, DataError, OsError.
    """
    prefix = keys.users
    await _delete(etcd, f"{prefix}whole")
    await _delete_others(etcd, prefix, users)
    count = 0
    source = iter(users.all_rows())
    while pieces := [piece for _ in range(AT_ONCE) if (piece := list(islice(source, ROWS)))]:
        await asyncio.gather(*(_write(etcd, _puts(prefix, piece)) for piece in pieces))
        count += sum(map(len, pieces))
        progress(count)
    last = etcd_json.puts(f"{prefix}last/{number}", secrets.token_bytes(8))
    revision = await _write(etcd, [etcd_json.puts(prefix + rows.WHOLE.decode(), b""), last])
    users.stand_at(Position(identity.encode().decode(), revision))
    return count


def _puts(prefix: str, piece: list[tuple[bytes, bytes]]) -> list[Json]:
    return [etcd_json.puts(prefix + key.decode(), value) for key, value in piece]


async def _write(etcd: Etcd, requests: list[Json]) -> int:
    """Raises EtcdError."""
    for attempt in range(TRIES):
        try:
            return (await etcd.transact([], requests)).revision
        except EtcdError:
            if attempt == TRIES - 1:
                raise
    raise AssertionError


async def _delete(etcd: Etcd, key: str) -> None:
    await _write(etcd, [etcd_json.deletes(key)])


async def _delete_others(etcd: Etcd, prefix: str, users: MirroredUsers) -> None:
    async for page in etcd.prefix(prefix):
        others = [
            row.key for row in page.rows if not users.has_row(row.key[len(prefix) :].encode())
        ]
        for piece in _pieces(others):
            await _write(etcd, [etcd_json.deletes(key) for key in piece])


def _pieces(keys: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(keys), ROWS):
        yield keys[at : at + ROWS]
