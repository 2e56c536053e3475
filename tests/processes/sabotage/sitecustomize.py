"""Loaded by Python itself in a hub whose PYTHONPATH has this directory: makes its processes fail.

Files in the data directory, which a confined worker may still see, select what goes wrong:
`hang` (its loop stops), `boot` (it cannot start), `bug` (an exception at the start), `crash`
(it dies at the start without a reason), `bad-page` (the recovery dies as if a page of the index
were bad; "once": unless the index is suspect), `murder` (it kills the master), `intrude-child` and
`intrude-orphan` (it asks the hub to stop confining its processes, by a child or by a grandchild
without a parent), `intrude-watcher` (it asks for connections to all workers).
"""

import os
import signal
import time

from metad.control_client import request
from metad.errors import OsError
from metad.store.recovery import hub as recovery
from metad.workers import worker as mail

_boot, _tick = mail.MailWorker._boot, mail.MailWorker._tick
_recover = recovery.Recovery.run


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


def ask(data, who):
    try:
        if who == "watcher":
            request(data, "attach", 10)
        else:
            request(data, "reload", 10, content="landlock = false", source=None)
        result = "done"
    except BaseException as error:
        result = repr(error)
    (data / f"intruded-{who}").write_text(result)
    os._exit(0)


def intrude(data):
    for who in ("child", "orphan", "watcher"):
        flag = data / f"intrude-{who}"
        if not flag.exists() or flag.read_text() != str(os.getpid()):
            continue
        flag.unlink()
        master = os.getppid()
        if os.fork():
            continue
        if who == "orphan":
            if os.fork():
                os._exit(0)
            while os.getppid() != master:
                time.sleep(0.01)
        ask(data, who)


def tick(worker):
    intrude(worker._setup.config.data)
    flag = worker._setup.config.data / "hang"
    if flag.exists() and flag.read_text() == str(os.getpid()):
        time.sleep(3600)
    _tick(worker)


def recover(self, table, boot):
    flag = self._store.data / "bad-page"
    if flag.exists():
        suspect = (self._store.data / "index" / "suspect").exists()
        if flag.read_text() != "once" or not suspect:
            os.kill(os.getpid(), signal.SIGBUS)
    return _recover(self, table, boot)


mail.MailWorker._boot, mail.MailWorker._tick = boot, tick
recovery.Recovery.run = recover
