"""The bad states that an operator meets.

A state has two data directories: of a hub alone, and of the first node of a cluster.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import msgpack

from metad.cluster.tokens import Token
from metad.master.preload import preload
from tests.support.clients import deliver, message
from tests.support.hub import USER, Hub, address, free_ports
from tests.support.state_commands import State
from tests.support.wide_hub import certificate

NEWER = 99  # a format that no release knows yet
DISK = "160m"
CLONE_NEWNS = 0x00020000
# Exit code 69 for a reason that a command has in any state.
_OTHER = (
    r"rspamd's controller at .* \(start rspamd|connection refused \(see there|"
    r"a hub is already running, pid \d+ \(metad stop ends it\)"
)
_NO_HUB = rf"no hub is running on {{data}} \(metad start starts it\)|{_OTHER}"
_libc = ctypes.CDLL(None, use_errno=True)


class Node(Hub):
    """A hub in a cluster."""

    peer = ""

    def announced(self) -> list[str]:
        return [*super().announced(), f"listening peer {self.peer}"]


class Bench:
    """Two hubs with mail, users and certificates, and the states made from them."""

    def __init__(self) -> None:
        preload()
        self.hub = Hub(["ann", "bob"])
        own, other = free_ports(2)
        self.token = Token(f"127.0.0.1:{other}", "ab" * 32, bytes(16)).text()
        self.cluster = f'[cluster]\naddress = "127.0.0.1:{own}"\n'
        self.peers = self.cluster + f'peers = ["127.0.0.1:{other}"]\n'
        self.node = Node(["ann"], self.peers)
        self.node.peer = f"127.0.0.1:{own}"
        self.home = self.hub.home
        self.out = self.home / "out"
        self._fill()

    def _fill(self) -> None:
        self.out.mkdir()
        self.out.chmod(0o777)
        chain, key = certificate("hub.example.test")
        for name, text in {
            "pair.pem": chain + key,
            "users.csv": f"address,quota\n{address('bob')},1GiB\n",
        }.items():
            (self.out / name).write_text(text)
            (self.out / name).chmod(0o644)
        self.node.run("cluster", "init")
        self.hub.run("tls", "self-signed", "--name", "kept", "hub.example.test")
        for hub in (self.hub, self.node):
            hub.start()
            for _ in range(8):
                deliver(hub, message(), "ann")
            if hub is self.hub:
                deliver(hub, message(), "bob")
                hub.run("store", "backup", str(self.out / "backup"))
            hub.stop()

    def close(self) -> None:
        for hub in (self.hub, self.node):
            with contextlib.suppress(FileNotFoundError):
                hub.close()
            shutil.rmtree(hub.home, ignore_errors=True)

    # -- configurations

    def configs(self, name: str, data: Path, clustered: Path, more: str = "") -> dict[str, Path]:
        """The three files for these data directories; `more` are their first lines."""
        etcd = self.cluster + 'etcd = ["http://127.0.0.1:1"]\n'
        texts = {"alone": (data, ""), "cluster": (clustered, self.peers), "etcd": (clustered, etcd)}
        found = {}
        for kind, (place, tail) in texts.items():
            hub = self.hub if kind == "alone" else self.node
            lines = hub.config.read_text().partition("[cluster]")[0]
            text = lines.replace(json.dumps(str(hub.data)), json.dumps(str(place)))
            found[kind] = self.out / f"{name}-{kind}.toml"
            found[kind].write_text(f"{more}{text}{tail}")
            found[kind].chmod(0o644)
        return found

    def _state(
        self, name: str, code: int, says: str, places: tuple[Path, Path] | None = None,
        **more: object,
    ) -> State:  # fmt: skip
        data, clustered = places or (self.hub.data, self.node.data)
        first = str(more.pop("first", ""))
        configs = self.configs(name, data, clustered, first)
        mbox = self.out / f"{name}.mbox"
        mbox.write_text(f"From x Thu Jan  1 00:00:00 2026\nSubject: {name}\n\ntext\n")
        mbox.chmod(0o644)
        return State(name, code, says, data, clustered, configs, **more)  # type: ignore[arg-type]

    def _places(self, name: str) -> tuple[Path, Path]:
        return self.home / name / "data", self.home / name / "clustered"

    # -- the states, by name

    @contextmanager
    def no_file(self) -> Iterator[State]:
        state = self._state("no-file", 78, r"{config}: No such file.* \(give a path that exists\)")
        for path in state.configs.values():
            path.unlink()
        yield state

    @contextmanager
    def unknown_key(self) -> Iterator[State]:
        says = r"{config}:1: hostnam: unknown key; did you mean hostname\? \(metad\.toml\(5\)"
        yield self._state("unknown-key", 78, says, first='hostnam = "x"\n')

    @contextmanager
    def bad_value(self) -> Iterator[State]:
        says = r"{config}:1: chroot: must .*\(metad\.toml\(5\) describes every setting\)"
        yield self._state("bad-value", 78, says, first="chroot = 7\n")

    @contextmanager
    def missing(self) -> Iterator[State]:
        says = (
            r"{data}: no such data directory \(name it by --data; metad user add makes one\)|"
            rf"{_NO_HUB}"
        )
        places = self._places("missing")
        yield self._state("missing", 69, says, places, after=lambda: _remove(places))

    @contextmanager
    def foreign(self) -> Iterator[State]:
        """A directory of root's, for the user nobody or the one who runs the tests."""
        places = Path("/root"), Path("/root")
        if os.geteuid() == 0:
            places = self._places("foreign")
            for path in places:
                path.mkdir(mode=0o700, parents=True)
                path.parent.chmod(0o755)
        says = r"{data}.* (belongs to|permitted only to) .* \(run this as "
        yield self._state("foreign", 77, says, places, inside=_become_nobody)

    @contextmanager
    def hidden(self) -> Iterator[State]:
        """A directory below one that this user must not enter."""
        places = self._places("hidden")
        places[0].parent.mkdir(mode=0o000)
        says = r"{data}: permitted only to its owner and root \(run this as root or"
        yield self._state("hidden", 77, says, places, inside=_become_nobody)
        places[0].parent.chmod(0o700)

    @contextmanager
    def newer(self) -> Iterator[State]:
        places = self._places("newer")
        self._copy(places)
        for data in places:
            path = data / "store.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"format": NEWER}))
            _raise_format(data / "users")
        says = r"{data}/.*(newer).* \(install the release of metad that (wrote|made) it\)"
        yield self._state("newer", 65, says, places)

    @contextmanager
    def full(self) -> Iterator[State]:
        """A small file system in a namespace of its own, without a free block."""
        places = self._places("full")
        places[0].parent.mkdir()

        def fill() -> None:
            if not Path(f"/proc/{disk}/root{places[0]}/spool/ballast").exists():
                run(_FREE)
                started(state, state.configs["alone"])  # it keeps its reserve again
            run(_FILL)

        def run(script: str) -> None:
            subprocess.run([*_within(disk), "sh", "-c", script, str(places[0].parent)], check=True)

        with _small_disk(places[0].parent) as disk:
            says = (
                r"{data}.*\(free some space on this disk: df shows it\)|"
                r"are free, [0-9,]+ are needed.* \(metad status shows the space "
            )
            state = self._state(
                "full", 75, says, places,
                inside=lambda: _enter(disk), root=f"/proc/{disk}/root", after=fill,
            )  # fmt: skip
            self._copy(places, within=disk)
            for kind in ("alone", "cluster"):  # the index is of another disk: a start rebuilds it
                started(state, state.configs[kind])
            fill()
            yield state

    @contextmanager
    def frozen(self) -> Iterator[State]:
        """Hubs of which no process runs."""
        with self._stopped_processes("frozen", lambda hub: hub.pids()) as state:
            yield state

    @contextmanager
    def frozen_workers(self) -> Iterator[State]:
        with self._stopped_processes("frozen-workers", lambda hub: hub.workers()) as state:
            yield state

    @contextmanager
    def _stopped_processes(self, name: str, which: Callable[[Hub], list[int]]) -> Iterator[State]:
        pids = [pid for hub in (self.hub, self.node) for pid in which(hub.start())]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            for pid in pids:
                _wait_for("T", pid)
            says = rf"the hub on {{data}} does not answer.*\(.*(again|metad mail list)|{_OTHER}"
            alive = name != "frozen"
            yield self._state(name, 69, says, at_once=True, is_alive=alive)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            self.hub.stop()
            self.node.stop()

    @contextmanager
    def killed(self) -> Iterator[State]:
        """Sockets and the lock's pid are left by hubs that kill -9 has ended."""
        for hub in (self.hub, self.node):
            hub.start().kill()
            assert (hub.data / "run" / "control").exists()
        yield self._state("killed", 69, _NO_HUB)
        for hub in (self.hub, self.node):
            hub.start().stop()

    @contextmanager
    def stopped(self) -> Iterator[State]:
        yield self._state("stopped", 69, _NO_HUB)

    def _copy(self, places: Iterable[Path], within: int = 0) -> None:
        for data, place in zip((self.hub.data, self.node.data), places, strict=True):
            Path(place.parent).mkdir(mode=0o755, exist_ok=True)
            command = ["cp", "-a", "--sparse=never", str(data), str(place)]
            subprocess.run([*(_within(within) if within else ()), *command], check=True)


