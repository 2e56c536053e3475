"""The directory in etcd, written from what a node has: by `metad cluster init` at first, and by
`metad cluster restore-directory` when etcd was wiped or rolled back.

Rules of this file:

* The view and the identity come last, in one transaction: until then no node trusts what is there.
* A greater generation tells all nodes that an operator wants them to trust it again.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from metad.cluster.directory_keys import Found, Identity, Keys, as_found, read_directory
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import puts
from metad.cluster.seen import Seen
from metad.cluster.view import View
from metad.errors import ClusterError

ID_SIZE = 16
Write = Callable[[Etcd, Keys], Awaitable[None]]


async def begin(etcd: Etcd, view: View, number: int, write: Write | None = None) -> Identity:
    """The directory of a new cluster.  `write` puts there what else belongs to it, first.

    Raises EtcdError, ClusterError if there is one.
    """
    keys = Keys(view.cluster)
    found = await read_directory(etcd, keys, number)
    if found.identity is not None and found.view is not None and found.view.digest == view.digest:
        return found.identity  # an attempt whose answer was lost
    if found.identity_row is not None or found.view_row is not None:
        raise ClusterError(
            "etcd has a directory of this cluster already",
            remedy="use an empty etcd, or another one for this cluster",
        )
    identity = Identity(secrets.token_hex(ID_SIZE), 1)
    await _write(etcd, found, view, identity, write)
    return identity


async def restore(
    etcd: Etcd, view: View, seen: Seen | None, number: int, write: Write | None = None
) -> tuple[Identity, View]:
    """Write it again from the view of this node.  The view that the cluster has then: it has the
    next epoch if etcd has another one of this epoch.

    Raises EtcdError, ClusterError if etcd has a newer view.
    """
    keys = Keys(view.cluster)
    found = await read_directory(etcd, keys, number)
    if found.epoch > view.epoch:
        raise ClusterError(
            f"etcd has epoch {found.epoch}, this node epoch {view.epoch}",
            remedy="give this command on the node with the greatest epoch",
        )
    is_other = found.view is not None and found.epoch == view.epoch and found.view != view
    wanted = view.changed() if is_other else view
    identity = _next_identity(seen, found)
    await _write(etcd, found, wanted, identity, write)
    return identity, wanted


def _next_identity(seen: Seen | None, found: Found) -> Identity:
    known = [one.generation for one in (seen, found.identity) if one is not None]
    known.append(found.set_back)
    ids = [one.id for one in (seen, found.identity) if one is not None and one.id]
    # This node may never have seen the directory of which another one trusts the first generation.
    return Identity(ids[0] if ids else secrets.token_hex(ID_SIZE), max([1, *known]) + 1)


async def _write(
    etcd: Etcd, found: Found, view: View, identity: Identity, write: Write | None
) -> None:
    keys = Keys(view.cluster)
    if write is not None:
        await write(etcd, keys)
    outcome = await etcd.transact(
        as_found(keys, found),
        [puts(keys.view, view.encode()), puts(keys.identity, identity.encode())],
    )
    if not outcome.succeeded:
        raise ClusterError("etcd was changed meanwhile", remedy="try again")
