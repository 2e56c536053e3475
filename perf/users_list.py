"""The cost of listing a million users: `metad user list` in its forms, each in a separate process.

Makes a users database, an index in which every mailbox has mail, and the file of last logins;
prints for each form the seconds (the median, the least and the most), the least seconds of
processor, and the peak of memory, pages of the databases included.

    python -m perf.users_list [--users 1000000] [--passes 3]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from array import array
from pathlib import Path

from metad.store.identity import open_or_make_store
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.system.osio import Osio
from metad.users.database import UserDatabase
from metad.users.last_logins import NAME as LOGINS

SEED = 1999
BATCH = 10_000
FORMS = (
    ["user", "list"],
    ["user", "list", "--long"],
    ["user", "list", "--long", "--json"],
    ["user", "list", "--over-quota"],
    ["user", "list", "--sort", "bytes"],
    ["user", "list", "--sort", "bytes", "--first", "20"],
)


def make(data: Path, users: int) -> None:
    """Two messages in each mailbox."""
    osio = Osio()
    store = open_or_make_store(osio, data)
    with UserDatabase(data / "users", create=True) as database:
        names = ((f"user{number:07d}@example.org", None) for number in range(users))
        numbers = [one.id for one in database.add_many(names) if not isinstance(one, Exception)]
    index = Index(store.index)
    dice = random.Random(SEED)
    for start in range(0, len(numbers), BATCH):
        rows = [
            (
                number.to_bytes(4, "big") + bytes([each]) * 16,
                dice.randrange(1 << 16).to_bytes(4, "big"),
            )
            for number in numbers[start : start + BATCH]
            for each in (1, 2)
        ]
        with index.writing() as txn:
            index.tables.levels.add(txn, rows)
    index.sync()
    index.close()
    index_state.mark(osio, store.index, index_state.boot_id(), clean=True)
    logins = array("Q", [dice.randrange(1 << 31) for _ in range(max(numbers) + 1)])
    logins.byteswap()
    (data / "users" / LOGINS).write_bytes(logins.tobytes())


def run(data: Path, arguments: list[str], config: Path) -> tuple[float, float, int, int]:
    """Seconds, those of processor, the peak of memory in MiB, lines."""
    where = ["--data", str(data), "--config", str(config)]
    with tempfile.TemporaryFile() as out:
        began = time.perf_counter()
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "metad", *arguments, *where],
            os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1)],
        )  # fmt: skip
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - began
        if status:
            raise SystemExit(f"{arguments} ended with {os.waitstatus_to_exitcode(status)}")
        out.seek(0)
        return (
            seconds,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss // 1024,
            sum(1 for _ in out),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--passes", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        data, config = Path(home) / "data", Path(home) / "metad.toml"
        data.mkdir(mode=0o700)
        config.write_text('[quota]\nsize = "100KiB"\n')
        make(data, given.users)
        for form in FORMS:
            found = [run(data, form, config) for _ in range(given.passes)]
            seconds = [one[0] for one in found]
            print(
                f"metad {' '.join(form):<38} {statistics.median(seconds):6.1f} s "
                f"({min(seconds):.1f} to {max(seconds):.1f}), "
                f"{min(one[1] for one in found):5.1f} s of processor, {found[0][2]:5} MiB, "
                f"{found[0][3]:9,} lines",
                flush=True,
            )


if __name__ == "__main__":
    main()
