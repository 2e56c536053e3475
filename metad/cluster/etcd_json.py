"""etcd's requests and answers as its JSON gateway has them.

    keys and values   base64          64-bit numbers   text          zeros and "" are left out

Rule of this file: what etcd answers is checked as it is read.  Whatever is not as it should be is
an EtcdError.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from metad.errors import ClusterError

Json = dict[str, Any]


class EtcdError(ClusterError):
    """etcd cannot be reached, or refuses.  Whether it did what it was asked is not known."""

    remedy = "start etcd, or correct cluster.etcd: it names all servers of etcd"


class EtcdRefusesError(EtcdError):
    """It answers, and does not do what it is asked: it is out of space, or wants a password."""

    remedy = "see etcd's own log for the reason, and `etcdctl alarm list` for its space"


class CompactedError(EtcdError):
    """The revision that was asked for has been compacted.  `revision`: the oldest that is left."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"etcd has compacted its history up to revision {revision}")
        self.revision = revision


class LongAnswerError(EtcdError):
    """An answer has more than limits.ETCD_ANSWER."""

    def __init__(self) -> None:
        super().__init__("etcd's answer is too long")


class Row(NamedTuple):
    """A key with its value.  `mod`: the revision of its last change; `lease` 0: none."""

    key: str
    value: bytes
    mod: int
    lease: int = 0


class Reading(NamedTuple):
    """Rows in the order of their keys, as they were at `revision`.  `more`: others follow."""

    revision: int
    rows: Sequence[Row]
    more: bool = False


class Outcome(NamedTuple):
    """Of a transaction: whether the comparisons held, etcd's revision then, and the rows that each
    `reads` of the branch found.  `etcd`: which one that is (its `cluster_id`); 0: not known."""

    succeeded: bool
    revision: int
    found: Sequence[Sequence[Row]]
    etcd: int = 0


class Change(NamedTuple):
    """`row` None: the key was deleted."""

    key: str
    row: Row | None
    mod: int


class Changes(NamedTuple):
    """What a watch saw, up to `revision`; none at first, when it has begun.  `more`: the next ones
    may be of the same revision."""

    revision: int
    changes: Sequence[Change]
    more: bool = False


# --- Requests -------------------------------------------------------------------------------------


def text(data: str | bytes) -> str:
    raw = data.encode("utf-8") if isinstance(data, str) else data
    return b64encode(raw).decode("ascii")


def end_of_prefix(prefix: str) -> str:
    """The first key after all that begin with `prefix`, which ends in ASCII."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def unchanged(key: str, mod: int) -> Json:
    """Compare: the last change of `key` was at this revision; 0: the key is not there."""
    return {"key": text(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(mod)}


def missing(key: str) -> Json:
    """Compare: the key is not there."""
    return {"key": text(key), "target": "VERSION", "result": "EQUAL", "version": "0"}


def equals(key: str, value: bytes) -> Json:
    """Compare: the key is there with this value."""
    return {"key": text(key), "target": "VALUE", "result": "EQUAL", "value": text(value)}


def puts(key: str, value: bytes, lease: int = 0) -> Json:
    put = {"key": text(key), "value": text(value), "lease": str(lease)}
    return {"request_put": put}


def deletes(key: str) -> Json:
    return {"request_delete_range": {"key": text(key)}}


def reads(key: str) -> Json:
    return {"request_range": {"key": text(key)}}


def reads_prefix(prefix: str) -> Json:
    return {"request_range": {"key": text(prefix), "range_end": text(end_of_prefix(prefix))}}


# --- Answers --------------------------------------------------------------------------------------


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Raises EtcdError for whatever is not as it should be."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError):
        raise EtcdError(f"{what} of etcd cannot be read") from None


def revision_of(answer: Json) -> int:
    """Raises EtcdError."""
    with _reading("the revision"):
        return int(answer["header"]["revision"])


def rows_of(answer: Json) -> list[Row]:
    """Raises EtcdError."""
    with _reading("an answer"):
        return [_row(one) for one in answer.get("kvs", [])]


def _row(found: Json) -> Row:
    key = b64decode(found["key"]).decode("utf-8")
    value = b64decode(found.get("value", ""))
    return Row(key, value, int(found["mod_revision"]), int(found.get("lease", 0)))


def outcome_of(answer: Json) -> Outcome:
    """Raises EtcdError."""
    with _reading("an answer"):
        parts = list(answer.get("responses") or ())
        found = [rows_of(one["response_range"]) for one in parts if "response_range" in one]
        return Outcome(
            answer.get("succeeded") is True,
            revision_of(answer),
            found,
            int(answer["header"].get("cluster_id", 0)),
        )


def changes_of(result: Json) -> Changes:
    """What a line of a watch has.  Raises CompactedError, EtcdError."""
    with _reading("an event"):
        if result.get("canceled"):
            oldest = int(result.get("compact_revision", 0))
            if oldest:
                raise CompactedError(oldest)
            raise EtcdError(f"etcd ended a watch: {result.get('cancel_reason', 'no reason given')}")
        changes = [_change(one) for one in result.get("events", [])]
        return Changes(revision_of(result), changes, result.get("fragment") is True)


def _change(event: Json) -> Change:
    row = _row(event["kv"])
    return Change(row.key, None if event.get("type") == "DELETE" else row, row.mod)
