"""metad cluster init, token, join, status, alone: on stopped hubs, and a member that serves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from metad.cluster import alone as going
from metad.cluster import identity, tokens
from metad.cluster.identity import MEMBER, load_contexts, own_fingerprint
from metad.cluster.joining import JoinService
from metad.cluster.proposals import DirectProposals
from metad.cluster.transport import Links
from metad.cluster.view import Member, Membership, View
from metad.cluster.view_file import ViewFile
from metad.errors import (
    EX_CANTCREAT,
    EX_CONFIG,
    EX_OK,
    EX_PROTOCOL,
    EX_UNAVAILABLE,
    EX_USAGE,
    ClusterError,
)
from metad.master.datadir import take_lock
from metad.store.identity import open_store
from metad.system.osio import Osio
from metad.users.database import UserDatabase
from metad.users.mirror import BLOCK
from tests.cluster.link_kit import Clock, Station
from tests.cluster.views import make_member, make_view

HOUR = 3_600


def free_port(host: str) -> int:
    with socket.socket() as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


class Computer:
    """One machine: its data directory, its configuration, commands, and a member that serves."""

    def __init__(self, run: Any, home: Path, own: str, other: str) -> None:
        self._run = run
        self.data = home / "data"
        self.address = own
        home.mkdir()
        self.config = home / "metad.toml"
        self.config.write_text(
            f'data = "{self.data}"\n[cluster]\naddress = "{own}"\npeers = ["{other}"]\n'
        )

    def run(self, *words: str, stdin: bytes = b"") -> tuple[int, str, str]:
        code, out, err = self._run("cluster", *words, "--config", self.config, stdin=stdin)
        return code, out, err

    def facts(self, *words: str) -> dict[str, Any]:
        code, out, err = self.run(*words, "--json")
        assert code == EX_OK, err
        found: dict[str, Any] = json.loads(out)
        return found

    def status(self) -> dict[str, Any]:
        """As while its hub runs."""
        fd = take_lock(self.data)
        try:
            return self.facts("status")
        finally:
            os.close(fd)

    @property
    def directory(self) -> Path:
        return identity.directory(self.data)

    def view(self) -> View:
        view = ViewFile(Osio(), str(self.directory / identity.VIEW)).load()
        assert view is not None
        return view


class Serving:
    """The links of a member in a thread, as its hub would have them."""

    def __init__(self, computer: Computer) -> None:
        self.computer = computer
        host, _, port = computer.address.rpartition(":")
        self.socket = socket.create_server((host, int(port)))
        self.socket.setblocking(False)
        view = computer.view()
        self.station = Station(view.members[0].number, view, Clock())
        self.station.number = self.station.node.number = self._number(view)
        self.station.node.clock = time.monotonic
        self.offset = 0.0
        self.loop = uvloop.new_event_loop()
        self._ready = threading.Event()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        assert self._ready.wait(20)

    def _number(self, view: View) -> int:
        own = own_fingerprint(self.computer.directory)
        return next(one.number for one in view.members if one.fingerprint == own)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        directory = self.computer.directory
        service = JoinService(
            self.station.node,
            Osio(),
            directory,
            lambda: time.time() + self.offset,
            DirectProposals(self.station.adopt),
            self.loop.call_later,
            lambda: None,
        )
        links = Links(self.loop, load_contexts(directory), self.station.node, service)
        links.serve(self.socket)
        self._ready.set()
        self.loop.run_forever()
        links.close()
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()

    @property
    def lines(self) -> list[str]:
        return self.station.lines

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.socket.close()


@pytest.fixture
def computers(run: Any, tmp_path: Path) -> tuple[Computer, Computer]:
    first, second = (f"{host}:{free_port(host)}" for host in ("127.0.0.2", "127.0.0.3"))
    return (
        Computer(run, tmp_path / "one", first, second),
        Computer(run, tmp_path / "two", second, first),
    )


@pytest.fixture
def serving(computers: tuple[Computer, Computer]) -> Iterator[Serving]:
    """The first has begun a cluster, and its hub runs."""
    assert computers[0].run("init")[0] == EX_OK
    serving = Serving(computers[0])
    yield serving
    serving.close()


def make_token(computer: Computer) -> str:
    return str(computer.facts("token")["token"])


# -- init


def test_init_makes_a_cluster_of_one(computers: tuple[Computer, Computer]) -> None:
    one = computers[0]
    code, out, err = one.run("init")
    assert (code, err) == (EX_OK, "")
    view = one.view()
    assert view.cluster in out
    assert (view.epoch, view.copies, view.read_copies, view.alone) == (1, 1, 1, "refuse")
    fingerprint = own_fingerprint(one.directory)
    assert view.members == (Member(1, one.address, fingerprint, Membership.ACTIVE, False),)
    store = open_store(Osio(), one.data)
    assert (store.node, store.clustered) == (1, True)


def test_keys_are_for_the_hub_alone(computers: tuple[Computer, Computer]) -> None:
    one = computers[0]
    one.run("init")
    modes = {path.name: path.stat().st_mode & 0o777 for path in one.directory.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"ca.pem", "ca.key", "member.pem", "member.key", "view"} <= modes.keys()
    assert one.directory.stat().st_mode & 0o777 == 0o700


def test_init_keeps_the_stores_number(computers: tuple[Computer, Computer]) -> None:
    from metad.store.identity import open_or_make_store, write_identity

    one = computers[0]
    one.data.mkdir(mode=0o700)
    store = open_or_make_store(Osio(), one.data)
    write_identity(Osio(), replace(store, node=777))
    assert one.facts("init")["node"] == 777
    assert one.view().members[0].number == 777
    assert open_store(Osio(), one.data).secret == store.secret


def test_a_second_init_changes_nothing(computers: tuple[Computer, Computer]) -> None:
    one = computers[0]
    one.run("init")
    before = {path.name: path.read_bytes() for path in one.directory.iterdir()}
    code, _, err = one.run("init")
    assert code == EX_CANTCREAT
    assert err.startswith(f"metad: fatal: {one.data}: in a cluster already (")
    assert {path.name: path.read_bytes() for path in one.directory.iterdir()} == before


@pytest.mark.slow
def test_an_init_that_was_killed_before_its_end_is_repeated(
    computers: tuple[Computer, Computer],
) -> None:
    one = computers[0]
    one.run("init")
    (one.directory / identity.VIEW).unlink()
    assert one.run("init")[0] == EX_OK
    load_contexts(one.directory)
    assert one.view().members[0].fingerprint == own_fingerprint(one.directory)


@pytest.mark.parametrize("words", [["init"], ["join", "{token}"]])
def test_a_hub_that_runs_is_left_alone(
    computers: tuple[Computer, Computer], words: list[str]
) -> None:
    one = computers[0]
    one.data.mkdir(mode=0o700)
    fd = take_lock(one.data)
    token = tokens.Token(computers[1].address, "ab" * 32, bytes(16)).text()
    try:
        code, _, err = one.run(*(word.format(token=token) for word in words))
    finally:
        os.close(fd)
    assert code == EX_UNAVAILABLE
    assert f"a hub is already running, pid {os.getpid()}" in err
    assert not one.directory.exists()


@pytest.mark.parametrize("words", [["init"], ["token"], ["join", "{token}"]])
def test_without_the_table_there_is_no_cluster(run: Any, data: Path, words: list[str]) -> None:
    token = tokens.Token("127.0.0.1:1", "ab" * 32, bytes(16)).text()
    code, _, err = run("cluster", *(word.format(token=token) for word in words), "--data", data)
    assert code == EX_CONFIG
    assert "cluster.address is missing" in err


@pytest.mark.parametrize("command", ["token", "status"])
def test_a_hub_in_no_cluster(computers: tuple[Computer, Computer], command: str) -> None:
    computers[0].data.mkdir(mode=0o700)
    code, _, err = computers[0].run(command)
    assert code == EX_UNAVAILABLE
    assert err.endswith("in no cluster (metad cluster init or join puts it into one)\n")


# -- join


@pytest.mark.slow
def test_a_node_joins(computers: tuple[Computer, Computer], serving: Serving) -> None:
    one, two = computers
    code, out, err = two.run("join", make_token(one))
    assert (code, err) == (EX_OK, "")
    assert "Start the hub" in out
    view = two.view()
    assert view == serving.station.view
    assert (view.epoch, view.copies) == (2, 1)
    fingerprint = own_fingerprint(two.directory)
    assert view.members[1] == Member(2, two.address, fingerprint, Membership.ENTERING, healed=True)
    store = open_store(Osio(), two.data)
    assert (store.node, store.clustered) == (2, True)
    assert f"node 2 ({two.address}) has joined: epoch 2" in serving.lines
    assert (two.directory / "ca.key").read_bytes() == (one.directory / "ca.key").read_bytes()
    assert (two.directory / "ca.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_the_new_node_and_the_old_one_have_a_link(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    one, two = computers
    two.run("join", make_token(one))
    facts = two.status()
    assert [(row["number"], row["link"], row["epoch"]) for row in facts["members"]] == [
        (1, "up", 2),
        (2, "this node", 2),
    ]


@pytest.mark.slow
def test_a_token_is_good_once(computers: tuple[Computer, Computer], serving: Serving) -> None:
    one, two = computers
    token = make_token(one)
    assert two.run("join", token)[0] == EX_OK
    (two.directory / identity.VIEW).unlink()
    code, _, err = two.run("join", token)
    assert code == EX_PROTOCOL
    text = "the token is unknown, used already, or older than an hour"
    assert f"{one.address} refuses: {text}" in err
    # Tokens that are used up leave nothing to show one to.
    assert not list((one.directory / "tokens").iterdir())


@pytest.mark.slow
def test_a_token_is_good_for_an_hour(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    one, two = computers
    token = make_token(one)
    serving.offset = HOUR + 2
    code, _, err = two.run("join", token)
    assert (code, "older than an hour" in err) == (EX_PROTOCOL, True)
    assert serving.station.view.epoch == 1
    assert not (two.directory / identity.VIEW).exists()
    assert any("127.0.0.1 may not join: the token is unknown" in line for line in serving.lines)


@pytest.mark.slow
def test_a_clock_that_was_set_back_does_not_prolong_a_token(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    token = make_token(computers[0])
    serving.offset = -2.0
    assert computers[1].run("join", token)[0] == EX_PROTOCOL


@pytest.mark.slow
def test_a_lost_answer_is_repeated_with_another_token(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    """The view has the node, and the node does not know it: the same number, once in the view."""
    one, two = computers
    two.run("join", make_token(one))
    fingerprint = own_fingerprint(two.directory)
    (two.directory / identity.VIEW).unlink()
    assert two.facts("join", make_token(one))["node"] == 2
    assert own_fingerprint(two.directory) == fingerprint
    assert two.view() == serving.station.view
    assert two.view().epoch == 2


@pytest.mark.slow
def test_a_third_node_is_refused(
    computers: tuple[Computer, Computer], serving: Serving, run: Any, tmp_path: Path
) -> None:
    one, two = computers
    two.run("join", make_token(one))
    third = f"127.0.0.4:{free_port('127.0.0.4')}"
    three = Computer(run, tmp_path / "three", third, one.address)
    code, _, err = three.run("join", make_token(one))
    assert code == EX_PROTOCOL
    assert "a cluster without etcd has 2 nodes, and they are there" in err
    assert serving.station.view.epoch == 2


@pytest.mark.slow
def test_a_store_with_logs_is_refused_before_the_token_is_used(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    one, two = computers
    (two.data / "logs").mkdir(mode=0o700, parents=True)
    two.data.chmod(0o700)
    (two.data / "store.json").write_bytes((one.data / "store.json").read_bytes())
    for name in ("index", "locks", "quarantine", "spool", "run"):
        (two.data / name).mkdir()
    (two.data / "logs" / "0000000001.log").touch()
    code, _, err = two.run("join", make_token(one))
    assert code == EX_CANTCREAT
    assert "has logs (join with a data directory without mail)" in err
    assert len(list((one.directory / "tokens").iterdir())) == 1


@pytest.mark.slow
def test_a_member_cannot_join_again(computers: tuple[Computer, Computer], serving: Serving) -> None:
    code, _, err = computers[1].run("join", make_token(computers[0]))
    assert code == EX_OK
    code, _, err = computers[1].run("join", make_token(computers[0]))
    assert (code, "in a cluster already" in err) == (EX_CANTCREAT, True)


@pytest.mark.slow
def test_another_node_at_the_address_gets_no_token(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    one, two = computers
    token = tokens.parse(make_token(one))._replace(fingerprint="ab" * 32)
    code, _, err = two.run("join", token.text())
    assert (code, "not the node that the token is from" in err) == (EX_PROTOCOL, True)
    assert len(list((one.directory / "tokens").iterdir())) == 1


def test_a_node_that_does_not_answer(computers: tuple[Computer, Computer]) -> None:
    one, two = computers
    one.run("init")
    code, out, err = one.run("token")
    assert err == "metad: warning: no hub is running here; start it before the join\n"
    code, _, err = two.run("join", out.strip())
    assert code == EX_UNAVAILABLE
    assert err.startswith(f"metad: fatal: {one.address}: connection refused (")


def test_a_token_from_elsewhere_than_peers(computers: tuple[Computer, Computer]) -> None:
    token = tokens.Token("10.9.8.7:7525", "ab" * 32, bytes(16)).text()
    code, _, err = computers[1].run("join", token)
    assert (code, "must name 10.9.8.7:7525" in err) == (EX_CONFIG, True)


@pytest.mark.parametrize("text", ["", "metad1-", "metad1-!!!", "metad1-gaFh", "x" * 50])
def test_what_is_no_token(computers: tuple[Computer, Computer], text: str) -> None:
    code, _, err = computers[1].run("join", text)
    assert (code, "not a token" in err) == (EX_USAGE, True)


def test_a_token_is_its_text() -> None:
    token = tokens.Token("[fd00::1]:7525", "0123456789abcdef" * 4, bytes(range(16)))
    assert tokens.parse(token.text()) == token
    assert tokens.parse(f" {token.text()}\n") == token


def test_tokens_are_bounded_and_old_ones_removed(tmp_path: Path) -> None:
    kept = tokens.Tokens(Osio(), tmp_path)
    for _ in range(tokens.MOST_TOKENS):
        kept.make(1000)
    with pytest.raises(Exception, match="16 tokens are good already"):
        kept.make(1000 + HOUR)
    secret = kept.make(1001 + HOUR)
    assert len(list((tmp_path / "tokens").iterdir())) == 1
    assert kept.exist()
    assert not kept.take(bytes(16), 1001 + HOUR)
    assert kept.take(secret, 1001 + HOUR)
    assert not kept.take(secret, 1001 + HOUR)
    assert not kept.exist()


# -- status


@pytest.mark.slow
def test_status_of_a_cluster_of_one(computers: tuple[Computer, Computer]) -> None:
    computers[0].run("init")
    facts = computers[0].status()
    assert (facts["node"], facts["epoch"], facts["copies"]) == (1, 1, 1)
    assert facts["outlook"] == [
        {"when": "now", "mail_in": True, "mail_out": True, "deletions": True}
    ]
    code, out, _ = computers[0].run("status")  # no hub runs
    assert code == EX_OK
    assert f"1\t{computers[0].address}\tactive\tthis node, off\t1" in out
    assert "now\tno\tno\tno" in out


def both_active(view: View, read_copies: int = 2) -> View:
    return view.changed(
        members=view.with_member(2, state=Membership.ACTIVE, healed=False),
        copies=2,
        read_copies=read_copies,
    )


@pytest.mark.slow
def test_status_tells_what_one_more_failure_costs(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    one, two = computers
    two.run("join", make_token(one))
    serving.station.view = both_active(two.view())
    ViewFile(Osio(), str(two.directory / identity.VIEW)).keep(serving.station.view)
    facts = two.status()
    assert [one["link"] for one in facts["members"]] == ["up", "this node"]
    lost = {"mail_in": False, "mail_out": True, "deletions": False}
    assert facts["outlook"] == [
        {"when": "now", "mail_in": True, "mail_out": True, "deletions": True},
        {"when": "if node 1 fails", **lost},
        {"when": "if node 2 fails", **lost},
    ]
    serving.station.view = both_active(two.view(), read_copies=1)
    ViewFile(Osio(), str(two.directory / identity.VIEW)).keep(serving.station.view)
    facts = two.status()
    assert [one["mail_out"] for one in facts["outlook"]] == [True, False, False]


@pytest.mark.slow
def test_status_of_a_member_that_is_down(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    one, two = computers
    two.run("join", make_token(one))
    ViewFile(Osio(), str(two.directory / identity.VIEW)).keep(both_active(two.view()))
    serving.socket.close()
    serving.socket = socket.socket()
    facts = two.status()
    assert facts["members"][0]["link"] in ("connection refused", "no answer")
    assert facts["outlook"] == [
        {"when": "now", "mail_in": False, "mail_out": True, "deletions": False}
    ]


@pytest.mark.slow
def test_status_of_a_node_that_has_an_older_view(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    one, two = computers
    two.run("join", make_token(one))
    serving.station.view = both_active(two.view())
    facts = two.status()
    row = facts["members"][0]
    assert (row["link"], row["epoch"]) == ("epoch 3 is newer", 3)
    assert two.view().epoch == 2  # a command adopts nothing


@pytest.mark.slow
def test_status_of_a_removed_node(computers: tuple[Computer, Computer], serving: Serving) -> None:
    one, two = computers
    two.run("join", make_token(one))
    members = two.view().with_member(2, state=Membership.REMOVED)
    serving.station.view = two.view().changed(members=members)
    row = two.status()["members"][0]
    assert row["link"] == "node 2 was removed from the cluster; empty it and join again"


@pytest.mark.slow
def test_a_removed_node_changes_nothing_in_the_cluster(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    one, two = computers
    two.run("join", make_token(one))
    members = two.view().with_member(2, state=Membership.REMOVED)
    ViewFile(Osio(), str(two.directory / identity.VIEW)).keep(two.view().changed(members=members))
    with_etcd(two)
    for words in (("token",), ("restore-directory", "--yes")):
        code, out, err = two.run(*words)
        assert (code, out) == (EX_PROTOCOL, "")
        assert "node 2 was removed from the cluster (give the command on a node that" in err


@pytest.mark.slow
def test_a_directory_with_another_nodes_view(computers: tuple[Computer, Computer]) -> None:
    one = computers[0]
    one.run("init")
    code, _, err = one.run("status")
    assert code == EX_OK
    (one.directory / MEMBER).write_bytes((one.directory / "ca.pem").read_bytes())
    code, _, err = one.run("status")
    assert code == EX_PROTOCOL
    assert "the view has no member with the certificate of this node" in err


# -- peers or etcd

ETCD = 'etcd = ["http://127.0.0.1:1"]'


def with_etcd(computer: Computer) -> None:
    text = computer.config.read_text()
    computer.config.write_text(f"{text[: text.index('peers')]}{ETCD}\n")


def test_no_node_is_removed_without_etcd(computers: tuple[Computer, Computer]) -> None:
    code, _, err = computers[0].run("remove", "2")
    assert code == EX_CONFIG
    assert "cluster.etcd is missing: without etcd, a node that joins" in err


@pytest.mark.slow
def test_a_node_that_joins_must_know_of_etcd(
    computers: tuple[Computer, Computer], serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = computers
    monkeypatch.setattr(DirectProposals, "compares", True)
    code, _, err = two.run("join", make_token(one))
    assert code == EX_CONFIG
    assert "cluster.etcd is missing: the cluster of this token has its view in etcd" in err
    monkeypatch.undo()
    with_etcd(two)
    code, _, err = two.run("join", make_token(one))
    assert code == EX_CONFIG
    assert "cluster.etcd: the cluster of this token has no etcd" in err
    assert not (two.directory / identity.VIEW).exists()


@pytest.mark.slow
def test_init_needs_an_etcd_that_answers(computers: tuple[Computer, Computer]) -> None:
    with_etcd(computers[0])
    code, _, err = computers[0].run("init")
    assert code != EX_OK
    assert "etcd does not answer" in err
    assert not (computers[0].directory / identity.VIEW).exists()


@pytest.mark.slow
def test_what_needs_the_directory_process_tells_that_it_is_away(
    computers: tuple[Computer, Computer],
) -> None:
    one = computers[0]
    one.run("init")
    with_etcd(one)
    assert "the directory process cannot be asked" in one.status()["etcd"]["reason"]
    code, _, err = one.run("remove", "2")
    assert (code, "the directory process cannot be asked" in err) == (EX_PROTOCOL, True)


# -- alone


def pair(computers: tuple[Computer, Computer], serving: Serving, read_copies: int = 2) -> None:
    """Two active nodes; the first one's links are served."""
    one, two = computers
    two.run("join", make_token(one))
    view = both_active(two.view(), read_copies)
    for computer in computers:
        ViewFile(Osio(), str(computer.directory / identity.VIEW)).keep(view)
    serving.station.view = view


