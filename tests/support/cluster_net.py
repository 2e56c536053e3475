"""Network namespaces for the nodes of a cluster: links that can be cut, one way too, or stalled.

    node 1 -- veth -- |        |
    node 2 -- veth -- | bridge | -- the middle: what all nodes reach (etcd)
    node 3 -- veth -- |        |

Rules of this file:

* Each namespace belongs to a process that ends with the test's, so nothing is left behind.
* A namespace belongs to a thread: whatever a thread does within `Place.inside`, sockets that it
  opens and processes that it starts, is there.  `Place.enter` is for a thread that stays.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from tests.support.clients import in_time

CLONE_NEWNET = 0x40000000
PREFIX = "10.77.0"
MIDDLE = 254
# A stalled link still passes this many bits a second, so that connections stay open.
STALLED = "1kbit"
NO_ONE = "02:00:00:00:00:ff"  # the address of no interface
_ADD_BRIDGE = ("ip", "link", "add", "name", "bridge", "type", "bridge")
_libc = ctypes.CDLL(None, use_errno=True)


def need_net() -> None:
    """Skip the test where namespaces cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    for program in ("ip", "tc", "unshare", "nsenter", "setpriv"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")
    done = subprocess.run(
        ["unshare", "--net", *_ADD_BRIDGE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no namespace with a bridge: {done.stderr.strip()}")


class Place:
    """One namespace."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.address = f"{PREFIX}.{number}"
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "cat"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.pid = self._holder.pid
        own = os.readlink("/proc/self/ns/net")
        assert in_time(lambda: self._is_apart(own)), "there is no namespace"
        self.run("ip", "link", "set", "lo", "up")

    def _is_apart(self, own: str) -> bool:
        return os.readlink(f"/proc/{self.pid}/ns/net") != own

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()

    def run(self, *command: str, check: bool = True) -> None:
        subprocess.run(["nsenter", f"--net=/proc/{self.pid}/ns/net", *command], check=check,
                       capture_output=not check)  # fmt: skip

    def enter(self) -> None:
        """Bring the calling thread here."""
        _enter(Path(f"/proc/{self.pid}/ns/net"))

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is here for the time."""
        with open("/proc/thread-self/ns/net") as before:
            self.enter()
            try:
                yield
            finally:
                assert _libc.setns(before.fileno(), CLONE_NEWNET) == 0


def _enter(path: Path) -> None:
    with path.open() as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns: {path}")


class Net:
    """So many places around one middle, within the context."""

    def __init__(self, count: int) -> None:
        need_net()
        self.middle = Place(MIDDLE)
        self.places = [Place(number) for number in range(1, count + 1)]
        self.middle.run(*_ADD_BRIDGE)
        self.middle.run("ip", "link", "set", "bridge", "up")
        self.middle.run("ip", "address", "add", f"{self.middle.address}/24", "dev", "bridge")
        for place in self.places:
            self._connect(place)

    def _connect(self, place: Place) -> None:
        self.middle.run("ip", "link", "add", "name", _port(place), "type", "veth",
                        "peer", "name", "eth", "netns", str(place.pid))  # fmt: skip
        self.middle.run("ip", "link", "set", _port(place), "master", "bridge", "up")
        place.run("ip", "address", "add", f"{place.address}/24", "dev", "eth")
        place.run("ip", "link", "set", "eth", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for place in (*self.places, self.middle):
            place.close()

    # -- what goes wrong

    def cut(self, place: Place) -> None:
        """Nothing comes to it or from it."""
        self.middle.run("ip", "link", "set", _port(place), "down")

    def cut_way(self, source: Place, target: Place) -> None:
        """Nothing goes this way, without a word; the other way stays open."""
        source.run("ip", "neigh", "replace", target.address, "lladdr", NO_ONE, "dev", "eth",
                   "nud", "permanent")  # fmt: skip

    def stall(self, place: Place) -> None:
        """What is sent to it waits."""
        self.middle.run("tc", "qdisc", "replace", "dev", _port(place), "root", "tbf",
                        "rate", STALLED, "burst", "1600", "limit", "10000000")  # fmt: skip

    def mend(self) -> None:
        """Undo everything."""
        for place in self.places:
            self.middle.run("tc", "qdisc", "del", "dev", _port(place), "root", check=False)
            self.middle.run("ip", "link", "set", _port(place), "up")
            for other in self.places:
                place.run("ip", "neigh", "del", other.address, "dev", "eth", check=False)


def _port(place: Place) -> str:
    """The bridge's end of its link."""
    return f"port{place.number}"
