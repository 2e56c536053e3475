"""The cost of a poll by the number of messages in the mailbox: it should not depend on it.

A mailbox of each size is put into the index of a worker without sockets (perf.session).  Polls
(sessions that log in, send STAT and quit) visit all mailboxes in turn; the minimum of many rounds
counts.

    sh tools/perf polls [--sizes 10 1000 1000000] [--rounds 50]

Prints microseconds per poll and the ratio to the first size; the same of what the index alone does
for a poll; with `--list` what a listing takes, in steps, and the longest step.  All is CPU time.
Exits with 1 if a poll costs more than 1.2 times that of the first size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from metad.layers.listing import Listing
from metad.store.index.index import Index
from perf import session

RAM_DISK = "/dev/shm"
POLLS = 200
PIECE = 50_000
MOST = 1.2


def fill(index: Index, mailbox: int, count: int) -> None:
    """Entries as made by mail one second apart."""
    for start in range(0, count, PIECE):
        rows = [
            (
                mailbox.to_bytes(4, "big")
                + (1_700_000_000_000_000 + number * 1_000_000).to_bytes(8, "big")
                + bytes(8),
                (5000).to_bytes(4, "big"),
            )
            for number in range(start, min(start + PIECE, count))
        ]
        with index._env.begin(write=True) as txn:
            index._levels.add(txn, rows)


def lookups(index: Index, mailbox: int) -> float:
    """CPU seconds of the index's work for a poll."""
    began = time.process_time()
    for _ in range(POLLS):
        listing = Listing(index, mailbox)
        if not (listing.messages and listing.octets):
            raise ValueError("an empty mailbox")
    return (time.process_time() - began) / POLLS


def sessions(bench: session.Polls, user: str, size: int) -> float:
    """CPU seconds of a poll, including the session."""
    found = bench.poll(user)
    if not any(answer.startswith(b"+OK %d " % size) for answer in found):
        raise ValueError(f"STAT was answered otherwise: {found!r}")
    began = time.process_time()
    for _ in range(POLLS):
        bench.poll(user)
    return (time.process_time() - began) / POLLS


def longest_step(index: Index, mailbox: int) -> tuple[int, float, float]:
    """Steps of a listing, its seconds, and those of its longest step."""
    steps, longest, total = iter(Listing(index, mailbox).steps()), 0.0, 0.0
    count = 0
    while True:
        began = time.thread_time()
        more = next(steps, steps)
        took = time.thread_time() - began
        total, longest, count = total + took, max(longest, took), count + 1
        if more is steps:
            return count, total, longest


def measure(bench: session.Polls, sizes: list[int], rounds: int) -> list[tuple[float, float]]:
    """The least CPU seconds for each size: of a poll, and of the index's part in it."""
    index = bench.index
    users = session.USERS[: len(sizes)]
    mailboxes = [bench.mailbox(user) for user in users]
    for mailbox, size in zip(mailboxes, sizes, strict=True):
        fill(index, mailbox, size)
    found: list[list[tuple[float, float]]] = [[] for _ in sizes]
    for _ in range(rounds):
        for times, user, mailbox, size in zip(found, users, mailboxes, sizes, strict=True):
            times.append((sessions(bench, user, size), lookups(index, mailbox)))
    return [(min(one for one, _ in times), min(two for _, two in times)) for times in found]


def line(size: int, times: tuple[float, float], first: tuple[float, float]) -> str:
    (poll, lookup), (first_poll, first_lookup) = times, first
    return (
        f"{size:>10,} messages: {poll * 1e6:6.2f} us a poll, {poll / first_poll:.2f} x; "
        f"index {lookup * 1e6:.2f} us, {lookup / first_lookup:.2f} x"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="What a poll costs by the size of the mailbox.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    session.silence()
    with tempfile.TemporaryDirectory(prefix="metad-perf-", dir=RAM_DISK) as directory:
        bench = session.made(session.Polls, "log", len(session.USERS), Path(directory))
        found = measure(bench, given.sizes, given.rounds)
        for user, size, times in zip(session.USERS, given.sizes, found, strict=False):
            print(line(size, times, found[0]))
            if given.list:
                count, total, longest = longest_step(bench.index, bench.mailbox(user))
                took = f"{total * 1e3:.1f} ms, at most {longest * 1e3:.1f}"
                print(f"{'':>10} listing: {count} steps, {took}")
        bench.close()
    return int(any(poll > MOST * found[0][0] for poll, _ in found))


if __name__ == "__main__":
    sys.exit(main())
