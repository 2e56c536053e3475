"""The monitor's process: a child of the master that only reads shared memory."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metad import __version__
from metad.config.model import Config
from metad.monitor import facts as monitor_facts
from metad.monitor import server
from metad.monitor.facts import Facts
from metad.monitor.health import REFUSING, Health, Report
from metad.monitor.history import SAMPLE_SECONDS, History
from metad.monitor.metrics import CONTENT_TYPE, HubCollector
from metad.monitor.metrics import page as metrics_page
from metad.monitor.visitors import Visitors
from metad.store.log_table import LogTable, Semaphore
from metad.system.shared_memory import Cell, ProcessRow, SharedArea

TICK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class MonitorSetup:
    """The parameters of the process.  `started`: the hub's start, Unix time."""

    config: Config
    sock: socket.socket
    area: SharedArea
    semaphore: Semaphore
    row: ProcessRow
    started: float
    ready: Callable[[], None]


class Monitor:
    """Answers requests until it is told to stop."""

    def __init__(self, setup: MonitorSetup) -> None:
        self._setup = setup
        self._table = LogTable(setup.area, setup.semaphore, setup.row)
        self._health = Health(lambda: setup.config)
        self._history = History()
        collector = HubCollector(self.look, lambda: setup.config, setup.started)
        self._routes: dict[str, server.Route] = {
            "/": server.page,
            "/metrics": lambda: ("200 OK", CONTENT_TYPE, metrics_page(collector)),
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/status.json": lambda: server.as_json(self.status()),
        }

    def look(self) -> tuple[Facts, Report]:
        facts = monitor_facts.take(self._setup.area, self._table.rows())
        return facts, self._health.look(facts)

    def status(self) -> dict[str, Any]:
        """What the status page shows."""
        setup = self._setup
        facts, report = self.look()
        try:
            free = shutil.disk_usage(setup.config.data).free
        except OSError:
            free = 0
        return {
            "version": __version__,
            "state": report.state,
            "problems": report.facts(),
            "uptime": time.time() - setup.started,
            "disk_free": free,
            "rates": self._history.rates(),
            "latencies": self._history.latencies(),
            **monitor_facts.as_json(facts, setup.config.store.log_size),
        }

    def _healthz(self) -> server.Answer:
        facts, report = self.look()
        return server.as_health(bool(facts.workers), report.state)

    def _readyz(self) -> server.Answer:
        _, report = self.look()
        return server.as_health(report.state != REFUSING, report.state)

    def run(self) -> int:
        """Serve until SIGTERM, SIGHUP or SIGQUIT.  The exit code."""
        setup = self._setup
        stop_r, stop_w = os.pipe()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, lambda *_: os.write(stop_w, b"x"))
        any_host = setup.sock.family == socket.AF_UNIX
        web = server.MonitorServer(setup.sock, server.application(self._routes, any_host=any_host))
        visitors = Visitors(setup.sock, web)
        setup.ready()
        sampled = float("-inf")
        while True:
            setup.row[Cell.HEARTBEAT] = time.monotonic_ns()
            now = time.monotonic()
            if now - sampled >= SAMPLE_SECONDS:
                sampled = now
                self._history.add(self.look()[0], now)
            listening = setup.sock.fileno()
            watched = [listening, visitors.fileno(), stop_r]
            ready = select.select(watched, [], [], TICK_SECONDS)[0]
            if stop_r in ready:
                return 0
            if listening in ready:
                visitors.accept()
            visitors.serve()


def main(setup: MonitorSetup) -> int:
    return Monitor(setup).run()
