"""The cost of a cluster's users in etcd: to write them there, to read all of them, to change one.

Makes a users database, starts an etcd of its own (from PATH) and writes the users into it, as
`metad cluster init` does.  Then a new node reads all rows into an empty database, and once more
when nothing has changed; and accounts are changed one by one, with the mirror following.

    python -m perf.users_etcd [--users 1000000]

Each step is a process of its own, so that its memory is its own.  Prints the figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from metad.cluster.directory_keys import Identity, Keys
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import EtcdError, puts
from metad.config.model import ClusterConfig
from metad.errors import ClusterError
from metad.users import passwords
from metad.users.database import UserDatabase
from metad.users.directory_users import DirectoryUsers, OvertakenError
from metad.users.mirrored import MirroredUsers
from metad.users.rows import Change, Position
from metad.users.upload import Upload
from metad.users.user_directory import UserDirectory, UserDirectoryNode
from tests.support.hub import free_ports

KEYS = Keys("c" * 32)
IDENTITY = Identity("i" * 32, 1)
BATCH = 20_000
CHANGED = 200
Figures = dict[str, Any]


def make(where: Path, users: int) -> Figures:
    """The users of the first node."""
    keys = passwords.make(b"secret", 4096).packed()
    fields = {"scram": keys, "password_version": 1}
    with UserDatabase(where / "one" / "users", create=True) as database:
        for start in range(0, users, BATCH):
            with database.transaction(write=True) as txn:
                for number in range(start, min(start + BATCH, users)):
                    database.insert(txn, f"user{number:07d}@example.org", fields)
    return {"database_mib": mib((where / "one" / "users" / "data.mdb").stat().st_size)}


async def write(etcd: Etcd, where: Path) -> None:
    with MirroredUsers(where / "one" / "users") as users:
        upload = Upload(users, 1)
        await upload.write(etcd, KEYS)
        await etcd.transact([], [puts(KEYS.identity, IDENTITY.encode())])
        upload.follow(IDENTITY)


async def read(etcd: Etcd, where: Path) -> None:
    """Into a new database, or one that has all."""
    with MirroredUsers(where / "two" / "users", create=True) as users:
        if not users.in_directory:
            users.follow(empty=True)
        else:
            users.stand_at(Position("another", 1))
        directory = UserDirectory(etcd, node(2), users)
        task = asyncio.create_task(directory.run())
        while directory.position.identity != IDENTITY.encode().decode():
            await asyncio.sleep(0.05)
            if directory.error:
                raise RuntimeError(directory.error)
        task.cancel()


class Both(DirectoryUsers, MirroredUsers):
    """A command's database and the mirror's, in one process."""


async def change(etcd: Etcd, where: Path) -> None:
    loop = asyncio.get_running_loop()

    def propose(change: Change) -> None:
        done = asyncio.run_coroutine_threadsafe(directory.change(change), loop)
        if not done.result():
            raise OvertakenError("overtaken")

    with Both(where / "one" / "users", propose) as users:
        directory = UserDirectory(etcd, node(1), users)
        task = asyncio.create_task(directory.run())
        for number in range(CHANGED):
            address = f"user{number:07d}@example.org"
            await asyncio.to_thread(users.set_disabled, address, disabled=True)
        task.cancel()


def node(number: int) -> UserDirectoryNode:
    return UserDirectoryNode(
        number, KEYS, lambda: IDENTITY, lambda line: print(line, file=sys.stderr), lambda: False,
        distrust,
    )  # fmt: skip


async def distrust(identity: Identity, reason: str) -> None:
    raise ClusterError(reason)


STEPS: dict[str, Callable[[Etcd, Path], Awaitable[None]]] = {
    "write": write, "read": read, "read_again": read, "change": change,
}  # fmt: skip


def step(name: str, url: str, where: Path) -> Figures:
    async def run() -> None:
        async with Etcd(ClusterConfig(etcd=(url,))) as etcd:
            await STEPS[name](etcd, where)

    wall, cpu = time.perf_counter(), time.process_time()
    asyncio.run(run())
    return {
        f"{name}_s": round(time.perf_counter() - wall, 2),
        f"{name}_cpu_s": round(time.process_time() - cpu, 2),
        f"{name}_anonymous_mib": anonymous_mib(),
        f"{name}_peak_mib": mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
    }


def mib(size: int) -> int:
    return size >> 20


def anonymous_mib() -> int:
    """Of this process, at its end; its peak has the pages of the database as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) >> 10


def in_process(*arguments: object) -> Figures:
    command = [sys.executable, "-m", "perf.users_etcd", *map(str, arguments)]
    found: Figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def start_etcd(where: Path) -> tuple[subprocess.Popen[bytes], str]:
    port, other = free_ports(2)
    url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{other}"
    process = subprocess.Popen(
        ["etcd", "--data-dir", str(where / "etcd"), "--quota-backend-bytes", str(8 << 30),
         "--listen-client-urls", url, "--advertise-client-urls", url,
         "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
         "--initial-cluster", f"default={peer}", "--auto-compaction-retention", "1h"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    asyncio.run(answers(url))
    return process, url


async def answers(url: str) -> None:
    until = time.monotonic() + 60
    async with Etcd(ClusterConfig(etcd=(url,))) as etcd:
        while True:
            try:
                await etcd.get("x")
                return
            except EtcdError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)


def resident_mib(pid: int) -> int:
    return mib(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def measure(where: Path, users: int) -> Figures:
    for name in ("one", "two"):
        (where / name).mkdir()
    figures: Figures = {"users": users, **in_process("--make", where, "--users", users)}
    process, url = start_etcd(where)
    try:
        for name in STEPS:
            figures |= in_process("--step", name, "--url", url, "--where", where)
        figures["etcd_resident_mib"] = resident_mib(process.pid)
        files = (where / "etcd").rglob("*")
        figures["etcd_disk_mib"] = mib(sum(one.stat().st_blocks * 512 for one in files))
    finally:
        process.terminate()
        process.wait()
    figures["change_ms"] = round(figures["change_s"] / CHANGED * 1000, 1)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--where", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make is not None:
        found = make(given.make, given.users)
    elif given.step is not None:
        found = step(given.step, given.url, given.where)
    else:
        with tempfile.TemporaryDirectory(prefix="metad-perf-") as place:
            found = measure(Path(place), given.users)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
