"""What a users database counts: so that POP3 and SCRAM answer without reading all accounts."""

from __future__ import annotations

from typing import Any

import msgpack

from metad.users import login_kinds
from metad.users.account import Policy, unpack_record
from metad.users.aliases import AliasTable
from metad.users.lmdb_env import ID, KINDS


class CountedUsers(AliasTable):
    """The users database, with methods that keep the counts, each within a transaction."""

    def _count_unkeyed(self, txn: Any, change: int) -> None:
        if change:
            count = ID.unpack(txn.get(b"unkeyed", ID.pack(0), db=self._meta))[0] + change
            txn.put(b"unkeyed", ID.pack(max(0, count)), db=self._meta)

    def _count_kind(self, txn: Any, before: str, after: str) -> None:
        """The kind of an account's password changes: update the counts; the first start counts all
        accounts."""
        raw = txn.get(KINDS, db=self._meta) if before != after else None
        if raw is not None:
            kinds = login_kinds.recounted(login_kinds.unpacked(raw), before, after)
            txn.put(KINDS, msgpack.packb(kinds), db=self._meta)

    def _note_extremes(self, txn: Any, policy: Policy) -> None:
        """For POP3's CAPA before login.  They only grow, which is the safe direction."""
        least, most = self._extremes(txn)
        if policy.expiry and (not least or policy.expiry < least):
            txn.put(b"least expiry", ID.pack(policy.expiry), db=self._meta)
        if policy.login_delay and policy.login_delay > most:
            txn.put(b"most login delay", ID.pack(policy.login_delay), db=self._meta)

    def _count_all_kinds(self, txn: Any) -> None:
        kinds: dict[str, int] = {}
        for _, raw in txn.cursor(db=self._accounts):
            kinds = login_kinds.recounted(kinds, "", login_kinds.kind_of(unpack_record(raw)))
        txn.put(KINDS, msgpack.packb(kinds), db=self._meta)
