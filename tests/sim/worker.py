"""A mail worker: the real layer on a simulated loop.  Clients call it through its loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb

from metad.config.model import StoreConfig
from metad.errors import MetadError
from metad.layers.base import LayerContext
from metad.layers.logs import LogLayer
from metad.store.index.rows import Batch
from metad.system.shared_memory import Cell, ProcessRow
from tests.sim.process import Loop, Process

if TYPE_CHECKING:
    from tests.sim.hub import Hub

TICK_SECONDS = 1.0
Answer = TypeVar("Answer")


class LostError(Exception):
    """The connection is gone: the worker died or ended."""


class Worker(Process):
    role = "worker"

    def __init__(self, hub: Hub, row: ProcessRow, slot: int) -> None:
        super().__init__(hub, row)
        self.slot = slot
        row[Cell.SLOT] = slot
        self.loop = Loop(self.scheduler)
        self.layer: Any = hub.make_layer(self)
        self.ready = False

    @property
    def log(self) -> LogLayer:
        """The layer of logs, within the cluster's if there is one."""
        log: LogLayer = getattr(self.layer, "log", self.layer)
        return log

    def work(self) -> int:
        hub = self.hub
        settings = StoreConfig(log_size=hub.sim.log_size, align=512)
        context = LayerContext(
            data=hub.data,
            settings=settings,
            area=hub.area,
            semaphore=hub.semaphore,
            row=self.row,
            loop=self.loop,
            report=self.report,
            runtime=self.runtime(),
        )
        try:
            self.layer.start(context)
        except (MetadError, OSError, lmdb.Error) as error:
            self.report(f"cannot start: {error}")
            return 1
        self._note_refusals()
        if self.log is not self.layer:
            self.layer.serve_peers(None)
        self.ready = True
        self._tick()
        self.loop.run()
        self.ready = False
        self.loop.run_rest()
        self.layer.stop()
        return 0

    def _tick(self) -> None:
        self.layer.tick()
        self.loop.call_later(TICK_SECONDS, self._tick)

    def _note_refusals(self) -> None:
        feed = self.log.feed
        real = feed.enter

        def enter(*batches: Batch) -> None:
            real(*batches)
            ids = {one.id for batch in feed.lagging for one in batch.messages}
            self.hub.refused_by_index |= ids

        feed.enter = enter  # type: ignore[method-assign]

    # -- for clients

    def call(self, work: Callable[[], Answer]) -> Answer:
        """Run something on the loop.  Raises LostError, and its exceptions."""
        answers: list[tuple[Any, Exception | None]] = []

        def do() -> None:
            try:
                answers.append((work(), None))
            except Exception as error:
                answers.append((None, error))

        self.loop.call_soon_threadsafe(do)
        self.wait(lambda: bool(answers))
        answer, error = answers[0]
        if error is not None:
            raise error
        return answer

    def wait(self, ready: Callable[[], bool]) -> None:
        """Raises LostError if the worker goes before that."""
        self.scheduler.wait(lambda: ready() or self.dead or self.loop.stopped)
        if not ready():
            raise LostError
