"""`metad doctor` on a node of a cluster; beside real hubs: tests/e2e/test_cluster_etcd.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metad.cli.cluster.overview import EtcdSight
from metad.cli.cluster.status import Reached
from metad.cli.doctor import cluster as checks
from metad.cli.doctor import service
from metad.cli.doctor.result import Level
from metad.config.model import ClusterConfig
from metad.config.parse import parse
from tests.cli.cluster.test_overview import KNOWN, THREE

PEERS = ClusterConfig(address="127.0.0.1:7525", peers=("127.0.0.2:7525",))
ETCD = ClusterConfig(address="127.0.0.1:7525", etcd=("http://127.0.0.1:2379",))
Rows = list[tuple[Level, str]]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The findings on node 1, of three."""

    def findings(
        links: dict[int, str], config: ClusterConfig = PEERS, *, running: bool = True, **known: Any
    ) -> Rows:
        members = [
            Reached(one.number, one.address, str(one.state), one.healed,
                    links.get(one.number, "this node" if one.number == 1 else "up"), THREE.epoch)
            for one in THREE.members
        ]  # fmt: skip
        monkeypatch.setattr(checks, "found", lambda *_: (THREE, 1, members))
        monkeypatch.setattr(checks, "ask_directory", lambda _: EtcdSight({**KNOWN, **known}))
        found = list(checks.check_cluster(config, Path("/data"), running=running))
        assert all(one.check == "cluster" for one in found)
        assert all(one.remedy for one in found if one.level is not Level.OK)
        return [(one.level, one.text) for one in found]

    return findings


@pytest.mark.parametrize("config", [PEERS, ETCD])
def test_a_cluster_that_is_well(look: Any, config: ClusterConfig) -> None:
    assert look({}, config) == [(Level.OK, "node 1, epoch 5: all members answer")]


def test_members_that_do_not_answer(look: Any) -> None:
    (two, three) = look({2: "connection refused", 3: "no answer"})
    assert two == (
        Level.WARNING, "node 2 at 127.0.0.2:7525 cannot be reached: connection refused"
    )  # fmt: skip
    assert three[1].endswith("no answer")


def test_a_node_that_the_others_refuse(look: Any) -> None:
    (found,) = look({1: "refused: node 2 knows a later state of its disk; empty it and join again"})
    assert found[0] is Level.WARNING
    assert found[1].startswith("this node is refused: node 2 knows")


def test_etcd_that_does_not_answer(look: Any) -> None:
    (found,) = look({}, ETCD, word_s=75.0, error="it is away")
    assert found == (Level.WARNING, "etcd: answered 1 min 15 s ago; it is away")
    # The directory process of a hub that does not run is no finding of its own.
    assert look({}, ETCD, running=False, word_s=75.0)[0][0] is Level.OK


def test_the_port_for_other_nodes_has_no_greeting() -> None:
    listening = {"listen": [{"protocol": "peer", "address": "127.0.0.1:1"}]}
    assert list(service.check_ports(parse("", None, Path("/data"), {}), listening)) == []
