"""A `Debian` booted in namespaces of its own, with systemd as its first process.

    the test -> nsenter -> a shell beside systemd

Rules of this file:

* It has its own processes, mounts, network (loopback alone), host name and part of the cgroup tree;
  the kernel's settings are read-only to it, and it cannot set the clock or load modules.
* It starts in about a second, so every test of a real systemd runs in it.  What needs a machine of
  its own (`tests/support/machine.py`): a power cut that loses the page cache, and limits of memory
  where the kernel's memory controller is not free.
* The kernel ends all of it with the test's process, however that ends.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.debian import Debian

BOOT_SECONDS = 60.0
COMMAND_SECONDS = 120.0
# In the namespaces: mounts as systemd's container interface asks for them, and systemd.
_BOOT = """
tree=$1 own=$2 merged=$2/merged
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$own/upper,workdir=$own/work" "$merged"
mount -t proc proc "$merged/proc"
mount --bind "$merged/proc/sys" "$merged/proc/sys"
mount -o remount,bind,ro "$merged/proc/sys"
mount -t sysfs -o ro sysfs "$merged/sys"
mount -t cgroup2 cgroup2 "$merged/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$merged/dev"
for name in null zero full random urandom tty; do
    : >"$merged/dev/$name"
    mount --bind "/dev/$name" "$merged/dev/$name"
done
mkdir "$merged/dev/shm" "$merged/dev/pts"
mount -t tmpfs tmpfs "$merged/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$merged/dev/pts"
ln -s pts/ptmx "$merged/dev/ptmx"
ln -s /proc/self/fd "$merged/dev/fd"
mount -t tmpfs -o mode=755 tmpfs "$merged/run"
mount --bind "$own/hand" "$merged/mnt"
exec setpriv --bounding-set -sys_time,-sys_module,-sys_rawio,-mknod --inh-caps -all \\
    chroot "$merged" env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \\
    /lib/systemd/systemd --system
"""
# Into a cgroup of its own, which becomes the root of what systemd sees.
_ENTER = """
set -eu
mkdir "$1"
echo $$ >"$1/cgroup.procs"
shift
exec unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup sh -euc "$@"
"""
_ENVIRONMENT = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root",
                "TERM=dumb", "DEBIAN_FRONTEND=noninteractive")  # fmt: skip


def need_namespaces() -> None:
    """Skip where a systemd cannot be booted."""
    for program in ("unshare", "nsenter", "setpriv"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")
    if _cgroups() is None:
        pytest.skip("no cgroup tree of version 2 that can be written to")


def _cgroups() -> Path | None:
    """Where this process's own cgroup of version 2 lies."""
    own = next(
        (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines()
         if line.startswith("0::")), None
    )  # fmt: skip
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2" and own is not None and os.access(place, os.W_OK):
            return Path(place + own)
    return None


class Namespace:
    """One booted Debian, from `boot` to `close`."""

    patience = 1.0

    def __init__(self, debian: Debian) -> None:
        self._directory = debian.directory
        self._tree = debian.tree
        self._console = (debian.directory / "console").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self._group: Path | None = None
        self._init = 0

    def boot(self) -> None:
        """Start it, and wait until everything that starts by itself runs."""
        groups = _cgroups()
        assert groups is not None
        self._group = Path(tempfile.mktemp(prefix="metad-test-", dir=groups))
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "sh", "-c", _ENTER, "sh", str(self._group), _BOOT,
             "sh", str(self._tree), str(self._directory)],
            stdin=subprocess.DEVNULL, stdout=self._console, stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + BOOT_SECONDS
        while not self._is_up():
            text = (self._directory / "console").read_text(errors="replace")
            assert self._process.poll() is None, f"it ended: {text}"
            assert time.monotonic() < deadline, f"it does not boot: {text}"
            select.select([], [], [], 0.05)

    def _is_up(self) -> bool:
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return False
        self._init = int(children[0])
        with suppress(OSError):
            if os.readlink(f"/proc/{self._init}/exe").endswith("/systemd"):
                state = self._enter("systemctl is-system-running", 10).stdout.strip()
                return state in ("running", "degraded")
        return False

    def _enter(self, script: str, seconds: float) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", "--target", str(self._init), "--all", "--root", "--wd",
                   *_ENVIRONMENT, "timeout", "--kill-after=5", str(seconds), "sh", "-ec",
                   script]  # fmt: skip
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace",
                              timeout=seconds + 30, check=False)  # fmt: skip

    def run(self, script: str, *, code: int | None = 0, seconds: float = COMMAND_SECONDS) -> str:
        """Run a shell script as root; what it printed.  `code`: the exit code it must have."""
        done = self._enter(script, seconds)
        assert code is None or done.returncode == code, (
            f"{script} ended with {done.returncode}: {done.stdout}\n{self.journal()}"
        )
        return done.stdout

    def journal(self) -> str:
        """The end of metad's own."""
        script = "journalctl -u metad --no-pager -n 40; systemctl status --no-pager metad"
        return self._enter(script, 30).stdout

    def reboot(self, *, cut: bool = False) -> None:
        """By systemd; or every process dies at once (the page cache stays: no power cut)."""
        assert self._process is not None
        if cut:
            self._process.kill()
        else:
            self._enter("systemctl --no-block reboot", 30)
        self._process.wait(BOOT_SECONDS)
        self._leave()
        self.boot()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._leave()
        self._console.close()

    def _leave(self) -> None:
        """Remove its cgroups, once the kernel has ended all of its processes."""
        if self._group is None:
            return
        deadline = time.monotonic() + BOOT_SECONDS
        while self._group.exists() and time.monotonic() < deadline:
            for path, _, _ in os.walk(self._group, topdown=False):
                with suppress(OSError):
                    os.rmdir(path)
            select.select([], [], [], 0.01)
        self._group = None
