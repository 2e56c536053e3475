"""The cost of a server: CPU time, memory and syncs of all its processes, including those that have
ended.

sendmail starts processes for every message, which are gone before /proc can be read.  So each
server has a cgroup (v2, where the system has it mounted and this is root); without one, living
processes are added up, and the figures of such servers are too low.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from perf.harness import Server

SYNC_CALLS = ("fsync", "fdatasync")


def _cgroup_mount() -> Path | None:
    for line in Path("/proc/mounts").read_text().split("\n"):
        fields = line.split()
        if len(fields) > 2 and fields[2] == "cgroup2" and os.access(fields[1], os.W_OK):
            return Path(fields[1])
    return None


class Account:
    """Of one server; `adopt` before it is measured."""

    def __init__(self, name: str) -> None:
        mount = _cgroup_mount() if os.geteuid() == 0 else None
        self.group = f"metad-perf-{os.getpid()}-{name}"
        self._directory = mount / self.group if mount else None
        self._server: Server | None = None
        self._joined: list[Account] = []
        if self._directory:
            self._directory.mkdir()

    @property
    def exact(self) -> bool:
        return self._directory is not None

    def adopt(self, server: Server) -> None:
        """All processes of a server that runs already; those that they start follow."""
        self._server = server
        if self._directory:
            for pid in server.family():
                with contextlib.suppress(ProcessLookupError):
                    (self._directory / "cgroup.procs").write_text(str(pid))

    def join(self, other: Account) -> None:
        """From now on, these figures include those of `other`."""
        self._joined.append(other)

    def cpu(self) -> float:
        """Seconds so far."""
        return self._own_cpu() + sum(other.cpu() for other in self._joined)

    def _own_cpu(self) -> float:
        if not self._directory:
            return self._server.cpu() if self._server else 0.0
        line = (self._directory / "cpu.stat").read_text().split("\n")[0]
        return int(line.split()[1]) / 1e6

    def _pids(self) -> list[int]:
        if not self._directory:
            return self._server.family() if self._server else []
        return [int(pid) for pid in (self._directory / "cgroup.procs").read_text().split()]

    def memory(self) -> int:
        """Bytes of the living processes; what they share counts once (PSS)."""
        total = 0
        for pid in [pid for account in (self, *self._joined) for pid in account._pids()]:
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n")
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total * 1024

    def close(self) -> None:
        """After the server has ended."""
        if not self._directory:
            return
        for _ in range(200):
            with contextlib.suppress(OSError):
                self._directory.rmdir()
                return
            with contextlib.suppress(OSError):
                (self._directory / "cgroup.kill").write_text("1")
            time.sleep(0.02)

    def count_syncs(self, work: Callable[[], int]) -> float | None:
        """fsync and fdatasync calls per unit while `work` runs; None where perf cannot count."""
        perf = shutil.which("perf")
        if perf is None or not self._directory:
            return None
        command = [perf, "stat", "-x", ",", "-a"]
        groups = []
        for account in (self, *self._joined):
            for call in SYNC_CALLS:
                command += ["-e", f"syscalls:sys_enter_{call}"]
                groups.append(account.group)
        command += ["-G", ",".join(groups)]
        with _counting(command) as counts:
            units = work()
        return sum(counts) / units if counts else None


@contextlib.contextmanager
def _counting(command: list[str]) -> Iterator[list[int]]:
    counts: list[int] = []
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    time.sleep(0.3)
    try:
        yield counts
    finally:
        process.send_signal(2)
        _, text = process.communicate()
    counts += [int(found) for found in re.findall(r"^(\d+),,syscalls:", text, re.MULTILINE)]