@pytest.mark.slow
def test_a_node_goes_on_alone(computers: tuple[Computer, Computer], serving: Serving) -> None:
    one, _ = computers
    pair(computers, serving)
    facts = one.facts("alone", "--yes")
    assert facts == {"node": 1, "epoch": 4, "copies": 1}
    view = one.view()
    assert [member.state for member in view.members] == [Membership.ACTIVE, Membership.ABSENT]
    assert (view.alone, view.unhealed) == ("accept", (2,))
    with UserDatabase(one.data / "users") as users:  # a block that node 2 never uses
        assert users.add("new@example.org").id // BLOCK % 2 == 0
    outlook = one.status()["outlook"][0]
    assert outlook == {"when": "now", "mail_in": True, "mail_out": True, "deletions": True}


@pytest.mark.slow
def test_alone_asks_first(computers: tuple[Computer, Computer], serving: Serving) -> None:
    one, _ = computers
    pair(computers, serving)
    code, _, err = one.run("alone", stdin=b"n\n")
    assert code != EX_OK
    assert "Is node 2 off?" in err
    assert one.view().epoch == 3
    assert one.run("alone", stdin=b"y\n")[0] == EX_OK
    assert one.view().epoch == 4


@pytest.mark.slow
def test_a_node_that_answers_is_not_off(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    one, two = computers
    pair(computers, serving)
    code, _, err = two.run("alone", "--yes")
    assert code == EX_PROTOCOL
    assert f"node 1 answers at {one.address}: it is not off" in err
    assert two.view().epoch == 3


@pytest.mark.slow
def test_a_node_that_answers_with_a_newer_view_is_not_off(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    pair(computers, serving)
    serving.station.view = serving.station.view.changed()
    code, _, err = computers[1].run("alone", "--yes")
    assert (code, "it is not off" in err) == (EX_PROTOCOL, True)


@pytest.mark.slow
def test_both_alone_and_once_more(
    computers: tuple[Computer, Computer], serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two views of one epoch: neither is taken, until one of the nodes makes a later one."""
    one, two = computers
    pair(computers, serving)
    one.run("alone", "--yes")
    serving.station.view = one.view()
    assert one.view().epoch == 4
    ViewFile(Osio(), str(two.directory / identity.VIEW)).keep(going.alone(two.view(), 2))
    assert "two views of epoch 4" in two.status()["members"][0]["link"]
    code, _, err = two.run("alone", "--yes")
    assert (code, "not all users are on this node yet" in err) == (EX_PROTOCOL, True)
    monkeypatch.setattr(UserDatabase, "lost", False)  # as if it had them
    assert two.run("alone", "--yes")[0] == EX_OK
    assert two.view().epoch == 5
    assert two.status()["members"][0]["link"] == "up"
    assert serving.station.view == two.view()
    assert [one.state for one in two.view().members] == [Membership.ABSENT, Membership.ACTIVE]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"read_copies": 1}, "not all mail is on both nodes yet"),
        ({"copies": 1, "read_copies": 1}, "goes on without the other already"),
        ({"one": Membership.ENTERING}, "node 1 is not active and may lack mail"),
        ({"one": Membership.ABSENT}, "node 1 is not active and may lack mail"),
        ({"two": Membership.REMOVED}, "there is no other node"),
    ],
)
def test_who_cannot_go_on_alone(change: dict[str, Any], text: str) -> None:
    states = {"one": Membership.ACTIVE, "two": Membership.ACTIVE, **change}
    members = make_member(1, states.pop("one")), make_member(2, states.pop("two"))
    view = replace(make_view(*members), **states)
    with pytest.raises(ClusterError, match=text):
        going.alone(view, 1)


@pytest.mark.slow
def test_a_lost_node_is_replaced_by_an_empty_one(
    computers: tuple[Computer, Computer], serving: Serving
) -> None:
    one, two = computers
    pair(computers, serving)
    shutil.rmtree(two.data)
    code, _, err = two.run("join", make_token(one))
    assert code == EX_PROTOCOL
    assert "the address of node 2, which is active; if that node is lost, use" in err
    assert one.run("alone", "--yes")[0] == EX_OK
    serving.station.view = one.view()
    assert two.facts("join", make_token(one))["node"] == 3
    states = {member.number: member.state for member in two.view().members}
    assert states == {1: Membership.ACTIVE, 2: Membership.REMOVED, 3: Membership.ENTERING}
    assert two.view().unhealed == ()
    assert open_store(Osio(), two.data).node == 3
