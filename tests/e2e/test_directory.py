"""Real hubs with a real etcd: the directory process, and mail while etcd is away or lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from metad.cluster import local
from metad.cluster.identity import VIEW, directory
from metad.cluster.view import View
from metad.errors import ClusterError
from tests.support.clients import bodies, deliver, in_time, message
from tests.support.cluster_hubs import NodeHub
from tests.support.etcd import EtcdCluster, TlsEtcd, need_etcd
from tests.support.hub import HubError, free_ports

need_etcd()


class EtcdHub(NodeHub):
    """A node that is alone in its cluster: `copies` is 1, so it needs no other for mail."""

    def __init__(self, etcd: EtcdCluster) -> None:
        self.etcd = etcd
        (port,) = free_ports(1)
        super().__init__(1, ["alice"], [f"127.0.0.2:{port}"], port)

    def configure(self, settings: str = "", **store: object) -> None:
        table = f'[cluster]\naddress = "{self.peer}"\netcd = {json.dumps(self.etcd.urls)}'
        super().configure(table, **store)

    def make(self) -> None:
        """A node of its own cluster, with its directory in etcd."""
        self.cluster = json.loads(self.run("cluster", "init", "--json").stdout)["cluster"]

    def ask(self, op: str, **values: object) -> dict:
        return local.ask(local.socket_path(self.data), {"op": op, **values})

    def has_word(self) -> bool:
        try:
            status = self.ask("status")
        except ClusterError:
            return False
        return status["word_s"] is not None and status["word_s"] < 10

    def problems(self) -> list[str]:
        return [one["problem"] for one in self.status()["problems"]]

    def view_bytes(self) -> bytes:
        return (directory(self.data) / VIEW).read_bytes()

    def directory_pid(self) -> int:
        (found,) = (one for one in self.status()["processes"] if one["role"] == "directory")
        return found["pid"]


class ChrootHub(EtcdHub):
    """In a chroot, which has copies of the files for TLS."""

    def configure(self, settings: str = "", **store: object) -> None:
        super().configure(settings, **store)
        names = ("etcd_ca", "etcd_certificate", "etcd_key")
        lines = [f'{name} = "{self.data}/{name}.pem"' for name in names]
        text = "\n".join([f'chroot = "{self.data}"', self.config.read_text(), *lines, ""])
        self.config.write_text(text)

    def make(self) -> None:
        owner, etcd = os.stat(self.data), self.etcd
        for name in ("etcd_ca", "etcd_certificate", "etcd_key"):
            path = self.data / f"{name}.pem"
            shutil.copy(getattr(etcd, name.removeprefix("etcd_")), path)
            os.chown(path, owner.st_uid, owner.st_gid)
            path.chmod(0o400)
        super().make()


@contextmanager
def hub(servers: int = 1) -> Iterator[EtcdHub]:
    with EtcdCluster(servers) as etcd, running(EtcdHub(etcd)) as one:
        yield one


@contextmanager
def running(one: EtcdHub) -> Iterator[EtcdHub]:
    try:
        one.make()
        one.start()
        if not in_time(one.has_word):
            raise HubError(f"no word:\n{one.log.read_text()}")
        yield one
        one.close()
    finally:
        if one.process is not None:
            print(one.log.read_text())
            one.kill()
        shutil.rmtree(one.home)


def reweighted(view: View, weight: int) -> View:
    """The next view, which no node changes by itself."""
    return view.changed(members=view.with_member(1, weight=weight))


@pytest.mark.long
def test_a_hub_has_etcd_s_word_and_mail_goes_on_without_it():
    with hub() as one:
        assert one.problems() == []
        status = one.ask("status")
        assert (status["frozen"], status["epoch"], status["alive"]) == ("", 1, [1])
        assert status["endpoint"] == one.etcd.urls[0]
        deliver(one, message(b"first\r\n"), "alice")
        one.etcd.stop(signal.SIGKILL)
        deliver(one, message(b"second\r\n"), "alice")
        assert len(bodies(one, "alice")) == 2
        assert in_time(lambda: any("etcd does not answer" in text for text in one.problems()))
        deliver(one, message(b"third\r\n"), "alice")
        assert len(bodies(one, "alice")) == 3
        one.etcd.start()
        assert in_time(lambda: one.problems() == [])
        one.etcd.servers[0].pause()
        deliver(one, message(b"fourth\r\n"), "alice")
        assert len(bodies(one, "alice")) == 4
        one.etcd.servers[0].go_on()


def test_a_proposal_is_in_force_in_all_processes():
    with hub() as one:
        view = View.decode(one.view_bytes())
        following = reweighted(view, 50)
        one.ask("propose", view=following.encode())
        assert View.decode(one.view_bytes()) == following
        late = reweighted(view, 60)
        for data, reason in ((late.encode(), "late"), (b"{}", "bad"), (b"", "cannot be read")):
            try:
                one.ask("propose", view=data)
            except ClusterError as error:
                assert reason in str(error)
            else:
                raise AssertionError(data)
        deliver(one, message(b"first\r\n"), "alice")


def test_a_directory_process_that_is_killed_is_replaced():
    with hub() as one:
        pid = one.directory_pid()
        os.kill(pid, signal.SIGKILL)
        assert in_time(lambda: one.has_word() and one.directory_pid() != pid)
        deliver(one, message(b"first\r\n"), "alice")
        assert "directory (pid" in one.log.read_text()


@pytest.mark.long
def test_a_wiped_etcd_is_restored_by_the_command():
    with hub() as one:
        deliver(one, message(b"first\r\n"), "alice")
        one.etcd.wipe()
        assert in_time(lambda: any("wiped or rolled back" in text for text in one.problems()))
        deliver(one, message(b"second\r\n"), "alice")
        assert len(bodies(one, "alice")) == 2
        assert one.ask("status")["frozen"]
        done = one.run("cluster", "restore-directory", "--yes", "--json")
        assert json.loads(done.stdout) == {"cluster": one.cluster, "epoch": 1, "generation": 2}
        assert in_time(lambda: one.problems() == [])
        assert in_time(one.has_word)


def test_etcd_moves_with_a_reload():
    with hub() as one:
        one.etcd.stop()
        one.etcd.servers[0].move()
        one.etcd.start()
        ports = one.smtp_port, one.pop3_port
        text = one.config.read_text()
        one.configure()
        table = next(line for line in one.config.read_text().splitlines() if line[:6] == "etcd =")
        one.smtp_port, one.pop3_port = ports
        old = next(line for line in text.splitlines() if line[:6] == "etcd =")
        one.config.write_text(text.replace(old, table))
        assert "cluster.etcd" in one.run("reload").stdout
        assert in_time(lambda: one.has_word() and one.ask("status")["endpoint"] in table)
        assert in_time(lambda: one.problems() == [])


def test_of_three_etcd_servers_the_leader_is_killed():
    with hub(3) as one:
        one.etcd.leader.end(signal.SIGKILL)
        deliver(one, message(b"first\r\n"), "alice")
        assert len(bodies(one, "alice")) == 1
        one.etcd.wait()
        following = reweighted(View.decode(one.view_bytes()), 50)
        one.ask("propose", view=following.encode())
        assert View.decode(one.view_bytes()) == following
        assert in_time(one.has_word)
        assert one.problems() == []


@pytest.mark.long
def test_an_old_snapshot_is_told_and_restored_by_the_command():
    """After a compaction, which is nothing to be told."""
    with hub() as one:
        one.etcd.compact()
        snapshot = one.etcd.snapshot()
        following = reweighted(View.decode(one.view_bytes()), 50)
        one.ask("propose", view=following.encode())
        one.etcd.compact()
        assert in_time(one.has_word)
        one.etcd.restore(snapshot)
        assert in_time(lambda: any("wiped or rolled back" in text for text in one.problems()))
        status = one.ask("status")
        assert status["frozen"] == "etcd has gone back to epoch 1; this node knows epoch 2"
        assert "restore-directory" in status["remedy"]
        deliver(one, message(b"first\r\n"), "alice")
        assert len(bodies(one, "alice")) == 1
        one.run("cluster", "restore-directory", "--yes")
        assert in_time(lambda: one.problems() == [])
        assert one.ask("status")["epoch"] == 2


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="not root: no chroot")
def test_in_a_chroot_and_with_certificates_on_both_sides():
    with TlsEtcd() as etcd, running(ChrootHub(etcd)) as one:
        assert one.status()["chroot"] == str(one.data)
        pid = one.directory_pid()
        os.kill(pid, signal.SIGKILL)  # its successor reads the files again
        assert in_time(lambda: one.has_word() and one.directory_pid() != pid)
        following = reweighted(View.decode(one.view_bytes()), 50)
        one.ask("propose", view=following.encode())
        deliver(one, message(b"first\r\n"), "alice")
        assert len(bodies(one, "alice")) == 1
        assert one.problems() == []
