"""A node's part in a directory, without its processes: its files, cells and clock."""

from __future__ import annotations

import time
from pathlib import Path

from metad.cluster import restoring, seen
from metad.cluster.current_view import CurrentView
from metad.cluster.directory import Directory, DirectoryNode
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import Json
from metad.cluster.seen import SeenFile
from metad.cluster.view import View
from metad.cluster.view_file import ViewFile
from metad.cluster.word import Word
from metad.config.model import ClusterConfig
from metad.system.osio import Osio

ABSENT_AFTER = 15.0
PATIENCE = 30.0


def config(urls: tuple[str, ...]) -> ClusterConfig:
    return ClusterConfig(address="127.0.0.1:1", etcd=urls)


class PatientEtcd(Etcd):
    """On a busy machine a real etcd takes longer than a hub waits: a round would fail, report that
    etcd does not answer and then that it does again, and the lease would come a round later."""

    async def _attempt(self, path: str, body: Json, patience: float) -> Json:
        return await super()._attempt(path, body, max(patience, PATIENCE))


class Node:
    """One node.  `later` moves its clock, which else is the machine's."""

    def __init__(self, home: Path, number: int, view: View) -> None:
        home.mkdir()
        self.number = number
        self.home = home
        self.cells = memoryview(bytearray(8 * 6)).cast("Q")
        self.word = Word(self.cells[1:2], self.cells[2:3])
        self.lines: list[str] = []
        self.later_ns = 0
        self.takes_part = True
        self.file = ViewFile(Osio(), str(home / "view"))
        self.file.keep(view)
        self.seen = SeenFile(Osio(), str(home / seen.NAME))
        self.current = CurrentView(self.file, self.cells[0:1])

    def clock_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self.later_ns

    def directory(self, etcd: Etcd) -> Directory:
        """After a start of its process."""
        return Directory(
            etcd,
            DirectoryNode(
                number=self.number,
                start=bytes([self.number]) * 8,
                current=self.current,
                seen=self.seen,
                word=self.word,
                frozen=self.cells[3:4],
                trusted=self.cells[4:5],
                refused=self.cells[5:6],
                absent_after=ABSENT_AFTER,
                clock_ns=self.clock_ns,
                report=self.lines.append,
                takes_part=lambda: self.takes_part,
            ),
        )

    @property
    def view(self) -> View:
        return self.current.get()

    @property
    def has_word(self) -> bool:
        return self.word.is_good(self.view.epoch, self.clock_ns())

    @property
    def is_frozen(self) -> bool:
        return bool(self.cells[3])


async def begin(etcd: Etcd, view: View) -> None:
    await restoring.begin(etcd, view, view.members[0].number)


async def settle(*directories: Directory) -> None:
    """Two rounds of each: a lease, then word."""
    for _ in range(2):
        for one in directories:
            await one.round()
