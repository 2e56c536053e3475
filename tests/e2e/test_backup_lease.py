"""A backup or a check that hangs beside a hub: logs are freed, and it ends in an error."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from metad.errors import EX_TEMPFAIL
from tests.e2e.test_gc import NAMES, check, delete_some, fill
from tests.support.hub import DEADLINE, Hub

SETTINGS = "[collector]\nidle_seconds = 86400\nbackup_lease = 1\n"
# The real command, stopped by a signal once it has the lock.
STOPPED = """
import os, signal, sys
from metad import cli
from metad.system.osio import Osio

def stopping(name, function):
    def call(*arguments):
        setattr(Osio, name, function)
        os.kill(os.getpid(), signal.SIGSTOP)
        return function(*arguments)
    return call

for name in {calls!r}:
    setattr(Osio, name, stopping(name, getattr(Osio, name)))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def own_hub() -> Iterator[Hub]:
    with Hub(NAMES, SETTINGS, log_size="1MiB", workers=1) as hub:
        yield hub


def begin(hub: Hub, *arguments: str) -> subprocess.Popen[str]:
    """A command that has the lock and is stopped."""
    code = STOPPED.format(calls=("clone",) if "backup" in arguments else ("listdir",))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--config", str(hub.config)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), process.communicate()
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, and what it printed."""
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=DEADLINE)
    return process.returncode, out, err


@pytest.mark.long
def test_a_backup_that_hangs_loses_its_lease_and_says_so(own_hub: Hub, dice: random.Random) -> None:
    """Regression: it held the lock that keeps logs from being freed forever."""
    sent = fill(own_hub, dice, 60)
    delete_some(own_hub, sent)
    target = own_hub.home / "backup"
    process = begin(own_hub, "store", "backup", str(target))
    try:
        assert json.loads(own_hub.run("gc", "--full", "--json").stdout)["logs_freed"] > 0
        assert "it no longer keeps logs from being freed" in own_hub.log.read_text()
        code, _, err = end(process)
    finally:
        process.kill()
        process.wait()
    assert code == EX_TEMPFAIL
    assert "what was read is of no use (run it again" in err
    assert not (target / "manifest.json").exists()
    refused = own_hub.run(
        "store", "restore", str(target), "--data", str(own_hub.home / "new"), check=False
    )
    assert refused.returncode
    again = own_hub.home / "again"
    own_hub.run("store", "backup", str(again))
    check(own_hub, sent)


@pytest.mark.long
def test_a_check_that_hangs_loses_its_lease_and_says_so(own_hub: Hub, dice: random.Random) -> None:
    sent = fill(own_hub, dice, 60)
    delete_some(own_hub, sent)
    process = begin(own_hub, "fsck")
    try:
        own_hub.run("gc", "--full")
        code, out, err = end(process)
    finally:
        process.kill()
        process.wait()
    assert code == EX_TEMPFAIL
    assert "clean" not in out
    assert "what was read is of no use (run it again" in err
    own_hub.run("fsck")
