"""The directory process: the only one of a node of a cluster that talks to etcd.

It serves DATA/run/directory, for the workers and commands of this node (metad.cluster.local).
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from metad.cluster import local, seen
from metad.cluster.current_view import CurrentView
from metad.cluster.directory import Directory, DirectoryNode
from metad.cluster.draining import answer_drain
from metad.cluster.etcd import Etcd
from metad.cluster.hello import START_SIZE
from metad.cluster.identity import VIEW, directory
from metad.cluster.local import LocalServer, Message
from metad.cluster.removing import answer_removal
from metad.cluster.seen import SeenFile
from metad.cluster.view import View
from metad.cluster.view_file import ViewFile
from metad.cluster.word import Word
from metad.config.model import Config
from metad.errors import ClusterError
from metad.loglines import LogLines
from metad.store.identity import open_store
from metad.system.osio import Osio
from metad.system.shared_memory import Cell, ProcessRow, SharedArea
from metad.users.mirrored import MirroredUsers
from metad.users.rows import Change
from metad.users.user_directory import UserDirectory, UserDirectoryNode

TICK_SECONDS = 0.5
STOP_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class DirectorySetup:
    """What the master gives to the process."""

    config: Config
    area: SharedArea
    row: ProcessRow
    ready: Callable[[], None]


class DirectoryProcess:
    """One process after its fork."""

    def __init__(self, setup: DirectorySetup, loop: asyncio.AbstractEventLoop) -> None:
        self._setup = setup
        as_json = setup.config.log_format == "json"
        self._log = LogLines(2, loop.call_soon, as_json=as_json)
        self._ended = asyncio.Event()

    def _report(self, text: str) -> None:
        self._log.line("directory", text)

    async def run(self) -> int:
        """Until SIGTERM, SIGHUP or SIGQUIT.  The exit code."""
        loop, config = asyncio.get_running_loop(), self._setup.config
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._ended.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        async with Etcd(config.cluster) as etcd:
            server = LocalServer(local.socket_path(config.data), self._report)
            made = Directory(etcd, self._node())
            users = self._users(etcd, made)
            register(server, made, users)
            await server.start()
            running = (made.run(), users.run(), self._tick())
            tasks = [asyncio.create_task(one) for one in running]
            self._setup.ready()
            try:
                await self._until_ended(tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await server.close()
                self._log.flush()
        return 0

    async def _until_ended(self, tasks: list[asyncio.Task[None]]) -> None:
        """Raises what a task raises: then the master starts another process."""
        ended = asyncio.create_task(self._ended.wait())
        done, _ = await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _tick(self) -> None:
        while True:
            self._setup.row[Cell.HEARTBEAT] = time.monotonic_ns()
            self._setup.row[Cell.LOG_LINES_DROPPED] = self._log.dropped
            self._log.tick()
            await asyncio.sleep(TICK_SECONDS)

    def _node(self) -> DirectoryNode:
        """Raises ClusterError, DataError, OSError."""
        config, area, osio = self._setup.config, self._setup.area, Osio()
        place = directory(config.data)
        store = open_store(osio, config.data)
        return DirectoryNode(
            number=store.node,
            start=secrets.token_bytes(START_SIZE),
            current=CurrentView(ViewFile(osio, str(place / VIEW)), area.epoch_cell),
            seen=SeenFile(osio, str(place / seen.NAME)),
            word=Word(*area.word_cells),
            frozen=area.frozen_cell,
            trusted=area.etcd_cell,
            refused=area.etcd_refuses_cell,
            absent_after=config.cluster.absent_after,
            clock_ns=osio.boottime_ns,
            report=self._report,
            takes_part=lambda: not area.refused_cell[0],
        )

    def _users(self, etcd: Etcd, made: Directory) -> UserDirectory:
        """Raises DataError, OsError."""
        database = MirroredUsers(self._setup.config.data / "users", create=True)
        if not database.in_directory:  # lost or restored: all rows come again
            database.follow(empty=False)
        node = UserDirectoryNode(
            made.node.number, made.keys, lambda: made.trusted, self._report,
            lambda: made.distrusts, made.distrust,
        )  # fmt: skip
        return UserDirectory(etcd, node, database)


def register(server: LocalServer, made: Directory, users: UserDirectory) -> None:
    """What a directory answers."""

    async def propose(message: Message) -> Message:
        data: Any = message.get("view")
        if not isinstance(data, bytes):
            raise ClusterError("a proposal has no view")
        view = View.decode(data)
        try:
            await made.propose(view)
        except OSError as error:
            raise ClusterError(f"{error.filename or 'the view'}: {error.strerror}") from None
        return {"epoch": view.epoch}

    async def status(_: Message) -> Message:
        shown = {"users_revision": users.position.revision, "users_error": users.error}
        return {**made.status(), **shown}

    async def change_users(message: Message) -> Message:
        made.check()
        made.check_member()
        is_done = await users.change(Change.decode(message.get("change")))
        return {"overtaken": not is_done}

    async def remove(message: Message) -> Message:
        return await answer_removal(made, made.node.number, message)

    async def drain(message: Message) -> Message:
        return await answer_drain(made, made.node.number, message)

    server.register("propose", propose)
    server.register("drain", drain)
    server.register("remove", remove)
    server.register("status", status)
    server.register("users", change_users)


def places(config: Config) -> list[Path]:
    """What this process uses besides those of a worker."""
    return list(config.cluster.etcd_files)


def main(setup: DirectorySetup) -> int:
    """The life of the process, in a forked child."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(DirectoryProcess(setup, loop).run())
