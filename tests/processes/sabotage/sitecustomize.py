"""Loaded by Python itself in a hub whose PYTHONPATH has this directory: makes its workers fail.

What goes wrong is said by files in the data directory, which a confined worker may still see:
`hang` (its loop stands still), `boot` (it cannot begin), `bug` (it breaks in beginning), `crash`
(it dies in beginning, without a word), `murder` (it takes the master with it).
"""

import os
import signal
import time

from metad.errors import OsError
from metad.workers import worker as mail

_boot, _tick = mail.MailWorker._boot, mail.MailWorker._tick


def boot(worker):
    data = worker._setup.config.data
    if (data / "boot").exists():
        raise OsError("sabotage: no room")
    if (data / "bug").exists():
        raise KeyError("sabotage")
    if (data / "crash").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (data / "murder").exists():
        os.kill(os.getppid(), signal.SIGKILL)
    return _boot(worker)


def tick(worker):
    flag = worker._setup.config.data / "hang"
    if flag.exists() and flag.read_text() == str(os.getpid()):
        time.sleep(3600)
    _tick(worker)


mail.MailWorker._boot, mail.MailWorker._tick = boot, tick
