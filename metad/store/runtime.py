"""What the store of one process runs on: operating system, threads, clock and index.

A simulator passes its own, and runs several processes in one (tests/sim).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from metad.store.background import JobThread, StartThread
from metad.store.index.index import Index
from metad.system.osio import Osio


@dataclass(frozen=True, slots=True)
class Runtime:
    """`now` returns seconds of a monotonic clock."""

    osio: Osio = field(default_factory=Osio)
    open_index: Callable[[str], Index] = Index
    start_thread: StartThread = JobThread
    now: Callable[[], float] = time.monotonic
