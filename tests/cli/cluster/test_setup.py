"""The files of a node that joins, by what the other side answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from metad.cli.cluster import setup
from metad.cli.cluster.join_client import JoinAnswer, JoinClient
from metad.cluster import identity
from metad.cluster.certificates import make_ca
from metad.cluster.view import Membership, View
from metad.errors import ClusterError
from metad.store.identity import open_or_make_store
from metad.system.osio import Osio
from tests.cluster.views import CLUSTER, make_member, make_view

pytestmark = pytest.mark.slow  # they make certificates


class Answering:
    """The other side.  The new node is number 3, in this state."""

    def __init__(self, state: Membership) -> None:
        self._state = state
        self._ca = make_ca(CLUSTER)

    def ask(self, _: str) -> JoinAnswer:
        certificate, key = (text.encode() for text in self._ca)
        return JoinAnswer(CLUSTER, 3, certificate, key, with_etcd=True)

    def enter(self, address: str, fingerprint: str) -> View:
        own = replace(make_member(3, self._state), address=address, fingerprint=fingerprint)
        return make_view(make_member(1), make_member(2), own)


@pytest.mark.parametrize("state", [Membership.ENTERING, Membership.REMOVED])
def test_a_node_joins_unless_it_was_removed(tmp_path: Path, state: Membership) -> None:
    store = open_or_make_store(Osio(), tmp_path)
    other: Any = Answering(state)
    view = identity.directory(tmp_path) / identity.VIEW
    if state is Membership.ENTERING:
        setup.join(store, cast(JoinClient, other), "127.0.0.9:7525", with_etcd=True)
        assert view.exists()
        return
    with pytest.raises(ClusterError, match="node 3 was removed") as refused:
        setup.join(store, cast(JoinClient, other), "127.0.0.9:7525", with_etcd=True)
    assert "empty data directory" in refused.value.remedy
    assert not view.exists()
