"""Machines of a test, each in a network namespace of its own, with a cable that can be cut.

    the test's namespace: a bridge, 10.77.0.1
    machine N: 10.77.0.(N + 1), and a loopback of its own, on which its clients are

Rules of this file:

* Only the calling thread enters a machine; what it starts there stays there.
* The kernel removes everything with the processes that hold the namespaces.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import pytest

CLONE_NEWNET = 0x40000000
BRIDGE = "10.77.0.1"
_libc = ctypes.CDLL(None, use_errno=True)


class CutNetwork:
    """So many machines on one bridge, within the context."""

    def __init__(self, count: int) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root makes networks")
        for program in ("ip", "unshare", "setpriv"):
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not here")
        self._count = count
        self._machines: list[subprocess.Popen[bytes]] = []
        self._before = open("/proc/thread-self/ns/net")

    def __enter__(self) -> Self:
        if _libc.unshare(CLONE_NEWNET):
            self._before.close()
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self._machines:
            machine.kill()
            machine.wait()
        assert _libc.setns(self._before.fileno(), CLONE_NEWNET) == 0
        self._before.close()

    def _make(self) -> None:
        _ip("link set lo up")
        if _ip("link add br0 type bridge", may_fail=True):
            pytest.skip("the kernel has no bridges")
        _ip(f"addr add {BRIDGE}/24 dev br0")
        _ip("link set br0 up")
        for number in range(self._count):
            machine = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c",
                 "echo; exec sleep infinity"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            )  # fmt: skip
            self._machines.append(machine)
            assert machine.stdout is not None
            assert machine.stdout.readline() == b"\n"
            machine.stdout.close()
            _ip(f"link add m{number} type veth peer name eth0 netns {machine.pid}")
            _ip(f"link set m{number} master br0 up")
            with self.inside(number):
                _ip("link set lo up")
                _ip(f"addr add {self.host(number)}/24 dev eth0")
                _ip("link set eth0 up")

    @staticmethod
    def host(number: int) -> str:
        return f"10.77.0.{number + 2}"

    @contextmanager
    def inside(self, number: int) -> Iterator[None]:
        """This thread is on machine `number`, the first of which is 0."""
        path = f"/proc/{self._machines[number].pid}/ns/net"
        with open("/proc/thread-self/ns/net") as before, open(path) as there:
            assert _libc.setns(there.fileno(), CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert _libc.setns(before.fileno(), CLONE_NEWNET) == 0

    def cut(self, number: int) -> None:
        """Nothing reaches the machine, and nothing of it gets out; its own loopback works."""
        _ip(f"link set m{number} down")

    def mend(self, number: int) -> None:
        _ip(f"link set m{number} up")


def _ip(words: str, *, may_fail: bool = False) -> int:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    assert may_fail or done.returncode == 0, f"ip {words}: {done.stderr}"
    return done.returncode
