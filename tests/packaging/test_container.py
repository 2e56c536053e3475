"""A hub as a container runs it: process 1, not root, on a read-only root file system.

No container engine is needed: namespaces of our own stand for one.  Building the image, which only
an engine can do, is not tried here.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metad.control_client import request
from tests.support.clients import deliver, message
from tests.support.hub import DEADLINE, USER, Hub, session_pids
from tests.support.live import wait_gone

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "packaging" / "container" / "Containerfile"
# $1 may be written to, and /dev/shm; the rest is read-only.  Then no capability is left.
ENTER = """
mount --bind "$1" "$1"
mount -t tmpfs none /dev/shm
mount --bind / / && mount -o remount,bind,ro /
if touch /tmp/metad-writable 2>/dev/null; then echo "the root can be written"; exit 1; fi
data=$1
shift
cd /
mount -t proc proc /proc
exec setpriv --reuid=nobody --regid=nogroup --clear-groups --no-new-privs --inh-caps=-all \\
    --bounding-set=-all "$@"
"""


class ContainedHub(Hub):
    """Its process is unshare, whose only child is the hub's first process."""

    def wrapper(self) -> list[str]:
        return [
            "unshare", "--pid", "--fork", "--kill-child", "--mount", "--propagation=private",
            "sh", "-ec", ENTER, "sh", str(self.data),
        ]  # fmt: skip

    def first(self) -> int:
        """The pid of the hub's first process, as it is seen from outside."""
        process = self.process
        assert process is not None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (pid,) = map(int, children.read_text().split())
        return pid


def readable() -> bool:
    """Whether an ordinary user can run this Python."""
    command = [sys.executable, "-c", "import metad.cli"]
    done = subprocess.run(["setpriv", "--reuid=nobody", *command], check=False, cwd="/",
                          capture_output=True)  # fmt: skip
    return done.returncode == 0


@pytest.fixture
def contained():
    if os.geteuid() != 0:
        pytest.skip("not root: there are no namespaces to be had")
    if any(shutil.which(program) is None for program in ("unshare", "setpriv")):
        pytest.skip("unshare or setpriv is not here")
    if not readable():
        pytest.skip("an ordinary user cannot read Python here")
    with ContainedHub() as hub:
        yield hub


def test_the_first_process_serves_replaces_a_worker_and_ends_by_sigterm(contained):
    facts = request(contained.data, "status")
    assert facts["pid"] == 1
    deliver(contained, message(), "alice")
    first = contained.first()
    status = Path(f"/proc/{first}/status").read_text()
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert set(re.findall(r"^Cap\w+:\t(\w+)$", status, re.MULTILINE)) == {"0" * 16}
    pids = session_pids(contained.process.pid)
    workers = [pid for pid in pids if pid not in (first, contained.process.pid)]
    os.kill(workers[0], signal.SIGKILL)
    wait_gone(workers[0])  # the first process has reaped it
    deliver(contained, message(), "alice")
    os.kill(first, signal.SIGTERM)
    assert contained.process.wait(DEADLINE) == 0
    for pid in pids:
        wait_gone(pid)


def test_the_health_check_says_whether_a_hub_serves(contained):
    check = re.search(r'^HEALTHCHECK .*CMD \["metad", (.*)\]$', CONTAINERFILE.read_text(), re.M)
    assert check
    arguments = re.findall(r'"(.*?)"', check[1])
    assert contained.run(*arguments, check=False).returncode == 0
    os.kill(contained.first(), signal.SIGTERM)
    contained.process.wait(DEADLINE)
    assert contained.run(*arguments, check=False).returncode != 0


def test_the_image_is_not_roots_and_has_what_the_page_says():
    text = CONTAINERFILE.read_text()
    assert USER != "root"
    assert re.search(r"^USER metad$", text, re.MULTILINE)
    assert 'ENTRYPOINT ["metad"]\nCMD ["start"]' in text  # no shell between: signals arrive
    for name in re.findall(r"/source/(\S+)", text):
        assert (ROOT / name).exists()
