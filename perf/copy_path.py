"""The cost of a copied message in the layers of both nodes, without sockets, TLS and sessions.

    python -m perf.copy_path [--rounds N] [--messages N] [--count]

Three stores in this process: one without a cluster, and two nodes of one, joined by links whose
bytes are handed over here.  Printed are microseconds of CPU for each message, medians of rounds in
turns, and with `--count` Python's instructions, which other work on the machine does not change.
The same file runs in a worktree of another commit, so that the two can be compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

from metad.cluster.identity import VIEW, directory
from metad.cluster.link import Link
from metad.cluster.node import Node
from metad.cluster.transport import Links
from metad.cluster.view import Member, Membership, View
from metad.cluster.view_file import ViewFile
from metad.config.model import StoreConfig
from metad.layers.base import Layer, LayerContext
from metad.layers.bench import make_envelope, private_area, stuff
from metad.layers.cluster import ClusterLayer
from metad.layers.logs import LogLayer
from metad.store import hub_time, identity
from metad.store.background import Job
from metad.store.index import index
from metad.store.index.tombstones import Origin, keep_tombstones
from metad.store.runtime import Runtime
from metad.system.osio import Osio
from perf.links import Wire
from perf.smtp_load import message

RAM_DISK = "/dev/shm"
CLUSTER = "c0ffee00" * 4
MAILBOXES = 10
SIZE = 500


class Loop:
    """What a layer needs of an event loop; a timer is due when nothing else is."""

    def __init__(self) -> None:
        self._ready: deque[Callable[[], object]] = deque()
        self._timers: list[Callable[[], object]] = []

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._ready.append(callback)

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        self._timers.append(callback)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> None:
        self._ready.append(lambda: callback(*args))

    def run(self) -> None:
        while self._ready:
            self._ready.popleft()()

    def run_timers(self) -> None:
        timers, self._timers = self._timers, []
        self._ready += timers
        self.run()


class Thread:
    """Does its jobs at once."""

    def __init__(self, name: str, idle: Job = lambda: None, every: float | None = None) -> None:
        pass

    def put(self, job: Job) -> None:
        job()

    def stop(self) -> None:
        pass


class JoinedLinks:
    """Stands for metad.cluster.transport.Links: one link, to the other node."""

    def __init__(self, node: Node, other: int) -> None:
        self.link = Link(node, lambda link: None, other)
        self.wire = Wire()

    def request(self, member: int, *request: Any) -> None:
        self.link.request(*request)

    def is_up(self, member: int) -> bool:
        return self.link.is_ready

    def flush(self) -> bool:
        return False

    def close(self) -> None: ...


class Copied(ClusterLayer):
    """One of two nodes, 1 and 2."""

    def _make_links(self, context: LayerContext) -> Links:
        self._node = self._make_node(context, bytes(8))
        self._node.clock = lambda: 0.0  # a link that stands still for a second is closed
        return cast(Links, JoinedLinks(self._node, 3 - self.log.store.node))

    @property
    def joined(self) -> JoinedLinks:
        return cast(JoinedLinks, self.links)


def make_store(data: Path, number: int, view: View | None) -> None:
    data.mkdir()
    store = identity.make_store(
        data, bytes(16), bytes([number]) * 32, number, clustered=view is not None
    )
    (data / "logs").mkdir()
    identity.write_identity(Osio(), store)
    identity.open_or_make_store(Osio(), data)
    if view is not None:
        opened = index.Index(store.index)
        keep_tombstones(opened, Origin(number, 1))
        opened.close()
        directory(data).mkdir()
        ViewFile(Osio(), str(directory(data) / VIEW)).keep(view)


@contextmanager
def started(layer: Layer, data: Path, number: int, view: View | None = None) -> Iterator[Loop]:
    make_store(data, number, view)
    area, semaphore = private_area()
    hub_time.begin(Osio(), area, 0)
    loop = Loop()
    layer.start(
        LayerContext(
            data=data,
            settings=StoreConfig(layer="log", log_size=64 << 20),
            area=area,
            semaphore=semaphore,
            row=area.process(1),
            loop=loop,
            report=lambda line: None,
            runtime=Runtime(start_thread=Thread),
        )
    )
    try:
        yield loop
    finally:
        layer.stop()


class Meter:
    """CPU of each side; or Python's instructions, if they are counted."""

    def __init__(self, *, counts: bool) -> None:
        self._counts = counts
        self._instructions = 0
        self.spent = {"alone": 0.0, "taking": 0.0, "copied": 0.0}

    @contextmanager
    def measures(self, side: str) -> Iterator[None]:
        if self._counts:
            before = self._instructions
            sys.settrace(self._trace)
            try:
                yield
            finally:
                sys.settrace(None)
            self.spent[side] += self._instructions - before
            return
        began = time.thread_time()
        yield
        self.spent[side] += time.thread_time() - began

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._instructions += event == "opcode"
        return self._trace


