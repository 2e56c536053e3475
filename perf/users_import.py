"""The cost of a million users: to import, to import again, to open, to look up.

Writes a Dovecot passwd-file with given hashes and quotas, in random order, and imports it twice
into a new database; then reopens the database and looks up recipients: all at random, and a few
repeatedly, as for senders of many messages.

    python -m perf.users_import [--users 1000000]

Prints the figures; writes perf/results/.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metad.users.database import UserDatabase
from metad.users.imports import importers
from metad.users.imports.import_apply import Transfer
from perf import harness
from perf.rebuild import RESULTS

HASH = "$6$saltsaltsalt$" + "a" * 86
LOOKUPS = 200_000
PASSES = 7
FEW = 300  # addresses that are looked up repeatedly
SEED = 1999


def write_file(path: Path, users: int) -> None:
    numbers = list(range(users))
    random.Random(SEED).shuffle(numbers)
    with path.open("w") as file:
        for number in numbers:
            name = f"user{number:07d}@example.org"
            file.write(f"{name}:{{SHA512-CRYPT}}{HASH}:::::: userdb_quota_rule=*:storage=1G\n")


@contextmanager
def timed(figures: dict[str, Any], name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    figures[f"{name}_s"] = round(time.perf_counter() - wall, 4)
    figures[f"{name}_cpu_s"] = round(time.process_time() - cpu, 4)


def import_file(database: UserDatabase, path: Path) -> tuple[int, int]:
    """(added, unchanged)."""
    with path.open("rb") as file:
        transfer = Transfer(database)
        transfer.run(importers.read("dovecot", importers.Source(importers.Text("file", file))))
    return transfer.outcome.added, transfer.outcome.unchanged


def look_up(database: UserDatabase, names: list[str]) -> dict[str, float]:
    """CPU microseconds for each, over some passes: the minimum is least affected by other
    programs."""
    passes: list[float] = []
    for _ in range(PASSES):
        began = time.process_time()
        for name in names:
            database.expand(name)
        passes.append((time.process_time() - began) / len(names) * 1e6)
    return {"least": round(min(passes), 2), "median": round(statistics.median(passes), 2)}


def measure(where: Path, users: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"users": users}
    path = where / "passwd"
    write_file(path, users)
    with UserDatabase(where / "users", create=True) as database:
        with timed(figures, "import"):
            done = import_file(database, path)
        with timed(figures, "again"):
            again = import_file(database, path)
    if (done, again) != ((users, 0), (0, users)):
        raise SystemExit(f"not everybody was imported: {done}, {again}")
    with timed(figures, "open"):
        database = UserDatabase(where / "users")
    dice = random.Random(SEED)
    names = [f"user{dice.randrange(users):07d}@example.org" for _ in range(LOOKUPS)]
    with database:
        figures["lookup_us"] = look_up(database, names)
        figures["lookup_again_us"] = look_up(database, names[:FEW] * (LOOKUPS // FEW))
    figures["database_octets"] = (where / "users" / "data.mdb").stat().st_blocks * 512
    figures["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with harness.directory() as where:
        figures = measure(where, arguments.users)
        report = {
            "command": " ".join(["python", "-m", "perf.users_import", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": harness.machine(where),
            "figures": figures,
        }
    text = json.dumps(report, indent=1)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    name = f"users-import-{arguments.users}-{report['date']}.json"
    (RESULTS / name).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
