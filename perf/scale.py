"""The cost of a message as the store grows: CPU and octets written, by messages and mailboxes.

For each size a hub is started on a store of so many messages in so many mailboxes (made as
perf.rebuild makes it, indexed by the hub itself), then the same load is put on it: 500-octet
messages to mailboxes drawn at random. Rounds go over all sizes in turn.

    python -m perf.scale [--sizes 10000:10,10000000:1000000] [--messages 40000]

Prints, and writes perf/results/scale-DATE.json: microseconds of the hub's CPU per message and their
ratio to the smallest store, and octets written per message: those that reached the block device
below the directory by the end of a sync, of any process (a quiet machine, or a file system of
its own), and those in pages that the hub dirtied (/proc/PID/io), which with large folios are many
more than it wrote.

With --keep a store that is in the directory already is used as it is; making ten million messages
takes minutes. A fresh index is packed full, and its young level is empty: --enter so many messages
in the index alone, whose records are never read, brings it to its steady state first.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import random
import statistics
import struct
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from metad.store.identity import open_store
from metad.store.index.index import Index
from metad.store.index.rows import Batch
from metad.store.log import footer, record
from metad.store.log.place import Message, Place
from metad.system.osio import Osio
from metad.users.database import UserDatabase
from perf import harness
from perf.compare import SIZE, LoadFailedError
from perf.harness import HubOptions, Server
from perf.rebuild import RECORD, make_store
from perf.smtp_load import SmtpLoad, SmtpRun

RESULTS = Path(__file__).parent / "results"
CONNECTIONS = 100
DRAWN = 20_000
# The records made for it are holes, which a collector would report as damage.
NO_COLLECTOR = HubOptions(more="[collector]\nidle_seconds = 86400\n")
GROUP = 18  # messages in a transaction, as at 100 connections


def address(number: int) -> str:
    return f"box{number}@perf.example"


def prepare(where: Path, stored: int, mailboxes: int) -> None:
    """A data directory with users and mail, owned by whom the hub runs as."""
    data = where / "data"
    # Nothing deleted: the collector has nothing to do with logs whose records are holes.
    make_store(data, stored, mailboxes, deleted=0.0)
    with UserDatabase(data / "users", create=True) as users:
        users.reserve(0)  # as a start does: with mail there, no number is given before
        for outcome in users.add_many((address(n), None) for n in range(mailboxes)):
            if isinstance(outcome, Exception):
                raise outcome
    if os.geteuid() == 0:
        user = pwd.getpwnam(harness.user_name())
        for path in (data, *data.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)


def enter(data: Path, mailboxes: int, messages: int) -> None:
    """Enter mail in the index of a hub that was stopped, in groups as under load."""
    index = Index(open_store(Osio(), data).index)
    counts = index.log_counts(1)
    place = Place(1, 512, RECORD)
    for first in range(0, messages, GROUP):
        group = []
        for number in range(first, first + GROUP):
            message_id = struct.pack(">QHHI", 1_750_000_000_000_000 + number * 100, 1, 1, number)
            recipient = record.Recipient(random.randrange(mailboxes) + 2, "", 700)
            entries = footer.message_entries(message_id, 512, RECORD, (recipient,))
            group.append(Message(message_id, place, entries))
        index.apply(Batch(1, counts.life, counts.watermark, group, []))
    index.sync()
    index.close()


def dirtied(server: Server) -> int:
    """Octets of the pages that the hub's processes dirtied so far."""
    total = 0
    for pid in server.family():
        lines = Path(f"/proc/{pid}/io").read_text().split("\n")
        total += next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))
    return total


class Figures(NamedTuple):
    """Per message of one run: microseconds of CPU, octets."""

    cpu_us: float
    device_octets: float
    dirtied_octets: float


def one_run(server: Server, where: Path, mailboxes: int, messages: int) -> Figures:
    drawn = tuple(address(random.randrange(mailboxes)) for _ in range(min(DRAWN, messages)))
    load = SmtpLoad("127.0.0.1", server.smtp, drawn, CONNECTIONS, messages, SIZE, False)
    device, cpu, pages = harness.reached_device(where), server.cpu(), dirtied(server)
    report = SmtpRun(load).run()
    if report.error_count:
        raise LoadFailedError(report.text())
    cpu, pages = server.cpu() - cpu, dirtied(server) - pages
    device = harness.reached_device(where) - device
    return Figures(cpu / messages * 1e6, device / messages, pages / messages)


def summary(runs: list[Figures]) -> dict[str, Any]:
    columns = zip(Figures._fields, zip(*runs, strict=True), strict=True)
    return {name: {"median": statistics.median(all_), "all": all_} for name, all_ in columns}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    pairs = (size.split(":") for size in options.sizes.split(","))
    sizes = [(int(stored), int(mailboxes)) for stored, mailboxes in pairs]
    runs: dict[tuple[int, int], list[Figures]] = {size: [] for size in sizes}
    with ExitStack() as stack:
        where = Path(options.directory) if options.keep else None
        where = where or stack.enter_context(harness.directory(options.directory))
        servers: dict[tuple[int, int], Server] = {}
        for stored, mailboxes in sizes:
            place = where / f"{stored}-{mailboxes}"
            if not place.exists():
                place.mkdir(mode=0o755)
                prepare(place, stored, mailboxes)
            if options.enter:
                with harness.hub(place, NO_COLLECTOR):
                    pass  # it makes the index
                enter(place / "data", mailboxes, options.enter)
            if options.only_make:
                continue
            hub = stack.enter_context(harness.hub(place, NO_COLLECTOR))
            servers[stored, mailboxes] = hub
            one_run(hub, where, mailboxes, options.warm)
        for _ in range(options.rounds):
            for size, server in servers.items():
                runs[size].append(one_run(server, where, size[1], options.messages))
        machine = harness.machine(where)
    rows = [
        {"stored": stored, "mailboxes": mailboxes, **summary(runs[stored, mailboxes])}
        for stored, mailboxes in servers
        if options.rounds
    ]
    return {
        "machine": machine,
        "messages": options.messages,
        "warm": options.warm,
        "octets": SIZE,
        "rows": rows,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="10000:10,1000000:1000000", help="messages:mailboxes,…")
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--enter", type=int, default=0, help="messages, in the index alone")
    parser.add_argument("--warm", type=int, default=10_000, help="messages before the rounds")
    parser.add_argument("--directory", help="on the file system to measure")
    parser.add_argument("--keep", action="store_true", help="make stores there, to be used again")
    parser.add_argument("--only-make", action="store_true", help="make the stores, measure nothing")
    options = parser.parse_args()
    if options.keep and not options.directory:
        parser.error("--keep needs --directory")
    harness.STARTS_WITHIN = 600.0
    result = measure(options)
    if not result["rows"]:
        return 0
    first = result["rows"][0]
    for row in result["rows"]:
        cpu, device, pages = (row[name]["median"] for name in Figures._fields)
        print(
            f"{row['stored']:>12,} messages {row['mailboxes']:>10,} mailboxes: "
            f"{cpu:6.1f} us ({cpu / first['cpu_us']['median']:.2f}), {device:8,.0f} octets to the "
            f"device, {pages:8,.0f} in dirtied pages per message"
        )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"scale-{result['machine']['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