class Bench:
    """The three stores."""

    def __init__(self, stack: ExitStack, where: Path, messages: int) -> None:
        members = tuple(
            Member(one, f"127.0.0.{one}:7525", f"{one:064x}", Membership.ACTIVE, healed=False)
            for one in (1, 2)
        )
        view = View(CLUSTER, 1, members, 2, 2, "refuse")
        self._messages = messages
        self._text = message(SIZE)
        self.alone, self.taking, self.copied = LogLayer(), Copied(), Copied()
        enter = stack.enter_context
        self._alone_loop = enter(started(self.alone, where / "alone", 9))
        self._taking_loop = enter(started(self.taking, where / "taking", 1, view))
        self._copied_loop = enter(started(self.copied, where / "copied", 2, view))
        near, far = self.taking.joined, self.copied.joined
        near.link.connected(near.wire, members[1].fingerprint)
        far.link.connected(far.wire, members[0].fingerprint)
        while near.wire.sent or far.wire.sent:
            far.link.feed(near.wire.take())
            near.link.feed(far.wire.take())
        if not (near.link.is_ready and far.link.is_ready):
            raise RuntimeError(near.link.reason or far.link.reason)
        self._answers: list[object] = []

    def _deliver(self, layer: Layer) -> None:
        for number in range(self._messages):
            envelope = make_envelope(layer, [1 + number % MAILBOXES], self._text)
            layer.deliver(envelope, self._wire, self._answers.append)

    def round(self, meter: Meter) -> None:
        self._wire = stuff(self._text)
        with meter.measures("alone"):
            self._deliver(self.alone)
            self._alone_loop.run()
            self._alone_loop.run_timers()
        near, far = self.taking.joined, self.copied.joined
        with meter.measures("taking"):
            self._deliver(self.taking)
            self._taking_loop.run()
        requests = near.wire.take()
        with meter.measures("copied"):
            far.link.feed(requests)
            self._copied_loop.run()
        answers = far.wire.take()
        with meter.measures("taking"):
            near.link.feed(answers)
            self._taking_loop.run()
            self._taking_loop.run_timers()
        with meter.measures("copied"):
            self._copied_loop.run_timers()
        near.link.tick()
        far.link.tick()
        if self._answers != [None] * (2 * self._messages):
            raise RuntimeError(f"{len(self._answers)} answers: {set(map(str, self._answers))}")
        self._answers.clear()


def measure(rounds: int, messages: int, *, counts: bool) -> dict[str, float]:
    """Of each message."""
    index.MAP_SIZE = 1 << 30
    spent: dict[str, list[float]] = {"alone": [], "taking": [], "copied": []}
    where = Path(tempfile.mkdtemp(prefix="metad-perf-", dir=RAM_DISK))
    try:
        with ExitStack() as stack:
            bench = Bench(stack, where, messages)
            for number in range(rounds + 1):
                meter = Meter(counts=counts)
                bench.round(meter)
                for side, value in meter.spent.items():
                    if number:  # the first round warms up
                        spent[side].append(value / messages * (1 if counts else 1e6))
    finally:
        shutil.rmtree(where)
    figures = {side: round(statistics.median(values), 2) for side, values in spent.items()}
    alone = figures["alone"]
    return figures | {
        f"{side} / alone": round(figures[side] / alone, 3) for side in ("taking", "copied")
    }


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--messages", type=int, default=50, help="of a group")
    parser.add_argument("--count", action="store_true", help="Python's instructions")
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    print(json.dumps(measure(options.rounds, options.messages, counts=options.count)))


if __name__ == "__main__":
    main()
