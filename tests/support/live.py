"""A real hub, seen as its processes."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metad.control_client import request
from metad.errors import MetadError
from tests.support.clients import fetch
from tests.support.hub import DEADLINE, Hub, watching

NAMES = ["alice", "bob", "carol"]
LOOK_SECONDS = 0.005
_FLOCK = struct.Struct("hhqqi4x")


class LiveHub(Hub):
    """`heartbeat` in seconds; the rest as for Hub."""

    def __init__(self, heartbeat: int = 30, settings: str = "", **store: object) -> None:
        self.limits = f"[limits]\nheartbeat = {heartbeat}\n{settings}"
        super().__init__(NAMES, self.limits, **store)

    def facts(self) -> dict:
        """The status, asked for without a command of its own."""
        return request(self.data, "status")

    def reload(self) -> dict:
        """As the command does it, without a command of its own."""
        text, source = self.config.read_text(), str(self.config)
        return request(self.data, "reload", DEADLINE, content=text, source=source)

    def worker_pids(self) -> list[int]:
        return [one["pid"] for one in self.facts()["workers"]]

    def until(self, condition: Callable[[dict], object], what: str) -> dict:
        """The first status of which `condition` holds."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            with suppress(MetadError):
                facts = self.facts()
                if condition(facts):
                    return facts
            select.select([], [], [], LOOK_SECONDS)  # the machine is the hub's meanwhile
        raise AssertionError(f"never: {what}; the log:\n{self.log.read_text()}")

    def whole(self, *gone: int) -> dict:
        """Wait until every slot has a serving worker, none of `gone`, and nothing is recovered."""

        def holds(facts: dict) -> bool:
            serving = [one for one in facts["workers"] if one["state"] == "serving"]
            pids = {one["pid"] for one in serving}
            busy = any(one["role"] == "recovery" for one in facts["processes"])
            return len(serving) >= 2 and not pids & set(gone) and not busy

        return self.until(holds, "all workers serving")


@contextmanager
def as_it_was(live: LiveHub) -> Iterator[LiveHub]:
    """For a hub that several tests have one after another: configuration and workers are again
    as they were, no mail is left, when the next one gets it."""
    text = live.config.read_text()
    yield live
    live.config.write_text(text)
    live.reload()
    for name in NAMES:
        settled_fetch(live, name, delete=True)
    live.until(lambda facts: len(facts["workers"]) == 2, "the old generation gone")
    live.whole()


def settled_fetch(hub: Hub, name: str, *, delete: bool = False) -> list[bytes]:
    """A mailbox, once no broken session holds it any more and every log has been recovered."""
    deadline = time.monotonic() + DEADLINE
    while True:
        with suppress(OSError, AssertionError):
            return fetch(hub, name, delete=delete)
        assert time.monotonic() < deadline


def strike(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal one process, and for kill -9 wait until it is gone."""
    with watching([pid]) as gone:
        os.kill(pid, number)
        if number == signal.SIGKILL:
            gone(DEADLINE)


def wait_gone(pid: int) -> None:
    with watching([pid]) as gone:
        gone(DEADLINE)


@contextmanager
def index_locked(data: Path) -> Iterator[None]:
    """Hold the index's write lock, so that every writer waits."""
    with (data / "index" / "writer").open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        yield


def helper(facts: dict, role: str) -> int:
    """The pid of that child of the master, 0: there is none."""
    return next((one["pid"] for one in facts["processes"] if one["role"] == role), 0)


def recovery(facts: dict) -> int:
    return helper(facts, "recovery")


def collector(facts: dict) -> int:
    return helper(facts, "collector")
