"""A thread that runs jobs one after another, beside an event loop.

The committer and the log allocator are given one, so that a test or a simulator can run their jobs
step by step.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from typing import Protocol

Job = Callable[[], None]


class Background(Protocol):
    """Runs jobs in the order in which they are submitted, on the caller's thread or another."""

    def put(self, job: Job) -> None: ...

    def stop(self) -> None:
        """Return once all submitted jobs are done; none may be submitted afterwards."""


class StartThread(Protocol):
    """Starts a background; `idle` is called after `every` seconds without a job."""

    def __call__(self, name: str, idle: Job = ..., every: float | None = None) -> Background: ...


class JobThread:
    """The implementation with a thread.  It tells `threading.excepthook` of a job that raises."""

    def __init__(self, name: str, idle: Job = lambda: None, every: float | None = None) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._idle = idle
        self._every = every
        self.put = self._jobs.put
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._every)
            except queue.Empty:
                job = self._idle
            if job is None:
                return
            try:
                job()
            except Exception:  # a bug costs this job, not those behind it
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self._thread)))
