"""Makes every sync of a hub take METAD_PERF_SYNC_MS longer; read by Python when on PYTHONPATH.

The delay is in metad.system.osio, through which the hub accesses the disk, in whichever thread
syncs, and without the interpreter lock, like a slower disk.
"""

import os
import time

from metad.system import osio

_DELAY = float(os.environ["METAD_PERF_SYNC_MS"]) / 1e3
_fdatasync, _fsync = osio.Osio.fdatasync, osio.Osio.fsync


def _slow_fdatasync(self: osio.Osio, fd: int) -> None:
    time.sleep(_DELAY)
    _fdatasync(self, fd)


def _slow_fsync(self: osio.Osio, fd: int) -> None:
    time.sleep(_DELAY)
    _fsync(self, fd)


osio.Osio.fdatasync = _slow_fdatasync  # type: ignore[method-assign]
osio.Osio.fsync = _slow_fsync  # type: ignore[method-assign]
