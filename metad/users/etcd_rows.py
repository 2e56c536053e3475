"""A change of users as a transaction of etcd."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from metad.cluster import etcd_json
from metad.cluster.directory_keys import Identity
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import Json
from metad.users import rows
from metad.users.rows import Change, Position

# Rows of an answer; fewer where aliases are large.
PAGE = 500


def position(identity: Identity, revision: int) -> Position:
    """Of a mirror that has this revision of this directory."""
    return Position(identity.encode().decode(), revision)


async def everything(
    etcd: Etcd, prefix: str, revision: int = 0
) -> AsyncGenerator[list[etcd_json.Row], None]:
    """All rows at one revision: this one, or the newest.  Raises EtcdError, CompactedError."""
    async for page in etcd.prefix(prefix, revision, PAGE):
        if not page.more:
            yield list(page.rows)
            return
        revision = page.revision
        break
    for part in rows.PARTS:
        async for page in etcd.prefix(prefix + part.decode(), revision, PAGE):
            yield list(page.rows)


def compare(prefix: str, change: Change) -> list[Json]:
    """That none of the rows on which it was decided was written since."""
    found, revision = [], change.position.revision
    for row in change.present:
        found += [_exists(prefix + row.decode()), _older(prefix + row.decode(), revision)]
    found += [etcd_json.missing(prefix + row.decode()) for row in change.absent]
    found += [_older(prefix + row.decode(), revision) for row in change.either]
    if len(found) <= rows.MOST_COMPARED:
        return found
    # Every change rewrites one of these few rows.  To compare all rows, each server of etcd would
    # read all users, and carry nothing else out meanwhile.
    last = prefix + rows.LAST.decode()
    return [{**_older(last, revision), "range_end": etcd_json.text(etcd_json.end_of_prefix(last))}]


def _exists(key: str) -> Json:
    return {"key": etcd_json.text(key), "target": "VERSION", "result": "GREATER", "version": "0"}


def _older(key: str, revision: int) -> Json:
    """Compare: its last change was at this revision or before, or it is not there."""
    number = str(revision + 1)
    return {"key": etcd_json.text(key), "target": "MOD", "result": "LESS", "mod_revision": number}


def writes(prefix: str, change: Change) -> list[Json]:
    found = [etcd_json.puts(prefix + row.decode(), value) for row, value in change.puts]
    return found + [etcd_json.deletes(prefix + row.decode()) for row in change.deletes]


def latest(found: Iterable[etcd_json.Row]) -> int:
    """The revision of the last change of users, by the rows "last/NODE"."""
    return max((row.mod for row in found), default=0)
