"""Real hubs in network namespaces, made the nodes of a cluster with etcd by the commands alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Self

from tests.support.clients import in_time
from tests.support.cluster_net import Net, Place
from tests.support.etcd import EtcdCluster
from tests.support.hub import Hub, HubError

PORT = 7525


class NetNode(Hub):
    """One node; its clients and commands run in its namespace."""

    def __init__(self, place: Place, etcd: Iterable[str], mailboxes: Iterable[str] = ()) -> None:
        self.place = place
        self.number = place.number
        self.peer = f"{place.address}:{PORT}"
        endpoints = json.dumps(list(etcd))
        table = f'[cluster]\naddress = "{self.peer}"\netcd = {endpoints}\nabsent_after = "15s"\n'
        super().__init__(mailboxes, table, log_size="8MiB")

    def announced(self) -> list[str]:
        return [*super().announced(), f"listening peer {self.peer}"]

    def run(
        self, *arguments: str, given: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        with self.place.inside():
            return super().run(*arguments, given=given, check=check)

    def run_forked(
        self, *arguments: str, given: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        with self.place.inside():
            return super().run_forked(*arguments, given=given, check=check)

    def start(self) -> Self:
        with self.place.inside():
            return super().start()

    def cluster(self) -> dict[str, Any]:
        """What `metad cluster status` says."""
        found: dict[str, Any] = json.loads(self.run("cluster", "status", "--json").stdout)
        return found


def state_of(member: NetNode, seen_by: NetNode) -> str:
    """Of a member, in the view of another."""
    members = seen_by.cluster()["members"]
    return next(str(one["state"]) for one in members if one["number"] == member.number)


class NetCluster:
    """Three nodes and an etcd, all running within the context."""

    def __init__(self, mailboxes: Iterable[str], count: int = 3) -> None:
        self.net = Net(count)
        try:
            self.etcd = EtcdCluster(1, host=self.net.middle.address)
        except BaseException:
            self.net.__exit__()
            raise
        boxes = [mailboxes, *[()] * (count - 1)]
        self.nodes = [
            NetNode(place, self.etcd.urls, names)
            for place, names in zip(self.net.places, boxes, strict=True)
        ]

    def __enter__(self) -> Self:
        try:
            with self.net.middle.inside():
                self.etcd.start()
            self._join()
        except BaseException:
            self._end()
            raise
        return self

    def _join(self) -> None:
        first, *others = self.nodes
        first.run("cluster", "init")
        first.start()
        for node in others:
            token = first.run("cluster", "token").stdout.strip()
            node.run("cluster", "join", token)
            node.start()
            if not in_time(lambda node=node: self._is_in(node), 60.0):  # type: ignore[misc]
                raise HubError(f"node {node.number} is not in: {first.cluster()}")

    def _is_in(self, node: NetNode) -> bool:
        """Whether all have a view in which it is active and all mail has its copies."""
        facts = [one.cluster() for one in self.nodes if one.process is not None]
        states = {
            (fact["epoch"], fact["copies_of_old_mail"], member["state"])
            for fact in facts
            for member in fact["members"]
            if member["number"] == node.number
        }
        return len(states) == 1 and {(two, state) for _, two, state in states} == {(2, "active")}

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            for node in self.nodes:
                node.close(failed=kind is not None)
        finally:
            self._end()

    def _end(self) -> None:
        for node in self.nodes:
            if node.process is not None:
                print(f"the log of node {node.number}:\n{node.log.read_text()}")
                with suppress(OSError):
                    node.kill()
            shutil.rmtree(node.home)
        self.etcd.__exit__()
        self.net.__exit__()