STATES = (
    "no_file", "unknown_key", "bad_value", "missing", "foreign", "hidden", "newer", "full",
    "frozen", "frozen_workers", "killed", "stopped",
)  # fmt: skip


def started(state: State, config: Path) -> None:
    """Start a hub in this state, and stop it."""
    log = config.with_suffix(".log")
    words = ["start", "--config", str(config), "--detach", "--log-file", str(log)]
    for command in (words, ["stop", "--config", str(config)]):
        ran = state.begin(command).ended()
        assert ran.code == 0, (command, ran, log.read_text())


def _remove(places: Iterable[Path]) -> None:
    for place in places:
        shutil.rmtree(place, ignore_errors=True)


def _become_nobody() -> None:
    if os.geteuid() == 0:
        entry = pwd.getpwnam(USER)
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


def _raise_format(users: Path) -> None:
    with lmdb.open(str(users), max_dbs=16) as env:
        meta = env.open_db(b"meta")
        with env.begin(meta, write=True) as txn:
            txn.put(b"format", msgpack.packb(NEWER))


def _wait_for(state: str, pid: int) -> None:
    """Until the kernel has stopped a process."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != state:
        select.select([], [], [], 0.01)


# --- A small disk ---------------------------------------------------------------------------------

_MOUNT = f'mount -t tmpfs -o size={DISK},mode=0755 tmpfs "$0" && echo ready && exec cat'
_FREE = """rm -f "$0"/filler.*"""
_FILL = """
free=$(($(stat -f -c "%a*%S" "$0")))
[ "$free" = 0 ] || fallocate -l "$free" "$0/filler.$$"
"""


@contextmanager
def _small_disk(place: Path) -> Iterator[int]:
    """The process whose mount namespace has it at `place`."""
    command = ["unshare", "--mount", "sh", "-c", _MOUNT, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"ready\n"
        yield holder.pid
        holder.stdin.close()


def _within(pid: int) -> list[str]:
    return ["nsenter", "--mount", "--target", str(pid)]


def _enter(pid: int) -> None:
    with open(f"/proc/{pid}/ns/mnt", "rb") as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "setns")
