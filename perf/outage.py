"""Three nodes and etcd: mail from a node that has no copy of it, and seconds until service.

    sh tools/perf outage [--rounds 5] [--messages 2000]

*Fetching*: a mailbox's messages from a node that has none of them, beside a node that has all, in
turns.  *Service*: one client sends and one polls at a node without end; another node is killed
(kill -9 of all its processes), or stands still (SIGSTOP: to the others that is the same as a cut
cable or a stalled link, silence on open connections).  The longest time between two successes,
from the harm on, is what is printed.  All nodes share the machine and its disk.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import poplib
import signal
import smtplib
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metad.cluster.view import View
from perf import harness
from perf.generator import GeneratorError, Pop3, Smtp
from perf.harness import HarnessError, HubOptions, Server

NODES = 3
USERS = tuple(f"user{number}@perf.example" for number in range(12))
JOINS_WITHIN = 60.0
SECONDS = 12.0  # of a harm: longer than any patience of a node
PATIENCE = 30.0  # of a client
RETRIEVED = 200  # messages of a session


class Node:
    """One node, which can be started again."""

    def __init__(self, where: Path, more: str, workers: int) -> None:
        where.mkdir(mode=0o755)
        self.where = where
        self._more = more
        self._workers = workers
        self._running = ExitStack()
        self.server = Server(0, 0)

    def start(self, users: tuple[str, ...] = (), *commands: tuple[str, ...]) -> None:
        options = HubOptions(self._workers, users=users, more=self._more, commands=commands)
        self.server = self._running.enter_context(harness.hub(self.where, options))

    def stop(self) -> None:
        self._running.close()

    def signal_all(self, number: signal.Signals) -> None:
        for pid in self.server.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextlib.contextmanager
def etcd(where: Path) -> Iterator[str]:
    """Its endpoint."""
    tool = harness.find_tool("etcd")
    if tool is None:
        raise HarnessError("etcd is not here: apt install etcd-server, or sh tools/packages")
    own, peer = (f"http://127.0.0.1:{port}" for port in harness.free_ports(2))
    command = [
        tool.path, "--data-dir", str(where / "etcd"), "--listen-client-urls", own,
        "--advertise-client-urls", own, "--listen-peer-urls", peer,
        "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
    ]  # fmt: skip
    with (where / "etcd.log").open("wb") as log:
        process = subprocess.Popen(command, env=tool.environment, stdout=log, stderr=log)
        try:
            _await_port(int(own.rpartition(":")[2]))
            yield own
        finally:
            process.kill()
            process.wait()


def _await_port(port: int) -> None:
    deadline = time.monotonic() + JOINS_WITHIN
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise HarnessError(f"nothing listens on port {port}")


@contextlib.contextmanager
def cluster(where: Path, workers: int) -> Iterator[list[Node]]:
    with ExitStack() as stack:
        endpoint = stack.enter_context(etcd(where))
        nodes = []
        for number, port in enumerate(harness.free_ports(NODES), 1):
            table = (
                f'\n[cluster]\naddress = "127.0.0.{number + 1}:{port}"\netcd = ["{endpoint}"]\n'
                'absent_after = "1d"\n'  # what is measured is service without a change of the view
            )
            nodes.append(Node(where / f"node{number}", table, workers))
            stack.callback(nodes[-1].stop)
        first, *others = nodes
        first.start(USERS, ("cluster", "init"))
        for node in others:
            token = harness.metad(first.where, "cluster", "token").strip()
            node.start((), ("cluster", "join", token))
            await_active(first)
        yield nodes


def await_active(node: Node) -> None:
    """Wait until every member is active and every message has two copies."""
    deadline = time.monotonic() + JOINS_WITHIN
    while time.monotonic() < deadline:
        facts = json.loads(harness.metad(node.where, "cluster", "status", "--json"))
        states = {one["state"] for one in facts["members"]}
        links = {one["link"] for one in facts["members"]} - {"up", "this node"}
        if states == {"active"} and not links and facts["copies_of_old_mail"] == 2:
            return
        time.sleep(0.2)
    raise HarnessError("not all nodes have become active")


# --- Fetching -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetching:
    """`home` has all messages of these users, `foreign` none."""

    users: tuple[str, ...]
    home: Node
    foreign: Node


def fetching(nodes: list[Node]) -> Fetching:
    """Mail that the first node receives lies on it and on the home of the mailbox.  So the users
    whose home is the second node have nothing on the third."""
    first, second, third = nodes
    view = View.decode((first.where / "data" / "cluster" / "view").read_bytes())
    found = []
    for user in USERS:
        facts = json.loads(harness.metad(first.where, "user", "show", user, "--json"))
        if view.home(int(facts["mailbox"])) == view.members[1].number:
            found.append(user)
    if not found:
        raise HarnessError("no user has the second node as home")
    return Fetching(tuple(found), second, third)


def fetch(found: Fetching, rounds: int) -> list[float]:
    """Rates from the foreign node, each as a ratio to the home's in the same round."""
    ratios = []
    for number in range(rounds + 1):
        load = Pop3(len(found.users), 4 * len(found.users), "keep", RETRIEVED)
        home, foreign = (
            load.run(node.server.pop3, found.users, harness.PASSWORD).rate
            for node in (found.home, found.foreign)
        )
        if number:  # the first round warms up
            ratios.append(foreign / home)
    return ratios


