"""metad cluster restore-directory, where it must not write; what it writes: tests/e2e."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metad.cli.cluster.restore_directory import check_etcd, check_newest
from metad.cli.cluster.status import Reached
from metad.errors import EX_CONFIG, EX_UNAVAILABLE, ClusterError
from tests.cluster.views import make_member, make_view
from tests.support.hub import free_ports


def test_without_etcd_there_is_no_directory(run: Any, tmp_path: Path):
    config = tmp_path / "metad.toml"
    config.write_text(f'data = "{tmp_path}"\n')
    code, _, err = run("cluster", "restore-directory", "--config", config)
    assert (code, "cluster.etcd: is not set" in err) == (EX_CONFIG, True)


@pytest.mark.slow
def test_a_hub_in_no_cluster_has_none(run: Any, tmp_path: Path):
    config, (port,) = tmp_path / "metad.toml", free_ports(1)
    table = f'[cluster]\naddress = "127.0.0.1:{port}"\netcd = ["http://127.0.0.1:{port}"]\n'
    config.write_text(f'data = "{tmp_path}"\n{table}')
    code, _, err = run("cluster", "restore-directory", "--yes", "--config", config)
    assert (code, "in no cluster" in err) == (EX_UNAVAILABLE, True)


def test_it_is_given_on_the_node_with_the_greatest_epoch():
    view = make_view(make_member(1), make_member(2), epoch=5)

    def reached(epoch: int) -> list[Reached]:
        own = Reached(1, "127.0.0.1:1", "active", False, "this node", 5)
        return [own, Reached(2, "127.0.0.2:1", "active", False, "up", epoch)]

    check_newest(view, reached(5))
    check_newest(view, reached(0))
    with pytest.raises(ClusterError, match="node 2 has epoch 6, this node 5") as found:
        check_newest(view, reached(6))
    assert found.value.remedy == "give this command on node 2"


def test_it_is_refused_while_a_member_trusts_another_etcd():
    def reached(etcd: int) -> list[Reached]:
        own = Reached(1, "127.0.0.1:1", "active", False, "this node", 5)
        return [own, Reached(2, "127.0.0.2:1", "active", False, "up", 5, etcd)]

    check_etcd(7, reached(7))
    check_etcd(7, reached(0))  # it trusts none, or cannot reach it
    check_etcd(0, reached(7))
    with pytest.raises(ClusterError, match="node 2 trusts another etcd") as found:
        check_etcd(8, reached(7))
    assert "the same cluster.etcd" in str(found.value.remedy)
