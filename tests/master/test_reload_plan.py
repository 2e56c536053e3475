"""What a reload changes, keeps and reports."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from metad.config.model import Config
from metad.config.parse import parse
from metad.errors import ConfigError
from metad.listeners import Bound, bind_all, close_all, listen_all, rebind
from metad.master import reload_plan
from metad.master.options import Snapshot, SnapshotFile
from metad.system.systemd import Passed

DATA = Path("/srv/data")


def configured(text: str = "", *addresses: str) -> Config:
    tables = "".join(f'[[listen]]\nprotocol = "smtp"\naddress = "{one}"\n' for one in addresses)
    return parse(f"{text}\n{tables}", None, DATA, {})


def planned(old: Config, new: Config, bound=(), first: int = 1024) -> reload_plan.Plan:
    return reload_plan.plan(old, new, bound, lambda port: port >= first)


def test_equal_configurations_change_nothing():
    plan = planned(configured("hostname = 'a.org'"), configured("hostname = 'a.org'"))
    assert (plan.changed, plan.kept) == ([], {})


def test_what_changes_is_named_by_its_key():
    old = configured("hostname = 'a.org'")
    new = configured("hostname = 'b.org'\n[limits]\nrecipients = 200")
    assert planned(old, new).changed == ["hostname", "limits.recipients"]
    assert planned(old, new).config.limits.recipients == 200


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[store]\nworkers = 5", "store.workers"),
        ("[store]\nlayer = 'null'", "store.layer"),
        ("user = 'daemon'", "user"),
        ("chroot = '/srv'", "chroot"),
    ],
)
def test_what_needs_a_restart_keeps_its_value(text, key):
    old = configured()
    plan = planned(old, configured(text))
    assert list(plan.kept) == [key]
    assert plan.changed == []
    assert plan.config == old


def test_a_hub_becomes_the_node_of_a_cluster_only_by_a_restart():
    old = configured()
    plan = planned(old, configured("cluster = {address = '10.0.0.1:25', peers = ['10.0.0.2:25']}"))
    assert sorted(plan.kept) == ["cluster.address", "cluster.peers"]
    assert plan.config == old


def test_etcd_may_move_and_neither_come_nor_go_without_a_restart():
    peers = configured("cluster = {address = '10.0.0.1:25', peers = ['10.0.0.2:25']}")
    one, other = (
        configured(f"cluster = {{address = '10.0.0.1:25', etcd = ['http://10.0.0.{end}:2379']}}")
        for end in (8, 9)
    )
    moved = planned(one, other)
    assert (moved.changed, moved.kept) == (["cluster.etcd"], {})
    assert moved.config.cluster.etcd == ("http://10.0.0.9:2379",)
    for old, new in ((peers, one), (one, peers), (configured(""), one)):
        kept = planned(old, new)
        assert "cluster.etcd" in kept.kept
        assert kept.config.cluster == old.cluster


def test_a_new_port_is_taken_and_a_privileged_one_needs_a_restart():
    old = configured("", "127.0.0.1:2525")
    plan = planned(old, configured("", "127.0.0.1:2525", "127.0.0.1:2526", "127.0.0.1:25"))
    assert [one.address for one in plan.config.listen] == ["127.0.0.1:2525", "127.0.0.1:2526"]
    assert list(plan.kept) == ["listen 127.0.0.1:25"]


def test_a_socket_that_was_handed_over_stays():
    old = configured("", "fd:smtp", "127.0.0.1:2525")
    bound = [Bound(one, (), ours=one.port is not None) for one in old.listen]
    plan = planned(old, configured("", "127.0.0.1:2525"), bound)
    assert [one.address for one in plan.config.listen] == ["127.0.0.1:2525", "fd:smtp"]
    assert list(plan.kept) == ["listen fd:smtp"]


def test_a_snapshot_is_the_same_configuration_on_the_other_side():
    text = "hostname = 'a.org'\n[store]\nworkers = 7\n"
    made = SnapshotFile.make(Snapshot(text, "/etc/x.toml"))
    with open(made.fd, "rb"):
        read = made.read()
        assert read.parse(DATA) == parse(text, Path("/etc/x.toml"), DATA, {})
        made.write(Snapshot("", None))
        assert made.read() == Snapshot("", None)


@pytest.mark.parametrize(
    "given", [{}, {"content": 1, "source": None}, {"content": "", "source": 2}]
)
def test_what_is_no_snapshot_is_refused(given):
    with pytest.raises(ConfigError):
        Snapshot.from_json(given)


# --- Listeners ------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_listener_that_stays_keeps_its_sockets_over_a_reload():
    ports = [free_port() for _ in range(3)]
    first, second, third = (f"127.0.0.1:{port}" for port in ports)
    bound = bind_all(configured("", first, second))
    listen_all(bound)
    everything, fresh, rest = rebind(bound, configured("", second, third))
    try:
        assert [one.listener.address for one in everything] == [second, third]
        assert everything[0].sockets == bound[1].sockets
        assert [one.listener.address for one in fresh] == [third]
        assert [one.listener.address for one in rest] == [first]
    finally:
        close_all([*bound, *fresh])


def test_every_socket_handed_over_is_served_by_some_slot():
    made = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
    config = configured("", "fd:smtp")
    (bound,) = bind_all(config, [Passed("smtp", sock) for sock in made])
    try:
        served = [bound.of_slot(slot, 2) for slot in range(2)]
        assert sorted(len(one) for one in served) == [2, 3]
        assert {sock for one in served for sock in one} == set(made)
    finally:
        close_all([bound])


def test_one_socket_handed_over_is_shared_by_all_slots():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        (bound,) = bind_all(configured("", "fd:smtp"), [Passed("smtp", sock)])
        assert [bound.of_slot(slot, 3) for slot in range(3)] == [[sock]] * 3


def test_a_name_for_which_nothing_came_is_refused():
    with pytest.raises(ConfigError, match="no socket was passed for fd:smtp"):
        bind_all(configured("", "fd:smtp"))


def test_a_bind_that_fails_leaves_nothing_bound():
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        with pytest.raises(Exception, match="Address already in use"):
            bind_all(configured("", f"127.0.0.1:{port}", f"127.0.0.1:{busy}"))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))