# --- Service --------------------------------------------------------------------------------------


class Client(threading.Thread):
    """Does one thing after the other; notes when each succeeded."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._act = act
        self._ended = threading.Event()
        self.successes: list[float] = []

    def run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError, smtplib.SMTPException, poplib.error_proto, EOFError):
                self._act()
                self.successes.append(time.monotonic())

    def end(self) -> None:
        self._ended.set()
        self.join()

    def longest(self, since: float) -> float:
        """Between two successes, after this moment."""
        moments = [since, *(one for one in self.successes if one > since)]
        if len(moments) == 1:
            raise HarnessError("there was no service at all")
        return max(after - before for before, after in itertools.pairwise(moments))


def send(port: int, user: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as smtp:
        smtp.sendmail("sender@client.example", [user], "Subject: service\r\n\r\ntext\r\n")


def poll(port: int, user: str) -> None:
    pop = poplib.POP3("127.0.0.1", port, timeout=PATIENCE)
    try:
        pop.user(user)
        pop.pass_(harness.PASSWORD)
        pop.list()
        pop.quit()
    finally:
        pop.close()


def harm(node: Node, kind: str) -> None:
    if kind == "killed":
        node.signal_all(signal.SIGKILL)
    else:
        node.signal_all(signal.SIGSTOP)


def undo(node: Node, kind: str) -> None:
    if kind == "killed":
        node.stop()
        node.start()
    else:
        node.signal_all(signal.SIGCONT)


def service(nodes: list[Node], victim: Node, kind: str) -> tuple[float, float]:
    """Seconds without a 250, and without a poll, at a node beside the victim."""
    at = nodes[0].server
    mail = Client(lambda: send(at.smtp, USERS[0]))
    polls = Client(lambda: poll(at.pop3, USERS[1]))
    for client in (mail, polls):
        client.start()
    time.sleep(1.0)
    since = time.monotonic()
    harm(victim, kind)
    time.sleep(SECONDS)
    for client in (mail, polls):
        client.end()
    undo(victim, kind)
    await_active(nodes[0])
    return mail.longest(since), polls.longest(since)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} (from {min(values):.2f} to {max(values):.2f})"


def run(options: argparse.Namespace) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    with harness.directory(options.directory) as where:
        facts["machine"] = harness.machine(where)
        print(harness.conditions(facts["machine"]), flush=True)
        with cluster(where, options.workers) as nodes:
            found = fetching(nodes)
            Smtp(10, options.messages, options.size).run(nodes[0].server.smtp, found.users)
            facts["fetching"] = ratios = fetch(found, options.rounds)
            print(f"fetching from a node without copies: {spread(ratios)} of the home's rate")
            for kind in ("killed", "stopped"):
                times = [
                    service(nodes, nodes[1 + number % 2], kind) for number in range(options.rounds)
                ]
                facts[kind] = times
                print(
                    f"another node {kind}: {spread([mail for mail, _ in times])} s without a 250, "
                    f"{spread([polls for _, polls in times])} s without a poll",
                    flush=True,
                )
    return facts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--workers", type=int, default=1, help="of each node")
    parser.add_argument("--directory", help="where the data goes for the time (a real disk)")
    return parser.parse_args()


def main() -> int:
    harness.end_in_order()
    try:
        run(arguments())
    except (HarnessError, GeneratorError) as error:
        print(f"outage: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
